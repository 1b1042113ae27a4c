"""Runs a config over a grid or a list of values, some runs at a time; started again, it does what
is left.

    python launch/sweep.py --config=configs/simclr_v1.py --workdir=runs/sweep \\
        method.temperature=0.1,0.2 seed=0,1
    python launch/sweep.py --config=configs/byol.py --workdir=runs/sweep --list=settings.txt \\
        --jobs=2
    # the commands, for another launcher, with what marks a run as done
    python launch/sweep.py ... --print
    python launch/sweep.py ... --launcher='launch/local.sh -n 2 -d 2'

A setting is NAME=VALUE[,VALUE...], a name below `config`; the grid is the product of all. In a list
each line is one run: settings between spaces, a value taken as it stands, # begins a comment.
Values with commas of their own go in a list.

A run's workdir is named by its settings. It is done when it holds the file `done`, which is written
when the run has ended with status 0. A run that was stopped (status 75) is left to be resumed. Exit
status: 0 when all are done, 1 when a run failed, 75 when the sweep was stopped; Ctrl-C and SIGTERM
let the runs save first.
"""

import argparse
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

Setting = tuple[tuple[str, str], ...]  # ((name, value), ...) of one run


def split(word: str) -> tuple[str, str]:
    """ "name=value" -> (name, value)."""
    name, equals, value = word.removeprefix("--config.").partition("=")
    if not (name and equals and value):
        raise ValueError(
            f"{word!r} is not a setting; expected NAME=VALUE, for instance "
            f"method.temperature=0.1,0.2."
        )
    return name, value


def grid(words: list[str]) -> list[Setting]:
    """The product of the values of all settings, the last one fastest."""
    names, values = [], []
    for word in words:
        name, value = split(word)
        if name in names:
            raise ValueError(f"{name} is given twice; write its values as one, {name}=A,B.")
        names.append(name)
        values.append(value.split(","))
    return [tuple(zip(names, chosen)) for chosen in itertools.product(*values)]


def listed(text: str) -> list[Setting]:
    """The runs of a list, one a line."""
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [tuple(split(word) for word in line) for line in lines if line]


def label(setting: Setting) -> str:
    """A folder's name for a run."""
    safe = "".join(
        c if c.isalnum() or c in "._=+-," else "_" for c in ",".join(f"{n}={v}" for n, v in setting)
    )
    return safe or "default"


def command(args: argparse.Namespace, setting: Setting, workdir: Path) -> list[str]:
    """The command of a run."""
    distributed = ["--distributed"] if args.launcher else []
    return [
        *shlex.split(args.launcher),
        sys.executable,
        "-m",
        "cl_jax.main",
        *distributed,
        f"--config={args.config}",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in setting),
        *args.rest,
    ]


def run_all(waiting: list[tuple[Path, list[str]]], jobs: int) -> tuple[list[Path], list[Path]]:
    """Runs the commands, `jobs` at a time; returns the workdirs of those that failed and of those
    that were stopped."""
    running: list[tuple[Path, subprocess.Popen]] = []
    failed, stopped, asked = [], [], []

    def ask(*_) -> None:
        asked.append(True)
        for _, process in running:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                workdir, line = waiting.pop(0)
                workdir.mkdir(parents=True, exist_ok=True)
                with (workdir / "log.txt").open("a") as log:
                    # In a session of its own: Ctrl-C reaches this program alone, which passes it on
                    # once.
                    process = subprocess.Popen(
                        line, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                    )
                running.append((workdir, process))
                say(f"started   {workdir}")
            time.sleep(0.1)
            for workdir, process in list(running):
                status = process.poll()
                if status is None:
                    continue
                running.remove((workdir, process))
                if status == 0:
                    (workdir / "done").touch()
                    say(f"done      {workdir}{result(workdir)}")
                elif status == 75:
                    stopped.append(workdir)
                    say(f"stopped   {workdir}; the same sweep resumes it")
                else:
                    failed.append(workdir)
                    say(
                        f"failed    {workdir}, status {status}; the end of "
                        f"{workdir / 'log.txt'}:\n{tail(workdir)}"
                    )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed, stopped + [workdir for workdir, _ in waiting]


def result(workdir: Path) -> str:
    """The last kNN accuracy that a run logged, to be put behind its name."""
    path = workdir / "metrics.jsonl"
    scores = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            scores.append(float(json.loads(line)["knn/top1"]))
        except (ValueError, KeyError, TypeError):
            continue  # no row, or one without that figure
    return f", kNN {scores[-1]:.4f}" if scores else ""


def tail(workdir: Path, lines: int = 5) -> str:
    text = (workdir / "log.txt").read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="launch/sweep.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, help="configs/<setting>.py, with :variant[,variant]"
    )
    parser.add_argument("--workdir", required=True, type=Path, help="each run is a folder in it")
    parser.add_argument("--list", type=Path, help="a file with one run a line, in place of a grid")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument(
        "--launcher",
        default="",
        help="a command to put before each run's, which then runs distributed",
    )
    parser.add_argument(
        "--print",
        action="store_true",
        help="print the commands of the runs that are left; run none",
    )
    parser.add_argument("settings", nargs="*", help="NAME=VALUE[,VALUE...]")
    words = sys.argv[1:] if argv is None else argv
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.rest = words[cut + 1 :]  # after --: for cl_jax.main as they are
    try:
        if args.jobs < 1:
            raise ValueError(f"--jobs is {args.jobs}; expected at least 1.")
        if args.list and args.settings:
            raise ValueError(
                f"both --list and settings ({' '.join(args.settings)}) are given; put them into "
                f"the list."
            )
        settings = listed(args.list.read_text()) if args.list else grid(args.settings)
        names = [label(setting) for setting in settings]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two runs would share the workdir {twice[0]}; each needs a setting of its own."
            )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    runs = [(args.workdir / name, setting) for name, setting in zip(names, settings)]
    left = [
        (workdir, command(args, setting, workdir))
        for workdir, setting in runs
        if not (workdir / "done").exists()
    ]
    say(f"{len(runs)} runs, {len(runs) - len(left)} done before")
    if args.print:
        for workdir, line in left:
            print(f"{shlex.join(line)} && touch {shlex.quote(os.fspath(workdir / 'done'))}")
        return 0
    failed, stopped = run_all(left, args.jobs)
    say(
        f"{len(runs) - len(failed) - len(stopped)} of {len(runs)} done, {len(failed)} failed, "
        f"{len(stopped)} left"
    )
    return 1 if failed else 75 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
