"""CLIP and SigLIP against float64 loops, across devices and block sizes, and at the edges."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from cl_jax.losses import image_text
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity, unit

module = compiled(image_text)

RNG = np.random.default_rng(0)
U, V = RNG.normal(size=(2, 7, 5))
BLOCKS = [None, 0, 3]


def oracle_clip(u, v, scale):
    s = scale * unit(u) @ unit(v).T
    losses = []
    for i in range(len(u)):
        losses += [np.log(sum(np.exp(s[i]))) - s[i, i], np.log(sum(np.exp(s[:, i]))) - s[i, i]]
    return np.mean(losses)


def oracle_siglip(u, v, scale, bias):
    s = scale * unit(u) @ unit(v).T + bias
    return sum(
        np.log1p(np.exp(-s[i, j] if i == j else s[i, j]))
        for i in range(len(u))
        for j in range(len(u))
    ) / len(u)


@pytest.mark.parametrize("block_size", BLOCKS)
def test_values_are_the_formulas(block_size):
    @jax.jit
    def ours(u, v):
        clip = partial(image_text.clip, u, v, block_size=block_size)
        siglip = partial(image_text.siglip, u, v, block_size=block_size)
        return (
            clip(logit_scale=8.0),
            clip(logit_scale=300.0),
            clip(logit_scale=300.0, max_scale=None),
            siglip(logit_scale=10.0, logit_bias=-4.0),
        )

    expected = (
        oracle_clip(U, V, 8.0),
        oracle_clip(U, V, 100.0),
        oracle_clip(U, V, 300.0),
        oracle_siglip(U, V, 10.0, -4.0),
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(ours(U, V), expected, rtol=1e-12)


@pytest.mark.parametrize("block_size", [0, 3])
def test_gradients(block_size):
    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in (U, V, 8.0, -4.0)]

        def clip(u, v, scale, _):
            return module.clip(u, v, logit_scale=scale, block_size=block_size)

        def siglip(u, v, scale, bias):
            return module.siglip(u, v, logit_scale=scale, logit_bias=bias, block_size=block_size)

        for loss in (clip, siglip):
            jax.test_util.check_grads(jax.jit(loss), args, order=1, modes=["rev"], rtol=1e-6)


def test_scale_above_its_bound_keeps_the_gradient_of_the_bound():
    slope = jax.jit(jax.grad(lambda s: image_text.clip(U, V, logit_scale=s)))
    free = jax.jit(jax.grad(lambda s: image_text.clip(U, V, logit_scale=s, max_scale=None)))
    with jax.enable_x64(True):
        np.testing.assert_allclose(slope(250.0), slope(100.0), rtol=1e-12)
        np.testing.assert_allclose(slope(100.0), free(100.0), rtol=1e-12)
        assert slope(100.0) != 0
    np.testing.assert_allclose(
        jnp.exp(module.clamp_log_scale(jnp.asarray([2.0, 9.0]))), [np.exp(2), 100], rtol=1e-5
    )


def test_knowing_nothing():
    same = jnp.ones((6, 4))
    np.testing.assert_allclose(module.clip(same, same, logit_scale=20.0), np.log(6), rtol=1e-6)
    np.testing.assert_allclose(
        module.siglip(same, same, logit_scale=10.0, logit_bias=-10.0), 6 * np.log(2), rtol=1e-5
    )


def test_logits():
    logits = module.clip_logits(jnp.asarray(U), jnp.asarray(V[:3]), logit_scale=2.0, logit_bias=1.0)
    np.testing.assert_allclose(logits, 2 * unit(U) @ unit(V[:3]).T + 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["gather", "ring"])
def test_clip_on_devices(plan):
    def loss(u, v, scale, *, axis_name):
        return module.clip(u, v, logit_scale=scale, axis_name=axis_name, plan=plan, block_size=None)

    assert_parity(
        loss,
        [*np.random.default_rng(1).normal(size=(2, 16, 4)), np.array(7.0)],
        [True, True, False],
    )


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["gather", "ring"])
def test_siglip_on_devices(plan):
    def loss(u, v, scale, bias, *, axis_name):
        return module.siglip(
            u,
            v,
            logit_scale=scale,
            logit_bias=bias,
            axis_name=axis_name,
            plan=plan,
            block_size=2 if plan == "gather" else None,
        )

    args = [*np.random.default_rng(1).normal(size=(2, 8, 4)), np.array(7.0), np.array(-5.0)]
    assert_parity(loss, args, [True, True, False, False])


@pytest.mark.parametrize("local_loss", [False, True])
def test_the_exchanges_of_the_authors_are_the_same_loss(local_loss):
    def loss(u, v, *, axis_name):
        return module.clip(u, v, logit_scale=7.0, axis_name=axis_name, local_loss=local_loss)

    assert_parity(loss, np.random.default_rng(1).normal(size=(2, 8, 4)), [True, True])


@pytest.mark.parametrize("block_size", [0, 2])
def test_edges(block_size):
    u, v = jnp.asarray(U, jnp.float32).at[1].set(0), jnp.asarray(V, jnp.float32).at[1:3].set(0)
    clip = partial(image_text.clip, logit_scale=100.0, block_size=block_size)
    siglip = partial(image_text.siglip, logit_scale=10.0, logit_bias=-10.0, block_size=block_size)

    @jax.jit
    def both(u, v):
        half = u.astype(jnp.bfloat16), v.astype(jnp.bfloat16)
        found = [jax.value_and_grad(loss, argnums=(0, 1))(u, v) for loss in (clip, siglip)]
        return found, [loss(*half) for loss in (clip, siglip)]

    found, halves = both(u, v)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert all(x.dtype == jnp.float32 and np.isfinite(x) for x in halves)
    assert module.clip(u[:1], v[:1], logit_scale=100.0, block_size=block_size) == 0


def test_memory_is_linear():
    def temporaries(loss, rows):
        shape = jax.ShapeDtypeStruct((rows, 128), jnp.float32)
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        return step.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    for loss in (
        partial(module.clip, logit_scale=20.0),
        partial(module.siglip, logit_scale=10.0, logit_bias=-10.0),
    ):
        assert temporaries(loss, 65536) < 2**28  # the matrix is 16 GiB


def test_errors():
    u = jnp.ones((4, 3))
    clip = partial(module.clip, logit_scale=10.0)
    for call, text in (
        (lambda: clip(u, u[:3]), r"text has shape \(3, 3\).*b = 4 as in image"),
        (lambda: clip(u, u.astype(int)), "text has dtype int32"),
        (
            lambda: module.clip(u, u, logit_scale=0.0),
            "logit_scale is 0.0; expected a number above 0",
        ),
        (lambda: module.clip(u, u, logit_scale=jnp.ones(2)), "expected a scalar"),
        (lambda: clip(u, u, axis_name="batch"), "axis_name='batch' is not mapped"),
        (lambda: clip(u, u, gather_with_grad=False), "expected local_loss too"),
        (lambda: clip(u, u, plan="star"), "plan is 'star'"),
        (
            lambda: module.siglip(u, u[:, :2], logit_scale=10.0, logit_bias=0.0),
            r"text has shape \(4, 2\)",
        ),
        (lambda: module.siglip(u, u, logit_scale=-1.0, logit_bias=0.0), "logit_scale is -1.0"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
