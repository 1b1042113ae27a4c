"""From a source to batches. The order is a function of (seed, epoch), so the position in the data
is the step's number.

Two paths give the same examples in the same order: `ids_at` indexes a set that stays on the device
(`resident`), and `host_batches` reads through grain. Epochs drop the examples that do not fill
their last batch, others in each epoch."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from absl import flags

from cl_jax.core.seeds import check_seed
from cl_jax.data.source import Source

Batch = dict[str, np.ndarray]
_FIELDS = ("id", "valid")  # what batches add to the fields of the source
RESIDENT_BYTES = 2 << 30  # of a device whose memory is not known, a CPU


@dataclass(frozen=True)
class Loading:
    """How a run reads its examples: the section `loading` of a config. No setting changes a batch.

    workers: threads that read examples; 0 for one a core.
    worker_processes: further processes that read, for readers that hold Python's lock.
    prefetch: batches read ahead.
    resident_bytes: a set that is in memory and takes at most this many bytes lies on every device
      as it is stored, and is not loaded batch by batch; 0 for a quarter of the device's memory, or
      2 GiB where that is not known.
    """

    workers: int = 0
    worker_processes: int = 0
    prefetch: int = 2
    resident_bytes: int = 0

    def resident_limit(self, device_bytes: float | None) -> int:
        """`resident_bytes` for a device of that memory in all, None where it is not known."""
        if self.resident_bytes:
            return self.resident_bytes
        return int(device_bytes) // 4 if device_bytes else RESIDENT_BYTES


def loading(
    *, workers: int = 0, worker_processes: int = 0, prefetch: int = 2, resident_bytes: int = 0
) -> Loading:
    """A checked `Loading`.

    Raises:
      ValueError: fewer than 0 threads, processes or bytes, or than 1 batch.
    """
    _check_workers(workers, worker_processes, prefetch)
    if resident_bytes < 0:
        raise ValueError(f"resident_bytes={resident_bytes}; expected bytes, or 0 for the default.")
    return Loading(workers, worker_processes, prefetch, resident_bytes)


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The permutation [size] of an epoch, int32, read-only: the same on every machine.

    Raises:
      ValueError: a seed out of range, an epoch below 0.
    """
    check_seed(seed)
    if epoch < 0:
        raise ValueError(f"epoch is {epoch}; expected at least 0.")
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
    check_seed(seed)
    members = np.argsort(groups, kind="stable")  # by group, in the order of the examples in each
    members = members[np.searchsorted(groups, 0, sorter=members) :]
    names, starts, sizes = np.unique(groups[members], return_index=True, return_counts=True)
    if not len(names):
        raise ValueError(
            f"none of the {len(groups)} examples is in a group (all are negative); expected at "
            f"least one."
        )
    size, each = len(groups), len(groups) // len(names) + 1
    # Philox's raw stream is fixed by its definition, as in `order`. A group takes `each` numbers of
    # it, or one for each member where it has more; the groups follow one another.
    stream = np.random.Philox(key=[seed, epoch])
    takes = np.maximum(sizes, each)
    drawn = stream.random_raw(int(takes.sum()))
    begins = np.cumsum(takes) - takes
    group = np.repeat(np.arange(len(names)), takes)
    at = np.arange(len(drawn)) - begins[group]
    small = (sizes < each)[group]
    # Of a small group a draw names a member; of a large one the members with the smallest draws are
    # taken, in the order of their draws. Keys of small groups keep the order of the stream.
    by_draw = np.lexsort((np.where(small, np.uint64(0), drawn), group))
    member = np.where(small, drawn % sizes[group].astype(np.uint64), at[by_draw].astype(np.uint64))
    chosen = members[(starts[group] + member.astype(np.int64))[at < each]]
    shuffled = chosen[np.argsort(stream.random_raw(len(chosen)), kind="stable")]
    return shuffled[:size].astype(np.int32)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Whole batches in an epoch.

    Raises:
      ValueError: a batch size below 1 or above the number of examples.
    """
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
    examples.

    Raises:
      ValueError: a step below 0, and as `order`.
    """
    if step < 0:
        raise ValueError(f"step is {step}; expected at least 0.")
    epoch, at = divmod(step, epoch_steps or steps_per_epoch(size, batch_size))
    ids = order(seed, epoch, size) if epoch_order is None else epoch_order
    return ids[at * batch_size : (at + 1) * batch_size]


