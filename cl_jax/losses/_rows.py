"""Losses that need a whole row of similarities at once, which no running sum gives: computed some
rows at a time.

They pick negatives by rank (`hard_simple`, `hard_contrastive`), take the largest violation
(`ranking_loss`) or judge each pair by the sum of its row (`inva_spread`). Log-sum-exps and sums
over pairs are computed by `contrast`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from cl_jax.core.axis import num_splits, split_over

# Similarities up to which all rows are taken at once, and those of a block, where the block size is
# chosen here.
WHOLE_BYTES, BLOCK_BYTES = 2**28, 2**25


def over_rows(f: Callable[..., Any], *rows: Any, block_size: int | None, columns: int = 0) -> Any:
    """f(*rows) for a function that treats each row of its arguments (trees of [B, ...]) by itself.

    `block_size` rows go through f at a time, and again in the backward pass, so that what it makes
    of a row, such as its similarities to all keys, is held for one block only. The last block is
    filled up with repeated rows, whose results are dropped. 0 takes all rows at once, and so does
    None, except for more than 256 MiB of float32 entries at `columns` a row, which are cut into
    blocks of 32 MiB. Of rows sharded over a mesh every device takes its own, and sizes are those of
    one device.
    """
    rows = jax.tree.map(jnp.asarray, rows)
    count = jax.tree.leaves(rows)[0].shape[0]
    if not isinstance(count, int) or not isinstance(columns, int):  # a symbolic batch
        if block_size:
            raise ValueError(
                f"block_size is {block_size} with {count} rows; expected a batch of fixed size, "
                "since the number of blocks is fixed when the program is made. Pass block_size=0."
            )
        return f(*rows)
    mesh, names = split_over(count, *jax.tree.leaves(rows))
    parts = num_splits(count, *jax.tree.leaves(rows))
    count //= parts  # of each device
    if block_size is None and 4 * count * columns > WHOLE_BYTES:
        block_size = max(BLOCK_BYTES // (4 * columns), 1)
    if not block_size or block_size >= count:
        return f(*rows)
    blocks = -(-count // block_size)

    def cut(x):
        """[parts * count, ...] -> [blocks, parts * block_size, ...]: of each part's rows a block,
        filled up with its last row."""
        x = x.reshape(parts, count, *x.shape[1:])
        fill = blocks * block_size - count
        x = jnp.concatenate([x, jnp.broadcast_to(x[:, -1:], (parts, fill, *x.shape[2:]))], axis=1)
        x = jnp.moveaxis(x.reshape(parts, blocks, block_size, *x.shape[2:]), 1, 0)
        x = x.reshape(blocks, parts * block_size, *x.shape[3:])
        if not names:
            return x
        return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, names)))

    def uncut(x):
        x = jnp.moveaxis(x.reshape(blocks, parts, block_size, *x.shape[2:]), 0, 1)
        x = x.reshape(parts, blocks * block_size, *x.shape[3:])[:, :count]
        return x.reshape(parts * count, *x.shape[2:])

    def block(rows):
        return f(*rows)

    out = lax.map(jax.checkpoint(block, prevent_cse=False), jax.tree.map(cut, rows))
    return jax.tree.map(uncut, out)
