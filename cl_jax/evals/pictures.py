"""Pictures of a run as PNG files: the kNN curve, nearest neighbours, augmented views."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator

DPI = 150
INK, MUTED, GRID = "#1b1f24", "#5b6570", "#e3e6ea"
# Told apart by readers with any colour vision.
LINE, SAME, OTHER = "#0072b2", "#009e73", "#d55e00"
BASELINES = ("#8a6d3b", "#7a5195", "#5b6570", "#a04040")
TILE, GAP, FRAME, MARGIN, TEXT = 96, 8, 5, 24, 34  # pixels
SMALL, LINE_HEIGHT = 5.5, 14  # of a caption, points and pixels


def curve(
    path: str | os.PathLike,
    steps: Sequence[float],
    values: Sequence[float],
    baselines: Mapping[str, float],
    *,
    title: str = "",
    xlabel: str = "epoch",
    percent: bool = True,
) -> None:
    """A figure over training with horizontal lines for its baselines: 1050 x 675 pixels.

    Args:
      path: of the PNG; its folder is made.
      steps: [E] positions on the x axis.
      values: [E].
      baselines: {name: value}; of a name such as "knn/raw_pixels" the last part is written: raw
        pixels.
      title, xlabel: text. percent: values are shares from 0 to 1, written in percent.

    Raises:
      ValueError: no values, or another number of steps.
    """
    scale, sign = (100, "%") if percent else (1, "")
    x, y = np.asarray(steps, float), scale * np.asarray(values, float)
    baselines = {name: scale * value for name, value in baselines.items()}
    if x.shape != y.shape or x.ndim != 1 or not x.size:
        raise ValueError(
            f"steps have shape {x.shape} and values {y.shape}; expected one value per step, at "
            f"least one."
        )
    figure = Figure(figsize=(7, 4.5), dpi=DPI)
    axes = figure.add_axes((0.085, 0.125, 0.66, 0.79))
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(xlabel, fontsize=10, color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:{'.0f' if percent else 'g'}}{sign}")
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    low, high = (x.min(), x.max()) if np.ptp(x) else (x[0] - 0.5, x[0] + 0.5)
    axes.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
    if np.ptp(x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xticks(x[:1])
    finite = y[np.isfinite(y)]
    shown = [*finite, *baselines.values()]
    if percent:
        axes.set_ylim(0, min(max([*shown, 10.0]) * 1.1, 102))
    else:
        reach = max(np.ptp(shown), 0.01 * np.abs(shown).max(), 1e-6) if shown else 1.0
        low_y = min(shown, default=0.0)
        axes.set_ylim(low_y - 0.05 * reach, low_y + 1.05 * reach)

    names, digits = [], ".1f" if percent else ".3g"
    for (name, value), colour in zip(baselines.items(), BASELINES * len(baselines)):
        axes.axhline(value, color=colour, linewidth=1.4, linestyle=(0, (5, 3)))
        text = name.rsplit("/", 1)[-1].replace("_", " ")
        names.append((value, f"{text}  {value:{digits}}{sign}", colour, "normal"))
    axes.plot(
        x,
        y,
        color=LINE,
        linewidth=2.2,
        marker="o",
        markersize=5 if x.size <= 40 else 0,
        clip_on=False,
    )
    if finite.size:
        last = finite[-1]
        names.append((last, f"trained  {last:{digits}}{sign}", LINE, "bold"))
    # Room on the right for the names of the lines, in points.
    room = 12 + 5.9 * max((len(text) for _, text, *_ in names), default=0)
    axes.set_position((0.085, 0.125, max(1 - 0.085 - room / (7 * 72), 0.3), 0.79))
    heights = _apart(
        [height for height, *_ in names], 0.058 * np.ptp(axes.get_ylim()), axes.get_ylim()[1]
    )
    for height, (_, text, colour, weight) in zip(heights, names):
        axes.annotate(
            text,
            (1, height),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=colour,
            fontweight=weight,
            annotation_clip=False,
        )
    _save(figure, path)


def trajectory(
    path: str | os.PathLike,
    x: Sequence[float],
    y: Sequence[float],
    steps: Sequence[float],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> None:
    """Two figures over training, one against the other, with the step written at each point: 900 x
    750 pixels.

    Args:
      path: of the PNG; its folder is made.
      x, y: [E] the two figures. steps: [E] when they were measured. xlabel, ylabel, title: text.

    Raises:
      ValueError: no values, or vectors of different length.
    """
    if not len(x) or not len(x) == len(y) == len(steps):
        raise ValueError(
            f"x, y and steps have {len(x)}, {len(y)} and {len(steps)} values; expected as many of "
            "each, at least one."
        )
    figure = Figure(figsize=(6, 5), dpi=DPI)
    axes = figure.add_axes((0.13, 0.12, 0.82, 0.79))
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=10)
    axes.set_xlabel(xlabel, fontsize=10, color=MUTED)
    axes.set_ylabel(ylabel, fontsize=10, color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left", "bottom"]].set_color(GRID)
    axes.plot(x, y, color=LINE, linewidth=1.2, marker="o", markersize=4)
    for a, b, step in zip(x, y, steps):
        axes.annotate(
            f"{step:g}", (a, b), (5, 4), textcoords="offset points", fontsize=8, color=INK
        )
    axes.margins(0.12)
    _save(figure, path)


def curves(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float | None, float]]]],
    *,
    xlabel: str,
) -> None:
    """Panels side by side: {title: {curve: [(x, y), ...]}}. A point whose x is None is a horizontal
    line. The x axis is logarithmic where all x are above 0.

    Raises:
      ValueError: no panel.
    """
    if not panels:
        raise ValueError("no panel is given; expected at least one.")
    figure = Figure(figsize=(4.2 * len(panels), 3.8), dpi=DPI)
    colours = (LINE, OTHER, SAME, *BASELINES)
    for axes, (title, lines) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items()):
        places = [x for points in lines.values() for x, _ in points if x is not None]
        for (name, points), colour in zip(lines.items(), colours * len(lines)):
            drawn = sorted((x, y) for x, y in points if x is not None)
            if drawn:
                axes.plot(*zip(*drawn), marker="o", markersize=4, color=colour, label=name or None)
            for _, y in (point for point in points if point[0] is None):
                axes.axhline(y, color=colour, linestyle=(0, (5, 3)), label=name or None)
        if places and min(places) > 0:
            axes.set_xscale("log")
            axes.set_xticks(sorted(set(places)), [f"{x:g}" for x in sorted(set(places))])
            axes.minorticks_off()
        _plain(axes, title, xlabel)
        if any(lines):
            axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def bands(
    path: str | os.PathLike,
    steps: Sequence[float],
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    title: str,
    xlabel: str,
) -> None:
    """Curves over training with what they may be off by: {name: (values [E], half widths [E])} at
    steps [E].

    Raises:
      ValueError: no curve, or one of another length.
    """
    if not lines or any(len(x) != len(steps) for both in lines.values() for x in both):
        raise ValueError(f"expected one curve or more, of {len(steps)} values each.")
    figure = Figure(figsize=(7, 4.5), dpi=DPI)
    axes = figure.add_subplot()
    colours = (LINE, OTHER, SAME, *BASELINES)
    for (name, (values, half)), colour in zip(lines.items(), colours * len(lines)):
        axes.fill_between(steps, values - half, values + half, color=colour, alpha=0.2, linewidth=0)
        axes.plot(steps, values, color=colour, label=name)
    _plain(axes, title, xlabel)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def histograms(
    path: str | os.PathLike,
    rows: Mapping[str, Sequence[tuple[str, Mapping[str, np.ndarray]]]],
    *,
    bins: int = 60,
) -> None:
    """A row of histograms for each name: {row: [(label of the x axis, {legend: values}), ...]}. All
    histograms of a column have one range.

    Raises:
      ValueError: no row.
    """
    if not rows:
        raise ValueError("no row is given; expected at least one.")
    columns = max(len(panels) for panels in rows.values())
    ranges = [
        [v for panels in rows.values() if c < len(panels) for v in panels[c][1].values()]
        for c in range(columns)
    ]
    limits = [(min(v.min() for v in found), max(v.max() for v in found)) for found in ranges]
    figure = Figure(figsize=(5 * columns, 1.7 * len(rows)), dpi=DPI)
    grid = np.reshape(figure.subplots(len(rows), columns, squeeze=False), (len(rows), columns))
    for line, (name, panels) in zip(grid, rows.items()):
        for axes in line[len(panels) :]:
            axes.set_axis_off()
        for axes, (label, values), limit in zip(line, panels, limits):
            for (legend, found), colour in zip(values.items(), (LINE, OTHER, SAME) * len(values)):
                axes.hist(
                    found, bins, range=limit, density=True, alpha=0.6, color=colour, label=legend
                )
            _plain(axes, name, label)
            axes.set_yticks(())
            axes.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    _save(figure, path)


def _plain(axes, title, xlabel):
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.set_xlabel(xlabel, fontsize=9, color=MUTED)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def neighbour_grid(
    path: str | os.PathLike,
    queries: np.ndarray,
    neighbours: np.ndarray,
    correct: np.ndarray | None = None,
    *,
    captions: Sequence[Sequence[str]] | None = None,
    query_title: str = "query",
    title: str = "nearest training images",
) -> None:
    """One row per query: the query, then its nearest images, framed by whether they share its
    label.

    Args:
      path: of the PNG; its folder is made.
      queries: [Q, H, W, C] uint8, C 1 or 3.
      neighbours: [Q, K, H, W, C] uint8, nearest first.
      correct: [Q, K], nonzero where the label is the query's; None draws no frames.
      captions: [Q, 1 + K] up to two lines below each picture; the end of a long one is shown.
      query_title, title: over the first column and over the others.

    Raises:
      ValueError: other shapes or dtypes.
    """
    queries, neighbours = np.asarray(queries), np.asarray(neighbours)
    if (
        neighbours.ndim != 5
        or neighbours.shape[:1] + neighbours.shape[2:] != queries.shape
        or not neighbours.size
    ):
        raise ValueError(
            f"queries have shape {queries.shape} and neighbours {neighbours.shape}; expected [Q, "
            f"H, W, C] "
            "and [Q, K, H, W, C]."
        )
    count, near = neighbours.shape[:2]
    if correct is not None and np.shape(correct) != (count, near):
        raise ValueError(f"correct has shape {np.shape(correct)}; expected {(count, near)}.")
    colours = None
    if correct is not None:
        colours = [
            [None, *(SAME if same else OTHER for same in row)] for row in np.asarray(correct) != 0
        ]
    tiles = [[query, *row] for query, row in zip(queries, neighbours)]
    legend = []
    if correct is not None:
        share = np.mean(np.asarray(correct) != 0)
        legend = [
            (SAME, f"same label ({100 * share:.0f}%)"),
            (OTHER, f"another label ({100 * (1 - share):.0f}%)"),
        ]
    _mosaic(path, tiles, [query_title, title], colours, legend, captions)


def rows_of_images(path: str | os.PathLike, rows: Sequence[np.ndarray]) -> None:
    """Rows of images [K, H, W, C] uint8 or float in [0, 1], C 1 or 3, each tile as large as whole
    pixels allow; rows may be of different length.

    Raises:
      ValueError: no image, or images of different shape.
    """
    shapes = {np.shape(row)[1:] for row in rows if len(row)}
    if len(shapes) != 1:
        raise ValueError(f"rows have images of shape {sorted(shapes)}; expected one shape.")
    side = max(TILE // 2, *next(iter(shapes))[:2])
    tiles = [[_enlarge(picture, side) for picture in row] for row in rows]
    height, width = next(np.shape(tile)[:2] for row in tiles for tile in row)
    columns = max(len(row) for row in tiles)
    canvas = np.full((len(rows) * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            y, x = i * (height + 2), j * (width + 2)
            canvas[y : y + height, x : x + width] = tile
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    figure.figimage(canvas)
    _save(figure, path)


def _mosaic(path, tiles, titles, colours, legend, captions=None):
    """Rows of tiles, the first column set off, every tile pixel on whole pixels of the figure."""
    rows, columns = len(tiles), len(tiles[0])
    lines = max((text.count("\n") + 1 for row in captions or () for text in row if text), default=0)
    side = max(TILE, *(max(np.shape(tile)[:2]) for row in tiles for tile in row))
    cell, split = side + 2 * FRAME, 2 * GAP
    left = [MARGIN + number * (cell + GAP) + (split if number else 0) for number in range(columns)]
    below = cell + GAP + LINE_HEIGHT * lines
    width, bottom = left[-1] + cell + MARGIN, MARGIN + TEXT + rows * below - GAP
    height = bottom + (TEXT if legend else 0) + MARGIN
    # Short rows still have to hold the titles and the legend.
    width = max(width, left[1] + 10 * len(titles[1]) + MARGIN, MARGIN + 220 * len(legend))
    canvas = np.full((height, width, 3), 255, np.uint8)
    for row, pictures in enumerate(tiles):
        for column, picture in enumerate(pictures):
            y, x = MARGIN + TEXT + row * below, left[column]
            if colours is not None and colours[row][column] is not None:
                canvas[y : y + cell, x : x + cell] = _rgb(colours[row][column])
            shown = _enlarge(picture, side)
            dy, dx = ((cell - size) // 2 for size in shown.shape[:2])
            canvas[y + dy : y + dy + shown.shape[0], x + dx : x + dx + shown.shape[1]] = shown
    for number, (colour, _) in enumerate(legend):
        x = left[0] + FRAME + 220 * number
        canvas[bottom + 20 : bottom + 36, x : x + 16] = _rgb(colour)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(canvas)
    words = [
        (left[0] + FRAME, MARGIN + TEXT / 2 - 6, titles[0], "bold"),
        (left[1] + FRAME, MARGIN + TEXT / 2 - 6, titles[1], "bold"),
        *(
            (left[0] + FRAME + 220 * number + 26, bottom + 28, text, "normal")
            for number, (_, text) in enumerate(legend)
        ),
    ]
    for x, y, text, weight in words:
        figure.text(
            x / width, 1 - y / height, text, va="center", fontsize=8.5, color=INK, fontweight=weight
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box stands for it
        font = FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf")
        font.set_size(SMALL, DPI)
        for row, texts in enumerate(captions or ()):
            y = MARGIN + TEXT + row * below + cell + 2
            for column, text in enumerate(texts):
                # parse_math: a name may hold $
                shown = "\n".join(_shortened(line, side - 2, font) for line in text.split("\n"))
                place = dict(va="top", fontsize=SMALL, color=MUTED, linespacing=1.1)
                x = (left[column] + FRAME) / width
                figure.text(x, 1 - y / height, shown, parse_math=False, **place)
        _save(figure, path)


def _shortened(text, width, font):
    """The end of a text that is wider than so many pixels."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    for start in range(len(text)):
        shown = "…" * (start > 0) + text[start:]
        font.set_text(shown)
        if font.get_width_height()[0] <= 64 * width:
            return shown
    return ""


