"""What a run says of itself at its end, from its log: its last lines, and the curve of one
figure."""

from collections.abc import Mapping
from pathlib import Path

from cl_jax.evals import Evaluator

# Baselines of the data alone that the summary and the curve show, by the last part of their names.
_OF_DATA = {
    "raw_pixels": "raw pixels",
    "shared_words": "shared words",
    "shared_words_idf": "shared words, rare ones weigh more",
}


def draw_curve(
    workdir: str | Path,
    evaluators: Mapping[str, Evaluator],
    rows: list[dict[str, float]],
    best: str,
) -> None:
    """The curve of the figure `best` over a run's log, with its baselines, as
    WORKDIR/<protocol>.png."""
    points = [(row["step"], row[best]) for row in rows if best in row]
    protocol, titles = best.split("/")[0], _titles(evaluators)
    title = titles.get(best, best)
    lines = {words: row[name] for row in rows for name, words in _beside(best) if name in row}
    if points:
        from cl_jax.evals import pictures  # matplotlib: only where something is drawn

        pictures.curve(
            Path(workdir) / f"{protocol}.png",
            [step for step, _ in points],
            [value for _, value in points],
            lines,
            title=title.removesuffix(" %"),
            xlabel="step",
            percent="%" in title,
        )


def text(evaluators: Mapping[str, Evaluator], rows: list[dict[str, float]]) -> str:
    """The last lines of a run: each figure that has a better end, of the trained network beside the
    untrained one and the data alone."""
    latest: dict[str, float] = {}
    for row in rows:
        latest.update(row)
    titles, lines = _titles(evaluators), []
    for figure in (figure for one in evaluators.values() for figure in one.better):
        title = titles.get(figure, figure)
        name = title.removesuffix(" %")
        for key, words in (
            (figure, f"{name}, trained network"),
            *_beside(figure, f"{name}, "),
        ):
            if key in latest:
                value = latest[key]
                lines.append((words, f"{100 * value:5.1f} %" if "%" in title else f"{value:.4g}"))
    width = max((len(words) for words, _ in lines), default=0)
    return "\n".join(f"{words:<{width}}  {value}" for words, value in lines)


def _titles(evaluators: Mapping[str, Evaluator]) -> dict[str, str]:
    return {name: text for one in evaluators.values() for name, text in one.titles.items()}


def _beside(figure: str, before: str = "") -> list[tuple[str, str]]:
    """(name in the log, text) of the baselines of a figure; `before` begins each text."""
    protocol = figure.split("/")[0]
    return [(f"untrained/{figure}", f"{before}untrained network")] + [
        (f"{protocol}/{name}", before + text) for name, text in _OF_DATA.items()
    ]
