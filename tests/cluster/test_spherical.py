"""Spherical k-means against loops over rows, in blocks, and on several devices against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.cluster.spherical import labels_by_example, spherical_kmeans


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rows(count=24, width=4, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, width)))


def oracle(memory, initial, iterations):
    centroids = memory[initial].copy()

    def nearest():
        return np.array([np.argmax([row @ c for c in centroids]) for row in memory])

    for _ in range(iterations):
        labels = nearest()
        for k in range(len(centroids)):
            members = memory[labels == k]
            centroids[k] = members.mean(0) if len(members) else centroids[k]
        centroids = unit(centroids)
    return centroids, nearest()


@pytest.mark.parametrize("iterations", [0, 1, 7])
@pytest.mark.parametrize("block_size", [5, 24, 1000])
def test_equals_loops(iterations, block_size):
    memory, initial = rows(), np.array([3, 11, 0, 20])
    cluster = jax.jit(partial(spherical_kmeans, iterations=iterations, block_size=block_size))
    centroids, labels = cluster(memory, initial)
    expected, expected_labels = oracle(memory, initial, iterations)
    np.testing.assert_allclose(centroids, expected, atol=1e-5)
    np.testing.assert_array_equal(labels, expected_labels)
    assert labels.dtype == jnp.int32


def test_an_empty_cluster_keeps_its_centroid_and_ties_go_to_the_lowest():
    memory = rows(8)
    memory[5] = memory[2]
    centroids, labels = spherical_kmeans(memory, np.array([2, 5]), iterations=3)
    np.testing.assert_array_equal(
        labels == 0, memory @ np.asarray(centroids[0]) >= memory @ memory[5] - 1e-6
    )
    first = spherical_kmeans(memory, np.array([2, 5]), iterations=0)[1]
    np.testing.assert_array_equal(first, 0)
    np.testing.assert_allclose(
        spherical_kmeans(memory, np.array([2, 5]), iterations=1)[0][1], memory[5], atol=1e-6
    )


def test_every_row_its_own_cluster_and_one_cluster():
    memory = rows(6)
    centroids, labels = spherical_kmeans(memory, np.arange(6), iterations=4)
    np.testing.assert_allclose(centroids, memory, atol=1e-6)
    np.testing.assert_array_equal(labels, np.arange(6))
    centroids, labels = spherical_kmeans(memory, np.array([4]), iterations=2)
    np.testing.assert_allclose(centroids[0], unit(memory.sum(0)), atol=1e-6)
    np.testing.assert_array_equal(labels, 0)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_agree_with_one(devices):
    memory, initial = rows(), np.array([2, 0, 1])
    one = spherical_kmeans(memory, initial, iterations=5)
    ids = np.random.default_rng(1).permutation(30)[:24]
    mesh = jax.make_mesh(
        (devices,),
        ("i",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    rank, all_ranks = jax.sharding.PartitionSpec("i"), jax.sharding.PartitionSpec()

    def cluster(memory, ids):
        centroids, labels = spherical_kmeans(
            memory, initial, iterations=5, block_size=2, axis_name="i"
        )
        return centroids, labels, labels_by_example(labels, ids, 30, axis_name="i")[None]

    many = jax.jit(
        jax.shard_map(cluster, mesh=mesh, in_specs=(rank, rank), out_specs=(all_ranks, rank, rank))
    )
    centroids, labels, by_example = many(memory, ids)
    np.testing.assert_allclose(centroids, one[0], atol=1e-6)
    np.testing.assert_array_equal(labels, one[1])
    expected = labels_by_example(one[1], ids, 30)
    for held in by_example:
        np.testing.assert_array_equal(held, expected)
    assert (np.asarray(expected) == -100).sum() == 6
    np.testing.assert_array_equal(expected[ids], one[1])


def test_errors():
    with pytest.raises(ValueError, match="initial has dtype float"):
        spherical_kmeans(rows(), np.zeros(3), iterations=1)
    with pytest.raises(ValueError, match=r"memory has shape \(24,\)"):
        spherical_kmeans(rows()[:, 0], np.zeros(3, int), iterations=1)
    with pytest.raises(ValueError, match="iterations is -1"):
        spherical_kmeans(rows(), np.zeros(3, int), iterations=-1)
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        spherical_kmeans(rows(), np.zeros(3, int), iterations=1, axis_name="i")
    with pytest.raises(ValueError, match=r"example_ids has shape \(3,\).*m = 4"):
        labels_by_example(np.zeros(4, int), np.zeros(3, int), 9)
