"""How well clusters agree with classes: accuracy under the best naming, mutual information, Rand
index."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cl_jax.core.shapes import check_count
from cl_jax.data.source import Splits, labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import at_hand, check_labelled


def make(
    *,
    clusters: int = 0,
    normalise: bool = True,
    starts: int = 10,
    feature: str = "",
    label: str = "label",
    argmax: bool = False,
    figure: str = "clustering",
    when: str = "always",
) -> Evaluator:
    """ "clustering/accuracy", "clustering/nmi" and "clustering/ari" of k-means clusters of the test
    features. Of features that are NaN or inf all are NaN.

    clusters: how many; 0: as many as there are classes. normalise, starts: see `kmeans_agreement`.
    feature: of "encode"; "" for the run's own. label: a label field; examples without a label are
    left out. argmax: the feature says the clusters itself, an example's is its largest column; no
    k-means. figure: the name of its figures, for a second one beside it. when: see `Evaluator`.

    Raises:
      ValueError: fewer than one start.
    """
    check_count(starts=starts)
    figures = [f"{figure}/{name}" for name in Agreement._fields]

    def check(data: Splits) -> None:
        known = at_hand(data.test, label)
        if known is not None and not argmax:
            _check_clusters(clusters or len(np.unique(known)), len(known))

    def measure(given: Given) -> dict[str, float]:
        truth = labels_of(given.data.test, label)
        x = given.features(given.data.test, feature)[truth >= 0]
        if not np.isfinite(x).all():
            return dict.fromkeys(figures, float("nan"))
        if argmax:
            return dict(zip(figures, agreement(np.argmax(x, axis=1), truth[truth >= 0])))
        found = kmeans_agreement(
            x,
            truth[truth >= 0],
            clusters=clusters or None,
            normalise=normalise,
            starts=starts,
            seed=given.seed,
        )
        return dict(zip(figures, found))

    return Evaluator(
        measure,
        Needs(features=(feature,), labels=(label,), labelled=("test",)),
        when=when,
        better=dict.fromkeys(figures, 1),
        titles={figures[0]: "clusters, accuracy %"},
        check=check,
    )


class Agreement(NamedTuple):
    """accuracy: share of examples whose cluster is named after their class, under the one-to-one
    naming that gives most. nmi: mutual information over the arithmetic mean of the entropies. ari:
    adjusted Rand index, 0 at chance."""

    accuracy: float
    nmi: float
    ari: float


def agreement(clusters: np.ndarray, labels: np.ndarray) -> Agreement:
    """Figures of an assignment of examples to clusters.

    Args:
      clusters: [N] integers with any names, at least one for each example. With more clusters than
        classes, or fewer, those without a partner count as wrong.
      labels: [N] integers, 0 or more.

    Raises:
      ValueError: shapes or types that disagree, a label below 0.

    Reference: Xie et al. 2016, arXiv 1511.06335, equation 10 (accuracy, by the Hungarian method).
    """
    clusters, labels = np.asarray(clusters), np.asarray(labels)
    if (
        clusters.ndim != 1
        or clusters.shape != labels.shape
        or not len(labels)
        or clusters.dtype.kind not in "iu"
        or labels.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"clusters are {clusters.dtype}{list(clusters.shape)} and labels {labels.dtype}"
            f"{list(labels.shape)}; expected integers [N] both."
        )
    check_labelled(labels=labels)
    names, cluster = np.unique(clusters, return_inverse=True)
    classes, label = np.unique(labels, return_inverse=True)
    table = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(table, (cluster, label), 1)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    return Agreement(
        float(matched / len(labels)),
        float(normalized_mutual_info_score(labels, clusters)),
        float(adjusted_rand_score(labels, clusters)),
    )


def kmeans_agreement(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    clusters: int | None = None,
    normalise: bool = True,
    starts: int = 10,
    seed: int = 0,
) -> Agreement:
    """`agreement` of k-means clusters of features with labels.

    Args:
      features: [N, D].
      labels: [N] integers, 0 or more.
      clusters: how many; None: as many as there are classes.
      normalise: scales rows to unit length first.
      starts: k-means runs that often and keeps the run with the least inertia.

    Raises:
      ValueError: shapes that disagree, a label below 0, more clusters than examples.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(
            f"features have shape {features.shape} and there are {len(labels)} labels; expected "
            "[N, D] and [N]."
        )
    check_labelled(labels=labels)
    count = len(np.unique(labels)) if clusters is None else clusters
    _check_clusters(count, len(features))
    if normalise:
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    found = KMeans(count, n_init=starts, random_state=seed).fit_predict(features)
    return agreement(found, labels)


def _check_clusters(clusters: int, examples: int) -> None:
    if not 1 <= clusters <= examples:
        raise ValueError(f"clusters={clusters}; expected 1 to {examples}, the examples.")
