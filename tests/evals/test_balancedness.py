"""Balancedness, and accuracy of frequent and of rare classes."""

from types import SimpleNamespace

import numpy as np
import pytest

from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import balancedness

COUNTS = (200, 60, 10)


def _source(counts):
    label = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    arrays = {"x": np.zeros((len(label), 1), np.int16), "label": label}
    return from_arrays("toy", arrays, {"label": len(counts)})


def _given(features):
    data = Splits(_source(COUNTS), _source((40, 40, 40)), {"balanced": _source((90, 90, 90))})
    return SimpleNamespace(data=data, features=lambda source, name: features(source))


def _blurred(source):
    """Class 0 apart, classes 1 and 2 on one heap."""
    rng = np.random.default_rng(source.size)
    label = source.arrays["label"]
    return np.c_[label == 0, label > 0] + 0.01 * rng.normal(size=(len(label), 2))


def test_balancedness_by_hand():
    assert balancedness.balancedness([0.3, 0.3, 0.3]) == 1
    expected = (2 + 2 * np.exp(-0.25 / 0.5)) / 4
    np.testing.assert_allclose(balancedness.balancedness([0.5, 1.0], sigma=0.5), expected)
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        balancedness.balancedness([])


def test_classes_are_grouped_by_their_training_examples():
    groups = balancedness.grouped(np.array([101, 100, 21, 20, 1, 0]))
    np.testing.assert_array_equal(np.argmax(groups, 0)[:5], [0, 1, 1, 2, 2])
    assert not any(group[5] for group in groups)


def test_accuracy_of_each_group():
    found = balancedness.make().measure(_given(_blurred))
    assert found["balancedness/many"] == 1
    pair = found["balancedness/medium"] + found["balancedness/few"]
    np.testing.assert_allclose(pair, 1, atol=0.4)  # one heap, two classes of 40
    np.testing.assert_allclose(found["balancedness/all"], (1 + pair) / 3)
    assert found["balancedness/value"] < 0.95
    perfect = balancedness.make(source="balanced").measure(
        _given(lambda source: np.eye(3)[source.arrays["label"]])
    )
    assert set(perfect.values()) == {1.0} and set(perfect) == set(found)


def test_classes_of_a_balanced_part_are_grouped_as_of_a_long_tail():
    data = Splits(_source((90, 90, 90)), _source((40, 40, 40)), {"balanced": _source((300,) * 3)})
    given = SimpleNamespace(data=data, features=lambda source, name: _blurred(source))
    found = balancedness.make(source="balanced", imbalance=30).measure(given)  # 300, 54, 10
    assert found["balancedness/many"] == 1 and found["balancedness/few"] < 0.9
    own = balancedness.make(source="balanced").measure(given)
    assert "balancedness/few" not in own and own["balancedness/all"] == found["balancedness/all"]


def test_the_classifier_is_fitted_to_the_source_that_is_named():
    seen = []

    def features(source):
        seen.append(source.size)
        return np.eye(3)[source.arrays["label"]]

    balancedness.make(source="balanced").measure(_given(features))
    assert seen == [270, 120]
    assert balancedness.make(source="balanced").needs.sources == ("balanced",)


def test_features_that_are_nan_give_nan():
    found = balancedness.make().measure(_given(lambda s: np.full((s.size, 2), np.nan)))
    assert all(np.isnan(value) for value in found.values()) and len(found) == 6


def test_errors():
    with pytest.raises(ValueError, match="few=30 is above many=20"):
        balancedness.make(many=20, few=30)
    with pytest.raises(ValueError, match=r"imbalance=0\.5"):
        balancedness.make(imbalance=0.5)
