"""The loop: restore, step, log, save, refresh, evaluate. It names no method."""

import contextlib
import dataclasses
import json
import secrets
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cl_jax.checks import diagnosis, replay
from cl_jax.core import heap, parallel, settings
from cl_jax.core.errors import ConfigError, NotFoundError, SaveError, WithoutEffect
from cl_jax.core.method import Run, State
from cl_jax.core.names import some
from cl_jax.evals import summary
from cl_jax.evals.evaluation import Evaluation
from cl_jax.training import (
    checkpoint,
    configs,
    fingerprint,
    metrics,
    rebuilding,
    resuming,
    stopping,
    trackers,
)
from cl_jax.training import workdir as folder
from cl_jax.training.experiment import (
    Built,
    Start,
    build,
    describe,
    initial_state,
    shape_of_state,
)
from cl_jax.training.pending import NonFinite, Pending
from cl_jax.training.stages import leeway_of, load, previous_stage, stages
from cl_jax.training.steps import refreshed, stepper
from cl_jax.training.stopping import Interrupted, Stop
from cl_jax.weights import importing

__all__ = [
    "Interrupted",
    "NonFinite",
    "build",
    "evaluate",
    "initial_state",
    "load",
    "stages",
    "stepper",
    "train",
]

KEPT = 3  # skipped steps of a run of which `cl_jax.checks.replay` can tell
# steps skipped in a row after which skipping will not help: the parameters themselves are at fault
IN_A_ROW = 20


def train(config: ConfigDict, workdir: str | Path, stop: Stop | None = None) -> dict[str, float]:
    """Runs one stage to its end, from its newest checkpoint if there is one; returns the final
    evaluation.

    Args:
      config: of one stage (`stages`).
      workdir: of the stage.
      stop: listens for signals; None to listen while this function runs.

    Raises:
      Interrupted: a signal came; the State was saved.
      ConfigError: a mistake in the config or the workdir.
      NonFinite, checkpoint.NonFiniteState: a loss, a gradient or the State is NaN or inf.
      SaveError: a checkpoint could not be written.
    """
    settings.check_value("nonfinite", config.nonfinite, str)
    trackers.check(config.get("log", {}))
    workdir = folder.path_of(workdir)
    if jax.process_index() == 0:
        folder.make(workdir)
    listening = Stop() if stop is None else contextlib.nullcontext(stop)
    with listening as stop, locked(workdir):
        stop.nothing_to_lose("while starting")
        check_shared(workdir)
        return _train(config, workdir, stop)


def _train(config: ConfigDict, workdir: Path, stop: Stop) -> dict[str, float]:
    there = rebuilding.as_begun(config, workdir)
    built = build(there, previous_stage(config, workdir))
    noted = resuming.check_config(workdir, configs.plain(config), leeway_of(workdir, config))
    noted += fingerprint.check(workdir, config, built.data)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    restored = checkpoints.restore(lambda: shape_of_state(built))
    started = Start(built, config)
    if restored is None:
        with warnings.catch_warnings():  # of what earlier versions did in silence
            warnings.simplefilter("error", WithoutEffect)
            state = start_state(started, config)
    else:
        state = restored
    start = int(state.step)
    log = metrics.Metrics(workdir, built.run.total_steps, start, configs.plain(config))
    with contextlib.closing(checkpoints), contextlib.closing(log), _leaving_with_the_message():
        log.say(describe(config, built, state, begins=start == 0))
        if noted:
            log.say("Other than before in this workdir:\n" + "\n".join(noted))
        training = Training(config, workdir, built, checkpoints, log, stop, start, started)
        del started  # the program is kept where baselines are still to be measured
        training.evaluation.check(state)
        if restored is not None:
            log.say(f"resuming at step {start} of {built.run.total_steps}")
        return training.run(state)


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


