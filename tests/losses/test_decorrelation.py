"""VICReg, Barlow Twins and W-MSE against loops, both ways of summing off the diagonal, edges, and
devices against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import _blocks, decorrelation
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity

module = compiled(decorrelation)


def pair(rows=8, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(2, rows, width))


def oracle_vicreg(a, b, invariance=25.0, variance=25.0, covariance=1.0, eps=1e-4):
    rows, width = a.shape
    total = (
        invariance
        * sum((a[i, j] - b[i, j]) ** 2 for i in range(rows) for j in range(width))
        / (rows * width)
    )
    for z in (a, b):
        centred = z - z.mean(axis=0)
        for j in range(width):
            spread = (centred[:, j] ** 2).sum() / (rows - 1)
            total += variance * max(0, 1 - np.sqrt(spread + eps)) / width / 2
            for k in range(width):
                if j != k:
                    product = (centred[:, j] * centred[:, k]).sum() / (rows - 1)
                    total += covariance * product**2 / width
    return total


def oracle_barlow(a, b, weight=0.0051, scale=1.0, eps=1e-5):
    a, b = ((z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + eps) for z in (a, b))
    total = 0.0
    for j in range(a.shape[1]):
        for k in range(a.shape[1]):
            c = (a[:, j] * b[:, k]).mean()
            total += (c - 1) ** 2 if j == k else weight * c**2
    return scale * total


def oracle_w_mse(h, permutations, size, eps=0.0):
    views, rows, width = h.shape
    total, count = 0.0, 0
    for permutation in permutations:
        z = np.zeros_like(h)
        for v in range(views):
            for start in range(0, rows, size):
                group = permutation[start : start + size]
                x = h[v, group] - h[v, group].mean(axis=0)
                covariance = (1 - eps) * x.T @ x / (size - 1) + eps * np.eye(width)
                z[v, group] = (np.linalg.inv(np.linalg.cholesky(covariance)) @ x.T).T
        for u in range(views):
            for v in range(u + 1, views):
                cosines = [
                    z[u, i] @ z[v, i] / np.linalg.norm(z[u, i]) / np.linalg.norm(z[v, i])
                    for i in range(rows)
                ]
                total, count = total + 2 - 2 * np.mean(cosines), count + 1
    return total / count


@pytest.mark.parametrize("width", [5, 40])  # above twice the batch, from the rows' inner products
def test_equals_loops(width):
    a, b = pair(width=width)
    with jax.enable_x64(True):
        np.testing.assert_allclose(module.vicreg(a, b), oracle_vicreg(a, b), rtol=1e-12)
        np.testing.assert_allclose(
            module.vicreg(a, b, invariance_weight=0.0, variance_weight=2.0, covariance_weight=3.0),
            oracle_vicreg(a, b, 0.0, 2.0, 3.0),
            rtol=1e-12,
        )
        np.testing.assert_allclose(module.barlow_twins(a, b), oracle_barlow(a, b), rtol=1e-12)
        np.testing.assert_allclose(
            module.barlow_twins(a, b, off_diagonal_weight=0.1, scale=0.5, eps=0.1),
            oracle_barlow(a, b, 0.1, 0.5, 0.1),
            rtol=1e-12,
        )


@pytest.mark.parametrize("views, iterations", [(2, 1), (3, 2)])
def test_w_mse_equals_loops(views, iterations):
    rng = np.random.default_rng(views)
    h = rng.normal(size=(views, 16, 3))
    permutations = np.stack([rng.permutation(16) for _ in range(iterations)])
    with jax.enable_x64(True):
        for eps in (0.0, 0.2):
            np.testing.assert_allclose(
                module.w_mse(h, permutations, group_size=8, eps=eps),
                oracle_w_mse(h, permutations, 8, eps),
                rtol=1e-11,
            )


def test_whitened_groups_have_mean_zero_and_unit_covariance_in_the_order_of_the_batch():
    h = pair(rows=32, width=4, seed=3) * 5 + 2
    permutations = np.asarray(decorrelation.draw_permutations(jax.random.key(0), 32, 2))
    assert (np.sort(permutations, axis=1) == np.arange(32)).all()
    assert (permutations[0] != permutations[1]).any()
    z = np.asarray(module.whiten(h.astype(np.float32), permutations, group_size=16))
    assert z.shape == (2, 2, 32, 4)
    for t in range(2):
        for group in permutations[t].reshape(2, 16):
            for v in range(2):
                np.testing.assert_allclose(z[t, v, group].mean(axis=0), 0, atol=1e-5)
                np.testing.assert_allclose(np.cov(z[t, v, group].T), np.eye(4), atol=1e-4)


def test_w_mse_does_not_see_an_affine_map_of_a_view():
    """A triangular one: others turn the whitened space, since the factor is Cholesky's."""
    h = pair(rows=16, width=3)
    permutations = np.arange(16)[None]
    mapped = np.stack([h[0], h[1] @ np.array([[2, 0, 0], [1, 3, 0], [4, 1, 0.5]]).T + 7])
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            module.w_mse(mapped, permutations, group_size=16),
            module.w_mse(h, permutations, group_size=16),
            rtol=1e-11,
        )


