"""Configs of imported networks: what the images of a run of them are."""

import pytest

from cl_jax.training import defaults
from cl_jax.weights import runs
from cl_jax.weights.importing import Imported


def imported(section, **preprocessing):
    return Imported(section, {}, {}, "timm", (), (), (), "", (), preprocessing)


@pytest.mark.parametrize(
    ("preprocessing", "section", "given", "size"),
    [
        ({}, {"name": "resnet"}, 0, 224),
        ({}, {"name": "vit", "image_size": 384}, 0, 384),
        ({"crop_size": {"height": 160, "width": 160}}, {"name": "resnet"}, 0, 160),
        ({"size": {"shortest_edge": 256}}, {"name": "resnet"}, 0, 256),
        ({"size": 256}, {"name": "resnet"}, 96, 96),
    ],
)
def test_the_side_of_the_images(preprocessing, section, given, size):
    config = runs.config_of(imported(section, **preprocessing), "w.pth", image_size=given)
    assert config.views.one.size == size
    assert config.data.image_size == round(size / 0.875)  # what the crop is cut from
    kind = "bicubic" if section["name"] == "vit" else "bilinear"
    assert config.views.one.interpolation == kind


def test_images_are_normalised_as_the_file_says_or_as_told():
    found = imported({"name": "resnet"}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    view = runs.config_of(found, "w.pth").views.one
    assert (view.mean, view.std) == ((0.5,) * 3, (0.25,) * 3)
    view = runs.config_of(found, "w.pth", mean=(0.0,) * 3, std=(1.0,) * 3).views.one
    assert (view.mean, view.std) == ((0.0,) * 3, (1.0,) * 3)
    view = runs.config_of(imported({"name": "resnet"}), "w.pth").views.one
    assert view.mean == defaults.NORMALISED["mean"]
