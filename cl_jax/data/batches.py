"""From a source to batches. The order is a function of (seed, epoch), so the position in the data
is the step's number.

Two paths give the same examples in the same order: `ids_at` indexes a set that stays on the device
(`resident`), and `host_batches` reads through grain. Epochs drop the examples that do not fill
their last batch, others in each epoch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from absl import flags

from cl_jax.data.source import Source

Batch = dict[str, np.ndarray]
_FIELDS = ("id", "valid")  # what batches add to the fields of the source


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation [size] of an epoch, int32, read-only: the same on every machine."""
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed is {seed} and epoch {epoch}; expected numbers of at least 0.")
    # Philox's raw stream is fixed by its definition; NumPy's own permutation may change with its
    # version.
    drawn = np.random.Philox(key=[seed, epoch]).random_raw(size)
    permutation = np.argsort(drawn, kind="stable").astype(np.int32)
    permutation.flags.writeable = False
    return permutation


def balanced_order(seed: int, epoch: int, groups: np.ndarray) -> np.ndarray:
    """Examples [N] int32 of an epoch in which every group is drawn equally often; the same on every
    machine.

    Each non-empty group gives int(N / number of groups) + 1 examples, with replacement where it has
    fewer; all are shuffled and the first N kept. So small groups repeat, and some examples of large
    ones are left out.

    Args:
      groups: [N] int32, the group of each example; a negative one leaves the example out.

    Raises:
      ValueError: no example is in a group, or groups of another rank.

    Reference: Caron et al. 2018, arXiv 1807.05520, section 3.3 (uniform sampling over clusters), as
      in the authors' code.
    """
    groups = np.asarray(groups)
    if groups.ndim != 1 or groups.dtype.kind not in "iu":
        raise ValueError(f"groups are {groups.dtype}{list(groups.shape)}; expected integers [N].")
    names = np.unique(groups[groups >= 0])
    if not len(names):
        raise ValueError(
            f"none of the {len(groups)} examples is in a group (all are negative); expected at "
            f"least one."
        )
    size, each = len(groups), len(groups) // len(names) + 1
    stream = np.random.Philox(
        key=[seed, epoch]
    )  # the raw stream is fixed by its definition, as in `order`
    drawn = []
    for name in names:
        members = np.flatnonzero(groups == name)
        if len(members) < each:
            drawn.append(members[stream.random_raw(each) % np.uint64(len(members))])
        else:
            drawn.append(members[np.argsort(stream.random_raw(len(members)), kind="stable")[:each]])
    chosen = np.concatenate(drawn)
    shuffled = chosen[np.argsort(stream.random_raw(len(chosen)), kind="stable")]
    return shuffled[:size].astype(np.int32)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Whole batches in an epoch."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if size < batch_size:
        raise ValueError(
            f"the data set has {size} examples, fewer than one batch of {batch_size}. "
            f"Lower batch_size to {size} or less, or give more examples."
        )
    return size // batch_size


def ids_at(
    step: int,
    *,
    seed: int,
    size: int,
    batch_size: int,
    epoch_order: np.ndarray | None = None,
    epoch_steps: int | None = None,
) -> np.ndarray:
    """The examples [batch_size] int32 of the global batch of a step, from its epoch's order:
    `order`, or the one given. An epoch has `epoch_steps` steps, by default all whole batches of the
    examples."""
    if step < 0:
        raise ValueError(f"step is {step}; expected at least 0.")
    epoch, at = divmod(step, epoch_steps or steps_per_epoch(size, batch_size))
    ids = order(seed, epoch, size) if epoch_order is None else epoch_order
    return ids[at * batch_size : (at + 1) * batch_size]


