"""Batches from a source: which examples a step sees, and how they reach the device.

The order is a function of (seed, epoch), so the position in the data is the step's number, and a run that starts again at
step t sees what it would have seen. Epochs are whole: what does not fill a batch at the end of one is left out of it.

Two ways lead to the same batches. `resident` puts a whole set on the device once, as uint8, and a step indexes it there by
`ids_at`; `host_batches` reads ahead on the host, for sets that do not fit.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.data.source import Source

Order = Callable[[int], np.ndarray]


def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of `size` examples in an epoch: a permutation, int32, the same on every machine."""
    # The raw stream of Philox is fixed by its definition; NumPy's own permutation may change with its version.
    drawn = np.random.Philox(key=[seed, epoch]).random_raw(size)
    return np.argsort(drawn, kind="stable").astype(np.int32)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Whole batches in `size` examples.

    Raises:
      ValueError: there is not one.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected 1 or more.")
    if size < batch_size:
        raise ValueError(f"The data set has {size} examples, fewer than one batch of {batch_size}. Set batch_size to "
                         f"at most {size}.")
    return size // batch_size


def ids_at(step: int, *, seed: int, size: int, batch_size: int, plan_order: Order | None = None) -> np.ndarray:
    """The example numbers of the global batch of one step, [batch_size] int32.

    Args:
      plan_order: from the epoch to the ids to visit in it, in order, instead of `order`'s permutation: for methods
        that choose what is seen. [size], repeats allowed.
    """
    epoch, batch = divmod(step, steps_per_epoch(size, batch_size))
    ids = _remembered_order(seed, epoch, size) if plan_order is None else _planned(plan_order, epoch, size)
    return ids[batch * batch_size:(batch + 1) * batch_size]


@functools.lru_cache(maxsize=4)
def _remembered_order(seed, epoch, size):
    ids = order(seed, epoch, size)
    ids.flags.writeable = False
    return ids


def _planned(plan_order, epoch, size):
    ids = np.asarray(plan_order(epoch))
    if ids.shape != (size,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"plan_order gave {ids.dtype}{list(ids.shape)} for epoch {epoch}; expected [{size}] integers, "
                         "the ids to visit.")
    if ids.min() < 0 or ids.max() >= size:
        raise ValueError(f"plan_order gave ids from {ids.min()} to {ids.max()} for epoch {epoch}; expected 0 to "
                         f"{size - 1}.")
    return ids.astype(np.int32)


class _Reader:
    """Random access by position in this process's stream of examples, as grain's sources want it."""

    def __init__(self, read: Callable[[int], dict], ids_of: Callable[[int], np.ndarray], start: int, length: int,
                 first_row: int, rows: int):
        self._read, self._ids_of, self._start, self._length = read, ids_of, start, length
        self._first_row, self._rows = first_row, rows

    def __len__(self) -> int:
        return self._length * self._rows

    def __getitem__(self, position: int) -> dict:
        step, row = divmod(int(position), self._rows)
        return self._read(int(self._ids_of(self._start + step)[self._first_row + row]))

    def __repr__(self) -> str:  # grain writes it into its checkpoints
        return f"cl_jax batches from step {self._start}"


def host_batches(source: Source, *, batch_size: int, seed: int, steps: int, start_step: int = 0, process_index: int = 0,
                 process_count: int = 1, workers: int | None = None, prefetch_batches: int = 2,
                 fields: Sequence[str] | None = None, plan_order: Order | None = None) -> grain.DatasetIterator:
    """The batches of steps [start_step, start_step + steps), read ahead by a pool of threads.

    A batch is a dict of arrays [batch_size / process_count, ...] with the example numbers as "id", int32. Process p
    gets rows p * n to (p + 1) * n of the batch that `ids_at` gives, so the processes together read every example of it
    once. The iterator is grain's: `get_state()` and `set_state(state)` save and restore its position, and
    `start_step` alone does the same.

    Args:
      batch_size: of all processes together.
      workers: threads; None for as many as cores. Decoding releases the interpreter.
      prefetch_batches: how many batches are kept ready.
      fields: which of the source's fields to load; None for all.
      plan_order: as in `ids_at`.

    Raises:
      ValueError: fewer examples than a batch, a batch that the processes cannot share evenly, an unknown field.
    """
    epoch_steps = steps_per_epoch(source.size, batch_size)
    if batch_size % process_count:
        raise ValueError(f"batch_size={batch_size} is not divisible by {process_count} processes. The nearest that is: "
                         f"{max(batch_size // process_count, 1) * process_count}.")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index}; expected 0 to {process_count - 1}.")
    if start_step < 0 or steps < 0:
        raise ValueError(f"start_step={start_step}, steps={steps}; expected 0 or more of each.")
    rows = batch_size // process_count
    names = _fields(source, fields)

    def read(i: int) -> dict:
        example = source.read(i)
        return {"id": np.int32(i), **{name: example[name] for name in names}}

    if plan_order is None:
        ids_of = functools.partial(ids_at, seed=seed, size=source.size, batch_size=batch_size)
    else:
        # One plan an epoch, though threads ask for every row of it; two, for the turn from one to the next.
        planned = functools.lru_cache(maxsize=2)(lambda epoch: _planned(plan_order, epoch, source.size))

        def ids_of(step):
            epoch, batch = divmod(step, epoch_steps)
            return planned(epoch)[batch * batch_size:(batch + 1) * batch_size]

    threads = workers or os.cpu_count() or 1
    reader = _Reader(read, ids_of, start_step, steps, process_index * rows, rows)
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch_batches * rows))
    examples = grain.MapDataset.source(reader).to_iter_dataset(ahead)
    return iter(examples.batch(rows, drop_remainder=True))


