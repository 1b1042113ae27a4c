"""Metrics on their way from the device to the log, which are read late, and the error that they may
bring: a step whose loss or gradient is not finite."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cl_jax.checks import replay
from cl_jax.core import parallel
from cl_jax.planning.devices import peak_flops
from cl_jax.training import metrics
from cl_jax.training.experiment import Built, dtype_of
from cl_jax.training.steps import Stepper


class NonFinite(FloatingPointError):
    """A loss or gradient is NaN or inf; the caller's State is the one before that step."""

    def __init__(
        self, step: int, row: dict[str, np.ndarray], ids: np.ndarray, record: dict[str, Any]
    ):
        super().__init__(
            f"step {step + 1}: loss {row['loss']}, gradient norm {row.get('grad_norm')}. Batch "
            f"ids: {np.array2string(ids, threshold=32)}. The newest checkpoint is of a step before "
            "this one. Likely causes: a learning rate too high, a temperature too low; lower it, "
            "or leave such steps out with --config.nonfinite=skip, which may be given at the "
            "resume."
        )
        # the record is what `cl_jax.checks.replay` reads
        self.step, self.ids, self.record = step, ids, record


class Interval(NamedTuple):
    """Dispatches between two rows of the log. ended: when, where that is known already; waited:
    seconds of waiting for data until then; parts: (first step, metrics [steps])."""

    ended: float | None
    waited: float
    parts: list[tuple[int, Any]]


def _is_done(parts: list[tuple[int, Any]]) -> bool:
    """Whether the device has finished the last of some dispatches."""
    return bool(parts[-1][1]["loss"].is_ready())


class Pending:
    """Metrics on their way from the device. They are read one logging interval late, so that no
    step waits for the host."""

    def __init__(self, config: ConfigDict, built: Built, log: metrics.Metrics, steps: Stepper):
        self.config, self.built, self.log_to, self.steps = config, built, log, steps
        # Compiled once: called as it is, each operation of the schedule is a program.
        self.learning_rate = jax.jit(built.learning_rate)
        self.closed: list[Interval] = []
        self.current: list[tuple[int, Any]] = []
        # Steps before a skipped one, whose row is not written yet: (their numbers, metrics).
        self.carried: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        self.compiled = 0.0
        # Of the log: how many steps were skipped, the last of them and how many it ends in a row.
        self.skipped, self.last_bad, self.in_a_row = 0, -2, 0
        for row in getattr(log, "rows", ()):
            if "skipped_steps" in row:
                self._count(int(row["step"]) - 1)
                self.skipped = int(row["skipped_steps"])
        self.restart_clock()

    def restart_clock(self) -> None:
        self.since, self.waited = time.perf_counter(), self.steps.wait_seconds

    def add(self, first: int, values: Any) -> None:
        self.since += self.steps.compile_seconds - self.compiled  # not a part of any step
        self.compiled = self.steps.compile_seconds
        for number, interval in enumerate(self.closed):
            if interval.ended is None and _is_done(interval.parts):
                self.closed[number] = interval._replace(ended=time.perf_counter())
        self.current.append((first, values))

    def log(self) -> None:
        """Closes an interval and writes the one before it."""
        self._close()
        while len(self.closed) > 1:
            self._write()
        if not self.closed and self.carried:
            self._row(None, [])

    def flush(self) -> None:
        """Writes all there is; waits for the device."""
        self._close()
        self._date()
        while self.closed:
            self._write()
        if self.carried:
            self._row(None, [])

    def in_a_row_with(self, step: int) -> int:
        """How many steps in a row are skipped with this one."""
        return self.in_a_row + 1 if step == self.last_bad + 1 else 1

    def forget(self, step: int) -> None:
        """Drops what came after a step that is skipped, and counts it."""
        self.closed, self.current = [], []
        self._count(step)
        self.log_to.write(step + 1, {"skipped_steps": self.skipped})
        self.restart_clock()

    def _count(self, step: int) -> None:
        self.in_a_row = self.in_a_row_with(step)
        self.last_bad, self.skipped = step, self.skipped + 1

    def _close(self) -> None:
        if self.current:
            ended = time.perf_counter() if _is_done(self.current) else None
            self.closed.append(Interval(ended, self.steps.wait_seconds, self.current))
            self.current = []

    def _date(self) -> None:
        """Gives every interval the time when it ended, in proportion to the steps where only a
        later one's is known: read one after the other, the second would seem to take no time."""
        if not self.closed:
            return
        last = self.closed[-1]
        if last.ended is None:
            jax.block_until_ready(last.parts[-1][1]["loss"])
            self.closed[-1] = last._replace(ended=time.perf_counter())
        start, steps, waiting = self.since, 0, list[tuple[int, int]]()
        for number, interval in enumerate(self.closed):
            steps += sum(part["loss"].shape[0] for _, part in interval.parts)
            if interval.ended is None:
                waiting.append((number, steps))
                continue
            for before, done in waiting:
                at = start + (interval.ended - start) * done / steps
                self.closed[before] = self.closed[before]._replace(ended=at)
            start, steps, waiting = interval.ended, 0, []

    def _write(self) -> None:
        interval = self.closed.pop(0)
        found: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        for first, part in interval.parts:
            values = parallel.fetch(part)
            numbers = np.arange(first, first + len(values["loss"]))
            bad = None if self.config.nonfinite == "ignore" else metrics.first_bad(values)
            if bad is not None:
                if bad:
                    found.append((numbers[:bad], {k: v[:bad] for k, v in values.items()}))
                self.carried += found
                step, row = int(numbers[bad]), {name: v[bad] for name, v in values.items()}
                ids = self.steps.ids(step)
                raise NonFinite(
                    step,
                    row,
                    ids,
                    replay.record(self.config, self.built, step, row, ids, len(numbers)),
                )
            found.append((numbers, values))
        self._row(interval, found)

    def _row(
        self, interval: Interval | None, found: list[tuple[np.ndarray, dict[str, np.ndarray]]]
    ) -> None:
        """Writes the means over an interval and what was carried; rates are of the interval."""
        parts, self.carried = self.carried + found, []
        last, run = int(parts[-1][0][-1]), self.built.run
        row = {
            name: float(np.mean(np.concatenate([values[name] for _, values in parts])))
            for name in parts[-1][1]
        } | {
            "learning_rate": float(self.learning_rate(last)),
            "epoch": (last + 1) / run.steps_per_epoch,
        }
        if interval is not None:
            now = interval.ended or time.perf_counter()
            elapsed = max(now - self.since, 1e-9)
            rate = sum(len(numbers) for numbers, _ in found) / elapsed
            row["examples_per_second"] = rate * run.batch_size
            row["data_wait"] = (interval.waited - self.waited) / elapsed
            kind = self.built.mesh.devices.flat[0].device_kind
            peak = peak_flops(kind, dtype_of(self.config))
            if peak and self.steps.flops > 0:
                row["mfu"] = rate * self.steps.flops / peak
            self.since, self.waited = now, interval.waited
        self.log_to.write(last + 1, row)
