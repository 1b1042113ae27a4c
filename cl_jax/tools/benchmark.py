"""Trains and evaluates many methods by one protocol and prints one table.

example:
  cl-jax benchmark --methods=simclr_v1,byol --workdir=runs/benchmark

Each method is trained by its own config, with the budget, the network and the data that the command
line gives to all, and evaluated in the same ways: kNN (k=200, T=0.1 and k=20, T=0.07), a linear
classifier on frozen features, cached and augmented, alignment and uniformity, all of "h" and with
the same settings of the probe. A config of several stages runs its first. Every run is a process of
its own, so its peak memory is its own; it leaves `row.json` in its workdir. The same command
continues where it was stopped: finished rows are read, a broken run resumes from its checkpoint.

--seeds=3 runs each three times; the table then has means, deviations and 95 % intervals, Student's
over the seeds and, for shares of right answers, the draw of the test examples. "better" and "worse"
stand only where zero is outside the interval. --all makes the survey of every system instead.

--set changes the configs of all methods, at any depth (views.both.scale=[0.8,1.0]). It skips a
section that a config does not have, and a key that its encoder, optimizer or method does not list,
since a ViT has no width multiplier; a change that no config of the call has is refused.
"""

import argparse
import collections
import contextlib
import csv
import functools
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cl_jax.core import xla
from cl_jax.core.errors import SaveError
from cl_jax.core.names import nearest, some
from cl_jax.core.paths import user_path
from cl_jax.data import declared
from cl_jax.data.source import Source
from cl_jax.data.tables import check_writable
from cl_jax.tools import _budget, _table
from cl_jax.training import configs
from cl_jax.training.workdir import make, path_of, replace_text

KNN = {
    "knn": {"k": 200, "temperature": 0.1},
    "knn20": {"name": "knn", "figure": "knn20", "k": 20, "temperature": 0.07},
}
OUT_OF_TIME = 75
PROBE = {"batch_size": 256, "learning_rate": 0.1, "weight_decay": 0.0}


def of_scenes() -> list[str]:
    """The configs of the images of `scenes` that are measured by kNN and a linear probe: those that
    one table compares."""
    found = {name: configs.load(name) for name in configs.names()}
    return [name for name, c in found.items() if c.data.name == "scenes" and is_of_images(c)]


def config_of(name: str, args: argparse.Namespace, seed: int) -> ConfigDict:
    """The config of one run: the method's own, then what all share."""
    variant = ",".join(
        word
        for word in (args.data if args.data not in ("scenes", "") else "", args.variant)
        if word
    )
    from cl_jax.training.stages import stages

    config = configs.load(f"{name}:{variant}")
    _, config, _ = stages(config, args.workdir)[0]
    if args.packed:
        config.data = ConfigDict({"name": "packed", "path": args.packed})
    for change in args.set:
        change_config(config, change)
    if args.epochs:
        _budget.shorten(config, epochs=args.epochs, examples=examples_of(config))
    config.seed = seed
    config.evals.every_epochs = 0.0
    if is_of_images(config):
        config.evals.update({"feature": "h", "best": ""})
        for key, section in KNN.items():
            config.evals.protocols[key] = ConfigDict(section)
        config.evals.protocols.linear = ConfigDict(PROBE | {"total_epochs": args.probe_epochs})
    for change in args.set:
        change_config(config, change)
    return config


def is_of_images(config: ConfigDict) -> bool:
    """Whether the table's protocol, kNN and a linear probe, is the config's too. Other systems are
    measured by their own protocols."""
    return {"knn", "linear"} <= set(config.evals.protocols)


def examples_of(config: ConfigDict) -> int:
    """Training examples of a config; of CIFAR-10 and other known sets without reading them."""
    section = config.data
    known = declared.KNOWN.get(section.get("dataset", ""))
    if known is None or {"imbalance", "validation", "train_split"} & set(section):
        return _examples_read(section.to_json(), config.seed)
    return round(section.get("fraction", 1.0) * known[0])


@functools.lru_cache
def _examples_read(section: str, seed: int) -> int:
    from cl_jax.training.experiment import load_data

    return load_data(ConfigDict({"data": json.loads(section), "seed": seed})).train.size


