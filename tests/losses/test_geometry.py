"""Alignment, uniformity, tolerance, effective rank, hardness: loops, closed forms, devices,
edges."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import geometry
from tests.losses.compiled import as_given, compiled
from tests.losses.parity import assert_parity, unit

pytestmark = pytest.mark.usefixtures("x64")

geometry = compiled(as_given(geometry))


def data(seed=0, *shape):
    return unit(np.random.default_rng(seed).normal(size=shape or (8, 5)))


def uniformity_oracle(x, queue=(), t=2.0, intra_batch=True):
    values = (
        [np.exp(-t * np.sum((a - b) ** 2)) for a, b in itertools.combinations(x, 2)]
        if intra_batch
        else []
    )
    return np.log(np.mean(values + [np.exp(-t * np.sum((a - b) ** 2)) for a in x for b in queue]))


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.5])
def test_alignment_of_a_loop(alpha):
    x, y = data(0), data(1)
    expected = np.mean([np.linalg.norm(a - b) ** alpha for a, b in zip(x, y)])
    np.testing.assert_allclose(geometry.alignment(x, y, alpha=alpha), expected, rtol=1e-12)


@pytest.mark.parametrize("block_size", [None, 3])
def test_uniformity_of_a_loop(block_size):
    x, queue = data(0), data(1, 6, 5)
    f = jax.jit(
        partial(geometry.uniformity, t=3.0, block_size=block_size), static_argnames="intra_batch"
    )
    np.testing.assert_allclose(f(x), uniformity_oracle(x, t=3.0), rtol=1e-12)
    np.testing.assert_allclose(f(x, queue), uniformity_oracle(x, queue, 3.0), rtol=1e-12)
    np.testing.assert_allclose(
        f(x, queue, intra_batch=False), uniformity_oracle(x, queue, 3.0, False), rtol=1e-12
    )


def test_closed_forms():
    x = data()
    assert geometry.alignment(x, x) == 0
    np.testing.assert_allclose(geometry.alignment(x, -x), 4)
    np.testing.assert_allclose(geometry.uniformity(np.repeat(x[:1], 4, 0)), 0, atol=1e-12)
    np.testing.assert_allclose(geometry.uniformity(np.stack([x[0], -x[0]])), -8)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    np.testing.assert_allclose(
        geometry.uniformity(x @ rotation), geometry.uniformity(x), rtol=1e-12
    )
    for loss in (
        geometry.uniformity,
        lambda x: geometry.align_uniform(x, x[::-1], uniform_weight=0.5),
    ):
        np.testing.assert_allclose(loss(x), loss(x[::-1]), rtol=1e-12)


def test_align_uniform_is_the_weighted_sum():
    x, y = data(0), data(1)
    expected = (
        3 * np.mean(np.sum((x - y) ** 2, 1)) + 2 * (uniformity_oracle(x) + uniformity_oracle(y)) / 2
    )
    actual = geometry.align_uniform(x, y, align_weight=3, uniform_weight=2)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_align_uniform_moco_has_constant_keys():
    q, k, queue = data(0), data(1), data(2, 6, 5)
    loss = partial(geometry.align_uniform_moco, contrast_weight=0.5, temperature=0.2)
    logits = np.concatenate([np.sum(q * k, 1)[:, None], q @ queue.T], 1) / 0.2
    expected = 3 * np.mean(np.sum((q - k) ** 2, 1)) + uniformity_oracle(q, queue, 3.0)
    expected += 0.5 * np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, queue)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert np.abs(grads[0]).max() > 0.01 and not np.any(grads[1]) and not np.any(grads[2])


@pytest.mark.parametrize("labels", [[3, 0, 3, 7, 0, 3, -2, 7], [1] * 8, list(range(8))])
def test_tolerance_of_a_loop(labels):
    x, labels = data(), np.array(labels)
    pairs = [(x[i] @ x[j], labels[i] == labels[j]) for i in range(8) for j in range(8) if i != j]
    same = [s for s, alike in pairs if alike]
    found = jax.jit(geometry.tolerance)(x, labels)
    np.testing.assert_allclose(found.all_pairs, sum(same) / len(pairs), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(
        found.same_class, np.mean(same) if same else 0, rtol=1e-10, atol=1e-14
    )
    assert (found.num_pairs, found.num_same_class_pairs) == (56, len(same))


def test_effective_rank():
    assert abs(geometry.effective_rank(3 * np.eye(4)) - 4) < 1e-12
    np.testing.assert_allclose(
        geometry.effective_rank(np.outer(np.arange(1.0, 7), [1, 2, 3])), 1, rtol=1e-6
    )
    sigma = np.linalg.svd(data() - data().mean(0), compute_uv=False)
    p = sigma / sigma.sum()
    np.testing.assert_allclose(
        geometry.effective_rank(data(), centre=True), np.exp(-np.sum(p * np.log(p))), rtol=1e-10
    )
    assert geometry.effective_rank(jnp.zeros((4, 3))) == 1
    for bad in (jnp.nan, jnp.inf):
        assert jnp.isnan(geometry.effective_rank(jnp.eye(4).at[0, 0].set(bad)))


def test_hardness_is_the_gradient_of_the_contrastive_loss():
    similarity, positive, t = (
        np.random.default_rng(0).normal(size=(4, 6)),
        np.array([2, 0, 5, 1]),
        0.3,
    )
    grad = jax.grad(lambda s: -jnp.sum(jax.nn.log_softmax(s / t)[jnp.arange(4), positive]))(
        similarity
    )
    found = geometry.negative_hardness(similarity, positive, temperature=t)
    own = np.arange(6)[None] == positive[:, None]
    np.testing.assert_allclose(
        np.where(own, 0, found.probability / t), np.where(own, 0, grad), rtol=1e-10
    )
    np.testing.assert_allclose(
        found.penalty, np.where(own, 0, grad / -grad[own][:, None]), rtol=1e-10
    )
    np.testing.assert_allclose(found.penalty.sum(1), 1)
    none = geometry.negative_hardness(
        similarity, positive, temperature=t, selected=np.zeros((4, 6))
    )
    assert not np.any(none.penalty) and np.array_equal(none.probability, own)


@pytest.mark.slow
def test_devices():
    x, y, queue, labels = data(0, 8, 3), data(1, 8, 3), data(2, 4, 3), np.arange(8) % 3

    def loss(x, y, queue, labels, axis_name):
        return (
            geometry.align_uniform(x, y, alpha=3.0, axis_name=axis_name)
            + 3
            * geometry.align_uniform_moco(
                x, y, queue, contrast_weight=0.5, temperature=0.2, axis_name=axis_name, plan="ring"
            )
            + 5 * geometry.tolerance(x, labels, axis_name=axis_name).same_class
        )

    assert_parity(loss, (x, y, queue, labels), (True, True, False, True))
    assert_parity(partial(geometry.effective_rank, centre=True), (x,), (True,), f32=2e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_degenerate_features_are_finite(dtype):
    x = jnp.asarray(data(), dtype).at[1].set(0).at[2].set(0).at[3].set(data()[0])
    for loss in (
        partial(geometry.alignment, alpha=1.0),
        lambda x, y: geometry.uniformity(x) + geometry.uniformity(y),
        lambda x, y: geometry.effective_rank(x[:, :2] * 0 + 1) + geometry.effective_rank(0 * y),
    ):
        value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, x)
        assert np.isfinite(value) and value.dtype == jnp.float32
        assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)
    assert not np.any(jax.grad(partial(geometry.alignment, alpha=1.0))(x, x))
    assert geometry.uniformity(x[:1]) == 0


def test_memory_of_the_gradient_is_far_below_the_matrix():
    """At 16,384 rows one matrix of similarities is 1 GiB."""
    with jax.enable_x64(False):
        gradient = jax.jit(jax.grad(geometry.uniformity))
        compiled = gradient.lower(jax.ShapeDtypeStruct((16384, 32), jnp.float32)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 2**26


def test_errors():
    x = data()
    with pytest.raises(ValueError, match=r"y has shape \(7, 5\).*b = 8 as in x, got 7"):
        geometry.alignment(x, x[:7])
    with pytest.raises(ValueError, match="alpha is 0"):
        geometry.alignment(x, x, alpha=0)
    with pytest.raises(ValueError, match="no pairs without a queue"):
        geometry.uniformity(x, intra_batch=False)
    with pytest.raises(ValueError, match="block_size is -1"):
        geometry.uniformity(x, block_size=-1)
    with pytest.raises(ValueError, match="labels has dtype float64"):
        geometry.tolerance(x, x[:, 0])
    with pytest.raises(ValueError, match="axis_name='i' is not mapped here"):
        geometry.alignment(x, x, axis_name="i")
    with pytest.raises(ValueError, match="x has dtype int64"):
        geometry.uniformity(np.arange(6).reshape(2, 3))
    with pytest.raises(ValueError, match="temperature is None with contrast_weight 1"):
        geometry.align_uniform_moco(x, x, x, contrast_weight=1)
