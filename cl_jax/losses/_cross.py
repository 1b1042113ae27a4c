"""Cross-entropies of rows of logits, whose derivative is by hand: JAX's own keeps arrays of the
logits' size between the passes."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

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


@jax.custom_jvp
def of_targets(x: jax.Array, targets: jax.Array) -> jax.Array:
    """[B] -sum targets * log softmax(x) of x, targets [B, K], of one type of at least float32."""
    return jnp.sum(targets * _below(x), axis=1)


def _of_targets_jvp(primals, tangents):
    x, (d_x, d_targets) = primals[0], tangents
    out = jnp.zeros(x.shape[:1], x.dtype)
    if not isinstance(d_x, SymbolicZero):
        out = linear(_targets_tangent, _targets_transpose, primals, d_x)
    if not isinstance(d_targets, SymbolicZero):
        out = out + jnp.sum(d_targets * _below(x), axis=1)
    return of_targets(*primals), out


of_targets.defjvp(_of_targets_jvp, symbolic_zeros=True)


def _below(x):
    """-log softmax(x)."""
    x, top, log_total = _sums(x)
    return log_total - capped(x - top)


def _targets_gradient(x, targets):
    mass = jnp.sum(targets, axis=1, keepdims=True)
    return mass * jnp.exp(-_below(x)) - targets


def _targets_tangent(primals, moved):
    return jnp.sum(_targets_gradient(*primals) * moved, axis=1)


def _targets_transpose(primals, cotangents):
    return _targets_gradient(*primals) * cotangents[:, None]


def _sums(logits):
    """Logits, their maxima and the logarithms of the sums of exponentials below them."""
    x = wide(logits)
    top = lax.stop_gradient(jnp.max(x, axis=1, keepdims=True))
    powers = jnp.exp(capped(x - top))
    return x, top, jnp.log(at_least_one(jnp.sum(powers, axis=1, keepdims=True)))
