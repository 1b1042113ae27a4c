"""`tabular`: rows of numbers. The user's own .csv, or a table that ships with scikit-learn.

    wine.csv     a header, then a row an example; the column `label` is the class, the others are
                 numbers

Columns are standardised by the mean and deviation of the training part.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from sklearn import datasets

from cl_jax.core.names import some
from cl_jax.data import lines
from cl_jax.data.labels import NONE, refuse_alike
from cl_jax.data.parts import drawn
from cl_jax.data.source import TO_KEEP, Source, Splits, from_arrays, with_learnt

EMBEDDED = {
    "digits": datasets.load_digits,
    "breast_cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
}


class Learnt(NamedTuple):
    """What `Source.learnt` holds. columns: D names. mean, deviation: of each, float64 [D]; the
    deviation of a constant column is 0. classes: names in the order of their numbers."""

    columns: Sequence[str]
    mean: np.ndarray
    deviation: np.ndarray
    classes: Sequence[str]


class Table(NamedTuple):
    """values: float64 [N, D]. columns: their D names. labels: N class names, "" for none."""

    values: np.ndarray
    columns: tuple[str, ...]
    labels: list[str]


def make(
    *,
    path: str = "",
    embedded: str = "digits",
    label: str = "label",
    columns: Sequence[str] = (),
    test_path: str = "",
    test_share: float = 0.2,
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """The rows of a table, in memory.

    Fields: "row" float32 [D], each column with mean 0 and deviation 1 over the training part (a
    column that is constant there is 0); "label" int32, classes in alphabetical order, where the
    table has them.

    Args:
      path: of a .csv file with a header; "" for the embedded table.
      embedded: "digits" (1,797 rows of 64 columns, 10 classes), "breast_cancer" (569, 30, 2) or
        "wine" (178, 13, 3), of scikit-learn.
      label: the column of the class, text or numbers, where 3.0 is 3; an empty cell is an example
        without a class. "" where there is no such column.
      columns: names of the columns to read; none for all but the label.
      test_path: a second .csv of the same columns, the test part.
      test_share: of the rows of each class, where there is no `test_path`, by a hash of the row.
        Equal rows are in one part.
      learnt: see `Source` and `Learnt`. The rows at `path` are then both parts; classes that the
        run did not have follow its own.

    Raises:
      ValueError: an unknown table, a file without such columns or without rows, a cell that is not
        a finite number, a part without rows, a class that `test_path` writes in another way.
    """
    if not path and test_path:
        raise ValueError(f"test_path={test_path!r} without path; expected the training file too.")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}; expected above 0 and below 1.")
    if learnt is not None:
        if not learnt:
            raise ValueError(
                "the run did not keep the means and deviations of its training data, and those of "
                f"this table would measure it otherwise. {TO_KEEP}"
            )
        known = Learnt(**learnt)
        table = read(path, label, known.columns, unlabelled=True)
        table = _alike({"run": table._replace(labels=list(known.classes)), "": table})[""]
        classes = list(dict.fromkeys([*known.classes, *sorted(set(table.labels) - {""})]))
        whole = _source(Path(path).stem, table, known._replace(classes=classes))
        return with_learnt(Splits(whole, whole), learnt)
    if path:
        name, table = Path(path).stem, read(path, label, columns)
    else:
        name, table = embedded, _embedded(embedded, columns)
    given = {"train": table}
    if test_path:
        given["test"] = read(test_path, label, table.columns)
    parts = _alike(given)
    if test_path:
        mend = f"Write them alike, leave such rows out of {test_path}, or set label=''."
        train, test = (parts[part].labels for part in ("train", "test"))
        refuse_alike(path, train, test, f"classes of {label!r}", mend)
    else:
        parts = _divided(name, parts["train"], test_share)
    return _splits(name, parts)


def read(path: str, label: str, columns: Sequence[str] = (), *, unlabelled: bool = False) -> Table:
    """The rows of a .csv file. `unlabelled`: it may lack the column `label`.

    Raises:
      ValueError: a file that is not there or is not text, columns that it does not have or has
        twice, no row, a row of another length, a cell that is not a finite number.
    """
    text = lines.text(path, "a .csv with a header")
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=lines.separator(text.split("\n", 1)[0])
    )
    try:
        header = [cell.strip() for cell in next(reader, [])]
        given = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}. Is a quotation mark left open?"
        ) from None
    if unlabelled and label not in header:
        label = ""
    wanted = list(columns) or [name for name in header if not label or name != label]
    for name in [*wanted, *([label] if label else [])]:
        if header.count(name) != 1:
            raise ValueError(
                f"{path} has {header.count(name)} columns {name!r}; expected one. Its columns: "
                f"{', '.join(header) or 'none'}. Name the class with label, and the numbers with "
                "columns."
            )
    if not wanted or not given:
        raise ValueError(
            f"{path} has {len(wanted)} columns of numbers and {len(given)} rows; expected one or "
            "more of each."
        )
    for number, cells in given:
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(cells)} cells; expected {len(header)}, as many as "
                "the header." + " Is a quotation mark left open?" * any("\n" in c for c in cells)
            )
    at = [header.index(name) for name in wanted]
    values = np.empty((len(given), len(at)))
    for row, (number, cells) in enumerate(given):
        try:
            values[row] = [float(cells[i]) for i in at]
        except ValueError:
            values[row] = np.nan
        if not np.isfinite(values[row]).all():
            raise ValueError(_bad_cell(path, number, {header[i]: cells[i] for i in at}))
    _tell_of_header(path, header, dict(zip(wanted, values.T)))
    place = header.index(label) if label else None
    labels = ["" if place is None else cells[place].strip() for _, cells in given]
    classes = set(labels) - {""}
    if len(classes) > max(len(labels) // 2, 2):
        logging.warning(
            "%s: the column %r has %d values in %d rows, and each is taken for a class. For a "
            "column of numbers that are no classes set label=''.",
            path,
            label,
            len(classes),
            len(labels),
        )
    return Table(values, tuple(wanted), labels)


def _tell_of_header(path: str, header: list[str], columns: Mapping[str, np.ndarray]) -> None:
    """Warns of a first row that may be numbers of an example, and of a column that counts rows."""
    if all(map(_is_finite, header)):
        logging.warning(
            "%s: its first line is taken for the header, and has numbers alone (%s); a file "
            "without a header loses a row so. Add a line of names.",
            path,
            some(header),
        )
    counts = columns.get("")
    if counts is not None and (np.diff(counts) == 1).all():
        logging.warning(
            "%s: the column without a name counts the rows, as pandas writes them, and is read as "
            "any other. Write the file with index=False, or name the columns to read by columns.",
            path,
        )


def _bad_cell(path: str, line: int, cells: Mapping[str, str]) -> str:
    name, cell = next((name, cell) for name, cell in cells.items() if not _is_finite(cell))
    mend = lines.decimal_comma([cell]) or (
        " Fill it, encode words as numbers, or leave the column out by columns."
    )
    return f"{path}, line {line}: column {name!r} is {cell!r}; expected a finite number.{mend}"


def _is_finite(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _embedded(name: str, columns: Sequence[str]) -> Table:
    if name not in EMBEDDED:
        raise ValueError(f"embedded={name!r}; expected one of {', '.join(EMBEDDED)}, or a path.")
    loaded = EMBEDDED[name]()
    names = tuple(map(str, loaded.feature_names))
    unknown = [column for column in columns if column not in names]
    if unknown:
        raise ValueError(f"{name} has no column {unknown[0]!r}; its columns: {', '.join(names)}.")
    wanted = tuple(columns) or names
    values = loaded.data[:, [names.index(column) for column in wanted]]
    labels = [str(loaded.target_names[i]) for i in loaded.target]
    return Table(np.asarray(values, np.float64), wanted, labels)


def _divided(name: str, table: Table, share: float) -> dict[str, Table]:
    words = [row.tobytes().hex() for row in table.values]
    chosen = drawn(sorted(set(words)), share, dict(zip(words, table.labels)))
    is_test = np.array([word in chosen for word in words])
    if is_test.all() or not is_test.any():
        raise ValueError(
            f"{name} has {len(words)} rows, {len(set(words))} of them different: too few for a "
            "train and a test part. Add rows, or give test_path."
            + " Each class has one row; for a column that holds no classes set label=''."
            * (1 < len(table.labels) == len(set(table.labels)))
        )
    return {part: _rows(table, is_test == (part == "test")) for part in ("train", "test")}


def _rows(table: Table, chosen: np.ndarray) -> Table:
    labels = [table.labels[i] for i in np.flatnonzero(chosen)]
    return table._replace(values=table.values[chosen], labels=labels)


def _alike(parts: Mapping[str, Table]) -> dict[str, Table]:
    """The parts with class names written alike in all of them."""
    every = [word for table in parts.values() for word in table.labels]
    words = iter(lines.whole(every) or every)
    return {
        part: table._replace(labels=[next(words) for _ in table.labels])
        for part, table in parts.items()
    }


def _splits(name: str, parts: Mapping[str, Table]) -> Splits:
    train = parts["train"]
    with np.errstate(over="ignore"):
        mean, deviation = train.values.mean(0), train.values.std(0)
    if not np.isfinite(deviation).all():
        column = train.columns[int(np.argmin(np.isfinite(deviation)))]
        raise ValueError(
            f"{name}: the deviation of column {column!r} is beyond the largest number; expected "
            "numbers below 1e150. Scale it, or leave the column out by columns."
        )
    # Relative to the column: numbers in small units may all be below 1e-12.
    varies = deviation > 1e-12 * np.abs(train.values).max(0)
    classes = sorted({word for table in parts.values() for word in table.labels} - {""})
    found = Learnt(train.columns, mean, np.where(varies, deviation, 0), classes)
    kept = found._replace(mean=mean.tolist(), deviation=found.deviation.tolist())._asdict()
    of_train = _source(f"{name}/train", train, found)
    return with_learnt(Splits(of_train, _source(f"{name}/test", parts["test"], found)), kept)


def _source(name: str, table: Table, learnt: Learnt) -> Source:
    classes, deviation = learnt.classes, np.asarray(learnt.deviation)
    varies = deviation > 0
    rows = np.where(varies, (table.values - learnt.mean) / np.where(varies, deviation, 1), 0)
    arrays: dict[str, np.ndarray] = {"row": rows.astype(np.float32)}
    sizes = {}
    if classes:
        number = {word: i for i, word in enumerate(classes)}
        labels = [number.get(word, NONE) for word in table.labels]
        arrays["label"], sizes["label"] = np.array(labels, np.int32), len(classes)
    found = from_arrays(name, arrays, sizes)
    return dataclasses.replace(found, classes={"label": classes} if classes else {})
