"""Sizes of a run that fit the user's data: batch, epochs, memory, prototypes, neighbours.

A config with `fit=True` (the variant "folder") says how a method trains and leaves to the data how
much of it there is. What the user gives is kept.
"""

import inspect
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from cl_jax.core import settings
from cl_jax.core.errors import ConfigError
from cl_jax.core.paths import same_place
from cl_jax.data.source import tail
from cl_jax.training import checkpoint, configs, experiment
from cl_jax.training.resuming import flatten
from cl_jax.training.workdir import path_of

if TYPE_CHECKING:
    from cl_jax.data.folder import Survey

# The defaults of all methods are tuned on `scenes` of this many training images: as many views as
# there are seen of other data.
TUNED_ON = 8192
EPOCHS = (10, 200)
BATCH = (16, 256)
LEAST = BATCH[0]  # training images


def fit(
    config: ConfigDict,
    given: Sequence[str],
    workdir: str | Path | None,
    survey: "Survey | None" = None,
) -> list[str]:
    """Fits a config to its data, in place; returns lines that say what was found and chosen.

    Args:
      config: as loaded, with the user's settings. Without `fit` nothing is changed.
      given: keys that the user set, such as "method.queue_size"; these are left alone.
      workdir: of the run. Where a run of the same data has saved something there, its sizes are
        taken, so that the command that started it resumes it. None for no run.
      survey: what the data hold, where they are not here.

    Raises:
      ConfigError: too few images.
      ValueError: the data cannot be found or divided.
    """
    settings.check_value("total_epochs", config.total_epochs, float)
    survey = survey or _survey(config, workdir is not None and bool(begun(config, workdir)))
    if survey is None:
        return []
    lines = list(survey.lines)
    if not config.get("fit", False):
        return lines
    before = {} if workdir is None else _of_same_data(begun(config, workdir), config)
    planned = config.fit_epochs
    count, classes = _trained_on(config.data, survey)
    if count < LEAST and not before:
        cut = experiment.of_training(config.data).items() - experiment.OF_TRAINING.items()
        raise ConfigError(
            f"{config.data.path or 'the folder'} has {count} training images"
            + (f" after {', '.join(sorted(f'{key}={value}' for key, value in cut))}" if cut else "")
            + f"; expected at least {LEAST}."
        )
    chosen = _sizes(config, planned, count, classes)
    chosen |= _of_stages(config, survey)
    if "total_epochs" in given:
        chosen["total_epochs"] = config.total_epochs
        chosen["evals.every_epochs"] = float(max(1, round(config.total_epochs / 4)))
    chosen |= _warm_ups(config, chosen["total_epochs"] / planned)
    changed = []
    for key, value in chosen.items():
        if key in given or (key.startswith("stages.") and key.split(".", 2)[2] in given):
            continue
        value = _at(before, key, value)
        if workdir is not None and key.startswith("stages."):
            _, stage, own = key.split(".", 2)
            value = _at(_of_same_data(_kept(path_of(workdir) / stage), config), own, value)
        _put(config, key, value)
        if not key.startswith("stages."):
            changed.append(f"{key}={_told(value)}")
    channels = config.data.get("channels", 3)
    settings.check_value("data.channels", channels, int)
    if channels != 3:
        _other_channels(config, channels)
    lines.append(
        f"fitted to {count} training images: {', '.join(changed)}. Each may be given, as in "
        f"--config.{changed[0]}."
        if changed
        else "all sizes are given."
    )
    return lines


def _survey(config: ConfigDict, of_run: bool) -> Any:
    """What the config's data hold, where their module can tell without reading them. of_run: a run
    was begun on them, which `rebuilding.as_begun` lets go on."""
    module = experiment.module_of("cl_jax.data", config.data.get("name", ""), "make")
    survey: Callable[..., Any] | None = getattr(module, "survey", None)
    if survey is None:
        return None
    known = inspect.signature(survey).parameters
    found = {key: value for key, value in config.data.items() if key in known}
    needed = {key for key, one in known.items() if one.default is one.empty}
    if not needed <= found.keys():  # the build says what is missing
        return None
    settings.check("data", survey, found)
    if of_run and "on_parts" in known:
        found["on_parts"] = "warn"
    return survey(**found)


def begun(config: ConfigDict, workdir: str | Path) -> Mapping[str, Any]:
    """The config of the run that is in the workdir, of its first stage that is there; empty without
    one, or where it has no checkpoint: what an attempt was given may be why it saved nothing."""
    places = [path_of(workdir) / stage for stage in config.get("stage_order", ()) or ("",)]
    place = next((place for place in places if (place / "config.json").exists()), None)
    return {} if place is None else _kept(place)


def _kept(place: Path) -> Mapping[str, Any]:
    """The config of the run in a folder; empty without one, or where it has no checkpoint."""
    if not ((place / "config.json").exists() and checkpoint.are_in(place)):
        return {}
    return configs.plain(configs.of_run(place))


def _of_same_data(kept: Mapping[str, Any], config: ConfigDict) -> Mapping[str, Any]:
    """The config of a run whose sizes are taken again; empty where it is of other data, of which
    they would be others."""
    if not kept.get("fit"):
        return {}
    then = kept.get("data", {}).get("path") or ""
    return kept if same_place(then, config.data.path or "") else {}


