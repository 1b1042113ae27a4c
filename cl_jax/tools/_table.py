"""The tables of `cl-jax benchmark`: means, deviations, intervals, and the words that they allow."""

import ast
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cl_jax.training import configs

Row = Mapping[str, Any]
LEVEL = 0.95
COLUMNS = (
    ("knn", "kNN 200", 100, 1),
    ("knn20", "kNN 20", 100, 1),
    ("linear_cached", "linear, cached", 100, 1),
    ("linear_augmented", "linear, augmented", 100, 1),
    ("untrained", "untrained, kNN 200", 100, 1),
    ("raw_pixels", "raw pixels, kNN 200", 100, 1),
    ("reached", "its own measure", 1, 3),
    ("reached_untrained", "its own measure, untrained", 1, 3),
    ("alignment", "alignment", 1, 3),
    ("uniformity", "uniformity", 1, 2),
    ("examples_per_second", "examples/s", 1, 0),
    ("train_seconds", "training, s", 1, 0),
    ("peak_memory_mib", "peak memory, MiB", 1, 0),
)


class Difference(NamedTuple):
    """A difference of means and half the width of its 95 % interval; None where one run says
    nothing of it."""

    mean: float
    half: float | None

    @property
    def word(self) -> str:
        """ "better" or "worse" where zero is outside the interval, else "" ."""
        if self.half is None or abs(self.mean) <= self.half:
            return ""
        return "better" if self.mean > 0 else "worse"

    def text(self, digits: int) -> str:
        """ "+2.3 ± 1.1, better"; of one run: "+2.3, one seed"."""
        given = f"{self.mean:+.{digits}f}"
        if self.half is None:
            return f"{given}, one seed"
        return f"{given} ± {self.half:.{digits}f}" + (f", {self.word}" if self.word else "")


def gain(reached: Sequence[float], before: Sequence[float], units: int = 0) -> Difference:
    """By how much runs exceed their own untrained networks: the mean over seeds, with Student's
    interval of the differences.

    Args:
      reached, before: a figure of each seed, the higher the better.
      units: where the figures are shares of right answers, of how many independent test examples;
        the chance of another draw of these widens the interval. Of `scenes` it is the
        handwritings, since several images show one. 0: figures of another kind.
    """
    differences = [after - start for after, start in zip(reached, before, strict=True)]
    return Difference(
        statistics.mean(differences),
        _both(
            _student(differences), _drawn(units, statistics.mean(reached), statistics.mean(before))
        ),
    )


def against(ours: Sequence[float], theirs: Sequence[float], units: int = 0) -> Difference:
    """By how much the runs of one method exceed another's: Welch's interval. Arguments as `gain`'s;
    the numbers of seeds may differ."""
    return Difference(
        statistics.mean(ours) - statistics.mean(theirs),
        _both(_welch(ours, theirs), _drawn(units, statistics.mean(ours), statistics.mean(theirs))),
    )


