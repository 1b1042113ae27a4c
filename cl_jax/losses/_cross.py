"""Cross-entropies of rows of logits, whose derivative is by hand: JAX's own keeps arrays of the
logits' size between the passes."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.linear import linear
from cl_jax.core.numerics import at_least_one, capped, wide


@jax.custom_jvp
def of_labels(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[B] -log softmax(logits)[labels] of logits [B, K] and int32 labels [B], at least float32."""
    x, top, log_total = _sums(logits)
    own = jnp.take_along_axis(x, labels[:, None], axis=1) - top
    return (log_total - capped(own))[:, 0]


@of_labels.defjvp
def _of_labels_jvp(primals, tangents):
    return of_labels(*primals), linear(_labels_tangent, _labels_transpose, primals, tangents[0])


def _labels_gradient(logits, labels):
    x, top, log_total = _sums(logits)
    own = jnp.arange(logits.shape[1], dtype=labels.dtype)[None] == labels[:, None]
    return jnp.exp(capped(x - top) - log_total) - own.astype(x.dtype)


def _labels_tangent(primals, moved):
    return jnp.sum(_labels_gradient(*primals) * wide(moved), axis=1)


def _labels_transpose(primals, cotangents):
    return (_labels_gradient(*primals) * cotangents[:, None]).astype(primals[0].dtype)


def _sums(logits):
    """Logits, their maxima and the logarithms of the sums of exponentials below them."""
    x = wide(logits)
    top = lax.stop_gradient(jnp.max(x, axis=1, keepdims=True))
    powers = jnp.exp(capped(x - top))
    return x, top, jnp.log(at_least_one(jnp.sum(powers, axis=1, keepdims=True)))
