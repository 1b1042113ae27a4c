"""Products of centred columns, summed over rows, whose derivative is by hand: what Barlow Twins'
correlations are made of."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, axes_of, mean, num_splits, spread
from cl_jax.core.linear import linear
from cl_jax.core.numerics import dots

# Rows of a block, which a CPU's caches hold, and the widest rows that are cut into blocks: the
# products of wider ones take longer than moving them.
BLOCK_ROWS, BLOCK_WIDTH = 1024, 512


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

    def sums(a, b):
        x, y = a - means[0], b - means[1]
        by_column = [jnp.sum(z, axis=0) for z in (x * x, y * y, x, y)]
        return dots("bj,bk->jk", x, y), *by_column

    def added(sums_before, block):
        return jax.tree.map(jnp.add, sums_before, sums(*block)), None

    def in_blocks(a, b):
        start = [
            spread(jnp.zeros(x.shape, x.dtype), axes_of(a)) for x in jax.eval_shape(sums, a, b)
        ]
        return lax.scan(added, tuple(start), _blocks(a, b))[0]

    cross, *squares, rest_a, rest_b = _by_platform(in_blocks, sums, a, b)
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

    def in_blocks(a, b):
        found = lax.map(lambda block: of_rows(*block), _blocks(a, b))
        return tuple(x.reshape(-1, x.shape[2]) for x in found)

    return _by_platform(in_blocks, of_rows, a, b)


def _by_platform(in_blocks, whole, a, b):
    """in_blocks(a, b) on a CPU where the rows can be cut into blocks; else whole(a, b)."""
    if _num_blocks(a, b) == 1:
        return whole(a, b)
    return lax.platform_dependent(a, b, cpu=in_blocks, default=whole)


def _blocks(*arrays):
    """[B, D] -> [blocks, rows of a block, D], each."""
    return tuple(x.reshape(_num_blocks(*arrays), -1, x.shape[1]) for x in arrays)


def _num_blocks(*arrays) -> int:
    rows, width = arrays[0].shape
    if not isinstance(rows, int) or width > BLOCK_WIDTH or num_splits(rows, *arrays) > 1:
        return 1
    fit = [n for n in range(BLOCK_ROWS // 4, BLOCK_ROWS + 1) if rows % n == 0]
    return rows // max(fit) if fit else 1
