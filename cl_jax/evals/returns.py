"""What an agent earns: the return of one greedy episode in each test world, and how soon the return
rose in training."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy import stats

from cl_jax.core import logs
from cl_jax.evals import Evaluator, Given, Needs

Value = TypeVar("Value")


def make(
    *, confidence: float = 0.95, at: Sequence[float] = (0.5, 0.8, 0.9, 0.95), window: int = 5
) -> Evaluator:
    """Mean return and length of the episodes of functions["play"] in `data.test`.

    Of a population (`methods.population`) all members are measured, "returns/return@<member>".
    Members that differ in their seed are put together: "returns/mean@<setting>" is the mean over
    seeds of their mean returns, and "returns/interval@<setting>" half the width of its confidence
    interval by Student's t. "returns/return" is the mean over all members. At the end of a run
    `learning_curves.png` has the returns of training, mean and interval over seeds of each setting,
    and `learning_curves.txt` says after how many steps they passed `at`.

    Args:
      confidence: of the intervals.
      at: returns of training.
      window: rows of the log whose mean must pass them.

    Raises:
      ValueError: a confidence that is not between 0 and 1, a window below 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; expected a number between 0 and 1.")
    if window < 1:
        raise ValueError(f"window={window}; expected 1 row or more.")

    def measure(given: Given) -> dict[str, float]:
        rows = {name: np.mean(x) for name, x in given.rows("play", given.data.test).items()}
        found = {f"returns/{name}": float(value) for name, value in rows.items()}
        members = {
            name.split("@", 1)[1]: x for name, x in rows.items() if name.startswith("return@")
        }
        if members:
            found["returns/return"] = float(np.mean(list(members.values())))
        for setting, values in by_setting(members).items():
            half = interval(values, confidence)
            found[f"returns/mean@{setting}"] = float(np.mean(values))
            found[f"returns/interval@{setting}"] = half
        return found

    def draw(given: Given) -> None:
        rows, _ = logs.rows(given.workdir / "metrics.jsonl")
        steps, curves = over_training(rows)
        if not curves:
            return
        bands, told = {}, []
        for setting, returns in curves.items():
            half = [interval(list(column), confidence) for column in returns.T]
            bands[setting] = (returns.mean(0), np.array(half))
            told += [
                f"{setting}: {_told(returns, steps, level, window, confidence)}\n" for level in at
            ]
        (given.workdir / "learning_curves.txt").write_text("".join(told))
        from cl_jax.evals import pictures  # matplotlib: only where something is drawn

        path = given.workdir / "learning_curves.png"
        pictures.bands(path, steps, bands, title="Return in training", xlabel="step")

    return Evaluator(
        measure,
        Needs(functions=("play",)),
        better={"returns/return": 1},
        titles={"returns/return": "mean return"},
        draw=draw,
    )


def over_training(
    rows: Sequence[Mapping[str, float]],
) -> tuple[list[int], dict[str, np.ndarray]]:
    """(steps [T], {setting: returns [members, T]}) of a population's log; nothing of a single
    agent's."""
    members: dict[str, list[float]] = {}
    steps = []
    for row in rows:
        named = {
            "/".join(parts[:-1]): value
            for name, value in row.items()
            if (parts := name.split("/"))[-1] == "return" and parts[-2:-1] not in ([], ["returns"])
        }
        for name, value in named.items():
            members.setdefault(name, []).append(value)
        steps += [int(row["step"])] * bool(named)
    found = {name: np.array(values) for name, values in by_setting(members).items()}
    return steps, found


def steps_to(returns: np.ndarray, steps: Sequence[int], level: float, window: int) -> list[float]:
    """Of each member, returns [M, T], the first of the steps [T] at which the mean of the last
    `window` rows is `level` or more; inf where there is none."""
    sums = np.cumsum(np.pad(returns, ((0, 0), (1, 0))), axis=1)
    means = (sums[:, window:] - sums[:, :-window]) / window
    there = means >= level
    ends = np.asarray(steps, float)[window - 1 :]
    return [float(ends[row.argmax()]) if row.any() else np.inf for row in there]


def _told(
    returns: np.ndarray, steps: Sequence[int], level: float, window: int, confidence: float
) -> str:
    found = steps_to(returns, steps, level, window)
    there = [value for value in found if np.isfinite(value)]
    if len(there) < len(found):
        return f"a return of {level:g} in {len(there)} of {len(found)} seeds"
    half = interval(found, confidence)
    return f"a return of {level:g} after {np.mean(found):.1f} ± {half:.1f} steps"


def by_setting(members: Mapping[str, Value]) -> dict[str, list[Value]]:
    """Figures of members that differ in their seed alone, at least two of each: {"cpc_weight=1":
    [figures]}; "all" where the seed is all that they differ in."""
    groups: dict[str, list[Value]] = {}
    for name, value in members.items():
        setting, seeds = re.subn(r"(^|,)seed=[^,]*", "", name)
        if "=" not in name:  # one setting, named by its value
            setting, seeds = "", 1
        groups.setdefault(setting.strip(",") or "all", []).extend([value] * bool(seeds))
    return {setting: values for setting, values in groups.items() if len(values) > 1}


def interval(values: list[float], confidence: float) -> float:
    """Half the width of the confidence interval of the mean of values, by Student's t."""
    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * spread)
