"""The trainer: what it refuses, how it stops, resumes and what a run leaves behind."""

import dataclasses
import json
import os
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.core.method import State
from cl_jax.data.source import Splits, from_arrays
from cl_jax.training import checkpoint, experiment, loop, metrics, resuming, steps
from configs import simclr_v1, simclr_v2
from tests import small


@pytest.fixture
def config():
    config = simclr_v1.get_config("debug")
    config.devices = 1
    small.light(config, stages=0)
    return loop.stages(config, "unused")[0][1]


def test_a_new_state_begins_with_what_the_method_puts_into_it():
    mesh = parallel.make_mesh(1)
    made = parallel.replicate(
        State(jnp.int32(0), {"w": jnp.zeros(2), "head": jnp.ones(3)}, (), {}), mesh
    )

    def begin(state):
        return dataclasses.replace(state, params=state.params | {"w": np.array([3.0, 4.0])})

    data = from_arrays("two", {"x": np.zeros((2, 1), np.float32)}, {})
    method = SimpleNamespace(begin=begin, needs=("x",), wants=())
    run = SimpleNamespace(batch_size=2)
    built = SimpleNamespace(method=method, data=Splits(data, data), run=run, mesh=mesh)
    start = experiment.Start(built, ConfigDict({"seed": 0}))
    start.program = lambda key, batch: made
    state = start()
    assert state.params["w"].sharding == made.params["w"].sharding
    assert state.params["w"].dtype == np.float32 and state.params["w"].tolist() == [3, 4]
    assert state.params["head"] is made.params["head"]


def test_unknown_setting_names_the_nearest(config):
    config.method.temprature = 0.1
    with pytest.raises(
        ValueError, match=r"simclr_v1.make has no setting 'temprature'; did you mean 'temperature'"
    ):
        loop.build(config)


def test_unknown_method_and_variant(config):
    config.method.name = "simclr_v3"
    with pytest.raises(
        ValueError, match=r"cl_jax.methods.simclr_v3 does not exist; have .*did you mean 'simclr_v"
    ):
        loop.build(config)
    with pytest.raises(
        ValueError, match="variant 'cifar' of this config is unknown; have folder, table"
    ):
        simclr_v1.get_config("cifar")


def test_unknown_stage():
    config = simclr_v2.get_config("debug")
    config.stage = "fine"
    with pytest.raises(
        ValueError, match=r"stage='fine' is unknown; have all, pretrain.*did you mean 'finetune'"
    ):
        loop.stages(config, "unused")


def test_stages_override_the_first_config():
    config = simclr_v2.get_config("debug")
    config.stage = "all"
    stages = loop.stages(config, "w")
    assert [name for name, _, _ in stages] == ["pretrain", "finetune", "distill"]
    first, tuned = stages[0][1], stages[1][1]
    assert tuned.method.name == "finetune" and "temperature" not in tuned.method
    assert tuned.encoder == first.encoder and list(tuned.views) == ["one"]
    assert str(stages[1][2]) == os.path.join("w", "finetune")


def test_fewer_examples_than_a_batch(config):
    config.batch_size = 128
    with pytest.raises(ValueError, match="64 training examples, fewer than one batch of 128"):
        loop.build(config)


def test_batch_not_divisible_by_devices(config):
    config.devices, config.batch_size = 3, 16
    with pytest.raises(
        ValueError, match=r"batch_size=16 is not divisible by 3 devices; try --config.batch_size=15"
    ):
        loop.build(config)


def test_more_devices_than_there_are(config):
    config.devices = 64
    with pytest.raises(ValueError, match="devices=64 asked for, 8 found"):
        loop.build(config)


def test_workdir_of_another_config_shows_the_difference(tmp_path):
    resuming.check_config(tmp_path, {"batch_size": 8, "method": {"name": "a"}})
    (tmp_path / "last" / "1").mkdir(parents=True)
    resuming.check_config(tmp_path, {"batch_size": 8, "method": {"name": "a"}})
    with pytest.raises(ValueError, match=r"method.name: a in the workdir, b now"):
        resuming.check_config(tmp_path, {"batch_size": 8, "method": {"name": "b"}})


