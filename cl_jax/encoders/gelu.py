"""GELU (Hendrycks and Gimpel, arXiv 1606.08415), exact, with its gradient written out."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import axes_of, is_divided, spread, varying
from cl_jax.core.linear import linear
from cl_jax.core.schedule import not_before

LEAST = 1e-30  # below it a quotient of what may be subnormal says nothing


def gelu(x: jax.Array) -> jax.Array:
    """x times the standard normal's distribution function at x, of any shape.

    What differentiation keeps is x, and on a CPU the result too, which the dense layer that follows
    keeps anyway: their quotient is the distribution function, so that a gradient there takes an
    exponential and no error function. Accelerators, whose memory is the scarce thing and not
    arithmetic, compute it from x again, as does everything on a mesh with Explicit axes."""
    return _again(x) if is_divided(x) else _gelu(x)


def _plain(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=False)


_again = jax.checkpoint(_plain)  # keeps its argument alone


def _by_erf(x: jax.Array) -> jax.Array:
    """`_plain` by the error function itself, a third of the work of its complement, which keeps
    relative precision far below zero too; here what counts is the absolute one."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _distribution(wide)).astype(x.dtype)


def _distribution(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))


def _density(x: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(x)) / math.sqrt(2 * math.pi)


@jax.custom_jvp
def _gelu(x: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, cpu=_by_erf, default=_plain)


@_gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    (x,), (dx,) = primals, tangents
    y = _gelu(x)
    return y, linear(_tangent, _gradient, (x, y), spread(dx, axes_of(y)))


def _tangent(kept: tuple[jax.Array, jax.Array], dx: jax.Array) -> jax.Array:
    x, y = kept
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (_slope(wide, y) * dx.astype(wide.dtype)).astype(x.dtype)


def _gradient(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> jax.Array:
    def on_cpu(x, y, dy):
        return _tangent((not_before(x, dy), y), dy)

    def plain(x, y, dy):
        return jax.vjp(_plain, x)[1](dy)[0]

    return lax.platform_dependent(*varying((*kept, dy)), cpu=on_cpu, default=plain)


@jax.custom_jvp
def _slope(x: jax.Array, y: jax.Array) -> jax.Array:
    """The derivative of y = gelu(x) at x, float32 at least. A y of fewer bits is not read."""
    if y.dtype == x.dtype:
        below = jnp.where(jnp.abs(x) < LEAST, 0.5, y / jnp.where(x == 0, 1, x))
    else:
        below = _distribution(x)
    return below + x * _density(x)


@_slope.defjvp
def _slope_jvp(given, moved):  # of x alone: y is a function of it
    x, y = given
    return _slope(x, y), _density(x) * (2 - jnp.square(x)) * moved[0]
