"""Data sets of TensorFlow Datasets, without TensorFlow: small ones that TFDS prepares here."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_jax.data import tfds as ours
from cl_jax.data.source import fraction, labels_of


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two sets prepared by TFDS itself: `tiny_grey`, 12 x 12 of one channel, and `tiny_mixed`,
    colour of any size."""
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    folder = str(tmp_path_factory.mktemp("tfds"))

    def build(name, shape, size_of):
        def examples(count):
            for i in range(count):
                pixels = np.full((*size_of(i), shape[-1]), 20 * i, np.uint8)
                yield (
                    i,
                    {
                        "image": png(pixels[..., 0] if shape[-1] == 1 else pixels),
                        "label": i % 3,
                        "note": "x",
                    },
                )

        def info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "note": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["ant", "bee", "cat"]),
                }
            )
            return self.dataset_info_from_configs(features=features)

        with tfds.core.registered.skip_registration():
            builder = type(
                name,
                (tfds.core.GeneratorBasedBuilder,),
                {
                    "name": name,
                    "VERSION": tfds.core.Version("1.0.0"),
                    "__module__": __name__,
                    "_info": info,
                    "pkg_dir_path": Path(folder),
                    "_split_generators": lambda self, dl_manager: {
                        "train": examples(9),
                        "test": examples(6),
                    },
                    "_generate_examples": lambda self: iter(()),
                },
            )
        builder(data_dir=folder, file_format="array_record").download_and_prepare()

    build("tiny_grey", (12, 12, 1), lambda i: (12, 12))
    build("tiny_mixed", (None, None, 3), lambda i: (10 + i, 20 - i))
    return folder


@pytest.mark.parametrize("cache_bytes", [10**9, 0])
def test_a_set_of_one_size(prepared, cache_bytes):
    splits = ours.make(dataset="tiny_grey", data_dir=prepared, cache_bytes=cache_bytes)
    assert (splits.train.size, splits.test.size) == (9, 6) and splits.train.sizes == {"label": 3}
    assert splits.test.classes == {"label": ("ant", "bee", "cat")}
    assert (splits.train.arrays is None) == (cache_bytes == 0)
    seen = []
    for i in range(9):
        example = splits.train.read(i)
        assert set(example) == {"image", "label"} and example["image"].shape == (12, 12, 1)
        assert example["image"].dtype == np.uint8 and example["label"].dtype == np.int32
        number = int(example["image"][0, 0, 0]) // 20
        assert example["label"] == number % 3
        seen.append(number)
    assert sorted(seen) == list(range(9))
    np.testing.assert_array_equal(labels_of(splits.train), np.array(seen) % 3)
    np.testing.assert_array_equal(
        np.bincount(labels_of(fraction(splits.train, 2 / 3, seed=0))), [2, 2, 2]
    )
    assert "tensorflow" not in sys.modules


def test_channels_sizes_splits_and_labels_can_be_chosen(prepared):
    image = ours.make(dataset="tiny_grey", data_dir=prepared, channels=3, image_size=6).train.read(
        0
    )["image"]
    assert image.shape == (6, 6, 3) and np.ptp(image) == 0
    splits = ours.make(
        dataset="tiny_mixed",
        data_dir=prepared,
        image_size=7,
        train_split="train[:5]",
        test_split="train[5:]",
        unlabeled_split="test",
        cache_bytes=0,
    )
    assert (splits.train.size, splits.test.size, splits.more["unlabeled"].size) == (5, 4, 6)
    assert {splits.train.read(i)["image"].shape for i in range(5)} == {(7, 7, 3)}
    assert splits.more["unlabeled"].sizes == {} and set(splits.more["unlabeled"].read(0)) == {
        "image"
    }
    assert ours.make(dataset="tiny_grey", data_dir=prepared, label_key="").train.sizes == {}


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(dataset="tiny_mixed"), "mixed sizes; set image_size"),
        (
            dict(dataset="tiny_grey", test_split="validation"),
            "no split 'validation'.*has train, test. Set test_split",
        ),
        (dict(dataset="tiny_grey", train_split="train[:0%]"), "Set train_split"),
        (
            dict(dataset="tiny_grey", image_key="picture"),
            "no image feature 'picture'; it has image .Image., label",
        ),
        (dict(dataset="tiny_grey", label_key="note"), "no class feature 'note'"),
        (dict(dataset="tiny_grey", channels=4), "1 channels, and channels=4 was asked for"),
        (dict(dataset="no_such_set"), "'no_such_set' is unknown to TensorFlow Datasets"),
    ],
)
def test_errors(prepared, settings, words):
    with pytest.raises(ValueError, match=words):
        ours.make(data_dir=prepared, **settings)


def test_a_missing_set_says_what_prepares_it(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    command = f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}"
    with pytest.raises(ValueError, match=f"not prepared in .*download=True.*{command}"):
        ours.make(dataset="cifar10", data_dir=str(tmp_path), download=False)

    def fails(self, **settings):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fails)
    with pytest.raises(ValueError, match=f"ConnectionError: no network.*{command}"):
        ours.make(dataset="cifar10", data_dir=str(tmp_path))
