"""k-means against loops and scikit-learn, and PCL's concentration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans as Reference

from cl_jax.cluster import _lloyd as lloyd
from cl_jax.cluster import kmeans as km
from cl_jax.core import parallel, sharded
from cl_jax.core.parallel import AXIS, EACH, SAME
from tests.losses.compiled import program
from tests.losses.parity import SLOW


def blobs(seed=0, n=240, k=6, d=5, spread=0.1):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d)) * 2
    return (centres[np.arange(n) % k] + spread * rng.normal(size=(n, d))).astype(np.float32)


def check_consistent(found, x):
    """Assignment, distance, counts and objective are those of the centroids."""
    square = (
        (x[:, None].astype(np.float64) - np.asarray(found.centroids, np.float64)[None]) ** 2
    ).sum(-1)
    np.testing.assert_array_equal(found.assignment, square.argmin(1))
    np.testing.assert_allclose(found.distance, square.min(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(
        found.counts, np.bincount(found.assignment, minlength=len(found.centroids))
    )
    np.testing.assert_allclose(found.objective, square.min(1).sum(), rtol=1e-4)


# None is one block of so few rows, as 240.
@pytest.mark.parametrize(
    "block_size", [7, *(pytest.param(size, marks=pytest.mark.slow) for size in (None, 240))]
)
def test_finds_blobs(block_size):
    x = blobs()
    found = km.kmeans(jax.random.key(0), x, 6, restarts=3, start="spread", block_size=block_size)
    check_consistent(found, x)
    assert found.objective <= 1.001 * Reference(6, n_init=5, random_state=0).fit(x).inertia_
    assert all(
        len(set((np.arange(240) % 6)[np.asarray(found.assignment) == c].tolist())) == 1
        for c in range(6)
    )


def test_one_update_is_the_mean():
    x, start = blobs(spread=2.0), blobs(1)[:4]
    found = km.kmeans(jax.random.key(0), x, 4, iterations=1, initial=start, block_size=16)
    nearest = ((x[:, None] - start[None]) ** 2).sum(-1).argmin(1)
    assert np.bincount(nearest, minlength=4).min() > 0
    np.testing.assert_allclose(
        found.centroids, [x[nearest == c].mean(0) for c in range(4)], atol=1e-5
    )


def test_restarts_keep_the_best():
    x = blobs(spread=0.3)
    one = [km.kmeans(jax.random.key(i), x, 6).objective for i in range(4)]
    many = km.kmeans(jax.random.key(0), x, 6, restarts=8)  # the program of the subsample's test
    assert many.objective <= min(one) + 1e-3 and len({float(o) for o in one}) > 1
    again = km.kmeans(jax.random.key(0), x, 6, restarts=8)
    for a, b in zip(many, again):
        np.testing.assert_array_equal(a, b)


def test_empty_cluster_halves_the_largest():
    x = np.concatenate(
        [np.random.default_rng(0).normal(size=(50, 2)) + 5, np.full((3, 2), -5)]
    ).astype(np.float32)
    start = np.array([[5, 5], [-5, -5], [100, 100], [90, 100]], np.float32)
    found = km.kmeans(jax.random.key(0), x, 4, iterations=5, initial=start)
    assert np.asarray(found.counts).min() > 0
    check_consistent(found, x)


def test_one_row_per_cluster():
    x = blobs(n=9, k=9)
    for start in ("rows", "spread"):  # the programs of the next test
        found = km.kmeans(jax.random.key(0), x, 9, start=start)
        np.testing.assert_allclose(found.objective, 0, atol=1e-6)
        assert sorted(np.asarray(found.assignment).tolist()) == list(range(9))


@pytest.mark.slow
def test_one_cluster():
    x = blobs(n=9, k=9)
    np.testing.assert_allclose(
        km.kmeans(jax.random.key(0), x, 1).centroids[0], x.mean(0), atol=1e-5
    )


def test_equal_rows_end():
    for start in ("rows", "spread"):
        found = km.kmeans(jax.random.key(0), np.ones((9, 5), np.float32), 9, start=start)
        assert np.isfinite(found.centroids).all() and found.counts.sum() == 9


def test_spherical():
    x = blobs(spread=0.3)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found = km.kmeans(jax.random.key(0), x, 6, spherical=True, restarts=4)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.assignment, (x @ np.asarray(found.centroids).T).argmax(1))


def test_subsample_assigns_every_row():
    x = blobs()
    found = km.kmeans(jax.random.key(0), x, 6, max_points_per_centroid=10, restarts=8)
    check_consistent(found, x)
    whole = km.kmeans(jax.random.key(0), x, 6, restarts=8)
    assert not np.array_equal(found.centroids, whole.centroids)
    assert found.objective < 1.5 * whole.objective
    # At the limit there is nothing to leave out: the same program.
    all_rows, same = (
        km.kmeans.lower(jax.random.key(0), x, 6, max_points_per_centroid=limit, restarts=8)
        for limit in (None, 40)
    )
    assert same.as_text() == all_rows.as_text()


def test_distances_are_never_all_held():
    shapes = jax.ShapeDtypeStruct((20000, 8), jnp.float32)
    compiled = km.kmeans.lower(jax.random.key(0), shapes, 500, block_size=256).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20000 * 500 * 4 / 4


def test_concentration():
    distance = np.array([1.0, 4.0, 9.0, 0.25, 0.25, 16.0, 1.0, 1.0], np.float32)
    cluster = np.array([0, 0, 0, 1, 1, 2, 4, 4])  # 2 is alone, 3 is empty
    phi = np.array([6 / 3 / np.log(13), 0.5 / np.log(12), 0, 0, 1 / np.log(12)])
    phi[[2, 3]] = phi.max()
    phi = np.clip(phi, np.percentile(phi, 10), np.percentile(phi, 90))
    actual = program(km.concentration)(distance, cluster, 5, temperature=0.2)
    np.testing.assert_allclose(actual, 0.2 * phi / phi.mean(), rtol=1e-5)
    np.testing.assert_allclose(actual.mean(), 0.2, rtol=1e-6)


def test_concentration_without_spread():
    for distance, cluster in (
        (np.zeros(4, np.float32), [0, 0, 1, 1]),
        (np.ones(3, np.float32), [0, 1, 2]),
    ):
        phi = program(km.concentration)(distance, np.array(cluster), 4, temperature=0.3)
        np.testing.assert_allclose(phi, 0.3, rtol=1e-6)


def test_errors():
    x = blobs()
    with pytest.raises(ValueError, match="x has 240 rows for num_clusters=300"):
        km.kmeans(jax.random.key(0), x, 300)
    with pytest.raises(ValueError, match="restarts is 2 with initial centroids"):
        km.kmeans(jax.random.key(0), x, 3, initial=x[:3], restarts=2)
    with pytest.raises(ValueError, match='expected "rows" or "spread"'):
        km.kmeans(jax.random.key(0), x, 3, start="++")
    with pytest.raises(ValueError, match="initial has shape"):
        km.kmeans(jax.random.key(0), x, 3, initial=x[:4])
    with pytest.raises(ValueError, match="num_clusters is 0; expected an integer of at least 1"):
        km.kmeans(jax.random.key(0), x, 0)


@pytest.mark.parametrize("start", ["rows", pytest.param("spread", marks=pytest.mark.slow)])
@pytest.mark.parametrize("limit", [pytest.param(None, marks=pytest.mark.slow), 10])
def test_devices_find_the_clusters_of_one(start, limit):
    x = blobs(spread=0.3)[:237]  # no number of devices divides them
    settings = dict(iterations=4, restarts=2, start=start, max_points_per_centroid=limit)
    one = km.kmeans(jax.random.key(0), x, 6, **settings)
    for devices in (2, 8) if SLOW and limit is None else (8,):
        mesh = parallel.make_mesh(devices)

        def cluster(key, rows):
            return km.kmeans(key, rows, 6, **settings, axis_name=AXIS)

        lifted = parallel.lift(cluster, mesh, (SAME, SAME), km.KMeans(SAME, EACH, EACH, SAME, SAME))
        rows = parallel.replicate(sharded.whole(x), mesh)
        found = parallel.fetch(lifted(jax.random.key(0), rows))
        np.testing.assert_allclose(found.centroids, one.centroids, atol=1e-5)
        np.testing.assert_array_equal(found.assignment.rows, one.assignment)
        np.testing.assert_allclose(found.distance.rows, one.distance, atol=1e-4)
        np.testing.assert_array_equal(found.counts, one.counts)
        np.testing.assert_allclose(found.objective, one.objective, rtol=1e-5)


def test_sums_in_sorted_order_are_those_of_a_scatter():
    """What other backends than the CPU run."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    where = rng.integers(0, 9, 64).astype(np.int32)  # 8 is padding
    before = rng.normal(size=(8, 3)).astype(np.float32)
    expected = before.astype(np.float64)
    np.add.at(expected, where[where < 8], x[where < 8])
    found = jax.jit(lloyd._add_sorted)(before, x, where)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_more_centroids_than_meet_at_a_time(monkeypatch):
    monkeypatch.setattr(lloyd, "CPU_CENTROIDS", 4)
    x = blobs(k=11)
    numbers, distance = program(km.assign)(x, x[:11], block_size=50)
    square = ((x[:, None].astype(np.float64) - x[None, :11]) ** 2).sum(-1)
    np.testing.assert_array_equal(numbers, square.argmin(1))
    np.testing.assert_allclose(distance, square.min(1), rtol=1e-4, atol=1e-6)
