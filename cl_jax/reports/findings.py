"""What embeddings say of a set of examples: neighbours, clusters, duplicates, labels in doubt, and
how the loss sees them. NumPy arrays in and out."""

from typing import NamedTuple

import numpy as np

from cl_jax.cluster.pairs import groups_above
from cl_jax.core.neighbours import nearest_rows

Array = np.ndarray


class Doubt(NamedTuple):
    """One example whose neighbours have another label. row: its number. label: its own. vote: the
    label that most of its neighbours have, by similarity. share: of the votes, for that label."""

    row: int
    label: int
    vote: int
    share: float


class Alike(NamedTuple):
    """Two examples, first < second, and their cosine."""

    first: int
    second: int
    similarity: float


def neighbours_of(x: Array, k: int) -> tuple[Array, Array]:
    """The k other rows most similar to each row: ([N, k] cosines, [N, k] rows), nearest first.

    Args:
      x: [N, D].
      k: at most N - 1.
    """
    similarity, rows = (np.asarray(a) for a in nearest_rows(x, x, k + 1))
    own = rows == np.arange(len(x))[:, None]
    # A row with more than k equals may not be among its own neighbours; the last one is dropped.
    own[~own.any(1), -1] = True
    return similarity[~own].reshape(-1, k), rows[~own].reshape(-1, k)


def votes(labels: Array, similarity: Array, rows: Array, temperature: float = 0.07) -> Array:
    """[N, C] shares of the votes of each row's neighbours, weighted by exp(similarity /
    temperature); 0 where no neighbour has a label."""
    found = np.zeros((len(labels), max(int(labels.max()) + 1, 1)))
    weight = np.exp((similarity - similarity[:, :1]) / temperature)
    for near, w in zip(rows.T, weight.T):
        known = labels[near] >= 0
        np.add.at(found, (np.flatnonzero(known), labels[near][known]), w[known])
    return found / np.maximum(found.sum(1, keepdims=True), 1e-12)


def confusion(labels: Array, votes: Array, most: int = 30) -> tuple[Array, Array]:
    """([C, C] examples of each label by the label that their neighbours vote for, [C] the labels):
    of the `most` labels that have most examples."""
    known = np.flatnonzero((labels >= 0) & (votes.sum(1) > 0))
    counts = np.bincount(labels[known], minlength=votes.shape[1])
    kept = np.sort(np.argsort(-counts, kind="stable")[:most])
    table = np.zeros((votes.shape[1],) * 2, int)
    np.add.at(table, (labels[known], votes[known].argmax(1)), 1)
    return table[np.ix_(kept, kept)], kept


def doubtful(labels: Array, votes: Array, share: float = 0.8, most: int = 24) -> list[Doubt]:
    """Likely wrong labels: examples whose neighbours agree, by `share` of the votes, on another
    label; the surest first."""
    vote, sure = votes.argmax(1), votes.max(1)
    rows = np.flatnonzero((labels >= 0) & (vote != labels) & (sure >= share))
    rows = rows[np.argsort(-sure[rows], kind="stable")][:most]
    return [Doubt(int(i), int(labels[i]), int(vote[i]), float(sure[i])) for i in rows]


def false_negatives(
    labels: Array | None, similarity: Array, rows: Array, below: float, most: int = 24
) -> list[Alike]:
    """Likely false negatives: the most similar pairs of examples that a contrastive loss pushes
    apart although they show the same. With labels, pairs of one label; without, any. Pairs at least
    `below` alike are duplicates and left out."""
    first = np.repeat(np.arange(len(rows)), rows.shape[1])
    second, near = rows.ravel(), similarity.ravel()
    # Each pair once: as the row of lower number sees it, or as the other does where it alone does.
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, once = np.unique(low.astype(np.int64) * len(rows) + high, return_index=True)
    kept = once[near[once] < below]
    if labels is not None:
        kept = kept[(labels[low[kept]] == labels[high[kept]]) & (labels[low[kept]] >= 0)]
    kept = kept[np.argsort(-near[kept], kind="stable")][:most]
    return [Alike(int(low[i]), int(high[i]), float(near[i])) for i in kept]


def duplicates(x: Array, threshold: float) -> list[Array]:
    """Groups of rows that are at least `threshold` alike, directly or through others, the largest
    first."""
    return groups_above(x, threshold, max_pairs=20 * len(x)).groups


def clusters(x: Array, count: int, seed: int = 0) -> tuple[Array, list[Array]]:
    """([N] cluster of each row, for each cluster its rows, nearest to the centre first), by k-means
    on unit rows; the largest cluster is 0."""
    from sklearn.cluster import KMeans

    rows = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    fit = KMeans(count, n_init=2, max_iter=50, random_state=seed).fit(rows)
    order = np.argsort(-np.bincount(fit.labels_, minlength=count), kind="stable")
    place = np.empty(count, int)
    place[order] = np.arange(count)
    label = place[fit.labels_]
    distance = np.linalg.norm(rows - fit.cluster_centers_[fit.labels_], axis=1)
    by_distance = np.argsort(distance, kind="stable")
    return label, [by_distance[label[by_distance] == c] for c in range(count)]


def pair_similarities(a: Array, b: Array) -> tuple[Array, Array]:
    """Cosines of two views of the same examples [N], and of views of different ones [N * (N -
    1)]."""
    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (a, b))
    cosine = a @ b.T
    return np.diag(cosine).copy(), cosine[~np.eye(len(a), dtype=bool)]


def hardest_share(a: Array, b: Array, temperature: float) -> tuple[Array, Array]:
    """How the gradient of InfoNCE divides among negatives, hardest first.

    P_ij = exp(s_ij / T) / sum over negatives of exp(s_ik / T) is the share of anchor i's gradient
    that negative j carries (Wang and Liu, CVPR 2021, equation 5, with the positive left out of the
    sum).

    Returns:
      ([M] share of the negatives, 0 to 1, [M] the part of the gradient that this share of the
      hardest carries, mean over anchors).
    """
    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (a, b))
    count = len(a)
    cosine = (a @ b.T)[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    cosine = -np.sort(-cosine, axis=1)
    weight = np.exp((cosine - cosine[:, :1]) / temperature)
    carried = np.cumsum(weight, axis=1) / weight.sum(1, keepdims=True)
    return np.arange(1, count) / (count - 1), carried.mean(0)
