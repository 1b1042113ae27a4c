"""Layer normalisation (Ba et al., arXiv 1607.06450) with its gradient written out."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import varying
from cl_jax.core.schedule import not_before


class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, moments over the last axis of
    x [..., D].

    Moments and parameters "scale" and "bias" [D] are float32 at least, and those of deviations:
    large means lose nothing. As `flax.linen.LayerNorm` with a gradient that keeps x and two
    numbers a row, where differentiation keeps three arrays of the size of x. Differentiated in
    reverse (`jax.grad`, `jax.vjp`, of any order), not forward (`jax.jvp` alone).

    Args:
      epsilon: added to the variance.
      dtype: of the result; None keeps that of x.
    """

    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, size, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, size, jnp.float32)
        dtype = x.dtype if self.dtype is None else jnp.dtype(self.dtype)
        return _normalise(*varying((x, scale, bias)), self.epsilon, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> jax.Array:
    return _forward(x, scale, bias, epsilon, dtype)[0]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> tuple[jax.Array, Any]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide - mean) * inverse * _row(scale, x) + _row(bias, x)
    return y.astype(dtype), (x, scale, bias, mean, inverse)


def _backward(
    epsilon: float, dtype: Any, kept: Any, dy: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, scale, bias, mean, inverse = kept
    normal = (x.astype(mean.dtype) - not_before(mean, dy)) * inverse
    dy = dy.astype(mean.dtype)
    rows = tuple(range(x.ndim - 1))
    d_bias, d_scale = dy.sum(rows), (dy * normal).sum(rows)
    level, along = (
        jnp.matmul(values, scale, precision="highest")[..., None] / scale.size
        for values in (dy, dy * normal)
    )
    dx = inverse * (dy * _row(scale, x) - level - normal * along)
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


_normalise.defvjp(_forward, _backward)


def _row(value: jax.Array, x: jax.Array) -> jax.Array:
    return value.reshape((1,) * (x.ndim - 1) + (-1,))
