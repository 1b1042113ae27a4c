"""The sections of the page on a run, from plain arrays, pictures and words."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cl_jax.cluster.pairs import likely_copies
from cl_jax.reports import findings, page, pictures
from cl_jax.reports.page import Section

Array = np.ndarray
Label = tuple[Array, Sequence[str]]  # [N] integers, -1 for none, and the names of their values


def summary(told: Sequence[tuple[str, str]], verdict: str, settings: str) -> Section:
    """What was run: a table of names and words, the verdict, and all settings folded away."""
    said = f'<p class="verdict">{html.escape(verdict)}</p>' if verdict else ""
    folded = f"<details><summary>all settings</summary><pre>{html.escape(settings)}</pre></details>"
    return Section("What was run", "", said + page.table(told) + folded)


# Charts of the log: title -> figures by their last word.
CURVES = {
    "loss": ("loss", "chance"),
    "learning rate": ("learning_rate",),
    "gradient norm": ("grad_norm",),
    "alignment": ("geometry/alignment",),
    "uniformity": ("geometry/uniformity",),
    "effective rank": ("geometry/effective_rank",),
}
TOLD = {"step", "time", "epoch", "eval_seconds", "examples_per_second", "knn/temperature"}


def curves(log: Sequence[Mapping[str, float]], figures: dict[str, Any]) -> Section:
    """Curves of the log: the usual ones, then every other figure of the evaluations; charts are
    added to `figures`."""
    names = dict.fromkeys(name for row in log for name in row)
    taken = {name for group in CURVES.values() for name in group} | TOLD
    wanted = {title: group for title, group in CURVES.items() if set(group) & set(names)}
    wanted |= {
        name: (name, f"untrained/{name}")
        for name in names
        if "/" in name
        and name not in taken
        and not name.startswith(("untrained/", "geometry/"))
        and not name.endswith("/k")  # of a kNN vote
    }
    ids: list[str] = []
    at_the_end = []
    for title, group in wanted.items():
        found = {}
        for name in group:
            at = [(r["step"], r[name]) for r in log if name in r and math.isfinite(r[name])]
            if not at:
                continue
            if name.startswith("untrained/"):
                at = [at[0], (log[-1]["step"], at[0][1])]
            found["untrained" if name.startswith("untrained/") else name] = tuple(zip(*at))
        if len(found.get(group[0], ((),))[0]) > 1:
            ids.append(f"curve{len(ids)}")
            figures[ids[-1]] = page.lines(title, found, "step")
        elif group[0] in found:
            at_the_end.append((title, f"{found[group[0]][1][0]:.4g}"))
    body = (page.plots(ids) if ids else "") + (page.table(at_the_end) if at_the_end else "")
    return Section("Curves", "", body)


def views(images: Sequence[Array], drawn: Sequence[Array]) -> Section:
    """Augmented views.

    Args:
      images: of the examples, uint8 [H, W, C].
      drawn: [rows, h, w, c] of each view, of any scale.
    """
    lines = []
    for i, image in enumerate(images):
        shown = [pictures.fitted(pictures.shown(image), 96)]
        shown += [pictures.fitted(pictures.shown(_scaled(v[i], drawn)), 96) for v in drawn]
        lines.append("".join(f'<img alt="" src="{pictures.url(p, "PNG")}">' for p in shown))
    return Section(
        "Views",
        "The example, then its views as training draws them. What the views do not share, the "
        "network learns to ignore.",
        '<div class="views">' + "<br>".join(lines) + "</div>",
    )


def pairs(first: Array, second: Array, temperature: float, figures: dict[str, Any]) -> Section:
    """Similarities of two views [N, D] of the same examples, and what the hardest negatives
    carry."""
    positive, negative = findings.pair_similarities(first, second)
    figures["pairs"] = page.histograms(
        "cosine of two views",
        {"of one example": positive, "of different examples": negative},
        "cosine",
    )
    share, carried = findings.hardest_share(first, second, temperature)
    figures["hardest"] = page.lines(
        f"gradient carried by the hardest negatives, temperature {temperature:g}",
        {"carried": (share.tolist(), carried.tolist())},
        "share of the negatives, hardest first",
    )
    tenth = float(np.interp(0.1, share, carried))
    return Section(
        "Pairs",
        f"Projections of two views of {len(first)} examples. The hardest tenth of the negatives "
        f"carries {tenth:.0%} of an InfoNCE gradient at this temperature.",
        page.plots(["pairs", "hardest"]),
    )


def _scaled(image: Array, views: Sequence[Array]) -> Array:
    """A view of any scale as uint8: black and white are the extremes of all views by channel."""
    low = np.min([np.percentile(v, 0.5, axis=(0, 1, 2)) for v in views], axis=0)
    high = np.max([np.percentile(v, 99.5, axis=(0, 1, 2)) for v in views], axis=0)
    return np.clip(255 * (image - low) / np.maximum(high - low, 1e-6), 0, 255).astype(np.uint8)


def labelled(
    label: Label, field: str, similarity: Array, near: Array, figures: dict[str, Any]
) -> list[Section]:
    """Confusion of the neighbours' votes, and labels in doubt; none of fewer than two labels."""
    values, names = label
    if (values >= 0).sum() < 2:
        return []
    votes = findings.votes(values, similarity, near)
    table, kept = findings.confusion(values, votes)
    known = (values >= 0) & (votes.sum(1) > 0)
    right = float(np.mean(votes[known].argmax(1) == values[known])) if known.any() else 0.0
    figures["confusion"] = page.heat(
        "", table, [names[c] for c in kept], "vote of the neighbours", field
    )
    doubts = findings.doubtful(values, votes)
    wrong = "".join(
        page.pair(
            [d.row, *near[d.row][:3]],
            f"labelled {names[d.label]}, neighbours say {names[d.vote]} ({d.share:.0%})",
        )
        for d in doubts
    )
    return [
        Section(
            "Confusion",
            f"Of each example's {near.shape[1]} nearest others, {right:.1%} of the votes are "
            f"right; numbers count examples.",
            page.plots(["confusion"], wide=True),
        ),
        Section(
            "Likely wrong labels",
            "Examples whose nearest others agree on another label; each with three of them.",
            wrong,
        ),
    ]


