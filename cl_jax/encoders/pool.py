"""Max pooling whose gradient is a sum over the places of a window instead of a scatter."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.linear import linear

Sides = tuple[int, int]


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool(
    x: jax.Array, window: Sides, strides: Sides, padding: str | tuple[Sides, Sides] = "VALID"
) -> jax.Array:
    """The largest value of each window of images [B, H, W, C], as `flax.linen.max_pool`.

    The gradient goes to the first of equal values in the order of rows, as in PyTorch and XLA. XLA
    finds it by a scatter, for which a GPU keeps four numbers of where each largest value stood:
    three times the traffic, and on a CPU five times the time. A TPU has an instruction for it and
    keeps it."""
    return nn.max_pool(x, window, strides, padding)


@max_pool.defjvp
def _max_pool_jvp(
    window: Sides,
    strides: Sides,
    padding: str | tuple[Sides, Sides],
    primals: tuple[jax.Array],
    tangents: tuple[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents

    def tangent(x: jax.Array, dx: jax.Array) -> jax.Array:
        return jax.jvp(lambda x: nn.max_pool(x, window, strides, padding), (x,), (dx,))[1]

    gradient = partial(_gradient, window, strides, padding)
    return max_pool(x, window, strides, padding), linear(tangent, gradient, x, dx)


def _gradient(
    window: Sides, strides: Sides, padding: str | tuple[Sides, Sides], x: jax.Array, dy: jax.Array
) -> jax.Array:
    def scattered(x, dy):
        return jax.vjp(lambda x: nn.max_pool(x, window, strides, padding), x)[1](dy)[0]

    with jax.named_scope("max_pool"):
        return lax.platform_dependent(
            x, dy, tpu=scattered, default=partial(_summed, window, strides, padding)
        )


def _summed(
    window: Sides, strides: Sides, padding: str | tuple[Sides, Sides], x: jax.Array, dy: jax.Array
) -> jax.Array:
    sides = (
        lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
        if isinstance(padding, str)
        else padding
    )
    places = [(i, j) for i in range(window[0]) for j in range(window[1])]
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)), constant_values=-jnp.inf)

    def ends(
        place: Sides,
    ) -> tuple[
        int, ...
    ]:  # of a window's place: the last row and column over all windows, exclusive
        return tuple(
            at + (n - 1) * stride + 1 for at, n, stride in zip(place, dy.shape[1:3], strides)
        )

    # The place in its window of each largest value, found among the nine: not by comparison with
    # the result, which another loop may have rounded otherwise.
    first = jnp.zeros(dy.shape, jnp.uint8)
    largest = jnp.full(dy.shape, -jnp.inf, x.dtype)
    for number, place in enumerate(places):
        (top, left), (bottom, right) = place, ends(place)
        seen = padded[:, top : bottom : strides[0], left : right : strides[1]]
        first = jnp.where(seen > largest, jnp.uint8(number), first)
        largest = jnp.maximum(largest, seen)
    first = lax.optimization_barrier(first)  # once, and not for each of the places below
    total = jnp.zeros((), dy.dtype)
    for number, place in enumerate(places):
        part, end = jnp.where(first == number, dy, 0), ends(place)
        spread = [
            (at - low, n + low + high - last - high, stride - 1)
            for at, last, n, (low, high), stride in zip(place, end, x.shape[1:3], sides, strides)
        ]
        total = total + lax.pad(part, jnp.zeros((), dy.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    return total.astype(x.dtype)
