"""The files of a folder: what is an image, what may not be opened, what is skipped; and which of
them were checked before."""

import collections
import hashlib
import os
import stat
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from cl_jax.core import paths
from cl_jax.core.names import some
from cl_jax.core.paths import user_path
from cl_jax.data import images, kept

_SYSTEM = ("__MACOSX", "#recycle", "#snapshot", "lost+found", "System Volume Information")
_SHOWN = 5
LINK = "a link that leads out of the folder"
# Images of other kinds, which Pillow reads not at all or not on this machine: a folder that holds
# such files alone is a class that would be lost.
_OTHER_IMAGES = frozenset(
    ".svg .svgz .ico .icns .cur .eps .ps .pdf .wmf .emf .jxl .exr .hdr .fit .fits .dcm .nii .czi "
    ".lif .nd2 .raw .cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .xbm .xpm .ras .im .h5 .hdf .mat .npz "
    ".zarr .mrc".split()
)


class Listing(NamedTuple):
    """What is in a folder, all by path inside it, with "/".

    files: images, or whatever is wanted, sorted. bad: what may not be opened, with the reason;
    those of `files` among it are in both. sizes, times: bytes, and nanoseconds of the last change,
    of `files`. others: skipped files, counted by suffix. unread: those of them that are of the
    wanted kind, in a format that is not read.
    """

    files: list[str]
    bad: dict[str, str]
    sizes: dict[str, int]
    times: dict[str, int]
    others: collections.Counter[str]
    unread: list[str]

    def told(self) -> str:
        """The skipped files, in words."""
        rest = len(self.others) - _SHOWN
        return ", ".join(
            f"{number} {images.printable(suffix)}"
            for suffix, number in self.others.most_common(_SHOWN)
        ) + (f" and {rest} kinds more" if rest > 0 else "")


def of(
    root: Path, suffixes: Container[str] | None = None, unread: Container[str] = frozenset()
) -> Listing:
    """The listing of a folder that is there, by its real path. Folders that are hidden or a
    system's own are passed over, links to folders are not followed.

    Args:
      suffixes: of the files that are wanted, in lower case; None for images.
      unread: of files of the same kind in formats that are not read; known for images.
    """
    found = Listing([], {}, {}, {}, collections.Counter(), [])
    readable = images.readable() if suffixes is None else suffixes
    alike = _OTHER_IMAGES | images.SUFFIXES.keys() if suffixes is None else unread
    stack = [""]
    while stack:
        inside = stack.pop()
        try:
            with os.scandir(os.path.join(root, inside)) as entries:
                _folder(found, root, inside, entries, readable, stack, alike)
        except OSError as error:
            found.bad[inside.rstrip("/") or "."] = f"cannot be listed ({error.strerror})"
    found.files.sort()
    return found


def passes_over(folder: str) -> bool:
    """Whether a folder of that name is hidden or a system's own: no data are looked for in it."""
    return folder[0] in ".@$" or folder in _SYSTEM


def at(
    path: str, what: str, suffixes: Container[str], unread: Container[str], one: bool
) -> tuple[Path, Listing]:
    """(the real path of a folder, `of` it). Where `one` file may be given, of such a path: its
    folder, and a listing of it alone, whatever its name.

    Raises:
      ValueError: no such folder of `what`.
    """
    place = user_path(path)
    if one and place.is_file():
        root, name, status = place.resolve().parent, place.resolve().name, place.stat()
        bad = {} if status.st_size else {name: "an empty file"}
        sizes, times = {name: status.st_size}, {name: status.st_mtime_ns}
        return root, Listing([name], bad, sizes, times, collections.Counter(), [])
    if not place.is_dir():
        raise ValueError(f"path={path!r} is not a folder. Give the folder of your {what}.")
    root = place.resolve()
    return root, of(root, suffixes, unread)


def _folder(
    found: Listing,
    root: Path,
    inside: str,
    entries: Iterable[os.DirEntry],
    readable: Container[str],
    stack: list[str],
    alike: Container[str],
) -> None:
    """Adds what is in one folder; its sub-folders go to the stack."""
    files, sizes, times = found.files, found.sizes, found.times
    wanted: dict[str, bool] = {}  # by suffix as it is written
    for entry in entries:  # one at a time: what os.stat gives is then freed at once
        name = entry.name
        if name[0] == ".":
            continue
        dot = name.rfind(".")
        ending = name[dot:] if dot > 0 else ""
        wants = wanted.get(ending)
        if wants is None:
            wants = wanted[ending] = ending.lower() in readable
        if wants and entry.is_file(follow_symlinks=False):
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                _image(found, root, inside + name, entry)
                continue
            path, size = inside + name, status.st_size
            if not size:
                found.bad[path] = "an empty file"
            files.append(path)
            sizes[path], times[path] = size, status.st_mtime_ns
        elif entry.is_dir(follow_symlinks=False):
            if not passes_over(name):
                stack.append(f"{inside}{name}/")
        elif wants:
            _image(found, root, inside + name, entry)
        elif entry.is_symlink() and entry.is_dir():
            _link_to_folder(found, root, inside + name, entry)
        else:
            suffix = ending.lower()
            found.others[suffix or "without a suffix"] += 1
            if suffix in alike:
                found.unread.append(inside + name)


