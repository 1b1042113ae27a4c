"""Warnings of a folder in which an image can be told by something else than what it shows: test
images that are training images too, and classes with a file format of their own."""

import collections
import filecmp
import os
from pathlib import Path

import numpy as np
from absl import logging

from cl_jax.core.names import some
from cl_jax.data import images
from cl_jax.data.layout import Layout
from cl_jax.data.listing import Listing
from cl_jax.data.parts import tell_duplicates

_END = 4096  # bytes
# Two thumbnails of one picture correlate by more, are less apart on average, and not flat. Of
# CIFAR-10's, saved again at three quarters of the size, all are above .9995, of different pictures
# below .97.
_SAME, _NEAR, _FLAT = 0.995, 4.0, 16.0
_PRODUCTS = 2**24  # correlations at once


def tell_formats(path: str, layout: Layout) -> None:
    """Logs classes all of whose training images are in a format that no other class has: traces of
    the format (compression, depth) then say the class, and a network learns those."""
    formats: dict[int, set[str]] = collections.defaultdict(set)
    for name in layout.parts["train"]:
        if name in layout.numbers:
            formats[layout.numbers[name]].add(images.SUFFIXES[images.suffix(name)])
    shared = collections.Counter(kind for kinds in formats.values() for kind in kinds)
    own = {
        layout.classes[number]: " and ".join(sorted(kinds))
        for number, kinds in sorted(formats.items())
        if all(shared[kind] == 1 for kind in kinds)
    }
    if own and len(formats) > 1:
        logging.warning(
            "%s: only %s: the format of a file tells these classes from the others. Convert all "
            "images to one format.",
            path,
            some(
                [f"{images.printable(name)} has images in {kinds}" for name, kinds in own.items()]
            ),
        )


def tell_copies(
    root: Path, found: Listing, parts: dict[str, list[str]], pixels: dict[str, np.ndarray]
) -> None:
    """Logs test files that are copies of training files: of equal size, then of equal end, then
    byte for byte; where the images are in memory, those that look alike too."""
    of_size: dict[int, list[str]] = collections.defaultdict(list)
    for name in parts["train"]:
        of_size[found.sizes[name]].append(name)
    ends: dict[str, bytes] = {}

    def end(name: str) -> bytes:
        if name not in ends:
            ends[name] = _end_of(root / name)
        return ends[name]

    pairs, exact = [], set()
    for name in parts["test"]:
        for other in of_size.get(found.sizes[name], ()):
            if end(name) == end(other) and _same_content(root / name, root / other):
                pairs.append(f"{images.printable(name)} is {images.printable(other)}")
                exact.add(name)
                break
    tell_duplicates(str(root), len(parts["test"]), pairs)
    if "train" not in pixels or "test" not in pixels:
        return
    alike = [
        f"{images.printable(parts['test'][row])} looks like {images.printable(parts['train'][at])}"
        for row, at in _alike(pixels["train"], pixels["test"])
        if parts["test"][row] not in exact
    ]
    tell_duplicates(str(root), len(parts["test"]), alike, "are likely copies of training images")


def _alike(train: np.ndarray, test: np.ndarray) -> list[tuple[int, int]]:
    """(test row, training row) of images that are likely the same picture, saved again or scaled:
    of thumbnails that correlate and are nearly equal."""
    small = [_thumbnails(part).reshape(len(part), -1) for part in (train, test)]
    known, asked = (_standardised(rows) for rows in small)
    pairs = []
    block = max(1, _PRODUCTS // max(len(known), 1))
    for start in range(0, len(asked), block):
        correlation = asked[start : start + block] @ known.T
        best = correlation.argmax(1)
        for row in np.flatnonzero(correlation[np.arange(len(best)), best] > _SAME):
            one, other = small[1][start + row], small[0][best[row]]
            # flat images are all alike
            if np.ptp(one) >= _FLAT and np.abs(one - other).mean() < _NEAR:
                pairs.append((start + int(row), int(best[row])))
    return pairs


def _standardised(rows: np.ndarray) -> np.ndarray:
    """[N, D] less the mean of each row, of unit length: products are correlations."""
    centred = rows - rows.mean(1, keepdims=True)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-6)


def _thumbnails(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, C] -> means of the grey image in 8 x 9 cells, [N, 8, 9] float32."""
    size = pixels.shape[1]
    rows, columns = (np.linspace(0, size, count + 1).astype(int)[:-1] for count in (8, 9))
    found = (
        [
            np.add.reduceat(np.add.reduceat(image.mean(-1), rows, axis=0), columns, axis=1)
            for image in pixels
        ]
        if size >= 9
        else []
    )
    if not found:
        return np.zeros((len(pixels), 8, 9), np.float32)
    cells = np.outer(np.diff([*rows, size]), np.diff([*columns, size]))
    return (np.stack(found) / cells).astype(np.float32)


def _end_of(file: Path) -> bytes:
    """The last bytes of a file; where it cannot be read, bytes that no other file ends with."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - _END))
            return opened.read()
    except OSError:
        return str(file).encode("utf-8", "surrogateescape")


def _same_content(a: Path, b: Path) -> bool:
    try:
        return filecmp.cmp(a, b, shallow=False)
    except OSError:
        return False
