"""Encoded images to uint8 arrays of one size. A damaged image gives a ValueError that names it."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 89_478_485  # what Pillow warns at; it refuses twice as many itself
MAX_SIDE = 32_767  # longer strips are scans or attacks, and a centre square says little of them
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    file: BinaryIO | str | os.PathLike[str],
    name: str,
    *,
    image_size: int | None,
    channels: int,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """One image as uint8 [H, W, channels], upright as its EXIF data say.

    With `image_size` S: the central square, resized with an antialiasing filter to [S, S,
      channels], which is the short
    side resized and the centre cropped. A colour image asked for one channel gives its luma, a grey
    one asked for three gives three equal ones; transparency is dropped.

    Raises:
      ValueError: names the image and what is wrong with it.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    with _named(name), Image.open(file, formats=FORMATS) as image:
        _check_pixels(image, max_pixels)
        if image_size is not None:
            image.draft(
                mode, (2 * image_size, 2 * image_size)
            )  # JPEG: never enlarges, and stays above twice the size
        image.load()
        orientation = _orientation(image)
        picture = _eight_bits(image).convert(mode)
        if image_size is not None:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            box = (left, top, left + side, top + side)
            # Cropped first: a long strip resized whole would take more memory than `max_pixels`
            # allows.
            picture = picture.crop(box)
            if side != image_size:
                picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
        if orientation in _UPRIGHT:
            picture = picture.transpose(_UPRIGHT[orientation])
        pixels = np.asarray(picture)
        return pixels if channels == 3 else pixels[..., None]


def decode_bytes(
    data: bytes, name: str, *, image_size: int | None, channels: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """As `decode`, for the bytes of an image file."""
    return decode(
        io.BytesIO(data), name, image_size=image_size, channels=channels, max_pixels=max_pixels
    )


def inspect(path: str | os.PathLike[str], name: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses what `decode` would refuse, as far as the header and the end of the file tell.

    An image whose end is not where it should be is decoded to find out; damage in the middle is not
    seen here."""
    with _named(name), Image.open(path, formats=FORMATS) as image:
        _check_pixels(image, max_pixels)
        if not _has_end(path, image.format or ""):
            image.load()


def map_threads(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """`function` of every item, in order, in `workers` threads."""
    if workers < 1:
        raise ValueError(f"workers={workers}; expected at least 1.")
    chunk = max(
        1, min(256, len(items) // (4 * workers))
    )  # a future each would cost more than a small image
    parts = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    with ThreadPoolExecutor(workers) as pool:
        return [
            result
            for part in pool.map(lambda part: [function(item) for item in part], parts)
            for result in part
        ]


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a ValueError that begins with the name of the image."""
    try:
        yield
    # decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error
    except Exception as error:
        raise ValueError(f"{printable(name)}: {error}") from error


def printable(name: str) -> str:
    """A file's name for a message: control characters, which could rewrite a terminal, are
    escaped."""
    return name if name.isprintable() else ascii(name)[1:-1]


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width}x{image.height} pixels, more than max_pixels={max_pixels}")
    if max(image.size) > MAX_SIDE:
        raise ValueError(
            f"{image.width}x{image.height} pixels, a side of more than {MAX_SIDE}; cut it into "
            f"pieces"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data do not damage the pixels
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit grey to eight: Pillow's own conversion clips at 255 instead of scaling."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(
        (np.asarray(image).astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8)
    )


def _has_end(path: str | os.PathLike[str], kind: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 12))
        tail = file.read()
    if kind == "PNG":
        return tail[-8:-4] == b"IEND"
    if kind == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return tail.rstrip(b"\0").endswith(b"\xff\xd9")
