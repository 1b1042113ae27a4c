"""The last lines of a run and its curve, from rows of a log."""

import re
from pathlib import Path

import cl_jax.evals
from cl_jax.evals import Evaluator, pictures, summary

EVALUATORS = {
    "knn": Evaluator(
        lambda given: {},
        better={"knn/top1": 1, "never/top1": 1},
        titles={"knn/top1": "kNN %"},
    ),
    "own": Evaluator(lambda given: {}, better={"own/loss": -1}),
}
ROWS = [
    {"step": 0, "untrained/knn/top1": 0.25, "knn/raw_pixels": 0.5},
    {"step": 2, "knn/top1": 0.6, "own/loss": 3.0},
    {"step": 4, "knn/top1": 0.75},
]


def test_the_newest_of_each_figure_stands_beside_what_it_has_to_beat():
    assert summary.text(EVALUATORS, ROWS).splitlines() == [
        "kNN, trained network        75.0 %",
        "kNN, untrained network      25.0 %",
        "kNN, raw pixels             50.0 %",
        "own/loss, trained network  3",
    ]
    assert summary.text({}, ROWS) == summary.text(EVALUATORS, []) == ""


def test_the_curve_has_a_point_for_each_evaluation_and_the_baselines(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "curve", lambda *given, **words: drawn.append((given, words)))
    summary.draw_curve(tmp_path, EVALUATORS, ROWS, "never/top1")
    assert not drawn
    summary.draw_curve(tmp_path, EVALUATORS, ROWS, "knn/top1")
    ((given, words),) = drawn
    baselines = {"untrained network": 0.25, "raw pixels": 0.5}
    assert given == (tmp_path / "knn.png", [2, 4], [0.6, 0.75], baselines)
    assert words == {"title": "kNN", "xlabel": "step", "percent": True}


def test_the_curve_overwrites_no_picture_of_an_evaluator():
    """It has the name of the evaluator whose figure it shows."""
    text = {path.stem: path.read_text() for path in Path(cl_jax.evals.__file__).parent.glob("*.py")}
    drawn = {name for one in text.values() for name in re.findall(r'workdir / "(\w+)\.png"', one)}
    measuring = {name for name, one in text.items() if "better=" in one}
    assert {"neighbours", "latents_ahead"} <= drawn and {"knn", "steps_ahead"} <= measuring
    assert not drawn & measuring
