"""Passes over rows some at a time, so that what is made of them stays in a CPU's nearest cache.

For functions whose intermediates are as large as their input. What is made of a row and is much
larger, such as its similarities to all keys, is cut by `_rows.over_rows`, on every backend."""

from collections.abc import Callable
from functools import partial
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

    def block(start, trees):
        # The last one begins earlier where blocks do not come out even.
        return f(*jax.tree.map(lambda x: _part(x, start, rows), trees))

    def in_blocks(*trees):
        def empty(x):
            many = (len(x),) if _is_list(x) else ()
            x = x[0] if many else x
            return jnp.zeros((*many, count, x.shape[1]), x.dtype)

        shapes = jax.eval_shape(partial(block, 0), trees)
        return lax.fori_loop(
            0,
            -(-count // rows),
            lambda i, out: jax.tree.map(
                lambda x, found: _put(x, i * rows, found), out, block(i * rows, trees)
            ),
            _varying(jax.tree.map(empty, shapes, is_leaf=_is_list), trees),
        )

    if not rows:
        return whole(*trees)
    return lax.platform_dependent(*trees, cpu=in_blocks, default=whole)


def folded(f: Callable[..., Any], state: Any, *trees: Any) -> Any:
    """f(state, fresh, *trees), for a function that adds what it finds in rows to a state. fresh:
    [rows, 1], false on rows that were added before; None where all are new. Arrays [V, B, K] are
    given as in `by_rows`."""
    rows = rows_of_block(*trees)
    count = jax.tree.leaves(trees)[0].shape[-2]

    def in_blocks(state, *trees):
        def visit(i, state):
            start = jnp.minimum(i * rows, count - rows)
            fresh = None
            if count % rows:
                fresh = (start + jnp.arange(rows) >= i * rows)[:, None]
            return f(state, fresh, *jax.tree.map(lambda x: _part(x, start, rows), trees))

        return lax.fori_loop(0, -(-count // rows), visit, _varying(state, trees))

    def whole(state, *trees):
        return f(_varying(state, trees), None, *jax.tree.map(_apart, trees))

    if not rows:
        return whole(state, *trees)
    return lax.platform_dependent(state, *trees, cpu=in_blocks, default=whole)


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
