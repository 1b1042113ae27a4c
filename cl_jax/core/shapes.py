"""Shape and type checks that fail at trace time with a sentence a user can act on."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SHORT = 80  # characters of a value that an error shows


def check(spec: str, sizes: Mapping[str, int] | None = None, **arrays: Any) -> dict[str, int]:
    """Checks that every named array has the shape `spec` says, and returns the size of each letter.

    `spec` is letters or numbers separated by spaces, one per axis: `"b d"`; `...` as its first word
    stands for any number of leading axes. A letter must have one size over all arrays of the call
    and over `sizes`, what an earlier call returned. Arrays must be real floating point.

    >>> sizes = check("b d", z_a=z_a, z_b=z_b)
    >>> check("k d", sizes, queue=queue)

    Raises:
      ValueError: names the array, its shape, the shape expected, and for a letter that disagrees
        who set it first.
    """
    known = dict(sizes or {})
    set_by = {letter: "an earlier argument" for letter in known}
    for name, array in arrays.items():
        check_real(**{name: array})
        _match(spec, name, _shape(array), known, set_by)
    return known


def check_integer(
    spec: str, sizes: Mapping[str, int] | None = None, **arrays: Any
) -> dict[str, int]:
    """As `check`, for integer arrays: labels, indices, example ids.

    Raises:
      ValueError: as `check`, an array of another type, or 64-bit numbers that jax would cut.
    """
    known = dict(sizes or {})
    set_by = {letter: "an earlier argument" for letter in known}
    for name, array in arrays.items():
        _check_array(name, array)
        dtype = jnp.result_type(array)
        if not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"{name} has dtype {dtype}; expected integers. Labels are class numbers: convert "
                f"one-hot "
                f"rows with argmax, floats with {name}.astype(int)."
            )
        _check_narrow(name, array, dtype)
        _match(spec, name, jnp.shape(array), known, set_by)
    return known


def check_real(**arrays: Any) -> None:
    """Refuses integer, boolean and complex arrays where features are expected, and what is no
    array."""
    for name, array in arrays.items():
        _check_array(name, array)
        dtype = jnp.result_type(getattr(array, "rows", array))  # of a `Sharded` its rows
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {dtype}; expected floating-point features. "
                f"Convert it first, for instance {name}.astype(jnp.float32)."
            )


def check_positive(**values: Any) -> None:
    """Refuses what is not a scalar above zero; the value of a traced scalar is unknown at trace
    time and passes. None passes, but for a temperature or a scale of logits."""
    for name, value in values.items():
        if value is None and name not in ("temperature", "logit_scale"):
            continue
        check_scalar(**{name: value})
        known = known_value(value)
        if known is not None and not known > 0:
            mend = " Typical temperatures are 0.05 to 0.5." if "temperature" in name else ""
            raise ValueError(f"{name} is {value}; expected a number above 0.{mend}")


def check_scalar(**values: Any) -> None:
    """Refuses what is neither a real number nor a real array of shape ()."""
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            value = np.asarray(value)
        if not isinstance(value, Real) and not (
            hasattr(value, "dtype") or hasattr(value, "__jax_array__")
        ):
            raise ValueError(f"{name} is {value!r}; expected a number.")
        if jnp.ndim(value):
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}; expected a scalar: a number, or an "
                f"array of shape (). Take one entry, for instance {name}[0], or reshape it to ()."
            )


def known_value(value: Any) -> float | None:
    """The value of a number or array that is not traced and lies within reach of this process."""
    if isinstance(value, (Real, np.ndarray, np.generic)):
        return float(value)
    if isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
        return float(value) if value.is_fully_addressable else None
    return None


def check_share(**values: Any) -> None:
    """Refuses what is not a scalar from 0 to 1, such as a momentum; the value of a traced scalar is
    unknown at trace time and passes."""
    for name, value in values.items():
        check_scalar(**{name: value})
        known = known_value(value)
        if known is not None and not 0 <= known <= 1:
            raise ValueError(f"{name} is {value}; expected a number from 0 to 1.")


def check_count(**values: Any) -> None:
    """Refuses a Python number that is not an integer of at least 1: counts, sizes, block sizes.
    None passes."""
    for name, value in values.items():
        if isinstance(value, Real) and not (float(value) >= 1 and float(value).is_integer()):
            raise ValueError(f"{name} is {value}; expected an integer of at least 1.")


def check_key(axes: int = 0, **keys: Any) -> None:
    """Refuses what is not a random key, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`);
    with axes=1 what is not a vector of them."""
    for name, key in keys.items():
        if not _is_key(key, axes):
            expected = "a vector of random keys" if axes else "one random key"
            mend = (
                "Split one key with jax.random.split(key, B), or stack several with jnp.stack."
                if axes
                else "Make it of a seed with jax.random.key(seed); of an array of keys take one."
            )
            raise ValueError(f"{name} is {_words(key)}; expected {expected}. {mend}")


def _is_key(key: Any, axes: int) -> bool:
    """Whether a value is a key, or a vector of them where axes=1."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if not isinstance(shape, tuple):  # a record of other things may answer to any name
        return False
    if isinstance(key, jax.Array) and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return len(shape) == axes
    return dtype == np.uint32 and len(shape) == axes + 1 and shape[axes:] == _raw_key()


def _words(value: Any) -> str:
    """A wrong value for an error: an array's type and shape, a short value itself, else its
    kind."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= _SHORT and "\n" not in text else f"a {type(value).__qualname__}"


def _raw_key() -> tuple[int, ...]:
    """The shape of a raw key of jax's default generator."""
    made = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return tuple(made.shape)


def check_axis(axis_name: str | tuple[str, ...] | None) -> None:
    """Refuses an `axis_name` that no enclosing `jax.pmap` or `jax.shard_map` maps."""
    if axis_name is None:
        return
    from jax import lax

    try:
        lax.axis_index(axis_name)
    except NameError:
        raise ValueError(
            f"axis_name={axis_name!r} is not mapped here. Call this inside jax.pmap(..., "
            f"axis_name={axis_name!r}) or "
            f"jax.shard_map over a mesh with that axis, or pass axis_name=None on one device."
        ) from None


def _check_array(name: str, array: Any) -> None:
    if isinstance(array, tuple) and hasattr(array, "rows"):  # such as a memory's queue
        raise ValueError(
            f"{name} is a {type(array).__name__}; expected an array: its rows, for instance "
            f"{name}.rows."
        )
    if isinstance(array, (list, tuple)) or array is None or isinstance(array, str):
        raise ValueError(
            f"{name} is a {type(array).__name__}; expected an array. Convert it first, for "
            f"instance jnp.asarray({name}), or jnp.stack({name}) where it holds arrays."
        )
    dtype = getattr(array, "dtype", None)
    if dtype is not None and not isinstance(array, jax.Array):
        try:
            np.dtype(dtype)
        except TypeError:
            kind = type(array)
            raise ValueError(
                f"{name} is a {kind.__module__}.{kind.__name__}; expected an array of jax or "
                f"NumPy. Convert it first, for instance jnp.asarray({name}.numpy())."
            ) from None
    if isinstance(array, np.ndarray) and array.dtype.kind not in "biufcV":
        raise ValueError(
            f"{name} has dtype {array.dtype}; expected numbers. Number the classes, for instance "
            f"np.unique({name}, return_inverse=True)[1]."
        )


def _check_narrow(name: str, array: Any, dtype: Any) -> None:
    """NumPy's 64-bit integers become 32-bit ones in jax by default, without a word."""
    if not isinstance(array, np.ndarray) or array.dtype == dtype or not array.size:
        return
    range_ = jnp.iinfo(dtype)
    least, largest = int(array.min()), int(array.max())
    if least < range_.min or largest > range_.max:
        raise ValueError(
            f"{name} goes from {least} to {largest}, beyond {dtype}, which jax makes of "
            f"{array.dtype}. Number the values, for instance np.unique({name}, "
            "return_inverse=True)[1]."
        )


def _shape(array: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = array.shape if hasattr(array, "rows") else jnp.shape(array)
    return shape


def _match(
    spec: str, name: str, shape: tuple[int, ...], known: dict[str, int], set_by: dict[str, str]
) -> None:
    letters = spec.split()
    given = shape
    if letters and letters[0] == "...":
        letters = letters[1:]
        given = shape[max(len(shape) - len(letters), 0) :]
    if len(given) != len(letters):
        raise ValueError(
            f"{name} has shape {shape}, {len(shape)} axes; expected [{', '.join(spec.split())}]. "
            "Add or drop an axis, or check that arguments are not swapped."
        )
    for letter, size in zip(letters, given):
        expected = int(letter) if letter.isdigit() else known.setdefault(letter, size)
        if not letter.isdigit():
            set_by.setdefault(letter, name)
        if isinstance(size, int) and size == 0 and letter in "bd":
            raise ValueError(
                f"{name} has shape {shape}, no entry along {letter}; expected at least one. An "
                "empty batch has no loss: leave it out."
            )
        if size != expected:
            who = "" if letter.isdigit() else f" as in {set_by[letter]}"
            raise ValueError(
                f"{name} has shape {shape}; expected [{', '.join(spec.split())}] with "
                f"{letter if not letter.isdigit() else 'that axis'} = {expected}{who}, got {size}."
            )
