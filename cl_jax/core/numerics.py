"""Types and norms: what enters in bfloat16 is summed in float32, float64 stays float64."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_real


def wide_type(dtype: Any) -> jnp.dtype:
    """The type that sums over values of `dtype` are kept in: float32, float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """At least float32."""
    return jnp.asarray(x, wide_type(jnp.result_type(x)))


def dots(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Einsum in the type of the inputs, accumulated and returned in at least float32: every matrix
    product of a loss.

    float32 stays float32: in the TF32 or bfloat16 passes that are the default of accelerators,
      similarities would be
    off by 1e-3 to 1e-2, and logits by that over the temperature.
    """
    dtype = jnp.result_type(a, b)
    precision = lax.Precision.DEFAULT if dtype.itemsize < 4 else lax.Precision.HIGHEST
    return jnp.einsum(
        subscripts, a, b, precision=precision, preferred_element_type=wide_type(dtype)
    )


def log_softmax(logits: jax.Array, temperature: Any) -> jax.Array:
    """log softmax(logits / temperature) over the last axis, at least float32.

    The largest logit is taken off before the division, whose rounding a low temperature would
    otherwise blow up."""
    logits = wide(logits)
    return jax.nn.log_softmax(
        (logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))) / temperature
    )


def unit(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x / max(|x|, eps) over the last axis, at least float32; finite value and gradient at 0.
    Refuses integers."""
    check_real(x=x)
    x = wide(x)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps**2))
