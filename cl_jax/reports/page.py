"""One HTML file of sections, charts and a map, which opens from the disk without a network."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

COLOURS = (
    "#2c5fa8", "#d1782b", "#3b8f4e", "#b23a48", "#7a58a8", "#8a6a4f", "#c866a0", "#6b7685",
    "#a3a42d", "#2fa3b0", "#1d3c6e", "#f0a868", "#86c292", "#e58a94", "#b79fd8", "#c4a98f",
    "#eaaed0", "#b0b8c4", "#d6d77a", "#8ed3db",
)  # fmt: skip


class Section(NamedTuple):
    """A part of the page: its title, what it shows in a sentence, and its HTML."""

    title: str
    note: str
    body: str


class Map(NamedTuple):
    """The map of all rows. layouts: {name: [N, 2]}. colourings: {name: ([N] integers, -1 for none,
    names of their values)}. near, similarity: [N, k] of the neighbours that a click shows."""

    layouts: Mapping[str, np.ndarray]
    colourings: Mapping[str, tuple[np.ndarray, Sequence[str]]]
    near: np.ndarray
    similarity: np.ndarray


def tiles(rows: Iterable[int], scale: float = 1) -> str:
    """Examples side by side, by number."""
    return "".join(f'<span data-tile="{int(i)}" data-scale="{scale}"></span>' for i in rows)


def pair(rows: Iterable[int], text: str) -> str:
    """Examples with a caption below."""
    return (
        f'<div class="pair">{tiles(rows, 1.3)}<div class="caption">{html.escape(text)}</div></div>'
    )


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns: names and what they are."""
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def plots(ids: Sequence[str], wide: bool = False) -> str:
    """Places of charts; `write` is given what they show."""
    kind = "wide" if wide else "plot"
    return (
        '<div class="plots">'
        + "".join(f'<div class="{kind}" id="{i}"></div>' for i in ids)
        + ("</div>")
    )


def lines(title: str, curves: Mapping[str, Sequence[Sequence[float]]], x: str) -> dict[str, Any]:
    """A chart of curves {name: (x, y)}."""
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(xs) < 40 else "lines",
            "name": name,
            "x": list(xs),
            "y": list(ys),
            "line": {"color": COLOURS[i % len(COLOURS)]},
        }
        for i, (name, (xs, ys)) in enumerate(curves.items())
    ]
    return {"data": data, "layout": _layout(title, x, "", len(curves) > 1)}


def histograms(title: str, parts: Mapping[str, np.ndarray], x: str) -> dict[str, Any]:
    """Densities of {name: values} over one range."""
    values = np.concatenate([np.ravel(part) for part in parts.values()])
    edges = np.linspace(values.min(), max(values.max(), values.min() + 1e-6), 61)
    data = []
    for i, (name, part) in enumerate(parts.items()):
        density, _ = np.histogram(part, edges, density=True)
        data.append(
            {
                "type": "bar",
                "name": name,
                "x": _rounded((edges[1:] + edges[:-1]) / 2),
                "y": _rounded(density),
                "marker": {"color": COLOURS[i]},
                "opacity": 0.65,
            }
        )
    layout = _layout(title, x, "density", True) | {"barmode": "overlay", "bargap": 0}
    return {"data": data, "layout": layout}


def heat(title: str, values: np.ndarray, names: Sequence[str], x: str, y: str) -> dict[str, Any]:
    """A matrix [C, C] of counts, coloured by their share of the row."""
    share = values / np.maximum(values.sum(1, keepdims=True), 1)
    data = {
        "type": "heatmap",
        "z": _rounded(share),
        "x": list(names),
        "y": list(names),
        "text": values.tolist(),
        "texttemplate": "%{text}" if len(names) <= 15 else "",
        "hovertemplate": f"{y} %{{y}}, {x} %{{x}}: %{{text}}<extra></extra>",
        "colorscale": [[0, "#ffffff"], [1, COLOURS[0]]],
        "showscale": False,
        "zmin": 0,
        "zmax": 1,
    }
    layout = _layout(title, x, y, False)
    for axis, name in (("xaxis", x), ("yaxis", y)):  # names of classes may be long
        layout[axis] |= {
            "type": "category",
            "automargin": True,
            "title": {"text": name, "standoff": 12},
        }
    layout["yaxis"]["autorange"] = "reversed"
    return {"data": [data], "layout": layout}


