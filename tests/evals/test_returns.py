"""Returns: members of a population put together by their settings, intervals against scipy."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from cl_jax.evals import returns


def measure(rows):
    given = SimpleNamespace(rows=lambda name, source: rows[name], data=SimpleNamespace(test=None))
    return returns.make().measure(given)


def test_one_agent():
    rows = {"return": np.array([1.0, -1.0, 1.0]), "length": np.array([9, 9, 3])}
    assert measure({"play": rows}) == {
        "returns/return": pytest.approx(1 / 3),
        "returns/length": 7.0,
    }


def test_seeds_are_put_together():
    figures = {"w=0,seed=1": 0.25, "w=0,seed=2": 0.75, "w=1,seed=1": 1.0, "w=1,seed=2": 1.0}
    found = measure({"play": {f"return@{k}": np.full(4, v) for k, v in figures.items()}})
    assert found["returns/return@w=0,seed=2"] == 0.75
    assert found["returns/mean@w=0"] == 0.5 and found["returns/mean@w=1"] == 1.0
    low, high = stats.t.interval(0.95, 1, 0.5, stats.sem([0.25, 0.75]))
    assert found["returns/interval@w=0"] == pytest.approx((high - low) / 2)
    assert found["returns/interval@w=1"] == 0.0
    assert found["returns/return"] == 0.75


def test_settings_alone_are_not_put_together():
    assert returns.by_setting({"0": 1.0, "1": 2.0}) == {"all": [1.0, 2.0]}
    assert returns.by_setting({"w=0,c=1": 1.0, "w=1,c=1": 2.0}) == {}
    with pytest.raises(ValueError, match="between 0 and 1"):
        returns.make(confidence=95)


def test_learning_curves_of_a_population(tmp_path):
    """Seeds together, the step at which the mean of the last two rows passes, rows of evaluations
    left out, nothing of a single agent."""
    curves = {"w=0,seed=1": (0, 0.2, 0.6, 0.8), "w=0,seed=2": (0, 0.6, 0.6, 0.6)}
    rows = [
        {"step": 5 * i} | {f"{name}/return": values[i] for name, values in curves.items()}
        for i in range(4)
    ]
    rows.insert(2, {"step": 5, "returns/return": 1.0, "untrained/returns/return": 0.0})
    steps, found = returns.over_training(rows)
    assert steps == [0, 5, 10, 15] and found["w=0"].tolist() == [list(x) for x in curves.values()]
    assert returns.steps_to(found["w=0"], steps, 0.5, 2) == [15, 10]
    assert returns.steps_to(found["w=0"], steps, 0.65, 2) == [15, np.inf]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    returns.make(at=(0.5, 0.65), window=2).draw(SimpleNamespace(workdir=tmp_path))
    assert (tmp_path / "learning_curves.txt").read_text().splitlines() == [
        "w=0: a return of 0.5 after 12.5 ± 31.8 steps",
        "w=0: a return of 0.65 in 1 of 2 seeds",
    ]
    assert (tmp_path / "learning_curves.png").stat().st_size > 1000
    assert returns.over_training([{"step": 1, "return": 1.0}]) == ([], {})
