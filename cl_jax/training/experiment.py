"""Builds data, devices, networks, optimiser, method and evaluators from a config, and finds its
mistakes."""

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cl_jax import views
from cl_jax.core import parallel, processor, settings, xla
from cl_jax.core.annotations import movable
from cl_jax.core.errors import ConfigError
from cl_jax.core.method import Method, Run, Stage, State
from cl_jax.core.names import nearest
from cl_jax.core.parallel import AXIS, EACH, SAME
from cl_jax.core.parts import Parts, from_parts
from cl_jax.core.seeds import check_seed
from cl_jax.data import batches
from cl_jax.data.batches import local_rows
from cl_jax.data.parts import joined
from cl_jax.data.source import (
    Splits,
    for_evaluation,
    fraction,
    held_out,
    labels_of,
    long_tailed,
    with_learnt,
)
from cl_jax.evals import Evaluator, evaluation, requirements
from cl_jax.training import configs, optim, optimizer_settings, programs
from cl_jax.training.defaults import get_config as get_defaults
from cl_jax.training.resuming import Leeway

# Keys of a config that has no default of them: see `stages.stages` and `fit.fit`.
OPTIONAL = ("steps_per_epoch", "previous", "stage_order", "fit", "fit_epochs")
LARGE = 1 << 24  # parameters, from which on a CPU optimised draws are sooner done


class Built(NamedTuple):
    """Data, devices, networks, optimiser, method and evaluators of a config."""

    method: Method
    data: Splits
    run: Run
    mesh: jax.sharding.Mesh
    learning_rate: Callable[[Any], Any]
    views: tuple[Any, ...] = ()
    evaluators: Mapping[str, Evaluator] = MappingProxyType({})
    encoder: Any = None  # the module that the config names; of several, {role: module}


# Keys of a data section that `load_data` reads itself, and what they are without.
OF_TRAINING: Mapping[str, Any] = MappingProxyType(
    {"fraction": 1.0, "imbalance": None, "validation": 0.0, "unlabeled": False}
)


