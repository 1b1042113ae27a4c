"""How good a representation is, against the number of views and against what they share.

    python benchmarks/view_studies.py number --data=PATH --shown=rgb,depth,normals --workdir=DIR
    python benchmarks/view_studies.py factors --workdir=DIR
    python benchmarks/view_studies.py crops --workdir=DIR
    python benchmarks/view_studies.py learned --workdir=DIR

number: CMC (arXiv 1906.05849, section 4.4) on a folder of things that are each shown in several
  ways, PATH/WAY/CLASS/FILE: the first two ways, the first three, ..., with the first as the core
  view and with the full graph. Measured on the first way's network alone, whose input is the same
  in all of them, and on all networks side by side. Without --data, the embedded `scenes` are
  written as such a folder, which only shows that the program works.
factors: InfoMin's U-curve (arXiv 2005.10243, section 3): SimCLR on two pictures of `scenes` that
  share nothing, then the digit, then more, to the same picture twice.
crops: the same curve over the least area of a crop, two crops of one picture of `scenes`, with
  colours jittered.
learned: InfoMin's generator without labels and with labels of a tenth of the digits, beside the
  channels as they are.

Each run is kept in DIR/STUDY/POINT/seedN, and a finished one is not repeated. Figures go to
results/view_studies_<study>.json, a plot to docs/pictures/<study>_of_views.png.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _timing

STUDIES = ("number", "factors", "crops", "learned")
SHARED = {  # what two pictures share; None: they are one picture
    "nothing": (),
    "digit": ("digit",),
    "digit, place": ("digit", "place"),
    "digit, place, ground": ("digit", "place", "background"),
    "all, colour too": None,
}
LEARNED = {
    "channels as they are": "fixed",
    "generator, no labels": "unsupervised",
    "generator, a tenth of the labels": "learned",
}
AREAS = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
PROBES = {"digit": "label", "place": "place", "ground": "background"}


def points(study: str, shown: Sequence[str], small: bool) -> dict[str, str]:
    """{name of a point: the config and variants that it starts from}."""
    debug = ",debug" if small else ""
    if study == "number":
        counts = range(2, len(shown) + 1)
        found = {
            f"{graph}{count}": f"cmc:aligned{debug}"
            for count in counts
            for graph in (("core", "full") if count > 2 else ("core",))
        }
        return found
    if study == "learned":
        return {name: f"infomin:{word}{debug}" for name, word in LEARNED.items()}
    names = list(SHARED) if study == "factors" else [f"{area:g}" for area in AREAS]
    return {name: f"infomin:digit{debug}" for name in (names[:2] if small else names)}


def settings(study: str, point: str, base: str, args: argparse.Namespace) -> Any:
    """The config of a point, seed 0."""
    from ml_collections import ConfigDict

    from cl_jax.training import configs

    config = configs.load(base)
    with config.unlocked():
        config.total_epochs = args.epochs
        config.evals.every_epochs = 0.0
        if study == "number":
            count = int(point.removeprefix("core").removeprefix("full"))
            config.data.update(
                path=args.data, shown=tuple(args.shown[:count]), test_share=args.test_share
            )
            config.method.graph = point.removesuffix(str(count))
            config.views.every.size = args.size
            protocols: dict[str, Any] = {}
            for figure, feature in (("core", "h1"), ("second", "h2"), ("all", "")):
                protocols[f"{figure}_knn"] = dict(
                    name="knn", k=20, feature=feature, figure=f"{figure}_knn"
                )
                protocols[figure] = dict(name="logistic", feature=feature, figure=figure)
        else:
            if study == "factors":
                config.data.share = SHARED[point]
            elif study == "crops":
                config.data.share = None
                for view in config.views.values():
                    view.update(crop="tv", scale=(float(point), 1.0), jitter=0.8, gray=0.2)
            protocols = {name: dict(name="logistic", label=label) for name, label in PROBES.items()}
        config.evals.protocols = ConfigDict(protocols)
    return config


def trained(config: Any, workdir: Path, information: bool) -> dict[str, Any]:
    """Trains and evaluates one config, or reads what an earlier call has kept. information: of two
    views, the bound on what they share, too."""
    from cl_jax.training import loop, metrics

    kept = workdir / "figures.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    results = loop.train(config, str(workdir))
    rows = metrics.read(str(workdir))
    last = [row for row in rows if "loss" in row][-5:]
    figures = {name: value for name, value in results.items() if isinstance(value, float)}
    for row in rows:
        if row["step"] == 0:
            figures |= {name: value for name, value in row.items() if name.startswith("untrained/")}
    # InfoMin's own figure; of SimCLR log(2B - 1) less NT-Xent, whatever the loss is scaled by.
    if information:
        figures["information"] = statistics.mean(
            row.get(
                "mutual_information",
                (1 - row["loss"] / row["chance"]) * math.log(2 * config.batch_size - 1),
            )
            for row in last
        )
    kept.write_text(json.dumps(figures) + "\n")
    return figures


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation in percent."""
    text = f"{100 * statistics.mean(values):.1f}"
    return text + (f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else "")


