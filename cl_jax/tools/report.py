"""Writes one HTML page on a run: what was run, its curves, and a map of what the network sees.

examples:
  cl-jax report runs/mine
  cl-jax report runs/mine --data=/path/to/images --out=report.html

The page opens from the disk, without a network. It has the run's settings and verdict, its curves,
the augmented views of eight examples, a map of the embeddings with the picture of each example and
its neighbours, similarities of positive and negative pairs, the kNN's confusion, clusters,
duplicates, likely false negatives and likely wrong labels.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from cl_jax.data.source import Source
    from cl_jax.training.trained import Trained

DUPLICATES = 0.98
NEIGHBOURS = 10
VIEWED = 8  # examples whose views are shown
PAIRED = 512  # examples whose views are compared


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "cl-jax report",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("run", metavar="RUN", help="the workdir of a run, or of one of its stages")
    options.add_argument(
        "--data",
        default="",
        metavar="PATH",
        help="examples to show: train, test (the default) or another part of the run's data, or a "
        "folder of images",
    )
    options.add_argument(
        "--rows",
        type=int,
        default=10_000,
        help="examples on the map, drawn by chance of more (default %(default)s)",
    )
    options.add_argument("--feature", default="", help="default: the one that evaluations read")
    options.add_argument("--label", default="", help="the label of the map's first colours")
    options.add_argument("--best", action="store_true", help="the best checkpoint, not the newest")
    options.add_argument("--out", default="", help="default: RUN/report.html")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        import plotly  # noqa: F401
    except ImportError:
        print("error: a report needs plotly: pip install 'cl_jax[report]'.", file=sys.stderr)
        return 1

    from cl_jax.core import xla
    from cl_jax.core.errors import ConfigError

    xla.prepare()
    try:
        print(report(args))
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def report(args: argparse.Namespace) -> str:
    """Writes the page; the line to print."""
    import os
    import tempfile
    from pathlib import Path

    import cl_jax

    if args.rows < 3:
        raise ValueError(f"--rows={args.rows}; expected 3 or more.")
    run = cl_jax.load(args.run, best=args.best)
    out = Path(args.out or run.workdir / "report.html").expanduser()
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out={out}: {out.parent} is not a folder that one may write to.")
    text = page_of(run, args)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=out.parent, delete=False) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, out)
        except BaseException:
            os.unlink(file.name)
            raise
    return f"{out}, {out.stat().st_size / 2**20:.1f} MB. It opens in any browser."


def page_of(run: "Trained", args: argparse.Namespace) -> str:
    """The page of a run."""
    import numpy as np

    from cl_jax.reports import findings, layouts, page, pictures
    from cl_jax.training import metrics

    source, bad = _source(run, args.data)
    source = _drawn(source, args.rows, run.config.seed)
    parts = list(run.blocks(source, features=args.feature))  # `bad` grows as files are read
    features = {
        name: np.concatenate([part[name] for part in parts]) for name in run.names(args.feature)
    }
    found = run.embeddings(source, features, bad)
    x = np.asarray(found[next(iter(found))], np.float32)
    finite = np.isfinite(x).all(1)
    if finite.sum() < 3:
        raise ValueError(
            f"{finite.sum()} examples of {source.name} have finite features; expected 3 or more."
        )
    rows = np.flatnonzero(finite)
    x, names = x[rows], found.paths[rows].tolist()
    labels = {
        field: (values[rows], _names(values, found.classes.get(field)))
        for field, values in found.labels.items()
    }
    first = args.label or next((field for field in ("label", *labels) if field in labels), "")
    if first and first not in labels:
        raise ValueError(f"--label={first}; {source.name} has {', '.join(labels) or 'no label'}.")
    read = [i for i, name in enumerate(_names_of(source)) if name not in bad]  # embedded, in order
    shown = [pictures.picture(source.read(read[i])) for i in rows]
    atlas = None
    if all(picture is not None for picture in shown):
        atlas = {
            "cell": pictures.CELL,
            "columns": pictures.COLUMNS,
            "files": pictures.atlases([p for p in shown if p is not None]),
        }

    similarity, near = findings.neighbours_of(x, min(NEIGHBOURS, len(x) - 1))
    count = len(np.unique(labels[first][0])) if first else 0
    count = min(max(count, 2) if count else round((len(x) / 2) ** 0.5), 20, len(x) - 1)
    cluster, members = findings.clusters(x, count, run.config.seed)
    figures: dict[str, Any] = {}
    log = metrics.read(run.workdir)
    sections = [_summary(run, source, bad, len(rows)), _curves(log, figures)]
    sections += _views(run, source, figures)
    sections.append(
        page.Section(
            "Map",
            f"{len(x):,} examples of {source.name}, places by their features. Near points are "
            "alike; distances between far groups mean little. The wheel zooms, a click shows the "
            "nearest examples.",
            "map",
        )
    )
    if first:
        sections += _labelled(labels[first], first, similarity, near, figures)
    sections += _clusters(members)
    sections += _alike(x, labels.get(first), similarity, near)
    colourings = {first: labels[first]} if first else {}
    colourings |= {"cluster": (cluster, [str(c) for c in range(count)])} | labels
    places = layouts.layouts(x, run.config.seed)
    return page.write(
        f"{run.config.method.name} · {run.workdir.name}",
        f"step {run.step:,}, {source.name}, feature {next(iter(found))}",
        [section for section in sections if section.body],
        figures=figures,
        of_rows=page.Map(
            {name: places[name] for name in sorted(places, key=("t-SNE", "UMAP", "PCA").index)},
            colourings,
            near,
            similarity,
        ),
        names=names,
        labels=labels,
        atlas=atlas,
    )


def _source(run: "Trained", data: str) -> "tuple[Source, dict[str, str]]":
    from pathlib import Path

    if data and Path(data).expanduser().exists():
        return run.source(data)
    parts = {"train": run.data.train, "test": run.data.test} | dict(run.data.more)
    if (data or "test") not in parts:
        raise ValueError(
            f"--data={data} is no path and no part of the run's data; expected a folder of images "
            f"or {', '.join(parts)}."
        )
    return parts[data or "test"], {}


def _drawn(source: "Source", most: int, seed: int) -> "Source":
    import numpy as np

    from cl_jax.data.source import subset

    if source.size <= most:
        return source
    return subset(
        source, np.sort(np.random.default_rng(seed).choice(source.size, most, replace=False))
    )


def _names_of(source: "Source") -> list[str]:
    from cl_jax.training.trained import names_of

    return names_of(source)


def _names(values: "np.ndarray", names: Sequence[str] | None) -> list[str]:
    count = max(int(values.max(initial=-1)) + 1, 1)
    return list(names) if names is not None else [str(value) for value in range(count)]


def _summary(run: "Trained", source: "Source", bad: dict[str, str], rows: int) -> Any:
    import html

    import cl_jax
    from cl_jax.checks import diagnosis
    from cl_jax.reports import page
    from cl_jax.training import configs, metrics

    config = run.config
    log = metrics.read(run.workdir)
    data = config.data
    told = [
        ("method", config.method.name),
        ("data", f"{data.name} {data.get('path', '')}".strip()),
        ("network", f"{sum(x.size for x in _leaves(run.variables['params'])):,} parameters"),
        ("trained", f"{run.step:,} steps of {config.batch_size} examples"),
        ("shown", f"{rows:,} of {source.name}"),
        ("folder", str(run.workdir)),
        ("version", f"cl_jax {cl_jax.__version__}"),
    ]
    if bad:
        told.append(("not read", f"{len(bad)}: {', '.join(sorted(bad)[:5])}"))
    verdict = diagnosis.diagnose(log, config.total_epochs) if log else None
    said = f'<p class="verdict">{html.escape(str(verdict))}</p>' if verdict else ""
    settings = html.escape(_indented(configs.plain(config)))
    body = (
        said + page.table(told) + f"<details><summary>all settings</summary><pre>{settings}</pre>"
    )
    return page.Section("What was run", "", body + "</details>")


def _indented(plain: dict[str, Any]) -> str:
    import json

    return json.dumps(plain, indent=1, default=str)


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


# Charts of the log: title -> figures by their last word.
CURVES = {
    "loss": ("loss", "chance"),
    "learning rate": ("learning_rate",),
    "gradient norm": ("grad_norm",),
    "alignment": ("geometry/alignment",),
    "uniformity": ("geometry/uniformity",),
    "effective rank": ("geometry/effective_rank",),
}
TOLD = {"step", "time", "epoch", "eval_seconds", "images_per_second", "knn/k", "knn/temperature"}


def _curves(log: Sequence[dict[str, float]], figures: dict[str, Any]) -> Any:
    """Curves of the log: the usual ones, then every other figure of the evaluations."""
    import math

    from cl_jax.reports import page

    names = dict.fromkeys(name for row in log for name in row)
    taken = {name for group in CURVES.values() for name in group} | TOLD
    wanted = {title: group for title, group in CURVES.items() if set(group) & set(names)}
    wanted |= {
        name: (name, f"untrained/{name}")
        for name in names
        if "/" in name and name not in taken and not name.startswith(("untrained/", "geometry/"))
    }
    ids: list[str] = []
    at_the_end = []
    for title, group in wanted.items():
        curves = {}
        for name in group:
            at = [(r["step"], r[name]) for r in log if name in r and math.isfinite(r[name])]
            if not at:
                continue
            if name.startswith("untrained/"):
                at = [at[0], (log[-1]["step"], at[0][1])]
            curves["untrained" if name.startswith("untrained/") else name] = tuple(zip(*at))
        if len(curves.get(group[0], ((),))[0]) > 1:
            ids.append(f"curve{len(ids)}")
            figures[ids[-1]] = page.lines(title, curves, "step")
        elif group[0] in curves:
            at_the_end.append((title, f"{curves[group[0]][1][0]:.4g}"))
    body = (page.plots(ids) if ids else "") + (page.table(at_the_end) if at_the_end else "")
    return page.Section("Curves", "", body)


def _views(run: "Trained", source: "Source", figures: dict[str, Any]) -> list[Any]:
    """Augmented views, and similarities of pairs of them."""
    import jax
    import numpy as np

    from cl_jax.core import parallel
    from cl_jax.core.parallel import EACH, SAME
    from cl_jax.reports import findings, page, pictures

    method = run.method
    count = min(PAIRED, source.size) // run.mesh.size * run.mesh.size
    if method.views is None or count < max(VIEWED, run.mesh.size):
        return []
    examples = [source.read(i) for i in range(count)]
    fields = [f for f in (*method.needs, *method.wants) if f in examples[0]]
    batch = {f: np.stack([e[f] for e in examples]) for f in fields}
    batch["id"] = np.arange(count, dtype=np.int32)
    key = jax.random.key(run.config.seed)

    def drawn(batch: Any, key: Any) -> Any:
        return [leaf for view in method.views(batch, key) for leaf in jax.tree.leaves(view)]

    sections = []
    rows = -(-VIEWED // run.mesh.size) * run.mesh.size
    few = {name: values[:rows] for name, values in batch.items()}
    if "image" in batch:
        seen = parallel.lift(drawn, run.mesh, (EACH, SAME), EACH)(few, key)
        seen = [np.asarray(v, np.float32) for v in seen if v.ndim == 4 and v.shape[-1] <= 16]
        lines = []
        for i in range(min(VIEWED, len(few["id"]))):
            shown = [pictures.fitted(pictures.shown(batch["image"][i]), 96)]
            shown += [pictures.fitted(pictures.shown(_scaled(v[i], seen)), 96) for v in seen]
            lines.append("".join(f'<img alt="" src="{pictures.url(p, "PNG")}">' for p in shown))
        if seen:
            sections.append(
                page.Section(
                    "Views",
                    "The example, then its views as training draws them. What the views do not "
                    "share, the network learns to ignore.",
                    '<div class="views">' + "<br>".join(lines) + "</div>",
                )
            )
    if method.features is None or len(run.config.views) == 0:
        return sections

    def features(state: Any, batch: Any, key: Any) -> Any:
        params, stats = method.evaluated(state)
        found = []
        for view in method.views(batch, key)[:2]:
            out, _ = method.features(params, stats, view, False)
            found.append(out["z"] if "z" in out else out["h"])
        return found

    lifted = parallel.lift(features, run.mesh, (SAME, EACH, SAME), EACH)
    pair = [np.asarray(z, np.float32) for z in lifted(run.state, batch, key)]
    if len(pair) < 2 or pair[0].ndim != 2 or pair[0].shape != pair[1].shape:
        return sections
    if not all(np.isfinite(z).all() for z in pair):
        return sections
    positive, negative = findings.pair_similarities(pair[0], pair[1])
    figures["pairs"] = page.histograms(
        "cosine of two views",
        {"of one example": positive, "of different examples": negative},
        "cosine",
    )
    temperature = float(run.config.method.get("temperature", 0.1) or 0.1)
    share, carried = findings.hardest_share(pair[0], pair[1], temperature)
    figures["hardest"] = page.lines(
        f"gradient carried by the hardest negatives, temperature {temperature:g}",
        {"carried": (share.tolist(), carried.tolist())},
        "share of the negatives, hardest first",
    )
    tenth = float(np.interp(0.1, share, carried))
    sections.append(
        page.Section(
            "Pairs",
            f"Projections of two views of {count} examples. The hardest tenth of the negatives "
            f"carries {tenth:.0%} of an InfoNCE gradient at this temperature.",
            page.plots(["pairs", "hardest"]),
        )
    )
    return sections


def _scaled(image: "np.ndarray", views: "Sequence[np.ndarray]") -> "np.ndarray":
    """A view of any scale as uint8: black and white are the extremes of all views by channel."""
    import numpy as np

    low = np.min([np.percentile(v, 0.5, axis=(0, 1, 2)) for v in views], axis=0)
    high = np.max([np.percentile(v, 99.5, axis=(0, 1, 2)) for v in views], axis=0)
    return np.clip(255 * (image - low) / np.maximum(high - low, 1e-6), 0, 255).astype(np.uint8)


def _labelled(label: Any, field: str, similarity: Any, near: Any, figures: dict[str, Any]) -> Any:
    import numpy as np

    from cl_jax.reports import findings, page

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
        page.Section(
            "Confusion",
            f"Of each example's {near.shape[1]} nearest others, {right:.1%} of the votes are "
            f"right; numbers count examples.",
            page.plots(["confusion"], wide=True),
        ),
        page.Section(
            "Likely wrong labels",
            "Examples whose nearest others agree on another label; each with three of them.",
            wrong,
        ),
    ]


def _clusters(members: Sequence[Any]) -> list[Any]:
    from cl_jax.reports import page

    rows = "".join(
        f"<tr><td>{c}</td><td>{len(rows):,}</td><td>{page.tiles(rows[:10])}</td></tr>"
        for c, rows in enumerate(members)
    )
    head = "<tr><th>cluster</th><th>examples</th><th>nearest to its centre</th></tr>"
    return [page.Section("Clusters", "k-means of the features.", f"<table>{head}{rows}</table>")]


def _alike(x: Any, label: Any, similarity: Any, near: Any) -> list[Any]:
    from cl_jax.reports import findings, page

    groups = findings.duplicates(x, DUPLICATES)
    sections = []
    if groups is None:
        sections.append(
            page.Section(
                "Duplicates",
                "",
                f"<p>Most examples are at least {DUPLICATES} alike: the features hardly tell them "
                "apart, and duplicates cannot be told from others.</p>",
            )
        )
    elif groups:
        total = sum(len(rows) for rows in groups)
        shown = "".join(page.pair(rows[:8], f"{len(rows)} examples") for rows in groups[:24])
        sections.append(
            page.Section(
                "Duplicates",
                f"{len(groups)} groups of examples, {total} in all, whose features are at least "
                f"{DUPLICATES} alike.",
                shown,
            )
        )
    values = label[0] if label is not None else None
    pairs = findings.false_negatives(values, similarity, near, DUPLICATES)
    sections.append(
        page.Section(
            "Likely false negatives",
            "The most similar pairs "
            + ("of one label " if label is not None else "")
            + "that are no duplicates: a contrastive loss pushes them apart.",
            "".join(page.pair([p.first, p.second], f"cosine {p.similarity:.3f}") for p in pairs),
        )
    )
    return sections
