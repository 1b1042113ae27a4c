"""`folder`: the user's own directory of images, JPEG, PNG or WebP of any sizes.

    photos/*.jpg                             no labels
    photos/cat/*.jpg  photos/dog/*.png       sub-folders are classes, by name in alphabetical order
    photos/train/...  photos/test/...        parts, each in one of the forms above ("val" or
                      "validation" will do for
                                             "test"); "unlabeled" beside them is a third

Without a test folder an image belongs to the test part by a hash of its path: the same on every
machine, and unchanged for the others when images are added.
"""

import collections
import dataclasses
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from cl_jax.data import images
from cl_jax.data.source import Source, Splits, from_arrays

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_TEST_NAMES = ("test", "validation", "val")
_SHOWN = 5  # images that an error names


def make(
    *,
    path: str,
    image_size: int,
    channels: int = 3,
    labels: bool = True,
    test_share: float = 0.1,
    on_error: str = "raise",
    max_pixels: int = images.MAX_PIXELS,
    cache_bytes: int = 2**32,
    workers: int = 8,
) -> Splits:
    """The images below `path`, as squares of `image_size` (short side resized, centre cropped).

    Args:
      path: the folder.
      image_size: side of the stored square, in pixels. Views crop from it.
      channels: 3, where grey images become three equal channels, or 1, where colours become their
        luma.
      labels: sub-folders are classes. False takes the images of all sub-folders without labels.
      test_share: of the images, where the folder has no test folder.
      on_error: "raise" names the images that cannot be used; "skip" leaves them out, logs them and
        counts them in `Source.skipped`.
      max_pixels: an image with more is refused before it is decoded.
      cache_bytes: sets up to this size are decoded once, here, and kept in memory. Larger ones are
        decoded as they are
        read: here only headers and ends of files are checked, and under "skip" an image found
          damaged in its middle
        later is replaced by the next one.
      workers: threads that check and decode.

    Raises:
      ValueError: no such folder, no images in it, images beside class folders, images that cannot
        be used: truncated, empty, too large, or a link that leads out of the folder.
    """
    _check_knobs(image_size, channels, test_share, on_error)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"path={path!r} is not a folder. Give the folder that holds your images.")
    files, bad, others = _walk(root.resolve())
    if not files:
        raise ValueError(_nothing(path, bad, others))
    if others:
        logging.info("%s: other files left aside: %s.", path, _counts(others))
    parts, classes = _layout(path, files, labels, test_share)

    # All parts are read before an error, so that it names every image.
    keep = len(files) * image_size**2 * channels <= cache_bytes
    pixels: dict[str, np.ndarray] = {}
    for part, names in parts.items():
        if keep:
            pixels[part] = np.zeros((len(names), image_size, image_size, channels), np.uint8)
        one = _checker(root, names, bad, pixels.get(part), image_size, channels, max_pixels)
        failures = images.map_threads(one, range(len(names)), workers)
        bad |= {name: failure for name, failure in zip(names, failures) if failure}
    if bad:
        _report(path, bad, on_error)

    sources = {}
    for part, names in parts.items():
        good = np.array([i for i, name in enumerate(names) if name not in bad], np.int64)
        usable = [names[i] for i in good]
        if not usable:
            raise ValueError(f"{path}: no image of its {part} part can be used.")
        sources[part] = _source(
            f"{root.name}/{part}",
            root,
            usable,
            classes.get(part),
            pixels.get(part),
            good,
            len(names) - len(good),
            image_size,
            channels,
            max_pixels,
            on_error,
        )
    return Splits(sources.pop("train"), sources.pop("test"), sources)


def _check_knobs(image_size: int, channels: int, test_share: float, on_error: str) -> None:
    if image_size < 1:
        raise ValueError(f"image_size={image_size}; expected the side in pixels, at least 1.")
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}; expected 1 or 3.")
    if not 0 < test_share < 1:
        raise ValueError(
            f"test_share={test_share}; expected above 0 and below 1: evaluation needs images of "
            f"its own."
        )
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}; expected 'raise' or 'skip'.")