def _enlarge(picture, side):
    """[h, w, C] -> uint8 [H, W, 3], the longer side as many whole times larger as fit into
    `side`."""
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] not in (1, 3):
        raise ValueError(f"a picture has shape {picture.shape}; expected [H, W, 1] or [H, W, 3].")
    if picture.dtype.kind == "f":
        picture = np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    if picture.dtype != np.uint8:
        raise ValueError(f"a picture is {picture.dtype}; expected uint8, or float in [0, 1].")
    times = max(1, side // max(picture.shape[:2]))
    picture = picture.repeat(times, axis=0).repeat(times, axis=1)
    return np.broadcast_to(picture, (*picture.shape[:2], 3))


def _rgb(colour):
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def _apart(heights, gap, top):
    """The heights, moved as little as possible (in squares) so that no two are closer than `gap`,
    within [0, top]."""
    order = np.argsort(heights, kind="stable")
    groups = []  # heights less the room below, to be made non-decreasing: pool adjacent violators
    for number, at in enumerate(order):
        groups.append([heights[at] - number * gap])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    level = (
        np.concatenate([np.full(len(group), np.mean(group)) for group in groups])
        if groups
        else np.zeros(0)
    )
    moved = np.empty(len(order))
    moved[order] = np.clip(level, 0, max(top - gap * (len(order) - 1), 0)) + gap * np.arange(
        len(order)
    )
    return moved


def _save(figure, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