def table(study: str, found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Rows of the points, each after its untrained networks where another row's are not theirs."""
    columns = columns_of(study)
    rows = []
    for name, figures in untrained(study, found).items():
        rows.append(
            [name, *(spread([one[f"untrained/{key}"] for one in figures]) for key in columns)]
        )
    starts = len(rows)
    for name, figures in found.items():
        rows.append([name, *(spread([one[key] for one in figures]) for key in columns)])
    if study == "number":
        head = ["", *(f"{text}, %" for text in columns.values())]
    else:
        head = ["", *(f"{text}, %" for text in columns.values()), "bound on the information, nats"]
        rows[0].append("")
        for row, figures in zip(rows[starts:], found.values()):
            row.append(f"{statistics.mean(one['information'] for one in figures):.2f}")
    return _timing.table(head, rows)


def untrained(
    study: str, found: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, Sequence[Mapping[str, float]]]:
    """The points that show the untrained networks: of each number of views one."""
    if study != "number":
        return {"untrained": next(iter(found.values()))}
    full = {name: runs for name, runs in found.items() if name == "core2" or name[:4] == "full"}
    return {f"untrained{name[4:]}": runs for name, runs in full.items()}


def columns_of(study: str) -> dict[str, str]:
    """{figure: what it is called}."""
    if study != "number":
        return {f"logistic/{label}": name for name, label in PROBES.items()}
    return {
        "core/label": "core view, logistic",
        "core_knn/top1": "core view, kNN 20",
        "second/label": "second view, logistic",
        "second_knn/top1": "second view, kNN 20",
        "all/label": "all views, logistic",
        "all_knn/top1": "all views, kNN 20",
    }


def lines(
    study: str, found: Mapping[str, Sequence[Mapping[str, float]]], key: str
) -> Iterator[tuple[str, list[float], list[list[float]]]]:
    """Of one panel: name of a line, its x, values of all seeds in percent."""
    if study != "number":
        yield (
            "",
            [statistics.mean(one["information"] for one in runs) for runs in found.values()],
            [[100 * one[key] for one in runs] for runs in found.values()],
        )
        return
    for graph in ("core", "full"):
        chosen = {
            name: runs for name, runs in found.items() if name.startswith(graph) or name == "core2"
        }
        yield (
            f"{graph} graph",
            [float(name[4:]) for name in chosen],
            [[100 * one[key] for one in runs] for runs in chosen.values()],
        )


def plot(study: str, found: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """A panel for each figure but those of the second view, with the untrained networks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = {key: text for key, text in columns_of(study).items() if not key.startswith("second")}
    figure, panels = pyplot.subplots(
        1, len(columns), figsize=(3.9 * len(columns), 3.7), squeeze=False
    )
    starts = untrained(study, found)
    for axis, (key, text) in zip(panels[0], columns.items()):
        for (name, xs, values), colour in zip(lines(study, found, key), COLOURS):
            means = [statistics.mean(seeds) for seeds in values]
            order = sorted(range(len(xs)), key=lambda i: xs[i])
            style = "o" if study == "learned" else "o-"
            axis.plot(
                [xs[i] for i in order], [means[i] for i in order], style, color=colour, label=name
            )
            for x, mean, seeds in zip(xs, means, values):
                if len(seeds) > 1:
                    axis.errorbar(x, mean, statistics.stdev(seeds), color=colour, capsize=3)
            for number, (x, mean) in enumerate(zip(xs, means), start=1):
                if study != "number":
                    axis.annotate(f"{number}", (x, mean), (5, 4), textcoords="offset points")
        levels = [
            100 * statistics.mean(one[f"untrained/{key}"] for one in runs)
            for runs in starts.values()
        ]
        if study == "number":
            counts = [int(name.removeprefix("untrained")) for name in starts]
            axis.plot(counts, levels, "o--", color="0.5", label="untrained")
        else:
            axis.axhline(levels[0], color="0.5", ls="--", label="untrained")
        axis.set(title=f"{text}, %", xlabel=XLABELS[study])
        if study == "number":
            axis.set_xticks(sorted({x for _, xs, *_ in lines(study, found, key) for x in xs}))
        axis.margins(x=0.15, y=0.15)
        axis.grid(alpha=0.3)
    if study == "number":
        panels[0][0].legend(fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.32))
    else:
        panels[0][0].legend(fontsize=8)
        names = "; ".join(f"{number} {name}" for number, name in enumerate(found, start=1))
        figure.suptitle(f"views share: {names}" if study == "factors" else names, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


COLOURS = ("#0072b2", "#d55e00")
XLABELS = {
    "number": "views",
    "factors": "bound on the views' information, nats",
    "crops": "bound on the views' information, nats",
    "learned": "bound on the views' information, nats",
}


def pictures_of_scenes(folder: Path) -> tuple[str, ...]:
    """The two pictures of some examples of `scenes`, and the first with its colours turned, as
    three folders of one class a digit."""
    from PIL import Image

    from cl_jax.data import scenes

    arrays = scenes.make(train_size=64, test_size=1).train.arrays
    assert arrays is not None
    ways = {
        "one": arrays["image"],
        "two": arrays["image_b"],
        "three": arrays["image"][..., [2, 0, 1]],
    }
    for way, images in ways.items():
        for number, (image, label) in enumerate(zip(images, arrays["label"].tolist())):
            file = folder / way / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return tuple(ways)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", default="", help="number: the folder of folders")
    parser.add_argument("--shown", default="", help="number: names of folders in it, core first")
    parser.add_argument(
        "--test_share", type=float, default=0.3, help="number: share of things that are held out"
    )
    parser.add_argument("--size", type=int, default=16, help="number: side of a view, pixels")
    parser.add_argument(
        "--workdir", type=_timing.given_path, default=None, help="where the runs are kept"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of a point, from seed 0 on")
    parser.add_argument("--epochs", type=float, default=0.0, help="of a run; 8 of number, else 2")
    parser.add_argument("--small", action="store_true", help="to try the program")
    parser.add_argument(
        "--pictures", type=_timing.given_path, default=_timing.ROOT / "docs" / "pictures"
    )
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    if not args.small and not args.workdir:
        parser.error("give --workdir, or --small")
    if args.study == "number" and not args.small and not (args.data and args.shown):
        parser.error("number needs --data and --shown, for instance --shown=rgb,depth,normals")
    _timing.prepare()
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        args.shown = tuple(args.shown.split(",")) if args.shown else ()
        if args.small and not args.data:
            args.data = str(Path(place) / "pictures")
            args.shown = pictures_of_scenes(Path(args.data)) if args.study == "number" else ()
        args.epochs = args.epochs or (1.0 if args.small else 8.0 if args.study == "number" else 2.0)
        folder = (args.workdir or Path(place)) / args.study
        found: dict[str, list[dict[str, Any]]] = {}
        for name, base in points(args.study, args.shown, args.small).items():
            config = settings(args.study, name, base, args)
            # Elsewhere the untrained network is the same at all points.
            config.evals.baselines = args.study == "number" or not found
            for seed in range(args.seeds):
                config.seed = seed
                where = folder / name.replace(", ", "-").replace(" ", "_") / f"seed{seed}"
                found.setdefault(name, []).append(trained(config, where, args.study != "number"))
    record = _timing.facts("flax") | {
        "study": args.study,
        "small": args.small,
        "epochs": args.epochs,
        "shown": args.shown,
        "points": found,
    }
    plot(args.study, found, args.pictures / f"{args.study}_of_views.png")
    name = f"view_studies_{args.study}" + ("_small" if args.small else "")
    _timing.write(name, record, table(args.study, found), args.out)


if __name__ == "__main__":
    main()
