"""Files of sentences that a text encoder is evaluated on: scored pairs, and classification tasks.

    sts.tsv          sentence, sentence, score; or a header with a, b, score, perhaps set and split
    tasks.tsv        a header with label and text, perhaps text_b, set and split

A folder of such files is a set a file. `data.text` says which rows are left out.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cl_jax.core.paths import user_path
from cl_jax.data import lines
from cl_jax.data.labels import refuse_unknown
from cl_jax.data.parts import role, stem
from cl_jax.data.source import Source

Scored = dict[str, tuple[list[str], list[str], np.ndarray]]  # sentences, sentences, scores
_SCORED = ("a", "b", "score")  # the columns of scored pairs without a header
DEV = ("dev", "val", "valid", "validation")  # splits that settings are chosen by


def read_scored(path: str, on_error: str = "raise") -> Scored:
    """Scored pairs of a file by the name of their source: "sts", or "sts/<set>" where a column
    names sets; "sts_dev" in its place for rows whose split is dev. See `data.text`.

    Raises:
      ValueError: another number of columns, no such column, a score that is not a number, a split
        of another name, an empty sentence or set, no pair, a set of one.
    """
    if user_path(path).is_dir():
        found: Scored = {}
        for name, file in _files(path).items():
            found |= _scored_of_file(str(file), on_error, name)
    else:
        found = _scored_of_file(path, on_error)
    for name, (first, _, _) in found.items():
        if len(first) < 2:
            raise ValueError(
                f"{path} has one pair for {name}; expected two or more, since evaluation compares "
                "the order of pairs. Add pairs of this set and split, or remove that one."
            )
    return found


def _scored_of_file(path: str, on_error: str, whole: str = "") -> Scored:
    """`read_scored` of one file; `whole` names the one set that all its rows are."""
    rows = lines.separated(
        path,
        counts=range(3, 100),
        meaning="at least three, divided by tabs: sentence, sentence, score",
    )
    header = [column.strip().lower() for column in rows[0].columns]
    named = {"a", "b", "score"} <= set(header)
    if named:
        _refuse_columns_twice(path, header)
    if not named and len(header) != 3:
        raise ValueError(
            f"{path} has {len(header)} columns and its first line is no header with a, b and "
            "score; expected three columns sentence, sentence, score, or a first line that names "
            "the columns, divided by tabs."
        )
    empty: list[int] = []
    found: dict[str, tuple[list[str], list[str], list[float]]] = {}
    for row in rows[named:]:
        cells = {
            key: value.strip() for key, value in zip(header if named else _SCORED, row.columns)
        }
        split = cells.get("split", "")
        if not any(row.columns) or not cells["score"] or role(split) == "train":
            continue
        if split not in ("", "all") and role(split) != "test":
            raise ValueError(
                f"{path}, line {row.line}: split is {split!r}; expected train, test, dev or all."
            )
        group = whole or cells.get("set")
        if not cells["a"] or not cells["b"] or group == "":
            empty.append(row.line)
            continue
        try:
            value = float(cells["score"])
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise ValueError(
                f"{path}, line {row.line}: the score {cells['score']!r} is not a number."
            )
        kind = "sts_dev" if stem(split) in DEV else "sts"
        one = found.setdefault(kind if group is None else f"{kind}/{group}", ([], [], []))
        one[0].append(cells["a"])
        one[1].append(cells["b"])
        one[2].append(value)
    lines.refuse_empty(path, empty, on_error, "empty sentences or sets")
    if not found:
        raise ValueError(f"{path} holds no pair with a score outside of the split train.")
    return {key: (a, b, np.array(score, np.float32)) for key, (a, b, score) in found.items()}


def _files(folder: str) -> dict[str, Path]:
    """The files of a folder by their names without endings."""
    files = sorted(
        file
        for file in user_path(folder).iterdir()
        if file.is_file() and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"{folder} has no files; expected one for each set.")
    found: dict[str, Path] = {}
    for file in files:
        name = file.name.split(".")[0]
        if name in found:
            raise ValueError(
                f"{folder} has {found[name].name} and {file.name}, which would both be the set "
                f"{name}; expected one file for each set."
            )
        found[name] = file
    return found


def _refuse_columns_twice(path: str, header: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        raise ValueError(f"{path} has several columns {twice[0]!r}; expected each name once.")


class Classes(NamedTuple):
    """Sentences with classes. second: of pairs, the other sentences; else empty. labels: int32, the
    places of their classes in `classes`, which are in alphabetical order."""

    sentences: list[str]
    second: list[str]
    labels: np.ndarray
    classes: Sequence[str]

    def named(self, source: Source) -> Source:
        """A source of these sentences, with the names of its examples and classes."""
        classes = {"label": tuple(self.classes)}
        return dataclasses.replace(source, names=list(self.sentences), classes=classes)


def read_classes(path: str, on_error: str = "raise") -> dict[str, Classes]:
    """Sentences with classes of a file, or of the files of a folder, by the name of their source.
    See `data.text`.

    Raises:
      ValueError: no such columns, an empty sentence or set, a class that training rows lack.
    """
    if user_path(path).is_dir():
        found = {}
        for name, file in _files(path).items():
            for key, one in read_classes(str(file), on_error).items():
                _, group, *part = key.split("/")
                of = [] if group == "all" else [group]
                found["/".join(["classify", name, *of, *part])] = one
        return found
    rows = lines.separated(
        path, counts=range(2, 100), meaning="a header with label and text, divided by tabs"
    )
    header = [column.strip().lower() for column in rows[0].columns]
    if not {"label", "text"} <= set(header):
        raise ValueError(
            f"{path} begins with the columns {', '.join(header)}; expected a header with label and "
            "text."
        )
    _refuse_columns_twice(path, header)
    paired = "text_b" in header
    empty: list[int] = []
    parts: dict[tuple[str, bool], list[tuple[str, str, str]]] = {}
    for row in rows[1:]:
        cells = {key: value.strip() for key, value in zip(header, row.columns)}
        split = cells.get("split", "")
        if not any(row.columns) or stem(split) in DEV:
            continue
        if split not in ("", "all") and role(split) not in ("train", "test"):
            raise ValueError(
                f"{path}, line {row.line}: split is {split!r}; expected train, test, dev or all."
            )
        group = cells.get("set", "all")
        if not (cells["text"] and cells["label"] and group) or (paired and not cells["text_b"]):
            empty.append(row.line)
            continue
        place = (group, role(split) == "test")
        both = (cells["text"], cells.get("text_b", ""), cells["label"])
        parts.setdefault(place, []).append(both)
    lines.refuse_empty(path, empty, on_error, "empty sentences, labels or sets")
    if not parts:
        raise ValueError(f"{path} holds no sentence with a label outside of the split dev.")
    tasks = {}
    for (group, test), given in parts.items():
        train = parts.get((group, False), [])
        classes = sorted({label for _, _, label in train})
        if len(classes) < 2:
            raise ValueError(
                f"{path}: the training rows of {group} have the classes {classes[:5]}; expected "
                "two or more."
            )
        mend = "Name them alike, or leave those rows out."
        refuse_unknown(path, classes, [row[2] for row in given], f"classes of {group}", mend)
        first, second, labels = (list(column) for column in zip(*given))
        numbers = np.array([classes.index(label) for label in labels], np.int32)
        key = f"classify/{group}" + ("/test" if test else "")
        tasks[key] = Classes(first, second if paired else [], numbers, classes)
    return tasks
