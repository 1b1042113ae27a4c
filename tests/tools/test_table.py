"""Intervals, and the words that stand only outside them."""

import numpy as np
import pytest
from scipy import stats

from cl_jax.tools import _table


def rows(name, values, before=0.4, **more):
    return [
        {
            "method": name,
            "seed": seed,
            "epochs": 1,
            "measure": "knn/top1",
            "share": True,
            "knn": value,
            "reached": value,
            "reached_untrained": before,
            "config": "c",
            "commit": "g",
        }
        | more
        for seed, value in enumerate(values)
    ]


def test_gains_have_student_s_interval():
    after, before = np.array([0.71, 0.74, 0.72]), np.array([0.42, 0.41, 0.44])
    found = _table.gain(after, before)
    low, high = stats.ttest_1samp(after - before, 0.0).confidence_interval(0.95)
    assert found.mean == pytest.approx((low + high) / 2)
    assert found.half == pytest.approx((high - low) / 2)
    assert found.word == "better"


def test_two_methods_are_compared_by_welch_s_interval():
    ours, theirs = [0.71, 0.74, 0.72], [0.70, 0.75, 0.73, 0.71]
    found = _table.against(ours, theirs)
    low, high = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.word == ""


def test_the_draw_of_the_test_examples_widens_the_interval():
    """359 handwritings at 70 %: 4.7 points for one share."""
    seeds = [0.70, 0.70, 0.70]
    drawn = 1.959964 * np.sqrt((0.7 * 0.3 + 0.68 * 0.32) / 359)
    found = _table.against(seeds, [0.68] * 3, units=359)
    assert found.half == pytest.approx(drawn) and found.word == ""
    assert _table.against(seeds, [0.68] * 3).word == "better"


def test_one_seed_says_neither_better_nor_worse():
    found = _table.gain([0.9], [0.1])
    assert found.half is None and found.word == "" and found.text(1) == "+0.8, one seed"


def test_a_figure_whose_low_end_is_the_better_one_gains_by_falling():
    ranks = rows("clip", [3.0, 2.0, 2.0], 500.0, share=False, better=-1, measure="retrieval/rank")
    found = _table.own_gain(ranks)
    assert found.mean == pytest.approx(497.667, abs=1e-3) and found.word == "better"


def test_the_table_says_what_differs_from_a_baseline():
    made = rows("a", [0.70, 0.71, 0.72]) + rows("b", [0.50, 0.52, 0.51]) + rows("c", [0.71] * 3)
    text = _table.markdown(made, "a")
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()[2:]}
    assert "-20.0 ± 2.3, worse" in lines["b"]
    assert "+0.0 ± 2.5 |" in lines["c"] and "better |" in lines["c"]  # on its untrained network
    assert "+31.0 ± 2.5, better | - |" in lines["a"]


def test_the_survey_has_a_line_for_each_system_run_or_not():
    made = [row | {"reached_untrained": None} for row in rows("crd", [0.9], 0.1)]
    ran, missing = _table.survey(made, ["crd", "byol"]).splitlines()[2:]
    assert "| - | 90.0 % |" in ran and "| `byol` | not run | not run |" in missing


def test_published_figures_are_those_of_the_configs():
    assert _table.published("byol") == "92.58 % online linear (solo-learn's README) (`cifar10`)"
    assert _table.published("infomin") == "" or "(`" in _table.published("infomin")
    assert _table.published("my.own.config") == ""
