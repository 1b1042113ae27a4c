"""SpCL's pseudo-labels: k-reciprocal Jaccard distance, DBSCAN, and which clusters to trust. On the
host, in NumPy."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import sparse

from cl_jax.core.numerics import dots
from cl_jax.core.shapes import check, check_count


@partial(jax.jit, static_argnames=("num_neighbours", "block_size"))
def nearest(x: jax.Array, num_neighbours: int, *, block_size: int = 1024) -> jax.Array:
    """[N, k] rows of x nearest to each by Euclidean distance, itself included, nearest first.

    Raises:
      ValueError: num_neighbours outside 1 to N.
    """
    sizes = check("n d", x=x)
    if not 0 < num_neighbours <= sizes["n"]:
        raise ValueError(
            f"num_neighbours is {num_neighbours}; expected 1 to the {sizes['n']} rows of x."
        )
    half = 0.5 * jnp.sum(x * x, axis=1)
    return lax.map(
        lambda row: lax.top_k(dots("nd,d->n", x, row) - half, num_neighbours)[1],
        x,
        batch_size=min(block_size, sizes["n"]),
    )


def jaccard_distance(x: np.ndarray | jax.Array, *, k1: int = 30, k2: int = 6) -> np.ndarray:
    """Distance of two rows by how much of their neighbourhoods they share.

    R_i: rows among the k1 nearest of i that have i among theirs; joined by the half-list (k1/2) of
      each j in R_i of which more than 2/3 lies in R_i.
    V_i: softmax over R_i of -|x_i - x_j|^2, averaged over the k2 nearest of i.
    J_ij = 1 - s / (2 - s),  s = sum_c min(V_ic, V_jc).

    Args:
      x: [N, D] unit features.
      k1: neighbours, itself included; at most N are used. k2: of the averaging; 1 leaves it out.

    Returns:
      [N, N] float32 in [0, 1], zero on the diagonal up to rounding.

    Raises:
      ValueError: x of another rank, a k below 1.

    Reference: Zhong et al. 2017, arXiv 1701.08398, section 3; SpCL, arXiv 2006.02713. As in the
      authors' code lists have k1 entries although k1 + 1 are asked for, and k1/2 is rounded half to
      even.
    """
    x = np.asarray(x)
    n = check("n d", x=x)["n"]
    check_count(k1=k1, k2=k2)
    rank = np.asarray(nearest(x, min(k1, n)))
    full, half = _reciprocal(rank), _reciprocal(rank[:, : int(np.around(k1 / 2)) + 1])
    shared = full.multiply(full @ half.T).tocoo()
    size = np.asarray(half.sum(axis=1)).ravel()
    grown = 3 * shared.data > 2 * size[shared.col]
    grown = sparse.csr_matrix(
        (np.ones(grown.sum(), np.int32), (shared.row[grown], shared.col[grown])), (n, n)
    )
    members = (full + grown @ half).tocsr()
    members.sort_indices()
    row = np.repeat(np.arange(n), np.diff(members.indptr))
    weight = np.exp(2.0 * _pair_dots(x, row, members.indices) - 2.0)
    weight /= np.bincount(row, weight, n)[row]
    v = sparse.csr_matrix((weight, members.indices, members.indptr), (n, n))
    if k2 > 1:
        some = rank[:, :k2]
        v = (
            sparse.csr_matrix(
                (
                    np.full(some.size, 1 / some.shape[1]),
                    some.ravel(),
                    np.arange(n + 1) * some.shape[1],
                ),
                (n, n),
            )
            @ v
        )
    return _one_minus_overlap(v.tocsr())


def dbscan(distance: np.ndarray, *, eps: float, min_samples: int = 4) -> np.ndarray:
    """[N] clusters by density from [N, N] distances, -1 where a row is in none.

    Raises:
      ValueError: distances that are not square.
    """
    from sklearn.cluster import DBSCAN

    if distance.ndim != 2 or distance.shape[0] != distance.shape[1]:
        raise ValueError(f"distance has shape {distance.shape}; expected [N, N].")
    return DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(distance)


def number_outliers(labels: np.ndarray) -> np.ndarray:
    """Gives every row labelled -1 a label of its own after the clusters', in order."""
    labels = np.array(labels)
    outlier = labels < 0
    labels[outlier] = labels.max(initial=-1) + 1 + np.arange(outlier.sum())
    return labels


