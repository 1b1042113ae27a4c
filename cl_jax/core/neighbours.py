"""The rows of a bank that are most similar to queries: exact, streamed over blocks on the
device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.core.numerics import unit, wide
from cl_jax.core.shapes import check, check_count

Array = jax.Array | np.ndarray
GROUP = 32  # columns whose maximum is looked at before they are


def nearest_rows(
    bank: Array,
    queries: Array,
    k: int,
    *,
    normalise: bool = True,
    block_size: int = 4096,
    query_size: int = 1024,
) -> tuple[jax.Array, jax.Array]:
    """The k bank rows most similar to each query, nearest first, the first of equals first.

    A bank row with NaN is nobody's neighbour: its similarity is -inf.

    Args:
      bank: [N, D].
      queries: [M, D].
      k: neighbours.
      normalise: makes the similarity the cosine; False takes the dot product of the rows as they
        are.
      block_size, query_size: bank rows and queries compared at a time: the largest array is
        [query_size, k + block_size].

    Returns:
      ([M, k] similarities, [M, k] int32 rows of the bank).

    Raises:
      ValueError: shapes that disagree, k above N, no query.
    """
    sizes = check("m d", check("n d", bank=bank), queries=queries)
    check_search(sizes["n"], sizes["m"], k, block_size, query_size)
    return _nearest_rows(bank, queries, k, normalise, block_size, query_size)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _nearest_rows(bank, queries, k, normalise, block_size, query_size):
    # The barrier keeps slices of the result out of the search, where XLA would make a full sort of
    # the top k.
    return by_blocks(
        lambda block: lax.optimization_barrier(search(bank, block, k, normalise, block_size)),
        queries,
        query_size,
    )


def check_search(rows: int, queries: int, k: int, block_size: int, query_size: int) -> None:
    """Checks the settings of a search.

    Raises:
      ValueError: k above the rows of the bank, no query, counts below 1.
    """
    check_count(k=k, block_size=block_size, query_size=query_size)
    if k > rows:
        raise ValueError(
            f"k is {k} but the bank has {rows} rows; expected k <= N. Lower k (the published 200 "
            f"asks for "
            "that many training examples), or give the whole training set."
        )
    if queries == 0:
        raise ValueError("there are no queries: features have 0 rows.")


def by_blocks(f: Callable[[jax.Array], Any], queries: jax.Array, query_size: int) -> Any:
    """f over blocks of `query_size` rows, inside a compiled function; the last one is filled up
    with the last row."""
    count = queries.shape[0]
    size = min(query_size, count)
    index = jnp.minimum(jnp.arange(-(-count // size) * size), count - 1).reshape(-1, size)
    out = lax.map(lambda i: f(queries[i]), index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)


def search(
    bank: jax.Array, queries: jax.Array, k: int, normalise: bool, block_size: int
) -> tuple[jax.Array, jax.Array]:
    """`nearest_rows` for one block of queries, inside a compiled function."""
    size, block = bank.shape[0], min(block_size, bank.shape[0])
    ready = unit if normalise else wide
    queries = ready(queries)
    dtype = jnp.promote_types(queries.dtype, wide(bank[:1]).dtype)

    def step(best, number):
        similarity, nearest = best
        # The last block ends with the bank; the rows it shares with the one before are masked.
        start = jnp.minimum(number * block, size - block)
        rows = ready(lax.dynamic_slice_in_dim(bank, start, block))
        # Not the accelerators' default of fewer bits: exp(s / T) multiplies the error by 1 / T.
        scores = jnp.matmul(queries, rows.T, precision=lax.Precision.HIGHEST)
        mine = (start + jnp.arange(block) >= number * block)[None]
        scores = jnp.where(mine & ~jnp.isnan(scores), scores, -jnp.inf)
        best, at = _top_k(scores, min(k, block))
        similarity, kept = lax.top_k(jnp.concatenate([similarity, best], axis=1), k)
        nearest = jnp.concatenate([nearest, start + at], axis=1)
        return (similarity, jnp.take_along_axis(nearest, kept, axis=1)), None

    none = (
        jnp.full((queries.shape[0], k), -jnp.inf, dtype),
        jnp.zeros((queries.shape[0], k), jnp.int32),
    )
    return lax.scan(step, none, jnp.arange(-(-size // block), dtype=jnp.int32))[0]


def _top_k(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of rows [Q, N]. Few of many lie in the k groups of columns with the largest
    maxima, and only these are sorted; groups stay in order, so that the first of equals is first.
    """
    width = scores.shape[1]
    if k * GROUP + width // GROUP > width // 2:
        return lax.top_k(scores, k)
    filled = jnp.pad(scores, ((0, 0), (0, -width % GROUP)), constant_values=-jnp.inf)
    groups = filled.reshape(len(scores), -1, GROUP)
    chosen = jnp.sort(lax.top_k(jnp.max(groups, axis=2), k)[1], axis=1)
    few = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(len(scores), -1)
    best, at = lax.top_k(few, k)
    group = jnp.take_along_axis(chosen, at // GROUP, axis=1)
    return best, group * GROUP + at % GROUP
