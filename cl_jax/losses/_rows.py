"""Losses that need a whole row of similarities at once, which no running sum gives: computed some
rows at a time.

They pick negatives by rank (`hard_simple`, `hard_contrastive`), take the largest violation
(`ranking_loss`) or judge each pair by the sum of its row (`inva_spread`). Log-sum-exps and sums
over pairs ride on `contrast`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.losses.contrast import PLAIN_BYTES

BLOCK_BYTES = 2**25  # similarities of a block, where the block size is chosen here


def over_rows(f: Callable[..., Any], *rows: Any, block_size: int | None, columns: int = 0) -> Any:
    """f(*rows) for a function that treats each row of its arguments (trees of [B, ...]) by itself.

    `block_size` rows go through f at a time, and again in the backward pass, so that what it makes
    of a row, such as its similarities to all keys, is held for one block only. The last block is
    filled up with repeated rows, whose results are dropped. 0 takes all rows at once, and so does
    None, but for more than 256 MiB of float32 entries at `columns` a row, which are cut into blocks
    of 32 MiB."""
    rows = jax.tree.map(jnp.asarray, rows)
    count = jax.tree.leaves(rows)[0].shape[0]
    if block_size is None and 4 * count * columns > PLAIN_BYTES:
        block_size = max(BLOCK_BYTES // (4 * columns), 1)
    if not block_size or block_size >= count:
        return f(*rows)
    index = jnp.minimum(jnp.arange(-(-count // block_size) * block_size), count - 1).reshape(
        -1, block_size
    )

    def block(i):
        return f(*jax.tree.map(lambda x: x[i], rows))

    out = lax.map(jax.checkpoint(block, prevent_cse=False), index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)
