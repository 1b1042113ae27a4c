"""What a config means on this machine: data, devices, networks, optimiser, method, stages. Mistakes
in it are found here."""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cl_jax import views
from cl_jax.core import parallel
from cl_jax.core.method import Method, Run, Stage, State
from cl_jax.core.names import nearest
from cl_jax.core.parallel import AXIS, EACH, SAME
from cl_jax.data.batches import local_rows
from cl_jax.data.source import Splits, fraction
from cl_jax.training import checkpoint, configs, optim

# Sections and keys of a config that no training step reads: a run is evaluated with others at will.
EVALUATION = (
    "evals",
    "probe",
    "devices",
    "log_steps",
    "checkpoint_steps",
    "keep_checkpoints",
    "dispatch_steps",
    "nonfinite",
    "stage",
    "stages",
    "stage_order",
)


class Built(NamedTuple):
    """What a config means on this machine."""

    method: Method
    data: Splits
    run: Run
    mesh: jax.sharding.Mesh
    learning_rate: Callable[[Any], Any]


def load_data(config: ConfigDict) -> Splits:
    """The config's data, with `fraction` of the training labels when the section asks for it."""
    section = dict(config.data)
    share = section.pop("fraction", 1.0)
    splits: Splits = _call("cl_jax.data", section)
    return (
        splits._replace(train=fraction(splits.train, share, seed=config.seed))
        if share < 1
        else splits
    )


