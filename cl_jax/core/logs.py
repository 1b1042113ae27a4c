"""The log of a run, JSON lines, as it is read everywhere."""

import json
import math
from pathlib import Path

Row = dict[str, float]
# What the trainer itself logs beside the metrics of a method and the figures of evaluators.
RESERVED = (
    "step",
    "time",
    "learning_rate",
    "epoch",
    "examples_per_second",
    "data_wait",
    "mfu",
    "skipped_steps",
    "eval_seconds",
)
_RENAMED = {"images_per_second": "examples_per_second"}  # the names of earlier versions


def rows(file: Path) -> tuple[list[Row], list[int]]:
    """(the rows of a log, the numbers of lines that are not rows: a killed run may leave one cut).
    Both are empty where there is no file. Names of earlier versions are read as those of today."""
    found: list[Row] = []
    broken: list[int] = []
    for number, line in enumerate(file.read_bytes().split(b"\n") if file.is_file() else [], 1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None:
            broken.append(number)
        else:
            found.append(row)
    return found, broken


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:  # of JSON or of UTF-8
        return None
    number = isinstance(row, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in row.values()
    )
    if not number or not math.isfinite(row.get("step", math.nan)):
        return None
    return {_RENAMED.get(name, name): value for name, value in row.items()}
