"""How the files of a folder become images of one size, and which of them cannot."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cl_jax.data import images, listing
from cl_jax.data.listing import Listing
from cl_jax.data.source import Example, allocate

SAMPLED = 64  # files whose headers or depth are read, to know of all


class Reading(NamedTuple):
    """How one file becomes an example's image."""

    root: Path
    image_size: int
    channels: int
    max_pixels: int
    scale: images.Scale | None

    def __call__(self, name: str) -> np.ndarray:
        return images.decode(
            self.root / name,
            name,
            image_size=self.image_size,
            channels=self.channels,
            max_pixels=self.max_pixels,
            scale=self.scale,
        )


def scale_of(
    root: Path,
    names: Sequence[str],
    value_range: tuple[float, float] | None,
    learnt: Mapping[str, Any] | None = None,
    setting: str = "value_range",
) -> images.Scale | None:
    """How numbers of more than 8 bits become bytes: told, found by the run that the images are read
    for, or found in some of the files.

    Args:
      root: of the names; Path() where they stand for themselves.
      names: of the images, without those that may not be opened.
      value_range: as in `data.folder`.
      learnt: `learnt_of` of that run; None where there is none.
      setting: of the source, that gives the range.

    Raises:
      ValueError: a range without numbers in it; colour images of 16 bits that would come out almost
        black.
    """
    if value_range is not None:
        if not value_range[0] < value_range[1]:
            raise ValueError(f"{setting}={value_range}; expected (low, high) with low below high.")
        return images.Scale(float(value_range[0]), float(value_range[1]), True)
    if learnt and "value_range" in learnt:
        low, high = learnt["value_range"]
        return images.Scale(float(low), float(high), False)
    place = f"{root}: " if root.parts else ""
    deep = [name for name in names if images.may_be_deep(name)]
    rows = np.unique(np.linspace(0, len(deep) - 1, SAMPLED).astype(int)) if deep else ()
    picked = [deep[i] for i in rows]
    kinds: dict[str, float] = {}
    cut = deepest = ""
    for name in picked:
        try:
            kind, largest = images.depth(root / name, name)
        except ValueError:  # told with all the others that cannot be read
            continue
        kinds[kind] = max(kinds.get(kind, 0.0), largest)
        cut = name if kind == "colours" else cut
        deepest = name if kind == "integers" else deepest
    if 0 < kinds.get("colours", 0.0) < 64:
        raise ValueError(
            f"{place}16-bit colour images, such as {images.printable(cut)}, use 14 bits or "
            "fewer, and Pillow reads the upper 8 of 16: they would be almost black. For TIFF "
            "files, pip install tifffile; else convert them to 8 bits."
        )
    if "integers" not in kinds:
        return None
    bits = next(bits for bits in (8, 10, 12, 14, 16, 32) if kinds["integers"] < 2**bits)
    logging.warning(
        "%sof images of 16 bits, such as %s, %d are used; 0 to %d becomes 0 to 255. "
        "--config.data.%s=0,4095 sets other ends.",
        place,
        images.printable(deepest),
        bits,
        2**bits - 1,
        setting,
    )
    return images.Scale(0.0, 2.0**bits - 1, False)


def learnt_of(scale: images.Scale | None) -> dict[str, Any]:
    """What `Source.learnt` holds of a scale: one that was found, and not told, is kept with the run
    as "value_range", since files of other numbers would give another."""
    return {} if scale is None or scale.clips else {"value_range": [scale.low, scale.high]}


def checked(
    reading: Reading,
    found: Listing,
    parts: dict[str, list[str]],
    keep: bool,
    cache_dir: str | None,
    workers: int,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(decoded images of each part where they are kept; what cannot be used, with the reason). All
    parts are read before an error, so that it names every image."""
    bad = dict(found.bad)
    pixels: dict[str, np.ndarray] = {}
    if keep:
        for part, names in parts.items():
            shape = (len(names), reading.image_size, reading.image_size, reading.channels)
            pixels[part] = allocate(shape, np.uint8)
            failures = images.map_threads(
                functools.partial(_decode_into, reading, names, bad, pixels[part]),
                range(len(names)),
                workers,
            )
            bad |= {name: failure for name, failure in zip(names, failures) if failure}
        return pixels, bad
    key = f"{reading.channels} {reading.max_pixels}"
    known = listing.remembered(reading.root, found, key, cache_dir)
    names = [name for part in parts.values() for name in part]
    new = [name for name in names if name not in known and name not in bad]
    failures = images.map_threads(functools.partial(_inspect, reading), new, workers)
    bad |= {name: failure for name, failure in zip(new, failures) if failure}
    if new:
        good = [name for name in names if name not in bad]
        listing.remember(reading.root, found, good, key, cache_dir)
    return {}, bad


def _decode_into(
    reading: Reading, names: list[str], bad: dict[str, str], out: np.ndarray, i: int
) -> str:
    """Why image `i` cannot be used, or ""; then it is in `out`."""
    if names[i] in bad:
        return bad[names[i]]
    try:
        out[i] = reading(names[i])
    except ValueError as error:
        return reason_of(error, names[i])
    return ""


def _inspect(reading: Reading, name: str) -> str:
    try:
        images.inspect(
            reading.root / name, name, channels=reading.channels, max_pixels=reading.max_pixels
        )
    except ValueError as error:
        return reason_of(error, name)
    return ""


def reason_of(error: ValueError, name: str) -> str:
    """The text of an error without the name of the image that it begins with."""
    return str(error).removeprefix(f"{images.printable(name)}: ")


def read_or_next(
    name: str,
    read_one: Callable[[int], Example],
    size: int,
    label: np.ndarray | None,
    i: int,
) -> Example:
    """Example `i`, or where it is damaged the next of its class: what `Source.labels` says of `i`
    stays true."""
    for j in range(i, i + size):
        if label is not None and label[j % size] != label[i]:
            continue
        try:
            return read_one(j % size)
        except ValueError as error:
            logging.warning("replaced by the next image of its class: %s", error)
    raise ValueError(f"{name}: none of its images of the class of example {i} can be read.")
