"""The end of a run, by itself, by a signal or by a fault: what is saved then, and what the same
command does afterwards."""

import dataclasses
import functools
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.training import checkpoint, loop, metrics, pending, stopping
from cl_jax.training.steps import Stepper
from configs import simclr_v1
from tests import small
from tests.training.test_resume import CLOCK, Died, assert_same

LAST, EPOCH = 12, 3
SCORES = {3: 0.1, 6: 0.5, 9: 0.2, 12: 0.3}  # of the evaluations: the best is in the middle


def debug():
    config = loop.stages(simclr_v1.get_config("debug"), "unused")[0][1]
    config.update({"devices": 1, "log_steps": 1, "total_epochs": LAST / EPOCH})
    config.evals.update({"every_epochs": 1.0, "baselines": False})
    return config


@pytest.fixture
def config():
    return debug()


@pytest.fixture(scope="module")
def programs():
    """Those that the runs of this module share."""
    return {}


def epochal(config, previous):
    return small.epochal(config)


def recorded(monkeypatch, programs):
    """What is called between steps, in order; the method is small, evaluations are tables."""
    calls = []

    def measure(_, state, final=False):
        calls.append(("evaluate", int(state.step)))
        return {"knn/top1": SCORES[int(state.step)]}

    def save(self, state, save=checkpoint.Checkpoints.save):
        save(self, state)
        calls.append(("save", int(state.step)))

    small.share_programs(monkeypatch, programs)
    monkeypatch.setattr(loop, "build", epochal)
    monkeypatch.setattr(loop.Evaluation, "measure", measure)
    monkeypatch.setattr(loop.Evaluation, "score", lambda _, row: row.get("knn/top1"))
    monkeypatch.setattr(loop.Evaluation, "draw", lambda *_: calls.append(("draw", LAST)))
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    return calls


@pytest.fixture
def calls(monkeypatch, programs):
    return recorded(monkeypatch, programs)


def kept(workdir, name="last"):
    return sorted(int(path.name) for path in (workdir / name).glob("*") if path.name.isdigit())


def ended(workdir, config):
    """(the State of the newest checkpoint, the log without clocks)."""
    store = checkpoint.Checkpoints(workdir)
    state = parallel.fetch(store.restore(loop.initial_state(small.epochal(config), config)))
    store.close()
    rows = [{name: row[name] for name in row.keys() - CLOCK} for row in metrics.read(workdir)]
    return state, rows


def assert_ends_as(whole, cut, config):
    state, rows = ended(cut, config)
    assert_same(whole[0], state, "after the resume")
    assert rows == whole[1] and kept(cut, "best") == [6]


