"""Writes the tables of the comparison with the peer into docs/results.md, from
benchmarks/results/parity_steps.json and parity_trained.json. What has no run says "not run"."""

import argparse
import json
import math
import re
import statistics
import textwrap
from pathlib import Path

import cases
import steps
import trained
from scipy import stats

from cl_jax.tools._table import Difference, against, spread

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
LEAST = 100  # steps of a run that a table shows
TEST_IMAGES = 10_000
NAMES = {"knn200": "kNN 200", "knn20": "kNN 20"}


def table(titles, rows):
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def of_steps(found):
    """float64: the largest difference over the ten steps. float32: that after the first step and
    after the tenth, beside the peer's from its own float64."""
    wide, narrow = [], []
    for name, case in cases.CASES.items():
        kept = found.get(f"{name}.float64")
        cells = ["not run"] * len(steps.KINDS)
        if kept is not None:
            cells = [f"{max(kept[k]):.0e}" if k in kept else "-" for k in steps.KINDS]
        wide.append([f"`{name}`", *cells, case["peer"]])
        kept = found.get(f"{name}.float32")
        cells = ["not run"] * 6
        if kept is not None:
            own = kept["rounding"]
            cells = [
                f"{pair[k][at]:.0e}"
                for at, k in ((0, "gradient"), (0, "params"), (-1, "params"))
                for pair in (kept, own)
            ]
        narrow.append([f"`{name}`", *cells])
    first = table(["float64", "loss", "gradient", "parameters", "target", "memory", "peer"], wide)
    pairs = ("gradient, step 1", "parameters, step 1", "parameters, step 10")
    titles = [f"{pair}: {side}" for pair in pairs for side in ("to the peer", "peer's rounding")]
    return first + "\n\n" + table(["float32", *titles], narrow)


def runs_of(found, name):
    """{steps: {side: [runs]}} of a case, whole budgets of both sides, the longest first."""
    budgets = {}
    for key, run in found.get("runs", {}).items():
        case, side, _, steps = key.split(".")
        if case == name and int(steps) >= LEAST:
            budgets.setdefault(int(steps), {"ours": [], "peer": []})[side].append(run)
    return {s: budgets[s] for s in sorted(budgets, reverse=True) if all(budgets[s].values())}


def of_runs(found):
    """kNN of both sides with the difference of their means, in points."""
    rows = []
    for name in cases.TRAINED:
        budgets = runs_of(found, name)
        if not budgets:
            rows.append([f"`{name}`", *["not run"] * 8])
        for steps_done, sides in budgets.items():
            cells = [f"`{name}`", str(steps_done), f"{len(sides['ours'])} and {len(sides['peer'])}"]
            for key in NAMES:
                ours, theirs = ([row[key] for row in sides[side]] for side in ("ours", "peer"))
                apart = against(ours, theirs, TEST_IMAGES)
                half = None if apart.half is None else 100 * apart.half
                cells += [spread([100 * x for x in values], 1) for values in (ours, theirs)]
                cells.append(Difference(100 * apart.mean, half).text(1))
            rows.append(cells)
    titles = ["case", "steps", "seeds"]
    titles += [f"{of}, {side}" for of in NAMES.values() for side in ("here", "peer", "difference")]
    return table(titles, rows)


def pooled(found):
    """What all rows say together: two seeds a side say little of one row."""
    runs = [both for name in cases.TRAINED for both in runs_of(found, name).values()]
    lines = []
    for key, of in NAMES.items():
        sides = [
            [[100 * run[key] for run in both[side]] for side in ("ours", "peer")] for both in runs
        ]
        groups = [values for both in sides for values in both if len(values) > 1]
        freedom = sum(len(values) - 1 for values in groups)
        if freedom < 2 or len(sides) < 2:
            continue
        squares = sum((len(values) - 1) * statistics.variance(values) for values in groups)
        deviation = math.sqrt(squares / freedom)
        fewest = min(map(len, groups))
        half = stats.t.ppf(0.975, freedom) * deviation * math.sqrt(2 / fewest)
        apart = [statistics.mean(ours) - statistics.mean(theirs) for ours, theirs in sides]
        mean = statistics.mean(apart)
        around = (
            stats.t.ppf(0.975, len(apart) - 1) * statistics.stdev(apart) / math.sqrt(len(apart))
        )
        lines.append(
            f"{of}: a seed's deviation, pooled over all rows, is {deviation:.1f} points "
            f"({freedom} degrees of freedom); {fewest} seeds a side know a difference to "
            f"± {half:.1f}. "
            f"The largest of the {len(apart)} differences is {max(apart, key=abs):+.1f}, and their "
            f"mean is {mean:+.1f} ± {around:.1f}."
        )
    return "\n\n".join("\n".join(textwrap.wrap(line, 100)) for line in lines)


def of_speeds(found):
    rows = []
    for name in cases.TRAINED:
        both = list(runs_of(found, name).values())
        cells = ["not run"] * 3
        if both:
            ours, theirs = (
                [run["images_per_second"] for sides in both for run in sides[side]]
                for side in ("ours", "peer")
            )
            ours, theirs = sum(ours) / len(ours), sum(theirs) / len(theirs)
            cells = [f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}"]
        rows.append([f"`{name}`", *cells])
    return table(["case", "images/s here", "images/s of the peer", "ratio"], rows)


def of_views(found):
    views = found.get("views", {})
    if len(views) < 2:
        return "Not run."
    rows = [
        [
            name,
            *(
                f"{mean:.3f} ± {spread:.3f}"
                for mean, spread in (views["ours"][name], views["peer"][name])
            ),
        ]
        for name in views["ours"]
    ]
    return table(["of a view", "here", "peer"], rows)


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    kept = read(trained.RESULTS)
    tables = {
        "steps": of_steps(read(steps.RESULTS)),
        "trained": of_runs(kept) + "\n\n" + pooled(kept),
        "speeds": of_speeds(kept),
        "views": of_views(kept),
    }
    text = PAGE.read_text()
    for name, made in tables.items():
        pattern = rf"(<!-- parity:{name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda found: f"{found[1]}\n{made}\n\n{found[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} places for the table {name}; expected one.")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
