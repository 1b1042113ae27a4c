"""Patches: where they lie, and views of each by itself."""

import jax
import numpy as np
import pytest

from cl_jax.views import make, patches, warp
from tests.losses.compiled import program

IMAGES = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 2)
augment = program(patches.augment)
PLAIN = make({"crop": "none", "flip": 0.0, "mean": None, "std": None}).recipe


def test_patches_are_windows_of_the_image():
    cut = patches.grid(IMAGES, size=4, stride=2)
    assert cut.shape == (2, 3, 3, 4, 4, 3)
    np.testing.assert_array_equal(cut[1, 2, 1], IMAGES[1, 4:8, 2:6])


def test_a_plain_view_is_the_patch():
    cut = patches.grid(IMAGES, size=4, stride=2)
    np.testing.assert_allclose(augment(PLAIN, KEYS, cut), cut, atol=1e-6)


def test_a_sub_crop_is_a_part_of_the_patch_in_the_middle_of_zeros():
    cut = patches.grid(IMAGES, size=4, stride=4)
    seen = np.asarray(augment(PLAIN, KEYS, cut, subcrop=2))
    inner = seen[..., 1:3, 1:3, :]
    outer = seen.copy()
    outer[..., 1:3, 1:3, :] = 0
    assert (outer == 0).all()
    windows = np.lib.stride_tricks.sliding_window_view(
        np.asarray(cut), (2, 2), axis=(3, 4)
    )  # [..., 3, 3, C, 2, 2]
    for place in np.ndindex(2, 2, 2):
        found = np.abs(windows[place].transpose(0, 1, 3, 4, 2) - inner[place]).max((2, 3, 4)).min()
        assert found < 1e-6


def test_dropped_channels_leave_one():
    cut = patches.grid(IMAGES, size=4, stride=2)
    seen = np.asarray(augment(PLAIN, KEYS, cut, drop_channels=1.0))
    assert ((np.abs(seen).max((3, 4)) > 0).sum(-1) == 1).all()


def test_a_view_is_its_examples_and_its_places():
    flipping = make({"crop": "none", "flip": 0.5, "mean": None, "std": None}).recipe
    cut = patches.grid(np.concatenate([IMAGES] * 8), size=4, stride=2)
    keys = jax.random.split(jax.random.key(1), 16)
    seen = np.asarray(augment(flipping, keys, cut))
    order = np.random.default_rng(2).permutation(16)
    np.testing.assert_allclose(augment(flipping, keys[order], cut[order]), seen[order], atol=1e-6)
    flipped = np.abs(seen - cut).max((3, 4, 5)) > 1e-6
    assert 0.3 < flipped.mean() < 0.7 and (flipped.any((1, 2)) & ~flipped.all((1, 2))).any()


def test_errors():
    with pytest.raises(ValueError, match="do not fill an image of 8; images of 7 or 9 they do"):
        patches.grid(IMAGES, size=5, stride=2)
    cut = patches.grid(IMAGES, size=4, stride=2)
    with pytest.raises(ValueError, match="subcrop=5; expected 1 to 4"):
        patches.augment(PLAIN, KEYS, cut, subcrop=5)
    with pytest.raises(ValueError, match="drop_channels is 2; expected a number from 0 to 1"):
        patches.augment(PLAIN, KEYS, cut, drop_channels=2)
    with pytest.raises(ValueError, match="one key per example"):
        patches.augment(PLAIN, KEYS[:1], cut)


def test_warped_patches_are_bent_each_by_itself():
    cut = patches.grid(np.concatenate([IMAGES] * 8), size=4, stride=2)
    keys = jax.random.split(jax.random.key(1), 16)
    bend = warp.Warp(probability=0.5)
    seen = np.asarray(augment(PLAIN, keys, cut, warp=bend))
    bent = np.abs(seen - cut).max((3, 4, 5)) > 1e-5
    assert 0.3 < bent.mean() < 0.7 and (bent.any((1, 2)) & ~bent.all((1, 2))).any()
    inside = seen.min((3, 4)) >= np.asarray(cut).min((3, 4)) - 1e-6
    assert inside.all() and seen.max() <= cut.max() + 1e-6
