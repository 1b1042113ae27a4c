"""What is each method's own: Deep InfoMax's two players, CPC's directions and what a context may
see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders import conv
from cl_jax.heads.context import RowContext
from cl_jax.methods import cpc, dim
from cl_jax.views import make as recipe
from tests.small import Pixels, started

RUN = Run(None, 4, 32, 8, 8, {"label": 8})
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(4, dtype=np.int32)}
WHOLE = recipe({"crop": "none", "flip": 0.0, "size": 32, "test_crop": 1.0})
ENCODER = conv.make(variant="basic32x32", width=0.0625)


def infomax(**settings):
    return dim.make(
        encoder=ENCODER,
        tx=optax.sgd(0.1),
        views=(WHOLE,),
        run=RUN,
        summary_dim=8,
        units=8,
        discriminator_dims=(8,),
        **settings,
    )


def step(method):
    state = jax.jit(method.init)(jax.random.key(0), BATCH)
    return state, *jax.jit(method.update)(state, BATCH, jax.random.key(1))


def changed(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.slow
def test_each_player_gets_its_own_gradient_alone():
    """Without the prior the network moves as with a prior of next to no weight; the discriminator
    moves all the same."""
    _, with_prior, metrics = step(infomax(gamma=1e-9))
    start, without, alone = step(infomax(gamma=0.0))
    assert "discriminator" not in without.params
    assert changed(with_prior.params["network"], without.params["network"]) < 1e-6
    assert changed(start.params["network"], without.params["network"]) > 1e-4
    first = jax.jit(infomax(gamma=1e-9).init)(jax.random.key(0), BATCH)
    assert changed(first.params["discriminator"], with_prior.params["discriminator"]) > 1e-5
    np.testing.assert_allclose(metrics["local"], alone["local"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["JSD", "InfoNCE", "DV"])
def test_estimators_train(estimator):
    *_, metrics = step(infomax(estimator=estimator, alpha=0.5, gamma=0.0))
    assert np.isfinite(metrics["loss"]) and {"global", "local"} <= metrics.keys()
    np.testing.assert_allclose(
        metrics["loss"], 0.5 * metrics["global"] + metrics["local"], rtol=1e-5
    )


def test_infomax_errors():
    for settings, text in (
        (dict(estimator="MI"), "expected one of"),
        (dict(beta=0.0), "a global or a local term"),
        (dict(local="conv9"), "is not a map of this encoder"),
    ):
        with pytest.raises(ValueError, match=text):
            jax.eval_shape(infomax(**settings).init, jax.random.key(0), BATCH)


def test_a_context_sees_the_rows_down_to_its_own():
    context = RowContext(blocks=2, width=8)
    z = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 4, 6)), jnp.float32)
    params = jax.jit(context.init)(jax.random.key(0), z)
    # [row, 1, 4, 4, 6]
    seen = jax.jit(jax.jacobian(lambda z: context.apply(params, z).sum((0, 2, 3))))(z)
    reach = np.abs(seen).sum((1, 3, 4)) > 0
    assert not np.triu(reach, 1).any() and reach.diagonal().all() and reach[2, 0]


@pytest.mark.parametrize("direction", cpc.DIRECTIONS)
def test_facing_turns_the_direction_downwards(direction):
    grid = jnp.arange(9).reshape(1, 3, 3, 1)
    turned = cpc.facing(grid, direction)[0, :, 0, 0]
    assert (
        turned.tolist()
        == {"down": [0, 3, 6], "up": [6, 3, 0], "right": [0, 1, 2], "left": [2, 1, 0]}[direction]
    )


CPC = dict(
    encoder=Pixels(width=8),
    tx=optax.sgd(0.1),
    views=(WHOLE,),
    run=RUN,
    patch_size=16,
    stride=8,
    context_blocks=1,
    context_width=8,
    target_dim=8,
)


def test_cpc_step_and_errors():
    method = cpc.make(offsets=(1, 2), directions=("down", "left"), **CPC)
    state, metrics = jax.jit(method.update)(started(method, BATCH), BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["chance"], np.log(4 * 9), rtol=1e-6)
    assert (
        abs(metrics["loss"] - metrics["chance"]) < 0.5
        and {"accuracy_1", "accuracy_2"} <= metrics.keys()
    )
    found = jax.jit(method.encode)(state, BATCH)
    assert found["h"].shape == (4, 8)
    np.testing.assert_allclose(found["grid"].reshape(4, 9, 8).mean(1), found["h"], atol=1e-6)
    for wrong, text in (
        (dict(offsets=(3,)), "expected rows from 1 to 2"),
        (dict(offsets=(1,), directions=("down", "down")), "each once"),
        (dict(offsets=(1,), directions=("north",)), "expected some of down"),
        (dict(offsets=(1,), warp=dict(angle=3.0)), "warp has no angle"),
    ):
        with pytest.raises(ValueError, match=text):
            cpc.make(**{**CPC, **wrong})


def test_cpc_sees_warped_patches_where_warp_is_set():
    def seen(**settings):
        made = cpc.make(offsets=(1,), **CPC, **settings)
        return jax.jit(made.views)(BATCH, jax.random.key(1))[0]

    plain = seen()
    np.testing.assert_array_equal(seen(warp=dict(probability=0.0)), plain)
    assert np.abs(seen(warp=dict(probability=1.0)) - plain).max((1, 2, 3, 4, 5)).min() > 1e-3


@pytest.mark.slow
def test_across_equal_draws_is_cpc_and_the_other_rendering_is_what_is_predicted():
    plain = cpc.make(offsets=(1,), **CPC)
    across = cpc.make(offsets=(1,), across=True, **CPC)
    state = jax.jit(plain.init)(jax.random.key(0), BATCH)
    update = jax.jit(across.update)
    expected = jax.jit(plain.update)(state, BATCH, jax.random.key(1))[1]["loss"]
    np.testing.assert_allclose(update(state, BATCH, jax.random.key(1))[1]["loss"], expected, 1e-5)
    second = {**BATCH, "image_b": IMAGES[::-1].copy()}
    found = [float(update(state, second, jax.random.key(seed))[1]["loss"]) for seed in range(1, 4)]
    assert max(abs(loss - expected) for loss in found) > 1e-4
