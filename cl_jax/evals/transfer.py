"""What frozen sentence features are worth for other tasks: a logistic regression on each."""

import warnings
from collections.abc import Sequence

import numpy as np
from absl import logging
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cl_jax.data.source import Source, Splits, labels_of, renamed
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import at_hand, check_labelled


def make(
    *,
    sources: Sequence[str] = (),
    feature: str = "",
    folds: int = 10,
    strengths: Sequence[float] = (0.01, 0.1, 1.0),
    iterations: int = 200,
    when: str = "final",
) -> Evaluator:
    """Test accuracy of each task, "transfer/<set>", and their mean "transfer/average".

    A set with a test part is fitted to its training part. One without is divided into `folds`, each
    tested once, and the mean is the figure (SentEval's protocol for MR, CR, SUBJ and MPQA). The
    penalty is chosen by a tenth of the training rows that is held out. SentEval fits the same
    classifier by Adam with early stopping; this is scikit-learn's, by L-BFGS on standardised
    features. Of a pair of sentences u and v it reads |u - v| and u * v (SentEval's MRPC).

    Args:
      sources: names of `Splits.more` with sentences and "label", without those of test parts; ()
        for all that begin with "classify/".
      feature: of "encode"; "" is the run's own.
      folds: of sets without a test part. strengths: inverse penalties to choose from.
      iterations: of the fit, at most.
      when: see `Evaluator`; "always" measures the untrained network too.

    Raises:
      ValueError: fewer than two folds, or no strength.
    """
    other: dict[str, Source] = {}
    if folds < 2:
        raise ValueError(f"folds={folds}; expected 2 or more.")
    if not strengths:
        raise ValueError(f"strengths={strengths!r}; expected at least one number above 0.")

    def names(data: Splits) -> Sequence[str]:
        return sources or [
            name
            for name in data.more
            if name.startswith("classify/") and not name.endswith("/test")
        ]

    def check(data: Splits) -> None:
        for name in names(data):
            parts = [part for part in (name, f"{name}/test") if part in data.more]
            for part in parts:
                size, known = data.more[part].size, at_hand(data.more[part], "label")
                if known is not None and len(known) < size:
                    raise ValueError(
                        f"the source {part!r} has {size - len(known)} examples without a label; "
                        "expected none. Leave them out."
                    )
                if known is not None and len(parts) == 1:
                    _check_folds(known, folds)

    def measure(given: Given) -> dict[str, float]:
        more = given.data.more

        def of(source: Source) -> np.ndarray:
            found = given.features(source, feature)
            if source.arrays is None or "tokens_b" not in source.arrays:
                return found
            if source.name not in other:
                swapped = renamed(source, {"tokens": "tokens_a", "tokens_b": "tokens"})
                other[source.name] = swapped
            second = given.features(other[source.name], feature)
            return np.concatenate([np.abs(found - second), found * second], axis=1)

        found = {}
        for name in names(given.data):
            x, y = of(more[name]), labels_of(more[name])
            if f"{name}/test" in more:
                test = more[f"{name}/test"]
                value = accuracy(
                    x,
                    y,
                    of(test),
                    labels_of(test),
                    strengths=strengths,
                    iterations=iterations,
                    seed=given.seed,
                )
            else:
                value = by_folds(
                    x, y, folds=folds, strengths=strengths, iterations=iterations, seed=given.seed
                )
            found[f"transfer/{name.removeprefix('classify/')}"] = value
        return found | {"transfer/average": float(np.mean(list(found.values())))}

    return Evaluator(
        measure,
        Needs(
            features=(feature,),
            sources=tuple(sources),
            kinds=() if sources else ("classify",),
        ),
        when=when,
        better={"transfer/average": 1},
        titles={"transfer/average": "transfer, mean over tasks %"},
        check=check,
    )


def accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    strengths: Sequence[float] = (0.01, 0.1, 1.0),
    iterations: int = 200,
    seed: int = 0,
) -> float:
    """The share of test rows [M, D] whose label a logistic regression on [N, D] predicts, its
    penalty chosen by a tenth of the N rows; NaN where features are.

    The tenth holds a row of each class at least. Where a class has a single row, or none would be
    left to fit, nothing can be held out, and the penalty is the one in the middle.

    Raises:
      ValueError: a label below 0.
    """
    check_labelled(labels=labels, test_labels=test_labels)
    if not (np.isfinite(features).all() and np.isfinite(test_features).all()):
        return float("nan")
    counts = np.unique(labels, return_counts=True)[1]
    tenth, rows = int(np.ceil(0.1 * len(labels))), len(labels)
    chosen = strengths[len(strengths) // 2]
    if len(strengths) > 1 and min(counts) > 1 and rows - max(tenth, len(counts)) >= len(counts):
        share = 0.1 if tenth >= len(counts) else len(counts)
        division = StratifiedShuffleSplit(1, test_size=share, random_state=seed)
        fit, held = next(division.split(features, labels))
        scores = [
            _fitted(features[fit], labels[fit], c, iterations).score(features[held], labels[held])
            for c in strengths
        ]
        chosen = strengths[int(np.argmax(scores))]
    machine = _fitted(features, labels, chosen, iterations)
    return float(machine.score(test_features, test_labels))


def by_folds(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    folds: int = 10,
    strengths: Sequence[float] = (0.01, 0.1, 1.0),
    iterations: int = 200,
    seed: int = 0,
) -> float:
    """Mean of `accuracy` over stratified folds, each tested once; as many folds as the most
    frequent class has rows, where these are fewer.

    Raises:
      ValueError: a label below 0, no class with two rows.
    """
    check_labelled(labels=labels)
    most = _check_folds(labels, folds)
    if most < folds:
        logging.warning("%d folds, not %d: no class has more rows.", most, folds)
        folds = most
    division = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # of rarer classes, which some folds are without
        warnings.simplefilter("ignore", UserWarning)
        parts = list(division.split(features, labels))
    return float(
        np.mean(
            [
                accuracy(
                    features[fit],
                    labels[fit],
                    features[held],
                    labels[held],
                    strengths=strengths,
                    iterations=iterations,
                    seed=seed,
                )
                for fit, held in parts
            ]
        )
    )


def _check_folds(labels: np.ndarray, folds: int) -> int:
    """How many rows the most frequent class has; refuses fewer than two."""
    most = int(np.unique(labels, return_counts=True)[1].max())
    if most < 2:
        raise ValueError(
            f"no class has two of the {len(labels)} rows; expected as many as folds={folds}."
        )
    return most


def _fitted(features: np.ndarray, labels: np.ndarray, c: float, iterations: int):
    if (labels == labels[0]).all():  # which the regression refuses
        return DummyClassifier().fit(features, labels)
    machine = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return machine.fit(features, labels)