def clusters(members: Sequence[Array]) -> Section:
    """Each cluster with the rows nearest to its centre, which come first in `members`."""
    rows = "".join(
        f"<tr><td>{c}</td><td>{len(rows):,}</td><td>{page.tiles(rows[:10])}</td></tr>"
        for c, rows in enumerate(members)
    )
    head = "<tr><th>cluster</th><th>examples</th><th>nearest to its centre</th></tr>"
    return Section("Clusters", "k-means of the features.", f"<table>{head}{rows}</table>")


def alike(x: Array, label: Label | None, similarity: Array, near: Array) -> list[Section]:
    """Duplicates of rows [N, D], and likely false negatives."""
    threshold = likely_copies(x)
    groups = findings.duplicates(x, threshold)
    sections = []
    if groups:
        total = sum(len(rows) for rows in groups)
        shown = "".join(page.pair(rows[:8], f"{len(rows)} examples") for rows in groups[:24])
        sections.append(
            Section(
                "Duplicates",
                f"{len(groups)} groups of examples, {total} in all, whose features are at least "
                f"{threshold:g} alike."
                + " Most examples are in one group: they are copies, or the features hardly tell "
                "them apart." * (len(groups[0]) > len(x) / 2),
                shown,
            )
        )
    values = label[0] if label is not None else None
    pairs = findings.false_negatives(values, similarity, near, threshold)
    sections.append(
        Section(
            "Likely false negatives",
            "The most similar pairs "
            + ("of one label " if label is not None else "")
            + "that are no duplicates: a contrastive loss pushes them apart.",
            "".join(page.pair([p.first, p.second], f"cosine {p.similarity:.3f}") for p in pairs),
        )
    )
    return sections