def test_values_at_the_ends():
    """Collapse is where the penalties are, equal views where the pull ends."""
    a, b = pair(rows=64, width=3)
    same = np.ones_like(a)
    np.testing.assert_allclose(module.vicreg(same, same), 25 * 0.99, rtol=1e-5)
    np.testing.assert_allclose(module.barlow_twins(a, a, off_diagonal_weight=0.0), 0, atol=1e-4)
    np.testing.assert_allclose(module.barlow_twins(same, same), 3, rtol=1e-5)  # C is 0
    terms = module.vicreg_terms(3 * a, 3 * a)
    assert terms.invariance == 0 and terms.variance == 0 and (terms.std > 1).all()
    order = np.arange(64)[None]
    np.testing.assert_allclose(module.w_mse(np.stack([a, a]), order, group_size=64), 0, atol=1e-5)
    np.testing.assert_allclose(module.w_mse(np.stack([a, b]), order, group_size=64), 2, atol=0.4)


def test_cross_correlation_and_covariance_are_numpys():
    a, b = pair(rows=20)
    both = np.corrcoef(a.T, b.T)[:5, 5:]
    np.testing.assert_allclose(module.cross_correlation(a, b, eps=0.0), both, atol=1e-5)
    np.testing.assert_allclose(module.feature_covariance(a), np.cov(a.T), atol=1e-5)


def test_gradients():
    a, b = pair(rows=4, width=3)
    wide = pair(rows=4, width=12)
    h = pair(rows=8, width=2)
    with jax.enable_x64(True):
        for z in ((a, b), tuple(wide)):
            check_grads(module.vicreg, z, order=1, modes="rev")
            check_grads(module.barlow_twins, z, order=1, modes="rev")
        check_grads(
            lambda h: module.w_mse(h, np.arange(8)[None], group_size=4), (h,), order=1, modes="rev"
        )


def by_correlation(a, b):
    """Barlow Twins by its formula, for JAX to differentiate."""
    c = decorrelation.cross_correlation(a, b)
    eye = jnp.eye(a.shape[1], dtype=bool)
    return jnp.sum(jnp.where(eye, (c - 1) ** 2, 0.0051 * c**2))


@pytest.mark.parametrize("rows", [5, 1024])
def test_derivatives_of_barlow_twins_by_hand(rows, monkeypatch):
    """In two blocks of rows that overlap and in one; with means far above the deviations."""
    monkeypatch.setattr(_blocks, "BLOCK", 6 * rows)
    (a, b), moved = pair(width=3) + 100, tuple(pair(width=3, seed=1))

    def all_of(f, a, b):
        gradient = jax.grad(f, argnums=(0, 1))

        def slope(a, b):
            return sum(jnp.vdot(g, d) for g, d in zip(gradient(a, b), moved))

        forward = jax.jvp(f, (a, b), moved)
        return forward, gradient(a, b), jax.grad(slope, argnums=(0, 1))(a, b)

    with jax.enable_x64(True):
        ours = jax.jit(partial(all_of, decorrelation.barlow_twins))(a, b)
        exact = jax.jit(partial(all_of, by_correlation))(a, b)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9)


