"""CIFAR-10 as far as one core goes: kNN over the epochs of the six headline methods.

    python benchmarks/cifar10_curve.py --data=PATH --workdir=runs/curve --minutes=50

All 50,000 images at 32 pixels, each method's `cifar10` variant with a ResNet-18 of a quarter of the
width, its schedule shortened to --epochs as `cl-jax benchmark --epochs` does. PATH is a folder of
train.npz and test.npz (`cl_jax.data.packed`). Methods run one after the other, each in a process of
its own. After --minutes the run in progress saves and the script ends with status 75; the same
command continues from there. Methods without a finished run say "not run". "Published" is of
lightly's documentation: a whole ResNet-18, batch 512, 200 epochs.
"""

import argparse
import sys
from pathlib import Path

import _timing

PUBLISHED = {
    "simclr_v1": 0.848,
    "moco_v2": 0.847,
    "byol": 0.868,
    "simsiam": 0.764,
    "swav": 0.842,
    "dino": 0.813,
}


def settings(args, cl, folder):
    """What `cl-jax benchmark` would have read from its command line."""
    given = argparse.Namespace(
        data="cifar10",
        variant="",
        packed=args.data,
        epochs=args.epochs,
        set=["encoder.width=0.25"],
        probe_epochs=10.0,
        augmented_epochs=0.0,
        workdir=str(folder),
    )
    if args.small:
        given.data, given.variant, given.packed, given.epochs = "scenes", "debug", "", 0.0
    found = {}
    for name in ["simclr_v1"] if args.small else args.methods.split(","):
        config = cl.config_of(name, given, args.seed)
        config.evals.every_epochs = config.total_epochs / (2 if args.small else args.points)
        found[name] = config
    return found


def curve(rows):
    """[(step, kNN)] of a run's log, the untrained network first."""
    first = [(0, row["untrained/knn/top1"]) for row in rows if "untrained/knn/top1" in row]
    return first[:1] + [(row["step"], row["knn/top1"]) for row in rows if "knn/top1" in row]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="", help="folder of train.npz and test.npz")
    parser.add_argument(
        "--workdir", type=_timing.given_path, default=None, help="where the runs are kept"
    )
    parser.add_argument("--methods", default=",".join(PUBLISHED), help="in this order")
    parser.add_argument("--epochs", type=float, default=20.0)
    parser.add_argument("--points", type=int, default=10, help="evaluations on the way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0, help="save and stop after so long")
    parser.add_argument("--small", action="store_true", help="one debug run, to try the script")
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    if not args.small and not (args.data and args.workdir):
        parser.error("give --data and --workdir, or --small")
    if unknown := set(args.methods.split(",")) - set(PUBLISHED):
        parser.error(
            f"--methods has {', '.join(map(repr, sorted(unknown)))}; expected some of "
            f"{', '.join(PUBLISHED)}, with commas"
        )
    _timing.prepare()
    import tempfile

    from cl_jax.tools import benchmark
    from cl_jax.training import metrics

    with tempfile.TemporaryDirectory() as place:
        folder, over = args.workdir or Path(place), False
        configs = settings(args, benchmark, folder)
        try:
            with benchmark.stopped_after(args.minutes):
                for name, config in configs.items():
                    benchmark.in_a_process(config.to_json(), str(folder / name), 0.0)
        except TimeoutError:
            over = True
        curves = {}
        for name in PUBLISHED:
            log = folder / name
            curves[name] = curve(metrics.read(str(log))) if log.exists() else []
    head = ["method", "untrained", "steps and kNN 200 on the way", "published"]
    rows = []
    for name, points in curves.items():
        way = ", ".join(f"{step}: {100 * value:.1f} %" for step, value in points[1:])
        start = f"{100 * points[0][1]:.1f} %" if points else "not run"
        rows.append([name, start, way or "not run", f"{100 * PUBLISHED[name]:.1f} %"])
    record = _timing.facts() | {"curves": curves, "epochs": args.epochs, "small": args.small}
    _timing.write("cifar10_curve", record, _timing.table(head, rows), args.out)
    return benchmark.OUT_OF_TIME if over else 0


if __name__ == "__main__":
    sys.exit(main())