class SelfPaced(NamedTuple):
    """labels: [N] clusters kept, every other row with one of its own, numbered from C on.

    independence, compactness: [N] 1 - IoU of a row's cluster with its loose and tight one (small is
      good).
    cluster_independence, cluster_compactness: [C] the least over the members. threshold: see
    `self_paced`."""

    labels: np.ndarray
    independence: np.ndarray
    compactness: np.ndarray
    cluster_independence: np.ndarray
    cluster_compactness: np.ndarray
    threshold: float


def self_paced(
    labels: np.ndarray,
    tight: np.ndarray,
    loose: np.ndarray,
    *,
    threshold: float | None = None,
    quantile: float = 0.9,
) -> SelfPaced:
    """Keeps the rows of clusters that a stricter and a laxer clustering agree with; dissolves the
    rest.

    A row stays if its cluster's independence is at most `threshold` and its own compactness is its
    cluster's best.

    Args:
      labels, tight, loose: [N] clusters at eps, eps - gap and eps + gap, outliers numbered
        (`number_outliers`).
      threshold: None in the first epoch: the `quantile` of the independence of the clusters with
        several members. Keep it for all later epochs.
      quantile: the authors' 0.9.

    Returns:
      SelfPaced. Where no cluster has several members the threshold is 1, which trusts all.

    Raises:
      ValueError: shapes that disagree, a negative label.

    Reference: Ge et al. 2020, arXiv 2006.02713, equations 4 and 5 (there R is the IoU itself, and
      large is good).
    """
    labels, tight, loose = (np.asarray(a) for a in (labels, tight, loose))
    if not labels.shape == tight.shape == loose.shape or labels.ndim != 1:
        raise ValueError(
            f"labels, tight and loose have shapes {labels.shape}, {tight.shape}, {loose.shape}; "
            f"expected "
            "[N] each."
        )
    if min(labels.min(initial=0), tight.min(initial=0), loose.min(initial=0)) < 0:
        raise ValueError(
            "a label is negative; expected outliers to be numbered first: number_outliers(labels)."
        )
    compactness, independence = 1 - _iou(labels, tight), 1 - _iou(labels, loose)
    count = np.bincount(labels)
    cluster_compactness, cluster_independence = np.ones((2, len(count)))
    np.minimum.at(cluster_compactness, labels, compactness)
    np.minimum.at(cluster_independence, labels, independence)
    if threshold is None:
        several = np.sort(cluster_independence[count > 1])
        threshold = (
            float(several[min(len(several) - 1, round(len(several) * quantile))])
            if len(several)
            else 1.0
        )
    kept = (cluster_independence[labels] <= threshold) & (
        compactness <= cluster_compactness[labels]
    )
    final = labels.copy()
    final[~kept] = len(count) + np.arange((~kept).sum())
    return SelfPaced(
        final, independence, compactness, cluster_independence, cluster_compactness, threshold
    )


def _reciprocal(rank):
    n, k = rank.shape
    lists = sparse.csr_matrix(
        (np.ones(n * k, np.int32), rank.ravel(), np.arange(n + 1) * k), (n, n)
    )
    return lists.multiply(lists.T).tocsr()


def _pair_dots(x, rows, cols, block=1 << 16):
    parts = [
        np.einsum("pd,pd->p", x[rows[i : i + block]], x[cols[i : i + block]], dtype=np.float64)
        for i in range(0, len(rows), block)
    ]
    return np.concatenate(parts)


def _one_minus_overlap(v):
    n, columns = v.shape[0], v.tocsc()
    distance = np.empty((n, n), np.float32)
    for i in range(n):
        held = v.indices[v.indptr[i] : v.indptr[i + 1]]
        start, count = columns.indptr[held], np.diff(columns.indptr)[held]
        at = np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count)
        least = np.minimum(
            columns.data[at], np.repeat(v.data[v.indptr[i] : v.indptr[i + 1]], count)
        )
        overlap = np.bincount(columns.indices[at], least, n)
        distance[i] = np.maximum(1 - overlap / (2 - overlap), 0)
    return distance


def _iou(a, b):
    pair = a * (b.max(initial=0) + 1) + b
    _, inverse, count = np.unique(pair, return_inverse=True, return_counts=True)
    shared = count[inverse]
    return shared / (np.bincount(a)[a] + np.bincount(b)[b] - shared)
