"""The stages of a config, and a stage read back from its workdir."""

import copy
import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cl_jax.core import parallel, settings
from cl_jax.core.errors import ConfigError, NotFoundError, WithoutEffect
from cl_jax.core.method import Stage, State
from cl_jax.core.names import nearest
from cl_jax.data.source import Splits
from cl_jax.training import (
    checkpoint,
    configs,
    fingerprint,
    optim,
    optimizer_settings,
    rebuilding,
    resuming,
)
from cl_jax.training.experiment import Built, build, leeway, shape_of_state
from cl_jax.training.workdir import path_of


def stages(
    config: ConfigDict, workdir: str | Path, given: Sequence[str] = ()
) -> list[tuple[str, ConfigDict, Path]]:
    """(name, config, workdir) of what is to run: one run, the stage asked for, or all stages in
    their order.

    Args:
      config: with `stages`, {name: what the stage changes}, which `stage_order` puts in order, and
        `stage`. A stage leaves out an evaluator of the config by None.
      given: keys that the user set in the config, such as "optimizer.learning_rate". They hold for
        every stage that has them: a stage whose section is of another `name` does not have the keys
        of the base's section (unless that stage alone is asked for), and "stages.NAME.KEY" is of
        one stage.

    Raises:
      ConfigError: `stage` names no stage of this config; `stages` without `stage_order`, or an
        order that names a stage without a section; a stage leaves out an evaluator that the config
        does not have; the workdir of stages is itself a run; a setting of the optimiser is given
        that no stage's optimiser reads.
    """
    found = _stages(config, workdir, given)
    # A run that is there was trained with the setting, and the same command resumes it.
    if not any(checkpoint.are_in(place) for _, _, place in found):
        for key in given:
            _check_effect(key, found)
    return found


def _stages(
    config: ConfigDict, workdir: str | Path, given: Sequence[str]
) -> list[tuple[str, ConfigDict, Path]]:
    base, root = configs.plain(config), path_of(workdir)
    overrides, asked = base.pop("stages"), base.pop("stage")
    order = list(base.pop("stage_order", ()))
    if not order:
        if overrides:
            raise ConfigError(
                f"stages has {', '.join(overrides)}, and stage_order, which says what runs after "
                f"what, is missing or empty; set config.stage_order = {tuple(overrides)!r}."
            )
        if asked:
            raise ConfigError(f"stage={asked!r}: this config has one stage only; leave it out.")
        return [("", ConfigDict(base), root)]
    for name in order:
        if name not in overrides:
            raise ConfigError(
                f"stage_order names {name!r}, of which stages has no section"
                f"{nearest(name, overrides)}; it has {', '.join(overrides) or 'none'}. A stage "
                f"that changes nothing is {name}=dict()."
            )
    if asked not in ("", "all", *order):
        raise ConfigError(
            f"stage={asked!r} is unknown; have all, {', '.join(order)}{nearest(asked, order)}."
        )
    if checkpoint.are_in(root):
        above = root.resolve().parent
        raise ConfigError(
            f"{workdir} holds a run, and the stages of this config have folders of their own in "
            "the workdir. "
            + (f"Give --workdir={above}." if root.name in order else "Give another --workdir.")
        )
    chosen = order if asked == "all" else [asked or order[0]]
    found = []
    for name in chosen:
        stage = copy.deepcopy(base)
        for section, value in overrides[name].items():
            whole = section == "views" or not isinstance(value, dict) or "name" in value
            if whole or section not in stage:
                stage[section] = copy.deepcopy(value)
            else:
                _merge(stage[section], value)
        for key in given:
            if f"stages.{name}.{key}" not in given:
                _follow(stage, base, key.split("."), alone=asked == name)
        _leave_out(stage, base, name)
        found.append((name, ConfigDict(stage), root / name))
    return found


def _leave_out(stage: dict[str, Any], base: dict[str, Any], name: str) -> None:
    """Takes the evaluators out of a stage's config of which the stage says None."""
    own, known = (one["evals"][configs.PROTOCOLS] for one in (stage, base))
    for key in [key for key, section in own.items() if section is None]:
        if key not in known:
            raise ConfigError(
                f"stages.{name}.evals.protocols.{key}=None leaves out an evaluator that the config "
                f"does not have{nearest(key, known)}; it has {', '.join(known) or 'none'}."
            )
        del own[key]


def _check_effect(key: str, found: Sequence[tuple[str, ConfigDict, Path]]) -> None:
    """Refuses a key of the optimiser that the user gave where it has no effect in any stage."""
    sentences = []
    for name, config, _ in found:
        own = key.removeprefix(f"stages.{name}.")
        if own.startswith("optimizer."):
            section = configs.plain(config.optimizer)
            settings.check("optimizer", optim.build, section)
            lost = optimizer_settings.without_effect(section)
            sentences.append(lost.get(own.removeprefix("optimizer."), ""))
    if sentences and all(sentences):
        raise ConfigError(sentences[0])


