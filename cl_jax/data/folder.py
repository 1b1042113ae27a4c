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
import re
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from cl_jax.core.paths import user_path
from cl_jax.data import images, listing
from cl_jax.data.batches import cores
from cl_jax.data.listing import Listing
from cl_jax.data.parts import NAMES, TEST_NAMES, by_hash, drawn, role, stem, tell_duplicates
from cl_jax.data.source import Example, Source, Splits, from_arrays

# As words of a name, what parts are called elsewhere: not known for sure, and never classes where
# such folders repeat the same sub-folders.
_LIKE_PARTS = frozenset(
    "tr te trn tst cv fold split part holdout hold heldout validate trainval gallery query extra "
    "seen unseen labeled labelled trains tests".split()
)
_SHOWN = 5  # images that an error names
_SAMPLED = 64  # files that are looked into for sizes, and for how many of their 16 bits are used
_CLASSES_SHOWN = 20
# of two thumbnails of one picture: so far apart on average, and not flat; images compared for each
_NEAR, _FLAT, _COMPARED = 4.0, 16.0, 50
_ADVICE = (
    'Parts are named "train" and "test" (or "valid", "val", "dev"), and "unlabeled"; rename them, '
    "or set labels=False to take all images without labels."
)


class Layout(NamedTuple):
    """Which images are in which part. classes: their names, none where there are no labels.
    numbers: the class of each image of train and test; empty without classes. holds_out: the test
    part is a share of the training images."""

    parts: dict[str, list[str]]
    numbers: dict[str, int]
    classes: list[str]
    holds_out: bool


class Survey(NamedTuple):
    """What a folder holds, by its names alone.

    train, test: images of the two parts. classes: {name: training images}, empty without labels.
    lines: the same in words, with the reason for what is a class.
    """

    train: int
    test: int
    classes: dict[str, int]
    lines: tuple[str, ...]


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


