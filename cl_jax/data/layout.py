"""Which images of a folder are in which part and of which class, by their paths alone."""

import collections
import itertools
import math
from collections.abc import Container
from typing import NamedTuple

from absl import logging

from cl_jax.core.names import some
from cl_jax.data import images
from cl_jax.data.labels import refuse_unknown
from cl_jax.data.listing import Listing
from cl_jax.data.parts import TEST_NAMES, by_hash, check_folders, drawn, role, stem, sub_folders

_NAMES = 'Parts are named "train" and "test" (or "valid", "val", "dev"), and "unlabeled"'
_ADVICE = (
    f"{_NAMES}; rename them, and move classes into a folder of their part. Where all of them are "
    'classes, set on_parts="warn".'
)


class Layout(NamedTuple):
    """Which images are in which part. classes: their names, none where there are no labels.
    numbers: the class of each image of train and test; empty without classes. holds_out: the test
    part is a share of the training images."""

    parts: dict[str, list[str]]
    numbers: dict[str, int]
    classes: list[str]
    holds_out: bool


def divide(
    path: str, found: Listing, labels: bool, test_share: float, on_parts: str = "raise"
) -> Layout:
    """The parts of a listing and the classes in them. on_parts: see `parts.check_folders`.

    Raises:
      ValueError: images beside parts or class folders, parts whose classes differ, folders that
        may be parts or classes.
    """
    places = _places(path, found, labels, on_parts)
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
    tested = inner.get("test", [])
    if classes or len(tested) > 1:
        mend = "Name them alike, or set labels=False."
        refuse_unknown(path, inner["train"], tested, "class folders", mend)
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
    layout = hold_out(Layout(parts, numbers, classes, True), test_share)
    if not layout.parts["test"]:
        raise ValueError(
            f"{path} has {len(parts['train'])} image{'s' * (len(parts['train']) > 1)}, too few "
            "for a train and a test part. Add images."
        )
    return layout


def hold_out(layout: Layout, share: float) -> Layout:
    """The layout with a test part from its training images, by class."""
    held = drawn(layout.parts["train"], share, layout.numbers)
    train = [file for file in layout.parts["train"] if file not in held]
    return layout._replace(parts=layout.parts | {"train": train, "test": sorted(held)})


def limited(layout: Layout, limit: int) -> Layout:
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


def _places(path: str, found: Listing, labels: bool, on_parts: str) -> dict[str, str]:
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
        check_folders(path, inside, _ADVICE, on_parts=on_parts, labels=labels)
        _tell_repeated(path, inside)
        return {"train": whole}
    if beside:
        raise ValueError(
            f"{path} has images beside its train folder, such as {images.printable(beside[0])}. "
            "Move them into a part."
        )
    for part in ("train", "unlabeled"):
        if len(roles[part]) > 1:
            raise ValueError(f"{path} has two {part} parts, {_some(roles[part])}. {_NAMES}.")
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


def _tell_repeated(path: str, files: list[str]) -> None:
    """A warning where folders that are classes repeat the same sub-folders."""
    inner = sub_folders(files)
    pairs = itertools.combinations([top for top in inner if inner[top]], 2)
    alike = [(a, b) for a, b in pairs if len(inner[a] & inner[b]) > 1]
    if alike:
        a, b = alike[0]
        logging.warning(
            "%s: the classes are %s. Some of them repeat the same sub-folders (%s and %s have %s); "
            "if those are the classes, give the path of one folder above them.",
            path,
            _some(list(inner)),
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


def _some(names: list[str]) -> str:
    return some([images.printable(name) for name in names])
