"""`packed`: folders with `train.npz` and `test.npz`, images as they are or losslessly packed.

A packed image array uint8 [N, H, W, C] is stored under `<field>.res` as [C, N, H, W] residuals modulo 256. Three
channels are first turned into the planes G, R - G, B - G. A pixel's residual is its difference from a prediction: along
the first row the pixel on its left, along the first column the one above, elsewhere the median edge predictor of the
left (a), upper (b) and upper-left (c) neighbours: min(a, b) where c >= max(a, b), max(a, b) where c <= min(a, b), else
a + b - c.
"""

import os
import pathlib

import numpy as np

from cl_jax.data.source import Source, Splits, from_arrays, with_channels

_PACKED = ".res"


def make(*, path: str, channels: int | None = None, image_field: str = "image", label_field: str = "label",
         num_classes: int | None = None, cache_dir: str | None = None) -> Splits:
    """Reads `path`/train.npz and `path`/test.npz into memory.

    Args:
      channels: 3 repeats grey images; None keeps what is there.
      image_field, label_field: their names in the files; here they become "image" and "label".
      num_classes: None for the largest label of the train part plus one.
      cache_dir: where unpacked images are kept as .npy for the next run; None for nowhere.

    Raises:
      FileNotFoundError: a part is missing.
      ValueError: a file without the fields, or images that are not uint8.
    """
    parts = {}
    for part in ("train", "test"):
        file = pathlib.Path(path) / f"{part}.npz"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; data.path must name a folder with train.npz and test.npz.")
        name = f"{pathlib.Path(path).name}/{part}"
        image = with_channels(_images(file, image_field, cache_dir), channels, name)
        parts[part] = name, image, load_field(file, label_field).astype(np.int32)
    classes = {"label": int(parts["train"][2].max()) + 1 if num_classes is None else num_classes}

    def source(part: str) -> Source:
        name, image, label = parts[part]
        return from_arrays(name, {"image": image, "label": label}, classes)

    return Splits(train=source("train"), test=source("test"))


def load_field(file: str | os.PathLike, field: str) -> np.ndarray:
    """One array of a packed file, unpacked where it is packed."""
    with np.load(file, allow_pickle=False) as members:
        if field in members.files:
            return members[field]
        if field + _PACKED in members.files:
            return unpack(members[field + _PACKED])
        names = [name.removesuffix(_PACKED) for name in members.files]
    raise ValueError(f"{file} has no field {field!r}; it has {', '.join(names)}.")


def unpack(residuals: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W, C] from residuals uint8 [C, N, H, W]. Arithmetic is modulo 256 in the sums only."""
    channels, count, height, width = residuals.shape
    # Pixel-major, so that each pixel is one operation over the images; its neighbours must be known before it.
    left = np.ascontiguousarray(residuals.transpose(2, 3, 0, 1)).reshape(height, width, channels * count)
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


def _images(file: pathlib.Path, field: str, cache_dir: str | None) -> np.ndarray:
    if cache_dir is None:
        return _with_channel_axis(load_field(file, field))
    stat = file.stat()
    kept = pathlib.Path(cache_dir) / f"{file.parent.name}-{file.stem}-{field}-{stat.st_size}-{stat.st_mtime_ns}.npy"
    if kept.is_file():
        return np.load(kept)
    image = _with_channel_axis(load_field(file, field))
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, image)
    os.replace(partial, kept)
    return image


def _with_channel_axis(image: np.ndarray) -> np.ndarray:
    return image[..., None] if image.ndim == 3 else image
