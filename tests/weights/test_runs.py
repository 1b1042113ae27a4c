"""Configs of imported networks: what the images of a run of them are."""

import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.method import State
from cl_jax.training import checkpoint, configs, defaults, experiment
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


def test_a_run_is_of_images_in_colour(tmp_path):
    with pytest.raises(ConfigError, match="image_size=-3; expected pixels, or 0"):
        runs.config_of(imported({"name": "resnet"}), "w.pth", image_size=-3)
    found = imported({"name": "resnet"})
    grey = found._replace(params={"stem_conv1": {"kernel": np.zeros((7, 7, 1, 8))}})
    with pytest.raises(ConfigError, match=r"w\.pth is a network of images with 1 channels"):
        runs.make(grey, runs.config_of(grey, "w.pth"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_import_that_could_not_be_saved_is_made_by_the_same_command(tmp_path, monkeypatch):
    state = State(jnp.int32(0), {"w": jnp.ones(3)}, (), {})
    monkeypatch.setattr(experiment, "build", lambda *_: None)
    monkeypatch.setattr(experiment, "initial_state", lambda *_: None)
    monkeypatch.setattr(runs.importing, "put", lambda *_: state)
    write, full = checkpoint._write, [True]

    def fails_once(*args):
        if full:
            full.pop()
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(checkpoint, "_write", fails_once)
    found = imported({"name": "resnet"})
    found = found._replace(params={"stem_conv1": {"kernel": np.zeros((7, 7, 3, 8))}})
    with pytest.raises(SaveError, match="No space left"):
        runs.make(found, runs.config_of(found, "w.pth"), tmp_path)
    assert (tmp_path / "config.json").exists()
    runs.make(found, runs.config_of(found, "w.pth", image_size=96), tmp_path)
    assert checkpoint.are_in(tmp_path) and configs.of_run(tmp_path).views.one.size == 96
    with pytest.raises(ConfigError, match="holds a run already"):
        runs.make(found, runs.config_of(found, "w.pth"), tmp_path)


def test_an_import_leaves_a_training_that_has_saved_nothing_yet(tmp_path):
    (tmp_path / "config.json").write_text(configs.load("simclr_v1:debug").to_json_best_effort())
    found = imported({"name": "resnet"})
    with pytest.raises(ConfigError, match="holds a run already"):
        runs.make(found, runs.config_of(found, "w.pth"), tmp_path)


def test_images_are_normalised_as_the_file_says_or_as_told():
    found = imported({"name": "resnet"}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    view = runs.config_of(found, "w.pth").views.one
    assert (view.mean, view.std) == ((0.5,) * 3, (0.25,) * 3)
    view = runs.config_of(found, "w.pth", mean=(0.0,) * 3, std=(1.0,) * 3).views.one
    assert (view.mean, view.std) == ((0.0,) * 3, (1.0,) * 3)
    view = runs.config_of(imported({"name": "resnet"}), "w.pth").views.one
    assert view.mean == defaults.NORMALISED["mean"]
