"""Rows kept on the unit sphere: prototypes, centroids, and what the other memories store."""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.core.axis import any_mesh
from cl_jax.core.numerics import unit
from cl_jax.core.shapes import check_count, check_key, check_real


def init(key: jax.Array, num_prototypes: int, width: int, *, dtype: Any = jnp.float32) -> jax.Array:
    """[K, D] directions uniform on the sphere."""
    check_key(key=key)
    check_count(num_prototypes=num_prototypes, width=width)
    return normalise(jax.random.normal(key, (num_prototypes, width), dtype))


@any_mesh
def normalise(rows: jax.Array, *, axis: int = -1, eps: float = 1e-12) -> jax.Array:
    """rows / max(||rows||, eps) along `axis`, in the type of `rows`; a row shorter than eps has
    zero gradient (`cl_jax.core.numerics.unit`).

    SwAV projects its prototypes with it after every optimiser step (`axis=0` for a kernel of shape
    [D, K])."""
    check_real(rows=rows)
    return unit(rows, eps, axis=axis).astype(rows.dtype)
