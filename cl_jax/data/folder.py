"""`folder`: the user's own directory of images, of any sizes and of any format that Pillow reads.

    photos/*.jpg                             no labels
    photos/cat/*.jpg  photos/dog/*.png       sub-folders are classes, by name in alphabetical order
    photos/train/...  photos/test/...        parts, each in one of the forms above; "unlabeled" is a
                                             third

Parts have many names, in any case: "train", "training", "train2017"; "test", "testing", "valid",
"validation", "val", "dev"; "unlabeled", "unlabelled".

Without a test folder a share of each class belongs to the test part by a hash of its images' paths:
the same on every machine, and unchanged for the others when images are added.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cl_jax.core.paths import user_path
from cl_jax.data import images, listing
from cl_jax.data.batches import cores
from cl_jax.data.layout import Layout, divide, hold_out, limited
from cl_jax.data.leakage import tell_copies, tell_formats
from cl_jax.data.listing import Listing
from cl_jax.data.parts import ON_PARTS
from cl_jax.data.reading import (
    SAMPLED,
    Reading,
    checked,
    learnt_of,
    read_or_next,
    reason_of,
    scale_of,
)
from cl_jax.data.source import Example, Source, Splits, from_arrays, with_learnt

_CLASSES_SHOWN = 20


class Survey(NamedTuple):
    """What a folder holds, by its names alone.

    train, test: images of the two parts. classes: {name: training images}, empty without labels.
    lines: the same in words, with the reason for what is a class. unlabeled: images of that part.
    """

    train: int
    test: int
    classes: dict[str, int]
    lines: tuple[str, ...]
    unlabeled: int = 0


def make(
    *,
    path: str,
    image_size: int,
    channels: int = 3,
    labels: bool = True,
    test_share: float = 0.1,
    limit: int = 0,
    on_error: str = "raise",
    on_parts: str = "raise",
    value_range: tuple[float, float] | None = None,
    max_pixels: int = images.MAX_PIXELS,
    cache_bytes: int = 2**32,
    cache_dir: str | None = "",
    workers: int = 0,
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """The images below `path`, as squares of `image_size` (short side resized, centre cropped).

    Args:
      path: the folder.
      image_size: side of the stored square, in pixels. Views crop from it.
      channels: 3, where grey images become three equal channels, or 1, where colours become their
        luma; or another number, which every file must hold: bands or pages of a TIFF, arrays
        [H, W, C] in .npy files.
      labels: sub-folders are classes. False takes the images of all sub-folders without labels.
      test_share: of the images of each class, where the folder has no test folder.
      limit: about so many training images and half as many of other parts are read, of all classes
        alike and at least two of each; 0 for all. For trying a command.
      on_error: "raise" names the images that cannot be used; "skip" leaves them out, logs them and
        counts them in `Source.skipped`.
      on_parts: of folders that would be classes and are named like parts ("my_train" and "my_test";
        "unlabeled" beside others than "train"). "raise" refuses them; "warn" takes them for
        classes.
      value_range: (low, high), the numbers that become 0 and 255 in files of more than 8 bits;
        numbers outside are cut off. None: for integers the fewest of 8, 10, 12, 14 or 16 bits that
        hold those of 64 such files, told in a warning; for floats 0 and 1. Numbers outside are then
        errors.
      max_pixels: an image with more is refused before it is decoded.
      cache_bytes: sets up to this size are decoded once, here, and kept in memory. Larger ones are
        decoded as they are read: here only headers and ends of files are checked, and under "skip"
        an image found damaged in its middle later is replaced by the next one of its class.
      cache_dir: where it is remembered which files were checked, by name, size and time; "" for
        `~/.cache/cl_jax` (or below XDG_CACHE_HOME), None for nowhere.
      workers: threads that check and decode; 0 for one a core.
      learnt: see `Source`: {"value_range"}, where no range was given and one was found.

    Raises:
      ValueError: no such folder, no images in it, images beside class folders, parts that cannot be
        told from classes, images that cannot be used: truncated, empty, too large, of other
        channels, or a link that leads out of the folder.
    """
    _check_settings(path, image_size, channels, test_share, on_error, on_parts)
    if limit < 0:
        raise ValueError(f"limit={limit}; expected a number of images, or 0 for all.")
    root, found = _listed(path)
    if found.others:
        logging.warning("%s: skipped files: %s.", path, found.told())
    layout = limited(divide(path, found, labels, test_share, on_parts), limit)

    workers = workers or cores()
    names = [name for part in layout.parts.values() for name in part]
    opened = [name for name in names if name not in found.bad]
    scale = scale_of(root, opened, value_range, learnt)
    reading = Reading(root, image_size, channels, max_pixels, scale)
    keep = len(names) * image_size**2 * channels <= cache_bytes
    pixels, bad = checked(reading, found, layout.parts, keep, cache_dir, workers)
    skipped = {part: sum(name in bad for name in names) for part, names in layout.parts.items()}
    if bad:
        images.report_bad("images", path, bad, on_error)
        layout, pixels = _without(layout, pixels, bad, test_share)
    tell_formats(path, layout)
    tell_copies(root, found, layout.parts, pixels)
    sources = {
        part: dataclasses.replace(
            _source(part, reading, layout, pixels.get(part), on_error), skipped=skipped[part]
        )
        for part in layout.parts
    }
    splits = Splits(sources.pop("train"), sources.pop("test"), sources)
    return with_learnt(splits, learnt_of(scale) or None)


def _check_settings(
    path: str,
    image_size: int,
    channels: int,
    test_share: float,
    on_error: str,
    on_parts: str = "raise",
) -> None:
    _check_path(path)
    if image_size < 1:
        raise ValueError(f"image_size={image_size}; expected the side in pixels, at least 1.")
    if channels < 1:
        raise ValueError(f"channels={channels}; expected at least 1.")
    if not 0 < test_share < 1:
        raise ValueError(
            f"test_share={test_share}; expected above 0 and below 1: evaluation needs images of "
            f"its own."
        )
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}; expected 'raise' or 'skip'.")
    if on_parts not in ON_PARTS:
        raise ValueError(f"on_parts={on_parts!r}; expected 'raise' or 'warn'.")


def _check_path(path: str) -> None:
    if not path:
        raise ValueError(
            "path is empty; set --config.data.path to the folder of your images, as in `cl-jax "
            "train CONFIG:folder PATH`."
        )


def _listed(path: str) -> tuple[Path, Listing]:
    """The real path of a folder that holds images, and its listing."""
    _check_path(path)
    root = user_path(path)
    if not root.is_dir():
        raise ValueError(f"path={path!r} is not a folder. Give the folder that holds your images.")
    root = root.resolve()
    found = listing.of(root)
    if not found.files:
        raise ValueError(_nothing(path, found))
    return root, found


# What is there --------------------------------------


def survey(
    *,
    path: str,
    labels: bool = True,
    test_share: float = 0.1,
    limit: int = 0,
    on_parts: str = "raise",
) -> Survey:
    """What `make` will find at `path`, from names and the headers of a few files, without reading
    the images.

    Raises:
      ValueError: as `make`, as far as names show it.
    """
    root, found = _listed(path)
    layout = limited(divide(path, found, labels, test_share, on_parts), limit)
    sizes = {part: len(names) for part, names in layout.parts.items()}
    counts = collections.Counter(
        layout.numbers[name] for name in layout.parts["train"] if name in layout.numbers
    )
    classes = {name: counts[number] for number, name in enumerate(layout.classes)}
    used = {name for names in layout.parts.values() for name in names}
    place = f"{sizes['train']} to train, {sizes['test']} to test"
    if "unlabeled" in sizes:
        place += f", {sizes['unlabeled']} without labels"
    reason = (
        f"the test part is {test_share:.0%} of each class, by a hash of its paths"
        if layout.classes and layout.holds_out
        else f"the test part is {test_share:.0%} of all, by a hash of their paths"
        if layout.holds_out
        else "the parts are the folder's own"
    )
    lines = [
        f"{path}: {len(found.files)} images"
        + (f", of which {len(used)} are used (limit={limit})" if limit else "")
        + f": {place}; {reason}.",
        _classes_in_words(found, layout, classes, labels),
        _sides_in_words(root, sorted(used - found.bad.keys())),
    ]
    # `make` names the files that it skips.
    told = tuple(filter(None, lines))
    return Survey(sizes["train"], sizes["test"], classes, told, sizes.get("unlabeled", 0))


def _classes_in_words(found: Listing, layout: Layout, classes: dict[str, int], labels: bool) -> str:
    if not classes:
        if not labels:
            why = "labels=False"
        elif any("/" in file for file in found.files):
            why = "there are not several sub-folders beside each other"
        else:
            why = "the images are in no sub-folders"
        return f"no classes: {why}. Training needs none; figures that need labels are left out."
    most = sorted(classes, key=lambda name: -classes[name])
    shown = [f"{images.printable(name)} {classes[name]}" for name in most[:_CLASSES_SHOWN]]
    rest = len(most) - len(shown)
    told = ", ".join(shown) + f" and {rest} more, down to {classes[most[-1]]}" * (rest > 0)
    return (
        f"{len(classes)} classes, one for each sub-folder (labels=False takes them for none), with "
        f"training images: {told}."
    )


def _sides_in_words(root: Path, names: list[str]) -> str:
    """Sizes of some of the images, from their headers."""
    rows = np.unique(np.linspace(0, len(names) - 1, SAMPLED).astype(int)) if names else ()
    sides = []
    for row in rows:
        try:
            sides.append(images.sides(root / names[row], names[row]))
        except ValueError:  # told with all the others that cannot be read
            continue
    if not sides:
        return ""
    ordered = sorted(sides, key=math.prod)
    small, middle, large = (ordered[i] for i in (0, len(ordered) // 2, -1))
    if small == large:
        return f"size: {small[0]} x {small[1]} pixels ({len(sides)} looked at)."
    return (
        f"sizes: from {small[0]} x {small[1]} to {large[0]} x {large[1]} pixels, in the middle "
        f"{middle[0]} x {middle[1]} ({len(sides)} looked at)."
    )


# All images, in one source --------------------------------------


def everything(
    path: str,
    *,
    image_size: int,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = images.MAX_PIXELS,
    learnt: Mapping[str, Any] | None = None,
) -> tuple[Source, dict[str, str]]:
    """All images below `path` in one source, each decoded when it is read: for a network that is
    used on them, not trained.

    Args:
      path: a folder, in any of the forms of `make`; or one image.
      image_size, channels, value_range, max_pixels, learnt: as in `make`.

    Returns:
      (source, bad). `source.names` are paths inside the folder, sorted. It has a label where the
      folder has classes. bad: {name: reason} of images that cannot be used; an image found damaged
      when it is read is added then, and its example is black.

    Raises:
      ValueError: no such path, no image below it, settings out of range.
    """
    _check_settings(path, image_size, channels, 0.1, "skip")
    root = user_path(path)
    if root.is_file():
        return listed(
            [root],
            image_size=image_size,
            channels=channels,
            value_range=value_range,
            max_pixels=max_pixels,
            learnt=learnt,
        )
    if not root.is_dir():
        raise ValueError(f"{path!r} is neither a folder nor an image; expected one that is there.")
    root = root.resolve()
    found = listing.of(root)
    if not found.files:
        raise ValueError(_nothing(path, found))
    if found.others:
        logging.warning("%s: skipped files: %s.", path, found.told())
    layout = Layout({"train": found.files}, {}, [], False)
    if len(found.files) > 1:
        try:
            # Nothing is trained on, so that no part can be taken for a class too many.
            layout = divide(path, found, True, 0.1, "warn")
        except ValueError as error:
            logging.warning("no labels: %s", error)
    bad = dict(found.bad)
    names = [name for name in found.files if name not in bad]
    scale = scale_of(root, names, value_range, learnt)
    reading = Reading(root, image_size, channels, max_pixels, scale)
    return _every(images.printable(root.name), reading, names, layout, bad), bad


def listed(
    paths: Sequence[str | Path],
    *,
    image_size: int,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = images.MAX_PIXELS,
    learnt: Mapping[str, Any] | None = None,
) -> tuple[Source, dict[str, str]]:
    """Images by their paths, in this order, as `everything` gives those of a folder.

    Raises:
      ValueError: no path, none of them a file, settings out of range.
    """
    names = [str(user_path(path)) if str(path)[:1] == "~" else str(path) for path in paths]
    if not names:
        raise ValueError("no path is given; expected at least one image.")
    bad = {name: "no such file" for name in names if not Path(name).is_file()}
    kept = [name for name in names if name not in bad]
    if not kept:
        raise ValueError(f"none of the {len(names)} files is there, for instance {names[0]}.")
    scale = scale_of(Path(), kept, value_range, learnt)
    reading = Reading(Path(), image_size, channels, max_pixels, scale)
    return _every("images", reading, kept, Layout({}, {}, [], False), bad), bad


def _every(
    called: str, reading: Reading, names: list[str], layout: Layout, bad: dict[str, str]
) -> Source:
    if not names:
        name, why = next(iter(bad.items()))
        raise ValueError(
            f"none of the {len(bad)} images in {called} can be used; {images.printable(name)}: "
            f"{why}."
        )
    labels = np.array([layout.numbers.get(name, -1) for name in names], np.int32)
    fields = {"label": labels} if layout.classes else {}

    def read(i: int) -> Example:
        try:
            image = reading(names[i])
        except ValueError as error:
            bad[names[i]] = reason_of(error, names[i])
            side = reading.image_size
            image = np.zeros((side, side, reading.channels), np.uint8)
        return {"image": image, **{field: values[i] for field, values in fields.items()}}

    return Source(
        called,
        len(names),
        read,
        {field: len(layout.classes) for field in fields},
        labels=fields.__getitem__ if fields else None,
        names=names,
        classes={field: tuple(layout.classes) for field in fields},
    )


# Examples --------------------------------------


def _without(
    layout: Layout, pixels: dict[str, np.ndarray], bad: dict[str, str], share: float
) -> tuple[Layout, dict[str, np.ndarray]]:
    """The layout without images that cannot be used, and the decoded images of its parts. What is
    held out is chosen again among the good ones, so that both parts have some of each class."""
    parts = {
        part: [file for file in names if file not in bad] for part, names in layout.parts.items()
    }
    changed = layout._replace(parts=parts)
    if layout.holds_out:
        train = sorted(parts["train"] + parts["test"])
        changed = hold_out(changed._replace(parts=parts | {"train": train}), share)
    rows = {
        file: pixels[part][row]
        for part, names in layout.parts.items()
        if part in pixels
        for row, file in enumerate(names)
    }
    kept = {
        part: np.stack([rows[file] for file in names])
        for part, names in changed.parts.items()
        if rows and names
    }
    return changed, kept


def _source(
    part: str, reading: Reading, layout: Layout, pixels: np.ndarray | None, on_error: str
) -> Source:
    names = layout.parts[part]
    if not names:
        raise ValueError(f"{reading.root}: no image of its {part} part can be used.")
    name = f"{images.printable(reading.root.name)}/{part}"
    fields: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    if layout.classes and part != "unlabeled":
        fields = {"label": np.array([layout.numbers[name] for name in names], np.int32)}
        sizes = {"label": len(layout.classes)}
    classes = {"label": tuple(layout.classes)} if sizes else {}
    if pixels is not None:
        found = from_arrays(name, {"image": pixels, **fields}, sizes)
        return dataclasses.replace(found, names=names, classes=classes)
    read_one = functools.partial(_read, reading, names, fields)
    read: Callable[[int], Example] = read_one
    if on_error == "skip":
        read = functools.partial(read_or_next, name, read_one, len(names), fields.get("label"))
    return Source(
        name,
        len(names),
        read,
        sizes,
        labels=fields.__getitem__ if fields else None,
        names=names,
        classes=classes,
    )


def _read(reading: Reading, names: list[str], fields: dict[str, np.ndarray], i: int) -> Example:
    return {"image": reading(names[i]), **{field: values[i] for field, values in fields.items()}}


def _nothing(path: str, found: Listing) -> str:
    seen = f" It has other files: {found.told()}." if found.others else ""
    if found.bad:
        name, reason = next(iter(found.bad.items()))
        seen += f" It has {images.printable(name)}: {reason}."
    return (
        f"{path} holds no image.{seen} Images end in "
        f"{', '.join(name for name in images.SUFFIXES if name in images.readable())}, at any "
        "depth; "
        "convert others first."
    )
