"""Fréchet distance against scipy's matrix square root; Inception Score, label accuracy by hand."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from cl_jax.evals.generated import (
    Gaussian,
    frechet_distance,
    gaussian,
    inception_score,
    label_accuracy,
)

RNG = np.random.default_rng(0)


def test_gaussian_is_numpys():
    x = RNG.normal(3, 2, (40, 5))
    ours = gaussian(x)
    np.testing.assert_allclose(ours.mean, x.mean(0))
    np.testing.assert_allclose(ours.covariance, np.cov(x, rowvar=False))


@pytest.mark.parametrize("dimension", [1, 3, 16])
def test_distance_is_that_of_the_matrix_square_root(dimension):
    a, b = (gaussian(RNG.normal(m, s, (60, dimension))) for m, s in ((0, 1), (0.5, 2)))
    root = np.real(sqrtm(a.covariance @ b.covariance))
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-9)


def test_distance_of_singular_covariances():
    """More dimensions than rows, one feature constant; closed form where the matrices commute."""
    x = gaussian(RNG.normal(size=(4, 9)) * np.r_[0, np.ones(8)])
    assert abs(frechet_distance(x, x)) < 1e-9
    a, b = (Gaussian(np.zeros(3), np.diag(d)) for d in (np.array([4, 0, 1.0]), np.array([1, 9, 0])))
    np.testing.assert_allclose(frechet_distance(a, b), 1 + 9 + 1)


def test_inception_score():
    assert inception_score(np.full((6, 4), 0.25)) == (1.0, 0.0)
    np.testing.assert_allclose(inception_score(np.tile(np.eye(4), (5, 1)))[0], 4)
    p = RNG.dirichlet(np.ones(3), 30)
    parts = [
        np.exp(np.mean([(row * np.log(row / part.mean(0))).sum() for row in part]))
        for part in (p[:10], p[10:20], p[20:])
    ]
    np.testing.assert_allclose(inception_score(p, 3), (np.mean(parts), np.std(parts)))


def test_label_accuracy_and_renamed_classes():
    asked = np.arange(12) % 3
    assert label_accuracy(asked, asked, 3) == (1.0, 1.0)
    assert label_accuracy(asked, (asked + 1) % 3, 3) == (0.0, 1.0)
    seen = asked.copy()
    seen[:3] = 0
    np.testing.assert_allclose(label_accuracy(asked, seen, 4), (10 / 12, 10 / 12))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian(np.ones((1, 3))), "expected \\[N, D\\] with N at least 2"),
        (lambda: gaussian(np.full((3, 2), np.nan)), "Did the generator diverge"),
        (
            lambda: frechet_distance(gaussian(np.eye(3)), gaussian(np.eye(4))),
            "of 3 and of 4 dimensions",
        ),
        (lambda: inception_score(np.ones((3, 2))), "do not sum to 1"),
        (lambda: inception_score(np.eye(2), 3), "at most N parts"),
        (lambda: label_accuracy(np.r_[0, 3], np.r_[0, 1], 3), "asked go from 0 to 3"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
