"""Lines of a user's text file, plain or compressed, with one error for each way a file can be
wrong."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from cl_jax.core.paths import user_path

_OPEN: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_SHOWN = 5  # rows that an error names
TO_UTF8 = 'Save it as "CSV UTF-8" in the spreadsheet, or convert it with iconv.'


class Row(NamedTuple):
    """Columns of one line of a file, and the line's number, counted from 1."""

    line: int
    columns: list[str]


def read(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file, without their ends; .gz, .xz and .bz2 are decompressed.

    Raises:
      ValueError: no such file, a damaged archive, another encoding, a file that is not text.
    """
    lines = [line.removesuffix("\r") for line in text(path).split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines


def text(path: str | Path, what: str = "a text file, one sentence a line") -> str:
    """The text of a UTF-8 file, compressed or not. `what` was expected, for the error where there
    is no file; raises as `read`."""
    file = user_path(path)
    if not file.is_file():
        raise ValueError(f"{path} is not a file; expected {what}.")
    try:
        with _OPEN.get(file.suffix.lower(), open)(file, "rb") as opened:
            data = opened.read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}. Is it complete?") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16; expected UTF-8: iconv -f UTF-16 -t UTF-8.")
    if b"\0" in data:
        raise ValueError(
            f"{path} has zero bytes: it is not a text file, or UTF-16 without its mark; then iconv "
            "-f UTF-16LE -t UTF-8."
        )
    try:
        found = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}. Convert it, for "
            "instance iconv -f LATIN1 -t UTF-8."
        ) from None
    # Spreadsheets for the Macintosh still write files whose lines end so.
    return found if "\n" in found else found.replace("\r", "\n")


def separator(header: str) -> str:
    """What divides the columns of a table: of comma, semicolon (spreadsheets of some countries)
    and tab the one that its first line has most of."""
    return max(",;\t", key=header.count)


def decimal_comma(cells: Sequence[str]) -> str:
    """The mend for cells that are not numbers, where they would be with a point; "" elsewhere."""
    comma = next((cell for cell in cells if re.fullmatch(r"\s*[+-]?\d*,\d+\s*", cell)), None)
    if comma is None:
        return ""
    return f" Write {comma.strip()} as {comma.strip().replace(',', '.')}, with a decimal point."


def whole(cells: Sequence[str]) -> list[str] | None:
    """The cells of a column of whole numbers, or empty ones, all written alike: 3.0, as pandas
    writes 3 where another cell of the column is empty, becomes 3. None of a column with other
    cells, such as 007, a name."""
    given = [cell for cell in cells if cell]
    if not all(re.fullmatch(r"-?(0|[1-9]\d*)(\.0+)?", cell) for cell in given):
        return None
    return [str(int(cell.partition(".")[0])) if cell else "" for cell in cells]


def separated(path: str | Path, *, counts: Sequence[int], meaning: str) -> list[Row]:
    """The lines of a file, divided at tabs. All lines have the number of columns of the first.

    Args:
      counts: numbers of columns that may be.
      meaning: what the columns are, for the error.

    Raises:
      ValueError: as `read`; no line; another number of columns.
    """
    rows = [Row(number, line.split("\t")) for number, line in enumerate(read(path), 1)]
    if not rows:
        raise ValueError(f"{path} is empty.")
    given = len(rows[0].columns)
    if given not in counts:
        raise ValueError(f"{path} has {given} columns; expected {meaning}.")
    # A blank line has one column whatever the file has, and is an empty sentence, not a bad row.
    wrong = [row for row in rows if len(row.columns) != given and any(row.columns)]
    if wrong:
        raise ValueError(
            f"{path}, line {wrong[0].line}: {len(wrong[0].columns)} columns where the first line "
            f"has {given} (in {len(wrong)} lines). Columns are divided by tabs; a sentence may "
            "hold none."
        )
    return [row._replace(columns=row.columns + [""] * (given - len(row.columns))) for row in rows]


def table(path: str | Path) -> list[dict[str, Any]]:
    """Rows of named columns: JSON-lines (`.jsonl`, `.json`), CSV (`.csv`, with commas, semicolons
    or tabs) or TSV (`.tsv`) with a header; any of them compressed. Values are strings, or whatever
    JSON they are. "line" is each row's line number.

    Raises:
      ValueError: as `read`; another kind of file; a line that is not a JSON object; a name twice
        in the header, rows that differ from it.
    """
    suffixes = [s.lower() for s in Path(path).suffixes if s.lower() not in _OPEN]
    kind = suffixes[-1] if suffixes else ""
    if kind not in (".csv", ".tsv", ".jsonl", ".json"):
        raise ValueError(f"{path}: expected a file that ends in .csv, .tsv or .jsonl.")
    lines = read(path)
    if kind in (".jsonl", ".json"):
        return [_object(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    reader = csv.reader(
        io.StringIO("\n".join(lines)),
        delimiter=separator(lines[0] if lines else "") if kind == ".csv" else "\t",
        quoting=csv.QUOTE_MINIMAL if kind == ".csv" else csv.QUOTE_NONE,
    )
    rows: list[dict[str, Any]] = []
    try:
        header = [cell.strip() for cell in next(reader, [])]
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise ValueError(f"{path} has several columns {twice[0]!r}; expected each name once.")
        for columns in reader:
            if not columns:
                continue
            if len(columns) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(columns)} columns where the header has "
                    f"{len(header)} ({', '.join(header)}). Quote what holds the separator."
                )
            rows.append(dict(zip(header, columns)) | {"line": reader.line_num})
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}. Is a quotation mark left open?"
        ) from None
    return rows


def _object(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number} is not JSON: {error}. Expected one object a line."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}, line {number} is {type(found).__name__}; expected an object.")
    return found | {"line": number}


def words(value: Any) -> str:
    """The text of a cell, without spaces around it; "" of null."""
    return "" if value is None else str(value).strip()


def split_of(row: Mapping[str, Any]) -> str:
    """The cell of a row's column "split", whatever case it is written in; "" without one."""
    return next((words(cell) for name, cell in row.items() if name.lower() == "split"), "")


def every(value: Any) -> list[str]:
    """The texts of a cell that may hold a list of them."""
    return [words(one) for one in (value if isinstance(value, list) else [value])]


def some(lines: Sequence[int]) -> str:
    """ "line 3", or "lines 3, 8, 11, ... (20 in all)"."""
    if len(lines) == 1:
        return f"line {lines[0]}"
    more = f", ... ({len(lines)} in all)" if len(lines) > _SHOWN else ""
    return "lines " + ", ".join(map(str, lines[:_SHOWN])) + more


def refuse_empty(path: str | Path, empty: Sequence[int], on_error: str, what: str) -> None:
    """Names the lines that have an empty cell, as an error or, under "skip", in the log."""
    if empty and on_error == "raise":
        raise ValueError(
            f"{path} has {what} in {some(empty)}. Fill them in or remove those lines, or set "
            "on_error='skip' to leave them out."
        )
    if empty:
        logging.warning("%s: skipped %d lines with %s: %s.", path, len(empty), what, some(empty))
