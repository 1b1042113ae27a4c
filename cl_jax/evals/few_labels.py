"""A probe from few labels: regularised by cross-validation, with calibrated confidence, and which
examples to label next."""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cl_jax.cluster.coreset import coreset
from cl_jax.evals._labels import check_labelled

FOLDS = 5
STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-5, 3))  # inverse, as scikit-learn's C
BINS = 10
POOL = 10  # uncertain examples for each that is chosen


class Probe(NamedTuple):
    """model: scikit-learn's, fitted to all labels. c: the inverse strength of its L2 penalty.
    temperature: that its logits are divided by. accuracy, log_loss, calibration_error: of examples
    that the model did not see, by cross-validation, after the temperature; NaN where no class has
    two examples. held_out: [N, C] their probabilities, NaN for the only example of a class."""

    model: Any
    c: float
    temperature: float
    accuracy: float
    log_loss: float
    calibration_error: float
    held_out: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """[M, C] of [M, D] features, calibrated."""
        with np.errstate(divide="ignore"):  # of a probability of 0
            logits = self.model.predict_log_proba(features)
        return softmax(logits / self.temperature, axis=1)


def fit(features: np.ndarray, labels: np.ndarray) -> Probe:
    """Multinomial logistic regression on standardised features.

    Cross-validation in up to five folds, with the classes in equal shares, chooses the strength of
    the penalty by the log loss, and then one temperature for all logits (Guo et al. 2017, arXiv
    1706.04599) by the log loss of the same held-out predictions. The only example of a class is in
    the training part of every fold. The choice of nine numbers by the predictions that they are
    reported for makes the figures slightly better than they are.

    Args:
      features: [N, D], finite.
      labels: [N] integers 0 to C - 1, each class at least once, C of 2 or more.

    Raises:
      ValueError: a label below 0, fewer than two classes, or a class without an example.
    """
    check_labelled(labels=labels)
    classes = int(labels.max()) + 1 if len(labels) else 0
    counts = np.bincount(labels, minlength=classes)
    if classes < 2 or not counts.all():
        raise ValueError(
            f"labels count {counts.tolist()} per class; expected two classes or more, "
            "each with an example. Number the classes from 0 without gaps."
        )
    x = np.asarray(features, np.float64)
    fold = folds(labels)
    seen = fold >= 0
    best, c, held = np.inf, 1.0, np.full((len(x), classes), np.nan)
    if seen.any():
        for strength in STRENGTHS:
            found = _held_out(x, labels, fold, strength)
            loss = _log_loss(found[seen], labels[seen], 1.0)
            if loss < best:
                best, c, held = loss, strength, found
    return Probe(fitted(x, labels, c), c, *calibrated(held, labels))


class Calibrated(NamedTuple):
    """The fields of `Probe` of these names."""

    temperature: float
    accuracy: float
    log_loss: float
    calibration_error: float
    held_out: np.ndarray


def calibrated(held: np.ndarray, labels: np.ndarray) -> Calibrated:
    """One temperature for held-out logits [N, C], rows of NaN left out, by their log loss."""
    seen = np.isfinite(held).all(1)
    nothing = float("nan")
    if not seen.any():
        return Calibrated(1.0, nothing, nothing, nothing, held)
    logits, truth = held[seen], labels[seen]
    chosen = minimize_scalar(
        lambda t: _log_loss(logits, truth, np.exp(t)), bounds=(-3, 3), method="bounded"
    )
    temperature = float(np.exp(chosen.x))
    return Calibrated(
        temperature,
        float(np.mean(logits.argmax(1) == truth)),
        _log_loss(logits, truth, temperature),
        calibration_error(softmax(logits / temperature, axis=1), truth),
        softmax(held / temperature, axis=1),
    )


def folds(labels: np.ndarray) -> np.ndarray:
    """[N] the fold that holds each example out, -1 for the only example of a class: the members of
    a class go round the folds in an order drawn with a fixed seed."""
    counts = np.bincount(labels)
    several = counts[counts > 1]
    count = min(FOLDS, int(several.min())) if len(several) else 0
    fold = np.full(len(labels), -1)
    rng = np.random.default_rng(0)
    for value in np.flatnonzero(counts > 1):
        members = rng.permutation(np.flatnonzero(labels == value))
        fold[members] = (np.arange(len(members)) + value) % count
    return fold


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error: |accuracy - confidence|, averaged over ten bins of equal
    width by their number of examples."""
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    at = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        abs(right[at == b].mean() - confidence[at == b].mean()) * np.mean(at == b)
        for b in range(BINS)
        if (at == b).any()
    ]
    return float(np.sum(gaps))


def doubtful(held_out: np.ndarray, labels: np.ndarray, *, below: float = 0.1) -> np.ndarray:
    """Rows whose given label has a held-out probability under `below`, and another above one half,
    the least likely first: likely wrong labels."""
    given = held_out[np.arange(len(labels)), labels]
    rows = np.flatnonzero((given < below) & (held_out.max(axis=1) > 0.5))  # NaN is neither
    return rows[np.argsort(given[rows], kind="stable")]


def next_to_label(
    features: np.ndarray, probabilities: np.ndarray, labelled: np.ndarray, count: int
) -> np.ndarray:
    """Rows to label next: of the ten times as many that the probe is least sure of, those that lie
    furthest from the labelled ones and from each other.

    Args:
      features: [N, D] of all examples.
      probabilities: [N, C] of all.
      labelled: rows that have a label.
      count: how many; fewer where fewer are left.
    """
    two = np.sort(probabilities, axis=1)[:, -2:]
    margin = two[:, 1] - two[:, 0]
    margin[labelled] = np.inf
    left = len(features) - len(labelled)
    count = min(count, left)
    if not count:
        return np.zeros(0, np.int64)
    pool = np.argsort(margin, kind="stable")[: min(left, POOL * count)]
    rows = np.concatenate([labelled, pool])
    found = coreset(
        jnp.asarray(features[rows]),
        count,
        chosen=jnp.arange(len(labelled)) if len(labelled) else None,
    )
    return rows[np.asarray(found.rows)]


def fitted(x: np.ndarray, labels: np.ndarray, c: float) -> Any:
    """scikit-learn's pipeline of a standardiser and a logistic regression."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, labels)


def _held_out(x: np.ndarray, labels: np.ndarray, fold: np.ndarray, c: float) -> np.ndarray:
    """[N, C] log probabilities of each example by the model that did not see it."""
    found = np.full((len(x), int(labels.max()) + 1), np.nan)
    for number in range(int(fold.max()) + 1):
        out = fold == number
        found[out] = fitted(x[~out], labels[~out], c).predict_log_proba(x[out])
    return found


def _log_loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    scaled = log_softmax(logits / temperature, axis=1)
    return float(-np.mean(scaled[np.arange(len(labels)), labels]))
