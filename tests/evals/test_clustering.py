"""Agreement of clusters with classes: accuracy against all namings, the others against formulas."""

from itertools import permutations

import numpy as np
import pytest

from cl_jax.cluster.agreement import normalised_mutual_information
from cl_jax.evals.clustering import agreement, kmeans_agreement

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("clusters, classes", [(4, 4), (3, 5), (5, 3)])
def test_accuracy_is_that_of_the_best_naming(clusters, classes):
    """All one-to-one namings, tried out."""
    a, b = RNG.integers(clusters, size=40), RNG.integers(classes, size=40)
    names = list(range(classes)) + [-1] * max(clusters - classes, 0)
    best = max((np.array(naming)[a] == b).mean() for naming in permutations(names, clusters))
    assert agreement(a, b).accuracy == best


def test_the_other_figures_are_their_formulas():
    a, b = RNG.integers(3, size=60), RNG.integers(4, size=60)
    table = np.array([[((a == i) & (b == j)).sum() for j in range(4)] for i in range(3)])
    rows, columns = table.sum(1), table.sum(0)

    def entropy(counts):
        share = counts[counts > 0] / 60
        return -(share * np.log(share)).sum()

    mutual = entropy(rows) + entropy(columns) - entropy(table.ravel())
    found = agreement(a, b)
    np.testing.assert_allclose(found.nmi, 2 * mutual / (entropy(rows) + entropy(columns)))
    np.testing.assert_allclose(
        found.nmi * (entropy(rows) + entropy(columns)) / 2,
        normalised_mutual_information(a, b) * np.sqrt(entropy(rows) * entropy(columns)),
    )
    pairs = (table * (table - 1) / 2).sum()
    left, right = ((x * (x - 1) / 2).sum() for x in (rows, columns))
    chance = left * right / (60 * 59 / 2)
    np.testing.assert_allclose(found.ari, (pairs - chance) / ((left + right) / 2 - chance))


def test_renamed_classes_are_a_perfect_clustering():
    labels = RNG.integers(5, size=50)
    np.testing.assert_allclose(agreement(7 + (labels * 3) % 5, labels), 1.0)
    np.testing.assert_allclose(agreement(np.zeros(50, int), labels)[1:], 0, atol=1e-9)


def test_k_means_finds_separate_classes():
    labels = np.repeat(np.arange(3), 20)
    features = np.eye(3)[labels] * 4 + 0.1 * RNG.normal(size=(60, 3))
    np.testing.assert_allclose(kmeans_agreement(features, labels), 1.0)
    loud = features * RNG.uniform(1, 100, (60, 1))
    assert kmeans_agreement(loud, labels).accuracy == 1.0
    assert kmeans_agreement(loud, labels, normalise=False).accuracy < 0.9


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=r"expected integers \[N\] both"):
        agreement(np.zeros(3), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"expected integers \[N\] both"):
        agreement(np.zeros(3, int), np.zeros(4, int))
    with pytest.raises(ValueError, match="expected 1 to 3"):
        kmeans_agreement(np.zeros((3, 2)), np.zeros(3, int), clusters=4)
    with pytest.raises(ValueError, match="there are 4 labels"):
        kmeans_agreement(np.zeros((3, 2)), np.zeros(4, int))
