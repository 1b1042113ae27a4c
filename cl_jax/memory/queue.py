"""A ring of the most recent rows: the negatives of MoCo and similar methods. Any batch size against
any length."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import any_mesh
from cl_jax.core.numerics import unit
from cl_jax.core.shapes import check_count, check_integer, check_key, check_real


class Queue(NamedTuple):
    """rows: [K, ...], in slot order, or a tree of such arrays, whose slots belong together (keys
    with their labels and ids). pointer: the next slot to write. filled: how many slots hold
    enqueued rows."""

    rows: Any
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
      ValueError: no random key, a size below 1, an empty row, an unknown start.
    """
    check_key(key=key)
    shape = (width,) if isinstance(width, int) else tuple(width)
    return _empty(_start(key, size, shape, start, dtype))


def init_like(key: jax.Array, size: int, rows: Any, *, start: str = "unit") -> Queue:
    """A queue for trees of rows, such as {"key": [B, D], "label": [B], "id": [B]}.

    Args:
      key: a `jax.random` key.
      size: K, how many slots are kept.
      rows: a tree as it will be enqueued, of arrays or `jax.ShapeDtypeStruct`s [B, ...].
      start: as in `init`, for floating rows. Integers start at -1, which means no label.

    Returns:
      A Queue whose `rows` are a tree of the same structure, with pointer and filled 0.

    Raises:
      ValueError: no random key, a size below 1, an empty tree or row, an unknown start.
    """
    check_key(key=key)
    leaves, tree = jax.tree.flatten(rows)
    if not leaves:
        raise ValueError("rows is an empty tree; expected at least one array [B, ...].")
    made = []
    for i, x in enumerate(leaves):
        if jnp.issubdtype(x.dtype, jnp.integer):
            if size < 1:
                raise ValueError(f"size is {size}; expected at least one row.")
            made.append(jnp.full((size, *x.shape[1:]), -1, x.dtype))
        else:
            made.append(_start(jax.random.fold_in(key, i), size, x.shape[1:], start, x.dtype))
    return _empty(jax.tree.unflatten(tree, made))


def _start(key, size, shape, start, dtype):
    if size < 1 or not shape or min(shape) < 1:
        raise ValueError(
            f"size is {size} and width {shape}; expected at least one row of at least one entry."
        )
    check_count(size=size)
    size = int(size)
    if start == "unit":
        return unit(jax.random.normal(key, (size, *shape), dtype)).astype(dtype)
    if start == "uniform":
        bound = (3.0 / shape[-1]) ** 0.5
        return jax.random.uniform(key, (size, *shape), dtype, -bound, bound)
    raise ValueError(f'start is {start!r}; expected "unit" or "uniform".')


def _empty(rows):
    return Queue(rows, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


@any_mesh
def enqueue(queue: Queue, rows: Any) -> Queue:
    """Writes rows over the oldest slots, wrapping at the end; of more rows than slots the last K
    stay.

    Args:
      queue: the queue.
      rows: [B, ...] in the order of the global batch, gathered over devices first
        (`cl_jax.core.axis.gather`), so that every device holds the same queue; or a tree of such
        arrays, where the queue has one (`init_like`). No gradient flows.

    Returns:
      The queue after the write. A row lies where writing the rows one by one would have put it.

    Raises:
      ValueError: rows of another structure, width or kind of type than the queue's, a batch of
        symbolic size.
    """
    kept, tree = jax.tree.flatten(queue.rows)
    given, found = jax.tree.flatten(rows)
    if found != tree:  # type: ignore[operator]
        raise ValueError(
            f"rows is the tree {found}; expected that of the queue, {tree}. Make a queue of a "
            "tree with init_like."
        )
    size = kept[0].shape[0]
    batch = _batch(kept, given)
    skipped = max(batch - size, 0)
    count = jnp.arange(batch - skipped, dtype=queue.pointer.dtype)
    slots = (queue.pointer + skipped + count) % size

    def write(kept, given):
        given = lax.stop_gradient(given[skipped:]).astype(kept.dtype)
        return kept.at[slots].set(given, unique_indices=True)

    return Queue(
        jax.tree.unflatten(tree, [write(*pair) for pair in zip(kept, given)]),
        ((queue.pointer + batch) % size).astype(queue.pointer.dtype),
        jnp.minimum(queue.filled + batch, size).astype(queue.filled.dtype),
    )


def _batch(kept, given) -> int:
    """The number of rows, after their shapes and types were checked."""
    for old, new in zip(kept, given):
        if jnp.issubdtype(old.dtype, jnp.integer):
            check_integer("...", rows=new)
        else:
            check_real(rows=new)
        if new.ndim != old.ndim or new.shape[1:] != old.shape[1:]:
            raise ValueError(
                f"rows have shape {new.shape}; expected "
                f"[{', '.join(map(str, ('B', *old.shape[1:])))}] as in the queue, {old.shape}. Was "
                "the queue made for another projection width?"
            )
    sizes = {new.shape[0] for new in given}
    if len(sizes) > 1:
        raise ValueError(f"rows have {sorted(sizes)} entries; expected the same number of each.")
    (batch,) = sizes
    if not isinstance(batch, int):
        raise ValueError(
            f"rows have shape {given[0].shape}; expected a batch of fixed size, since the slots it "
            "is written to are counted when the program is made. Export with a fixed batch."
        )
    return batch


@any_mesh
def valid(queue: Queue) -> jax.Array:
    """[K] booleans: which slots hold enqueued rows; mask the random start with it (writing begins
    at slot 0)."""
    return jnp.arange(jax.tree.leaves(queue.rows)[0].shape[0]) < queue.filled
