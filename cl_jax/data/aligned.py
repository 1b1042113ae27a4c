"""Your own folder of things that are each shown in several ways: RGB with depth, surface normals
and segmentation, or one drawing in several styles."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cl_jax.core.names import some
from cl_jax.core.paths import user_path
from cl_jax.data import images, listing
from cl_jax.data.parts import ON_PARTS, check_folders, drawn
from cl_jax.data.reading import learnt_of, scale_of
from cl_jax.data.source import Splits, from_arrays, subset, with_learnt

_SHOWN = 3
_ADVICE = (
    "The folders inside those of data.shown are classes, and test_share of each is held out: move "
    "the pictures of all parts, or of one, out of the part's folder. Where all of these folders "
    'are classes, set on_parts="warn".'
)


def make(
    *,
    path: str,
    shown: Sequence[str],
    channels: Sequence[int] = (),
    image_size: int = 64,
    test_share: float = 0.2,
    value_ranges: Mapping[str, Sequence[float]] | None = None,
    on_parts: str = "raise",
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """PATH/NAME/[CLASS/]FILE for each NAME of `shown`; files of one path without its ending are one
    example.

    Fields: "image" uint8 [S, S, C], the pictures of an example one after the other on the channel
    axis in the order of `shown`, so that one crop and one flip are of all of them, and
    `method.channels` (CMC) takes them apart again. "label", int32, is the folder inside NAME, where
    there are such folders, in alphabetic order. An example has the name of its first picture.

    Args:
      path: the folder.
      shown: names of folders in it: ("rgb", "depth", "normals").
      channels: of each, 1 or 3; () for 3 of each. Depth and segmentation have 1.
      image_size: S; the central square of each picture, resized.
      test_share: of the examples of each class, by a hash of their names: more files move none of
        the others.
      value_ranges: {name: (low, high)} of pictures of more than 8 bits, what becomes 0 and 255.
        Of a folder that it does not name, as where `data.folder` is given no range; what is found
        is `Source.learnt`: {"value_ranges"}.
      on_parts: of folders inside NAME that are named like parts ("train" and "val"; "unlabeled").
        "raise" refuses them: they are classes here. "warn" takes them for classes.
      learnt: see `Source`. One example is then enough.

    All is held in memory: N * S * S * C bytes. Pictures are resized smoothly, the numbers of a
    segmentation too; store segmentations as colours, or at the size that is asked for.

    Raises:
      ValueError: a folder that is missing, an example that one of them lacks, a file that cannot be
        read, fewer than two examples, folders that are named like parts.
    """
    if len(shown) < 2 or len(set(shown)) < len(shown):
        raise ValueError(
            f"data.shown={list(shown)}; expected the names of at least two folders in {path!r}, "
            'each once, for instance ("rgb", "depth").'
        )
    sizes = tuple(channels) or (3,) * len(shown)
    if len(sizes) != len(shown) or not set(sizes) <= {1, 3}:
        raise ValueError(
            f"data.channels={list(channels)} of data.shown={list(shown)}; expected 1 or 3 for each."
        )
    if not 0 < test_share < 1:
        raise ValueError(f"data.test_share={test_share}; expected above 0 and below 1.")
    if on_parts not in ON_PARTS:
        raise ValueError(f"data.on_parts={on_parts!r}; expected 'raise' or 'warn'.")
    root = user_path(path)
    found = {name: _files(root, name) for name in shown}
    names = _common(root, found, least=2 if learnt is None else 1)
    of_class = {one: one.rpartition("/")[0] for one in names}
    try:
        check_folders(os.fspath(root / shown[0]), names, _ADVICE, on_parts=on_parts)
    except ValueError as error:
        if learnt is None:
            raise
        logging.warning("no labels: %s", error)
        of_class = dict.fromkeys(names, "")
    ranges = value_ranges or {}
    unknown = [name for name in ranges if name not in shown]
    if unknown:
        raise ValueError(
            f"data.value_ranges has {', '.join(unknown)}; expected names of data.shown, "
            f"{', '.join(shown)}."
        )
    planes = []
    kept: dict[str, list[float]] = {}
    of_run = (learnt or {}).get("value_ranges", {})
    for name, count in zip(shown, sizes):
        files = [found[name][one] for one in names]
        given = (ranges[name][0], ranges[name][1]) if name in ranges else None
        known = {"value_range": of_run[name]} if name in of_run else None
        scale = scale_of(root / name, files, given, known, f"value_ranges.{name}")
        if new := learnt_of(scale):
            kept[name] = new["value_range"]
        planes.append(
            np.stack(
                [
                    images.decode(
                        root / name / file,
                        f"{name}/{file}",
                        image_size=image_size,
                        channels=count,
                        scale=scale,
                    )
                    for file in files
                ]
            )
        )
    arrays: dict[str, np.ndarray] = {"image": np.concatenate(planes, axis=-1)}
    classes = sorted(set(of_class.values()))
    counts = {}
    if len(classes) > 1:
        numbers = {name: number for number, name in enumerate(classes)}
        arrays["label"] = np.array([numbers[of_class[one]] for one in names], np.int32)
        counts["label"] = len(classes)
    whole = dataclasses.replace(
        from_arrays(root.name, arrays, counts),
        classes={"label": tuple(classes)} if counts else {},
        names=[f"{shown[0]}/{found[shown[0]][one]}" for one in names],
    )
    if learnt is not None:
        return with_learnt(Splits(whole, whole), learnt)
    chosen = drawn(names, test_share, of_class)
    if not chosen:
        raise ValueError(
            f"{root} has one example of each class, too few for a train and a test part. Add some."
        )
    test = np.array([one in chosen for one in names])
    splits = Splits(subset(whole, np.flatnonzero(~test)), subset(whole, np.flatnonzero(test)))
    return with_learnt(splits, {"value_ranges": kept} if kept else None)


def _files(root: Path, name: str) -> dict[str, str]:
    """{path without its ending: path} of the pictures of one folder."""
    folder = root / name
    if not folder.is_dir():
        there = sorted(one.name for one in root.iterdir() if one.is_dir()) if root.is_dir() else []
        raise ValueError(
            f"data.shown has {name!r}, and {os.fspath(root)!r} has no folder of that name; it has "
            f"{', '.join(there) or 'none'}."
        )
    listed = listing.of(folder.resolve())
    if listed.bad:
        images.report_bad("pictures", os.fspath(folder), listed.bad, "raise")
    if listed.others:
        logging.warning("%s: skipped files: %s.", folder, listed.told())
    files = listed.files
    found = {file.rpartition(".")[0]: file for file in files}
    if len(found) < len(files):
        twice = next(file for file in files if found[file.rpartition(".")[0]] != file)
        raise ValueError(
            f"{name}/{twice} and {name}/{found[twice.rpartition('.')[0]]} differ in their ending "
            "alone; expected one picture of each example in a folder."
        )
    return found


def _common(root: Path, found: Mapping[str, Mapping[str, str]], least: int) -> list[str]:
    every = sorted(set().union(*found.values()))
    for name, files in found.items():
        lacking = [one for one in every if one not in files]
        if lacking:
            raise ValueError(
                f"{root / name} has no picture of {some(lacking, _SHOWN)}, which "
                "another folder of data.shown has; expected the same paths in all of them."
            )
    if len(every) < least:
        raise ValueError(f"{root} has {len(every)} examples; expected at least {least}.")
    return every
