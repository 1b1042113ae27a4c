"""k-reciprocal Jaccard distance against loops over sets, and the self-paced criterion by hand."""

import numpy as np
import pytest

from cl_jax.cluster import dbscan


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def features(n=40, d=4, seed=0, spread=0.4):
    rng = np.random.default_rng(seed)
    return unit(
        rng.normal(size=(5, d))[np.arange(n) % 5] + spread * rng.normal(size=(n, d))
    ).astype(np.float32)


def jaccard_oracle(x, k1, k2):
    x = x.astype(np.float64)
    n = len(x)
    rank = np.argsort(((x[:, None] - x[None]) ** 2).sum(-1), axis=1, kind="stable")[:, :k1]

    def reciprocal(i, k):
        return {j for j in rank[i, : k + 1] if i in rank[j, : k + 1]}

    v = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k1)
        grown = set(own)
        for j in own:
            half = reciprocal(j, int(np.around(k1 / 2)))
            if len(half & own) > 2 / 3 * len(half):
                grown |= half
        grown = sorted(grown)
        weight = np.exp(-(2 - 2 * x[grown] @ x[i]))
        v[i, grown] = weight / weight.sum()
    if k2 > 1:
        v = np.stack([v[rank[i, :k2]].mean(0) for i in range(n)])
    overlap = np.minimum(v[:, None], v[None]).sum(-1)
    return np.maximum(1 - overlap / (2 - overlap), 0)


@pytest.mark.parametrize(("k1", "k2"), [(9, 3), (10, 1), (1, 2), (30, 6)])
def test_jaccard(k1, k2):
    x = features()
    distance = dbscan.jaccard_distance(x, k1=k1, k2=k2)
    np.testing.assert_allclose(distance, jaccard_oracle(x, k1, k2), atol=2e-6)
    np.testing.assert_allclose(np.diag(distance), 0, atol=1e-6)
    assert distance.dtype == np.float32


def test_more_neighbours_than_rows():
    x = features(12)
    np.testing.assert_allclose(
        dbscan.jaccard_distance(x, k1=30, k2=6), jaccard_oracle(x, 30, 6), atol=2e-6
    )
    assert dbscan.jaccard_distance(x[:1]).shape == (1, 1)


def test_clusters_of_blobs():
    distance = dbscan.jaccard_distance(features(spread=0.05), k1=8, k2=3)
    labels = dbscan.dbscan(distance, eps=0.6)
    for c in range(labels.max() + 1):
        assert len(set((np.arange(40) % 5)[labels == c].tolist())) == 1
    assert labels.max() == 4


def test_outliers_are_numbered_in_order():
    np.testing.assert_array_equal(
        dbscan.number_outliers(np.array([1, -1, 0, -1, 1])), [1, 2, 0, 3, 1]
    )
    np.testing.assert_array_equal(dbscan.number_outliers(np.array([-1, -1])), [0, 1])
    np.testing.assert_array_equal(dbscan.number_outliers(np.array([], int)), [])


def test_self_paced():
    labels = np.array([0, 0, 0, 1, 1, 2])
    tight = np.array([0, 0, 1, 2, 2, 3])
    loose = np.array([0, 0, 0, 0, 0, 1])
    found = dbscan.self_paced(labels, tight, loose)
    np.testing.assert_allclose(found.compactness, [1 / 3, 1 / 3, 2 / 3, 0, 0, 0])
    np.testing.assert_allclose(found.independence, [0.4, 0.4, 0.4, 0.6, 0.6, 0])
    np.testing.assert_allclose(found.cluster_compactness, [1 / 3, 0, 0])
    np.testing.assert_allclose(found.cluster_independence, [0.4, 0.6, 0])
    assert found.threshold == pytest.approx(0.6)
    np.testing.assert_array_equal(found.labels, [0, 0, 3, 1, 1, 2])
    later = dbscan.self_paced(labels, tight, loose, threshold=0.5)
    np.testing.assert_array_equal(later.labels, [0, 0, 3, 4, 5, 2])
    alone = dbscan.self_paced(np.arange(3), np.arange(3), np.arange(3))
    assert alone.threshold == 1
    np.testing.assert_array_equal(alone.labels, [0, 1, 2])


def test_errors():
    with pytest.raises(ValueError, match="outliers to be numbered first"):
        dbscan.self_paced(np.array([-1, 0]), np.array([0, 0]), np.array([0, 0]))
    with pytest.raises(ValueError, match="k1 is 0"):
        dbscan.jaccard_distance(features(), k1=0)
    with pytest.raises(ValueError, match=r"expected \[N, N\]"):
        dbscan.dbscan(np.zeros((2, 3)), eps=0.5)
