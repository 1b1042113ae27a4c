"""Where numbers go: a JSON-lines log, TensorBoard event files, Weights & Biases, MLflow, and a
progress line on a terminal.

A destination that fails (a full disk, a closed pipe) is named once and left out from then on: the
run continues without it.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cl_jax.core import logs
from cl_jax.core.errors import ConfigError
from cl_jax.core.logs import Row
from cl_jax.core.names import some
from cl_jax.training import trackers
from cl_jax.training import workdir as folder


class Metrics:
    """The log of one run. Process 0 writes, the others stay silent.

    rows: all that is in the log, on every process: what an earlier run wrote up to `start_step`,
      and what this one writes. A run that starts at step 0 has no earlier row: those of step 0, of
      the untrained network, are written after the first save, and here are another run's.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        start_step: int = 0,
        config: Mapping[str, Any] | None = None,
    ):
        """config: all settings of the run; its section "log" says which destinations there are
        besides metrics.jsonl and the terminal."""
        self.active = jax.process_index() == 0
        self.total, self.latest, self.began = total_steps, Row(), (time.monotonic(), start_step)
        root = folder.path_of(workdir)
        path = root / "metrics.jsonl"
        self.rows = [row for row in read(workdir) if start_step and row["step"] <= start_step]
        if not self.active:
            return
        again = path.exists() or (root / "tensorboard").exists()
        first = start_step + 1 if start_step else 0  # step of a row that this run may write
        self.destinations: dict[str, Any] = {}
        self._open("metrics.jsonl", lambda: _Lines(path, self.rows))
        section = (config or {}).get("log", {})
        if section.get("tensorboard", True):
            self._open(
                "TensorBoard",
                lambda: _Board(root / "tensorboard", first if again else None),
            )
        others = trackers.destinations(section, root, config or {}, resumed=start_step > 0)
        for name, make in others.items():
            self._open(name, make)
        self.console = Console(file=sys.stderr)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(
            "training", total=total_steps, completed=start_step, note=""
        )
        self._open("the terminal", lambda: _Terminal(self))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Logs scalars of one step."""
        row = {name: float(value) for name, value in values.items()}
        self.rows.append({"step": step, "time": round(time.time(), 3), **row})
        self.latest.update(row)
        if self.active:
            for name in list(self.destinations):
                self._guarded(name, lambda to: to.write(self.rows[-1]))

    def say(self, text: str) -> None:
        """Prints a line or a block without breaking the progress bar."""
        if self.active:
            self._guarded("the terminal", lambda to: to.say(text))

    def close(self) -> None:
        if self.active:
            for name in list(self.destinations):
                self._guarded(name, lambda to: to.close())

    def _open(self, name: str, make: Callable[[], Any]) -> None:
        try:
            self.destinations[name] = make()
        except Exception as error:
            _drop(name, error)

    def _guarded(self, name: str, call: Callable[[Any], None]) -> None:
        if name not in self.destinations:
            return
        try:
            call(self.destinations[name])
        except Exception as error:
            with contextlib.suppress(Exception):
                self.destinations.pop(name).close()
            _drop(name, error)


def _drop(name: str, error: Exception) -> None:
    try:
        logging.warning(
            "%s cannot be written (%s: %s); the run continues without it.",
            name,
            type(error).__name__,
            error,
        )
    except OSError:
        pass  # standard error itself is what cannot be written


class _Lines:
    """metrics.jsonl: one JSON object a row, flushed at once."""

    def __init__(self, path: Path, rows: list[Row]):
        # Rows beyond the checkpoint that the run resumes from will be written again. The file is
        # replaced as a whole: a kill at this moment must not cost the rows before.
        if path.exists():
            folder.replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self.file = path.open("a")

    def write(self, row: Row) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class _Board:
    """TensorBoard event files, written by the caller's own thread: the queue of a writer's thread
    that died of a full disk would block the run."""

    def __init__(self, path: Path, purge_step: int | None):
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.purge_step = path, purge_step
        self.file: Any = None

    def _opened(self) -> Any:
        """The event file, with the first row: tensorboardX imports PyTorch where it is installed,
        which would delay the first step by a second."""
        if self.file is None:
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.record_writer import RecordWriter

            # TensorBoard reads files in the order of their names, which begin with the second.
            seconds, rest = divmod(time.time_ns(), 10**9)
            name = f"{seconds:010d}.{rest:09d}.{socket.gethostname()}.{os.getpid()}"
            self.file = RecordWriter(str(self.path / f"events.out.tfevents.{name}"))
            event = Event(wall_time=time.time(), file_version="brain.Event:2")
            self.file.write(event.SerializeToString())
            if self.purge_step is not None:
                # TensorBoard hides earlier files' events from this step on.
                event = Event(
                    wall_time=time.time(),
                    step=self.purge_step,
                    session_log=SessionLog(status=SessionLog.START),
                )
                self.file.write(event.SerializeToString())
        return self.file

    def write(self, row: Row) -> None:
        file = self._opened()
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in row.items():
            if name not in ("step", "time"):
                summary = scalar(name, value)
                event = Event(wall_time=row["time"], step=int(row["step"]), summary=summary)
                file.write(event.SerializeToString())
        file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class _Terminal:
    """A progress bar on a terminal; a line a row elsewhere, with the share done and the time
    left."""

    def __init__(self, log: Metrics):
        self.log = log
        log.progress.start()

    def write(self, row: Row) -> None:
        log, step = self.log, int(row["step"])
        if log.console.is_terminal:
            note = "  ".join(
                f"{short} {log.latest[name]:.{digits}f}"
                for name, short, digits in (
                    ("loss", "loss", 3),
                    ("examples_per_second", "examples/s", 0),
                    ("knn/top1", "kNN", 3),
                )
                if name in log.latest
            )
            log.progress.update(
                log.task, completed=max(step, log.progress.tasks[0].completed), note=note
            )
        else:
            # The members of a large population ("weight=0,seed=1/loss") are in the log alone.
            numbers = "  ".join(
                f"{name} {value:.4g}"
                for name, value in row.items()
                if name not in ("step", "time") and not {"=", ","} <= set(name)
            )
            print(
                f"step {step:>{len(str(log.total))}} of {log.total}{self._left(step)}  {numbers}",
                file=sys.stderr,
                flush=True,
            )

    def _left(self, step: int) -> str:
        """The time left, once there is a rate to tell it by."""
        since, start = self.log.began
        if not start < step < self.log.total:
            return ""
        seconds = round((time.monotonic() - since) / (step - start) * (self.log.total - step))
        hours, minutes = seconds // 3600, seconds // 60 % 60
        text = (
            f"{hours}:{minutes:02d}:{seconds % 60:02d}"
            if hours
            else f"{minutes}:{seconds % 60:02d}"
        )
        return f", {text} left"

    def say(self, text: str) -> None:
        self.log.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.log.progress.stop()


def read(workdir: str | Path) -> list[Row]:
    """The rows of a run's JSON-lines log. Lines that are not rows (a killed run may leave one cut)
    are left out with a warning.

    Raises:
      ConfigError: the log cannot be read.
    """
    path = folder.path_of(workdir) / "metrics.jsonl"
    try:
        rows, broken = logs.rows(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Give this user leave to read it."
        ) from None
    if broken:
        logging.warning(
            "%s: left out line %s, which %s not a row of numbers with a step.",
            path,
            some(broken),
            "is" if len(broken) == 1 else "are",
        )
    return rows


def first_bad(columns: dict[str, np.ndarray]) -> int | None:
    """The first row of metrics [steps] whose loss or gradient norm is not finite."""
    finite = np.logical_and.reduce(
        [np.isfinite(columns[name]) for name in ("loss", "grad_norm") if name in columns]
    )
    return None if finite.all() else int(np.argmin(finite))