def test_a_run_and_what_it_leaves(config, tmp_path):
    results = loop.train(config, tmp_path)
    rows = metrics.read(tmp_path)
    assert 0 <= results["knn/top1"] <= 1 and "linear/cached/top1" in results
    (at_start,) = (row for row in rows if row["step"] == 0)
    assert {"knn/raw_pixels", "untrained/knn/top1"} <= at_start.keys()
    assert [row["step"] for row in rows if "loss" in row] == [2, 4]
    for name in ("knn.png", "neighbours.png", "config.json"):
        assert (tmp_path / name).stat().st_size > 0
    assert any((tmp_path / "tensorboard").iterdir())
    knn_alone = config.copy_and_resolve_references()
    with knn_alone.unlocked():
        knn_alone.evals.protocols = {"knn": knn_alone.evals.protocols.knn}
        knn_alone.evals.baselines = False
    loop.evaluate(tmp_path, knn_alone)
    assert json.loads((tmp_path / "eval.json").read_text())["knn/top1"] == results["knn/top1"]


@pytest.mark.slow
def test_a_finished_run_is_only_evaluated_again(config, tmp_path):
    results = loop.train(config, tmp_path)
    assert loop.train(config, tmp_path)["knn/top1"] == results["knn/top1"]
    assert sum(row["step"] == 0 for row in metrics.read(tmp_path)) == 1


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_resumes(config, tmp_path, monkeypatch):
    config.total_epochs, config.evals.every_epochs, config.evals.baselines = 3.0, 0.0, False
    whole = tmp_path / "whole"
    loop.train(config, whole)
    advance = steps.Stepper.advance

    def killed_at_5(self, state, until):
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, state, until)

    cut = tmp_path / "cut"
    monkeypatch.setattr(steps.Stepper, "advance", killed_at_5)
    with pytest.raises(loop.Interrupted, match="stopped at step 5 of 12"):
        loop.train(config, cut)
    monkeypatch.setattr(steps.Stepper, "advance", advance)
    loop.train(config, cut)
    a, b = loop.load(whole)[2], loop.load(cut)[2]
    assert int(a.step) == 12
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of the store's own cancelled reads
def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, tmp_path):
    built = loop.build(config)
    state = loop.initial_state(built, config)
    first = parallel.fetch(state)
    store = checkpoint.Checkpoints(tmp_path)
    store.save(state)
    state, _ = loop.stepper(built, config, 0)(state)
    store.save(state)
    store.close()
    newest = tmp_path / "last" / "1"
    for path in newest.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:10])
    restored = checkpoint.Checkpoints(tmp_path).restore(loop.initial_state(built, config))
    assert int(restored.step) == 0
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(restored)):
        np.testing.assert_array_equal(x, y)


def test_nan_stops_with_the_step_and_the_batch_ids(config, tmp_path):
    config.optimizer.learning_rate, config.optimizer.warmup_epochs = 1e30, 0.0
    config.evals.baselines = False
    with pytest.raises(FloatingPointError, match=r"step 2: loss nan.*Batch ids: \["):
        loop.train(config, tmp_path)


def test_the_log_forgets_what_a_killed_run_wrote_beyond_its_checkpoint(tmp_path):
    log = metrics.Metrics(tmp_path, 10)
    for step in (2, 4, 6):
        log.write(step, {"loss": step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    metrics.Metrics(tmp_path, 10, start_step=4).close()
    assert [row["step"] for row in metrics.read(tmp_path)] == [2, 4]


def test_a_locked_config_from_the_command_line(tmp_path):
    config = simclr_v2.get_config("debug").lock()
    assert [name for name, _, _ in loop.stages(config, tmp_path)] == ["pretrain"]


def test_the_best_state_is_one_decision_of_all_processes(monkeypatch):
    """A process whose score is lower asks the others too: they would wait for it."""
    asked, saved = [], []
    monkeypatch.setattr(parallel, "everywhere", lambda well: asked.append(well) or well)
    training = object.__new__(loop.Training)
    training.log = SimpleNamespace(rows=[{"step": 1, "top": 0.5}, {"step": 2, "top": 0.4}])
    training.evaluation = SimpleNamespace(score=lambda row: row.get("top"))
    training.checkpoints = SimpleNamespace(
        best_step=lambda: None, save_best=lambda state, score: saved.append(score)
    )
    training.stop = SimpleNamespace(safe=True, saving=False)
    for step in (1, 2, 3):  # the first, a lower one, one without a score
        training._keep_best(None, step)
    assert asked == [True, False, False] and saved == [0.5]