def build(config: ConfigDict, previous: Stage | None = None) -> Built:
    """Data, devices, networks, optimiser and method of a config; every mistake in it is found
    here."""
    mesh = parallel.make_mesh(config.devices or None)
    data = load_data(config)
    size, batch = data.train.size, config.batch_size
    if size < batch:
        raise ValueError(
            f"{data.train.name} has {size} training examples, fewer than one batch of {batch}. "
            f"Set --config.batch_size={max(size // 2, 1)} or give more data."
        )
    if batch % mesh.size:
        raise ValueError(
            f"batch_size={batch} is not divisible by {mesh.size} devices; "
            f"try --config.batch_size={max(batch // mesh.size, 1) * mesh.size}."
        )
    steps_per_epoch = size // batch
    total_steps = max(1, round(config.total_epochs * steps_per_epoch))
    run = Run(AXIS, batch, size, steps_per_epoch, total_steps, dict(data.train.sizes), previous)
    encoder = _call("cl_jax.encoders", dict(config.encoder), axis_name=AXIS)
    tx, learning_rate = _checked(
        optim.build,
        dict(config.optimizer),
        batch_size=batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    recipes = []
    for name in sorted(config.views):
        section = dict(config.views[name])
        copies = section.pop("copies", 1)
        recipes += [views.make(section)] * copies
    method = _call(
        "cl_jax.methods", dict(config.method), encoder=encoder, tx=tx, views=tuple(recipes), run=run
    )
    missing = [field for field in method.needs if field not in data.train.read(0)]
    if missing:
        raise ValueError(
            f"{config.method.name} needs the batch fields {missing}; {data.train.name} has "
            f"{sorted(data.train.read(0))}."
        )
    return Built(method, data, run, mesh, learning_rate)


def load(
    workdir: str | Path, config: ConfigDict | None = None, *, best: bool = False
) -> tuple[ConfigDict, Built, State]:
    """Loads a finished or interrupted run: (config, what it built, its newest State).

    Args:
      workdir: of the run.
      config: settings to use instead of the run's own; they may differ from these in what no
        training step reads (`EVALUATION`).
      best: the best State by the evaluations in place of the newest.

    Raises:
      FileNotFoundError: there is no run, or it has no checkpoint.
      ValueError: `config` is of another run; the message lists the differences.
    """
    own = configs.of_run(workdir)
    if config is None:
        config = own
    else:
        _refuse_another_run(workdir, own, config)
    config = ConfigDict(config.copy_and_resolve_references()).unlock()
    built = build(config, previous_stage(config, workdir))
    like = initial_state(built, config)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    state = checkpoints.restore(like, best=best)
    checkpoints.close()
    if state is None:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
    return config, built, state


def _refuse_another_run(workdir: str | Path, own: ConfigDict, given: ConfigDict) -> None:
    kept, now = (
        {
            key: value
            for key, value in checkpoint.flatten(json.loads(config.to_json())).items()
            if key.split(".")[0] not in EVALUATION
        }
        for config in (own, given)
    )
    rows = [
        f"  {key}: {kept.get(key, '(absent)')} in the workdir, {now.get(key, '(absent)')} given"
        for key in sorted(kept.keys() | now.keys())
        if kept.get(key) != now.get(key)
    ]
    if rows:
        raise ValueError(
            f"{workdir} holds a run of another config; it differs in\n"
            + "\n".join(rows)
            + "\nGive the run's own config, or none, with the settings of the evaluation."
        )


def initial_state(built: Built, config: ConfigDict) -> State:
    """The State of step 0, one compiled program."""
    example = built.data.train.read(0)
    fields = fields_of(built.method, example)
    rows = local_rows(built.run.batch_size, jax.process_index(), jax.process_count())
    size = rows.stop - rows.start
    batch = {
        name: np.zeros((size, *np.shape(example[name])), np.asarray(example[name]).dtype)
        for name in fields
    }
    batch["id"] = np.zeros(size, np.int32)
    init = parallel.lift(built.method.init, built.mesh, (SAME, EACH), SAME)
    key = jax.random.fold_in(jax.random.key(config.seed), 0x1217)
    return init(parallel.replicate(key, built.mesh), parallel.place_batch(batch, built.mesh))


def describe(config: ConfigDict, built: Built, state: State) -> str:
    """What is about to run, in one block."""
    method, run, mesh = built.method, built.run, built.mesh

    def megabytes(tree: Any) -> float:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20

    number = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    kind = mesh.devices.flat[0].device_kind
    return "\n".join(
        (
            f"{config.method.name} on {built.data.train.name}: {run.size} training examples, "
            f"{built.data.test.size} test",
            f"process {jax.process_index() + 1} of {jax.process_count()}; {mesh.size} device(s): "
            f"{kind}",
            f"global batch {run.batch_size} ({run.batch_size // mesh.size} a device), "
            f"{run.steps_per_epoch} steps an epoch, "
            f"{run.total_steps} steps ({config.total_epochs:g} epochs)"
            + ("" if method.negatives is None else f", {method.negatives:,} negatives per anchor"),
            f"parameters {number:,}; State {megabytes(state):.1f} MiB a device: parameters "
            f"{megabytes(state.params):.1f}, "
            f"optimiser {megabytes(state.opt):.1f}, target {megabytes(state.target):.1f}, memory "
            f"{megabytes(state.memory):.1f}",
        )
    )


def previous_stage(config: ConfigDict, workdir: str | Path) -> Stage | None:
    """The stage that `config.previous` names, a path relative to this stage's workdir."""
    name = config.get("previous", "")
    if not name:
        return None
    _, built, state = load(
        os.path.normpath(Path(workdir) / name)
    )  # "../pretrain" of a folder that is not there yet
    return Stage(built.method, state)


def fields_of(method: Method, example: dict[str, Any]) -> list[str]:
    """The fields of an example that the method's step is given."""
    return [name for name in example if name in method.needs or name == "image_b"]


def _call(package: str, section: dict[str, Any], **given: Any) -> Any:
    """`make` of the module a section names, with the section as keywords."""
    name = section.pop("name", "")
    folder = Path(importlib.import_module(package).__path__[0])
    known = sorted(path.stem for path in folder.glob("*.py") if "\ndef make(" in path.read_text())
    if name not in known:
        raise ValueError(
            f"{package}.{name or '(no name)'} does not exist; have {', '.join(known)}"
            f"{nearest(name, known)}."
        )
    return _checked(importlib.import_module(f"{package}.{name}").make, section, **given)


def _checked(make: Callable[..., Any], section: dict[str, Any], **given: Any) -> Any:
    """Calls a factory; a keyword it does not have is an error that names the nearest one."""
    known = make.__code__.co_varnames[: make.__code__.co_argcount + make.__code__.co_kwonlyargcount]
    for key in section:
        if key not in known or key in given:
            options = [name for name in known if name not in given]
            raise ValueError(
                f"{make.__module__}.{make.__name__} has no setting {key!r}"
                f"{nearest(key, options)}. It takes {', '.join(options)}."
            )
    return make(**{key: _plain(value) for key, value in section.items()}, **given)


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def stages(config: ConfigDict, workdir: str | Path) -> list[tuple[str, ConfigDict, Path]]:
    """(name, config, workdir) of what is to run: one run, the stage asked for, or all stages in
    their order."""
    config = ConfigDict(config.copy_and_resolve_references()).unlock()
    overrides, order, asked = config.stages, list(config.get("stage_order", ())), config.stage
    del config.stages, config.stage
    if "stage_order" in config:
        del config.stage_order
    if not order:
        if asked:
            raise ValueError(f"stage={asked!r}: this config has one stage only; leave it out.")
        return [("", config, Path(workdir))]
    if asked not in ("", "all", *order):
        raise ValueError(
            f"stage={asked!r} is unknown; have all, {', '.join(order)}{nearest(asked, order)}."
        )
    chosen = order if asked == "all" else [asked or order[0]]
    found = []
    for name in chosen:
        stage = ConfigDict(config.copy_and_resolve_references()).unlock()
        for section, value in overrides[name].items():
            if section in stage and isinstance(stage[section], ConfigDict):
                if section == "views" or "name" in value:
                    stage[section] = ConfigDict(value)
                else:
                    stage[section].update(value)
            else:
                stage[section] = value
        found.append((name, stage, Path(workdir) / name))
    return found