def local_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of the global batch that belong to a process: contiguous, of equal number, in
    process order."""
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index is {process_index} of process_count={process_count}; expected 0 to "
            f"{process_count - 1}."
        )
    if batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}, not divisible by the {process_count} processes. "
            f"Use a multiple of {process_count}, for instance "
            f"{max(1, round(batch_size / process_count)) * process_count}."
        )
    each = batch_size // process_count
    return slice(process_index * each, (process_index + 1) * each)


@dataclass(frozen=True)
class _Lookup:
    """What grain reads from: `size` items, the `i`-th of which is `get(i)`."""

    size: int
    get: Callable[[int], Batch]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Batch:
        return self.get(int(index))


def host_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    epoch_order: np.ndarray | None = None,
    epoch_steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 4,
    worker_processes: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """The batches of steps `start_step` to `steps - 1`: this process's rows of each field, and "id"
    int32.

    To resume, start at the step to be done next; a batch does not depend on where the iterator
    began.

    Args:
      source: read from several threads at once.
      batch_size: of the global batch, over all processes.
      steps: the step to stop before.
      epoch_order: [epoch_steps * batch_size] int32, the order of the one epoch that all these
        steps are in; None for `order`.
      epoch_steps: steps of an epoch; None for all whole batches of the examples.
      workers: threads that read examples, in this process or in each of the worker processes.
      worker_processes: above 0, examples are read in so many other processes. For readers that hold
        Python's lock; decoding images does not.
      prefetch: batches read ahead.

    Raises:
      ValueError: fewer examples than one batch, or a batch that the processes cannot share evenly.
    """
    steps_per_epoch(source.size, batch_size)
    rows = local_rows(batch_size, process_index, process_count)
    each = rows.stop - rows.start
    if start_step < 0:
        raise ValueError(f"start_step is {start_step}; expected at least 0.")
    _check_workers(workers, worker_processes, prefetch, source)
    size = source.size

    def ids(step: int) -> np.ndarray:
        found = ids_at(
            step,
            seed=seed,
            size=size,
            batch_size=batch_size,
            epoch_order=epoch_order,
            epoch_steps=epoch_steps,
        )
        return found[rows]

    count = max(steps - start_step, 0)
    return _batches(
        source, lambda i: ids(start_step + i), count, each, workers, worker_processes, prefetch
    )


def sequential(
    source: Source,
    batch_size: int,
    *,
    rows: slice = slice(None),
    workers: int = 4,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """All examples once, in order, for evaluation: their fields, "id" int32, and "valid" bool.

    The last batch is filled up by repeating the last example, with "valid" false, so that every
    batch has one shape. `rows`: the part of each batch that is read, a process's share
    (`local_rows`).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    _check_workers(workers, 0, prefetch, source)
    size = source.size

    def ids(i: int) -> np.ndarray:
        places = np.arange(i * batch_size, (i + 1) * batch_size)[rows]
        return np.minimum(places, size - 1).astype(np.int32)

    def with_valid(i: int, batch: Batch) -> Batch:
        return batch | {"valid": np.arange(i * batch_size, (i + 1) * batch_size)[rows] < size}

    each = len(range(batch_size)[rows])
    batches = _batches(source, ids, -(-size // batch_size), each, workers, 0, prefetch)
    return (with_valid(i, batch) for i, batch in enumerate(batches))


def resident(source: Source, max_bytes: int) -> Batch | None:
    """The whole set as arrays where it is in memory and takes at most `max_bytes`, to be put on the
    device once."""
    if source.arrays is None or sum(array.nbytes for array in source.arrays.values()) > max_bytes:
        return None
    return dict(source.arrays)


def _check_workers(workers: int, worker_processes: int, prefetch: int, source: Source) -> None:
    if workers < 1 or worker_processes < 0 or prefetch < 1:
        raise ValueError(
            f"workers={workers}, worker_processes={worker_processes}, prefetch={prefetch}; "
            f"expected at "
            "least 1 thread, 0 processes and 1 batch."
        )
    fields = source.arrays if source.arrays is not None else source.sizes
    taken = [field for field in _FIELDS if field in fields]
    if taken:
        raise ValueError(
            f"{source.name} has a field named {taken[0]!r}, a name that batches use. Rename the "
            f"field."
        )


def _batches(
    source: Source,
    ids: Callable[[int], np.ndarray],
    count: int,
    each: int,
    workers: int,
    worker_processes: int,
    prefetch: int,
) -> Iterator[Batch]:
    """`count` batches, the `i`-th of the examples `ids(i)` [each]."""
    if not count:
        return iter(())
    import grain  # here, so that a run of a set that lies on the device starts without it

    arrays = source.arrays
    items: Any
    if (
        arrays is not None
    ):  # one indexing per batch; row by row it would be slower than a training step
        items = grain.MapDataset.source(_Lookup(count, lambda i: _rows_of(arrays, ids(i))))
        return iter(
            items.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch))
        )

    def example(index: int) -> Batch:
        at, row = divmod(index, each)
        i = ids(at)[row]
        return {**source.read(int(i)), "id": i}

    items = grain.MapDataset.source(_Lookup(count * each, example))
    if worker_processes:
        if (
            not flags.FLAGS.is_parsed()
        ):  # grain reads a flag of its own, and a program without absl's main parses none
            flags.FLAGS.mark_as_parsed()
        # Batched before it is split among the processes, so that each makes whole batches and the
        # order is kept.
        read = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(workers, prefetch))
        items = items.batch(each).to_iter_dataset(read)
        return iter(
            items.mp_prefetch(
                grain.MultiprocessingOptions(worker_processes, per_worker_buffer_size=prefetch)
            )
        )
    read = grain.ReadOptions(
        num_threads=workers, prefetch_buffer_size=max(workers, prefetch * each)
    )
    return iter(items.to_iter_dataset(read).batch(each))


def _rows_of(arrays: Any, ids: np.ndarray) -> Batch:
    return {field: array[ids] for field, array in arrays.items()} | {"id": ids}
