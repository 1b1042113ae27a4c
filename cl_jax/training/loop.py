"""The loop: restore, step, log, save, refresh, evaluate. It names no method."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cl_jax.checks import diagnosis, replay
from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError
from cl_jax.core.method import Run, State
from cl_jax.evals import evaluation
from cl_jax.evals.evaluation import Evaluation
from cl_jax.planning.devices import peak_flops
from cl_jax.training import checkpoint, metrics
from cl_jax.training import workdir as folder
from cl_jax.training.experiment import (
    Built,
    build,
    describe,
    dtype_of,
    initial_state,
)
from cl_jax.training.stages import load, previous_stage, stages
from cl_jax.training.steps import Stepper, stepper

__all__ = [
    "Interrupted",
    "build",
    "evaluate",
    "initial_state",
    "load",
    "stages",
    "stepper",
    "train",
]

KEPT = 3  # steps left out of a run of which `cl_jax.checks.replay` can tell
# steps left out after which nothing will come of skipping: the parameters themselves are at fault
IN_A_ROW = 20


class Interrupted(Exception):
    """The run was told to stop (SIGTERM); it saved first and resumes by the same command."""


def train(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Runs one stage to its end, from its newest checkpoint if there is one; returns the final
    evaluation."""
    workdir = folder.path_of(workdir)
    if jax.process_index() == 0:
        folder.make(workdir)
    with locked(workdir):
        return _locked(config, workdir)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the lock of a workdir; process 0 of a job holds it for all of them."""
    lock, failure = None, None
    if jax.process_index() == 0:
        try:
            lock = folder.Lock(workdir)
        except ConfigError as error:
            failure = error
    if not parallel.everywhere(failure is None):
        raise failure or ConfigError(f"{workdir} is in use by another run; process 1 says which.")
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _locked(config: ConfigDict, workdir: Path) -> dict[str, float]:
    built = build(config, previous_stage(config, workdir))
    noted = checkpoint.check_config(workdir, json.loads(config.to_json()))
    state = initial_state(built, config)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    restored = checkpoints.restore(state)
    log = metrics.Metrics(
        workdir, built.run.total_steps, 0 if restored is None else int(restored.step)
    )
    parallel.everywhere(
        True
    )  # no process reads the log before process 0 has cut off what this run will write again
    if noted:
        log.say("settings that differ from those of the run so far:\n" + "\n".join(noted))
    with contextlib.closing(checkpoints), contextlib.closing(log):
        return _train(config, workdir, built, state, restored, checkpoints, log)


def _train(
    config: ConfigDict,
    workdir: Path,
    built: Built,
    state: State,
    restored: State | None,
    checkpoints: checkpoint.Checkpoints,
    log: metrics.Metrics,
) -> dict[str, float]:
    method, run = built.method, built.run
    log.say(describe(config, built, state))
    evaluator = evaluation_of(built, config, workdir)
    evaluator.check(state)
    logged = list(log.rows)
    scores = [(row["step"], evaluator.score(row)) for row in logged]
    history = [(step, score) for step, score in scores if score is not None]
    if restored is not None:
        state = restored
        log.say(f"resuming at step {int(state.step)} of {run.total_steps}")
    compares = config.evals.baselines and not any(row["step"] == 0 for row in logged)
    steps = stepper(built, config, int(state.step))
    eval_steps = (
        max(1, round(config.evals.every_epochs * run.steps_per_epoch))
        if config.evals.every_epochs
        else 0
    )
    pending = _Pending(config, built, log, steps)
    pending.skipped = max(
        (int(row["skipped_steps"]) for row in logged if "skipped_steps" in row), default=0
    )
    results: dict[str, float] = {}
    with _Stop() as stop:
        while steps.step < run.total_steps:
            try:
                at = steps.step
                if method.refresh is not None and at % run.steps_per_epoch == 0:
                    pending.flush()
                    state = method.refresh(
                        state, lambda f: evaluator.encode_all(f, state), at // run.steps_per_epoch
                    )
                    pending.restart_clock()
                state, values = steps.advance(
                    state, _next_event(at, run, eval_steps, config.checkpoint_steps)
                )
                pending.add(at, values)
                done, last, stopping = steps.step, steps.step == run.total_steps, stop.asked()
                evaluates = last or (eval_steps and done % eval_steps == 0)
                saves = stopping or (
                    config.checkpoint_steps and done % config.checkpoint_steps == 0
                )
                if evaluates or saves:
                    pending.flush()  # nothing is saved before it was seen to be finite
                elif done // config.log_steps > at // config.log_steps:
                    pending.log()
            except NonFinite as bad:
                if config.nonfinite == "stop" or pending.skipped < KEPT:
                    log.say(replay.keep(workdir, state, bad.record))
                if config.nonfinite == "stop":
                    raise
                if pending.in_a_row == IN_A_ROW:
                    raise FloatingPointError(
                        f"{IN_A_ROW} steps in a row left out: skipping does not help. {bad}"
                    ) from bad
                log.say(f"skipping {bad}")
                state = steps.skip(state)
                pending.forget(bad.step)
                continue
            if evaluates:
                checkpoints.save(state)
                if compares:  # as late as they are needed: training starts sooner
                    log.write(0, evaluator.baselines(initial_state(built, config)))
                    compares = False
                results = evaluator.measure(state, final=last)
                log.write(done, results)
                if log.active:
                    log.say(str(diagnosis.diagnose(log.rows, config.total_epochs)))
                score = evaluator.score(results)
                best = score is not None and all(score > s for _, s in history)
                if score is not None:
                    history.append((done, score))
                if best:
                    checkpoints.save_best(state, score)
                pending.restart_clock()
            elif saves:
                checkpoints.save(state)
            if stopping and not last:
                raise Interrupted(
                    f"stopped at step {done} of {run.total_steps}; the same command resumes there."
                )
    if not results:
        results = evaluator.measure(state, final=True)
    rows = log.rows
    evaluator.draw(state)
    if jax.process_index() == 0 and evaluator.best:
        evaluation.draw_curve(workdir, built.evaluators, rows, evaluator.best)
    log.say(evaluation.summary(built.evaluators, rows))
    return results


def evaluation_of(built: Built, config: ConfigDict, workdir: str | Path) -> Evaluation:
    """The evaluation of a run's States."""
    return Evaluation(
        built.evaluators, built.method, built.data, built.mesh, config, workdir, built.views
    )


