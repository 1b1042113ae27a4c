"""The figures of a run in Weights & Biases and in MLflow, beside the log in the workdir.

A run that is resumed continues under the same number there, which `trackers.json` in the workdir
keeps. One that starts at step 0 gets a new number, with its own settings. Where and as whom each
library writes is its own setting: WANDB_MODE, WANDB_API_KEY, MLFLOW_TRACKING_URI.
"""

import importlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cl_jax.core.errors import ConfigError
from cl_jax.training import workdir as folder

Row = dict[str, float]
_FILE = "trackers.json"


def check(section: Mapping[str, Any]) -> None:
    """Raises ConfigError where `config.log` asks for a library that is not installed."""
    for name, label in (("wandb", "Weights & Biases"), ("mlflow", "MLflow")):
        if not section.get(name):
            continue
        if not isinstance(section[name], str):
            raise ConfigError(f"log.{name}={section[name]!r}; expected a name, or '' for none.")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"log.{name}={section[name]!r} needs {label} ({error}): pip install "
                f"'cl_jax[{name}]', or leave it out."
            ) from None


def destinations(
    section: Mapping[str, Any], root: Path, config: Mapping[str, Any], resumed: bool
) -> dict[str, Callable[[], Any]]:
    """{name: what opens it} of those that `config.log` asks for; each has `write` and `close`.

    Args:
      section: {"wandb": a project, "mlflow": an experiment}, "" for neither.
      root: the workdir.
      config: all settings, shown there.
      resumed: the run goes on from a checkpoint, and so does the one there.
    """
    found: dict[str, Callable[[], Any]] = {}
    if section.get("wandb"):
        found["Weights & Biases"] = lambda: Wandb(section["wandb"], root, config, resumed)
    if section.get("mlflow"):
        found["MLflow"] = lambda: Mlflow(section["mlflow"], root, config, resumed)
    return found


def figures(row: Row) -> Row:
    """What of a row is a figure."""
    return {name: value for name, value in row.items() if name not in ("step", "time")}


class Wandb:
    """A run of a project of Weights & Biases; its x-axis is the step of training."""

    def __init__(self, project: str, root: Path, config: Mapping[str, Any], resumed: bool):
        import wandb

        number = _number(root, "wandb", lambda: uuid.uuid4().hex[:12], resumed)
        self.run = wandb.init(
            project=project,
            name=root.name,
            id=number,
            resume="allow",
            dir=str(root),
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        self.run.log(figures(row) | {"step": int(row["step"])})

    def close(self) -> None:
        self.run.finish()


class Mlflow:
    """A run of an experiment of MLflow; without MLFLOW_TRACKING_URI, of the file mlflow.db in the
    workdir."""

    def __init__(self, experiment: str, root: Path, config: Mapping[str, Any], resumed: bool):
        import mlflow
        from mlflow.entities import Param

        path = (root / "mlflow.db").resolve()
        where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"
        self.client = mlflow.MlflowClient(where)

        def new() -> str:
            held = self.client.get_experiment_by_name(experiment)
            number = (
                held.experiment_id
                if held is not None
                else self.client.create_experiment(experiment, (root / "mlflow").resolve().as_uri())
            )
            made = self.client.create_run(number, run_name=root.name).info.run_id
            told = [Param(key, str(value)[:500]) for key, value in _flat(config).items()]
            for at in range(0, len(told), 100):
                self.client.log_batch(made, params=told[at : at + 100])
            return made

        self.run = _number(root, "mlflow", new, resumed)
        self.client.update_run(self.run, "RUNNING")

    def write(self, row: Row) -> None:
        from mlflow.entities import Metric

        at, step = round(1000 * row["time"]), int(row["step"])
        told = [Metric(_clean(name), value, at, step) for name, value in figures(row).items()]
        self.client.log_batch(self.run, metrics=told)

    def close(self) -> None:
        self.client.set_terminated(self.run)


def _number(root: Path, name: str, new: Callable[[], str], resumed: bool) -> str:
    """The number of the workdir's run in a library, made where the run begins."""
    path = root / _FILE
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if name not in known or not resumed:
        known[name] = new()
        folder.replace_text(path, json.dumps(known) + "\n")
    return known[name]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _clean(name: str) -> str:
    """A name that MLflow takes: letters, digits and a few marks."""
    return "".join(c if c.isalnum() or c in "_-./ " else "-" for c in name)
