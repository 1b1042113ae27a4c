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
when the run has ended with status 0, and has the run's arguments: a sweep with others is refused. A
run that was stopped (status 75) is left to be resumed. Exit status: 0 when all are done, 1 when a
run failed, 75 when the sweep was stopped. Ctrl-C, SIGTERM and SIGHUP (a lost connection) let the
runs save first; under nohup, SIGHUP is ignored.
"""

import argparse
import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for a checkout that is not installed

from cl_jax.core.paths import user_path
from cl_jax.training.workdir import path_of

Setting = tuple[tuple[str, str], ...]  # ((name, value), ...) of one run
LONGEST = 255  # bytes in the name of a folder


class Job(NamedTuple):
    """One run. `arguments`, those of cl_jax.main without the workdir, is what `done` holds."""

    workdir: Path
    command: list[str]
    arguments: str


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
    """A folder's name for a run. One that is too long for a file system ends in a hash."""
    text = ",".join(f"{name}={value}" for name, value in setting)
    safe = "".join(c if c.isalnum() or c in "._=+-," else "_" for c in text)
    if len(safe.encode()) > LONGEST:
        end = "-" + hashlib.sha256(os.fsencode(text)).hexdigest()[:16]
        safe = safe.encode()[: LONGEST - len(end)].decode(errors="ignore") + end
    return safe or "default"


def job_of(args: argparse.Namespace, setting: Setting) -> Job:
    """The run of a setting."""
    workdir = args.workdir / label(setting)
    arguments = [
        f"--config={args.config}",
        *(f"--config.{name}={value}" for name, value in setting),
        *args.rest,
    ]
    command = [
        *shlex.split(args.launcher),
        sys.executable,
        "-m",
        "cl_jax.main",
        *(["--distributed"] if args.launcher else []),
        f"--workdir={workdir}",
        *arguments,
    ]
    return Job(workdir, command, shlex.join(arguments))


def is_done(job: Job) -> bool:
    """Whether a run has ended well; an empty `done` counts for any arguments.

    Raises:
      ValueError: it has, with other arguments.
    """
    path = job.workdir / "done"
    if not path.exists():
        return False
    before = os.fsdecode(path.read_bytes()).strip()
    if before not in ("", job.arguments):
        raise ValueError(
            f"{job.workdir} is done with other arguments:\n    {before}\nnow given:\n"
            f"    {job.arguments}\nGive the same or another --workdir, or remove {path} to run it "
            f"again."
        )
    return True


def start(job: Job) -> subprocess.Popen:
    """Starts a run, its output at the end of WORKDIR/log.txt."""
    job.workdir.mkdir(parents=True, exist_ok=True)
    with (job.workdir / "log.txt").open("a") as log:
        # In a session of its own: Ctrl-C reaches this program alone, which passes it on once.
        return subprocess.Popen(
            job.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def run_all(waiting: list[Job], jobs: int) -> tuple[int, int]:
    """Runs the commands, `jobs` at a time; returns how many failed and how many were stopped or not
    started."""
    running: list[tuple[Job, subprocess.Popen]] = []
    failed, stopped, asked = 0, 0, []

    def ask(*_) -> None:
        asked.append(True)
        for _, process in running:
            process.send_signal(signal.SIGTERM)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                job = waiting.pop(0)
                try:
                    process = start(job)
                except OSError as error:  # the runs that were started are still waited for
                    failed += 1
                    say(f"failed    {job.workdir} cannot be started: {error}")
                    continue
                running.append((job, process))
                if asked:  # while it was being started, so that `ask` did not find it
                    process.send_signal(signal.SIGTERM)
                say(f"started   {job.workdir}")
            time.sleep(0.1)
            for job, process in list(running):
                status = process.poll()
                if status is None:
                    continue
                running.remove((job, process))
                if status == 75:
                    stopped += 1
                    say(f"stopped   {job.workdir}; the same sweep resumes it")
                else:
                    failed += not ended_well(job, status)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed, stopped + len(waiting)


def ended_well(job: Job, status: int) -> bool:
    """Marks a run that ended with status 0 as done; says how it ended."""
    if status != 0:
        log = job.workdir / "log.txt"
        say(f"failed    {job.workdir}, status {status}; the end of {log}:\n{tail(job.workdir)}")
        return False
    try:
        (job.workdir / "done").write_bytes(os.fsencode(job.arguments + "\n"))
    except OSError as error:
        say(f"failed    {job.workdir} cannot be marked as done: {error}")
        return False
    say(f"done      {job.workdir}{result(job.workdir)}")
    return True


def result(workdir: Path) -> str:
    """The last kNN accuracy that a run logged, to be put behind its name."""
    logs = [workdir / "metrics.jsonl", *workdir.glob("*/metrics.jsonl")]  # or of its stages
    logs = sorted((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime)
    scores = []
    for line in [line for log in logs for line in log.read_bytes().split(b"\n")]:
        try:
            scores.append(float(json.loads(line)["knn/top1"]))
        except (ValueError, KeyError, TypeError):
            continue  # no row, or one without that figure
    return f", kNN {scores[-1]:.4f}" if scores else ""


def tail(workdir: Path, lines: int = 5) -> str:
    text = (workdir / "log.txt").read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"    {line}" for line in text)


def say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # the terminal is gone; runs are still waited for
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="launch/sweep.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", required=True, help="configs/<setting>.py, with :variant[,variant]"
    )
    parser.add_argument("--workdir", required=True, help="each run is a folder in it")
    parser.add_argument("--list", help="a file with one run a line, in place of a grid")
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
        args.workdir = path_of(args.workdir)  # as each run reads it
        if args.jobs < 1:
            raise ValueError(f"--jobs is {args.jobs}; expected at least 1.")
        if args.list and args.settings:
            raise ValueError(
                f"both --list and settings ({' '.join(args.settings)}) are given; put them into "
                f"the list."
            )
        settings = listed(user_path(args.list).read_text()) if args.list else grid(args.settings)
        names = [label(setting) for setting in settings]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two runs would share the workdir {twice[0]}; each needs a setting of its own."
            )
        runs = [job_of(args, setting) for setting in settings]
        left = [job for job in runs if not is_done(job)]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    say(f"{len(runs)} runs, {len(runs) - len(left)} done before")
    if args.print:
        for job in left:
            mark = f"printf '%s\\n' {shlex.quote(job.arguments)}"
            done = shlex.quote(os.fspath(job.workdir / "done"))
            print(f"{shlex.join(job.command)} && {mark} > {done}")
        return 0
    failed, stopped = run_all(left, args.jobs)
    done = len(runs) - failed - stopped
    say(f"{done} of {len(runs)} done, {failed} failed, {stopped} left")
    return 1 if failed else 75 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