def _student(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def _welch(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    if min(len(ours), len(theirs)) < 2:
        return None
    shares = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    if not sum(shares):
        return 0.0
    freedom = sum(shares) ** 2 / sum(
        share**2 / (len(values) - 1) for share, values in zip(shares, (ours, theirs))
    )
    return _quantile(freedom) * math.sqrt(sum(shares))


def _quantile(freedom: float) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _drawn(units: int, *shares: float) -> float:
    """Half the interval of a difference of shares by the draw of the test examples."""
    if not units:
        return 0.0
    return _quantile(1e9) * math.sqrt(sum(max(0.0, p * (1 - p)) for p in shares) / units)


def _both(seeds: float | None, drawn: float) -> float | None:
    return None if seeds is None else math.hypot(seeds, drawn)


def of_rows(rows: Iterable[Row], key: str, scale: float = 1.0) -> list[float]:
    """A figure of each row that has it."""
    return [scale * row[key] for row in rows if row.get(key) is not None]


def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Mean and, of several, sample deviation, with the unit; "-" for none."""
    if not values:
        return "-"
    several = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{several}{unit}"


def own_gain(rows: Sequence[Row]) -> Difference | None:
    """What finished rows of one method gain on their untrained networks, by their own measure, the
    higher the better; in points where it is a share of right answers."""
    paired = [r for r in rows if None not in (r.get("reached"), r.get("reached_untrained"))]
    if not paired:
        return None
    sign, share = paired[0].get("better", 1), _is_share(paired[0])
    found = gain(
        of_rows(paired, "reached", sign),
        of_rows(paired, "reached_untrained", sign),
        paired[0].get("test_units", 0) if share else 0,
    )
    scale = 100 if share else 1
    return Difference(scale * found.mean, None if found.half is None else scale * found.half)


def _is_share(row: Row) -> bool:
    return bool(row.get("share", str(row.get("measure", "")).endswith("/top1")))


def markdown(rows: Sequence[Row], baseline: str = "") -> str:
    """One line per method: means, with the sample deviation of several seeds; - for what was not
    measured.

    baseline: a method of the rows; a column then has each other one's difference from it, of
    kNN 200, in points."""
    shown = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    titles = [
        "method",
        "measure",
        "epochs",
        "seeds",
        *(title + (", %" if scale == 100 else "") for _, title, scale, _ in shown),
        "gain on untrained",
        *([f"kNN 200 against {baseline}"] if baseline else []),
        "config",
        "commit",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    known = of_rows((r for r in rows if r["method"] == baseline), "knn")
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        done = [row for row in mine if "error" not in row]
        if not done:
            lines.append(f"| {name} | failed: {mine[0]['error']} |" + " |" * (len(titles) - 2))
            continue
        cells = [name, done[0].get("measure", "knn/top1"), f"{done[0]['epochs']:g}", str(len(done))]
        cells += [spread(of_rows(done, key, scale), digits) for key, _, scale, digits in shown]
        gained = own_gain(done)
        cells.append("-" if gained is None else gained.text(1 if _is_share(done[0]) else 3))
        if baseline:
            ours = of_rows(done, "knn")
            cells.append("-")
            if ours and known and name != baseline:
                found = against(ours, known, done[0].get("test_units", 0))
                half = None if found.half is None else 100 * found.half
                cells[-1] = Difference(100 * found.mean, half).text(1)
        cells += [done[0]["config"], " ".join(dict.fromkeys(row["commit"] for row in done))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def survey(rows: Sequence[Row], names: Sequence[str]) -> str:
    """One line per system, those without a finished run included: its own measure beside the
    untrained network's, what it gained, seeds, seconds of processor (which other work on the
    machine hardly changes; of a resumed run, since it was resumed), and what is published of it."""
    titles = [
        "system",
        "measure",
        "untrained",
        "reached",
        "gain",
        "seeds",
        "processor, s",
        "published",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in names:
        done = [row for row in rows if row["method"] == name and "error" not in row]
        cells = [f"`{name}`", *["not run"] * 6]
        if done:
            scale, digits = (100, 1) if _is_share(done[0]) else (1, 3)
            unit, gained = " %" if scale == 100 else "", own_gain(done)
            cells[1:] = [
                str(done[0].get("measure", "")),
                spread(of_rows(done, "reached_untrained", scale), digits, unit),
                spread(of_rows(done, "reached", scale), digits, unit),
                "-" if gained is None else gained.text(digits),
                str(len(done)),
                spread(of_rows(done, "processor_seconds"), 0),
            ]
        lines.append("| " + " | ".join([*cells, published(name) or "-"]) + " |")
    return "\n".join(lines) + "\n"


def published(name: str) -> str:
    """The first figure that a config of the package says is published, with its variant; "" where
    it says none."""
    path = configs.folder() / f"{name}.py"
    text = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else None
    entries = re.findall(
        r"^  (?! )(\S+(?:, \S+)*)  +(.*(?:\n {3,}.*)*)", text or "", flags=re.MULTILINE
    )
    for variant, body in entries:
        figure = " ".join(body.split()).partition("Published: ")[2].removesuffix(".")
        if figure:
            return f"{figure} (`{variant}`)"
    return ""