def make(
    *,
    path: str,
    image_size: int,
    channels: int = 3,
    labels: bool = True,
    test_share: float = 0.1,
    limit: int = 0,
    on_error: str = "raise",
    value_range: tuple[float, float] | None = None,
    max_pixels: int = images.MAX_PIXELS,
    cache_bytes: int = 2**32,
    cache_dir: str | None = "~/.cache/cl_jax",
    workers: int = 0,
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
      value_range: (low, high), the numbers that become 0 and 255 in files of more than 8 bits;
        numbers outside are cut off. None: for integers the fewest of 8, 10, 12, 14 or 16 bits that
        hold those of 64 such files, told in a warning; for floats 0 and 1. Numbers outside are then
        errors.
      max_pixels: an image with more is refused before it is decoded.
      cache_bytes: sets up to this size are decoded once, here, and kept in memory. Larger ones are
        decoded as they are read: here only headers and ends of files are checked, and under "skip"
        an image found damaged in its middle later is replaced by the next one of its class.
      cache_dir: where it is remembered which files were checked, by name, size and time; None for
        nowhere.
      workers: threads that check and decode; 0 for one a core.

    Raises:
      ValueError: no such folder, no images in it, images beside class folders, parts that cannot be
        told from classes, images that cannot be used: truncated, empty, too large, of other
        channels, or a link that leads out of the folder.
    """
    _check_settings(path, image_size, channels, test_share, on_error, value_range)
    if limit < 0:
        raise ValueError(f"limit={limit}; expected a number of images, or 0 for all.")
    root, found = _listed(path)
    if found.others:
        logging.warning("%s: skipped files: %s.", path, found.told())
    layout = _limited(divide(path, found, labels, test_share), limit)

    workers = workers or cores()
    names = [name for part in layout.parts.values() for name in part]
    scale = _scale(root, names, found, value_range)
    reading = Reading(root, image_size, channels, max_pixels, scale)
    keep = len(names) * image_size**2 * channels <= cache_bytes
    pixels, bad = _checked(reading, found, layout.parts, keep, cache_dir, workers)
    skipped = {part: sum(name in bad for name in names) for part, names in layout.parts.items()}
    if bad:
        images.report_bad("images", path, bad, on_error)
        layout, pixels = _without(layout, pixels, bad, test_share)
    _tell_formats(path, layout)
    _tell_copies(root, found, layout.parts, pixels)
    sources = {
        part: dataclasses.replace(
            _source(part, reading, layout, pixels.get(part), on_error), skipped=skipped[part]
        )
        for part in layout.parts
    }
    return Splits(sources.pop("train"), sources.pop("test"), sources)


def _check_settings(
    path: str,
    image_size: int,
    channels: int,
    test_share: float,
    on_error: str,
    value_range: tuple[float, float] | None,
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
    if value_range is not None and not value_range[0] < value_range[1]:
        raise ValueError(f"value_range={value_range}; expected (low, high) with low below high.")


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


def survey(*, path: str, labels: bool = True, test_share: float = 0.1, limit: int = 0) -> Survey:
    """What `make` will find at `path`, from names and the headers of a few files, without reading
    the images.

    Raises:
      ValueError: as `make`, as far as names show it.
    """
    root, found = _listed(path)
    layout = _limited(divide(path, found, labels, test_share), limit)
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
    if found.others:
        lines.append(f"skipped files: {found.told()}.")
    if found.bad:
        name, why = next(iter(found.bad.items()))
        lines.append(f"not opened: {len(found.bad)}, such as {images.printable(name)}: {why}.")
    return Survey(sizes["train"], sizes["test"], classes, tuple(filter(None, lines)))


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
    rows = np.unique(np.linspace(0, len(names) - 1, _SAMPLED).astype(int)) if names else ()
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


# Parts and classes --------------------------------------


def divide(path: str, found: Listing, labels: bool, test_share: float) -> Layout:
    """The parts of a listing and the classes in them.

    Raises:
      ValueError: images beside parts or class folders, parts whose classes differ, folders that
        may be parts or classes.
    """
    places = _places(path, found)
    parts = {
        part: [file for file in found.files if file.startswith(place)]
        for part, place in places.items()
    }
    inner = {
        part: _inner(path, names, places[part]) if labels else []
        for part, names in parts.items()
        if part != "unlabeled"
    }
    classes = inner["train"] if len(inner["train"]) > 1 else []  # one folder tells nothing apart
    if classes and "test" in inner and not inner["test"]:
        raise ValueError(
            f"{path}: the class folders of its parts differ: train has {_some(classes)}, test has "
            "none. Name them alike, or set labels=False."
        )
    strange = sorted(set(inner.get("test", [])) - set(classes))
    if strange and (classes or len(inner["test"]) > 1):
        raise ValueError(
            f"{path}: the class folders of its parts differ: train has {_some(inner['train'])}, "
            f"test has {_some(strange)} besides. Name them alike, or set labels=False."
        )
    for part, names in inner.items():
        lost = sorted(_tops_of_others(found, places[part]) - set(names)) if names else []
        if lost:
            raise ValueError(
                f"{path}: of the class folders of its {part} part, {_some(lost)} hold no image "
                f"that can be read; skipped files: {found.told()}. Convert those files, or move "
                "the folders away."
            )
    number = {name: i for i, name in enumerate(classes)}
    numbers = {
        file: number[file.removeprefix(places[part]).split("/")[0]]
        for part, files in parts.items()
        for file in files
        if classes and part != "unlabeled"
    }
    if "test" in parts:
        return Layout(parts, numbers, classes, False)
    layout = _hold_out(Layout(parts, numbers, classes, True), test_share)
    if not layout.parts["test"]:
        raise ValueError(
            f"{path} has {len(parts['train'])} image{'s' * (len(parts['train']) > 1)}, too few "
            "for a train and a test part. Add images."
        )
    return layout


def _hold_out(layout: Layout, share: float) -> Layout:
    """The layout with a test part from its training images, by class."""
    held = drawn(layout.parts["train"], share, layout.numbers)
    train = [file for file in layout.parts["train"] if file not in held]
    return layout._replace(parts=layout.parts | {"train": train, "test": sorted(held)})


def _limited(layout: Layout, limit: int) -> Layout:
    """The layout with the first of each class by hash, about `limit` in the training part and half
    as many in others."""
    if not limit:
        return layout
    parts = {}
    for part, names in layout.parts.items():
        of_class: dict[int, list[str]] = collections.defaultdict(list)
        for name in names:
            of_class[layout.numbers.get(name, 0)].append(name)
        share = (limit if part == "train" else limit / 2) / max(len(of_class), 1)
        parts[part] = sorted(
            name
            for files in of_class.values()
            for name in by_hash(files)[: max(2, math.ceil(share))]
        )
    return layout._replace(parts=parts)


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
        changed = _hold_out(changed._replace(parts=parts | {"train": train}), share)
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


def _places(path: str, found: Listing) -> dict[str, str]:
    """The folder of each part; the whole set's, where there are no parts, is "train"."""
    whole = _nested(path, found.files, "", named_train=True)
    inside = [file.removeprefix(whole) for file in found.files]
    tops = sorted({file.split("/")[0] for file in inside if "/" in file})
    beside = [file for file in inside if "/" not in file]
    roles: dict[str, list[str]] = collections.defaultdict(list)
    for top in tops:
        if part := role(top):
            roles[part].append(top)
    others = [top for top in tops if not role(top)]
    if not roles["train"] or (others and not roles["test"]):
        _refuse_unclear(path, inside, tops)
        return {"train": whole}
    if beside:
        raise ValueError(
            f"{path} has images beside its train folder, such as {images.printable(beside[0])}. "
            "Move them into a part."
        )
    for part in ("train", "unlabeled"):
        if len(roles[part]) > 1:
            raise ValueError(f"{path} has two {part} parts, {_some(roles[part])}. {_ADVICE}")
    given = sorted(roles["test"], key=lambda name: TEST_NAMES.index(stem(name)))
    aside = [*given[1:], *others]
    if aside:
        logging.warning(
            "%s: the parts are %s; %s skipped.",
            path,
            " and ".join([*roles["train"], *given[:1], *roles["unlabeled"]]),
            _some(aside),
        )
    chosen = {part: roles[part][0] for part in ("train", "unlabeled") if roles[part]}
    chosen |= {"test": given[0]} if given else {}
    places: dict[str, str] = {}
    for part, top in chosen.items():
        files = [file for file in found.files if file.startswith(f"{whole}{top}/")]
        known = {
            file.removeprefix(places["train"]).split("/")[0]
            for file in found.files
            if part == "test" and file.startswith(places["train"])
        }
        places[part] = _nested(path, files, f"{whole}{top}/", known)
    return places


def _nested(
    path: str, files: list[str], place: str, known: Container[str] = (), named_train: bool = False
) -> str:
    """The folder in which the images of `place` are: some archives hold a single folder that holds
    the others. One that is a class in the part beside (`known`), or itself the train part, stays
    what it is."""
    start = place
    while True:
        inside = [file.removeprefix(place) for file in files]
        tops = {file.split("/")[0] for file in inside}
        only = min(tops, default="")
        wraps = len(tops) == 1 and all(file.count("/") > 1 for file in inside)
        if not wraps or only in known or (named_train and role(only) == "train"):
            break
        place += f"{only}/"
    if place != start:
        logging.warning(
            "%s: all images of %s are below %s, whose folders are taken for its own.",
            path,
            images.printable(start) or "it",
            images.printable(place),
        )
    return place


def _refuse_unclear(path: str, files: list[str], tops: list[str]) -> None:
    """Refuses folders of which some are named like parts: as classes they would say which part an
    image is from. A warning names any others that repeat the same sub-folders."""
    deeper = {file.split("/")[0] for file in files if file.count("/") > 1}
    words = {top: set(re.split(r"[^a-z]+", top.lower())) for top in tops}
    named = [top for top in tops if role(top) or words[top] & (NAMES.keys() | _LIKE_PARTS)]
    inner = {
        top: {
            file.split("/")[1]
            for file in files
            if file.startswith(f"{top}/") and file.count("/") > 1
        }
        for top in tops
    }
    for top in tops:
        if {role(name) for name in inner[top]} >= {"train", "test"}:
            raise ValueError(
                f"{path}: its folder {images.printable(top)} holds the parts "
                f"{_some(sorted(inner[top]))}. "
                "Give the path of a folder that holds the parts, and these the classes."
            )
    alike = [(a, b) for a in tops for b in tops if a < b and len(inner[a] & inner[b]) > 1]
    both = {NAMES[word] for top in tops for word in words[top] & NAMES.keys()} >= {"train", "test"}
    if (both and deeper == set(tops)) or any(a in named or b in named for a, b in alike):
        shared = sorted(inner[alike[0][0]] & inner[alike[0][1]]) if alike else []
        raise ValueError(
            f"{path}: its folders {_some(tops)} "
            + (
                f"have the same sub-folders, {_some(shared)}"
                if shared
                else "are named like parts and hold folders"
            )
            + f": which are parts and which are classes? {_ADVICE}"
        )
    if alike:
        a, b = alike[0]
        logging.warning(
            "%s: the classes are %s. Some of them repeat the same sub-folders (%s and %s have %s); "
            "if those are the classes, give the path of one folder above them.",
            path,
            _some(tops),
            images.printable(a),
            images.printable(b),
            _some(sorted(inner[a] & inner[b])),
        )


def _inner(path: str, files: list[str], place: str) -> list[str]:
    """The folders directly in a part, sorted. Several are classes, and then no image may be beside
    them."""
    inside = [file.removeprefix(place) for file in files]
    names = sorted({file.split("/")[0] for file in inside if "/" in file})
    beside = [file for file in inside if "/" not in file]
    if len(names) > 1 and beside:
        raise ValueError(
            f"{path} has images beside its class folders ({_some(names)}), such as "
            f"{images.printable(place + beside[0])}. "
            "Move them into a class folder, or set labels=False to take all images without labels."
        )
    return names if not beside else []


def _tops_of_others(found: Listing, place: str) -> set[str]:
    """Folders of a part with files that look like images and cannot be read."""
    return {
        file.removeprefix(place).split("/")[0]
        for file in found.unread
        if file.startswith(place) and "/" in file.removeprefix(place)
    }


# Looking into the files --------------------------------------


def _scale(
    root: Path, names: list[str], found: Listing, value_range: tuple[float, float] | None
) -> images.Scale | None:
    """How numbers of more than 8 bits become bytes: told, or found in some of the files."""
    if value_range is not None:
        return images.Scale(float(value_range[0]), float(value_range[1]), True)
    deep = [name for name in names if images.may_be_deep(name) and name not in found.bad]
    rows = np.unique(np.linspace(0, len(deep) - 1, _SAMPLED).astype(int)) if deep else ()
    picked = [deep[i] for i in rows]
    kinds: dict[str, float] = {}
    for name in picked:
        try:
            kind, largest = images.depth(root / name, name)
        except ValueError:  # told with all the others that cannot be read
            continue
        kinds[kind] = max(kinds.get(kind, 0.0), largest)
    if 0 < kinds.get("colours", 0.0) < 64:
        raise ValueError(
            f"{root}: its 16-bit colour images use 14 bits or fewer, and Pillow reads the upper 8 "
            "of 16: they would be almost black. For TIFF files, pip install tifffile; else convert "
            "them to 8 bits."
        )
    if "integers" not in kinds:
        return None
    bits = next(bits for bits in (8, 10, 12, 14, 16, 32) if kinds["integers"] < 2**bits)
    logging.warning(
        "%s: numbers of %d of 16 bits; 0 to %d becomes 0 to 255. Set value_range to change that.",
        root,
        bits,
        2**bits - 1,
    )
    return images.Scale(0.0, 2.0**bits - 1, False)


def _checked(
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
            pixels[part] = np.zeros(shape, np.uint8)
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
        return _reason(error, names[i])
    return ""


def _inspect(reading: Reading, name: str) -> str:
    try:
        images.inspect(
            reading.root / name, name, channels=reading.channels, max_pixels=reading.max_pixels
        )
    except ValueError as error:
        return _reason(error, name)
    return ""


def _reason(error: ValueError, name: str) -> str:
    return str(error).removeprefix(f"{images.printable(name)}: ")


def _tell_formats(path: str, layout: Layout) -> None:
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
            ", ".join(
                f"{images.printable(name)} has images in {kinds}"
                for name, kinds in list(own.items())[:_SHOWN]
            )
            + ", ..." * (len(own) > _SHOWN),
        )


def _tell_copies(
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
            ends[name] = listing.end_of(root / name)
        return ends[name]

    pairs, exact = [], set()
    for name in parts["test"]:
        for other in of_size.get(found.sizes[name], ()):
            if end(name) == end(other) and listing.same_content(root / name, root / other):
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
    of equal signs of differences between neighbours in an 8 x 9 thumbnail, and nearly equal
    there."""
    small = [_thumbnails(part) for part in (train, test)]
    signs, others = (
        np.packbits((rows[:, :, 1:] > rows[:, :, :-1]).reshape(len(rows), 64), axis=1)
        for rows in small
    )
    of_signs: dict[bytes, list[int]] = collections.defaultdict(list)
    for row, bits in enumerate(signs):
        of_signs[bits.tobytes()].append(row)
    pairs = []
    for row, bits in enumerate(others):
        near = of_signs.get(bits.tobytes(), [])[:_COMPARED]
        if not near or np.ptp(small[1][row]) < _FLAT:  # flat images are all alike
            continue
        distances = np.abs(small[0][near] - small[1][row]).mean((1, 2))
        if distances.min() < _NEAR:
            pairs.append((row, near[int(distances.argmin())]))
    return pairs


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


# All images, in one source --------------------------------------


def everything(
    path: str,
    *,
    image_size: int,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = images.MAX_PIXELS,
) -> tuple[Source, dict[str, str]]:
    """All images below `path` in one source, each decoded when it is read: for a network that is
    used on them, not trained.

    Args:
      path: a folder, in any of the forms of `make`; or one image.
      image_size, channels, value_range, max_pixels: as in `make`.

    Returns:
      (source, bad). `source.names` are paths inside the folder, sorted. It has a label where the
      folder has classes. bad: {name: reason} of images that cannot be used; an image found damaged
      when it is read is added then, and its example is black.

    Raises:
      ValueError: no such path, no image below it, settings out of range.
    """
    _check_settings(path, image_size, channels, 0.1, "skip", value_range)
    root = user_path(path)
    if root.is_file():
        return listed([root], image_size=image_size, channels=channels, max_pixels=max_pixels)
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
            layout = divide(path, found, True, 0.1)
        except ValueError as error:
            logging.warning("no labels: %s", error)
    bad = dict(found.bad)
    names = [name for name in found.files if name not in bad]
    reading = Reading(
        root, image_size, channels, max_pixels, _scale(root, names, found, value_range)
    )
    return _every(images.printable(root.name), reading, names, layout, bad), bad


def listed(
    paths: Sequence[str | Path],
    *,
    image_size: int,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
    max_pixels: int = images.MAX_PIXELS,
) -> tuple[Source, dict[str, str]]:
    """Images by their paths, in this order, as `everything` gives those of a folder."""
    names = [str(user_path(path)) if str(path)[:1] == "~" else str(path) for path in paths]
    if not names:
        raise ValueError("no path is given; expected at least one image.")
    bad = {name: "no such file" for name in names if not Path(name).is_file()}
    scale = (
        None
        if value_range is None
        else images.Scale(float(value_range[0]), float(value_range[1]), True)
    )
    reading = Reading(Path(), image_size, channels, max_pixels, scale)
    kept = [name for name in names if name not in bad]
    if not kept:
        raise ValueError(f"none of the {len(names)} files is there, for instance {names[0]}.")
    return _every("images", reading, kept, Layout({}, {}, [], False), bad), bad


def _every(
    called: str, reading: Reading, names: list[str], layout: Layout, bad: dict[str, str]
) -> Source:
    if not names:
        name, reason = next(iter(bad.items()))
        raise ValueError(
            f"none of the {len(bad)} images in {called} can be used; {images.printable(name)}: "
            f"{reason}."
        )
    labels = np.array([layout.numbers.get(name, -1) for name in names], np.int32)
    fields = {"label": labels} if layout.classes else {}

    def read(i: int) -> Example:
        try:
            image = reading(names[i])
        except ValueError as error:
            bad[names[i]] = _reason(error, names[i])
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
        read = functools.partial(_read_or_next, name, read_one, len(names), fields.get("label"))
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


def _read_or_next(
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


def _some(names: list[str]) -> str:
    shown = ", ".join(map(images.printable, names[:_SHOWN]))
    return shown + ", ..." * (len(names) > _SHOWN) if names else "none"
