"""A config's own schedule inside a smaller budget: every duration and every momentum of the State
is scaled or refused."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError

# A running mean forgets its start within this share of the run.
MEMORY_SHARE = 0.1
# Running means that move at each step, and those of a bank's rows, which move at each visit: once
# an epoch.
OF_STEPS = {"momentum", "ema", "centre_momentum", "normalizer_momentum"}
OF_VISITS = {"instdisc", "cmc", "cmc_video", "crd", "spcl"}
IN_STEPS = {"freeze_steps", "warmup_steps", "ema_start"}
# Durations that are compared with the number of an epoch.
WHOLE_EPOCHS = {
    ("dino", "teacher_warmup_epochs"),
    ("ibot", "teacher_warmup_epochs"),
    ("pcl", "warmup_epochs"),
    ("spcl", "warmup_epochs"),
}
# What is named like a duration and is not one: counts inside a step, starting values, switches; and
# the memories of the optimiser, which set the size of its steps (SGD's momentum) or are corrected
# for their start (Adam's).
KEPT = {
    "cpc_steps",
    "steps",
    "discriminator_steps",
    "restarts",
    "warmup_start",
    "teacher_temperature_start",
    "schedule_per_epoch",
    "temperature_per_step",
    "freeze_paths",
    "freeze",
}
_LIKE_A_DURATION = re.compile(
    r"epoch|steps|start|warm|moment|freez|ema(_|$)|until|period|interval|refresh"
)


def shorten(config: ConfigDict, *, epochs: float, examples: int) -> None:
    """Trains for `epochs` instead of `config.total_epochs`, in place. With a smaller budget, what
    the optimiser and the method count in time is scaled with it.

    - Durations in epochs and in steps keep their share of the run. One that only whole epochs can
      have keeps at least one.
    - A running mean of weights, centres or banks, momentum m, remembers 1 / (1 - m) steps, or
      visits of a row. It is shortened to a tenth of the run where it is longer: a teacher of
      momentum 0.9995 would otherwise be its own start after 194 steps. Ramps of the momentum end
      with the run anyway.
    - The optimiser's own momenta, queues and batch sizes stay as they are.

    Args:
      config: of one stage.
      epochs: the budget.
      examples: in the training split; with the batch size it says how many steps there are.

    Raises:
      ConfigError: a duration of whole epochs in a run of fewer than two, or a key that looks like a
        duration and that this module does not know.
    """
    share, config.total_epochs = epochs / config.total_epochs, epochs
    if share >= 1:
        return
    per_epoch = config.get("steps_per_epoch", 0) or max(1, examples // config.batch_size)
    steps = max(1, round(epochs * per_epoch))
    for path, section, defaults in sections(config):
        for key, value in (defaults | _plain(section)).items():
            if key in KEPT or not _LIKE_A_DURATION.search(key) or not value:
                continue
            changed = _shortened(path, section, key, value, share, epochs, steps)
            if changed != value:
                section[key] = changed


def _shortened(
    path: str, section: ConfigDict, key: str, value: Any, share: float, epochs: float, steps: int
) -> Any:
    where, name = f"{path}.{key}", section.get("name")
    if key in OF_STEPS:
        if path.startswith("optimizer"):
            return value
        return _momentum(value, epochs if name in OF_VISITS and key == "momentum" else steps)
    if (name, key) in WHOLE_EPOCHS and not section.get("temperature_per_step", False):
        if epochs < 2:
            raise ConfigError(
                f"{where}={value!r} counts whole epochs and cannot shrink to a part of "
                f"{epochs:g}; give two epochs or more, or --set={where}=0."
            )
        return type(value)(max(1, round(value * share)))
    if key.endswith("_epochs"):
        return _scaled(value, share)
    if key in IN_STEPS:
        return value if value < 0 else round(value * share)
    raise ConfigError(
        f"{where}={value!r} looks like a duration, and cl_jax/tools/_budget.py does not know how "
        "it shrinks with the budget; train for the config's own epochs."
    )


def sections(config: ConfigDict) -> Iterator[tuple[str, ConfigDict, dict[str, Any]]]:
    """(path, section, numbers that it takes where it is given nothing) of the optimiser, the method
    and all sections inside them."""
    # Here, since they import jax, which the help of a command does without.
    from cl_jax.training import optim
    from cl_jax.training.experiment import parameters

    def methods(section: ConfigDict) -> Mapping[str, inspect.Parameter]:
        return parameters("cl_jax.methods", section.name) if "name" in section else {}

    known = inspect.signature(optim.build).parameters
    yield from _inside("optimizer", config.optimizer, known, methods)
    yield from _inside("method", config.method, methods(config.method), methods)


def _inside(
    path: str,
    section: ConfigDict,
    known: Mapping[str, inspect.Parameter],
    methods: Callable[[ConfigDict], Mapping[str, inspect.Parameter]],
) -> Iterator[tuple[str, ConfigDict, dict[str, Any]]]:
    defaults = {
        key: one.default for key, one in known.items() if isinstance(one.default, int | float)
    }
    yield path, section, defaults
    for key, held in list(section.items()):
        if isinstance(held, ConfigDict):
            yield from _inside(f"{path}.{key}", held, methods(held), methods)


def _plain(section: ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in section.items() if not isinstance(value, ConfigDict | str)}


def _momentum(value: Any, clock: float) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_momentum(one, clock) for one in value)
    return min(value, max(0.0, round(1 - 1 / max(1.0, MEMORY_SHARE * clock), 6)))


def _scaled(value: Any, share: float) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_scaled(one, share) for one in value)
    return type(value)(round(value * share, 6))