@pytest.fixture(scope="module")
def whole(programs, tmp_path_factory):
    """How an undisturbed run ends; its best State is that of step 6."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        recorded(patch, programs)
        loop.train(debug(), workdir)
        assert kept(workdir, "best") == [6]
        return ended(workdir, debug())


def once(function):
    """Calls the function the first time only."""
    left = [function]
    return lambda: left.pop()() if left else None


# What comes after the last step --------------------------------------


def test_a_run_saves_then_evaluates_then_draws(config, calls, tmp_path, capsys):
    config.evals.every_epochs = 0.0
    assert loop.train(config, tmp_path)["knn/top1"] == SCORES[LAST]
    assert calls == [("save", LAST), ("evaluate", LAST), ("draw", LAST)]
    said = capsys.readouterr().err
    assert f"in {tmp_path}: metrics.jsonl" in said and "next: cl-jax eval --workdir=" in said
    calls.clear()
    assert loop.train(config, tmp_path)["knn/top1"] == SCORES[LAST]  # of the log
    assert calls == []


def test_an_evaluation_that_fails_costs_no_step(config, calls, tmp_path, monkeypatch):
    config.evals.every_epochs = 0.0
    measure = loop.Evaluation.measure

    def fails(*_, **__):
        assert kept(tmp_path) == [LAST]
        raise ValueError("more neighbours than images")

    monkeypatch.setattr(loop.Evaluation, "measure", fails)
    with pytest.raises(ValueError, match="more neighbours"):
        loop.train(config, tmp_path)
    monkeypatch.setattr(loop.Evaluation, "measure", measure)
    monkeypatch.setattr(Stepper, "advance", None)
    assert loop.train(config, tmp_path)["knn/top1"] == SCORES[LAST]
    assert kept(tmp_path, "best") == [LAST]


@pytest.mark.parametrize("where", ["draw", "curve"])
def test_a_picture_that_cannot_be_drawn_is_a_warning(
    where, config, calls, tmp_path, monkeypatch, capsys
):
    def fails(*_):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(loop.Evaluation, "best", "knn/top1")
    if where == "draw":
        monkeypatch.setattr(loop.Evaluation, "draw", fails)
    else:
        monkeypatch.setattr(loop.summary, "draw_curve", fails)
    assert loop.train(config, tmp_path)["knn/top1"] == SCORES[LAST]
    assert "a picture could not be drawn: PermissionError" in capsys.readouterr().err


def test_what_the_evaluators_lack_is_found_before_the_first_step(config, tmp_path, monkeypatch):
    """By the real check: of a method that has no such feature."""
    monkeypatch.setattr(loop, "build", epochal)
    monkeypatch.setattr(Stepper, "advance", None)
    config.evals.feature = "hh"
    with pytest.raises(ValueError, match=r"feature 'hh'.*did you mean 'h'"):
        loop.train(config, tmp_path)


# Signals --------------------------------------


def send(number):
    os.kill(os.getpid(), number)


def at_step(monkeypatch, step, function):
    """Calls a function before the dispatch of a step, once."""
    advance, call = Stepper.advance, once(function)

    def wrapped(self, state, until):
        if self.step == step:
            call()
        return advance(self, state, until)

    monkeypatch.setattr(Stepper, "advance", wrapped)


@pytest.mark.parametrize("number", stopping.SIGNALS, ids=lambda number: number.name)
def test_a_signal_at_a_step_saves_and_the_same_command_resumes(
    number, config, calls, whole, tmp_path, monkeypatch
):
    cut = tmp_path / "cut"
    at_step(monkeypatch, 4, lambda: send(number))
    with pytest.raises(
        loop.Interrupted,
        match=f"{number.name}: stopped at step 5 of 12; the same command resumes there",
    ):
        loop.train(config, cut)
    assert calls[-1] == ("save", 5) and kept(cut)[-1] == 5
    loop.train(config, cut)
    assert_ends_as(whole, cut, config)


@pytest.mark.parametrize("at", [6, LAST])
def test_a_signal_in_an_evaluation_is_answered_at_once(
    at, config, calls, whole, tmp_path, monkeypatch
):
    measure, cut = loop.Evaluation.measure, tmp_path / "cut"

    def stops(evaluation, state, final=False):
        if int(state.step) == at:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(20)
        return measure(evaluation, state, final)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Evaluation, "measure", stops)
        began = time.monotonic()
        with pytest.raises(loop.Interrupted, match=f"stopped at step {at} of 12"):
            loop.train(config, cut)
        assert time.monotonic() - began < 10
    assert kept(cut)[-1] == at and not (cut / "lock").exists()
    calls.clear()
    loop.train(config, cut)
    assert calls[0] == ("evaluate", at)  # the one that was broken off
    assert_ends_as(whole, cut, config)


def test_a_signal_at_the_step_of_an_evaluation_does_not_wait_for_it(
    config, calls, whole, tmp_path, monkeypatch
):
    at_step(monkeypatch, 5, lambda: send(signal.SIGTERM))
    with pytest.raises(loop.Interrupted):
        loop.train(config, tmp_path / "cut")
    assert calls[-1] == ("save", 6)
    loop.train(config, tmp_path / "cut")
    assert_ends_as(whole, tmp_path / "cut", config)


def test_a_signal_in_the_work_before_an_epoch_saves_the_state_before_it(
    config, calls, whole, tmp_path, monkeypatch
):
    config.evals.every_epochs = 0.0
    loop.train(config, tmp_path / "plain")
    rows, tell = loop.Evaluation.rows, once(lambda: send(signal.SIGTERM))

    def in_blocks(evaluation, f, state, source, batch_size=0):
        if int(state.step) == 6:
            tell()
        return rows(evaluation, f, state, source, batch_size)

    monkeypatch.setattr(loop.Evaluation, "rows", in_blocks)
    with pytest.raises(loop.Interrupted, match="stopped at step 6"):
        loop.train(config, tmp_path / "cut")
    assert kept(tmp_path / "cut") == [6]
    loop.train(config, tmp_path / "cut")
    state, rows = ended(tmp_path / "cut", config)
    plain = ended(tmp_path / "plain", config)
    assert_same(plain[0], state, "same")
    assert rows == plain[1]


def test_a_signal_while_a_run_starts_ends_it_at_once(config, calls, tmp_path, monkeypatch):
    def build(*_):
        send(signal.SIGTERM)
        raise AssertionError("went on")

    monkeypatch.setattr(loop, "build", build)
    with pytest.raises(loop.Interrupted, match="SIGTERM: stopped while starting"):
        loop.train(config, tmp_path)


def test_more_signals_do_not_break_the_save(config, calls, tmp_path, monkeypatch):
    """SIGTERM and SIGHUP as often as they like, one more Ctrl-C."""
    config.evals.every_epochs = 0.0
    at_step(monkeypatch, 4, lambda: send(signal.SIGINT))
    wait = checkpoint.Checkpoints.wait

    def disturbed(self):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            send(number)
        if kept(tmp_path)[-1:] != [5]:
            again()
        wait(self)

    again = once(lambda: send(signal.SIGINT))
    monkeypatch.setattr(checkpoint.Checkpoints, "wait", disturbed)
    with pytest.raises(loop.Interrupted, match="SIGINT: stopped at step 5"):
        loop.train(config, tmp_path)
    assert kept(tmp_path)[-1] == 5


def test_the_second_ctrl_c_ends_a_long_step(config, calls, tmp_path, monkeypatch, capfd):
    def twice():
        send(signal.SIGINT)
        send(signal.SIGINT)
        raise AssertionError("went on")

    at_step(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt) as ended:
        loop.train(config, tmp_path)
    assert not isinstance(ended.value, loop.Interrupted)
    said = capfd.readouterr().err
    assert "SIGINT: saving after this step" in said and "Ctrl-C once more ends at once" in said


def test_handlers_are_put_back_and_ignored_signals_stay_ignored(config, calls, tmp_path):
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stopping.Stop():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != before[0]
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert before == [signal.getsignal(number) for number in stopping.SIGNALS]


# Kills between two saves --------------------------------------


@pytest.mark.parametrize("at", [3, pytest.param(6, marks=pytest.mark.slow), LAST])
@pytest.mark.parametrize("where", ["before the evaluation", "before the best is saved"])
def test_a_kill_between_a_save_and_what_follows_it_loses_no_best(
    where, at, config, calls, whole, tmp_path, monkeypatch
):
    cut, name = tmp_path / "cut", "measure" if where == "before the evaluation" else "save_best"
    owner = loop.Evaluation if name == "measure" else checkpoint.Checkpoints
    function = getattr(owner, name)

    def dies(self, state, *given, **named):
        if int(state.step) == at:
            raise Died
        return function(self, state, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        if where == "before the best is saved" and at == LAST:
            loop.train(config, cut)  # it is not the best one
        else:
            with pytest.raises(Died):
                loop.train(config, cut)
    loop.train(config, cut)
    assert_ends_as(whole, cut, config)


# What is not finite --------------------------------------


def bad_at(*steps):
    """The method, whose loss is NaN at some steps; the State says at which, so that one program
    serves all."""
    return functools.partial(poisoned_losses, steps)


def poisoned_losses(steps, config, previous):
    built = small.epochal(config)
    inner = built.method

    def init(key, batch):
        state = inner.init(key, batch)
        return dataclasses.replace(state, memory=state.memory | {"bad": jnp.zeros(64, bool)})

    def begin(state):
        bad = np.isin(np.arange(64), steps)
        return dataclasses.replace(state, memory=state.memory | {"bad": bad})

    def update(state, batch, key):
        bad = state.memory["bad"]
        after, values = inner.update(state, batch, key)
        after = dataclasses.replace(after, memory=after.memory | {"bad": bad})
        return after, values | {"loss": jnp.where(bad[state.step], jnp.nan, values["loss"])}

    method = dataclasses.replace(inner, init=init, begin=begin, update=update)
    return built._replace(method=method)


@pytest.mark.parametrize("step", [LAST - 1, 5])
def test_a_skipped_step_at_an_event_drops_neither_save_nor_evaluation(
    step, config, calls, tmp_path, monkeypatch
):
    """The last step, and the last one before an evaluation."""
    config.nonfinite = "skip"
    monkeypatch.setattr(loop, "build", bad_at(step))
    loop.train(config, tmp_path)
    assert [at for what, at in calls if what == "evaluate"] == [3, 6, 9, LAST]
    assert kept(tmp_path)[-1] == LAST and kept(tmp_path, "best") == [6]
    rows = metrics.read(tmp_path)
    assert [row["step"] for row in rows if "skipped_steps" in row] == [step + 1]


@pytest.mark.parametrize("log_steps", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_steps_before_a_skipped_one_are_logged(log_steps, config, calls, tmp_path, monkeypatch):
    """Every second step is bad: no two in a row, so the run ends, and its log has the losses."""
    config.update({"nonfinite": "skip", "log_steps": log_steps, "total_epochs": 20.0})
    config.evals.every_epochs = 0.0
    monkeypatch.setitem(SCORES, 60, 0.1)
    monkeypatch.setattr(loop, "build", bad_at(*range(1, 60, 2)))
    loop.train(config, tmp_path)
    rows = metrics.read(tmp_path)
    assert [row["skipped_steps"] for row in rows if "skipped_steps" in row] == [*range(1, 31)]
    logged = [row for row in rows if "loss" in row]
    assert len(logged) >= 30 // log_steps and all(np.isfinite(row["loss"]) for row in logged)


def test_twenty_in_a_row_are_counted_over_a_resume(config, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "IN_A_ROW", 4)
    config.nonfinite = "skip"
    monkeypatch.setattr(loop, "build", bad_at(1, 2, 4, 5, 6, 7, 8))
    at_step(monkeypatch, 6, lambda: send(signal.SIGTERM))
    with pytest.raises(loop.Interrupted):
        loop.train(config, tmp_path)
    with pytest.raises(FloatingPointError, match=r"4 steps in a row were skipped.*step 9"):
        loop.train(config, tmp_path)


def test_an_unknown_value_of_nonfinite_is_refused(config, tmp_path):
    config.nonfinite = "Skip"
    with pytest.raises(ConfigError, match="nonfinite='Skip'; expected one of stop, skip, ignore"):
        loop.train(config, tmp_path)


def test_a_run_that_stopped_at_a_bad_step_goes_on_with_skip(config, calls, tmp_path, monkeypatch):
    """What the message advises."""
    config.checkpoint_steps = 1
    monkeypatch.setattr(loop, "build", bad_at(4))
    with pytest.raises(loop.NonFinite, match="nonfinite=skip, which may be given at the resume"):
        loop.train(config, tmp_path)
    config.nonfinite = "skip"
    loop.train(config, tmp_path)
    assert kept(tmp_path)[-1] == LAST


def test_a_bad_step_is_kept_when_no_save_is_under_way(config, calls, tmp_path, monkeypatch):
    """Orbax mixes up two saves of one process that begin at the same time."""
    config.checkpoint_steps = 1
    monkeypatch.setattr(loop, "build", bad_at(4))
    under_way, seen, write = [], [], checkpoint._write

    def slow(store, step, *rest):
        under_way.append(step)
        time.sleep(0.3)
        write(store, step, *rest)
        under_way.remove(step)

    monkeypatch.setattr(checkpoint, "_write", slow)
    monkeypatch.setattr(loop.replay, "keep", lambda *_: seen.append([*under_way]) or "kept")
    with pytest.raises(loop.NonFinite):
        loop.train(config, tmp_path)
    assert seen == [[]] and kept(tmp_path)[-1] == 4


def test_after_a_skipped_step_schedules_log_and_momentum_have_one_clock():
    def rate(count):
        return 0.1 * 0.5**count

    tx = optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(lambda count: 0.01 * count),
        optax.conditionally_mask(optax.scale_by_schedule(rate), lambda step: step >= 1),
        optax.scale_by_schedule(rate),
    )
    from cl_jax.training.steps import _one_later

    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    _, done = tx.update(params, tx.update(params, state, params)[1], params)
    later = _one_later(tx.update(params, state, params)[1])
    counts = [int(leaf) for leaf in jax.tree.leaves(later) if jnp.ndim(leaf) == 0]
    made = [int(leaf) for leaf in jax.tree.leaves(done) if jnp.ndim(leaf) == 0]
    # Adam's own count is of the updates made; a schedule that was frozen until step 1 is at its 0.
    assert counts == [1, 2, 2, 0, 2] and made == [2, 2, 2, 1, 2]


def poisoned_params(config, previous):
    """A method whose third update leaves NaN in the parameters behind a loss that is finite."""
    built = small.epochal(config)

    def update(state, batch, key):
        after, values = built.method.update(state, batch, key)
        bad = jnp.where(state.step == 2, jnp.nan, 1.0)
        return dataclasses.replace(
            after, params=jax.tree.map(lambda w: w * bad, after.params)
        ), values

    return built._replace(method=dataclasses.replace(built.method, update=update))


@pytest.mark.parametrize("nonfinite", ["stop", "skip"])
def test_a_state_that_is_not_finite_is_not_saved(nonfinite, config, calls, tmp_path, monkeypatch):
    config.update({"nonfinite": nonfinite, "checkpoint_steps": 1})
    monkeypatch.setattr(loop, "build", poisoned_params)
    with pytest.raises(
        checkpoint.NonFiniteState,
        match=r"State after step 3 holds NaN or inf in 1 of \d+ arrays: .params\['w'\] \(384 of "
        r"384\)\. It is not saved; the newest checkpoint is of step [12]",
    ):
        loop.train(config, tmp_path)
    assert kept(tmp_path) == [1, 2] and ("evaluate", 3) not in calls


def test_ignored_it_is_not_saved_either(config, calls, tmp_path, monkeypatch, capsys):
    config.update({"nonfinite": "ignore", "checkpoint_steps": 1})
    monkeypatch.setattr(loop, "build", poisoned_params)
    loop.train(config, tmp_path)
    assert kept(tmp_path) == [1, 2] and kept(tmp_path, "best") == []
    assert "It is not saved" in capsys.readouterr().err


# What cannot be written, who else is there --------------------------------------


def test_no_room_for_a_checkpoint_is_an_error_at_that_step(config, calls, tmp_path, monkeypatch):
    config.checkpoint_steps = 2
    import orbax.checkpoint as ocp

    save = ocp.CheckpointManager.save

    def full(self, step, **given):
        if step == 4:
            raise OSError(28, "No space left on device")
        return save(self, step, **given)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(
        SaveError,
        match=r"checkpoint of step 4 cannot be written.*No space.*whole checkpoint is of ",
    ):
        loop.train(config, tmp_path)
    assert kept(tmp_path) == [2, 3]
    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    loop.train(config, tmp_path)
    assert kept(tmp_path)[-1] == LAST


def test_a_second_run_in_the_workdir_is_refused(config, calls, tmp_path, monkeypatch):
    def second():
        with pytest.raises(ConfigError, match=f"in use by another run, process {os.getpid()} on"):
            loop.train(config, tmp_path)

    at_step(monkeypatch, 4, second)
    loop.train(config, tmp_path)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize("number", [0, -1])
def test_keeping_no_checkpoint_is_refused(number, config, calls, tmp_path):
    config.keep_checkpoints = number
    with pytest.raises(ConfigError, match=f"keep_checkpoints={number}; expected at least 1"):
        loop.train(config, tmp_path)


def test_settings_that_decide_no_number_may_change_at_a_resume(
    config, calls, whole, tmp_path, monkeypatch, capsys
):
    cut = tmp_path / "cut"
    at_step(monkeypatch, 4, lambda: send(signal.SIGTERM))
    with pytest.raises(loop.Interrupted):
        loop.train(config, cut)
    config.update({"keep_checkpoints": 3, "checkpoint_steps": 4})
    loop.train(config, cut)
    assert "checkpoint_steps: 0 in the workdir, 4 now" in capsys.readouterr().err
    assert_ends_as(whole, cut, config)
    config.total_epochs = 5.0
    with pytest.raises(ConfigError, match=r"total_epochs: 4\.0 in the workdir, 5\.0 now"):
        loop.train(config, cut)


def test_rates_after_an_evaluation_are_of_the_steps_alone(config, calls, tmp_path, monkeypatch):
    """A step takes 2 s of this clock, an evaluation 1000 s."""
    clock, advance, measure = [0.0], Stepper.advance, loop.Evaluation.measure

    def step(self, state, until):
        clock[0] += 2.0
        return jax.block_until_ready(advance(self, state, until))

    def evaluation(*given, **named):
        clock[0] += 1000.0
        return measure(*given, **named)

    monkeypatch.setattr(pending.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(Stepper, "advance", step)
    monkeypatch.setattr(loop.Evaluation, "measure", evaluation)
    loop.train(config, tmp_path)
    rates = [row["examples_per_second"] for row in metrics.read(tmp_path) if "loss" in row]
    assert len(rates) == LAST and rates == [small.BATCH / 2] * LAST
