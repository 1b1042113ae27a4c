"""Multinomial logistic regression on frozen features of any label: CPC's protocol, and the cheap
probe of everything that is not an image."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cl_jax.core.shapes import check_count, check_positive
from cl_jax.data.source import labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import check_labelled


def make(
    *,
    label: str = "label",
    feature: str = "",
    c: float = 1.0,
    iterations: int = 300,
    when: str = "always",
    figure: str = "logistic",
) -> Evaluator:
    """Test accuracy of a logistic regression that is fitted to the training features:
    "logistic/LABEL".

    Features are standardised by the training part. The fit is scikit-learn's, by L-BFGS, the same
    for the same features.

    label: a label field; examples without a label are left out. feature: of "encode"; "" for the
      run's own. c: inverse strength of the L2 penalty. iterations: of L-BFGS at most. when: see
      `Evaluator`. figure: in place of "logistic", for a second feature beside the first.

    Raises:
      ValueError: a count or c that is not above 0.
    """
    check_count(iterations=iterations)
    check_positive(c=c)

    def measure(given: Given) -> dict[str, float]:
        (x, y), (queries, truth) = (
            (given.features(source, feature)[of >= 0], of[of >= 0])
            for source in given.data[:2]
            for of in [labels_of(source, label)]
        )
        return {f"{figure}/{label}": accuracy(x, y, queries, truth, c=c, iterations=iterations)}

    return Evaluator(
        measure,
        Needs(features=(feature,), labels=(label,), labelled=("train", "test")),
        when=when,
        better={f"{figure}/{label}": 1},
        titles={f"{figure}/{label}": f"logistic regression, {label} %"},
    )


def accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    c: float = 1.0,
    iterations: int = 300,
) -> float:
    """The share of [M, D] test features whose label a logistic regression on [N, D] features
    predicts, of one class always that; NaN where features are. Labels are 0 or more."""
    check_labelled(labels=labels, test_labels=test_labels)
    if not (np.isfinite(features).all() and np.isfinite(test_features).all()):
        return float("nan")
    if (labels == labels[0]).all():  # one class, which scikit-learn refuses
        return float(np.mean(test_labels == labels[0]))
    machine = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(np.asarray(features, np.float64), labels)
    return float(machine.score(np.asarray(test_features, np.float64), test_labels))
