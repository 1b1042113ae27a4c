"""Arrays that take long to make, kept in the user's cache."""

import hashlib
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from cl_jax.core import paths
from cl_jax.data.source import allocate

FILES = 8  # of one kind that are kept, the newest
_AT_ONCE = 1 << 18  # bytes, which stay in the processor's cache


def arrays(kind: str, key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `make` returns: read from the user's cache where it holds a whole file of this key, else
    made, and kept there. A cache that is missing, damaged or read-only costs the time of `make`.

    Args:
      kind: the folder in the cache; the FILES newest are kept in it.
      key: all that the values depend on, as text.
    """
    cache = paths.cache()
    if cache is None:
        return make()
    file = cache / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    found = _read(file)
    if found is None:
        found = make()
        _write(file, found)
    return found


def _read(file: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None where it is missing or damaged."""
    try:
        with file.open("rb") as opened, zipfile.ZipFile(opened) as members:
            return {name.removesuffix(".npy"): _array(members, name) for name in members.namelist()}
    except FileNotFoundError:
        return None
    except Exception as error:
        logging.info("%s cannot be read (%s); its arrays are made again.", file, error)
        return None


def _array(members: zipfile.ZipFile, name: str) -> np.ndarray:
    """As `np.load`, into an array that a CPU device uses without a copy; at its end the member's
    checksum is compared."""
    with members.open(name) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{name} is not of version 1.0")
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(member)
        if in_columns:
            raise ValueError(f"{name} is in Fortran's order")
        found = allocate(shape, dtype)
        left = found.data.cast("B")
        while piece := member.read(min(_AT_ONCE, len(left))):
            left[: len(piece)] = piece
            left = left[len(piece) :]
        if left:
            raise ValueError(f"{name} is cut short")
    return found


def put(file: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Writes a file beside its name and moves it there, so that others find all of it or none.

    Raises:
      OSError: the place cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Hosts that share a home directory have processes of the same number.
    partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as out:
            write(out)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: Path, values: dict[str, np.ndarray]) -> None:
    rows = {name: np.ascontiguousarray(array) for name, array in values.items()}
    try:
        put(file, lambda out: np.savez(out, **rows))  # type: ignore[arg-type]
        newest = sorted(file.parent.iterdir(), key=lambda path: -path.stat().st_mtime_ns)
        for old in newest[FILES:]:  # those that a killed process left too
            old.unlink(missing_ok=True)
    except OSError as error:
        logging.info("%s is not kept (%s).", file, error)
