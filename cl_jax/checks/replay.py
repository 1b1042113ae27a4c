"""Keeps a step whose loss or gradient was NaN or inf, and runs it again: `cl-jax replay`.

The run writes the State before that step, and what rebuilds the step, into
`WORKDIR/bad_step/<step>`. The command does two things with it.

First it runs the step again with the run's own compiled program. The bits are the same on the same
kind and number of devices; on another number they are the same up to the order of sums. A step of
several processes runs in one.

Then it evaluates the step one operation at a time, on one device with the whole global batch, and
follows NaN and inf back from the loss (or the gradient norm) to the operation that made them of
finite numbers. `--float64` does this in float64, on the same random draws, also where the program
casts to a narrower type: what is finite then was lost to rounding or overflow, what is not is in
the mathematics.

A mask of -inf, or the log of a zero that is masked away, is not reported, since it does not reach
the loss."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cl_jax.core import parallel, xla
from cl_jax.core.errors import ConfigError, NotFoundError
from cl_jax.core.method import State
from cl_jax.training import checkpoint, configs, rebuilding
from cl_jax.training.defaults import get_config as get_defaults
from cl_jax.training.experiment import Built, build, shape_of_state
from cl_jax.training.stages import previous_stage
from cl_jax.training.steps import stepper
from cl_jax.training.workdir import path_of

if TYPE_CHECKING:
    from cl_jax.checks import finite

# What of a record rebuilds a step.
_KEYS = {
    "step": int,
    "batch_ids": list,
    "metrics": dict,
    "steps_in_dispatch": int,
    "devices": int,
    "device_kind": str,
    "config": dict,
}

# What is kept and how it is read back
# --------------------------------------


def record(
    config: ConfigDict,
    built: Built,
    step: int,
    metrics: dict[str, np.ndarray],
    ids: np.ndarray,
    together: int,
) -> dict[str, Any]:
    """What rebuilds step `step` (counted from 0), JSON: the run, the batch, the metrics, the
    program that did it."""
    return {
        "step": step + 1,
        "seed": config.seed,
        "batch_ids": ids.tolist(),
        "metrics": {name: float(value) for name, value in metrics.items()},
        "steps_in_dispatch": together,
        "devices": built.mesh.size,
        "processes": jax.process_count(),
        "device_kind": built.mesh.devices.flat[0].device_kind,
        "jax": jax.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "config": json.loads(config.to_json()),
    }


def keep(workdir: str | Path, state: State, found: dict[str, Any]) -> str:
    """Writes `WORKDIR/bad_step/<step>` and returns a message. A failure to write is in the message,
    not raised."""
    path = path_of(workdir) / "bad_step" / str(found["step"])
    try:
        checkpoint.keep(path / "state", state)
        if jax.process_index() == 0:
            part = path / "record.json.part"
            part.write_text(json.dumps(found, indent=1) + "\n")
            part.replace(path / "record.json")
    except Exception as error:
        return f"step {found['step']} could not be kept in {path}: {type(error).__name__}: {error}"
    return (
        f"kept in {path}: `cl-jax replay {path}` says which tensor was the first that is not finite"
    )


def find(path: str | Path) -> Path:
    """The folder of a kept step: itself, or in WORKDIR or WORKDIR/bad_step the first."""
    path = path_of(path)
    for root in (path, path / "bad_step"):
        if (root / "record.json").exists():
            return root
        steps = [
            folder.parent for folder in root.glob("*/record.json") if folder.parent.name.isdigit()
        ]
        if steps:
            return min(steps, key=lambda folder: int(folder.name))
    raise NotFoundError(
        f"{path} holds no step that was kept: expected record.json and state/ there, or in a "
        f"folder "
        "named by the step's number. A run keeps one when a loss or gradient is not finite."
    )


def _record(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. The step cannot be rebuilt.") from None
    missing = [
        key
        for key, kind in _KEYS.items()
        if not isinstance(found, dict) or not isinstance(found.get(key), kind)
    ] or _missing_of_config(found["config"])
    if missing:
        raise ConfigError(
            f"{file} has no {', '.join(missing)}: it is not a record of a step of this version."
        )
    record: dict[str, Any] = found
    return record


def _missing_of_config(config: dict[str, Any]) -> list[str]:
    """What every config has, as "config.data", and this one has not, or not as a section."""
    known = configs.plain(get_defaults())
    return [
        f"config.{key}"
        for key, value in known.items()
        if key not in ("stage", "stages")  # a stage's own config has neither
        and (key not in config or isinstance(value, dict) != isinstance(config[key], dict))
    ]


class Replay:
    """A kept step, rebuilt."""

    def __init__(self, path: Path):
        self.record = _record(path / "record.json")
        self.config = ConfigDict(self.record["config"])
        there = jax.device_count()
        self.devices = self.record["devices"] if self.record["devices"] <= there else 1
        self.config.devices = self.devices
        workdir = path.absolute().parent.parent
        there = rebuilding.as_begun(self.config, workdir)
        self.built = build(there, previous_stage(self.config, workdir))
        like = shape_of_state(self.built)
        self.state = parallel.fetch(checkpoint.kept(path / "state", like))
        self.stepper = stepper(self.built, self.config, int(self.state.step))

    def again(self) -> dict[str, float]:
        """The metrics of the step, done by the program of the run."""
        state = parallel.replicate(self.state, self.built.mesh)
        count = self.record["steps_in_dispatch"] if self.stepper.rows is not None else 1
        found = parallel.fetch(self.stepper.again(state, count))
        self.stepper.step = int(self.state.step)
        if self.stepper.ids(self.stepper.step).tolist() != self.record["batch_ids"]:
            raise ValueError(
                "the step's batch is not the recorded one: the data set or its order has changed "
                "since."
            )
        return {name: float(value) for name, value in found.items()}

    def same_bits(self) -> str:
        """ "" where the program and the machine are those of the run, else what differs."""
        now = {
            "devices": self.devices,
            "processes": 1,
            "jax": jax.__version__,
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "device_kind": self.built.mesh.devices.flat[0].device_kind,
        }
        return ", ".join(
            f"{name} {self.record.get(name) or 'none'} then, {value or 'none'} now"
            for name, value in now.items()
            if _essential(name, self.record.get(name)) != _essential(name, value)
        )

    def first(self, wide: bool = False) -> tuple[dict[str, float], "finite.Cause | None"]:
        """The metrics of the step done one operation at a time, and what was not finite first;
        `wide`: in float64."""
        from cl_jax.checks import finite  # reads jax internals, which training must not need

        train, method = self.built.data.train, self.built.method
        examples = [train.read(int(i)) for i in self.record["batch_ids"]]
        batch = {
            name: np.stack([example[name] for example in examples]) for name in self.stepper.fields
        }
        batch["id"] = np.asarray(self.record["batch_ids"], np.int32)
        key = jax.random.fold_in(jax.random.key(self.config.seed), int(self.state.step))
        return finite.evaluate(method.update, (self.state, batch, key), wide)


def _essential(name: str, value: Any) -> Any:
    """XLA's flags less the number of forced host devices, which "devices" says."""
    return (
        {word for word in str(value or "").split() if "device_count" not in word}
        if name == "xla_flags"
        else value
    )


def offer_devices(path: Path) -> None:
    """Offers as many CPU devices as the run of a kept step had, where it ran on a CPU; call it
    before jax is asked for a device."""
    found = _record(path / "record.json")
    xla.prepare()
    if found["device_kind"].lower() == "cpu":
        parallel.offer_devices(found["devices"])
