"""Charts of plotly for a notebook: the map of embeddings, and the curves of a log."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cl_jax.reports import layouts, page, sections


def map_of(
    x: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    classes: Sequence[str] = (),
    names: Sequence[str] = (),
    places: str = "t-SNE",
    seed: int = 0,
) -> Any:
    """A `plotly.graph_objects.Figure` with a point for each row.

    Args:
      x: [N, D] features.
      labels: [N] integers that colour the points, -1 for none; classes: names of their values.
      names: [N] shown under the pointer.
      places: "t-SNE", "PCA", or "UMAP" where umap-learn is installed.
      seed: of the places.

    Raises:
      ValueError: places of another name.
    """
    import plotly.graph_objects as go

    found = layouts.layouts(np.asarray(x), seed)
    if places not in found:
        raise ValueError(f"places={places!r}; expected one of {', '.join(found)}.")
    at = found[places]
    values = np.zeros(len(at), int) if labels is None else np.asarray(labels)
    words = np.array(names if len(names) else [""] * len(at))
    figure = go.Figure()
    for value in np.unique(values):
        rows = np.flatnonzero(values == value)
        named = classes[value] if 0 <= value < len(classes) else str(value)
        colour = "#c4c9d2" if value < 0 else page.COLOURS[value % len(page.COLOURS)]
        figure.add_scattergl(
            x=at[rows, 0],
            y=at[rows, 1],
            mode="markers",
            name="none" if value < 0 else named,
            text=words[rows],
            hoverinfo="text" if len(names) else "name",
            marker={"color": colour, "size": 6, "opacity": 0.75},
        )
    figure.update_layout(
        showlegend=labels is not None,
        xaxis={"visible": False},
        yaxis={"visible": False, "scaleanchor": "x"},
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        plot_bgcolor="#fff",
    )
    return figure


def curves(log: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """{title: `plotly.graph_objects.Figure`} of what a log (`training.metrics.read`) has at several
    steps, each beside the untrained network."""
    import plotly.graph_objects as go

    found: dict[str, Any] = {}
    sections.curves(log, found)
    charts = [go.Figure(chart["data"], chart["layout"]) for chart in found.values()]
    return {chart.layout.title.text: chart for chart in charts}
