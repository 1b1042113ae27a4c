"""DCL and DCLW against loops and NT-Xent, tiles against the matrix, devices against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import decoupled
from cl_jax.losses.infonce import nt_xent_rows
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity, unit

module = compiled(decoupled)
T = {"temperature": 0.2}


def pair(rows=8, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(2, rows, width))


def oracle(a, b, temperature, sigma=None):
    a, b = unit(a), unit(b)
    rows = len(a)
    weights = np.ones(rows)
    if sigma is not None:
        powers = np.exp((a * b).sum(axis=1) / sigma)
        weights = 2 - powers / powers.mean()
    total = 0.0
    for x, y in ((a, b), (b, a)):
        for i in range(rows):
            below = [x[i] @ z[k] / temperature for z in (x, y) for k in range(rows) if k != i]
            total += np.logaddexp.reduce(below) - weights[i] * (x[i] @ y[i]) / temperature
    return total / (2 * rows)


def test_equals_loops():
    a, b = pair()
    with jax.enable_x64(True):
        np.testing.assert_allclose(module.dcl(a, b, **T), oracle(a, b, 0.2), rtol=1e-12)
        np.testing.assert_allclose(
            module.dclw(a, b, **T, sigma=0.3), oracle(a, b, 0.2, 0.3), rtol=1e-12
        )


def test_the_positive_is_what_nt_xent_has_more():
    a, b = (x.astype(np.float32) for x in pair())
    gap = module.dcl_rows(a, b, **T)
    np.testing.assert_allclose(
        jax.nn.softplus(gap), nt_xent_rows(a, b, **T), rtol=1e-5
    )  # log(e^p + sum) - p


def test_equal_embeddings_give_the_log_of_the_negatives():
    same = np.ones((6, 4), np.float32)
    for loss in (module.dcl, module.dclw):
        np.testing.assert_allclose(loss(same, same, **T), np.log(10), rtol=1e-6)
    assert module.dcl(*(jnp.eye(6),) * 2, **T) < 0


def test_weights_are_one_on_average_and_favour_what_disagrees():
    a, b = pair()
    weights = np.asarray(module.dclw_weights(a, b))
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
    cosines = (unit(a) * unit(b)).sum(axis=1)
    assert (np.argsort(weights) == np.argsort(-cosines)).all()


def test_finite_at_low_temperatures():
    """The positive is left out by -inf; a finite number added to the logits would come back."""
    a = pair()[0].astype(np.float32)
    value, grads = jax.value_and_grad(module.dcl)(a, a, temperature=0.005)
    assert np.isfinite(value) and np.isfinite(grads).all()
    np.testing.assert_allclose(value, oracle(a, a, 0.005), rtol=1e-5)


def test_gradients():
    a, b = pair(rows=3, width=4)
    with jax.enable_x64(True):
        check_grads(partial(module.dcl, **T), (a, b), order=1, modes="rev")
        check_grads(partial(module.dclw, **T, detach_weights=False), (a, b), order=1, modes="rev")


def test_detached_weights_change_the_gradient_alone():
    @jax.jit
    def both(a, b):
        return [
            jax.value_and_grad(partial(decoupled.dclw, **T, detach_weights=detach))(a, b)
            for detach in (False, True)
        ]

    (kept, grad), (detached, other) = both(*pair())
    np.testing.assert_allclose(kept, detached, rtol=1e-6)
    assert np.abs(grad - other).max() > 1e-2 * np.abs(grad).max()


@pytest.mark.slow
@pytest.mark.parametrize("loss", [decoupled.dcl, partial(decoupled.dclw, detach_weights=False)])
def test_tiles_give_what_the_matrix_gives(loss):
    a, b = pair(rows=11)
    with jax.enable_x64(True):
        plain, tiles = (
            jax.value_and_grad(partial(loss, **T, block_size=size), argnums=(0, 1))(a, b)
            for size in (0, 8)
        )
        for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(tiles)):
            np.testing.assert_allclose(x, y, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["gather", "ring"])
def test_parity_over_devices(plan):
    def loss(a, b, axis_name):
        knobs = {**T, "plan": plan, "axis_name": axis_name}
        return decoupled.dcl(a, b, **knobs) + 2 * decoupled.dclw(
            a, b, **knobs, detach_weights=False
        )

    assert_parity(loss, tuple(pair()), (True, True), f32=5e-6)


def test_errors():
    a, b = pair()
    with pytest.raises(ValueError, match="the batch has 1 example; expected 2 or more"):
        decoupled.dcl(a[:1], b[:1], **T)
    with pytest.raises(ValueError, match="sigma is 0; expected a number above 0"):
        decoupled.dclw(a, b, **T, sigma=0)
    with pytest.raises(ValueError, match="plan is 'star'"):
        decoupled.dcl(a, b, **T, plan="star")