def change_config(config: ConfigDict, change: str) -> bool:
    """Applies "section.key=value"; returns whether the config has that. Encoders, optimisers and
    methods differ between configs: a section or key that theirs does not have is left out.
    "views.key=value" is of all views; "views.size=16" is of the largest view, and smaller ones keep
    their share of it."""
    path, given, text = change.partition("=")
    *sections, key = path.split(".")
    if not given or not all((*sections, key)):
        raise ValueError(
            f"--set={change}; expected section.key=value or key=value, such as encoder.width=0.25."
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if not sections:
        if key not in config:
            raise ValueError(
                f"--set={change}: a config has no {key!r}{nearest(key, list(config))}."
            )
        _put(config, key, value, change)
        return True
    if sections[0] not in config:
        raise ValueError(
            f"--set={change}: a config has no section {sections[0]!r}; have "
            + ", ".join(name for name, held in config.items() if isinstance(held, ConfigDict))
            + "."
        )
    if (sections, key) == (["views"], "size"):
        resize(config, value)
        return True
    section: Any = config
    for name in sections:
        section = section.get(name) if isinstance(section, ConfigDict) else None
    parts = list(section.values()) if sections == ["views"] else [section]
    # Of data and views any key of their function may be given; it is checked with the run.
    takes_any = sections[0] in ("data", "views")
    parts = [part for part in parts if isinstance(part, ConfigDict) and (takes_any or key in part)]
    for part in parts:
        _put(part, key, value, change)
    return bool(parts)


def _put(section: ConfigDict, key: str, value: Any, change: str) -> None:
    try:
        section[key] = value
    except TypeError:
        raise ValueError(
            f"--set={change}: expected a value like that of the config, {section[key]!r}."
        ) from None


def refuse_unknown(changes: Sequence[str], found: Sequence[ConfigDict]) -> None:
    """Raises ValueError for a change that no config has."""
    for change in changes:
        if not any([change_config(config, change) for config in found]):
            raise ValueError(
                f"--set={change}: none of the configs of "
                f"{some([config.method.name for config in found])} has it; expected a section and "
                "key that one of them lists."
            )


def resize(config: ConfigDict, side: int) -> None:
    """Makes the largest view of a config `side` pixels, the others in proportion; of a transformer,
    whole patches."""
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"--set=views.size={side}; expected a number of pixels, such as 16.")
    images = [view for view in config.views.values() if view.get("kind", "image") == "image"]
    sides = [view.get("size", 32) for view in images]
    unit = config.encoder.get("patch", 1)
    for view, before in zip(images, sides):
        view.size = max(unit, unit * round(side * before / max(sides) / unit))


def fingerprint(config: ConfigDict) -> str:
    """Twelve digits that tell settings apart; the seed is not part of them."""
    plain = {name: value for name, value in json.loads(config.to_json()).items() if name != "seed"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _stop_without_parent() -> None:
    """Lets a child end when its parent is killed: the run saves, as at any SIGTERM."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def run_one(text: str, workdir: str, augmented_epochs: float) -> dict[str, Any]:
    """Trains and evaluates one config; in a process of its own."""
    import jax
    import numpy as np
    from absl import logging

    from cl_jax.evals import linear_augmented
    from cl_jax.training import loop, metrics
    from cl_jax.training.stages import load

    logging.set_verbosity(logging.WARNING)
    config = ConfigDict(json.loads(text))
    began, resumed = time.perf_counter(), any(Path(workdir).glob("last/*"))
    processor = time.process_time()
    results = loop.train(config, workdir)
    _, built, state = load(workdir)
    if augmented_epochs and is_of_images(config):
        section = dict(config.evals.protocols.linear, total_epochs=augmented_epochs)
        only = {"linear_augmented": linear_augmented.make(**section)}
        asked = loop.evaluation_of(built._replace(evaluators=only), config, workdir)
        results |= asked.measure(state, asked=True)
    rows = metrics.read(workdir)
    speeds = [row["examples_per_second"] for row in rows if "examples_per_second" in row]
    speed = float(np.median(speeds)) if speeds else None
    baselines = {name: value for row in rows if row["step"] == 0 for name, value in row.items()}
    peaks = [device.memory_stats() for device in jax.local_devices()]
    peak = (
        max(stats["peak_bytes_in_use"] for stats in peaks)
        if all(peaks)
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
    )
    evaluation = loop.evaluation_of(built, config, workdir)
    measure = evaluation.best
    titles = {key: text for one in built.evaluators.values() for key, text in one.titles.items()}
    return {
        "knn": results.get("knn/top1"),
        "knn20": results.get("knn20/top1"),
        "linear_cached": results.get("linear/cached/top1"),
        "linear_augmented": results.get("linear/augmented/top1"),
        "untrained": baselines.get("untrained/knn/top1"),
        "raw_pixels": baselines.get("knn/raw_pixels"),
        "alignment": results.get("geometry/alignment"),
        "uniformity": results.get("geometry/uniformity"),
        "measure": measure,
        "reached": results.get(measure),
        "reached_untrained": baselines.get(f"untrained/{measure}"),
        "better": evaluation.better.get(measure, 1),
        "share": "%" in titles.get(measure, ""),
        "test_units": units_of(built.data.test),
        "examples_per_second": speed,
        "train_seconds": speed and built.run.total_steps * built.run.batch_size / speed,
        "wall_seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - processor,
        "resumed": resumed,
        "peak_memory_mib": peak / 2**20,
        "steps": built.run.total_steps,
        "batch_size": built.run.batch_size,
        "epochs": config.total_epochs,
        "examples": built.run.size,
        "data": built.data.train.name,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }


def units_of(source: Source) -> int:
    """Independent examples of a part: of `scenes` its handwritings, of which there are several
    images each."""
    arrays = source.arrays or {}
    return len(set(arrays["instance"].tolist())) if "instance" in arrays else source.size


def commit() -> str:
    """The checkout's commit, with a + where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def in_a_process(*given: Any) -> dict[str, Any]:
    """`run_one` in a fresh interpreter, which alone touches the accelerator. SIGTERM is passed on
    to it; training saves."""
    told = False

    def pass_on(*_: Any) -> None:
        nonlocal told
        told = True
        for child in multiprocessing.active_children():
            child.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        with ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_stop_without_parent
        ) as process:
            row = process.submit(run_one, *given).result()
    except (Exception, KeyboardInterrupt) as error:  # the latter: the child saved and stopped
        if told:
            raise SystemExit(143) from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if told:  # it came to its end all the same; the next is not begun
        raise SystemExit(143)
    return row