def check_shared(workdir: Path) -> None:
    """Checks that all processes of a job see one workdir. Each saves its part of a checkpoint
    there, and process 0 declares the checkpoint complete. A folder in which process 0 cannot write,
    of which only an evaluation can be, is not checked.

    Raises:
      ConfigError: on every process, if one of them does not see a file that process 0 made.
    """
    if jax.process_count() == 1:
        return
    number = parallel.from_each(np.int32(secrets.randbelow(1 << 31)))[0]
    mark, first = workdir / f".job_{number}", jax.process_index() == 0
    made = False
    if first:
        with contextlib.suppress(OSError):
            mark.touch()
            made = True
    if not parallel.from_each(made)[0]:
        return
    seen = parallel.from_each(first or folder.appears(mark))
    if first:
        mark.unlink(missing_ok=True)
    if not seen.all():
        raise ConfigError(
            f"workdir={workdir} is not one folder for all processes: "
            f"{some([f'process {i + 1}' for i in np.flatnonzero(~seen)], 5)} of {len(seen)} cannot "
            "see there what process 1 writes, and every process saves its part of a checkpoint. "
            "Give a folder of a disk that all machines share, such as an NFS mount."
        )


@contextlib.contextmanager
def _leaving_with_the_message() -> Iterator[None]:
    """In a job of several processes, names the one that fails at once, and lets it end soon: what
    it would wait for while it closes its files, the others, wait for it."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            logging.error(
                "process %d of %d failed: %s: %s",
                jax.process_index() + 1,
                jax.process_count(),
                type(error).__name__,
                error,
            )
            stopping.leave_within(stopping.PATIENCE, 1)
        raise


class Training:
    """The steps of one run, and what is done between them."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        built: Built,
        checkpoints: checkpoint.Checkpoints,
        log: metrics.Metrics,
        stop: Stop,
        start: int,
        started: Start,
    ):
        self.config, self.workdir, self.built = config, workdir, built
        self.checkpoints, self.log, self.stop = checkpoints, log, stop
        self.evaluation = evaluation_of(built, config, workdir, stop.check)
        self.steps = stepper(built, config, start)
        self.pending = Pending(config, built, log, self.steps)
        every = config.evals.every_epochs
        self.eval_steps = max(1, round(every * built.run.steps_per_epoch)) if every else 0
        self.last = built.run.total_steps
        baselines = config.evals.baselines and not any(row["step"] == 0 for row in log.rows)
        self.baselines = started if baselines else None  # what makes the State that they are of

    def run(self, state: State) -> dict[str, float]:
        """From a State to the end; returns the figures of the last evaluation."""
        step = self.steps.step
        if step == self.last and self._evaluated(step):
            self.log.say(
                f"the run has ended; these are the figures of its log. "
                f"`cl-jax eval --workdir={self.workdir}` measures again."
            )
            self._keep_best(state, step)
            self._say_the_end()
            return self._evaluated(step)
        if step and self._evaluates(step):  # it may have been killed after the save
            self.stop.nothing_to_lose(f"at step {step} of {self.last}")
            if not self._evaluated(step):
                self._evaluate(state, step)
            self._keep_best(state, step)
        self.pending.restart_clock()
        while self.steps.step < self.last:
            state, told = self._advance(state)
            if not told:  # the end of a process waits for its threads
                self.evaluation.compile_ahead(state)
            self._between(state, self.steps.step, told)
        self._draw(state)
        self._say_the_end()
        return self._evaluated(self.last)

    def _advance(self, state: State) -> tuple[State, bool]:
        """The State after the next dispatch, or after a step that was skipped, and whether the run
        is to stop."""
        at, told = self.steps.step, False
        try:
            state = self._refreshed(state, at)
            until = _next_event(at, self.built.run, self.eval_steps, self.config.checkpoint_steps)
            state, values = self.steps.advance(state, until)
            self.stop.work()
            told = self.stop.asked()
            self.pending.add(at, values)
            done, each = self.steps.step, self.config.log_steps
            if told or self._evaluates(done) or self._saves(done):
                self.pending.flush()  # nothing is saved before it is known to be finite
            elif done // each > at // each:
                self.pending.log()
        except NonFinite as bad:
            state = self._skipped(state, bad)
        return state, told

    def _refreshed(self, state: State, at: int) -> State:
        """The State after the method's work before an epoch, where one begins."""
        method, epoch = self.built.method, self.built.run.steps_per_epoch
        if method.refresh is None or at % epoch:
            return state
        self.pending.flush()
        try:
            after = refreshed(
                method.refresh, state, lambda f: self.evaluation.encode_all(f, state), at // epoch
            )
        except Interrupted:  # between two blocks of examples: the State before the epoch is whole
            if not self.stop.safe:
                self._save(state, wait=True)
            self.stop.where = f"at step {at} of {self.last}"
            raise self.stop.interrupted() from None
        self.pending.restart_clock()
        return after

    def _skipped(self, state: State, bad: NonFinite) -> State:
        skips, pending = self.config.nonfinite == "skip", self.pending
        if not skips or pending.skipped < KEPT:
            try:  # Orbax mixes up two saves of one process that begin at the same time
                self.checkpoints.wait()
            except SaveError as error:
                self.log.say(str(error))
            self.log.say(replay.keep(self.workdir, state, bad.record))
        if not skips:
            raise bad
        if pending.in_a_row_with(bad.step) > IN_A_ROW:
            raise FloatingPointError(
                f"{IN_A_ROW} steps in a row were skipped: skipping does not help. {bad}"
            ) from bad
        self.log.say(f"skipping {bad}")
        pending.forget(bad.step)
        state = self.steps.skip(state)
        if self.steps.step % self.config.log_steps == 0:
            pending.log()
        return state

    def _between(self, state: State, step: int, told: bool) -> None:
        """Saves and evaluates, where it is time."""
        evaluates = self._evaluates(step)
        if not (told or evaluates or self._saves(step)):
            self.checkpoints.check()
            return
        self.pending.flush()
        self._save(state, wait=told or evaluates)
        where = f"at step {step} of {self.last}"
        if told:
            self.stop.where = where
            raise self.stop.interrupted()
        if evaluates:
            self.stop.nothing_to_lose(where)
            self._evaluate(state, step)
            self._keep_best(state, step)
        self.pending.restart_clock()

    def _save(self, state: State, wait: bool) -> None:
        self.stop.saving = True
        try:
            self.checkpoints.save(state)
            if wait:
                self.checkpoints.wait()
        except checkpoint.NonFiniteState as error:
            if self.config.nonfinite != "ignore":
                raise
            self.log.say(str(error))
        finally:
            self.stop.saving = False

    def _evaluate(self, state: State, step: int) -> None:
        log, total_epochs = self.log, self.config.total_epochs
        if self.baselines is not None:  # as late as they are needed: training starts sooner
            if found := self._baselines(self.baselines):
                log.write(0, found)
            self.baselines = None
            heap.give_back()  # before the features of the State
        log.write(step, self.evaluation.measure(state, final=step == self.last))
        log.say(str(diagnosis.diagnose(log.rows, total_epochs)))
        heap.give_back()  # of compiled programs and features

    def _baselines(self, started: Start) -> dict[str, float]:
        try:
            state = dataclasses.replace(start_state(started, self.config), opt=None)
        except NotFoundError as error:  # a resumed run needs the files it began from for this alone
            self.log.say(f"without the figures of the untrained network: {error}")
            return {}
        return self.evaluation.baselines(state)

    def _keep_best(self, state: State, step: int) -> None:
        """Saves the State as the best one where its evaluation, which is in the log, says so and
        that was not done before."""
        scores = {
            int(row["step"]): score
            for row in self.log.rows
            if row["step"] and (score := self.evaluation.score(row)) is not None
        }
        score = scores.pop(step, None)
        best = score is not None and not any(
            other >= score for at, other in scores.items() if at < step
        )
        # All must save, or none: a process may see the folder of another late, and what it measures
        # may differ in the last digits.
        if not parallel.everywhere(best and self.checkpoints.best_step() != step) or score is None:
            return
        safe, self.stop.safe, self.stop.saving = self.stop.safe, False, True
        try:
            self.checkpoints.save_best(state, score)
        except checkpoint.NonFiniteState as error:
            if self.config.nonfinite != "ignore":
                raise
            self.log.say(str(error))
        finally:
            self.stop.safe, self.stop.saving = safe, False

    def _draw(self, state: State) -> None:
        """Pictures: nothing is lost where one cannot be drawn."""
        try:
            self.evaluation.draw(state)
            if jax.process_index() == 0 and self.evaluation.best:
                summary.draw_curve(
                    self.workdir, self.built.evaluators, self.log.rows, self.evaluation.best
                )
        except Exception as error:
            self.log.say(f"a picture could not be drawn: {type(error).__name__}: {error}")
            logging.debug("traceback", exc_info=True)

    def _say_the_end(self) -> None:
        self.log.say(summary.text(self.built.evaluators, self.log.rows))
        self.log.say(where_things_are(self.workdir))

    def _evaluates(self, step: int) -> bool:
        return step == self.last or bool(self.eval_steps and step % self.eval_steps == 0)

    def _saves(self, step: int) -> bool:
        each = self.config.checkpoint_steps
        return bool(each and step % each == 0)

    def _evaluated(self, step: int) -> dict[str, float]:
        """The figures of the evaluation of a step, from the log; empty where there is none."""
        for row in self.log.rows:
            if row["step"] == step and not row.keys() & {"learning_rate", "skipped_steps"}:
                return {name: row[name] for name in row if name not in ("step", "time")}
        return {}


