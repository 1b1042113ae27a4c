"""The page of a run: which examples it shows, and the sections that are made of them."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL.Image import Image

import cl_jax
from cl_jax.checks import diagnosis
from cl_jax.core import parallel
from cl_jax.core.method import views_of
from cl_jax.core.names import some
from cl_jax.core.parallel import EACH, SAME
from cl_jax.core.paths import user_path
from cl_jax.data.images import printable
from cl_jax.data.source import Source, names_of, subset
from cl_jax.evals import evaluation
from cl_jax.reports import findings, layouts, page, pictures, sections
from cl_jax.training import configs, experiment, metrics
from cl_jax.training.trained import Trained

NEIGHBOURS = 10
VIEWED = 8  # examples whose views are shown
PAIRED = 512  # examples whose views are compared

Label = tuple[np.ndarray, list[str]]  # [N] numbers, and the words of 0, 1, ...


class Shown(NamedTuple):
    """The examples on a page, those with finite features alone.

    x: [N, D], of the feature `feature`. names: of the examples. labels: by field; `first` is the
    field of the map's first colours, "" where there is none. at: which example of `source` each
    is; `picture` of such a number is its picture, if it has one. bad: what could not be read.
    """

    source: Source
    feature: str
    x: np.ndarray
    names: list[str]
    labels: dict[str, Label]
    first: str
    at: list[int]
    picture: Callable[[int], Image | None]
    bad: dict[str, str]


def of_run(run: Trained, args: argparse.Namespace) -> str:
    """The page of a run; args are those of `cl-jax report`."""
    shown = _shown(run, args)
    x, labels, first = shown.x, shown.labels, shown.first
    pool = ThreadPoolExecutor(1)
    places = pool.submit(layouts.layouts, x, run.config.seed)  # beside all that follows
    pool.shutdown(wait=False)
    atlas = _atlas(shown)
    similarity, near = findings.neighbours_of(x, min(NEIGHBOURS, len(x) - 1))
    cluster, members = findings.clusters(x, _number_of_clusters(shown), run.config.seed)
    figures: dict[str, Any] = {}
    parts = [_summary(run, shown), sections.curves(metrics.read(run.workdir), figures)]
    parts += _views(run, shown.source, figures)
    parts.append(
        page.Section(
            "Map",
            f"{len(x):,} examples of {shown.source.name}, places by their features. Near points "
            "are alike; distances between far groups mean little. The wheel zooms, a click shows "
            "the nearest examples.",
            "map",
        )
    )
    if first:
        parts += sections.labelled(labels[first], first, similarity, near, figures)
    parts.append(sections.clusters(members))
    parts += sections.alike(x, labels.get(first), similarity, near)
    colourings = {first: labels[first]} if first else {}
    colourings |= {"cluster": (cluster, [str(c) for c in range(len(members))])} | labels
    return page.write(
        f"{run.config.method.name} · {run.workdir.name}",
        f"step {run.step:,}, {shown.source.name}, feature {shown.feature}",
        [section for section in parts if section.body],
        figures=figures,
        of_rows=page.Map(_in_order(places), colourings, near, similarity),
        names=shown.names,
        labels=labels,
        atlas=atlas,
    )


def _shown(run: Trained, args: argparse.Namespace) -> Shown:
    source, bad = _source(run, args.data)
    source = _drawn(source, args.rows, run.config.seed)
    source, picture = _with_pictures(source)
    parts = list(run.blocks(source, features=args.feature))  # `bad` grows as files are read
    features = {
        name: np.concatenate([part[name] for part in parts]) for name in run.names(args.feature)
    }
    found = run.embeddings(source, features, bad)
    feature = next(iter(found))
    x = np.asarray(found[feature], np.float32)
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
    labels = {
        field: (values[rows], _words(values, found.classes.get(field)))
        for field, values in found.labels.items()
    }
    first = args.label or next((field for field in ("label", *labels) if field in labels), "")
    if first and first not in labels:
        raise ValueError(
            f"--label={first}; expected a label field of {source.name}: "
            f"{', '.join(labels) or 'it has none'}."
        )
    read = [i for i, name in enumerate(names_of(source)) if name not in bad]  # embedded, in order
    at = [read[i] for i in rows]
    names = found.paths[rows].tolist()
    return Shown(source, feature, x[rows], names, labels, first, at, picture, bad)


def _atlas(shown: Shown) -> dict[str, Any] | None:
    """The pictures of all examples, where all have one."""
    with ThreadPoolExecutor() as readers:  # decoders of pictures run beside each other
        found = list(readers.map(shown.picture, shown.at))
    all_of_them = [picture for picture in found if picture is not None]
    if len(all_of_them) < len(found):
        return None
    return {
        "cell": pictures.CELL,
        "columns": pictures.COLUMNS,
        "files": pictures.atlases(all_of_them),
    }


def _number_of_clusters(shown: Shown) -> int:
    """As many as the first label has values, at most 20."""
    count = len(np.unique(shown.labels[shown.first][0])) if shown.first else 0
    rows = len(shown.x)
    return min(max(count, 2) if count else round((rows / 2) ** 0.5), 20, rows - 1)


def _in_order(places: "Future[dict[str, np.ndarray]]") -> dict[str, np.ndarray]:
    found = places.result()
    return {name: found[name] for name in sorted(found, key=("t-SNE", "UMAP", "PCA").index)}


def _source(run: Trained, data: str) -> tuple[Source, dict[str, str]]:
    if data and user_path(data).exists():
        return run.source(data)
    if run.config.data.name == "folder" and not run.config.data.path:  # an imported network
        given = f", and there is no {data}" if data else ""
        raise ValueError(
            f"{run.workdir} has no data of its own{given}; give a folder of images: --data=FOLDER."
        )
    parts = {"train": run.data.train, "test": run.data.test} | dict(run.data.more)
    if (data or "test") not in parts:
        raise ValueError(
            f"--data={data} is neither a path nor a part of the run's data; expected a folder of "
            f"images or {', '.join(parts)}."
        )
    return parts[data or "test"], {}


def _with_pictures(source: Source) -> tuple[Source, Callable[[int], Image | None]]:
    """(the source, the picture of one of its examples), where an example that was read for its
    features is not read again for its picture."""
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


def _drawn(source: Source, most: int, seed: int) -> Source:
    if source.size <= most:
        return source
    return subset(
        source, np.sort(np.random.default_rng(seed).choice(source.size, most, replace=False))
    )


def _words(values: np.ndarray, names: Sequence[str] | None) -> list[str]:
    count = max(int(values.max(initial=-1)) + 1, 1)
    return list(names) if names is not None else [str(value) for value in range(count)]


def _summary(run: Trained, shown: Shown) -> page.Section:
    config, log = run.config, metrics.read(run.workdir)
    data, leaves = config.data, jax.tree.leaves(run.variables["params"])
    told = [
        ("method", config.method.name),
        ("data", f"{data.name} {data.get('path', '')}".strip()),
        ("network", f"{sum(x.size for x in leaves):,} parameters"),
        ("trained", f"{run.step:,} steps of {config.batch_size} examples"),
        ("shown", f"{len(shown.x):,} of {shown.source.name}"),
        ("folder", str(run.workdir)),
        ("version", f"cl_jax {cl_jax.__version__}"),
    ]
    if shown.bad:
        first = some([printable(name) for name in sorted(shown.bad)])
        told.append(("not read", f"{len(shown.bad)}: {first}"))
    verdict = diagnosis.diagnose(log, config.total_epochs) if log else None
    settings = json.dumps(configs.plain(config), indent=1, default=str)
    return sections.summary(told, str(verdict or ""), settings)


def _views(run: Trained, source: Source, figures: dict[str, Any]) -> list[Any]:
    """Augmented views, and similarities of pairs of them."""
    method = run.method
    count = min(PAIRED, source.size) // run.mesh.size * run.mesh.size
    if method.views is None or count < max(VIEWED, run.mesh.size):
        return []
    examples = [source.read(i) for i in range(count)]
    fields = [f for f in (*method.needs, *method.wants) if f in examples[0]]
    batch = {f: np.stack([e[f] for e in examples]) for f in fields}
    batch["id"] = np.arange(count, dtype=np.int32)
    key = jax.random.key(run.config.seed)

    if evaluation.first_view(method, batch, run.mesh) is None:
        return []

    def drawn(batch: Any, key: Any) -> Any:
        return [leaf for view in views_of(method, batch, key) for leaf in jax.tree.leaves(view)]

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
        for view in views_of(method, batch, key)[:2]:
            out, _ = method.features(params, stats, view, False)
            outputs += [out[name] for name in ("z", "h") if name in out][:1]
        return outputs

    lifted = parallel.lift(features, run.mesh, (SAME, EACH, SAME), EACH)
    try:
        jax.eval_shape(lifted, run.state, batch, key)
    except Exception as error:  # a task, a masked view: whatever the network makes of it
        logging.warning("no pairs of views: the network takes no view alone (%s).", error)
        return found
    pair = [np.asarray(z, np.float32) for z in lifted(run.state, batch, key)]
    if len(pair) < 2 or pair[0].ndim != 2 or pair[0].shape != pair[1].shape:
        return found
    if not all(np.isfinite(z).all() for z in pair):
        return found
    return [*found, sections.pairs(pair[0], pair[1], temperature(run.config), figures)]


def temperature(config: ConfigDict) -> float:
    """Of the config's contrast: a cross that has none has its base's. 0.1 where nothing has one, as
    in methods without negatives."""
    unset = experiment.defaults(config)
    path, section = "method", config.method
    while isinstance(section, ConfigDict):
        found = section.get("temperature", unset.get(f"{path}.temperature"))
        if found:
            return float(found)
        path, section = f"{path}.base", section.get("base")
    return 0.1
