"""`packed`: folders with `train.npz` and `test.npz`, images as they are or losslessly packed.

A packed image array uint8 [N, H, W, C] is stored under `<field>.res` as [C, N, H, W] residuals
modulo 256. Three channels are first turned into the planes G, R - G, B - G. A pixel's residual is
its difference from a prediction: along the first row the pixel on its left, along the first column
the one above, elsewhere the median edge predictor of the left (a), upper (b) and upper-left (c)
neighbours: min(a, b) where c >= max(a, b), max(a, b) where c <= min(a, b), else a + b - c.
"""

import hashlib
import io
import math
import os
import pathlib
import zipfile

import numpy as np
from absl import logging

from cl_jax.core.errors import NotFoundError
from cl_jax.core.paths import user_path
from cl_jax.data import kept
from cl_jax.data.images import printable
from cl_jax.data.labels import numbered
from cl_jax.data.parts import warn_of_duplicates
from cl_jax.data.source import Splits, from_arrays, with_channels

MAX_BYTES = 2**34  # of one array, unpacked
_PACKED = ".res"


def make(
    *,
    path: str,
    channels: int | None = None,
    image_field: str = "image",
    label_field: str = "label",
    num_classes: int | None = None,
    cache_dir: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> Splits:
    """Reads `path`/train.npz, `path`/test.npz and, where there is one, `path`/unlabeled.npz into
    memory. Nothing in them is executed: object arrays are refused.

    Args:
      channels: 3 repeats grey images; None keeps what is there, any number.
      image_field, label_field: their names in the files; here they become "image" and "label".
        label_field="" for images without labels. A label of -1 is none.
      num_classes: None for the largest label of the train part plus one; labels far above the
        number of examples are then renumbered (`labels.numbered`).
      cache_dir: where unpacked images are kept for the next run, under a name made from the file's
        content, with a checksum that is looked at; None for nowhere.
      max_bytes: an array that declares more is refused before memory is taken for it.

    Raises:
      FileNotFoundError: a part is missing.
      ValueError: names the file: no archive, damaged or too short, without the fields, images that
        are not uint8, labels that are not integers, of another number, or outside the classes.
    """
    if not path:
        raise ValueError(
            "path is empty; set --config.data.path to the folder with train.npz and test.npz."
        )
    folder = user_path(path)
    parts = ["train", "test"]
    if (folder / "unlabeled.npz").exists():
        parts.append("unlabeled")
    arrays: dict[str, dict[str, np.ndarray]] = {}
    labels: dict[str, np.ndarray] = {}
    for part in parts:
        file = folder / f"{part}.npz"
        if not file.exists():
            raise NotFoundError(
                f"{file} is missing; data.path must name a folder with train.npz and test.npz."
            )
        name = f"{folder.name}/{part}"
        image = with_channels(_images(file, image_field, cache_dir, max_bytes), channels, name)
        if not len(image):
            raise ValueError(f"{file}: {image_field} holds no image; expected at least one.")
        arrays[part] = {"image": image}
        if label_field and part != "unlabeled":
            labels[part] = _labels(file, label_field, len(image), max_bytes)
    sizes: dict[str, int] = {}
    if labels:
        numbers, count = numbered(str(folder), label_field, labels, num_classes)
        if count:
            sizes = {"label": count}
            for part, values in numbers.items():
                arrays[part]["label"] = values
    found = {
        part: from_arrays(f"{folder.name}/{part}", rows, sizes if "label" in rows else {})
        for part, rows in arrays.items()
    }
    warn_of_duplicates(found["train"], found["test"])
    return Splits(found.pop("train"), found.pop("test"), found)


def load_field(file: str | os.PathLike, field: str, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """One array of a packed file, unpacked where it is packed.

    Raises:
      ValueError: names the file; no archive, no such field, not an array of plain numbers, more
        than `max_bytes`, damaged, shorter than it says, or residuals that are not images.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [
                name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")
            ]
            for name in (field, field + _PACKED):
                if name in names:
                    array = _read(archive, name, file, max_bytes)
                    return array if name == field else unpack(_residuals(array, file, name))
    except _Damage:
        raise
    # A damaged archive makes zipfile and the decompressors raise nearly anything: BadZipFile,
    # OSError, NotImplementedError, struct.error, UnicodeDecodeError, ...
    except Exception as error:
        raise _Damage(
            f"{file} is not a whole .npz archive ({printable(str(error))}). Make or copy it again."
        ) from error
    raise _Damage(
        f"{file} has no field {field!r}; it has "
        f"{', '.join(printable(n.removesuffix(_PACKED)) for n in names)}."
    )


class _Damage(ValueError):
    """An error that names the file already."""


def _read(
    archive: zipfile.ZipFile, name: str, file: str | os.PathLike, max_bytes: int
) -> np.ndarray:
    """The array of a member. Its header is read first, so that neither a type nor a size in it is
    believed."""
    with archive.open(f"{name}.npy") as member:
        try:
            version = np.lib.format.read_magic(member)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = header(member)
        except zipfile.BadZipFile:  # of the archive, not of the array in it
            raise
        except Exception as error:
            raise _Damage(
                f"{file}: {name} is not a NumPy array ({error}). Write it with numpy.savez."
            ) from error
        if dtype.kind not in "biuf":
            raise _Damage(
                f"{file}: {name} has elements of type {dtype}; expected plain numbers. Objects "
                f"are never "
                "read: they could run code. Save it with a numeric dtype."
            )
        size, there = math.prod(shape) * dtype.itemsize, archive.getinfo(f"{name}.npy").file_size
        if size > max_bytes:
            raise _Damage(
                f"{file}: {name} is {dtype}{list(shape)}, {size:,} bytes unpacked, more than "
                f"max_bytes="
                f"{max_bytes:,}. If that is right, raise --config.data.max_bytes; else the file "
                f"is damaged."
            )
        if size > there:
            raise _Damage(
                f"{file}: {name} is {dtype}{list(shape)}, {size:,} bytes, and has {there:,}. It "
                f"was cut "
                "short: make or copy the file again."
            )
    with archive.open(f"{name}.npy") as member:
        try:
            return np.lib.format.read_array(member, allow_pickle=False)
        except zipfile.BadZipFile:
            raise
        except Exception as error:  # also what the decompressor raises in the middle of it
            raise _Damage(
                f"{file}: {name} is damaged ({error}). Make or copy the file again."
            ) from error


def _residuals(array: np.ndarray, file: str | os.PathLike, name: str) -> np.ndarray:
    if array.ndim != 4 or array.dtype != np.uint8:
        raise _Damage(
            f"{file}: {name} is {array.dtype}{list(array.shape)}; expected residuals uint8 [C, N, "
            f"H, W]."
        )
    return array


def _labels(file: pathlib.Path, field: str, count: int, max_bytes: int) -> np.ndarray:
    labels = load_field(file, field, max_bytes)
    if labels.dtype.kind not in "iub" or labels.shape != (count,):
        raise ValueError(
            f"{file}: {field} is {labels.dtype}{list(labels.shape)} beside {count} images; "
            "expected one integer for each, -1 for an image without a label."
        )
    return labels


def unpack(residuals: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, C] from residuals uint8 [C, N, H, W]. Arithmetic is modulo 256 in the
    sums only."""
    channels, count, height, width = residuals.shape
    # Pixel-major, so that each pixel is one operation over the images; its neighbours must be known
    # before it.
    left = np.ascontiguousarray(residuals.transpose(2, 3, 0, 1)).reshape(
        height, width, channels * count
    )
    plane = np.empty(left.shape, np.int16)
    for y in range(height):
        for x in range(width):
            guess: np.ndarray | int = 0
            if y and x:
                guess = _median_edge(plane[y, x - 1], plane[y - 1, x], plane[y - 1, x - 1])
            elif y:
                guess = plane[y - 1, x]
            elif x:
                guess = plane[y, x - 1]
            plane[y, x] = (guess + left[y, x]) & 255
    planes = plane.astype(np.uint8).reshape(height, width, channels, count)
    if channels == 3:
        green = planes[:, :, 0]
        planes = np.stack([planes[:, :, 1] + green, green, planes[:, :, 2] + green], axis=2)
    return np.ascontiguousarray(planes.transpose(3, 0, 1, 2))


def _median_edge(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    # The median of a, b and a + b - c is the same number, and cheaper than the three cases.
    return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), a + b - c))