def run_all(
    args: argparse.Namespace,
    names: Sequence[str],
    run: Callable[..., dict[str, Any]] = in_a_process,
) -> list[dict[str, Any]]:
    """Rows of every method and seed, finished ones from disk; the tables are written after each."""
    rows: list[dict[str, Any]] = []
    stem = stem_of(args)
    asked = [(n, seed, config_of(n, args, seed)) for n in names for seed in range(args.seeds)]
    for name, seed, config in asked:
        _refuse_another_setting(name, args, seed, config)
    for name, seed, config in asked:
        workdir, row = workdir_of(name, args, seed), kept_row(name, args, seed)
        if row is None or "error" in row:
            print(f"== {name}, seed {seed}", file=sys.stderr, flush=True)
            row = {
                "method": name,
                "seed": seed,
                "config": fingerprint(config),
                "probe": probe_of(args),
                "commit": commit(),
            }
            try:
                row |= run(config.to_json(), str(workdir), args.augmented_epochs)
            except Exception as error:  # one method's fault leaves the others their rows
                row["error"] = f"{type(error).__name__}: {error}"
                print(f"== {name} failed: {row['error']}", file=sys.stderr)
            replace_text(make(workdir) / "row.json", json.dumps(row, indent=1) + "\n")
        rows.append(row)
        write(rows, stem, shown(rows, args, names))
    return rows


def _refuse_another_setting(
    name: str, args: argparse.Namespace, seed: int, config: ConfigDict
) -> None:
    """Raises ValueError where the finished row of a run is of other settings. Those of a failed one
    may be its fault; its checkpoints are compared when it is run again."""
    row, now = kept_row(name, args, seed), fingerprint(config)
    if row is None or "error" in row or (row["config"], row["probe"]) == (now, probe_of(args)):
        return
    raise ValueError(
        f"{workdir_of(name, args, seed)} holds the run of another setting ({row['config']}, now "
        f"{now}). Give another --workdir, or the same options as then."
    )


def shown(rows: Sequence[dict[str, Any]], args: argparse.Namespace, names: Sequence[str]) -> str:
    """The table that the arguments ask for."""
    if args.all:
        return _table.survey(rows, names)
    return _table.markdown(rows, args.against)


