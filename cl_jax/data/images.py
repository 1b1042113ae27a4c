"""Encoded images to uint8 arrays of one size. A damaged image gives a ValueError that names it."""

import functools
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

_SHOWN = 5  # files that an error names
# What is read, by suffix. Formats that are told by their first bytes are recognised under any of
# these names; the three others by their suffix alone. PostScript and the like, which are programs,
# are never opened.
SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    ".webp": "WEBP",
    ".gif": "GIF",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".bmp": "BMP",
    ".dib": "DIB",
    ".avif": "AVIF",
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".pfm"), "PPM"),
    ".mpo": "MPO",
    ".qoi": "QOI",
    ".psd": "PSD",
    ".dds": "DDS",
    **dict.fromkeys((".sgi", ".rgb", ".bw"), "SGI"),
    ".tga": "TGA",
    ".pcx": "PCX",
    ".npy": "NumPy",
}
_BY_SUFFIX = ("TGA", "PCX", "SGI")  # their first bytes say too little
MAX_PIXELS = 89_478_485  # what Pillow warns at; it refuses twice as many itself
MAX_SIDE = 32_767  # longer strips are scans or attacks, and a centre square says little of them
_ORIENTATION_TAG, _OFFSETS, _COUNTS = 0x0112, (273, 324), (279, 325)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NPY_MAGIC = b"\x93NUMPY"
File = bytes | str | os.PathLike[str]  # the content, or where it is


class Scale(NamedTuple):
    """Numbers of more than 8 bits to 0 .. 255: `low` becomes 0 and `high` 255, linearly. Numbers
    outside are cut off where `clips`, and an error otherwise."""

    low: float
    high: float
    clips: bool


def decode(
    file: File,
    name: str,
    *,
    image_size: int | None,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    scale: Scale | None = None,
) -> np.ndarray:
    """One image as uint8 [H, W, channels], upright as its EXIF data say.

    With `image_size` S: the central square, resized with an antialiasing filter to [S, S,
    channels], which is the short side resized and the centre cropped. Of an animation the first
    picture. Where `channels` is 1 or 3, a colour image asked for one channel gives its luma, a grey
    one asked for three gives three equal ones, and what is transparent shows white. Any other
    number is what the file must hold: bands of a TIFF, or its pages, or an array [H, W, C] of a
    .npy file.

    Args:
      scale: of images of more than 8 bits a channel. None for 0 to the largest number of unsigned
        integers, and 0 to 1 for floats, where numbers outside are errors.

    Raises:
      ValueError: names the image and what is wrong with it.
    """
    with _named(name):
        if (pixels := _array(file, name, channels, max_pixels)) is not None:
            pixels = _square_of_planes(_eight_bits(pixels, scale), image_size)
            if channels == 1 and pixels.shape[-1] == 3:
                return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
            return pixels
        if (pixels := _turbo(file, image_size, channels, max_pixels)) is not None:
            return pixels
        with _open(file, name) as image:
            _check_pixels(image, max_pixels)
            if (planes := _planes(image, channels, max_pixels)) is not None:
                planes = _square_of_planes(_eight_bits(planes, scale), image_size)
                return _turned(planes, _orientation(image))
            return _picture(image, image_size, channels, scale)


def decode_bytes(data: bytes, name: str, **how: Any) -> np.ndarray:
    """As `decode`, for the bytes of an image file."""
    return decode(data, name, **how)


