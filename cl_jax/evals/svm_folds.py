"""Accuracy of a support vector machine on features of graphs, in ten folds: the protocol of the
field's unsupervised results on TU data."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from cl_jax.core.seeds import SEEDS
from cl_jax.core.shapes import check_count
from cl_jax.data.source import Splits, labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import at_hand, check_labelled

C_GRID = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
SELECTIONS = ("nested", "best")


def make(
    *,
    selection: Literal["nested", "best"] = "nested",
    folds: int = 10,
    inner_folds: int = 5,
    standardise: bool = False,
    repeats: int = 1,
    feature: str = "",
    label: str = "label",
    when: str = "always",
) -> Evaluator:
    """ "svm_folds/accuracy" and "svm_folds/std", of the folds: `svm_folds` on all training graphs,
    whose labels training does not see. Of features that are NaN or inf both are NaN.

    repeats: divisions into folds, by the run's seed and those after it; accuracy and deviation are
      means over them. feature: of "encode"; "" for the run's own. label: a label field; examples
      without a label are left out. when: see `Evaluator`. The others: see `svm_folds`.

    Raises:
      ValueError: fewer than two folds, fewer than one repeat.
    """
    check_count(repeats=repeats)
    if min(folds, inner_folds) < 2:
        raise ValueError(f"folds={folds}, inner_folds={inner_folds}; expected 2 or more of each.")
    figures = "svm_folds/accuracy", "svm_folds/std"

    def check(data: Splits) -> None:
        known = at_hand(data.train, label)
        if known is not None:
            _check_folds(known, selection, folds, inner_folds)

    def measure(given: Given) -> dict[str, float]:
        truth = labels_of(given.data.train, label)
        x = given.features(given.data.train, feature)[truth >= 0]
        if not np.isfinite(x).all():
            return dict.fromkeys(figures, float("nan"))
        found = [
            svm_folds(
                x,
                truth[truth >= 0],
                selection=selection,
                folds=folds,
                inner_folds=inner_folds,
                standardise=standardise,
                seed=(given.seed + i) % SEEDS,
            )
            for i in range(repeats)
        ]
        return {name: float(np.mean([one[i] for one in found])) for i, name in enumerate(figures)}

    return Evaluator(
        measure,
        Needs(features=(feature,), labels=(label,), labelled=("train",)),
        when=when,
        better={figures[0]: 1},
        titles={figures[0]: f"SVM in {folds} folds, {selection} %"},
        check=check,
    )


class Folds(NamedTuple):
    """mean, std: of the folds' accuracies. folds: [folds] accuracies on what each fold held out."""

    mean: float
    std: float
    folds: np.ndarray


def svm_folds(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    selection: str = "nested",
    folds: int = 10,
    inner_folds: int = 5,
    grid: Sequence[float] = C_GRID,
    standardise: bool = False,
    seed: int = 0,
) -> Folds:
    """Trains an SVM with an RBF kernel on all folds but one, tests it on that one, for each.

    Two variants are in use, and their figures are not comparable:
      "nested": C is chosen by cross-validation inside the training folds of each split
        (InfoGraph, GraphCL).
      "best": all folds are tested with each C and the C with the highest mean is reported, which is
        chosen on the test folds (kernels' and several later tables). Higher by construction.

    Args:
      features: [N, D].
      labels: [N] integers, 0 or more; each class at least `folds` times.
      folds, inner_folds: stratified and shuffled by `seed`.
      grid: values of C.
      standardise: scales each feature by the training folds' mean and deviation first; the authors
        do not.

    Returns:
      Folds. Guessing the most frequent class gives its share.

    Raises:
      ValueError: shapes that disagree, an unknown selection, classes rarer than folds.
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features have shape {features.shape} and labels {labels.shape}; expected [N, D] and "
            "[N]."
        )
    if selection not in SELECTIONS:
        raise ValueError(f"selection={selection!r}; expected one of {', '.join(SELECTIONS)}.")
    check_labelled(labels=labels)
    _check_folds(labels, selection, folds, inner_folds)
    if not np.isfinite(features).all():
        raise ValueError("features are NaN or inf in some rows; the network has diverged.")

    def machine(c: float) -> Pipeline:
        steps = [StandardScaler()] if standardise else []
        return make_pipeline(*steps, SVC(C=c))

    split = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels))
    if selection == "nested":
        inner = StratifiedKFold(inner_folds, shuffle=True, random_state=seed)
        scores = []
        for train, test in split:
            search = GridSearchCV(machine(1.0), {"svc__C": list(grid)}, cv=inner)
            search.fit(features[train], labels[train])
            scores.append(search.score(features[test], labels[test]))
        found = np.array(scores)
    else:
        table = np.array(
            [
                [
                    machine(c)
                    .fit(features[train], labels[train])
                    .score(features[test], labels[test])
                    for train, test in split
                ]
                for c in grid
            ]
        )
        found = table[table.mean(1).argmax()]
    return Folds(float(found.mean()), float(found.std()), found)


def _check_folds(labels: np.ndarray, selection: str, folds: int, inner_folds: int) -> None:
    """Refuses fewer than two classes, and classes rarer than folds."""
    classes, counts = np.unique(labels, return_counts=True)
    least = int(counts.min())
    inside = least - -(-least // folds)  # of that class in the smallest training part
    if len(classes) < 2 or least < folds or (selection == "nested" and inside < inner_folds):
        raise ValueError(
            f"class {classes[counts.argmin()]} has {least} of {len(labels)} examples; "
            f"expected two classes or more with at least folds={folds} of each"
            + (f", and inner_folds={inner_folds} without a fold" if selection == "nested" else "")
            + ". Use fewer folds."
        )