def kept_rows(args: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that earlier calls left in the workdir."""
    found = (kept_row(name, args, seed) for name in names for seed in range(args.seeds))
    return [row for row in found if row]


def kept_row(name: str, args: argparse.Namespace, seed: int) -> dict[str, Any] | None:
    """The row that an earlier call left, under the name by which the config is given now."""
    path = workdir_of(name, args, seed) / "row.json"
    return json.loads(path.read_text()) | {"method": name} if path.exists() else None


def workdir_of(name: str, args: argparse.Namespace, seed: int) -> Path:
    """Where the run of a method and seed is kept; of a config in a file, where an earlier version
    kept it if it did."""
    root, own = path_of(args.workdir), f"seed{seed}"
    old = root / name / own
    within = not Path(name).is_absolute() and ".." not in Path(name).parts
    return old if within and old.exists() else root / folder_of(name) / own


def folder_of(name: str) -> str:
    """The folder of a config's runs inside the workdir: its name; of a path, the file's."""
    return Path(name).stem if "/" in name or name.endswith(".py") else name


def probe_of(args: argparse.Namespace) -> list[float]:
    """What of the evaluations may differ between two tables."""
    return [args.probe_epochs, args.augmented_epochs]


def stem_of(args: argparse.Namespace) -> Path:
    """The path of the tables, without suffix."""
    if not args.out:
        return path_of(args.workdir) / "table"
    given = user_path(args.out)
    return given.with_suffix("") if given.suffix in (".json", ".csv", ".md") else given


def write(rows: Sequence[dict[str, Any]], stem: Path, text: str) -> None:
    """`stem`.json and .csv of the rows, and the table as .md."""
    fields = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    written = {".json": json.dumps(rows, indent=1) + "\n", ".csv": buffer.getvalue(), ".md": text}
    for suffix, content in written.items():
        replace_text(stem.with_name(stem.name + suffix), content)


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    configs.see_working_folder()
    xla.prepare()  # for this process and those it starts
    try:
        names = names_of(args)
        if args.seeds < 1 or not names:
            raise ValueError(
                f"--seeds={args.seeds}, {len(names)} methods; expected one or more of each."
            )
        # A mistake in the options is found before the first run.
        refuse_unknown(args.set, [config_of(name, args, 0) for name in names])
        make(args.workdir)
        check_writable(stem_of(args))
        with stopped_after(args.minutes):
            rows = run_all(args, names)
    except (ValueError, FileNotFoundError, SaveError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except TimeoutError:
        print(f"{args.minutes:g} minutes are over; the same command continues", file=sys.stderr)
        print(shown(kept_rows(args, names), args, names), end="")
        return OUT_OF_TIME
    print(shown(rows, args, names), end="")
    return 1 if any("error" in row for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="cl-jax benchmark",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--methods",
        default="all",
        help="names of configs, with commas between them; paths and modules too. all, the default: "
        "those of the images of scenes, which one table compares; every: all configs, each by its "
        "own measure. The runs of one are kept in WORKDIR/NAME, of a path in the name of its file",
    )
    found.add_argument(
        "--all",
        action="store_true",
        help="the survey: every config at its own default, by its own measure beside the untrained "
        "network's and what is published; systems without a finished run are listed too",
    )
    found.add_argument(
        "--against",
        default="",
        metavar="NAME",
        help="a method of the table; the others' difference from it gets a column",
    )
    found.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="save and stop after so long, with status 75; the same command continues from there",
    )
    found.add_argument(
        "--data",
        default="scenes",
        help="scenes (each config's default), or the variant that names the "
        "data: cifar10, imagenet2012",
    )
    found.add_argument(
        "--variant", default="", help="further variants of every config, such as debug"
    )
    found.add_argument(
        "--packed",
        default="",
        help="read the data from this folder of train.npz and test.npz instead",
    )
    found.add_argument(
        "--epochs",
        type=float,
        default=0.0,
        help="budget of every method (default: each config's own); a smaller one shortens "
        "warm-ups, freezing and running means with it",
    )
    found.add_argument("--seeds", type=int, default=1, help="runs of each method")
    found.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a setting for every config, such as encoder.width=0.25, views.size=16, "
        "views.both.flip=0, batch_size=256",
    )
    found.add_argument(
        "--probe_epochs", type=float, default=30.0, help="of the classifier on cached features"
    )
    found.add_argument(
        "--augmented_epochs",
        type=float,
        default=10.0,
        help="of the classifier on crops; 0 leaves it out",
    )
    found.add_argument("--workdir", required=True, help="where the runs are kept")
    found.add_argument(
        "--out", default="", help="path of the tables without suffix (default: <workdir>/table)"
    )
    return found


def names_of(args: argparse.Namespace) -> list[str]:
    """The configs that the arguments name.

    Raises:
      ValueError: a baseline that is not among them, or several whose runs would have one folder.
    """
    groups = {"all": of_scenes, "every": configs.names}
    asked = "every" if args.all and args.methods == "all" else args.methods
    names = groups[asked]() if asked in groups else [name for name in asked.split(",") if name]
    if args.against and args.against not in names:
        raise ValueError(
            f"--against={args.against} is not in the table; expected one of {', '.join(names)}"
            f"{nearest(args.against, names)}."
        )
    for folder, count in collections.Counter(map(folder_of, names)).items():
        if count > 1:
            same = ", ".join(name for name in names if folder_of(name) == folder)
            raise ValueError(
                f"--methods={asked}: {same} would have one folder, {folder}, in the workdir; "
                "expected one config for each. Leave one out, or rename its file."
            )
    return names


@contextlib.contextmanager
def stopped_after(minutes: float) -> Iterator[None]:
    """Ends what runs inside after so many minutes: the run in progress saves, as at any SIGTERM.

    Raises:
      TimeoutError: the time is over.
    """
    if not minutes:
        yield
        return
    over = threading.Event()

    def end() -> None:
        over.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    timer = threading.Timer(60 * minutes, end)
    before = signal.signal(signal.SIGTERM, _exit)  # between two runs
    timer.start()
    try:
        yield
    except SystemExit:
        if over.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def _exit(*_: Any) -> None:
    raise SystemExit(143)
