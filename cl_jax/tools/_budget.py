"""A config's own schedule inside a smaller budget: every duration and every momentum of the State
is scaled or refused."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cl_jax.core.clocks import clock_of, is_whole
from cl_jax.core.errors import ConfigError

# A running mean forgets its start within this share of the run.
MEMORY_SHARE = 0.1
# What an integer that ends in these words counts is not known from its name.
_UNCLEAR = {"steps", "start", "until", "period", "interval", "refresh"}


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
      ConfigError: a duration of whole epochs in a run of fewer than two, or a key that may be a
        duration and neither its name nor its annotation says so (`core.clocks`).
    """
    share, config.total_epochs = epochs / config.total_epochs, epochs
    if share >= 1:
        return
    per_epoch = config.get("steps_per_epoch", 0) or max(1, examples // config.batch_size)
    steps = max(1, round(epochs * per_epoch))
    for path, section, known in sections(config):
        values = {key: one.default for key, one in known.items() if _is_number(one.default)}
        for key, value in (values | _plain(section)).items():
            if not value or isinstance(value, bool):
                continue
            kind = known[key].annotation if key in known else inspect.Parameter.empty
            changed = _shortened(f"{path}.{key}", kind, value, share, epochs, steps)
            if changed != value:
                section[key] = changed


def _shortened(where: str, kind: Any, value: Any, share: float, epochs: float, steps: int) -> Any:
    """The value of a setting, annotated as `kind`, in a run of `epochs` and `steps`, which is
    `share` of its own."""
    key = where.rpartition(".")[2]
    last = key.rpartition("_")[2]
    clock = clock_of(kind)
    if last in ("momentum", "ema"):
        # Those of the optimiser set the size of its steps (SGD's), or are corrected for their start
        # (Adam's).
        if where.startswith("optimizer."):
            return value
        return _momentum(value, epochs if clock == "visits" else steps)
    if last == "epochs":
        if not is_whole(kind, value):
            return _scaled(value, share)
        if epochs < 2:
            raise ConfigError(
                f"{where}={value!r} counts whole epochs and cannot shrink to a part of "
                f"{epochs:g}; give two epochs or more, or --set={where}=0."
            )
        return max(1, round(value * share))
    if clock == "steps":
        return value if value < 0 else round(value * share)
    if not clock and last in _UNCLEAR and is_whole(kind, value):
        raise ConfigError(
            f"{where}={value!r} may be a duration, and nothing says how it shrinks with the "
            "budget; annotate it as Steps or Count of cl_jax.core.clocks where it is defined, or "
            "train for the config's own epochs."
        )
    return value


def sections(
    config: ConfigDict,
) -> Iterator[tuple[str, ConfigDict, Mapping[str, inspect.Parameter]]]:
    """(path, section, the keywords that it takes) of the optimiser, the method and all sections
    inside them; of those only a cross's base, a method too, has keywords that are known here."""
    # Here, since they import jax, which the help of a command does without.
    from cl_jax.training import optim
    from cl_jax.training.experiment import parameters

    def of_method(section: ConfigDict) -> Mapping[str, inspect.Parameter]:
        return parameters("cl_jax.methods", section.name) if "name" in section else {}

    known = inspect.signature(optim.build).parameters
    yield from _inside("optimizer", config.optimizer, known, of_method)
    yield from _inside("method", config.method, of_method(config.method), of_method)


def _inside(
    path: str,
    section: ConfigDict,
    known: Mapping[str, inspect.Parameter],
    of_method: Callable[[ConfigDict], Mapping[str, inspect.Parameter]],
) -> Iterator[tuple[str, ConfigDict, Mapping[str, inspect.Parameter]]]:
    yield path, section, known
    for key, held in list(section.items()):
        if isinstance(held, ConfigDict):
            taken = of_method(held) if key == "base" else {}
            yield from _inside(f"{path}.{key}", held, taken, of_method)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


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
