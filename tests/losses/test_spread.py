"""KoLeo, SIGReg and LeJEPA against loops, where they are smallest, collapse, blocks, and devices
against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import spread
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity, unit

module = compiled(spread)


def rows(count=8, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width))


def directions(width=5, count=7, seed=1):
    return unit(np.random.default_rng(seed).normal(size=(count, width))).T


def oracle_koleo(x):
    u = unit(x)
    distances = []
    for i in range(len(u)):
        j = max((j for j in range(len(u)) if j != i), key=lambda j: u[i] @ u[j])
        distances.append(np.linalg.norm(u[i] - u[j] + 1e-8))
    return -np.mean(np.log(np.array(distances) + 1e-8))


def oracle_statistic(y, t_max, points):
    """Of projections [B], over [-t_max, t_max]."""
    t = np.linspace(-t_max, t_max, 2 * points - 1)
    weight = np.full(len(t), t[1] - t[0])
    weight[[0, -1]] /= 2
    empirical = np.exp(1j * y[:, None] * t).mean(axis=0)
    phi = np.exp(-(t**2) / 2)
    return len(y) * (weight * phi * np.abs(empirical - phi) ** 2).sum()


def test_koleo_equals_loops():
    x = rows()
    with jax.enable_x64(True):
        np.testing.assert_allclose(module.koleo(x), oracle_koleo(x), rtol=1e-12)
        np.testing.assert_allclose(module.koleo(x, block_size=3), oracle_koleo(x), rtol=1e-12)


@pytest.mark.parametrize("t_max, points", [(3.0, 17), (5.0, 9)])
def test_sigreg_equals_loops(t_max, points):
    x, d = rows(), directions()
    knobs = {"t_max": t_max, "num_points": points}
    expected = [oracle_statistic(x @ d[:, k], t_max, points) for k in range(7)]
    with jax.enable_x64(True):
        np.testing.assert_allclose(module.sigreg_statistics(x, d, **knobs), expected, rtol=1e-12)
        blocks = module.sigreg_statistics(x, d, **knobs, block_size=3)
        np.testing.assert_allclose(blocks, expected, rtol=1e-12)
        np.testing.assert_allclose(module.sigreg(x, d, **knobs), np.mean(expected), rtol=1e-12)


def test_lejepa_equals_loops():
    z, d = np.random.default_rng(0).normal(size=(4, 6, 5)), directions()
    for seen in (2, None):
        centre = z[:seen].mean(axis=0)
        agreement = np.mean([(centre - z[v]) ** 2 for v in range(4)])
        gaussian = np.mean(
            [oracle_statistic(z[v] @ d[:, k], 3.0, 17) for v in range(4) for k in range(7)]
        )
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                module.lejepa(z, d, num_global=seen, weight=0.1),
                0.1 * gaussian + 0.9 * agreement,
                rtol=1e-12,
            )


def test_sigreg_is_smallest_for_a_standard_normal_batch():
    x = rows(512, 4)
    d = np.asarray(spread.draw_directions(jax.random.key(0), 4, 64))
    np.testing.assert_allclose(np.linalg.norm(d, axis=0), 1, rtol=1e-5)
    normal = module.sigreg(x, d)
    np.testing.assert_allclose(normal, 1.05, atol=0.5)
    for other in (0.8 * x, 1.25 * x, x + 0.5, 0 * x, np.sign(x)):
        assert module.sigreg(other, d) > 2 * normal
    np.testing.assert_allclose(module.sigreg(0 * x, d), 0.402 * 512, rtol=1e-2)


def test_sigreg_pushes_a_narrow_batch_apart():
    x = 1e-3 * rows(64, 4)
    grad = jax.grad(module.sigreg)(jnp.asarray(x), directions(4))
    assert (np.asarray(-grad) * x).sum() > 0
    assert not np.any(jax.grad(module.sigreg)(jnp.zeros((8, 5)), directions()))


def test_koleo_spreads_and_ties_are_finite():
    x = jnp.asarray(rows())
    closer = x.at[1].set(x[0] + 1e-2)
    assert module.koleo(closer) > module.koleo(x)
    alone, grad = jax.value_and_grad(module.koleo)(x[:1])
    assert np.isfinite(alone) and not np.any(grad)
    value, grad = jax.value_and_grad(module.koleo)(jnp.ones((4, 3)))
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_gradients():
    x, d = rows(4, 3), directions(3, 2)
    with jax.enable_x64(True):
        check_grads(module.koleo, (x,), order=1, modes="rev")
        check_grads(lambda x: module.sigreg(x, d), (x,), order=1, modes="rev")
        check_grads(
            lambda z: module.lejepa(z, d, num_global=1),
            (np.stack([x, x + 1]),),
            order=1,
            modes="rev",
        )


def test_the_centre_of_lejepa_carries_gradient():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 5)))
    grads = jax.jit(jax.grad(partial(spread.lejepa, num_global=1, weight=0.0)))(z, directions())
    np.testing.assert_allclose(grads.sum(axis=0), 0, atol=1e-7)
    assert np.any(grads[0])


def test_parity_over_devices():
    def loss(x, d, axis_name):
        return spread.koleo(x, axis_name=axis_name) + spread.sigreg(
            x, d, axis_name=axis_name, block_size=3
        )

    assert_parity(loss, (rows(), directions()), (True, False), f32=1e-5)


@pytest.mark.slow
def test_lejepa_parity_over_devices():
    def loss(z, d, axis_name):
        return spread.lejepa(jnp.moveaxis(z, 1, 0), d, num_global=1, axis_name=axis_name)

    z = np.random.default_rng(0).normal(size=(8, 3, 5))
    assert_parity(loss, (z, directions()), (True, False), f32=5e-6)


def test_errors():
    x, d = rows(), directions()
    with pytest.raises(ValueError, match=r"directions has shape \(4, 7\).*d = 5"):
        spread.sigreg(x, d[:4])
    with pytest.raises(ValueError, match="num_points is 1; expected 2 or more"):
        spread.sigreg(x, d, num_points=1)
    with pytest.raises(ValueError, match="num_global is 3; expected 1 to 2"):
        spread.lejepa(np.stack([x, x]), d, num_global=3)
