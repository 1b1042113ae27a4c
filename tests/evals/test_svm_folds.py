"""Ten folds of a support vector machine, against the protocol written out."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import SVC

from cl_jax.evals.svm_folds import svm_folds

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
FEATURES = RNG.normal(size=(60, 4)) + 0.8 * np.eye(4)[LABELS]
GRID = (0.01, 1.0, 100.0)


def test_nested_chooses_inside_the_training_folds():
    """The choice of C by hand, for each fold."""
    expected = []
    outer = StratifiedKFold(5, shuffle=True, random_state=1)
    for train, test in outer.split(FEATURES, LABELS):
        inner = StratifiedKFold(3, shuffle=True, random_state=1)
        scores = [
            cross_val_score(SVC(C=c), FEATURES[train], LABELS[train], cv=inner).mean() for c in GRID
        ]
        machine = SVC(C=GRID[int(np.argmax(scores))]).fit(FEATURES[train], LABELS[train])
        expected.append((machine.predict(FEATURES[test]) == LABELS[test]).mean())
    found = svm_folds(FEATURES, LABELS, folds=5, inner_folds=3, grid=GRID, seed=1)
    np.testing.assert_allclose(found.folds, expected)
    np.testing.assert_allclose(found[:2], [np.mean(expected), np.std(expected)])


def test_best_reports_the_best_c_of_all_folds():
    outer = StratifiedKFold(5, shuffle=True, random_state=1)
    means = [cross_val_score(SVC(C=c), FEATURES, LABELS, cv=outer).mean() for c in GRID]
    found = svm_folds(FEATURES, LABELS, selection="best", folds=5, grid=GRID, seed=1)
    np.testing.assert_allclose(found.mean, max(means))
    nested = svm_folds(FEATURES, LABELS, folds=5, inner_folds=3, grid=GRID, seed=1)
    assert found.mean >= nested.mean


def test_noise_is_at_chance():
    """What a protocol that saw the test folds would not be."""
    noise = np.random.default_rng(3).normal(size=(90, 20))
    assert svm_folds(noise, np.arange(90) % 3, folds=5, inner_folds=3, grid=GRID).mean < 0.45


def test_a_feature_of_another_unit_is_standardised_away():
    loud = FEATURES.copy()
    loud[:, 3] = 1e4 * RNG.normal(size=60)
    settings = dict(folds=5, inner_folds=3, grid=GRID)
    plain = svm_folds(loud, LABELS, **settings).mean
    assert svm_folds(loud, LABELS, standardise=True, **settings).mean > plain + 0.1


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match=r"class 0 has 20 of 60 examples.*folds=30"):
        svm_folds(FEATURES, LABELS, folds=30)
    with pytest.raises(ValueError, match="nested, best"):
        svm_folds(FEATURES, LABELS, selection="outer")
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        svm_folds(FEATURES[:5], LABELS)
    with pytest.raises(ValueError, match="NaN or inf"):
        svm_folds(np.full((60, 2), np.nan), LABELS)