def local_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of the global batch that belong to a process: contiguous, of equal number, in
    process order.

    Raises:
      ValueError: a process that there is not, a batch that the processes do not divide.
    """
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


class _Reader:
    """Reads the examples of a batch in threads, which start with the first batch, in whichever
    process asks for it."""

    def __init__(self, source: Source, workers: int):
        self.source, self.workers = source, workers
        self.lock = threading.Lock()
        self.pool: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:  # a worker process has threads of its own
        return {"source": self.source, "workers": self.workers}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, ids: np.ndarray) -> Batch:
        first = {field: np.asarray(value) for field, value in self.source.read(int(ids[0])).items()}
        out = {
            field: np.empty((len(ids), *value.shape), value.dtype) for field, value in first.items()
        }
        self._put(out, 0, first)

        def fill(rows: range) -> None:
            for row in rows:
                self._put(out, row, self.source.read(int(ids[row])))

        rest = len(ids) - 1
        # Several pieces a thread, because images take different times; no future for each image,
        # which would cost more than a small one.
        piece = max(1, -(-rest // (4 * self.workers)))
        pieces = [range(at, min(at + piece, rest + 1)) for at in range(1, rest + 1, piece)]
        if self.workers == 1:
            for rows in pieces:
                fill(rows)
        else:
            for _ in self._threads().map(fill, pieces):
                pass
        return out | {"id": ids}

    def _put(self, out: Batch, row: int, example: Mapping[str, Any]) -> None:
        for field, rows in out.items():
            value = np.asarray(example[field])
            if value.shape != rows.shape[1:] or value.dtype != rows.dtype:
                raise ValueError(
                    f"{self.source.name}: {field} of one example is {value.dtype}"
                    f"{list(value.shape)} and of another {rows.dtype}{list(rows.shape[1:])}; "
                    "expected one type and shape in all of them."
                )
            rows[row] = value

    def _threads(self) -> ThreadPoolExecutor:
        with self.lock:
            if self.pool is None:
                self.pool = ThreadPoolExecutor(self.workers)
            return self.pool


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


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
    workers: int = 0,
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
      workers: threads that read examples, in this process or in each of the worker processes; 0 for
        one a core, shared among the worker processes.
      worker_processes: above 0, batches are read in so many other processes. For readers that hold
        Python's lock; decoding images does not.
      prefetch: batches read ahead, by each of the processes.

    Raises:
      ValueError: fewer examples than one batch, or a batch that the processes cannot share evenly.
    """
    steps_per_epoch(source.size, batch_size)
    rows = local_rows(batch_size, process_index, process_count)
    if start_step < 0:
        raise ValueError(f"start_step is {start_step}; expected at least 0.")
    workers = _checked_workers(workers, worker_processes, prefetch, source)
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
        source, lambda i: ids(start_step + i), count, workers, worker_processes, prefetch
    )


def sequential(
    source: Source,
    batch_size: int,
    *,
    rows: slice = slice(None),
    workers: int = 0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """All examples once, in order, for evaluation: their fields, "id" int32, and "valid" bool.

    The last batch is filled up by repeating the last example, with "valid" false, so that every
    batch has one shape. `rows`: the part of each batch that is read, a process's share
    (`local_rows`). `workers` and `prefetch` as in `host_batches`.

    Raises:
      ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    workers = _checked_workers(workers, 0, prefetch, source)
    size = source.size

    def ids(i: int) -> np.ndarray:
        places = np.arange(i * batch_size, (i + 1) * batch_size)[rows]
        return np.minimum(places, size - 1).astype(np.int32)

    def with_valid(i: int, batch: Batch) -> Batch:
        return batch | {"valid": np.arange(i * batch_size, (i + 1) * batch_size)[rows] < size}

    batches = _batches(source, ids, -(-size // batch_size), workers, 0, prefetch)
    return (with_valid(i, batch) for i, batch in enumerate(batches))


def resident(source: Source, max_bytes: int) -> Batch | None:
    """The whole set as arrays where it is in memory and takes at most `max_bytes`, to be put on the
    device once."""
    if source.arrays is None or sum(array.nbytes for array in source.arrays.values()) > max_bytes:
        return None
    return dict(source.arrays)


def _checked_workers(workers: int, worker_processes: int, prefetch: int, source: Source) -> int:
    """The threads that read, in each process that does."""
    _check_workers(workers, worker_processes, prefetch)
    fields = source.arrays if source.arrays is not None else source.sizes
    taken = [field for field in _FIELDS if field in fields]
    if taken:
        raise ValueError(
            f"{source.name} has a field named {taken[0]!r}, a name that batches use. Rename the "
            f"field."
        )
    return workers or max(1, cores() // max(worker_processes, 1))


def _check_workers(workers: int, worker_processes: int, prefetch: int) -> None:
    if workers < 0 or worker_processes < 0 or prefetch < 1:
        raise ValueError(
            f"workers={workers}, worker_processes={worker_processes}, prefetch={prefetch}; "
            "expected at least 0 threads (0: one a core), 0 processes and 1 batch."
        )


def _batches(
    source: Source,
    ids: Callable[[int], np.ndarray],
    count: int,
    workers: int,
    worker_processes: int,
    prefetch: int,
) -> Iterator[Batch]:
    """`count` batches, the `i`-th of the examples `ids(i)`.

    A whole batch is one element of grain's: its read buffer is walked at every `next`, and with
    examples as elements that took `prefetch` times the square of the batch size.
    """
    if not count:
        return iter(())
    import grain  # here, so that a run of a set that lies on the device starts without it

    arrays = source.arrays
    if arrays is not None:  # one indexing per batch
        lookup = _Lookup(count, lambda i: _rows_of(arrays, ids(i)))
        worker_processes = 0
    else:
        reader = _Reader(source, workers)
        lookup = _Lookup(count, lambda i: reader(ids(i)))
    # Two batches at a time, so that no thread of the reader waits for the last row of a batch.
    read = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
    items: Any = grain.MapDataset.source(lookup).to_iter_dataset(read)
    if not worker_processes:
        return iter(items)
    if not flags.FLAGS.is_parsed():
        # grain reads a flag of its own, and a program without absl's main parses none
        flags.FLAGS.mark_as_parsed()
    return iter(
        items.mp_prefetch(
            grain.MultiprocessingOptions(worker_processes, per_worker_buffer_size=prefetch)
        )
    )


def _rows_of(arrays: Any, ids: np.ndarray) -> Batch:
    return {field: array[ids] for field, array in arrays.items()} | {"id": ids}
