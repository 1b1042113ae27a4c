"""The cross-entropy of rows of logits under labels, whose derivative is by hand: JAX's own keeps
arrays of the logits' size between the passes. Distributions that are not labels: `_views`."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.linear import linear
from cl_jax.core.numerics import at_least_one, capped, wide


@jax.custom_jvp
def of_labels(logits: jax.Array, labels: jax.Array, scale: jax.Array) -> jax.Array:
    """[B] -log softmax(scale * logits)[labels] of logits [B, K] and int32 labels [B], at least
    float32, the type of the scale."""
    x, top, log_total = _sums(logits, scale)
    own = jnp.take_along_axis(x, labels[:, None], axis=1) - top
    return (log_total - scale * capped(own))[:, 0]


@of_labels.defjvp
def _of_labels_jvp(primals, tangents):
    moved = tangents[0], tangents[2]
    return of_labels(*primals), linear(_tangent, _transpose, primals, moved)


def _gradient(logits, labels, scale):
    """The logits below their maximum, and the gradient to them where scaled."""
    x, top, log_total = _sums(logits, scale)
    below = capped(x - top)
    own = jnp.arange(logits.shape[1], dtype=labels.dtype)[None] == labels[:, None]
    return below, jnp.exp(scale * below - log_total) - own.astype(scale.dtype)


def _tangent(primals, moved):
    d_logits, d_scale = moved
    below, g = _gradient(*primals)
    return jnp.sum(g * (primals[2] * wide(d_logits).astype(g.dtype) + d_scale * below), axis=1)


def _transpose(primals, cotangents):
    logits, _, scale = primals
    below, g = _gradient(*primals)
    d_logits = (g * (scale * cotangents)[:, None]).astype(logits.dtype)
    return d_logits, jnp.sum(jnp.sum(g * below, axis=1) * cotangents)


def _sums(logits, scale):
    """Logits, their maxima, and the logarithms of the sums of scaled exponentials below them."""
    x = wide(logits).astype(scale.dtype)
    top = lax.stop_gradient(jnp.max(x, axis=1, keepdims=True))
    # A scale for each row: of a scalar, XLA's sums over rows on a CPU read an array as large as x.
    powers = jnp.exp(capped(x - top) * jnp.where(jnp.isnan(top), top, scale))
    return x, top, jnp.log(at_least_one(jnp.sum(powers, axis=1, keepdims=True)))
