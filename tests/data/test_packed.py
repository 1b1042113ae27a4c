"""Packed folders: the residual coding against its definition."""

import os

import numpy as np
import pytest

from cl_jax.core.errors import NotFoundError
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


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "appended"])
def test_damaged_kept_images_are_unpacked_anew(tmp_path, images, how, caplog):
    path, cache = write(tmp_path / "x", image=images[3]), tmp_path / "cache"
    packed.make(path=path, cache_dir=str(cache))
    for file in cache.glob("train*.npy"):
        data = bytearray(file.read_bytes())
        if how == "flipped":
            data[-40] ^= 1
        file.write_bytes(
            {"cut": data[:-9], "flipped": data, "empty": b"", "appended": data + b"x"}[how]
        )
    with caplog.at_level("WARNING"):
        for _ in range(2):
            found = packed.make(path=path, cache_dir=str(cache)).train.arrays["image"]
            np.testing.assert_array_equal(found, images[3])
    assert caplog.text.count("is damaged; unpacking it again") == 1  # it is mended


def test_kept_images_are_found_by_content_not_by_time(tmp_path, images):
    """A file of equal size and time with other content, as `cp -p` and restored backups make."""
    path, cache = write(tmp_path / "x", image=images[3]), str(tmp_path / "cache")
    packed.make(path=path, cache_dir=cache)
    file = tmp_path / "x" / "train.npz"
    status = file.stat()
    write(tmp_path / "x", image=images[3][::-1])
    assert file.stat().st_size == status.st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = packed.make(path=path, cache_dir=cache).train.arrays["image"]
    np.testing.assert_array_equal(found, images[3][::-1])


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, images, caplog):
    path = write(tmp_path / "x", image=images[3])
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level("WARNING"):
        found = packed.make(path=path, cache_dir=str(tmp_path / "cache")).train.arrays["image"]
    np.testing.assert_array_equal(found, images[3])
    assert "are not kept" in caplog.text


@pytest.mark.parametrize("compressed", [False, True])
def test_every_damage_is_one_error_that_names_the_file(tmp_path, images, compressed):
    """Of each byte of the archive's own structure, and of cuts at every length."""
    path = write(tmp_path / "x", image=images[3])
    file = tmp_path / "x" / "train.npz"
    if compressed:
        np.savez_compressed(file, image=images[3], label=np.arange(5) % 3)
    whole, seen = file.read_bytes(), 0
    rng = np.random.default_rng(0)
    changed = [whole[:size] for size in range(0, len(whole), 7)]
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        changed.append(bytes(damaged))
    for data in changed:
        file.write_bytes(data)
        try:
            found = packed.make(path=path).train
        except ValueError as error:
            seen += 1
            assert "train" in str(error), error
        else:  # a byte that nothing depends on: a time, an attribute
            np.testing.assert_array_equal(found.arrays["image"], images[3])
    assert seen > len(whole) // 2


@pytest.mark.parametrize(
    "label, classes",
    [
        ([0, 1, 2**32, 2**32 + 1, 0], 4),
        ([2**33, 2**33 + 5, 2**33, 2**33, 2**33], 2),
        ([3, 700, 3, 3, -1], 2),
        ([0, 2**31 - 1, 0, 0, 0], 2),
        (np.array([2**63, 5, 5, 5, 5], np.uint64), 2),
    ],
)
def test_sparse_labels_are_numbered_anew(tmp_path, images, label, classes, caplog):
    label = np.asarray(label)
    with caplog.at_level("WARNING"):
        found = packed.make(path=write(tmp_path / "x", label, image=images[3])).train
    kept = found.arrays["label"]
    assert found.sizes == {"label": classes} and kept.dtype == np.int32
    given = label[label >= 0]
    np.testing.assert_array_equal(kept[label >= 0], np.unique(given, return_inverse=True)[1])
    assert (kept[label < 0] == -1).all()
    assert "are numbered 0 to" in caplog.text


@pytest.mark.parametrize(
    "label, how, words",
    [
        (["cat"] * 5, {}, "label has elements of type <U3"),
        ([0.0] * 5, {}, r"label is float64\[5\] beside 5 images; expected one integer"),
        ([-2, 0, 0, 0, 0], {}, "label goes down to -2; expected 0 or more, or -1"),
        ([0, 1, 2, 3, 2**32], dict(num_classes=4), "label goes up to 4294967296; expected 0 to 3"),
        ([0, 1, 2, 3, 4], dict(num_classes=0), "since num_classes has no classes"),
    ],
)
def test_labels_that_are_none(tmp_path, images, label, how, words):
    with pytest.raises(ValueError, match=words):
        packed.make(path=write(tmp_path / "x", np.asarray(label), image=images[3]), **how)


def test_unlabelled_examples(tmp_path, images):
    path = write(tmp_path / "x", np.array([0, -1, 1, 1, -1]), image=images[3])
    np.savez(tmp_path / "x" / "unlabeled.npz", image=images[3][:2])
    splits = packed.make(path=path)
    assert splits.train.arrays["label"].tolist() == [0, -1, 1, 1, -1]
    assert splits.more["unlabeled"].size == 2 and splits.more["unlabeled"].sizes == {}
    assert packed.make(path=path, label_field="").train.sizes == {}
    none = packed.make(path=write(tmp_path / "y", np.full(5, -1), image=images[3])).train
    assert none.sizes == {} and set(none.arrays) == {"image"}


def test_images_in_both_parts_are_told(tmp_path, images, caplog):
    path = write(tmp_path / "x", image=images[3])
    with caplog.at_level("WARNING"):
        packed.make(path=path)
    assert "5 of the 5 test examples are in the training part too (test example 0 is" in caplog.text
    np.savez(tmp_path / "x" / "test.npz", image=255 - images[3], label=np.arange(5) % 3)
    caplog.clear()
    packed.make(path=path)
    assert not caplog.text


def test_errors(tmp_path, images):
    with pytest.raises(ValueError, match=r"path is empty; set --config.data.path"):
        packed.make(path="")
    with pytest.raises(NotFoundError, match=r"train.npz is missing; data.path"):
        packed.make(path=str(tmp_path))
    path = write(tmp_path / "x", image=images[3])
    with pytest.raises(ValueError, match="has no field 'picture'; it has label, image"):
        packed.make(path=path, image_field="picture")
    with pytest.raises(ValueError, match="3 channels and channels=1"):
        packed.make(path=path, channels=1)
    path = write(tmp_path / "pytorch", image=np.zeros((4, 3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="channels before rows and columns"):
        packed.make(path=path)


@pytest.mark.slow
@pytest.mark.skipif("CL_JAX_CIFAR10" not in os.environ, reason="CL_JAX_CIFAR10 names no folder")
def test_cifar10(tmp_path):
    splits = packed.make(path=os.environ["CL_JAX_CIFAR10"], cache_dir=str(tmp_path))
    assert (splits.train.size, splits.test.size) == (50_000, 10_000)
    np.testing.assert_array_equal(np.bincount(labels_of(splits.train)), [5_000] * 10)
    # The published mean colour of the training images.
    mean = splits.train.arrays["image"].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=5e-4)
