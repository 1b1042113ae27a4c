"""Packed folders: the residual coding against its definition."""

import os

import numpy as np
import pytest

from cl_jax.data import packed
from cl_jax.data.source import labels_of


def residuals_of(images):
    """The definition, pixel by pixel."""
    planes = images.astype(int).transpose(3, 0, 1, 2)
    if len(planes) == 3:
        planes = np.stack([planes[1], planes[0] - planes[1], planes[2] - planes[1]]) % 256
    out = np.empty(planes.shape, np.uint8)
    for c, n, y, x in np.ndindex(*planes.shape):
        p = planes[c, n]
        if y and x:
            a, b, corner = p[y, x - 1], p[y - 1, x], p[y - 1, x - 1]
            guess = (
                min(a, b)
                if corner >= max(a, b)
                else max(a, b)
                if corner <= min(a, b)
                else a + b - corner
            )
        else:
            guess = p[y, x - 1] if x else p[y - 1, x] if y else 0
        out[c, n, y, x] = (p[y, x] - guess) % 256
    return out


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return {channels: rng.integers(0, 256, (5, 4, 6, channels), np.uint8) for channels in (1, 3)}


def write(folder, label=None, **arrays):
    folder.mkdir(exist_ok=True)
    for part in ("train", "test"):
        np.savez(
            folder / f"{part}.npz",
            label=np.arange(5, dtype=np.uint8) % 3 if label is None else label,
            **arrays,
        )
    return str(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_unpack_undoes_the_residuals(images, channels):
    np.testing.assert_array_equal(packed.unpack(residuals_of(images[channels])), images[channels])


def test_plain_packed_and_grey_files(tmp_path, images):
    plain = packed.make(path=write(tmp_path / "plain", image=images[3])).train
    coded = packed.make(
        path=write(tmp_path / "coded", **{"image.res": residuals_of(images[3])})
    ).train
    for source in (plain, coded):
        np.testing.assert_array_equal(source.arrays["image"], images[3])
        np.testing.assert_array_equal(labels_of(source), np.arange(5) % 3)
        assert source.sizes == {"label": 3} and source.arrays["label"].dtype == np.int32
    grey = write(tmp_path / "grey", image=images[1][..., 0])
    assert packed.make(path=grey).test.read(0)["image"].shape == (4, 6, 1)
    np.testing.assert_array_equal(
        packed.make(path=grey, channels=3).test.arrays["image"], np.repeat(images[1], 3, -1)
    )


def test_unpacked_images_are_kept_and_renewed(tmp_path, images, monkeypatch):
    path, cache = (
        write(tmp_path / "x", **{"image.res": residuals_of(images[3])}),
        str(tmp_path / "cache"),
    )
    packed.make(path=path, cache_dir=cache)
    with monkeypatch.context() as patch:
        patch.setattr(packed, "unpack", None)
        np.testing.assert_array_equal(
            packed.make(path=path, cache_dir=cache).train.arrays["image"], images[3]
        )
    write(tmp_path / "x", **{"image.res": residuals_of(images[3][:, ::-1])})
    np.testing.assert_array_equal(
        packed.make(path=path, cache_dir=cache).train.arrays["image"], images[3][:, ::-1]
    )


def test_errors(tmp_path, images):
    with pytest.raises(FileNotFoundError, match=r"train.npz is missing; data.path"):
        packed.make(path=str(tmp_path))
    path = write(tmp_path / "x", image=images[3])
    with pytest.raises(ValueError, match="has no field 'picture'; it has label, image"):
        packed.make(path=path, image_field="picture")
    with pytest.raises(ValueError, match="3 channels and channels=1"):
        packed.make(path=path, channels=1)


@pytest.mark.slow
@pytest.mark.skipif("CL_JAX_CIFAR10" not in os.environ, reason="CL_JAX_CIFAR10 names no folder")
def test_cifar10(tmp_path):
    splits = packed.make(path=os.environ["CL_JAX_CIFAR10"], cache_dir=str(tmp_path))
    assert (splits.train.size, splits.test.size) == (50_000, 10_000)
    np.testing.assert_array_equal(np.bincount(labels_of(splits.train)), [5_000] * 10)
    # The published mean colour of the training images.
    mean = splits.train.arrays["image"].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=5e-4)
