"""What a config means on this machine: data, devices, networks, optimiser, method. Mistakes in it
are found here."""

import importlib
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
from cl_jax.core.seeds import check_seed
from cl_jax.data import batches
from cl_jax.data.batches import local_rows
from cl_jax.data.source import Splits, fraction
from cl_jax.training import optim


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


def loading_of(config: ConfigDict) -> batches.Loading:
    """How the config's examples are read."""
    return _checked(batches.loading, dict(config.get("loading", {})))


def build(config: ConfigDict, previous: Stage | None = None) -> Built:
    """Data, devices, networks, optimiser and method of a config; every mistake in it is found
    here."""
    mesh = parallel.make_mesh(config.devices or None)
    check_seed(config.seed)
    loading_of(config)
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
