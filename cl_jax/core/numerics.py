"""Types and norms: what enters in bfloat16 is summed in float32, float64 stays float64."""

import functools
import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.core.shapes import check_real


def wide_type(dtype: Any) -> jnp.dtype:
    """The type that sums over values of `dtype` are kept in: float32, float64 for float64."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return dtype if dtype.itemsize > 4 else jnp.dtype(jnp.float32)


def common_type(*arrays: jax.Array) -> jnp.dtype:
    """The narrowest type that holds the types of all arrays; the same under strict promotion."""
    dtypes = [jnp.dtype(jnp.result_type(x)) for x in arrays]
    return functools.reduce(np.promote_types, dtypes)


def wide(x: jax.Array) -> jax.Array:
    """At least float32."""
    return jnp.asarray(x, wide_type(jnp.result_type(x)))


def dots(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Einsum in the type of the inputs, accumulated and returned in at least float32: every matrix
    product of a loss.

    float32 stays float32: in the TF32 or bfloat16 passes that are the default of accelerators,
    similarities would be off by 1e-3 to 1e-2, and logits by that over the temperature.
    """
    dtype = common_type(a, b)
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    precision = lax.Precision.DEFAULT if dtype.itemsize < 4 else lax.Precision.HIGHEST
    return jnp.einsum(
        subscripts, a, b, precision=precision, preferred_element_type=wide_type(dtype)
    )


def real_count(count: Any) -> Any:
    """A count as a float, because JAX takes no integer above 2^31 - 1; a symbolic one as it is."""
    return float(count) if isinstance(count, int) else count


def log_count(count: Any, dtype: Any) -> Any:
    """log of a count: a Python number, or an array where a symbolic batch leaves it open."""
    if isinstance(count, (int, float)):
        return math.log(count)
    return jnp.log(jnp.asarray(count, dtype))


def capped(x: jax.Array) -> jax.Array:
    """min(x, 0) with the gradient of x, for differences from a maximum.

    The maximum and the difference may be computed by two compiled kernels that round differently.
    At logits of 1e11, whose rounding step is 8192, the difference can then be far above 0 and its
    exponential infinite.
    """
    return x - lax.stop_gradient(jnp.maximum(x, 0))


def at_least_one(total: jax.Array) -> jax.Array:
    """max(total, 1) with the gradient of total, for sums of exp(x - max x): the largest entry's
    share is lost where `capped`'s difference is rounded to far below 0."""
    return total + lax.stop_gradient(jnp.maximum(1 - total, 0))


def log_sum_exp(x: jax.Array, *, axis: int | None = None, keepdims: bool = False) -> jax.Array:
    """log of the sum of exp(x), at least float32, finite for any finite logits; -inf with zero
    gradient where every entry is -inf."""
    x = wide(x)
    top = lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    some = top != -jnp.inf  # NaN is passed on
    top = jnp.where(some, top, 0)
    total = jnp.sum(jnp.exp(capped(x - top)), axis=axis, keepdims=True)
    out = jnp.where(some, jnp.log(at_least_one(total)) + top, -jnp.inf)
    return out if keepdims else jnp.squeeze(out, axis)


def softmax(
    x: jax.Array, temperature: Any = 1.0, *, axis: int = -1, where: jax.Array | None = None
) -> jax.Array:
    """softmax(x / temperature) over `axis`, at least float32, finite for any finite logits; 0 where
    `where` is False. The largest logit is subtracted as in `log_softmax`."""
    x = wide(x) if where is None else jnp.where(where, wide(x), -jnp.inf)
    powers = jnp.exp(_below_top(x, temperature, axis))
    return powers / at_least_one(jnp.sum(powers, axis=axis, keepdims=True))


def log_softmax(logits: jax.Array, temperature: Any = 1.0, *, axis: int = -1) -> jax.Array:
    """log softmax(logits / temperature) over `axis`, at least float32.

    The largest logit is subtracted before the division, whose rounding a low temperature would
    otherwise enlarge.
    """
    x = _below_top(wide(logits), temperature, axis)
    return x - jnp.log(at_least_one(jnp.sum(jnp.exp(x), axis=axis, keepdims=True)))


def _below_top(x, temperature, axis):
    """(x - max x) / temperature, 0 at most."""
    return capped((x - lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))) / temperature)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)), with the digits of a small value, and with a derivative of one exponential:
    for what is evaluated of every pair. `jax.nn.softplus` takes two and a logarithm more."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    return softplus(primals[0]), tangents[0] * jax.nn.sigmoid(primals[0])


def unit(
    x: jax.Array, eps: float = 1e-12, *, axis: int = -1, short_gradient: bool = False
) -> jax.Array:
    """x / max(|x|, eps) along `axis`, at least float32 (`unit_like`: in the type of x). Refuses
    integers.

    A row shorter than eps is x / eps with zero gradient, so that a zero row stays zero and neither
    its value nor its gradient grows by 1 / eps. A row whose squares overflow (in float32 entries of
    1e19) is NaN. In float16 eps is at least 6.1e-5, the smallest normal number, below which the
    gradient would overflow the type of the input. `short_gradient` gives short rows the gradient of
    x / eps instead, as PyTorch does.
    """
    check_real(x=x)
    dtype = jnp.result_type(x)
    if dtype == jnp.float16:
        eps = max(eps, float(jnp.finfo(dtype).tiny))
    x = wide(x)
    square = jnp.sum(x * x, axis=axis, keepdims=True)
    long = square > eps**2
    # A row whose square overflows is NaN, and not the zero row that 1 / inf would make of it.
    rows = x * (lax.rsqrt(jnp.where(long, square, eps**2)) + lax.stop_gradient(0 * square))
    return rows if short_gradient else jnp.where(long, rows, lax.stop_gradient(rows))


def unit_like(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """`unit`, in the type of x: rows as matrix products take them."""
    return unit(x, eps).astype(jnp.result_type(x))


def prepared(normalise: bool, eps: float = 1e-12, **arrays: jax.Array) -> list[jax.Array]:
    """The arrays as a loss takes them: rows of unit length in their own type, or as they are.

    With normalise=False under `jax.debug_nans(True)`, JAX's debug mode, rows that are neither of
    unit length nor zero are warned of when the program runs.
    """
    check_real(**arrays)
    if normalise:
        return [unit_like(x, eps) for x in arrays.values()]
    if jax.config.jax_debug_nans:  # type: ignore[attr-defined]
        for name, x in arrays.items():
            length = jnp.linalg.norm(wide(x), axis=-1)
            off = jnp.where(length > 0, jnp.abs(length - 1), 0)
            jax.debug.callback(functools.partial(_warn_of_length, name), jnp.max(off, initial=0))
    return [jnp.asarray(x) for x in arrays.values()]


def _warn_of_length(name: str, off: Any) -> None:
    if off > 0.01:
        warnings.warn(
            f"{name} has a row whose length is {float(off):.3g} off 1, with normalise=False. "
            "Normalise the rows, or leave normalise at True.",
            stacklevel=2,
        )
