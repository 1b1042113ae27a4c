"""Weights & Biases and MLflow as destinations of the log: what they are given, by modules that
stand for them. `-m slow` writes with the libraries themselves, without a network."""

import json
import types

import pytest

from cl_jax.core.errors import ConfigError
from cl_jax.training import metrics, trackers


class Recorded:
    """Stands for both libraries: keeps all calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **settings):
            self.calls.append((name, args, settings))
            return self

        return call

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name, place):
        self.calls.append(("create_experiment", (name, place), {}))
        return "3"

    def create_run(self, number, run_name):
        self.calls.append(("create_run", (number, run_name), {}))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    def of(self, name):
        return [(args, settings) for called, args, settings in self.calls if called == name]


@pytest.fixture
def libraries(monkeypatch):
    wandb, mlflow = Recorded(), Recorded()
    entities = types.SimpleNamespace(Param=lambda *a: a, Metric=lambda *a: a)
    client = types.SimpleNamespace(MlflowClient=lambda where: mlflow, entities=entities)
    fake = types.SimpleNamespace(init=wandb.init, Settings=dict)
    for name, module in (("wandb", fake), ("mlflow", client), ("mlflow.entities", entities)):
        monkeypatch.setitem(__import__("sys").modules, name, module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return wandb, mlflow


def config(**log):
    return {"seed": 3, "log": {"tensorboard": True, "wandb": "", "mlflow": ""} | log}


def test_rows_go_to_those_that_are_asked_for(libraries, tmp_path):
    wandb, mlflow = libraries
    for start in (0, 10):
        log = metrics.Metrics(tmp_path, 20, start, config(wandb="p", mlflow="e", tensorboard=False))
        log.write(start + 10, {"loss": 2.0, "knn@5": 0.5})
        log.close()
    first, second = wandb.of("init")
    assert first[1]["project"] == "p" and first[1]["config"]["seed"] == 3
    assert first[1]["id"] == second[1]["id"] and first[1]["resume"] == "allow"
    rows = [args[0] for args, _ in wandb.of("log")]
    assert rows == [{"loss": 2.0, "knn@5": 0.5, "step": step} for step in (10, 20)]
    assert len(wandb.of("finish")) == 2
    assert len(mlflow.of("create_run")) == 1  # the second goes on
    params, one, two = (settings for _, settings in mlflow.of("log_batch"))
    assert ("seed", "3") in params["params"]
    assert [metric[0] for metric in one["metrics"]] == ["loss", "knn-5"]
    assert [metric[3] for metric in one["metrics"] + two["metrics"]] == [10, 10, 20, 20]
    assert len(mlflow.of("set_terminated")) == 2
    assert not (tmp_path / "tensorboard").exists()
    assert len(metrics.read(tmp_path)) == 2


def test_a_run_that_starts_at_step_0_again_shows_its_own_settings(libraries, tmp_path):
    """An attempt without a checkpoint may have had others: what is stored of it is not its."""
    wandb, mlflow = libraries
    for seed in (3, 4):
        log = metrics.Metrics(tmp_path, 20, 0, config(wandb="p", mlflow="e") | {"seed": seed})
        log.close()
    assert len({settings["id"] for _, settings in wandb.of("init")}) == 2
    told = [dict(settings["params"])["seed"] for _, settings in mlflow.of("log_batch")]
    assert told == ["3", "4"]
    number = json.loads((tmp_path / "trackers.json").read_text())
    assert number.keys() == {"wandb", "mlflow"}


def test_none_is_asked_for_by_default(libraries, tmp_path):
    metrics.Metrics(tmp_path, 20, 0, config()).close()
    assert not libraries[0].calls and not libraries[1].calls
    assert not (tmp_path / "trackers.json").exists() and (tmp_path / "tensorboard").is_dir()


def test_one_that_fails_is_left_out(libraries, tmp_path, monkeypatch, caplog):
    def down(**settings):
        raise ConnectionError("no server")

    monkeypatch.setattr(__import__("sys").modules["wandb"], "init", down)
    log = metrics.Metrics(tmp_path, 20, 0, config(wandb="p"))
    log.write(10, {"loss": 1.0})
    log.close()
    assert "Weights & Biases cannot be written (ConnectionError: no server)" in caplog.text
    assert len(metrics.read(tmp_path)) == 1


def test_one_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'cl_jax\[wandb\]'"):
        trackers.check({"wandb": "p"})
    with pytest.raises(ConfigError, match=r"log.mlflow=True; expected a name"):
        trackers.check({"mlflow": True})
    trackers.check({"wandb": "", "mlflow": ""})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_libraries_themselves(tmp_path, monkeypatch):
    wandb, mlflow = (pytest.importorskip(name) for name in ("wandb", "mlflow"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "run"
    root.mkdir()
    for start in (0, 10):
        log = metrics.Metrics(root, 20, start, config(wandb="p", mlflow="e"))
        assert {"Weights & Biases", "MLflow"} <= log.destinations.keys()
        log.write(start + 10, {"loss": 2.0 - start / 10, "knn/top1": 0.5})
        assert {"Weights & Biases", "MLflow"} <= log.destinations.keys()
        log.close()
    number = json.loads((root / "trackers.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    assert [(m.step, m.value) for m in client.get_metric_history(number["mlflow"], "loss")] == [
        (10, 2.0),
        (20, 1.0),
    ]
    assert client.get_run(number["mlflow"]).data.params["seed"] == "3"
    assert len(list((root / "wandb").glob(f"offline-run-*{number['wandb']}"))) == 2
    assert wandb.run is None