def _merge(section: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(section.get(key), dict):
            _merge(section[key], value)
        else:
            section[key] = value


def _follow(stage: dict[str, Any], base: dict[str, Any], path: list[str], alone: bool) -> None:
    """Gives a stage's config the value that the user set in the base at `path`."""
    value: Any = base
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return  # of a stage, or of a section that the base does not have
        value = value[part]
    if len(path) == 1:
        stage[path[0]] = value
    elif path[:2] == ["evals", configs.PROTOCOLS] and len(path) == 3:
        return  # an evaluator as a whole is in the base, and a stage's own settings are beside it
    elif path[0] == "views" and len(path) == 3:
        views = stage["views"]
        for view in [views[path[1]]] if path[1] in views else views.values():
            view[path[2]] = value
    else:
        of_stage, of_base = stage[path[0]], base[path[0]]
        # The optimiser's keys are the same whatever its name.
        same = path[0] == "optimizer" or of_stage.get("name") == of_base.get("name")
        if same or alone:
            for part in path[1:-1]:
                of_stage = of_stage.setdefault(part, {})
                if of_stage is None:
                    return  # an evaluator that the stage leaves out
            of_stage[path[-1]] = value


def previous_stage(config: ConfigDict, workdir: str | Path) -> Stage | None:
    """The stage that `config.previous` names, a path relative to this stage's workdir.

    Its State lies on one device and on no mesh, so that programs for any number of devices and
    processes may close over it.

    Raises:
      ConfigError: it has no run there, or one that has not ended.
    """
    name = config.get("previous", "")
    if not name:
        return None
    # "../pretrain" of a folder that need not be there yet
    folder = os.path.normpath(path_of(workdir) / name)
    try:
        _, built, state = load(folder, with_data=False)
    except NotFoundError as error:
        raise NotFoundError(
            f"{workdir} starts from the end of another stage. {error} Run the stages in their "
            "order, for instance by --stage=all."
        ) from None
    if int(state.step) < built.run.total_steps:
        raise ConfigError(
            f"{workdir} starts from the end of {folder}, which is at step {int(state.step)} of "
            f"{built.run.total_steps}. Finish it first: the command that started it resumes it."
        )
    return Stage(built.method, jax.tree.map(jnp.asarray, parallel.fetch(state)))


def load(
    workdir: str | Path,
    config: ConfigDict | None = None,
    *,
    best: bool = False,
    with_data: bool = True,
) -> tuple[ConfigDict, Built, State]:
    """Loads a finished or interrupted run: (config, what it built, its newest State).

    Args:
      workdir: of the run.
      config: settings to use instead of the run's own; they may differ from these in what
        decides no number of the training (`resuming.NOTED`, `leeway_of`).
      best: the best State by the evaluations in place of the newest.
      with_data: False for a stand-in with the fields and sizes of the data (`fingerprint.stand_in`)
        where the run has written them down and they are enough: nothing is read then, and the data
        need not be there. The run is then for all devices of this machine, whatever it was trained
        on.

    Raises:
      NotFoundError: there is no run, or it has no checkpoint.
      ConfigError: `config` is of another run; the message lists the differences. The source of the
        data learns something else from them than the run did. The processes of a job have different
        data.
    """
    own = configs.of_run(workdir)
    if config is None:
        config = own
    else:
        _refuse_another_run(workdir, own, config)
    config = ConfigDict(configs.plain(config))
    data = None if with_data else fingerprint.stand_in(path_of(workdir))
    if not with_data:
        config.devices = 1  # which divides every batch
    previous = previous_stage(config, workdir)
    there = rebuilding.as_begun(config, path_of(workdir))
    try:
        built = build(there, previous, data)
    except fingerprint.NotKept:  # a method or view that looks at all labels
        built = build(there, previous)
    if with_data:
        fingerprint.refuse_others(config, built.data)
    fingerprint.check_learnt(path_of(workdir), built.data)
    if not with_data:
        built, config.devices = built._replace(mesh=parallel.make_mesh()), 0
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    state = checkpoints.restore(shape_of_state(built), best=best)
    checkpoints.close()
    if state is None:
        which = "best checkpoint: it was not evaluated" if best else "checkpoint yet"
        raise NotFoundError(f"{workdir} has no {which}.")
    return config, built, state


def leeway_of(workdir: str | Path, config: ConfigDict) -> resuming.Leeway:
    """How a config may differ from that of the run in a workdir: `experiment.leeway`, and what the
    run's method says has no effect."""
    return leeway(config)._replace(idle=functools.partial(_without_effect, workdir))


def _without_effect(workdir: str | Path) -> set[str]:
    """Keys of a run's config that its method says change nothing (`core.errors.WithoutEffect`);
    none where the run cannot be built from what it wrote down."""
    config, data = configs.of_run(workdir), fingerprint.stand_in(path_of(workdir))
    if data is None:
        return set()
    config = ConfigDict(configs.plain(config))
    config.devices = 1  # which divides every batch
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", WithoutEffect)
        try:
            shape_of_state(build(config, previous_stage(config, workdir), data))
        except ValueError:  # such as a method that looks at all labels
            return set()
    told = [one.message for one in caught if isinstance(one.message, WithoutEffect)]
    return {one.setting for one in told}


def keep(workdir: str | Path, config: ConfigDict, data: Splits, state: State) -> None:
    """Makes a run of a State that no training here has made: its config, what its data are, and the
    State as the newest checkpoint, so that `load` and every command read it like a trained one.

    Args:
      workdir: a new folder, or one of the same config.
      config: of one stage.
      data: of which sizes and fields are kept, no example.

    Raises:
      ConfigError: the workdir holds a run of another config, or cannot be written.
      SaveError: the checkpoint could not be written.
    """
    resuming.check_config(workdir, configs.plain(config), leeway(config))
    fingerprint.check(path_of(workdir), config, data)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    try:
        checkpoints.save(state)
    finally:
        checkpoints.close()


def _refuse_another_run(workdir: str | Path, own: ConfigDict, given: ConfigDict) -> None:
    settings.check("optimizer", optim.build, configs.plain(given.optimizer))
    may = leeway_of(workdir, given)
    changed, _ = resuming.differences(configs.plain(own), configs.plain(given), may)
    if changed:
        raise ConfigError(
            f"{workdir} holds a run of another config; it differs in\n"
            + "\n".join(changed)
            + "\nGive the run's own config, or none, with the settings of the evaluation."
        )