def of_training(section: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `OF_TRAINING` in a data section, their types checked."""
    kinds: dict[str, Any] = {"imbalance": float | None, "unlabeled": bool}
    found = {key: section.get(key, unset) for key, unset in OF_TRAINING.items()}
    for key, value in found.items():
        settings.check_value(f"data.{key}", value, kinds.get(key, float))
    return found


def load_data(config: ConfigDict, learnt: Mapping[str, Any] | None = None) -> Splits:
    """The config's data, changed as its section says.

    `learnt`: given to a source that takes it, see `Source`; no setting of a config.

    `validation`: that share of the training part is held out by the run's seed (`source.held_out`)
    and takes the place of the test part, which is then read by nothing; `more` stays as it is.
    `fraction`: the share of the training part that is trained on, of each class where there are
    labels. `imbalance`: how long-tailed that is made; where it is given, even as 1, the training
    part before both is `more["balanced"]`.
    `unlabeled`: the examples of `more["unlabeled"]` are trained on too, after those, with the label
    -1; evaluators read the labelled ones.

    Raises:
      ConfigError: a validation part of data whose test part is only half of its evaluation; no
        unlabelled part.
    """
    section, own = dict(config.data), of_training(config.data)
    section = {key: value for key, value in section.items() if key not in own}
    imbalance, validation = own["imbalance"], own["validation"]
    takes = parameters("cl_jax.data", section.get("name", ""))
    given = {"learnt": learnt} if "learnt" in takes else {}
    splits: Splits = _call("cl_jax.data", section, **given)
    kept = splits.learnt
    if validation:
        if "gallery" in splits.more:
            raise ConfigError(
                f"data.validation={validation:g}: the test part of {config.data.name} are queries "
                "to a gallery of the same people, and no part of the training images has one; "
                "leave it 0."
            )
        train, held = held_out(splits.train, validation, seed=config.seed)
        splits = splits._replace(train=train, test=held)
    label = "label" if "label" in splits.train.sizes else None  # sentences have none
    train = fraction(splits.train, own["fraction"], seed=config.seed, label=label)
    if imbalance is not None:
        splits = splits._replace(more={**splits.more, "balanced": splits.train})
        train = long_tailed(train, imbalance, seed=config.seed)
    if own["unlabeled"]:
        if "unlabeled" not in splits.more:
            raise ConfigError(
                f"data.unlabeled=True: {config.data.name} has no unlabelled part; expected a "
                "folder or an .npz of that name beside train, or data.unlabeled_split of tfds."
            )
        train = joined(train, splits.more["unlabeled"])
    return with_learnt(splits._replace(train=train), kept)


def loading_of(config: ConfigDict) -> batches.Loading:
    """How the config's examples are read."""
    return _checked(batches.loading, dict(config.get("loading", {})))


def build(config: ConfigDict, previous: Stage | None = None, data: Splits | None = None) -> Built:
    """Builds all that a config describes; every mistake in it is found here.

    Args:
      config: of one stage.
      previous: the stage that it starts from.
      data: in place of the config's own; whether it has what evaluators read is then not checked.

    Raises:
      ValueError: a setting that does not exist, is out of range, or does not fit the others; an
        evaluator that reads a feature, function, field or source that there is not.
    """
    try:
        return _build(config, previous, data)
    except MemoryError as error:
        raise ConfigError(
            f"what the config asks for does not fit in the memory of this machine "
            f"({str(error) or 'no room'}). Lower the sizes in it, or data.cache_bytes."
        ) from error


def _build(config: ConfigDict, previous: Stage | None, given: Splits | None) -> Built:
    _check_run(config)
    mesh = parallel.make_mesh(config.devices or None)
    check_seed(config.seed)
    loading_of(config)
    data = load_data(config) if given is None else given
    run = _run(config, data, mesh, previous)
    encoder = _encoder(dict(config.encoder), run)
    optimizer = configs.plain(config.optimizer)
    # A setting without effect is refused where the user gives it (`stages.stages`) and printed by
    # `describe`: an older run's config, or one that builds on another, may have it and must work.
    tx, learning_rate = _checked(
        optim.build,
        optimizer,
        batch_size=run.batch_size,
        steps_per_epoch=run.steps_per_epoch,
        total_steps=run.total_steps,
    )
    recipes = _views(config.views, run)
    seen: set[str] = set()
    tx = optimizer_settings.watched(tx, seen)
    parts = {"encoder": encoder, "tx": tx, "views": recipes, "run": run}
    try:
        method = _method(dict(config.method), parts)
    except AttributeError as error:
        _refuse_without_dtype(error, encoder)
        raise
    method = dataclasses.replace(
        method, init=functools.partial(_checked_init, method.init, optimizer, seen)
    )
    there = sorted(data.train.read(0))
    missing = [field for field in method.needs if field not in there]
    if missing:
        raise ValueError(
            f"{config.method.name} needs the batch fields {missing}; {data.train.name} has {there}."
        )
    evaluators = {
        name: _call("cl_jax.evals", {"name": name} | section)
        for name, section in configs.plain(config.evals.protocols).items()
    }
    built = Built(method, data, run, mesh, learning_rate, recipes, evaluators, encoder)
    if given is None:  # what stands in for the data may lack what evaluators alone read
        _check_evaluation(built, config)
    return built


def _checked_init(
    init: Callable[..., State],
    optimizer: Mapping[str, Any],
    seen: set[str],
    key: jax.Array,
    batch: Any,
) -> State:
    """A method's `init`; refuses a pattern of the optimiser that matches none of its parameters.
    Its optimiser adds the paths that it sees to `seen`."""
    state = init(key, batch)
    optimizer_settings.check_patterns(optimizer, state.params, seen)
    return state


def _check_evaluation(built: Built, config: ConfigDict) -> None:
    """Checks that all that the config's evaluators read is there. Which features the network has is
    known from its trace, some tenths of a second: it is traced where a feature other than "h", the
    common one, is asked for. The loop looks again, at the State, before the first step."""
    method, data, features = built.method, built.data, None
    usable = requirements.with_data(built.evaluators, data, quiet=True)
    if requirements.features_asked(usable, config) != ("h",):
        mesh = parallel.make_mesh(1)
        batch = evaluation.few(method, data.test, mesh)
        alone = built._replace(mesh=mesh)
        features = requirements.encoded(method, shape_of_state(alone), batch, mesh)
    requirements.check(usable, method, data, config, features, built.views)


def _check_run(config: ConfigDict) -> None:
    """Checks the settings of the trainer itself by the names and types of their defaults."""
    reference = configs.plain(get_defaults())
    settings.check_keys("the config", config, (*reference, *OPTIONAL))
    settings.check_keys("evals", config.evals, reference["evals"])
    for where, given, known in (
        ("", configs.plain(config), reference),
        ("evals.", configs.plain(config.evals), reference["evals"]),
    ):
        for key, value in given.items():
            if key in known and not isinstance(known[key], dict | tuple):
                settings.check_value(f"{where}{key}", value, type(known[key]))
    for path, sections in (
        ("views", config.views),
        ("encoder", {} if "name" in config.encoder else config.encoder),
        ("evals.protocols", config.evals.protocols),
    ):
        for key, value in sections.items():
            if not isinstance(value, ConfigDict):
                raise ConfigError(
                    f"{path}.{key}={value!r}; expected a section, for instance {key}=dict()."
                )


def _run(config: ConfigDict, data: Splits, mesh: jax.sharding.Mesh, previous: Stage | None) -> Run:
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
    steps_per_epoch = config.get("steps_per_epoch", 0) or size // batch
    return Run(
        axis_name=AXIS,
        batch_size=batch,
        size=size,
        steps_per_epoch=steps_per_epoch,
        total_steps=max(1, round(config.total_epochs * steps_per_epoch)),
        sizes=dict(data.train.sizes),
        labels=programs.Asked(lambda field: labels_of(data.train, field)),
        previous=previous,
    )


def _encoder(section: dict[str, Any], run: Run) -> Any:
    """The module that a section names; of a section of sections, {role: module}. A factory is given
    the facts of the run that it takes: `axis_name`, one of any keywords too, and `sizes`."""
    if "name" not in section:
        return {role: _encoder(dict(one), run) for role, one in section.items()}
    make = _factory("cl_jax.encoders", section.pop("name"))
    known = inspect.signature(make).parameters
    given: dict[str, Any] = {}
    # A factory that hands its keywords to another is one of a network with batch norm, as a rule.
    if "axis_name" in known or any(one.kind is one.VAR_KEYWORD for one in known.values()):
        given["axis_name"] = run.axis_name
    if "sizes" in known:
        given["sizes"] = run.sizes
    return _checked(make, section, **given)


def _refuse_without_dtype(error: AttributeError, encoder: Any) -> None:
    """Raises ConfigError if the method asked an encoder for a dtype that it does not have."""
    modules = encoder.values() if isinstance(encoder, dict) else [encoder]
    if error.name == "dtype" and any(error.obj is module for module in modules):
        kind = type(error.obj)
        raise ConfigError(
            f"the encoder {kind.__module__}.{kind.__qualname__} has no dtype, which the method "
            "gives its heads too; add the field `dtype: str = 'float32'`."
        ) from None


def dtype_of(config: ConfigDict) -> str:
    """The type that the config's networks compute in; of several, the first one's."""
    section = config.encoder
    while "name" not in section and len(section):
        section = next(iter(section.values()))
    return str(section.get("dtype") or "float32")


def _views(section: ConfigDict, run: Run) -> tuple[Any, ...]:
    """The views of all sections, in the order that the config writes them. A factory is given the
    facts of the training data that it takes: `sizes`, and `labels`, field -> [N]."""
    recipes: list[Any] = []
    facts = {"sizes": run.sizes, "labels": run.labels}
    for name, view in configs.plain(section).items():
        copies, kind = view.pop("copies", 1), view.pop("kind", "image")
        settings.check_value(f"views.{name}.copies", copies, int)
        settings.check_value(f"views.{name}.name", view.get("name"), str | None)
        make = _factory("cl_jax.views", kind)
        for takes in views.factories(kind, view):
            settings.check(f"views.{name}", takes, view)
        known = inspect.signature(make).parameters
        given = {fact: value for fact, value in facts.items() if fact in known}
        recipes += [_checked(make, view, **given)] * copies
    return tuple(recipes)


def _method(section: dict[str, Any], given: dict[str, Any]) -> Method:
    """The method that a section names.

    A method made of whole methods (a population) takes `build`, which makes one of a section, and
    reads its section `base` itself. A cross, whose section has a section `base` too, is given the
    base's parts in place of networks and views.
    """
    make = _factory("cl_jax.methods", section.get("name", ""))
    if "build" in inspect.signature(make).parameters:
        del section["name"]

        def build(section: Mapping[str, Any], views: Any = None) -> Method:
            changed = {} if views is None else {"views": _views(ConfigDict(views), given["run"])}
            return _method(dict(section), given | changed)

        whole: Method = _checked(make, section, build=build)
        return whole
    if "base" not in section:
        method: Method = _call("cl_jax.methods", section, **given)
        return method
    base = _parts(section.pop("base"), given)
    made: Method = from_parts(_call("cl_jax.methods", section, base=base, run=given["run"]))
    return made


def _parts(base: Any, given: dict[str, Any]) -> Parts:
    """The parts of the method that a section `base` names, or of a cross over a base of its own."""
    if not isinstance(base, Mapping | ConfigDict):
        raise ConfigError(
            f"method.base={base!r}; expected a section, for instance base=dict(name='simclr_v1')."
        )
    section = dict(base)
    if "base" in section:
        make = _factory("cl_jax.methods", section.get("name", ""))
        if "build" in inspect.signature(make).parameters:
            raise ConfigError(
                f"method.base.name={section['name']!r} is made of whole methods, and a cross "
                "changes one of them. Make the cross the base there."
            )
        base = _parts(section.pop("base"), given)
        crossed: Parts = _call("cl_jax.methods", section, base=base, run=given["run"])
        return crossed
    name = section.pop("name", "")
    module = module_of("cl_jax.methods", name, "parts")
    found: Parts = _checked(module.parts, section, **given)
    return found


def defaults(config: ConfigDict) -> dict[str, Any]:
    """{"section.key": value} of the keys that a config need not list: what the functions behind
    its sections take where they are given nothing."""
    found: dict[str, Any] = {
        "data.fraction": 1.0,
        "data.imbalance": 1.0,
        "data.unlabeled": False,
        "data.validation": 0.0,
        "previous": "",
        "steps_per_epoch": 0,
    }
    found |= {key: v for key, v in get_defaults().items() if not isinstance(v, ConfigDict)}
    for name, view in configs.plain(config.views).items():
        found |= {f"views.{name}.{key}": value for key, value in views.unset(view).items()}
    for section, make in _factories(config).items():
        for key, parameter in inspect.signature(make).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                found[f"{section}.{key}"] = parameter.default
    return found


def _factories(config: ConfigDict) -> dict[str, Callable[..., Any]]:
    """{section: the function whose keywords its keys are}, but of views and evaluators."""
    makes: dict[str, Callable[..., Any]] = {
        "data": _factory("cl_jax.data", config.data.name),
        "optimizer": optim.build,
    }
    path, section = "method", config.method
    while isinstance(section, ConfigDict) and section.get("name"):  # a cross, its base, its base
        makes[path] = _factory("cl_jax.methods", section.name)
        path, section = f"{path}.base", section.get("base")
    for path, section in {"encoder": config.encoder, **_roles(config.encoder)}.items():
        if "name" in section:
            makes[path] = _factory("cl_jax.encoders", section.name)
    return makes


def leeway(config: ConfigDict) -> Leeway:
    """How a config may differ from its run's: `defaults`, and the keys that their factories mark:
    those of the data section as `data.source.ForEvaluation`, and all as
    `core.annotations.Movable`."""
    makes = _factories(config)
    of_evaluation = [f"data.{key}" for key in for_evaluation(makes["data"])]
    elsewhere = [f"{path}.{key}" for path, make in makes.items() for key in movable(make)]
    return Leeway(defaults(config), of_evaluation, elsewhere)


def _roles(encoder: ConfigDict) -> dict[str, ConfigDict]:
    """{"encoder.ROLE": section} of an encoder section of several."""
    return {} if "name" in encoder else {f"encoder.{role}": encoder[role] for role in encoder}


class Start:
    """Each call returns a new State of step 0. The program is compiled at the first call."""

    def __init__(self, built: Built, config: ConfigDict):
        self.built, self.config = built, config
        self.program: Callable[..., State] | None = None

    def __call__(self) -> State:
        built, mesh = self.built, self.built.mesh
        example = built.data.train.read(0)
        rows = local_rows(built.run.batch_size, jax.process_index(), jax.process_count())
        size = rows.stop - rows.start
        # A real example, so that what pads it (masks) is not all there is.
        batch = {
            name: np.repeat(np.asarray(example[name])[None], size, axis=0)
            for name in fields_of(built.method, example)
        }
        batch["id"] = np.zeros(size, np.int32)
        key = parallel.replicate(jax.random.key(self.config.seed), mesh)
        given = key, parallel.place_batch(batch, mesh)
        if self.program is None:
            start = functools.partial(_start, built.method.init)
            lifted = parallel.lift(start, mesh, (SAME, EACH), SAME)
            self.program = programs.compiled(
                "start",
                lifted,
                given,
                self.config,
                built.run,
                lambda lowered: _once(lowered.out_info, mesh),
            )
        state = parallel.spread(self.program(*given), mesh)
        if built.method.begin is None:
            return state
        begun: State = parallel.place_as(built.method.begin(state), state)
        return begun


def _start(init: Callable[..., State], key: jax.Array, batch: Any) -> State:
    return init(jax.random.fold_in(key, 0x1217), batch)


def initial_state(built: Built, config: ConfigDict) -> State:
    """The State of step 0, by one compiled program; see `Start`."""
    return Start(built, config)()


def _once(state: State, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Compiler options of the program that fills a State. A CPU's draws of a small network take
    far less time than optimising them would; the level follows from the parameters alone, since
    last bits depend on it."""
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return xla.optimised(0 if count < LARGE else 1, mesh.devices.flat[0].platform)


def shape_of_state(built: Built) -> State:
    """The State of a run as shapes and types, each array on every device of its mesh: what a
    checkpoint is restored into. Nothing is compiled."""
    example = built.data.train.read(0)
    batch = {
        name: jax.ShapeDtypeStruct(
            (built.run.batch_size, *np.shape(example[name])), np.asarray(example[name]).dtype
        )
        for name in fields_of(built.method, example)
    } | {"id": jax.ShapeDtypeStruct((built.run.batch_size,), np.int32)}
    # A State does not depend on the number of devices, and one device takes every batch.
    init = parallel.lift(built.method.init, parallel.make_mesh(1), (SAME, EACH), SAME)
    placed = jax.sharding.NamedSharding(built.mesh, SAME)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), batch),
    )
    return parallel.spread(state, built.mesh)


def describe(config: ConfigDict, built: Built, state: State, *, begins: bool = True) -> str:
    """What is about to run, in one block; begins: from its first step."""
    method, run, mesh = built.method, built.run, built.mesh

    def megabytes(tree: Any) -> float:
        return parallel.bytes_of_a_device(tree, mesh) / 2**20

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
            *optimizer_settings.without_effect(configs.plain(config.optimizer)).values(),
            *(_slow_type(config, mesh) if begins and not config.get("previous", "") else ()),
        )
    )


def _slow_type(config: ConfigDict, mesh: jax.sharding.Mesh) -> list[str]:
    """A line for a run in bfloat16 on a processor that has no instructions for it. It is for runs
    that begin: a resume may not change the type, and a stage after another has its network."""
    keys = list(_in_bfloat16("encoder", config.encoder))
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if not (keys and on_cpu and processor.lacks_bfloat16()):
        return []
    options = " ".join(f"--config.{key}=float32" for key in keys)
    return [
        "bfloat16 is slower than float32 on this processor, which has no instructions for it; give "
        f"{options}"
    ]


def _in_bfloat16(key: str, section: ConfigDict) -> Iterator[str]:
    """The keys of a section and of those in it that set the type bfloat16."""
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            yield from _in_bfloat16(f"{key}.{name}", value)
        elif name == "dtype" and value == "bfloat16":
            yield f"{key}.{name}"


def fields_of(method: Method, example: dict[str, Any]) -> list[str]:
    """The fields of an example that the method's step is given."""
    return [name for name in example if name in method.needs or name in method.wants]


def _call(package: str, section: dict[str, Any], **given: Any) -> Any:
    """`make` of the module a section names, with the section as keywords."""
    name = section.pop("name", "")
    return _checked(_factory(package, name), section, **given)


def _factory(package: str, name: str) -> Callable[..., Any]:
    factory: Callable[..., Any] = module_of(package, name, "make").make
    return factory


def parameters(package: str, name: str) -> Mapping[str, inspect.Parameter]:
    """The keywords that a section of that name takes."""
    return inspect.signature(_factory(package, name)).parameters


def module_of(package: str, name: str, function: str) -> Any:
    """The module `name` of a package, or any module by its dotted path, that has the function.

    Raises:
      ValueError: no such module, with the nearest name; a module without the function.
    """
    if not isinstance(name, str):
        raise ConfigError(f"name={name!r}; expected the name of a module of {package}.")
    if "." in name and all(word.isidentifier() for word in name.split(".")):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and something that it imports is not
            raise ValueError(
                f"the module {name} cannot be imported: {error}. Is its folder on PYTHONPATH?"
            ) from None
        if not hasattr(module, function):
            raise ValueError(f"{name} has no function {function}(...); see docs/design.")
        return module
    folder = Path(importlib.import_module(package).__path__[0])
    known = sorted(
        path.stem
        for path in folder.glob("*.py")
        if re.search(rf"^(def {function}\(|{function} = )", path.read_text(), flags=re.MULTILINE)
    )
    if name not in known:
        raise ValueError(
            f"{package}.{name or '(no name)'} does not exist"
            f"{'' if function == 'make' else f' or has no {function}(...)'}; have "
            f"{', '.join(known)}{nearest(name, known)}."
        )
    return importlib.import_module(f"{package}.{name}")


def _checked(make: Callable[..., Any], section: dict[str, Any], **given: Any) -> Any:
    """Calls a factory; a keyword it does not have is an error that names the nearest one. A
    factory of any keywords checks them itself."""
    parameters = inspect.signature(make).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return make(**section, **given)
    # A method's `make` is made of its `parts`, and has their keywords.
    function = "make" if make.__name__ == "parts" else make.__name__
    name = f"{make.__module__}.{function}"
    known = [key for key in parameters if key not in given]
    settings.check_keys(name, section, known)
    plain = {key: _plain(value) for key, value in section.items()}
    settings.check_required(name, make, [*plain, *given])
    settings.check(_section_of(make) or name, make, plain)
    return make(**plain, **given)


def _section_of(make: Callable[..., Any]) -> str:
    """The section of a config whose keys are the keywords of a factory, "" where that is not
    known."""
    if make in (optim.build, batches.loading):
        return "optimizer" if make is optim.build else "loading"
    package, _, name = make.__module__.rpartition(".")
    sections = {"cl_jax.methods": "method", "cl_jax.encoders": "encoder", "cl_jax.data": "data"}
    return f"evals.protocols.{name}" if package == "cl_jax.evals" else sections.get(package, "")


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value