def write(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    *,
    figures: Mapping[str, Mapping[str, Any]],
    of_rows: Map,
    names: Sequence[str],
    labels: Mapping[str, tuple[np.ndarray, Sequence[str]]],
    atlas: Mapping[str, Any] | None,
) -> str:
    """The page's text.

    Args:
      title, subtitle: plain text.
      sections: in order; "map" as a body stands for the map with its choices.
      figures: {id: chart} for the places that `plots` made.
      of_rows: the map.
      names: [N] what each example is called; its text, where it has no picture.
      labels: {field: ([N] integers, -1 for none, names of their values)}.
      atlas: {"cell", "columns", "files"} of pictures; None where examples have none.
    """
    from plotly.offline import get_plotlyjs

    def of(coloured: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> dict[str, Any]:
        return {
            name: {"values": values.tolist(), "names": list(words)}
            for name, (values, words) in coloured.items()
        }

    data = {
        "names": list(names),
        "labels": of(labels),
        "colourings": of(of_rows.colourings),
        "layouts": {name: _rounded(places) for name, places in of_rows.layouts.items()},
        "near": of_rows.near.tolist(),
        "similarity": _rounded(of_rows.similarity),
        "figures": dict(figures),
        "colours": COLOURS,
        "atlas": atlas,
    }
    body, contents = [], []
    for number, section in enumerate(sections):
        inside = _map(of_rows) if section.body == "map" else section.body
        note = f'<p class="note">{html.escape(section.note)}</p>' if section.note else ""
        words = html.escape(section.title)
        body.append(f'<section id="s{number}"><h2>{words}</h2>{note}{inside}</section>')
        contents.append(f'<a href="#s{number}">{words}</a>')
    here = resources.files(__package__)
    # "</script" would end the script early, "<!--<script" late.
    given = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "style": (here / "page.css").read_text("utf-8"),
        "plotly": get_plotlyjs(),
        "contents": "".join(contents),
        "sections": "".join(body),
        "data": given,
        "script": (here / "page.js").read_text("utf-8"),
    }
    page = (here / "page.html").read_text("utf-8")
    pieces = []
    for piece in page.split("{"):
        name, closed, rest = piece.partition("}")
        pieces += [parts[name], rest] if closed and name in parts else [piece]
    return "".join(pieces)


def _map(of_rows: Map) -> str:
    def choice(name: str, words: str, options: Mapping[str, Any]) -> str:
        inside = "".join(f"<option>{html.escape(option)}</option>" for option in options)
        return f'<label>{words} <select id="{name}">{inside}</select></label>'

    return (
        '<div class="choices">'
        + choice("layout", "places by", of_rows.layouts)
        + choice("colour", "colours by", of_rows.colourings)
        + '</div><div class="beside"><div id="map"></div><div class="panel" id="near">'
        '<p class="note">Click on a point.</p></div></div>'
    )


def _layout(title: str, x: str, y: str, legend: bool) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 14}, "x": 0.02, "xanchor": "left"},
        "margin": {"l": 55, "r": 15, "t": 36, "b": 42},
        "xaxis": {"title": {"text": x}, "gridcolor": "#eceff4", "zeroline": False},
        "yaxis": {"title": {"text": y}, "gridcolor": "#eceff4", "zeroline": False},
        "showlegend": legend,
        "legend": {"x": 1, "y": 1, "xanchor": "right", "bgcolor": "rgba(255,255,255,0.7)"},
        "plot_bgcolor": "#fff",
    }


def _rounded(values: np.ndarray) -> list[Any]:
    """Four digits are enough for a screen; what is not finite is null."""
    kept = np.asarray(values, np.float64)
    flat = [float(f"{v:.4g}") if np.isfinite(v) else None for v in kept.ravel()]
    return np.array(flat, object).reshape(kept.shape).tolist()
