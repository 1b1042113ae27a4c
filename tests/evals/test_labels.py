"""Labels outside their classes are refused before a compiled program clamps them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.evals import balancedness, clustering, few_labels, logistic, svm_folds, transfer
from cl_jax.evals._labels import check_classes


@pytest.mark.parametrize("labels", [[0, 3], [-1, 2]])
def test_labels_outside_are_named(labels):
    with pytest.raises(ValueError, match=f"train_labels go from {labels[0]} to {labels[1]}"):
        check_classes(3, train_labels=jnp.array(labels))


def test_what_is_inside_empty_missing_or_traced_passes():
    check_classes(3, a=jnp.array([0, 2]), b=None, c=jnp.zeros(0, jnp.int32))
    jax.jit(lambda x: (check_classes(3, x=x), x)[1])(jnp.array([7]))


X, Y = np.eye(12, 4, dtype=np.float32), np.arange(12) % 3
NONE = np.where(np.arange(12) == 5, -1, Y)


@pytest.mark.parametrize(
    "measure",
    [
        lambda labels: clustering.agreement(Y, labels),
        lambda labels: clustering.kmeans_agreement(X, labels, starts=1),
        lambda labels: svm_folds.svm_folds(X, labels, folds=2, inner_folds=2, grid=(1.0,)),
        lambda labels: logistic.accuracy(X, labels, X, Y),
        lambda labels: logistic.accuracy(X, Y, X, labels),
        lambda labels: transfer.accuracy(X, labels, X, Y),
        lambda labels: transfer.accuracy(X, Y, X, labels),
        lambda labels: transfer.by_folds(X, labels, folds=2),
        lambda labels: few_labels.fit(X, labels),
        lambda labels: balancedness.class_accuracy(Y, labels, num_classes=3),
    ],
)
def test_unlabelled_rows_are_no_class_of_their_own(measure):
    measure(Y)
    with pytest.raises(ValueError, match="labels go down to -1, which is no label"):
        measure(NONE)