def _walk(root: Path) -> tuple[list[str], dict[str, str], collections.Counter[str]]:
    """(images, by path inside the folder; what may not be opened, with the reason; other files,
    counted by suffix).

    What may not be opened is among the images too, unless it is a folder.
    """
    files: list[str] = []
    bad: dict[str, str] = {}
    others: collections.Counter[str] = collections.Counter()

    def unreadable(error: OSError) -> None:
        bad[Path(error.filename).relative_to(root).as_posix()] = (
            f"cannot be listed ({error.strerror})"
        )

    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in (
            subfolders
        ):  # links to folders are not followed; those inside are seen under their own name
            if _leads_out(root, Path(folder, name)):
                bad[Path(folder, name).relative_to(root).as_posix()] = (
                    "a link that leads out of the folder"
                )
        for name in names:
            file = Path(folder, name)
            relative = file.relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if file.suffix.lower() not in SUFFIXES:
                others[file.suffix.lower() or "no suffix"] += 1
                continue
            files.append(relative)
            if failure := _forbidden(root, file):
                bad[relative] = failure
    return sorted(files), bad, others


def _leads_out(root: Path, file: Path) -> bool:
    return file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(root)


def _forbidden(root: Path, file: Path) -> str:
    """Why a file may not be opened, or ""."""
    if _leads_out(root, file):
        return "a link that leads out of the folder"
    try:
        status = file.stat()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return "" if status.st_size else "an empty file"


def _layout(
    path: str, files: list[str], labels: bool, test_share: float
) -> tuple[dict[str, list[str]], dict[str, tuple[list[str], str]]]:
    """(images of each part; per part the class names and the folder that class folders are in,
    where there are any)."""
    tops = {file.split("/")[0] for file in files if "/" in file}
    beside = [file for file in files if "/" not in file]
    if "train" in tops and tops <= {"train", "unlabeled", *_TEST_NAMES}:
        if beside:
            raise ValueError(
                f"{path} has images beside its train folder, such as {beside[0]}. Move them into "
                f"a part."
            )
        places: dict[str, str] = {
            part: f"{part}/" for part in ("train", "unlabeled") if part in tops
        }
        given = [name for name in _TEST_NAMES if name in tops]
        if given:
            places["test"] = f"{given[0]}/"
        if given[1:]:
            logging.warning(
                "%s: the test part is %s; %s left aside.", path, given[0], " and ".join(given[1:])
            )
    else:
        places = {"train": ""}
    parts = {
        part: [file for file in files if file.startswith(place)] for part, place in places.items()
    }
    found = {
        part: _class_names(path, names, places[part]) if labels and part != "unlabeled" else []
        for part, names in parts.items()
    }
    names = found["train"]
    if "test" in found and (set(found["test"]) - set(names) or bool(found["test"]) != bool(names)):
        raise ValueError(
            f"{path}: the class folders of its parts differ: train has {_some(names)}, test has "
            f"{_some(found['test'])}. Name them alike, or set labels=False."
        )
    if "test" not in parts:
        places["test"] = places["train"]
        parts["test"] = _hashed(parts["train"], test_share)
        chosen = set(parts["test"])
        parts["train"] = [file for file in parts["train"] if file not in chosen]
        if not parts["train"] or not chosen:
            raise ValueError(
                f"{path} has {len(files)} image, too few for a train and a test part. Add images."
            )
    return parts, {part: (names, places[part]) for part in ("train", "test") if names}


def _class_names(path: str, files: list[str], place: str) -> list[str]:
    inside = [file.removeprefix(place) for file in files]
    names = sorted({file.split("/")[0] for file in inside if "/" in file})
    if len(names) < 2:  # one folder tells nothing apart
        return []
    beside = [file for file in inside if "/" not in file]
    if beside:
        raise ValueError(
            f"{path} has images beside its class folders ({_some(names)}), such as "
            f"{place}{beside[0]}. "
            "Move them into a class folder, or set labels=False to take all images without labels."
        )
    return names


