"""Writes the tables of the comparison with the peer into docs/results.md, from
benchmarks/results/parity_steps.json and parity_trained.json. What has no run says "not run"."""

import json
import re
from pathlib import Path

import cases
import steps
import trained

from cl_jax.tools._table import Difference, against, spread

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results.md"
NAMES = {"knn200": "kNN 200", "knn20": "kNN 20"}


def table(titles, rows):
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def read(path):
    return json.loads(path.read_text()) if path.exists() else {}


def of_steps(found):
    """Largest difference over the ten steps, and that of the first step's loss and gradient."""
    rows = []
    for name, case in cases.CASES.items():
        for dtype in ("float64", "float32"):
            kept = found.get(f"{name}.{dtype}")
            cells = ["not run"] * len(steps.KINDS)
            if kept is not None:
                cells = [f"{max(kept[k]):.1e}" if k in kept else "-" for k in steps.KINDS]
            rows.append([f"`{name}`", dtype, *cells, case["peer"] if dtype == "float64" else ""])
    return table(
        ["case", "type", "loss", "gradient", "parameters", "target", "memory", "peer"], rows
    )


def of_runs(found, budget):
    """kNN of both sides with the difference of their means, in points."""
    runs, rows = found.get("runs", {}), []
    for name in cases.TRAINED:
        mine = {
            side: [
                v
                for k, v in runs.items()
                if k.startswith(f"{name}.{side}.") and k.endswith(f".{budget}")
            ]
            for side in ("ours", "peer")
        }
        cells = ["not run"] * 7
        if all(mine.values()):
            cells = [f"{len(mine['ours'])} and {len(mine['peer'])}"]
            for key in NAMES:
                ours, theirs = ([100 * row[key] for row in mine[side]] for side in ("ours", "peer"))
                apart = against([x / 100 for x in ours], [x / 100 for x in theirs], 10_000)
                half = None if apart.half is None else 100 * apart.half
                cells += [spread(ours, 1), spread(theirs, 1)]
                cells.append(Difference(100 * apart.mean, half).text(1))
        rows.append([f"`{name}`", *cells])
    titles = ["case", "seeds"]
    titles += [f"{of}, {side}" for of in NAMES.values() for side in ("here", "peer", "difference")]
    return table(titles, rows)


def of_speeds(found):
    runs, rows = found.get("runs", {}), []
    for name in cases.TRAINED:
        speeds = {
            side: [
                v["images_per_second"] for k, v in runs.items() if k.startswith(f"{name}.{side}.")
            ]
            for side in ("ours", "peer")
        }
        cells = ["not run"] * 3
        if all(speeds.values()):
            ours, theirs = (sum(v) / len(v) for v in speeds.values())
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
    kept = read(trained.RESULTS)
    tables = {
        "steps": of_steps(read(steps.RESULTS)),
        "trained": of_runs(kept, cases.TRAIN["steps"]),
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
