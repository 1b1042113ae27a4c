"""Rows kept on the unit sphere: prototypes, centroids, and what the other memories store."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_count, check_real


def init(key: jax.Array, num_prototypes: int, width: int, *, dtype: Any = jnp.float32) -> jax.Array:
    """[K, D] directions uniform on the sphere."""
    check_count(num_prototypes=num_prototypes, width=width)
    return normalise(jax.random.normal(key, (num_prototypes, width), dtype))


def normalise(rows: jax.Array, *, axis: int = -1, eps: float = 1e-12) -> jax.Array:
    """rows / max(||rows||, eps) along `axis`; a zero row stays zero, with the finite gradient of
    rows / eps.

    SwAV projects its prototypes with it after every optimiser step (`axis=0` for a kernel of shape
    [D, K])."""
    check_real(rows=rows)
    wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    square = jnp.sum(wide * wide, axis=axis, keepdims=True)
    return (wide * lax.rsqrt(jnp.maximum(square, eps * eps))).astype(rows.dtype)