def _hashed(files: list[str], share: float) -> list[str]:
    """Those of the test part: at least one of two files or more, and never all."""
    place = {
        file: int.from_bytes(
            hashlib.sha256(file.encode("utf-8", "surrogateescape")).digest()[:8], "big"
        )
        / 2**64
        for file in files
    }
    ordered = sorted(files, key=lambda file: place[file])
    count = sum(value < share for value in place.values())
    return sorted(ordered[: max(1, min(count, len(files) - 1))])


def _checker(
    root: Path,
    names: list[str],
    bad: dict[str, str],
    pixels: np.ndarray | None,
    image_size: int,
    channels: int,
    max_pixels: int,
) -> Callable[[int], str]:
    """Of the number of an image, why it cannot be used, or "". Where there are `pixels`, it is
    decoded into them."""

    def one(i: int) -> str:
        if names[i] in bad:
            return bad[names[i]]
        try:
            if pixels is None:
                images.inspect(root / names[i], names[i], max_pixels=max_pixels)
            else:
                pixels[i] = images.decode(
                    root / names[i],
                    names[i],
                    image_size=image_size,
                    channels=channels,
                    max_pixels=max_pixels,
                )
        except ValueError as error:
            return str(error).removeprefix(f"{images.printable(names[i])}: ")
        return ""

    return one


def _report(path: str, bad: dict[str, str], on_error: str) -> None:
    shown = [f"{images.printable(name)}: {reason}" for name, reason in sorted(bad.items())]
    if on_error == "raise":
        more = f"\n  and {len(shown) - _SHOWN} more" * (len(shown) > _SHOWN)
        raise ValueError(
            f"{len(shown)} of the images in {path} cannot be used:\n  "
            + "\n  ".join(shown[:_SHOWN])
            + more
            + "\nMend or remove them, or set on_error='skip' to leave them out."
        )
    for line in shown:
        logging.warning("skipped %s", line)
    logging.warning("%s: skipped %d that cannot be used.", path, len(shown))


def _source(
    name: str,
    root: Path,
    usable: list[str],
    classes: tuple[list[str], str] | None,
    pixels: np.ndarray | None,
    good: np.ndarray,
    skipped: int,
    image_size: int,
    channels: int,
    max_pixels: int,
    on_error: str,
) -> Source:
    fields: dict[str, np.ndarray] = {}
    number: dict[str, int] = {}
    if classes is not None:
        numbers = {folder: i for i, folder in enumerate(classes[0])}
        label = [numbers[file.removeprefix(classes[1]).split("/")[0]] for file in usable]
        fields, number = {"label": np.array(label, np.int32)}, {"label": len(numbers)}
    if pixels is not None:
        arrays = {"image": pixels[good] if skipped else pixels, **fields}
        return dataclasses.replace(from_arrays(name, arrays, number), skipped=skipped)

    def read_one(i: int) -> dict[str, np.ndarray]:
        image = images.decode(
            root / usable[i],
            usable[i],
            image_size=image_size,
            channels=channels,
            max_pixels=max_pixels,
        )
        return {"image": image, **{field: values[i] for field, values in fields.items()}}

    def read_or_next(i: int) -> dict[str, np.ndarray]:
        for j in range(i, i + len(usable)):
            try:
                return read_one(j % len(usable))
            except ValueError as error:
                logging.warning("replaced by the next image: %s", error)
        raise ValueError(f"{name}: none of its {len(usable)} images can be read.")

    return Source(
        name,
        len(usable),
        read_one if on_error == "raise" else read_or_next,
        number,
        labels=fields.__getitem__ if fields else None,
        skipped=skipped,
    )


def _nothing(path: str, bad: dict[str, str], others: collections.Counter[str]) -> str:
    seen = f" It has other files: {_counts(others)}." if others else ""
    seen += (
        f" It has {images.printable(next(iter(bad)))}: {next(iter(bad.values()))}." if bad else ""
    )
    return (
        f"{path} holds no image.{seen} Images end in {', '.join(SUFFIXES)}, at any depth; "
        f"convert others first."
    )


def _counts(others: collections.Counter[str]) -> str:
    return ", ".join(f"{number} {suffix}" for suffix, number in others.most_common(_SHOWN))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN) if names else "none"