def _images(file: pathlib.Path, field: str, cache_dir: str | None, max_bytes: int) -> np.ndarray:
    if cache_dir is None:
        return _image_array(file, field, max_bytes)
    key = hashlib.blake2b(f"{field} ".encode(), digest_size=16)
    try:
        with file.open("rb") as content:
            while block := content.read(1 << 24):
                key.update(block)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}).") from error
    place = user_path(cache_dir) / f"{file.stem}-{field}-{key.hexdigest()}.npy"
    if (image := _kept(place)) is not None:
        return image
    image = _image_array(file, field, max_bytes)
    array = io.BytesIO()
    np.save(array, image)
    whole = array.getbuffer()
    try:
        kept.put(place, lambda out: out.writelines((whole, _checksum(whole))))
    except OSError as error:  # a full disk costs the next run some seconds, not this one its data
        logging.warning("%s: unpacked images are not kept (%s).", place, error.strerror)
    return image


def _kept(file: pathlib.Path) -> np.ndarray | None:
    """The array that was kept, or None where there is none that is whole."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logging.warning("%s cannot be read (%s); unpacking it again.", file, error.strerror)
        return None
    body = memoryview(data)[: -len(_checksum(b""))]
    if _checksum(body) != data[len(body) :]:
        logging.warning("%s is damaged; unpacking it again.", file)
        return None
    return np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _image_array(file: pathlib.Path, field: str, max_bytes: int) -> np.ndarray:
    image = load_field(file, field, max_bytes)
    if image.dtype != np.uint8 or image.ndim not in (3, 4):
        raise ValueError(
            f"{file}: {field} is {image.dtype}{list(image.shape)}; expected uint8 [N, H, W, C] or "
            f"[N, H, W]. "
            "Scale floating-point images to 0..255 and round them."
        )
    if image.ndim == 4 and image.shape[1] in (1, 3) and image.shape[3] == image.shape[2] > 4:
        raise ValueError(
            f"{file}: {field} is uint8{list(image.shape)}, channels before rows and columns; "
            "expected [N, H, W, C]. Write it again after image.transpose(0, 2, 3, 1)."
        )
    return image[..., None] if image.ndim == 3 else image