def _trained_on(section: Mapping[str, Any], survey: "Survey") -> tuple[int, list[int]]:
    """(how many images are trained on, how many of each class) of those that are there, as
    `experiment.load_data` takes them. Settings out of range are left to it."""
    own = experiment.of_training(section)
    counts = list(survey.classes.values()) or [survey.train]
    if 0 < own["validation"] < 1:
        counts = [n - max(min(max(1, round(own["validation"] * n)), n - 1), 0) for n in counts]
    if 0 < own["fraction"] < 1:
        counts = [max(1, round(own["fraction"] * n)) for n in counts]
    if len(counts) > 1 and 1 < (own["imbalance"] or 1) < math.inf:
        kept = tail(sum(counts), len(counts), own["imbalance"])
        counts = [int(min(pair)) for pair in zip(counts, kept)]
    more = survey.unlabeled if own["unlabeled"] else 0
    return sum(counts) + more, counts if survey.classes else []


def _sizes(
    config: ConfigDict, planned: float, count: int, classes: Sequence[int]
) -> dict[str, Any]:
    """{key: value} of the settings that follow from the number of training images. planned: epochs
    of the method on `scenes`."""
    batch = min(max(_power_of_two(count // 8), BATCH[0]), BATCH[1])
    seen = planned * TUNED_ON
    epochs = float(min(max(round(seen / count), EPOCHS[0]), EPOCHS[1]))
    found: dict[str, Any] = {
        "batch_size": batch,
        "total_epochs": epochs,
        "evals.every_epochs": float(max(1, round(epochs / 4))),
    }
    protocols = config.evals.protocols
    if "knn" in protocols and classes:
        typical = int(statistics.median(classes))
        found["evals.protocols.knn.k"] = min(max(typical // 2, 1), 200)
    if "linear" in protocols:
        found["evals.protocols.linear.batch_size"] = min(
            protocols.linear.batch_size, _power_of_two(max(count // 4, 1))
        )
    if (config.optimizer.get("freeze_steps") or 0) > 0:
        found["optimizer.freeze_steps"] = max(1, count // batch)
    return found | _of_method(config.method, "method", count, batch)


def _of_stages(config: ConfigDict, survey: "Survey") -> dict[str, Any]:
    """{key: value} of the batches of stages, which may train on fewer images."""
    found = {}
    for name, stage in config.stages.items():
        if "batch_size" in stage:
            section = {**config.data, **stage.get("data", {})}
            count = _power_of_two(_trained_on(section, survey)[0])
            found[f"stages.{name}.batch_size"] = min(stage.batch_size, count)
    return found


def _warm_ups(config: ConfigDict, longer: float) -> dict[str, Any]:
    """Settings in epochs, of optimiser and method, in proportion to the epochs of the run."""
    found: dict[str, Any] = {}
    for name in ("optimizer", "method"):
        for key, value in flatten(config[name].to_dict(), name).items():
            if key.endswith("_epochs") and isinstance(value, int | float) and value > 0:
                scaled = value * longer
                found[key] = max(1, round(scaled)) if isinstance(value, int) else round(scaled, 2)
    return found


def _of_method(section: Mapping[str, Any], path: str, count: int, batch: int) -> dict[str, Any]:
    """Sizes among a method's settings, by what their names mean in every method; those of a cross's
    base too."""
    found: dict[str, Any] = {}
    prototypes = min(max(count // 15, 16), 4096)
    for key, value in section.items():
        where = f"{path}.{key}"
        if key == "base":
            found |= _of_method(value, where, count, batch)
        elif key == "queue_size" and value:
            # Of older keys half are no more of any image in the batch.
            found[where] = min(max(count // 2 // batch, 1) * batch, 65536)
        elif key in ("num_prototypes", "num_clusters"):
            if isinstance(value, tuple | list):
                middle = statistics.median(value)
                found[where] = tuple(max(2, round(prototypes * one / middle)) for one in value)
            else:
                found[where] = prototypes
        elif key == "num_negatives":
            found[where] = min(max(count // 2, 1), 4096)
        elif key == "group_size":
            found[where] = min(value, batch)
            found[f"{path}.out_dim"] = min(section["out_dim"], found[where] // 2)
    queue = found.get(f"{path}.base.queue_size")
    if queue and "num_hard" in section:
        found[f"{path}.num_hard"] = min(section["num_hard"], queue)
    return found


def _other_channels(config: ConfigDict, channels: int) -> None:
    """Normalisation of images that are not RGB, and none of the changes of colour that are defined
    for RGB alone."""
    sections = [config.views, *(s.views for s in config.stages.values() if "views" in s)]
    changes: dict[str, Any]
    if channels == 1:
        changes = dict(mean=(0.449,), std=(0.226,))
    else:
        colour = dict(gray=0.0, saturation=0.0, hue=0.0)
        changes = dict(colour, mean=(0.5,) * channels, std=(0.25,) * channels)
    with config.unlocked():
        for view in (view for views in sections for view in views.values()):
            view.update(changes)


def _power_of_two(number: int) -> int:
    """The largest power of two that is at most `number`; 1 for 0."""
    return 1 << max(number.bit_length() - 1, 0)


def _at(tree: Mapping[str, Any], key: str, default: Any) -> Any:
    value: Any = tree
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return tuple(value) if isinstance(value, list) else value


def _put(config: ConfigDict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    section = config
    for part in parents:
        section = section[part]
    with config.unlocked(), section.ignore_type():
        section[last] = value


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")
