"""Losses that need a whole row of similarities at once, computed some rows at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.losses._float import dots


def over_rows(f: Callable[..., Any], *rows: Any, block_size: int | None) -> Any:
    """f(*rows) for a function that treats each row of its arguments (trees of [B, ...]) by itself.

    With `block_size` so many rows go through f at a time, and again in the backward pass: what f makes of a row, such
    as its similarities to all keys, is held for one block only. The last block is filled up with repeated rows, whose
    results are dropped.
    """
    rows = jax.tree.map(jnp.asarray, rows)
    count = jax.tree.leaves(rows)[0].shape[0]
    if block_size is None or block_size >= count:
        return f(*rows)
    index = jnp.minimum(jnp.arange(-(-count // block_size) * block_size), count - 1).reshape(-1, block_size)

    def block(i):
        return f(*jax.tree.map(lambda x: x[i], rows))

    out = lax.map(jax.checkpoint(block, prevent_cse=False), index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)


class RowSums(NamedTuple):
    """Of a row i: lse, log sum_j exp(s_ij + w_ij); pulled, sum_j p_ij s_ij; count, sum_j p_ij; and gap,
    lse - pulled / count, which keeps its digits where the two nearly agree (lse where count is 0)."""

    lse: jax.Array
    gap: jax.Array
    pulled: jax.Array
    count: jax.Array


def log_sums(queries: jax.Array, keys: jax.Array, *, scale: Any, rows: Any = None, cols: Any = None,
             log_weight: Callable[..., jax.Array] | None = None, positive: Callable[..., jax.Array] | None = None,
             block_size: int | None = None) -> RowSums:
    """Sums over the keys of s_ij = scale * q_i . k_j, each [B].

    w = log_weight(rows, cols) and p = positive(rows, cols), [r, K] for r of the rows, are constants; lse is -inf, with
    zero gradient, for a row whose every w is. Without `positive` p is 0.
    """
    def some(q, rows):
        logits = dots("bd,kd->bk", q, keys) * scale
        weighted = logits
        if log_weight is not None:
            weighted = logits + lax.stop_gradient(log_weight(rows, cols))
        highest = lax.stop_gradient(jnp.max(weighted, axis=1))
        empty = highest == -jnp.inf
        highest = jnp.where(empty, 0.0, highest)
        powers = jnp.sum(jnp.exp(weighted - highest[:, None]), axis=1)
        tail = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, powers)))
        if positive is None:
            zero = jnp.zeros_like(tail)
            return RowSums(tail + highest, tail + highest, zero, zero)
        p = lax.stop_gradient(positive(rows, cols)).astype(logits.dtype)
        pulled, count = jnp.sum(p * logits, axis=1), jnp.sum(p, axis=1)
        gap = tail + (highest - pulled / jnp.where(count > 0, count, 1.0))
        return RowSums(tail + highest, gap, pulled, count)

    return over_rows(some, queries, rows, block_size=block_size)