def test_rounding_of_large_means_stays_out_of_the_gradient(monkeypatch):
    """A gradient that sums to zero over the batch, as exact ones do."""
    monkeypatch.setattr(_blocks, "BLOCK", 6 * 1024)
    a, b = (pair(rows=2048, width=3) + 300).astype(np.float32)
    grad = np.asarray(jax.jit(jax.grad(decorrelation.barlow_twins))(a, b), np.float64)
    with jax.enable_x64(True):
        exact = jax.jit(jax.grad(by_correlation))(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(grad, exact, atol=2e-5 * np.abs(exact).max())


@pytest.mark.slow
def test_blocks_of_rows_over_devices(monkeypatch):
    monkeypatch.setattr(_blocks, "BLOCK", 6 * 4)
    assert_parity(decorrelation.barlow_twins, tuple(pair(rows=64, width=3)), (True, True), f32=1e-5)


def test_stopping_the_second_view_keeps_the_value():
    order = np.arange(16)[None]

    @jax.jit
    def both(h):
        loss = partial(decorrelation.w_mse, permutations=order, group_size=8)
        return jax.value_and_grad(loss)(h), jax.value_and_grad(partial(loss, stop_second=True))(h)

    (value, grad), (stopped, half) = both(pair(rows=16, width=3))
    np.testing.assert_allclose(stopped, value, rtol=1e-6)
    np.testing.assert_allclose(half[0], grad[0], rtol=1e-4, atol=1e-6)
    assert np.any(grad[1]) and not np.any(half[1])


@pytest.mark.slow
@pytest.mark.parametrize("width", [3, 20])
def test_parity_over_devices(width):
    def loss(a, b, axis_name):
        return decorrelation.vicreg(a, b, axis_name=axis_name) + decorrelation.barlow_twins(
            a, b, axis_name=axis_name
        )

    assert_parity(loss, tuple(pair(width=width)), (True, True), f32=1e-5)


def test_w_mse_parity_over_devices():
    """One permutation of the global batch, whose groups cross the devices."""
    order = np.random.default_rng(1).permutation(16)[None]

    def loss(h, axis_name):
        return decorrelation.w_mse(jnp.moveaxis(h, 1, 0), order, group_size=8, axis_name=axis_name)

    assert_parity(loss, (np.moveaxis(pair(rows=16, width=3), 0, 1),), (True,), f32=1e-5)


@pytest.mark.parametrize("width", [3, 40])
def test_the_released_gradient_is_divided_by_the_devices(width):
    a, b = pair(width=width)

    def step(a, b, released):
        loss = partial(module.barlow_twins, released_gradient=released, axis_name="d")
        return jax.value_and_grad(loss)(a, b)

    @jax.jit
    def both(*views):
        shards = [x.reshape(4, 2, width) for x in views]
        return [
            jax.vmap(partial(step, released=released), axis_name="d")(*shards)
            for released in (False, True)
        ]

    ours, theirs = both(a, b)
    np.testing.assert_array_equal(theirs[0], ours[0])
    np.testing.assert_allclose(theirs[1], ours[1] / 4, rtol=1e-5, atol=1e-9)


def test_local_moments_depend_on_the_devices():
    a, b = jnp.asarray(pair(rows=8, width=3))

    def over(local):
        split = partial(jnp.reshape, shape=(2, 4, 3))
        loss = partial(decorrelation.barlow_twins, local_moments=local, axis_name="d")
        return jax.jit(jax.vmap(loss, axis_name="d"))(split(a), split(b))[0]

    whole = module.barlow_twins(a, b)
    np.testing.assert_allclose(over(False), whole, rtol=1e-5)
    assert abs(over(True) - whole) > 1e-3
    own = [
        decorrelation.cross_correlation(x, y)
        for x, y in zip(a.reshape(2, 4, 3), b.reshape(2, 4, 3))
    ]
    mean = (own[0] + own[1]) / 2
    off = jnp.sum(jnp.where(jnp.eye(3, dtype=bool), 0, mean**2))
    np.testing.assert_allclose(
        over(True), jnp.sum((jnp.diag(mean) - 1) ** 2) + 0.0051 * off, rtol=1e-5
    )


def test_errors():
    h = pair(rows=8, width=4)
    order = np.arange(8)[None]
    with pytest.raises(ValueError, match="group_size is 3; expected a divisor of the global batch"):
        decorrelation.w_mse(h, order, group_size=3)
    with pytest.raises(ValueError, match="group_size is 4 for embeddings of 4 features; expected"):
        decorrelation.w_mse(h, order, group_size=4)
    with pytest.raises(ValueError, match=r"h has shape \(1, 8, 4\): 1 view; expected 2 or more"):
        decorrelation.w_mse(h[:1], order, group_size=8)
    with pytest.raises(ValueError, match="the batch has 1 row; expected 2 or more"):
        decorrelation.vicreg(h[0, :1], h[1, :1])
    with pytest.raises(ValueError, match=r"permutations of the global batch"):
        jax.vmap(
            partial(decorrelation.w_mse, permutations=order, group_size=8, axis_name="d"),
            axis_name="d",
        )(jnp.stack([h, h]))