def _next_event(step: int, run: Run, *periods: int) -> int:
    """The first step after `step` at which the loop has something to do between steps."""
    return min(
        [
            run.total_steps,
            *(
                (step // period + 1) * period
                for period in (run.steps_per_epoch, *periods)
                if period
            ),
        ]
    )


def evaluate(workdir: str | Path, config: ConfigDict | None = None) -> dict[str, float]:
    """Measures the newest State of a run in every way; prints the figures and writes `eval.json`.

    `config` may change the settings of the evaluation; None for the run's own. See
    `stages.load`.
    """
    config, built, state = load(workdir, config)
    evaluator = evaluation_of(built, config, workdir)
    evaluator.check(state)
    results = evaluator.measure(state, final=True, asked=True)
    evaluator.draw(state)
    if jax.process_index() == 0:
        (Path(workdir) / "eval.json").write_text(
            json.dumps({"step": int(state.step), **results}, indent=2) + "\n"
        )
        print("\n".join(f"{name:<28} {value:.4f}" for name, value in sorted(results.items())))
    return results


class NonFinite(FloatingPointError):
    """A loss or gradient that is no number; the State in hand is the one before that step."""

    def __init__(
        self, step: int, row: dict[str, np.ndarray], ids: np.ndarray, record: dict[str, Any]
    ):
        super().__init__(
            f"step {step + 1}: loss {row['loss']}, gradient norm {row.get('grad_norm')}. Batch "
            f"ids: "
            f"{np.array2string(ids, threshold=32)}. The newest checkpoint is of a step before "
            f"this one. Likely causes: a "
            "learning rate too high, a temperature too low; lower it, or leave such steps out "
            "with --config.nonfinite=skip."
        )
        self.step, self.ids, self.record = (
            step,
            ids,
            record,
        )  # the record is what `cl_jax.checks.replay` reads


class _Pending:
    """Metrics on their way from the device. They are read one logging interval late, so that no
    step waits for the host."""

    def __init__(self, config: ConfigDict, built: Built, log: metrics.Metrics, steps: Stepper):
        self.config, self.built, self.log_to, self.steps = config, built, log, steps
        # Intervals: when they ended, where that is known already, seconds of waiting for data,
        # metrics.
        self.closed: list[tuple[float | None, float, list[tuple[int, Any]]]] = []
        self.current: list[tuple[int, Any]] = []  # (first step, metrics [steps])
        self.skipped = self.in_a_row = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        self.since, self.waited = time.perf_counter(), self.steps.wait_seconds

    def add(self, first: int, values: Any) -> None:
        if self.steps.compile_seconds and not self.current and not self.closed:
            self.restart_clock()  # the first dispatch compiled
        self.current.append((first, values))

    def log(self) -> None:
        """Closes an interval and writes the one before it."""
        self._close()
        while len(self.closed) > 1:
            self._write()

    def flush(self) -> None:
        """Writes all there is; waits for the device."""
        self._close()
        while self.closed:
            self._write()

    def forget(self, step: int) -> None:
        """Drops what came after a step that is left out."""
        self.closed, self.current, self.skipped, self.in_a_row = (
            [],
            [],
            self.skipped + 1,
            self.in_a_row + 1,
        )
        self.log_to.write(step + 1, {"skipped_steps": self.skipped})
        self.restart_clock()

    def _close(self) -> None:
        if self.current:
            done = self.current[-1][1][
                "loss"
            ].is_ready()  # as on a CPU, where a step is done when it is dispatched
            self.closed.append(
                (time.perf_counter() if done else None, self.steps.wait_seconds, self.current)
            )
            self.current = []

    def _write(self) -> None:
        ended, waited, interval = self.closed.pop(0)
        values = {
            name: np.concatenate(parts)
            for name, parts in _columns([parallel.fetch(part) for _, part in interval]).items()
        }
        numbers = np.concatenate(
            [np.arange(first, first + len(part["loss"])) for first, part in interval]
        )
        bad = metrics.first_bad(values)
        if bad is not None and self.config.nonfinite != "ignore":
            step, row = int(numbers[bad]), {name: column[bad] for name, column in values.items()}
            together = next(
                len(part["loss"])
                for first, part in interval
                if first <= step < first + len(part["loss"])
            )
            ids = self.steps.ids(step)
            raise NonFinite(
                step, row, ids, replay.record(self.config, self.built, step, row, ids, together)
            )
        self.in_a_row = 0
        now, run = ended or time.perf_counter(), self.built.run
        elapsed = max(now - self.since, 1e-9)
        rate = len(numbers) / elapsed
        row = {name: float(np.mean(column)) for name, column in values.items()} | {
            "learning_rate": float(self.built.learning_rate(int(numbers[-1]))),
            "epoch": (numbers[-1] + 1) / run.steps_per_epoch,
            "images_per_second": rate * run.batch_size,
            "data_wait": (waited - self.waited) / elapsed,
        }
        peak = peak_flops(self.built.mesh.devices.flat[0].device_kind, dtype_of(self.config))
        if peak and self.steps.flops > 0:
            row["mfu"] = rate * self.steps.flops / peak
        self.log_to.write(int(numbers[-1]) + 1, row)
        self.since, self.waited = now, waited


def _columns(rows: list[dict[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


class _Stop:
    """Turns SIGTERM, or a maintenance notice, into an answer that all processes give at the same
    step."""

    def __init__(self) -> None:
        self.told, self.calls = False, 0

    def asked(self) -> bool:
        """Once per dispatch, on every process."""
        self.calls += 1
        if jax.process_count() > 1:
            # jax.distributed catches the signal itself and lets the processes agree on the
            # dispatch, which it names once.
            from jax.experimental import multihost_utils

            self.told |= multihost_utils.reached_preemption_sync_point(self.calls)
        return self.told

    def __enter__(self) -> "_Stop":
        self.ours = (
            jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        )
        if self.ours:
            self.before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def _tell(self, *_: Any) -> None:
        logging.warning("SIGTERM: saving after this step")
        self.told = True

    def __exit__(self, *_: Any) -> None:
        if self.ours:
            signal.signal(signal.SIGTERM, self.before)
