"""PCA, whitening and unit norm: what DeepCluster does to features before k-means, in one pass over
blocks of them."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.numerics import dots
from cl_jax.core.shapes import check


class Moments(NamedTuple):
    """size, mean [D] and scatter [D, D] about the mean, of the rows seen."""

    size: jax.Array
    mean: jax.Array
    scatter: jax.Array


class Whitening(NamedTuple):
    """mean: [D]. projection: [D, P], principal directions over the root of their share of the
    scatter."""

    mean: jax.Array
    projection: jax.Array


def moments(x: jax.Array) -> Moments:
    """Of one block of rows, [N, D]."""
    sizes = check("n d", x=x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = x.mean(0)
    centred = x - mean[None]
    return Moments(jnp.asarray(sizes["n"], x.dtype), mean, dots("nd,ne->de", centred, centred))


def merge(a: Moments, b: Moments) -> Moments:
    """Of the rows of both, without the cancellation of raw second moments."""
    size = a.size + b.size
    apart = b.mean - a.mean
    return Moments(
        size,
        a.mean + apart * (b.size / size),
        a.scatter + b.scatter + jnp.outer(apart, apart) * (a.size * b.size / size),
    )


def fit(blocks: Iterable[jax.Array], num_components: int) -> Whitening:
    """The `num_components` directions of largest scatter, from blocks of rows [n, D] of any sizes.

    Raises:
      ValueError: no block, or more components than features.
    """
    seen: Moments | None = None
    for block in blocks:
        new = _moments(block)
        seen = new if seen is None else _merge(seen, new)
    if seen is None:
        raise ValueError("blocks is empty; expected at least one array of features.")
    if not 0 < num_components <= seen.mean.shape[0]:
        raise ValueError(
            f"num_components is {num_components}; expected 1 to {seen.mean.shape[0]}, the width "
            f"of the "
            "features."
        )
    values, vectors = jnp.linalg.eigh(seen.scatter)
    values, vectors = values[::-1][:num_components], vectors[:, ::-1][:, :num_components]
    # Directions without scatter would be pure rounding noise: give them no more than float
    # precision supports.
    floor = jnp.finfo(values.dtype).eps * values[0]
    return Whitening(
        seen.mean, vectors * lax.rsqrt(jnp.maximum(values, jnp.maximum(floor, 1e-30)))[None]
    )


def apply(whitening: Whitening, x: jax.Array) -> jax.Array:
    """[N, D] -> [N, P] whitened rows at unit norm; a row at the mean stays zero."""
    check("n d", {"d": whitening.mean.shape[0]}, x=x)
    y = dots(
        "nd,dp->np", x.astype(whitening.mean.dtype) - whitening.mean[None], whitening.projection
    )
    return y * lax.rsqrt(jnp.maximum(jnp.sum(y * y, axis=1, keepdims=True), 1e-24))


def pca_whiten(x: jax.Array, num_components: int) -> jax.Array:
    """[N, D] -> [N, P]: centred, projected on the principal directions, each scaled to equal
    spread, rows at unit norm.

    The sign of each output column is arbitrary. For features that do not fit the device, `fit` over
    blocks of them and `apply` to each.

    Reference: Caron et al. 2018, arXiv 1807.05520, section 4 (PCA to 256, whitening, l2).
    """
    return apply(fit([x], num_components), x)


_moments, _merge = jax.jit(moments), jax.jit(merge)