def inspect(file: File, name: str, *, channels: int = 3, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses what `decode` would refuse, as far as the header and the end of the file tell.

    An image whose end is not where it should be, or of a format that does not tell, is decoded to
    find out; damage in the middle is not seen here.
    """
    with _named(name):
        if _array(file, name, channels, max_pixels) is not None:
            return
        with _open(file, name) as image:
            _check_pixels(image, max_pixels)
            if not _has_end(file, image):
                image.load()
            _planes(image, channels, max_pixels, read=False)


def sides(file: File, name: str) -> tuple[int, int]:
    """(width, height) in pixels as they are stored, from the header alone; of arrays [H, W, C] by
    reading them."""
    with _named(name):
        if SUFFIXES.get(suffix(name)) == "NumPy":
            height, width = _numpy(file, MAX_PIXELS).shape[:2]
            return width, height
        with _open(file, name) as image:
            return image.size


def depth(file: File, name: str) -> tuple[str, float]:
    """(kind, largest number) of the numbers that an image is made of: "integers" of more than 8
    bits, "colours" of 16 bits that are cut to their upper 8 on reading (then the largest of those),
    or "bytes".
    """
    with _named(name):
        pixels = _array(file, name, 0, MAX_PIXELS)
        if pixels is None:
            with _open(file, name) as image:
                if image.mode.startswith("I"):
                    pixels = np.asarray(image)
                elif _is_cut(image):
                    return "colours", float(np.asarray(image).max())
    deep = pixels is not None and pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 1
    return ("integers", float(pixels.max())) if deep else ("bytes", 255.0)


def map_threads(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """`function` of every item, in order, in `workers` threads.

    Raises:
      ValueError: fewer than one thread.
    """
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


def report_bad(kind: str, path: str, bad: Mapping[str, str], on_error: str) -> None:
    """Names files that cannot be used, {name: reason}: an error where `on_error` is "raise",
    otherwise a warning for each."""
    shown = [f"{printable(name)}: {reason}" for name, reason in sorted(bad.items())]
    if on_error == "raise":
        more = f"\n  and {len(shown) - _SHOWN} more" * (len(shown) > _SHOWN)
        raise ValueError(
            f"{len(shown)} of the {kind} in {path} cannot be used:\n  "
            + "\n  ".join(shown[:_SHOWN])
            + more
            + "\nMend or remove them, or leave them out: --config.data.on_error=skip."
        )
    for line in shown:
        logging.warning("skipped %s", line)
    logging.warning("%s: skipped %d that cannot be used.", path, len(shown))


def printable(name: str) -> str:
    """A file's name for a message: control characters, which could rewrite a terminal, are
    escaped."""
    return name if name.isprintable() else ascii(name)[1:-1]


def suffix(name: str) -> str:
    """The ending of a file's name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


@functools.cache
def readable() -> frozenset[str]:
    """The suffixes of the images that can be read on this machine."""
    return frozenset(
        name for name, kind in SUFFIXES.items() if kind == "NumPy" or kind in _formats()
    )


def may_be_deep(name: str) -> bool:
    """Whether images of that name can have more than 8 bits a channel."""
    return SUFFIXES.get(suffix(name)) in ("TIFF", "PNG", "PPM", "NumPy", "JPEG2000")


# Opening --------------------------------------


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here, the most frequent first."""
    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(kind for kind in dict.fromkeys(SUFFIXES.values()) if kind in Image.OPEN)


def _open(file: File, name: str) -> Image.Image:
    own = SUFFIXES.get(suffix(name))
    known = [kind for kind in _formats() if kind not in _BY_SUFFIX or kind == own]
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=known)


def _binary(file: File) -> IO[bytes]:
    return io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a ValueError that begins with the name of the image."""
    try:
        yield
    # decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error
    except Exception as error:
        raise ValueError(f"{printable(name)}: {printable(str(error))}") from error


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    _check_sides(image.width, image.height, max_pixels)


def _check_sides(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"{width}x{height} pixels, more than max_pixels={max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise ValueError(
            f"{width}x{height} pixels, a side of more than {MAX_SIDE}; cut it into pieces"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data do not damage the pixels
        return 1


# Pictures: 8 bits, grey or colour --------------------------------------


def _picture(
    image: Image.Image, image_size: int | None, channels: int, scale: Scale | None
) -> np.ndarray:
    """A grey or colour image, upright, [S, S, channels] or of its own size."""
    mode = {1: "L", 3: "RGB"}[channels]
    if image_size is not None:
        # JPEG: never enlarges, and stays above twice the size
        image.draft(mode, (2 * image_size, 2 * image_size))
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        picture = Image.fromarray(_eight_bits(np.asarray(image), scale))
    else:
        picture = image
    # After the pixels: for some formats Pillow reads them for it, and an error would pass unseen.
    orientation = _orientation(image)
    if image_size is not None:
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        # Cropped first: a long strip resized whole would take more memory than `max_pixels` allows.
        if picture.size != (side, side):
            picture = picture.crop((left, top, left + side, top + side))
    picture = _over_white(picture).convert(mode)
    if image_size is not None and picture.width != image_size:
        picture = picture.resize((image_size, image_size), Image.Resampling.BICUBIC)
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    pixels = np.asarray(picture)
    return pixels if channels == 3 else pixels[..., None]


def _over_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    colours = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")


@functools.cache
def _has_turbo() -> bool:
    return importlib.util.find_spec("simplejpeg") is not None


def _turbo(file: File, image_size: int | None, channels: int, max_pixels: int) -> np.ndarray | None:
    """`decode` of a JPEG by libjpeg-turbo directly, where `simplejpeg` is installed: the same
    pixels. None for what Pillow has to read, or to refuse."""
    if channels not in (1, 3) or not _has_turbo():
        return None
    import simplejpeg

    with _binary(file) as opened:
        data = opened.read(3)
        if data != b"\xff\xd8\xff":
            return None
        data += opened.read()
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("Gray", "YCbCr", "RGB"):
        return None
    _check_sides(width, height, max_pixels)
    divisor, grey = 1, colours == "Gray"
    if image_size is not None:  # as Pillow's draft chooses size and mode
        grey = grey or channels == 1
        times = min(width, height) // (2 * image_size)
        divisor = next(size for size in (8, 4, 2, 1) if times >= size or size == 1)
    try:
        pixels = simplejpeg.decode_jpeg(
            data,
            "GRAY" if grey else "RGB",
            min_height=-(-height // divisor),
            min_width=-(-width // divisor),
        )
    except ValueError:
        return None
    if not grey and channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
    pixels = _square(pixels, image_size)
    if image_size is not None and pixels.shape[0] != image_size:
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if grey else pixels))
        pixels = np.asarray(picture.resize((image_size, image_size), Image.Resampling.BICUBIC))
        pixels = pixels[..., None] if grey else pixels
    if grey and channels == 3:
        pixels = np.repeat(pixels, 3, axis=2)
    # Few files say that they are to be turned; Pillow looks for it in two places of them.
    if b"Exif\0\0" in data or b":Orientation" in data:
        with Image.open(io.BytesIO(data)) as image:
            pixels = _turned(pixels, _orientation(image))
    return np.ascontiguousarray(pixels)


# Planes: more than 8 bits, or any number of channels --------------------------------------


def _array(file: File, name: str, channels: int, max_pixels: int) -> np.ndarray | None:
    """The numbers [H, W, C] of a .npy file, or of a TIFF that Pillow cannot read whole; None for
    other files. `channels`=0: as they are."""
    if SUFFIXES.get(suffix(name)) not in ("NumPy", "TIFF", None):
        return None
    head = _head(file, 8)
    if head.startswith(_NPY_MAGIC):
        pixels = _numpy(file, max_pixels)
        if channels and pixels.shape[0] == channels != pixels.shape[2]:
            pixels = pixels.transpose(1, 2, 0)
    elif head.startswith(_TIFF_MAGIC):
        pixels = _tiff(file, max_pixels)
        if pixels is None or (channels in (1, 3) and pixels.shape[2] == 4):
            return None  # a picture, with transparency perhaps
    else:
        return None
    _check_sides(pixels.shape[1], pixels.shape[0], max_pixels)
    if not channels:
        return pixels
    if pixels.shape[2] == 1 and channels == 3:
        pixels = np.repeat(pixels, 3, axis=2)
    if channels == 1 and pixels.shape[2] == 3:
        return pixels  # its luma is asked for
    if pixels.shape[2] != channels:
        raise ValueError(_other_channels(pixels.shape[2], channels))
    return pixels


def _other_channels(given: int, channels: int) -> str:
    return f"{given} channels, and channels={channels} was asked for; set channels={given}"


def _head(file: File, size: int) -> bytes:
    with _binary(file) as opened:
        return opened.read(size)


def _numpy(file: File, max_pixels: int) -> np.ndarray:
    """Objects, which could run code, are refused by NumPy. A file is mapped first, which believes
    no size that it does not have."""
    if isinstance(file, bytes):
        pixels = np.lib.format.read_array(io.BytesIO(file), allow_pickle=False)
    else:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    if pixels.dtype.kind not in "biuf" or pixels.ndim not in (2, 3) or not pixels.size:
        raise ValueError(
            f"an array {pixels.dtype}{list(pixels.shape)}; expected numbers [H, W] or [H, W, C]"
        )
    if pixels.size > 64 * max_pixels:
        raise ValueError(f"{pixels.size:,} numbers, more than 64 max_pixels={max_pixels}")
    return np.asarray(pixels if pixels.ndim == 3 else pixels[..., None])


def _tiff(file: File, max_pixels: int) -> np.ndarray | None:
    """A TIFF of several bands that Pillow reads not at all or cut to 8 bits, by `tifffile`."""
    try:
        with _open(file, "x.tif") as image:
            if not _is_cut(image):
                return None
            cut = True
    except Image.UnidentifiedImageError:
        cut = False
    if importlib.util.find_spec("tifffile") is None:
        if cut:
            return None
        raise ValueError(
            "a TIFF that Pillow cannot read, of more than four bands perhaps; pip install "
            "tifffile, which can"
        )
    import tifffile

    try:
        with _binary(file) as binary, tifffile.TiffFile(binary) as opened:
            series = opened.series[0]
            axes, size = series.axes, int(np.prod(series.shape, dtype=np.int64))
            if "X" not in axes or "Y" not in axes or size > 64 * max_pixels:
                raise ValueError(f"a TIFF of axes {axes} {list(series.shape)}; expected Y and X")
            pixels = series.asarray()
    except Exception:
        if cut:  # a compression of its own, perhaps: Pillow's 8 bits are there
            return None
        raise
    order = [i for i, axis in enumerate(axes) if axis not in "YX"]
    pixels = pixels.transpose(axes.index("Y"), axes.index("X"), *order)
    return pixels.reshape(*pixels.shape[:2], -1)


def _is_cut(image: Image.Image) -> bool:
    """Whether it has several channels of 16 bits, of which Pillow reads the upper 8."""
    raw = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return len(image.getbands()) > 1 and any("16" in arguments for arguments in raw)


def _planes(
    image: Image.Image, channels: int, max_pixels: int, read: bool = True
) -> np.ndarray | None:
    """[H, W, channels] of an image that is not a picture of 1 or 3 channels, in numbers of its own;
    None for a picture.

    Raises:
      ValueError: it holds another number of channels.
    """
    bands = len(image.getbands())
    pages = getattr(image, "n_frames", 1) if image.format == "TIFF" and bands == 1 else 1
    if pages > 1 and image.mode != "P":
        if pages != channels:
            raise ValueError("a stack of pages: " + _other_channels(pages, channels))
        if not read:
            return None
        size, planes = image.size, []
        for page in range(pages):
            image.seek(page)
            _check_pixels(image, max_pixels)
            if image.size != size or len(image.getbands()) != 1:
                raise ValueError("a stack of pages of different sizes or kinds")
            planes.append(np.asarray(image))
        return np.stack(planes, axis=-1)
    if channels in (1, 3):
        return None
    if bands != channels:
        raise ValueError(_other_channels(bands, channels))
    return np.asarray(image) if read else None


def _eight_bits(pixels: np.ndarray, scale: Scale | None) -> np.ndarray:
    """Numbers of any type to uint8, as `scale` says."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("NaN or inf among its numbers")
    if scale is None:
        # Pillow has 16-bit grey as int32 too.
        top = 1.0 if pixels.dtype.kind == "f" else 255.0 if pixels.itemsize == 1 else 65535.0
        scale = Scale(0.0, top, False)
    if not scale.clips and (low < scale.low or high > scale.high):
        raise ValueError(
            f"numbers from {low:g} to {high:g}, outside {scale.low:g} to {scale.high:g}; set "
            "value_range=(low, high), the numbers that become 0 and 255"
        )
    scaled = (pixels.astype(np.float64) - scale.low) * (255 / (scale.high - scale.low))
    return scaled.clip(0, 255).round().astype(np.uint8)


def _square_of_planes(pixels: np.ndarray, image_size: int | None) -> np.ndarray:
    """The central square of [H, W, C], each channel resized by itself."""
    pixels = _square(pixels, image_size)
    if image_size is None or pixels.shape[0] == image_size:
        return pixels
    channels = pixels.shape[2]
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(channels)]
    size = (image_size, image_size)
    return np.stack([np.asarray(p.resize(size, Image.Resampling.BICUBIC)) for p in planes], -1)


def _square(pixels: np.ndarray, image_size: int | None) -> np.ndarray:
    """The central square of [H, W, C]; all of it where no size is asked for."""
    if image_size is None:
        return pixels
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation not in _UPRIGHT:
        return pixels
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, -1, 0)]
    return np.stack([np.asarray(plane.transpose(_UPRIGHT[orientation])) for plane in planes], -1)


# Ends --------------------------------------


def _has_end(file: File, image: Image.Image) -> bool:
    """Whether the file ends where its format says, for formats that do."""
    kind = image.format or ""
    head = _head(file, 8)
    with _binary(file) as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - 12))
        tail = opened.read()
    if kind == "PNG":
        return tail[-8:-4] == b"IEND"
    if kind == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size
    if kind == "GIF":
        return tail.rstrip(b"\0").endswith(b";")
    if kind == "BMP":
        return 0 < int.from_bytes(head[2:6], "little") <= size
    if kind == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        for offsets, counts in zip(_OFFSETS, _COUNTS):
            if offsets in tags and counts in tags:
                where, many = _tuple(tags[offsets]), _tuple(tags[counts])
                return all(a + b <= size for a, b in zip(where, many))
        return False
    return kind in ("JPEG", "MPO") and tail.rstrip(b"\0").endswith(b"\xff\xd9")


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
