"""How evenly features separate classes: accuracy class by class, of frequent and of rare ones, of a
linear classifier."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cl_jax.core.shapes import check_count, check_positive
from cl_jax.data.source import Splits, labels_of, tail
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import at_hand, check_labelled, check_test_classes

GROUPS = ("many", "medium", "few")


def make(
    *,
    source: str = "",
    many: int = 100,
    few: int = 20,
    imbalance: float = 1.0,
    sigma: float = 1.0,
    label: str = "label",
    feature: str = "",
    c: float = 1.0,
    iterations: int = 300,
    figure: str = "balancedness",
    when: str = "always",
) -> Evaluator:
    """Test accuracy by class of a logistic regression on standardised features.

    Figures: "balancedness/value", see `balancedness`; "balancedness/all", the mean over classes;
    "balancedness/many", "/medium" and "/few", the mean over the classes with more than `many`
    training examples, with at most `few`, and between, where there are such; "balancedness/least",
    that of the worst class. Of features that are NaN or inf all are NaN.

    source: a name in `Splits.more` that the classifier is fitted to: "balanced" is the training
      part before `config.data.imbalance`, and then the figures are of the features alone. "": the
      training split, examples weighted so that all classes count the same.
    many, few: training examples, 100 and 20 in the literature on long-tailed classes.
    imbalance: above 1, classes are frequent or rare by what `config.data.imbalance` would leave of
      `source`, and not by the training part: the same classes for a network of a balanced training
      part as for one of a long tail.
    sigma: see `balancedness`. label, feature, c, iterations, when: as for `logistic`. figure: the
      name of its figures, for a second one beside it.

    Raises:
      ValueError: few above many, a setting out of range.
    """
    check_count(many=many, few=few, iterations=iterations)
    check_positive(sigma=sigma, c=c)
    if imbalance < 1:
        raise ValueError(f"imbalance={imbalance}; expected 1, the training part's own, or more.")
    if few > many:
        raise ValueError(f"few={few} is above many={many}; expected at most {many}.")

    def check(data: Splits) -> None:
        check_test_classes(data, label)
        known = at_hand(data.more[source] if source else data.train, label)
        if known is not None and not len(known):
            raise ValueError(f"no example of the source {source!r} has a {label}; all are -1.")

    def measure(given: Given) -> dict[str, float]:
        data = given.data
        fitted = data.more[source] if source else data.train
        (x, y), (queries, truth) = (
            (given.features(part, feature)[of >= 0], of[of >= 0])
            for part in (fitted, data.test)
            for of in [labels_of(part, label)]
        )
        names = ("value", "all", "least", *GROUPS)
        trained = labels_of(data.train, label)
        counts = np.bincount(trained[trained >= 0], minlength=data.train.sizes[label])
        if imbalance > 1:
            counts = tail(len(y), len(counts), imbalance)
        groups = dict(zip(GROUPS, grouped(counts, many=many, few=few)))
        present = np.bincount(truth, minlength=len(counts)) > 0
        if not (np.isfinite(x).all() and np.isfinite(queries).all()):
            accuracy = np.full(len(counts), np.nan)
        else:
            accuracy = class_accuracy(
                _predicted(x, y, queries, c, iterations), truth, num_classes=len(counts)
            )
        found = {
            "value": balancedness(accuracy[present], sigma=sigma),
            "all": float(accuracy[present].mean()),
            "least": float(accuracy[present].min()),
        }
        found |= {
            name: float(accuracy[which & present].mean())
            for name, which in groups.items()
            if (which & present).any()
        }
        return {f"{figure}/{name}": found[name] for name in names if name in found}

    titles = {
        f"{figure}/all": "linear, mean over classes %",
        f"{figure}/many": "linear, frequent classes %",
        f"{figure}/few": "linear, rare classes %",
    }
    return Evaluator(
        measure,
        Needs(
            features=(feature,),
            labels=(label,),
            labelled=("test",) if source else ("train", "test"),
            sources=(source,) if source else (),
        ),
        when=when,
        better={f"{figure}/{name}": 1 for name in ("all", "value", "least", *GROUPS)},
        titles=titles,
        check=check,
    )


def balancedness(accuracy: Sequence[float] | np.ndarray, *, sigma: float = 1.0) -> float:
    """How alike the accuracies a of C classes are: 1/C^2 sum_ij exp(-|a_i - a_j|^2 / sigma).

    Args:
      accuracy: [C] shares from 0 to 1, of a linear classifier on the features.
      sigma: the smaller, the more a difference counts.

    Returns:
      1 where all classes are equally accurate, whatever that accuracy is; NaN where one is NaN.

    Raises:
      ValueError: no class, sigma <= 0.

    Reference: the idea is of Kang et al. 2021, "Exploring balanced feature spaces for
      representation learning". The authors' code does not compute it, so form and sigma could not
      be compared with theirs; compare values of one sigma with each other alone.
    """
    a = np.asarray(accuracy, np.float64)
    check_positive(sigma=sigma)
    if a.ndim != 1 or not len(a):
        raise ValueError(f"accuracy has shape {a.shape}; expected [C], one for each class.")
    return float(np.exp(-np.square(a[:, None] - a[None, :]) / sigma).mean())


def class_accuracy(predicted: np.ndarray, labels: np.ndarray, *, num_classes: int) -> np.ndarray:
    """[C] share of the examples of each class that were predicted rightly; NaN of a class without
    examples. Labels are 0 or more."""
    check_labelled(labels=labels)
    count = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    return np.where(count > 0, right / np.maximum(count, 1), np.nan)


class Grouped(NamedTuple):
    """[C] booleans each: which classes are frequent, rare, and between."""

    many: np.ndarray
    medium: np.ndarray
    few: np.ndarray


def grouped(counts: np.ndarray, *, many: int = 100, few: int = 20) -> Grouped:
    """Classes by their number of training examples [C]: more than `many`, at most `few`, others."""
    rare = (counts <= few) & (counts > 0)
    return Grouped(counts > many, ~rare & (counts <= many) & (counts > 0), rare)


def _predicted(x, y, queries, c, iterations):
    if (y == y[0]).all():  # one class, which scikit-learn refuses
        return np.full(len(queries), y[0])
    machine = make_pipeline(
        StandardScaler(), LogisticRegression(C=c, max_iter=iterations, class_weight="balanced")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(np.asarray(x, np.float64), y)
    return machine.predict(np.asarray(queries, np.float64))