def start_state(started: Start, config: ConfigDict) -> State:
    """The State of step 0, with the weights of `init_from` where the config has one."""
    state, path = started(), config.get("init_from", "")
    return importing.start(state, path, config.encoder) if path else state


def where_things_are(workdir: Path) -> str:
    """What a run leaves in its workdir, and what to do with it."""
    pictures = ", ".join(sorted(path.name for path in workdir.glob("*.png")))
    place = shlex.quote(str(workdir))
    return "\n".join(
        (
            f"in {workdir}: metrics.jsonl"
            + " and tensorboard" * (workdir / "tensorboard").is_dir()
            + " (figures), last and best (checkpoints)"
            + (f", {pictures}" if pictures else ""),
            f"next: cl-jax eval --workdir={place}, cl-jax report {place} (a page to look at), "
            f"cl-jax embed {place} (features, for cl-jax search and label), cl-jax export {place} "
            "(weights for other libraries)",
        )
    )


def evaluation_of(
    built: Built,
    config: ConfigDict,
    workdir: str | Path,
    between: Callable[[], None] = lambda: None,
) -> Evaluation:
    """The evaluation of a run's States; `between` is called after each block of examples."""
    return Evaluation(
        built.evaluators,
        built.method,
        built.data,
        built.mesh,
        config,
        workdir,
        built.views,
        between,
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

    Raises:
      NotFoundError, ConfigError: as `stages.load`. The processes of a job do not see one workdir.
    """
    check_shared(folder.path_of(workdir))
    config, built, state = load(workdir, config)
    evaluator = evaluation_of(built, config, folder.path_of(workdir))
    evaluator.check(state)
    results = evaluator.measure(state, final=True, asked=True)
    if jax.process_index() == 0:
        print("\n".join(f"{name:<28} {value:.4f}" for name, value in sorted(results.items())))
        try:
            folder.replace_text(
                folder.path_of(workdir) / "eval.json",
                json.dumps({"step": int(state.step), **results}, indent=2) + "\n",
            )
        except SaveError as error:
            logging.warning("%s", error)
    try:
        evaluator.draw(state)
    except Exception as error:
        logging.warning("a picture could not be drawn: %s: %s", type(error).__name__, error)
    return results