def _fields(source, fields):
    known = list(source.arrays) if source.arrays is not None else list(source.read(0))
    for name in fields or ():
        if name not in known:
            raise ValueError(f"{source.name} has no field {name!r}; it has {', '.join(known)}.")
    return known if fields is None else list(fields)


def sequential(source: Source, batch_size: int, *, fields: Sequence[str] | None = None, workers: int | None = None,
               process_index: int = 0, process_count: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, in order, for evaluation: batches with "id" and "valid", a mask [B].

    All batches have `batch_size` rows (of all processes together): the last is filled up with copies of the last
    example, whose "valid" is False.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size={batch_size}; expected a multiple of the {process_count} processes.")
    rows, names = batch_size // process_count, _fields(source, fields)
    batches = -(-source.size // batch_size)

    def positions(step: int) -> np.ndarray:
        return np.arange(step * batch_size, (step + 1) * batch_size)

    def read(position: int) -> dict:
        i = min(position, source.size - 1)
        example = source.read(i)
        return {"id": np.int32(i), "valid": np.bool_(position < source.size), **{name: example[name] for name in names}}

    if source.arrays is not None:
        for step in range(batches):
            at = positions(step)[process_index * rows:(process_index + 1) * rows]
            ids = np.minimum(at, source.size - 1).astype(np.int32)
            yield {"id": ids, "valid": at < source.size, **{name: source.arrays[name][ids] for name in names}}
        return
    threads = workers or os.cpu_count() or 1
    reader = _Reader(read, positions, 0, batches, process_index * rows, rows)
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2 * rows))
    yield from grain.MapDataset.source(reader).to_iter_dataset(ahead).batch(rows)


def nbytes(source: Source, fields: Sequence[str] | None = None) -> int | None:
    """Bytes that `resident` would put on each device; None where the source is not in memory."""
    if source.arrays is None:
        return None
    return sum(source.arrays[name].nbytes for name in _fields(source, fields))


def device_budget(share: float = 0.25) -> int:
    """Bytes that a resident set may take: a share of a device's memory, 2 GiB where the backend does not tell it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats["bytes_limit"] * share) if "bytes_limit" in stats else 2 * 1024**3


def resident(source: Source, *, budget_bytes: int | None = None, fields: Sequence[str] | None = None,
             sharding: jax.sharding.Sharding | None = None) -> dict[str, jax.Array]:
    """The whole set on the device, one array per field, images as uint8. Index it with `take`.

    Args:
      budget_bytes: the most it may take; None for `device_budget()`.
      sharding: where to put it; replicated over the mesh, as a rule. None for the default device.

    Raises:
      ValueError: the set is not in memory, or larger than the budget: use `host_batches`.
    """
    size = nbytes(source, fields)
    if size is None or source.arrays is None:
        raise ValueError(f"{source.name} is read from disk example by example; use host_batches for it.")
    budget = device_budget() if budget_bytes is None else budget_bytes
    if size > budget:
        raise ValueError(f"{source.name} takes {size / 2**20:.0f} MiB on the device, more than the budget of "
                         f"{budget / 2**20:.0f} MiB; use host_batches, or load fewer fields.")
    return {name: jax.device_put(source.arrays[name], sharding) for name in _fields(source, fields)}


def take(arrays: Mapping[str, jax.Array], ids: jax.Array) -> dict[str, jax.Array]:
    """The batch of a resident set at `ids` [B], with the ids as "id"; to be called inside the jitted step."""
    return {"id": ids, **{name: jnp.take(values, ids, axis=0) for name, values in arrays.items()}}
