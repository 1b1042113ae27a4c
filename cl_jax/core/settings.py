"""Checks of settings against the functions that read them: types by their annotations, ranges by
their names. Every section of a config is checked here before anything is built."""

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cl_jax.core.errors import ConfigError
from cl_jax.core.names import nearest

FLOAT32 = float(np.finfo(np.float32).max)
_MOST = 2**31 - 1  # of what is counted: ids and sizes of axes are int32
_LARGE = 1e6  # an amount above it is a mistake
_HUGE = 1e12  # and so is any other number: those of 32-bit images are below it
# Settings that are one of a few words wherever they occur.
CHOICES = {
    "dtype": ("float32", "bfloat16", "float16", "float64"),
    "nonfinite": ("stop", "skip", "ignore"),
    "when": ("always", "final", "asked"),
}


def _text(value: float) -> str:
    """A bound as one writes it: whole numbers in full."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


class Range(NamedTuple):
    """Settings whose names match `pattern` are numbers from `low` to `high`; `open_low`: above
    `low`."""

    pattern: str
    low: float
    high: float = math.inf
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value is in the range."""
        return self.low <= value <= self.high and not (self.open_low and value == self.low)

    def words(self) -> str:
        """The range for an error: "above 0 and at most 1"."""
        if self.high == math.inf:
            return f"{'above' if self.open_low else 'at least'} {_text(self.low)}"
        first, then = ("above", "and at most") if self.open_low else ("from", "to")
        return f"{first} {_text(self.low)} {then} {_text(self.high)}"


# The first that matches the last part of a setting's name decides.
RANGES = (
    Range(r"^seed$", 0, 2**32 - 1),
    Range(r"temperature(_start)?$|^tau$|^epsilon$", 0, _LARGE, open_low=True),
    Range(r"momentum$|^b[12]$|^ema$", 0, 1),
    Range(r"^total_epochs$", 0, _LARGE, open_low=True),
    Range(r"learning_rate$|^warmup_start$|weight_decay$|_norm$", 0),
    Range(r"^(steps_per_epoch|dispatch_steps|checkpoint_steps|devices)$", 0),
    Range(r"^freeze_steps$", -1),
    Range(r"^log_steps$", 1),
    Range(r"_epochs$", 0, _LARGE),
    Range(r"_steps$", 0, _MOST),
    Range(r"^fraction$", 0, 1, open_low=True),
    Range(r"^imbalance$", 1, _LARGE),
    Range(r"^validation$", 0, 0.9),
    Range(
        r"_share$|^drop|^sk_ratio$|^flip$|^gray$|^test_crop$|^tau_plus$|^solarize_threshold$"
        r"|^(aligned|confidence|labelled|max_clipped)$",
        0,
        1,
    ),
    Range(r"^(trust_coefficient|t_max|max_scale|c|strengths|std)$", 0, _LARGE, open_low=True),
    Range(r"_weight$|^weight(_|$)|^(decay_factor|gradient_penalty|margin|sigma)$", 0, _LARGE),
    Range(
        r"^(alpha|beta|gamma|eps|truncation|brightness|contrast|saturation|rotation|slant)$",
        0,
        _LARGE,
    ),
    Range(r"_probability$|^(mask_ratio|quantile|discount|mlm_rate)$", 0, 1),
    Range(r"^(blur_radius|ema_start|specific|clusters|limit|shown|down|folds?)$", 0, _MOST),
    Range(r"^queue_size$|^num_(experts$|negative|positives|hard|pairs|query)", 0, _MOST),
    Range(r"^exclude_ndim$", -1),
    Range(r"^(workers|worker_processes|prefetch)$|_bytes$", 0),
    Range(r"^(width|stem_width|scale)$", 0, _LARGE, open_low=True),
    Range(r"^copies$|_layers$", 1, 1000),
    Range(
        r"^(k|knn_k|size|depth|heads|channels|length|columns|rows|patch|bottom|iterations)$"
        r"|^(restarts|splits|block_size|vocab_size|units|micro_batches|max_pixels|keep_checkpoints)$"
        r"|^num_|_dims?$|_size$|_classes$|^hidden$|^(k[12]?s?|decoder_depth|decoder_heads)$"
        r"|_width$|_blocks$|^(mask_cell|max_points_per_centroid|min_samples|smallest_block)$"
        r"|^(sinkhorn_iterations|inner_folds|subcrop)$",
        1,
        _MOST,
    ),
)


def check(where: str, make: Callable[..., Any], section: Mapping[str, Any]) -> None:
    """Checks the settings of a section against the function that takes them as keywords.

    Args:
      where: the section's name, for the message.
      make: its annotations say which types it takes; settings that it does not have are not
        looked at.

    Raises:
      ConfigError: a value of another type, NaN, inf, or out of the range of its name.
    """
    kinds = _kinds(make)
    for key, value in section.items():
        if key in kinds:
            check_value(f"{where}.{key}", value, kinds[key])


