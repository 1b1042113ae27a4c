"""Types and norms: what enters in bfloat16 is summed in float32, float64 stays float64."""

import jax
import jax.numpy as jnp
from jax import lax


def wide(x: jax.Array) -> jax.Array:
    """At least float32."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def dots(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Einsum in the type of the inputs, accumulated and returned in at least float32."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.promote_types(jnp.result_type(a, b), jnp.float32))


def unit(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x / max(|x|, eps) over the last axis, at least float32; finite value and gradient at 0."""
    x = wide(x)
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps**2))
