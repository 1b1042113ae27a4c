"""Passes over rows some at a time, so that what is made of them stays in a CPU's nearest cache.

For functions whose intermediates are as large as their input. What is made of a row and is much
larger, such as its similarities to all keys, is cut by `_rows.over_rows`, on every backend."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import axes_of, num_splits, spread

BLOCK = 1 << 17  # numbers of a block, of all arrays together


def rows_of_block(*trees: Any) -> int:
    """How many rows of arrays [B, K] and [V, B, K] a CPU takes at a time; 0 for all at once: of few
    rows, a symbolic batch, rows that are divided over a mesh."""
    leaves = jax.tree.leaves(trees)
    count = leaves[0].shape[-2]
    if not all(isinstance(n, int) for x in leaves for n in x.shape):
        return 0
    each = sum(x.size for x in leaves) // max(count, 1)
    if count * each <= BLOCK or num_splits(count, *leaves) > 1:
        return 0
    rows = max(BLOCK // each, 1)
    return rows // 8 * 8 or rows


def by_rows(f: Callable[..., Any], *trees: Any) -> Any:
    """f(*trees), for a function that treats each row of its arguments by itself.

    Of an array [V, B, K] f is given a list of V arrays [B, K], and makes one of a list that it
    returns; tuples stay tuples.
    """
    rows = rows_of_block(*trees)
    count = jax.tree.leaves(trees)[0].shape[-2]

    def whole(*trees):
        found = f(*jax.tree.map(_apart, trees))
        return jax.tree.map(lambda x: jnp.stack(x) if _is_list(x) else x, found, is_leaf=_is_list)

    def in_blocks(*trees):
        def empty(x):
            many = (len(x),) if _is_list(x) else ()
            x = x[0] if many else x
            return jnp.zeros((*many, count, x.shape[1]), x.dtype)

        def visit(i, out):
            start, _, blocks = _block(i, rows, count, trees)
            return jax.tree.map(lambda x, found: _put(x, start, found), out, f(*blocks))

        shapes = jax.eval_shape(lambda *trees: f(*_block(0, rows, count, trees)[2]), *trees)
        start = jax.tree.map(empty, shapes, is_leaf=_is_list)
        return lax.fori_loop(0, -(-count // rows), visit, _varying(start, trees))

    if not rows:
        return whole(*trees)
    return lax.platform_dependent(*trees, cpu=in_blocks, default=whole)


def in_place(f: Callable[..., jax.Array], x: jax.Array, by_view: Any, by_row: Any) -> jax.Array:
    """f of each view of x [V, B, K], with arrays [V, ...] and [V, B, ...] of the view and its rows:
    written over x, where XLA would make another array of its size."""
    rows, views, count = rows_of_block(x), *x.shape[:2]

    def in_blocks(x, by_view, by_row):
        blocks = -(-count // rows)

        def visit(i, x):
            view, start, size = i // blocks, (i % blocks) * rows, min(rows, count)
            first = jnp.minimum(start, count - size)

            def part(y):
                at = (view, first, *[0] * (y.ndim - 2))
                return lax.dynamic_slice(y, at, (1, size, *y.shape[2:]))[0]

            old = part(x)
            new = f(old, by_view[view], part(by_row))
            if count % size:
                new = jnp.where((first + jnp.arange(size) >= start)[:, None], new, old)
            return lax.dynamic_update_slice(x, new[None], (view, first, 0))

        return lax.fori_loop(0, views * blocks, visit, x)

    if not rows:
        return jax.vmap(f)(x, by_view, by_row)
    return lax.platform_dependent(x, by_view, by_row, cpu=in_blocks, default=jax.vmap(f))


def folded(f: Callable[..., Any], state: Any, *trees: Any) -> Any:
    """f(state, fresh, *trees), for a function that adds what it finds in rows to a state. fresh:
    [rows, 1], false on rows that were added before; None where all are new. Arrays [V, B, K] are
    given as in `by_rows`."""
    rows = rows_of_block(*trees)
    count = jax.tree.leaves(trees)[0].shape[-2]

    def in_blocks(state, *trees):
        def visit(i, state):
            _, fresh, blocks = _block(i, rows, count, trees)
            return f(state, fresh, *blocks)

        return lax.fori_loop(0, -(-count // rows), visit, _varying(state, trees))

    def whole(state, *trees):
        return f(_varying(state, trees), None, *jax.tree.map(_apart, trees))

    if not rows:
        return whole(state, *trees)
    return lax.platform_dependent(state, *trees, cpu=in_blocks, default=whole)


def _block(i, rows, count, trees):
    """Where a block begins, [rows, 1] which of its rows were in none before (None: all), and the
    block. The last one begins earlier where blocks do not come out even."""
    start, fresh = i * rows, None
    if count % rows:
        start = jnp.minimum(start, count - rows)
        fresh = (start + jnp.arange(rows) >= i * rows)[:, None]
    return start, fresh, jax.tree.map(lambda x: _part(x, start, rows), trees)


def _varying(state, trees):
    axes = frozenset().union(*map(axes_of, jax.tree.leaves(trees)))
    return jax.tree.map(lambda x: spread(x, axes), state)


def _apart(x):
    return list(x) if x.ndim == 3 else x


def _is_list(x) -> bool:
    return isinstance(x, list)


def _part(x, start, rows):
    if x.ndim == 2:
        return lax.dynamic_slice_in_dim(x, start, rows)
    size = (1, rows, x.shape[2])
    return [lax.dynamic_slice(x, (v, start, 0), size)[0] for v in range(x.shape[0])]


def _put(x, start, found):
    if not _is_list(found):
        return lax.dynamic_update_slice_in_dim(x, found, start, 0)
    for v, view in enumerate(found):
        x = lax.dynamic_update_slice(x, view[None], (v, start, 0))
    return x
