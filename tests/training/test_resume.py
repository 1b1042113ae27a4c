"""A run that dies and is started again ends bit for bit as the unbroken one; on other devices, up
to rounding."""

import jax
import numpy as np
import pytest

from cl_jax.checks import verify
from cl_jax.core import parallel
from cl_jax.training import checkpoint, configs, loop, metrics, stages, steps
from cl_jax.training.experiment import initial_state
from configs import simclr_v1
from tests import small

CLOCK = {"time", "examples_per_second", "data_wait"}


class Died(BaseException):
    """In place of SIGKILL, which tests/training/test_chaos.py sends."""


@pytest.fixture
def run(monkeypatch):
    """run(config, workdir, dies): trains, and returns the last State and the log without clocks; or
    dies before the first step that follows `dies` updates or more. What is evaluated at the end is
    left out."""
    advance, ended = steps.Stepper.advance, []

    def measure(evaluator, state, final):
        ended.append(parallel.fetch(state))
        return {"knn/top1": 0.5}

    monkeypatch.setattr(loop.Evaluation, "measure", measure)
    monkeypatch.setattr(loop.summary, "draw_curve", lambda *_: None)

    def run(config, workdir, dies=None):
        def may_die(self, state, until):
            if dies is not None and self.step >= dies:
                raise Died
            return advance(self, state, until)

        monkeypatch.setattr(steps.Stepper, "advance", may_die)
        if dies is not None:
            with pytest.raises(Died):
                loop.train(config, workdir)
            return None
        loop.train(config, workdir)
        return ended.pop(), [
            {name: row[name] for name in row.keys() - CLOCK} for row in metrics.read(workdir)
        ]

    return run


def assert_same(a, b, where):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_array_equal(x, y, f"{where}: {jax.tree_util.keystr(path)}")


def resumes(run, config, stage, folder, previous=None):
    """Two and a half epochs at once, and with two deaths: in the middle of an epoch, and after the
    work that is done before an epoch. A checkpoint every third step, so that what is resumed goes
    over epochs' beginnings again."""
    config = config.copy_and_resolve_references()
    config.update({"devices": 1, "log_steps": 1, "checkpoint_steps": 3, "total_epochs": 2.5})
    config.evals.update({"every_epochs": 0.0, "baselines": False})
    epoch = loop.build(config, previous).run.steps_per_epoch
    whole, log = run(config, folder / "whole" / stage)
    cut = folder / "cut" / stage
    run(config, cut, dies=epoch + 1)
    run(config, cut, dies=2 * epoch)
    state, again = run(config, cut)
    assert int(state.step) == round(2.5 * epoch) and len(log) > state.step // 2
    assert_same(whole, state, config.method.name)
    assert log == again
    return whole


@pytest.mark.slow  # compiles every method
@pytest.mark.parametrize("name", configs.names())
def test_every_method_resumes_exactly(name, run, tmp_path):
    """All stages of every config in its debug variant, memories and E-steps included."""
    tried = 0
    for stage, config in verify.debug_stages(name):
        previous = stages.previous_stage(config, tmp_path / "whole" / stage)
        resumes(run, config, stage, tmp_path, previous)
        tried += 2
    print(f"resumed bit for bit: {tried} of {tried} ({name})")


@pytest.fixture
def small_config(monkeypatch):
    monkeypatch.setattr(loop, "build", lambda config, previous: small.epochal(config))
    small.share_programs(monkeypatch, {})
    return loop.stages(simclr_v1.get_config("debug"), "unused")[0][1]


@pytest.mark.parametrize("together", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_small_method_with_work_before_each_epoch(run, small_config, tmp_path, together):
    small_config.dispatch_steps = together
    small_config.seed = 3
    state = resumes(run, small_config, "", tmp_path)
    assert np.abs(state.memory["offset"]).max() > 0 and set(state.memory["groups"]) == {0, 1}


@pytest.mark.slow
def test_a_death_between_the_log_and_the_checkpoint(run, small_config, tmp_path, monkeypatch):
    """What was logged and not saved is logged again, once."""
    small_config.update({"devices": 1, "log_steps": 1, "total_epochs": 4.0})
    small_config.evals.update({"every_epochs": 1.0, "baselines": False})
    whole, log = run(small_config, tmp_path / "whole")
    save = checkpoint.Checkpoints.save

    def dies(self, state):
        if int(state.step) == 6:
            raise Died
        save(self, state)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", dies)
    with pytest.raises(Died):
        loop.train(small_config, tmp_path / "cut")
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    state, again = run(small_config, tmp_path / "cut")
    assert_same(whole, state, "small")
    assert log == again


# Other numbers of devices
# --------------------------------------


def compared(first, runner_of, config, folder):
    """The verdict of `cl_jax.checks.verify` on runs of which one device trains the first half
    (`first`) and saves, and 1, 2 or 4 (`runner_of`) restore that and train the rest."""
    runners, count = {}, 0

    def run(devices, seed):
        nonlocal count
        count += 1
        begun = first(seed)
        store = checkpoint.Checkpoints(folder / str(count))
        store.save(begun.state)
        store.close()
        if devices not in runners:
            runners[devices] = runner_of(devices)
        rest = runners[devices]
        store = checkpoint.Checkpoints(folder / str(count))
        restored = store.restore(initial_state(rest.built, config))
        store.close()
        assert all(len(leaf.devices()) == devices for leaf in jax.tree.leaves(restored))
        rest.state, rest.stepper.step = parallel.fetch(restored), int(restored.step)
        ended = rest(None)
        return verify.Outcome(
            np.concatenate([begun.loss, ended.loss]),
            np.concatenate([begun.grad_norm, ended.grad_norm]),
            ended.state,
        )

    record = verify.compare(run, (1, 2, 4), folder.name)
    assert record.same(), verify.table([record])


def test_the_rest_of_a_run_on_other_devices(tmp_path):
    """Same order and views, or the difference would be far beyond the bound; `memory` counts the
    examples, exactly."""
    built = small.built(1)
    first = verify.Runner(built._replace(run=built.run._replace(total_steps=5)), small.config(1))
    compared(
        first,
        lambda devices: verify.Runner(small.built(devices), small.config(devices)),
        small.config(1),
        tmp_path,
    )


@pytest.mark.slow  # compiles a method on three numbers of devices
@pytest.mark.parametrize("name", ["byol", "moco_v2", "pcl", "swav"])
def test_the_rest_of_a_method_on_other_devices(name, tmp_path):
    _, config = verify.debug_stages(name)[0]
    compared(
        verify.runner(config, 1, None, 5),
        lambda devices: verify.runner(config, devices, None, 10),
        config,
        tmp_path,
    )
