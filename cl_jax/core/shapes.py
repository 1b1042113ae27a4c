"""Shape and type checks that fail at trace time with a sentence a user can act on."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import jax.numpy as jnp


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
      ValueError: as `check`, or an array of another type.
    """
    known = dict(sizes or {})
    set_by = {letter: "an earlier argument" for letter in known}
    for name, array in arrays.items():
        dtype = jnp.result_type(array)
        if not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"{name} has dtype {dtype}; expected integers. Labels are class numbers: convert "
                f"one-hot "
                f"rows with argmax, floats with {name}.astype(int)."
            )
        _match(spec, name, jnp.shape(array), known, set_by)
    return known


def check_real(**arrays: Any) -> None:
    """Refuses integer, boolean and complex arrays where features are expected."""
    for name, array in arrays.items():
        dtype = jnp.result_type(getattr(array, "rows", array))  # of a `Sharded` its rows
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {dtype}; expected floating-point features. "
                f"Convert it first, for instance {name}.astype(jnp.float32)."
            )


def check_positive(**values: Any) -> None:
    """Refuses a Python number that is not above zero, and an array that is not a scalar; the value
    of a traced scalar is unknown at trace time and passes. None passes."""
    for name, value in values.items():
        if value is not None and jnp.ndim(value):
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}; expected a scalar: a number, or an "
                f"array of shape (). Take one entry, for instance {name}[0], or reshape it to ()."
            )
        if isinstance(value, Real) and not float(value) > 0:
            mend = " Typical temperatures are 0.05 to 0.5." if "temperature" in name else ""
            raise ValueError(f"{name} is {value}; expected a number above 0.{mend}")


def check_count(**values: Any) -> None:
    """Refuses a Python number that is not an integer of at least 1: counts, sizes, block sizes.
    None passes."""
    for name, value in values.items():
        if isinstance(value, Real) and not (float(value) >= 1 and float(value).is_integer()):
            raise ValueError(f"{name} is {value}; expected an integer of at least 1.")


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
        if size != expected:
            who = "" if letter.isdigit() else f" as in {set_by[letter]}"
            raise ValueError(
                f"{name} has shape {shape}; expected [{', '.join(spec.split())}] with "
                f"{letter if not letter.isdigit() else 'that axis'} = {expected}{who}, got {size}."
            )
