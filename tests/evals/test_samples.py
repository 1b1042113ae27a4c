"""Figures of generated images, with real images in the place of samples."""

import dataclasses
import sys
import types

import numpy as np
import pytest
from PIL import Image

from cl_jax.data import digits
from cl_jax.data.source import Splits, from_arrays, subset
from cl_jax.evals import Given, samples
from cl_jax.evals.generated import frechet_distance, gaussian


@pytest.fixture(scope="module")
def data():
    train, test = digits.make()[:2]
    return Splits(subset(train, np.arange(500)), test)


def given(data, workdir, change=lambda image, label: (image, label)):
    """Samples are the training images themselves, changed."""

    def rows(name, source):
        image, label = change(source.arrays["image"], source.arrays["label"])
        return {"image": image, "label": label}

    fields = dict.fromkeys(Given._fields)
    return Given(**(fields | dict(data=data, rows=rows, seed=0, workdir=workdir)))


def test_real_images_are_good_samples(data, tmp_path):
    evaluator = samples.make()
    found = evaluator.measure(given(data, tmp_path))
    flat = [part.arrays["image"].reshape(part.size, -1) / 255 for part in data[:2]]
    expected = frechet_distance(*(gaussian(x) for x in flat))
    assert found["samples/frechet"] == pytest.approx(expected) and expected < 0.3
    assert found["samples/label_accuracy"] > 0.99 and found["samples/inception_score"] > 8
    base = evaluator.baseline(given(data, tmp_path))
    assert base["samples/frechet_of_training_images"] == pytest.approx(expected)
    assert 0.9 < base["samples/label_accuracy_of_test_images"] < 1


def test_images_on_a_disk_are_judged_as_those_in_memory(data, tmp_path, monkeypatch):
    def on_a_disk(part):
        return dataclasses.replace(part, arrays=None, labels=part.arrays.__getitem__)

    evaluator = samples.make(samples=400)
    one, other = given(data, tmp_path), given(Splits(*map(on_a_disk, data[:2])), tmp_path)
    chosen = np.linspace(0, 499, 400).astype(int)
    other = other._replace(rows=lambda name, source: one.rows(name, subset(data.train, chosen)))
    assert evaluator.measure(other) == evaluator.measure(one)
    assert evaluator.baseline(other) == evaluator.baseline(one)
    monkeypatch.setattr(samples, "FITTED", 300)  # of 500: the whole is not read
    assert evaluator.measure(other)["samples/label_accuracy"] > 0.9
    base = evaluator.baseline(other)
    assert 0.9 < base["samples/label_accuracy_of_test_images"] < 1
    assert base["samples/frechet_of_training_images"] < 0.5


def test_a_class_is_asked_for_by_labelled_examples_alone(data, tmp_path):
    label = np.where(np.arange(500) % 2, data.train.arrays["label"], -1)
    arrays = dict(data.train.arrays) | {"label": label.astype(np.int32)}
    half = from_arrays("half", arrays, data.train.sizes)
    found = samples.make(samples=100).measure(given(data._replace(train=half), tmp_path))
    assert found["samples/label_accuracy"] > 0.99


def test_few_samples_of_sorted_examples_are_of_all_classes(data, tmp_path, monkeypatch):
    """As a folder has them; each of two parts of the score has all classes too. Judges that know
    what was asked for stand in."""
    by_class = subset(data.train, np.argsort(data.train.arrays["label"], kind="stable"))
    asked = []

    def seen(image, label):
        asked.append(label)
        return image, label

    judges = samples.Judges(lambda _: asked[-1], lambda _: np.eye(10)[asked[-1]], None)
    monkeypatch.setattr(samples, "_judges", lambda *_: judges)
    evaluator = samples.make(samples=100, splits=2)
    found = evaluator.measure(given(data._replace(train=by_class), tmp_path, seen))
    assert len(asked[0]) == 100 and (np.bincount(asked[0], minlength=10) >= 8).all()
    assert found["samples/inception_score"] > 8  # 5 of parts that are one half of the classes each


def test_names_mixed_up_and_one_image_alone(data, tmp_path):
    evaluator = samples.make(feature="classifier")
    mixed = evaluator.measure(given(data, tmp_path, lambda x, y: (x, (y + 3) % 10)))
    assert mixed["samples/label_accuracy"] < 0.01 and mixed["samples/renamed_accuracy"] > 0.99
    one = evaluator.measure(given(data, tmp_path, lambda x, y: (np.repeat(x[:1], len(x), 0), y)))
    assert one["samples/inception_score"] == pytest.approx(1, abs=1e-3)
    assert one["samples/frechet"] > 2 * mixed["samples/frechet"]


def test_a_feature_of_ones_own(data, tmp_path, monkeypatch):
    module = types.ModuleType("my_features")
    module.means = lambda images: images.reshape(len(images), 8, 8).mean(2) / 255.0
    monkeypatch.setitem(sys.modules, "my_features", module)
    found = samples.make(feature="my_features:means", samples=300).measure(given(data, tmp_path))
    chosen = data.train.arrays["image"][np.linspace(0, 499, 300).astype(int)]
    rows = module.means(chosen), module.means(data.test.arrays["image"])
    expected = frechet_distance(*map(gaussian, rows))
    assert found["samples/frechet"] == pytest.approx(expected)
    for wrong in ("inception", "my_features:medians", "nowhere:f"):
        with pytest.raises(ValueError, match="Expected pixels, classifier, or module:function"):
            samples.make(feature=wrong)


def test_the_picture_has_a_row_for_each_class(data, tmp_path):
    samples.make().draw(given(data, tmp_path))
    picture = np.asarray(Image.open(tmp_path / "generated.png").convert("L"))
    side = 48 + 2
    assert picture.shape == (10 * side - 2, samples.COLUMNS * side - 2)
    image, label = data.train.arrays["image"], data.train.arrays["label"]
    row = image[label == 4][:3, ..., 0]
    tiles = [picture[4 * side : 4 * side + 48, j * side : j * side + 48] for j in range(3)]
    for tile, one in zip(tiles, row):
        np.testing.assert_allclose(tile[3::6, 3::6].astype(int), one, atol=1)
