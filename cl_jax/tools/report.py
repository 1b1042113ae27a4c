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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cl_jax.tools import verbs

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from cl_jax.data.source import Source
    from cl_jax.training.trained import Trained

NEIGHBOURS = 10
VIEWED = 8  # examples whose views are shown
PAIRED = 512  # examples whose views are compared


def parser() -> argparse.ArgumentParser:
    options = verbs.of_run("report", __doc__)
    verbs.with_feature(options)
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
    options.add_argument("--label", default="", help="the label of the map's first colours")
    options.add_argument("--out", default="", help="default: RUN/report.html")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        import plotly  # noqa: F401
    except ImportError:
        print("error: a report needs plotly: pip install 'cl_jax[report]'.", file=sys.stderr)
        return 1
    return verbs.called(report, args)


def report(args: argparse.Namespace) -> int:
    """Writes the page; returns the exit status."""
    import os
    import tempfile
    from pathlib import Path

    import cl_jax
    from cl_jax.data.images import printable

    if args.rows < 3:
        raise ValueError(f"--rows={args.rows}; expected 3 or more.")
    run = cl_jax.load(args.run, best=args.best)
    out = Path(args.out or run.workdir / "report.html").expanduser()
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out={out}: {out.parent} is not a folder that one may write to.")
    text = page_of(run, args)
    # names of files need not be text
    how: Any = dict(encoding="utf-8", errors="backslashreplace")
    with tempfile.NamedTemporaryFile("w", dir=out.parent, delete=False, **how) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, out)
        except BaseException:
            os.unlink(file.name)
            raise
    print(f"{printable(str(out))}, {out.stat().st_size / 2**20:.1f} MB. It opens in any browser.")
    return 0


def page_of(run: "Trained", args: argparse.Namespace) -> str:
    """The page of a run."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from cl_jax.reports import findings, layouts, page, pictures, sections
    from cl_jax.training import metrics

    source, bad = _source(run, args.data)
    source = _drawn(source, args.rows, run.config.seed)
    source, seen = _with_pictures(source)
    parts = list(run.blocks(source, features=args.feature))  # `bad` grows as files are read
    features = {
        name: np.concatenate([part[name] for part in parts]) for name in run.names(args.feature)
    }
    found = run.embeddings(source, features, bad)
    x = np.asarray(found[next(iter(found))], np.float32)
    finite = np.isfinite(x).all(1)
    if len(x) < 3 and bad:
        name, reason = next(iter(bad.items()))
        raise ValueError(
            f"{len(x)} examples of {source.name} can be read, and a page needs 3 or more; {name}: "
            f"{reason}."
        )
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
    pool = ThreadPoolExecutor(1)
    places = pool.submit(layouts.layouts, x, run.config.seed)  # beside all that follows
    pool.shutdown(wait=False)
    with ThreadPoolExecutor() as readers:  # decoders of pictures run beside each other
        shown = list(readers.map(seen, [read[i] for i in rows]))
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
    parts_of_page = [_summary(run, source, bad, len(rows)), sections.curves(log, figures)]
    parts_of_page += _views(run, source, figures)
    parts_of_page.append(
        page.Section(
            "Map",
            f"{len(x):,} examples of {source.name}, places by their features. Near points are "
            "alike; distances between far groups mean little. The wheel zooms, a click shows the "
            "nearest examples.",
            "map",
        )
    )
    if first:
        parts_of_page += sections.labelled(labels[first], first, similarity, near, figures)
    parts_of_page.append(sections.clusters(members))
    parts_of_page += sections.alike(x, labels.get(first), similarity, near)
    colourings = {first: labels[first]} if first else {}
    colourings |= {"cluster": (cluster, [str(c) for c in range(count)])} | labels
    placed = places.result()
    return page.write(
        f"{run.config.method.name} · {run.workdir.name}",
        f"step {run.step:,}, {source.name}, feature {next(iter(found))}",
        [section for section in parts_of_page if section.body],
        figures=figures,
        of_rows=page.Map(
            {name: placed[name] for name in sorted(placed, key=("t-SNE", "UMAP", "PCA").index)},
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
            f"--data={data} is neither a path nor a part of the run's data; expected a folder of "
            f"images or {', '.join(parts)}."
        )
    return parts[data or "test"], {}


def _with_pictures(source: "Source") -> "tuple[Source, Callable[[int], Image | None]]":
    """(the source, the picture of one of its examples), where an example that was read for its
    features is not read again for its picture."""
    import dataclasses

    from cl_jax.reports import pictures

    kept: dict[int, Image | None] = {}

    def read(i: int) -> Any:
        example = source.read(i)
        if i not in kept:
            kept[i] = pictures.picture(example)
        return example

    def picture(i: int) -> Any:
        if i not in kept:
            kept[i] = pictures.picture(source.read(i))
        return kept[i]

    return dataclasses.replace(source, read=read), picture


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
    import json

    import jax

    import cl_jax
    from cl_jax.checks import diagnosis
    from cl_jax.core.names import some
    from cl_jax.data.images import printable
    from cl_jax.reports import sections
    from cl_jax.training import configs, metrics

    config = run.config
    log = metrics.read(run.workdir)
    data, leaves = config.data, jax.tree.leaves(run.variables["params"])
    told = [
        ("method", config.method.name),
        ("data", f"{data.name} {data.get('path', '')}".strip()),
        ("network", f"{sum(x.size for x in leaves):,} parameters"),
        ("trained", f"{run.step:,} steps of {config.batch_size} examples"),
        ("shown", f"{rows:,} of {source.name}"),
        ("folder", str(run.workdir)),
        ("version", f"cl_jax {cl_jax.__version__}"),
    ]
    if bad:
        told.append(("not read", f"{len(bad)}: {some([printable(name) for name in sorted(bad)])}"))
    verdict = diagnosis.diagnose(log, config.total_epochs) if log else None
    settings = json.dumps(configs.plain(config), indent=1, default=str)
    return sections.summary(told, str(verdict or ""), settings)


def _views(run: "Trained", source: "Source", figures: dict[str, Any]) -> list[Any]:
    """Augmented views, and similarities of pairs of them."""
    import jax
    import numpy as np

    from cl_jax.core import parallel
    from cl_jax.core.parallel import EACH, SAME
    from cl_jax.reports import sections

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

    found = []
    if "image" in batch:
        rows = -(-VIEWED // run.mesh.size) * run.mesh.size
        few = {name: values[:rows] for name, values in batch.items()}
        seen = parallel.lift(drawn, run.mesh, (EACH, SAME), EACH)(few, key)
        seen = [np.asarray(v, np.float32) for v in seen if v.ndim == 4 and v.shape[-1] <= 16]
        if seen:
            found.append(sections.views(list(batch["image"][:VIEWED]), seen))
    if method.features is None or len(run.config.views) == 0:
        return found

    def features(state: Any, batch: Any, key: Any) -> Any:
        params, stats = method.evaluated(state)
        outputs = []
        for view in method.views(batch, key)[:2]:
            out, _ = method.features(params, stats, view, False)
            outputs.append(out["z"] if "z" in out else out["h"])
        return outputs

    lifted = parallel.lift(features, run.mesh, (SAME, EACH, SAME), EACH)
    pair = [np.asarray(z, np.float32) for z in lifted(run.state, batch, key)]
    if len(pair) < 2 or pair[0].ndim != 2 or pair[0].shape != pair[1].shape:
        return found
    if not all(np.isfinite(z).all() for z in pair):
        return found
    temperature = float(run.config.method.get("temperature", 0.1) or 0.1)
    return [*found, sections.pairs(pair[0], pair[1], temperature, figures)]
