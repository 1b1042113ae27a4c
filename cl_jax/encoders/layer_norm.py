"""Layer normalisation (Ba et al., arXiv 1607.06450) with its gradient written out."""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import axes_of, is_divided, spread, varying
from cl_jax.core.linear import linear
from cl_jax.core.schedule import not_before
from cl_jax.core.shapes import check_real


class LayerNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, moments over the last axis of x
    [..., D].

    Moments and parameters "scale" and "bias" [D] are float32 at least, and those of deviations:
    large means lose nothing. As `flax.linen.LayerNorm` with a gradient that keeps x and two
    numbers a row, where differentiation keeps three arrays of the size of x.

    Args:
      epsilon: added to the variance.
      dtype: of the result; None keeps that of x.

    Raises:
      ValueError: x is not of floating point, or a scalar.
    """

    epsilon: float = 1e-6
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        check_real(x=x)
        x = jnp.asarray(x)
        if x.ndim == 0:
            raise ValueError("x is a scalar; layer norm expects [..., D].")
        size = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, size, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, size, jnp.float32)
        dtype = x.dtype if self.dtype is None else jnp.dtype(self.dtype)
        of_features = jax.typeof(x).sharding.spec[-1] is not None
        if of_features or is_divided(scale) or is_divided(bias):  # over Explicit axes of a mesh
            return _forward(x, scale, bias, self.epsilon, dtype)[0]
        return _normalise(*varying((x, scale, bias)), self.epsilon, dtype)


class _Kept(NamedTuple):
    """What the gradient reads; mean and inverse deviation are one number a row."""

    x: jax.Array
    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    inverse: jax.Array


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> jax.Array:
    return _forward(x, scale, bias, epsilon, dtype)[0]


@_normalise.defjvp
def _normalise_jvp(
    epsilon: float, dtype: Any, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    x, scale, bias = primals
    y, kept = _forward(x, scale, bias, epsilon, dtype)
    axes = axes_of(y)
    moved = tuple(spread(one, axes) for one in tangents)
    return y, linear(partial(_tangent, dtype), _gradients, kept, moved)


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> tuple[jax.Array, _Kept]:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    y = (wide - mean) * inverse * _row(scale, x) + _row(bias, x)
    return y.astype(dtype), _Kept(x, scale, bias, mean, inverse)


def _tangent(dtype: Any, kept: _Kept, moved: tuple[jax.Array, ...]) -> jax.Array:
    """Written out as the gradient is: tracing it through `_forward` takes three times as long."""
    x, scale, _, mean, inverse = kept
    dx, d_scale, d_bias = moved
    normal, dx = (x.astype(mean.dtype) - mean) * inverse, dx.astype(mean.dtype)
    level, along = (values.mean(-1, keepdims=True) for values in (dx, dx * normal))
    d_normal = inverse * (dx - level - normal * along)
    return (d_normal * _row(scale, x) + normal * _row(d_scale, x) + _row(d_bias, x)).astype(dtype)


def _gradients(kept: _Kept, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of x, scale and bias."""
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


def _row(value: jax.Array, x: jax.Array) -> jax.Array:
    return value.reshape((1,) * (x.ndim - 1) + (-1,))