def _image(found: Listing, root: Path, name: str, entry: os.DirEntry) -> None:
    """Adds what has an image's name: a regular file, or a link to one, or something else."""
    try:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            if entry.is_dir():
                _link_to_folder(found, root, name, entry)
                return
            if _leads_out(root, entry):
                _refuse(found, name, LINK)
                return
            status = entry.stat()
    except OSError as error:
        _refuse(found, name, f"cannot be read ({error.strerror})")
        return
    if not stat.S_ISREG(status.st_mode):
        found.bad[name] = "not a regular file"
    elif not status.st_size:
        found.bad[name] = "an empty file"
    found.files.append(name)
    found.sizes[name], found.times[name] = status.st_size, status.st_mtime_ns


def _refuse(found: Listing, name: str, reason: str) -> None:
    found.files.append(name)
    found.sizes[name] = found.times[name] = 0
    found.bad[name] = reason


def _link_to_folder(found: Listing, root: Path, name: str, entry: os.DirEntry) -> None:
    """Such links are not followed: what is inside the root is seen under its own name."""
    if _leads_out(root, entry):
        found.bad[name] = LINK


def _leads_out(root: Path, entry: os.DirEntry) -> bool:
    return not Path(os.path.realpath(entry.path)).is_relative_to(root)


def refuse_lost(path: str, found: Listing, names: Sequence[str], depth: int, what: str) -> None:
    """Refuses a label folder whose files are all in formats that are not read: its label would be
    missing without a word.

    Args:
      path: of the folder, for messages.
      names: what is read, by path inside the folder.
      depth: of the label folder in a path: 1 below folders that are parts, else 0.
      what: the files are, for the message.

    Raises:
      ValueError: names such folders and the formats.
    """
    if not all(name.count("/") > depth for name in names):
        return  # they have no label folders
    read = {tuple(name.split("/")[: depth + 1]) for name in names}
    parts = {folders[:depth] for folders in read}
    there = {
        tuple(name.split("/")[: depth + 1]) for name in found.unread if name.count("/") > depth
    }
    if lost := sorted(folders for folders in there - read if folders[:depth] in parts):
        shown = some([images.printable("/".join(folders)) for folders in lost])
        raise ValueError(
            f"{path}: its folders {shown} hold no {what} that can be read, but {unread_in(found)}. "
            "Convert those files, or move the folders away."
        )


def unread_in(found: Listing) -> str:
    """The files of the wanted kind that are not read, counted by suffix, in words."""
    counts = collections.Counter(images.suffix(name) for name in found.unread)
    return some([f"{count} {ending}" for ending, count in counts.most_common()], _SHOWN)


# What was checked before --------------------------------------


def remembered(root: Path, found: Listing, key: str, cache_dir: str | None) -> set[str]:
    """The images that were checked before and have the same size and time since."""
    file = _file_of(root, key, cache_dir)
    if file is None:
        return set()
    try:
        if not file.is_file():
            return set()
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as kept:
            names = bytes(kept["names"]).decode("utf-8", "surrogateescape").split("\0")
            rows = zip(names, kept["sizes"].tolist(), kept["times"].tolist(), strict=True)
            return {
                name
                for name, size, time in rows
                if found.sizes.get(name) == size and found.times[name] == time
            }
    except Exception as error:  # damaged: all is checked again
        logging.info("%s cannot be read (%s); the images are checked again.", file, error)
        return set()


def remember(root: Path, found: Listing, good: list[str], key: str, cache_dir: str | None) -> None:
    """Keeps which images were checked. A place that cannot be written costs the next start its
    time, and nothing else."""
    file = _file_of(root, key, cache_dir)
    if file is None or not good:
        return
    names = "\0".join(good).encode("utf-8", "surrogateescape")
    sizes = np.array([found.sizes[name] for name in good], np.int64)
    times = np.array([found.times[name] for name in good], np.int64)
    raw = np.frombuffer(names, np.uint8)
    try:
        kept.put(file, lambda out: np.savez(out, names=raw, sizes=sizes, times=times))
    except OSError as error:
        logging.info("%s is not kept (%s).", file, error)


def _file_of(root: Path, key: str, cache_dir: str | None) -> Path | None:
    if cache_dir is None or os.path.expanduser(cache_dir).startswith("~"):
        return None  # a user of a container may have no home directory
    place = user_path(cache_dir) if cache_dir else paths.cache()
    if place is None:
        return None
    name = hashlib.sha256(f"{key} {root}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return place / "checked" / f"{name}.npz"
