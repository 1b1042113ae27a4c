"""A ring of the most recent rows: the negatives of MoCo and its kin. Any batch size against any
length."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_real


class Queue(NamedTuple):
    """rows: [K, ...], in slot order. pointer: the next slot to write. filled: how many slots hold
    enqueued rows."""

    rows: jax.Array
    pointer: jax.Array
    filled: jax.Array


def init(
    key: jax.Array,
    size: int,
    width: int | tuple[int, ...],
    *,
    start: str = "unit",
    dtype: Any = jnp.float32,
) -> Queue:
    """Random rows, so that a loss has its full count of negatives from the first step.

    Args:
      key: a `jax.random` key.
      size: K, how many rows are kept.
      width: D, or the whole shape of a row.
      start: "unit" for directions uniform on the sphere (MoCo, PCL, InfoMin); "uniform" for entries
        in +-1/sqrt(D/3), whose rows have norm one in expectation only (CMC's MoCo, MiCE).
      dtype: type of the rows.

    Returns:
      A Queue with pointer and filled 0.

    Raises:
      ValueError: a size below 1, an empty row, an unknown start.
    """
    shape = (width,) if isinstance(width, int) else tuple(width)
    if size < 1 or not shape or min(shape) < 1:
        raise ValueError(
            f"size is {size} and width {width}; expected at least one row of at least one entry."
        )
    if start == "unit":
        rows = jax.random.normal(key, (size, *shape), dtype)
        rows = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    elif start == "uniform":
        bound = (3.0 / shape[-1]) ** 0.5
        rows = jax.random.uniform(key, (size, *shape), dtype, -bound, bound)
    else:
        raise ValueError(f'start is {start!r}; expected "unit" or "uniform".')
    return Queue(rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def enqueue(queue: Queue, rows: jax.Array) -> Queue:
    """Writes rows over the oldest slots, wrapping at the end; of more rows than slots the last K
    stay.

    Args:
      queue: the queue.
      rows: [B, ...] in the order of the global batch, gathered over devices first
        (`lax.all_gather(z, axis_name, tiled=True)`), so that every device holds the same queue. No
        gradient flows.

    Returns:
      The queue after the write. A row lies where writing the rows one by one would have put it.

    Raises:
      ValueError: rows of another width than the queue's, or not real.
    """
    check_real(rows=rows)
    size, batch = queue.rows.shape[0], rows.shape[0] if rows.ndim else 0
    if rows.ndim != queue.rows.ndim or rows.shape[1:] != queue.rows.shape[1:]:
        raise ValueError(
            f"rows have shape {rows.shape}; expected [B, "
            f"{', '.join(map(str, queue.rows.shape[1:]))}] as "
            f"in the queue, {queue.rows.shape}. Was the queue made for another projection width?"
        )
    skipped = max(batch - size, 0)
    rows = lax.stop_gradient(rows[skipped:]).astype(queue.rows.dtype)
    slots = (
        queue.pointer + skipped + jnp.arange(batch - skipped, dtype=queue.pointer.dtype)
    ) % size
    return Queue(
        queue.rows.at[slots].set(rows, unique_indices=True),
        ((queue.pointer + batch) % size).astype(queue.pointer.dtype),
        jnp.minimum(queue.filled + batch, size).astype(queue.filled.dtype),
    )


def valid(queue: Queue) -> jax.Array:
    """[K] booleans: which slots hold enqueued rows; mask the random start with it (writing begins
    at slot 0)."""
    return jnp.arange(queue.rows.shape[0]) < queue.filled