def check_value(name: str, value: Any, kind: Any = None) -> None:
    """Checks one setting; `kind` is its annotation, None for any plain value.

    Raises:
      ConfigError: see `check`.
    """
    if kind is not None and not _fits(value, kind):
        mend = ""
        if isinstance(value, np.generic | jax.Array) and value.ndim == 0:
            mend = " A config holds plain values: write this one as its .item()."
        elif isinstance(value, np.ndarray | jax.Array):
            mend = " A config holds plain values: write this one as its .tolist()."
        elif isinstance(value, os.PathLike) and _fits("", kind):
            mend = " A config holds plain values: write this one as its str()."
        elif isinstance(value, str) and _fits([value], kind):
            words = [word.strip() for word in value.split(",")]
            mend = f" Write it as {words}, on a command line in quotation marks."
        raise ConfigError(f"{name}={value!r}; expected {_words(kind)}.{mend}")
    key = name.rsplit(".", 1)[-1]
    if isinstance(value, str) and value not in CHOICES.get(key, (value,)):
        raise ConfigError(f"{name}={value!r}; expected one of {', '.join(CHOICES[key])}.")
    for number in _numbers(value):
        if not abs(number) <= FLOAT32:  # NaN too
            raise ConfigError(f"{name}={value!r}; expected finite numbers of float32.")
        if _nested(value):
            continue
        found = range_of(key)
        if found is None and isinstance(number, float) and abs(number) > _HUGE:
            raise ConfigError(f"{name}={value!r}; expected numbers from {-_HUGE:g} to {_HUGE:g}.")
        if found is not None and not found.holds(number):
            raise ConfigError(f"{name}={value!r}; expected {found.words()}.")


def range_of(key: str) -> Range | None:
    """The range of a setting by its name."""
    return next((one for one in RANGES if re.search(one.pattern, key)), None)


def check_keys(where: str, section: Iterable[str], known: Iterable[str]) -> None:
    """Refuses keys that are not known.

    Raises:
      ConfigError: names the nearest key.
    """
    options = list(known)
    for key in section:
        if key not in options:
            raise ConfigError(
                f"{where} has no setting {key!r}{nearest(key, options)}. It takes "
                f"{', '.join(options) or 'none'}."
            )


def check_required(where: str, make: Callable[..., Any], given: Iterable[str]) -> None:
    """Refuses settings that leave out a keyword which has no default.

    Raises:
      ConfigError: names the keyword.
    """
    there = set(given)
    for key, one in inspect.signature(make).parameters.items():
        open_ended = one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        if one.default is one.empty and key not in there and not open_ended:
            raise ConfigError(f"{where} needs the setting {key!r}, which has no default.")


def _kinds(make: Callable[..., Any]) -> dict[str, Any]:
    """{keyword: annotation}; None where it is not annotated or cannot be resolved."""
    try:
        hints = typing.get_type_hints(make)
    except (NameError, TypeError):
        hints = {}
    return {key: hints.get(key) for key in inspect.signature(make).parameters}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of an annotation; annotations of other things fit everything."""
    origin, given = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in given)
    if origin is typing.Literal:
        return value in given
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        # A population's members differ in traced numbers.
        traced = isinstance(value, jax.core.Tracer)
        return traced or (isinstance(value, int | float) and not isinstance(value, bool))
    if kind is str:
        return isinstance(value, str)
    if origin is not None and issubclass(origin, Mapping):
        item_kind = _item_kind(given)
        return hasattr(value, "items") and all(_fits(item, item_kind) for _, item in value.items())
    if origin in (tuple, list) or (origin is not None and issubclass(origin, Sequence)):
        if not isinstance(value, list | tuple):
            return False
        if _fixed(origin, given):
            return len(value) == len(given) and all(map(_fits, value, given))
        return not given or all(_fits(item, given[0]) for item in value)
    return True


def _item_kind(given: tuple[Any, ...]) -> Any:
    """What the values of an annotated mapping are; `typing.Mapping` alone says nothing of them."""
    return given[1] if given else Any


def _fixed(origin: Any, given: tuple[Any, ...]) -> bool:
    """Whether an annotation is a tuple of so many values, each of its own kind."""
    return origin is tuple and bool(given) and Ellipsis not in given


def _words(kind: Any) -> str:
    origin, given = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(one) for one in given)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, given))
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        type(None): "None",
    }
    if kind in names:
        return names[kind]
    if origin is not None and issubclass(origin, Mapping):
        item_kind = _item_kind(given)
        each = "" if item_kind is Any else f", each {_words(item_kind)}"
        return f"a section of settings{each}"
    if _fixed(origin, given):
        return f"{len(given)} values: " + ", ".join(map(_words, given))
    return f"a list, each {_words(given[0])}" if given else "a list"


def _nested(value: Any) -> bool:
    """Whether a value is a list of lists, whose numbers are indices rather than amounts."""
    return isinstance(value, list | tuple) and any(isinstance(one, list | tuple) for one in value)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return [value] if plain else []
