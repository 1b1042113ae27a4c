"""What an agent earns: the return of one greedy episode in each test world."""

import re

import numpy as np
from scipy import stats

from cl_jax.evals import Evaluator, Given, Needs


def make(*, confidence: float = 0.95) -> Evaluator:
    """Mean return and length of the episodes of functions["play"] in `data.test`.

    Of a population (`methods.population`) all members are measured, "returns/return@<member>".
    Members that differ in their seed are put together: "returns/mean@<setting>" is the mean over
    seeds of their mean returns, and "returns/interval@<setting>" half the width of its confidence
    interval by Student's t. "returns/return" is the mean over all members.

    Args:
      confidence: of the interval.

    Raises:
      ValueError: a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}; expected a number between 0 and 1.")

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

    return Evaluator(
        measure,
        Needs(functions=("play",)),
        better={"returns/return": 1},
        titles={"returns/return": "mean return"},
    )


def by_setting(members: dict[str, float]) -> dict[str, list[float]]:
    """Figures of members that differ in their seed alone, at least two of each: {"cpc_weight=1":
    [figures]}; "all" where the seed is all that they differ in."""
    groups: dict[str, list[float]] = {}
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
