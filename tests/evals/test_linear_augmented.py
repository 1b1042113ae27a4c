"""The augmented probe: its settings and its examples. What it computes: `test_linear.py`."""

import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import linear_augmented, requirements
from cl_jax.views.image import make as image_view


def test_examples_without_a_label_are_left_out():
    image = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    arrays = {"image": image, "label": np.array([0, -1, 2, -1], np.int32)}
    source = from_arrays("four", arrays, {"label": 3})
    kept = linear_augmented.labelled(source, "label")
    assert kept.size == 2 and [int(kept.read(i)["image"][0, 0, 0]) for i in range(2)] == [0, 2]
    arrays = arrays | {"label": np.array([0, 1, 2, 1], np.int32)}
    whole = from_arrays("four", arrays, {"label": 3})
    assert linear_augmented.labelled(whole, "label") is whole


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"learning_rate": -1.0}])
def test_settings_out_of_range_are_refused_before_anything_is_trained(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        linear_augmented.make(**settings)


def test_it_says_what_it_needs_and_which_way_is_better():
    found = linear_augmented.make(label="kind")
    assert found.needs.labels == ("kind",) and found.needs.fields == ("image",)
    assert found.when == "asked" and found.better == {"linear/augmented/top1": 1}


@pytest.mark.parametrize(
    ("features", "clean", "recipes", "words"),
    [(None, abs, (), "has no features"), (abs, None, (), "has no clean"), (abs, abs, (), "none")],
)
def test_a_method_without_augmented_images_is_one_sentence(features, clean, recipes, words):
    method = types.SimpleNamespace(features=features, clean=clean)
    given = types.SimpleNamespace(method=method, recipes=recipes, data=(None, None))
    with pytest.raises(ValueError, match=f"augmented images, and this one .*{words}"):
        linear_augmented.make().measure(given)


@pytest.mark.parametrize("views", [(), (object(),)])
def test_a_method_without_augmented_images_is_refused_when_the_run_is_built(views):
    image, label = np.zeros((4, 2, 2, 1), np.uint8), np.arange(4, dtype=np.int32) % 2
    source = from_arrays("four", {"image": image, "label": label}, {"label": 2})
    method = types.SimpleNamespace(functions={}, features=abs, clean=abs)
    config = ConfigDict({"evals": {}})
    evaluators, data = {"own": linear_augmented.make()}, Splits(source, source)
    seen = image_view(name="simclr", size=2)
    requirements.check(evaluators, method, data, config, None, (seen,))
    with pytest.raises(ConfigError, match=r"own: .* and this one sees none.*protocols.own=None"):
        requirements.check(evaluators, method, data, config, None, views)
