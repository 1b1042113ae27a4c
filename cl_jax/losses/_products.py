"""Products of centred columns, summed over rows, whose derivative is by hand: what Barlow Twins'
correlations are made of."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.core.axis import AxisName, mean
from cl_jax.core.linear import linear
from cl_jax.core.numerics import dots
from cl_jax.losses._blocks import by_rows, folded

# The widest rows that are cut into blocks: the products of wider ones take longer than moving them.
BLOCK_WIDTH = 512


class Products(NamedTuple):
    """Of centred columns, over this device's rows: cross [D, D], sum_i a_ij b_ik; square_a,
    square_b [D], sums of squares. mean_a, mean_b: [1, D], what was taken off the columns."""

    cross: jax.Array
    square_a: jax.Array
    square_b: jax.Array
    mean_a: jax.Array
    mean_b: jax.Array


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def centred_products(a: jax.Array, b: jax.Array, over: AxisName) -> Products:
    """The products of centred columns, which are not written out; means over the devices of `over`.

    The derivative is by hand: JAX's own keeps centred columns, and takes the mean off their
    gradient, which has none where all rows that a mean is of are summed, as callers do.
    """
    means = [mean(jnp.mean(x, axis=0, keepdims=True), over) for x in (a, b)]

    def added(sums, fresh, a, b):
        x, y = a - means[0], b - means[1]
        if fresh is not None:
            x, y = jnp.where(fresh, x, 0), jnp.where(fresh, y, 0)
        by_column = [jnp.sum(z, axis=0) for z in (x * x, y * y, x, y)]
        return jax.tree.map(jnp.add, sums, (dots("bj,bk->jk", x, y), *by_column))

    width = a.shape[1]
    start = (jnp.zeros((width, width), a.dtype), *[jnp.zeros(width, a.dtype)] * 4)
    if width > BLOCK_WIDTH:
        cross, *squares, rest_a, rest_b = added(start, None, a, b)
    else:
        cross, *squares, rest_a, rest_b = folded(added, start, a, b)
    # What rounding left in the columns would be in each row of the gradient.
    rest = [mean(x[None] / a.shape[0], over) for x in (rest_a, rest_b)]
    return Products(cross, *squares, *jax.tree.map(jnp.add, means, rest))


@centred_products.defjvp
def _centred_products_jvp(over, primals, tangents):
    found = centred_products(*primals, over)
    residuals = *primals, found.mean_a, found.mean_b
    moved = linear(_products_tangent, _products_transpose, residuals, tangents)
    return found, Products(
        *moved, *(mean(jnp.mean(d, axis=0, keepdims=True), over) for d in tangents)
    )


def _products_tangent(residuals, moved):
    a, b, mean_a, mean_b = residuals
    x, y, (d_a, d_b) = a - mean_a, b - mean_b, moved
    return (
        dots("bj,bk->jk", d_a, y) + dots("bj,bk->jk", x, d_b),
        2 * jnp.sum(x * d_a, axis=0),
        2 * jnp.sum(y * d_b, axis=0),
    )


def _products_transpose(residuals, cotangents):
    a, b, mean_a, mean_b = residuals
    cross, square_a, square_b = cotangents

    def of_rows(a, b):
        x, y = a - mean_a, b - mean_b
        return (
            dots("bk,jk->bj", y, cross).astype(a.dtype) + x * (2 * square_a)[None],
            dots("bj,jk->bk", x, cross).astype(b.dtype) + y * (2 * square_b)[None],
        )

    return of_rows(a, b) if a.shape[1] > BLOCK_WIDTH else by_rows(of_rows, a, b)
