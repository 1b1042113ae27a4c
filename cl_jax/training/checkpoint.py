"""Checkpoints of one State: asynchronous, atomic, keep-last and keep-best, no pickle."""

import contextlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cl_jax.core import parallel, sharded
from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.names import some
from cl_jax.core.population import Members, other_form
from cl_jax.training import workdir as folder

if (
    TYPE_CHECKING
):  # elsewhere where it is used: a new run takes its first step before it needs a store
    from logging import LogRecord

    import orbax.checkpoint as ocp

METADATA = "_CHECKPOINT_METADATA"  # written last
CHECKSUMS = "checksums"  # beside the leaves of a State, whose names begin with a dot


class NonFiniteState(FloatingPointError):
    """A State with NaN or inf was to be saved."""


class Checkpoints:
    """The checkpoints of one run under `workdir`: `last/<step>` the newest few, `best/<step>` the
    best by a score.

    A save is written beside its final name and moved there when complete, so a run that dies or a
    disk that fills leaves the one before whole. Each holds a checksum of every array, since a store
    does not notice every flipped bit. What is saved is finite.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2):
        if keep < 1:
            raise ConfigError(f"keep_checkpoints={keep}; expected at least 1.")
        self.root, self.keep = folder.path_of(workdir).absolute(), keep
        self.aside: list[tuple[str, int]] = []  # unusable ones, moved at the next save
        self.cleaned = False
        self.begun = -1  # the step whose save was started last
        self.writing: Future[None] | None = None  # the save under way

    @cached_property
    def _stores(self) -> tuple["ocp.CheckpointManager", "ocp.CheckpointManager"]:
        """Both at once: processes wait for each other when they open one."""
        return _manager(self.root / "last", self.keep), _manager(self.root / "best", 1)

    @property
    def last(self) -> "ocp.CheckpointManager":
        """The store of the newest checkpoints."""
        return self._stores[0]

    @property
    def best(self) -> "ocp.CheckpointManager":
        """The store of the best checkpoint by the evaluations."""
        return self._stores[1]

    def save(self, state: Any) -> None:
        """Starts saving a State as the newest.

        Raises:
          NonFiniteState: an array of it holds NaN or inf; nothing is saved.
          SaveError: this save, or one that was started before, failed. A failure later on is
            raised by `check`, `wait`, or the next save.
        """
        self._save(self.last, state)

    def save_best(self, state: Any, score: float) -> None:
        """Keeps a State as the best so far, and waits until that is done; errors as `save`. The
        files of one that is the newest too are shared with it (hard links, copies where the file
        system has none) and not written again."""
        step = int(state.step)
        logging.info("best so far: %.4f at step %d", score, step)
        self.wait()  # in a job of several processes, two stores at once would wait for each other
        if step in self.last.all_steps():
            with self._naming_the_save():
                self._share(step)
            return
        self._save(self.best, state)
        self.wait()

    def _share(self, step: int) -> None:
        """Makes the newest checkpoint the best one too."""
        self._clean()
        if jax.process_index() == 0:
            target = self.root / "best" / str(step)
            unfinished = target.with_name(f"{step}-tmp")
            source = self.root / "last" / str(step)
            shutil.copytree(source, unfinished, copy_function=_link)
            unfinished.rename(target)
            for other in _steps(target.parent):
                if other != step:
                    shutil.rmtree(target.parent / str(other))
        parallel.everywhere(True)
        self.best.reload()

    def _save(self, store: "ocp.CheckpointManager", state: Any) -> None:
        step = int(state.step)
        with self._naming_the_save():
            self._written()
            self._clean()  # both stores are open: no process cleans up what another still opens
            if step in store.all_steps():
                return
        # Copies, since the next step is given the State's own buffers to write in.
        host = {name: _own(leaf) for name, leaf in _plain(state).items()}
        _refuse_nonfinite(step, host, self.newest)
        given = _given(state, host)
        with self._naming_the_save():
            self.check()
            self.begun = step
            self.writing = _begin(partial(_write, store, step, given, host))

    def _written(self) -> None:
        """Waits for the save under way, and raises what went wrong there."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def best_step(self) -> int | None:
        """The step of the best checkpoint, None where there is none."""
        return max(_steps(self.root / "best"), default=None)

    def newest(self) -> int | None:
        """The newest step of which a checkpoint is whole, as far as its folder shows."""
        steps = [
            step
            for name in ("last", "best")
            for step in _steps(self.root / name)
            if (self.root / name / str(step) / METADATA).exists()
        ]
        return max(steps, default=None)

    @contextlib.contextmanager
    def _naming_the_save(self) -> Iterator[None]:
        try:
            yield
        except (SaveError, ConfigError):
            raise
        except Exception as error:
            try:
                newest = self.newest()
                kept = (
                    "There is no checkpoint yet. "
                    if newest is None
                    else f"The newest whole checkpoint is of step {newest}. "
                )
            except OSError:
                kept = ""
            raise SaveError(
                f"the checkpoint of step {self.begun} cannot be written below {self.root}: "
                f"{type(error).__name__}: {str(error)[:500]}. "
                f"{kept}"
                "Make room or access there; the same command then resumes the run."
            ) from error

    def _clean(self) -> None:
        """Before the first save: removes what killed saves left, and moves away what could not be
        read (a store takes no step at or below its newest). Not sooner, since another process may
        only look at a run that continues."""
        stores, first = self._stores, jax.process_index() == 0
        if self.aside:
            if first:
                for name, step in self.aside:
                    _move_aside(self.root, name, step)
            parallel.everywhere(True)
            for store in stores:
                store.reload()
        self.aside = []
        if not self.cleaned and first:
            for left in (path for store in stores for path in Path(store.directory).glob("*-tmp*")):
                logging.warning("removing %s: a save that never finished", left)
                shutil.rmtree(left)
        self.cleaned = True

    def check(self) -> None:
        """Raises SaveError if a save that was started has failed by now; does not wait."""
        if self.writing is not None and not self.writing.done():
            return
        with self._naming_the_save():
            self._written()
            for store in vars(self).get("_stores", ()):
                store.check_for_errors()

    def wait(self) -> None:
        """Blocks until all saves are on the disk; raises SaveError if one is not."""
        with self._naming_the_save():
            self._written()
            for store in vars(self).get("_stores", ()):
                store.wait_until_finished()

    def restore(self, like: Any, *, best: bool = False) -> Any | None:
        """The newest whole checkpoint, shaped and placed like `like`; None where there is none.

        like: a State, or a function that makes one, which is called where there is a checkpoint.

        One that cannot be used is named and skipped. Where none of the newest can be used, the best
        one is restored.

        Raises:
          ConfigError: there are checkpoints, and none of them can be used. Starting at step 0
            beside them would be a silent loss.
        """
        names = ("best",) if best else ("last", "best")
        if jax.process_count() == 1 and not any(_steps(self.root / name) for name in names):
            return None
        like = like() if callable(like) else like
        failures: list[str] = []
        aside: list[tuple[str, int]] = []
        for name, store in zip(("last", "best"), self._stores):
            for step in reversed(_agreed(_steps(self.root / name)) if name in names else []):
                state, failure = None, ""
                try:
                    if not (self.root / name / str(step) / METADATA).exists():
                        raise ValueError("a save that never finished, or files were lost")
                    state = _restored(store, step, like)
                except Exception as error:
                    failure = f"{type(error).__name__}: {str(error)[:500]}"
                if parallel.everywhere(
                    state is not None
                ):  # else processes would go on from different steps
                    self.aside += aside
                    if name == "best" and not best:
                        logging.warning(
                            "%s/last holds no checkpoint that can be used; going on from the best "
                            "one, of step %d.",
                            self.root,
                            step,
                        )
                    return state
                failures.append(f"{name}/{step}: {failure or 'another process could not read it'}")
                aside.append((name, step))
                logging.error(
                    "checkpoint of step %d cannot be restored, trying the one before: %s",
                    step,
                    failures[-1],
                )
        if failures:
            raise ConfigError(
                f"no checkpoint in {self.root} fits this run:\n  "
                + "\n  ".join(failures)
                + "\nThey are left as they are. If the method or its sizes were changed, use a new "
                "--workdir; to start at step 0, move them away."
            )
        return None

    def close(self) -> None:
        try:
            self.wait()
        finally:
            for store in vars(self).get("_stores", ()):
                store.close()


def are_in(workdir: Path) -> bool:
    """Whether a workdir holds a checkpoint, as far as the names of its folders show."""
    return any(_steps(workdir / name) for name in ("last", "best"))


def _steps(path: Path) -> list[int]:
    """The steps that have a folder below `path`, ascending."""
    if not os.path.isdir(path):  # False, too, where it cannot be looked into
        return []
    return sorted(int(found.name) for found in path.iterdir() if found.name.isdigit())


def _agreed(steps: list[int]) -> list[int]:
    """The steps that process 0 passed, on every process: all must try to restore the same ones, and
    one may see a folder late."""
    count = int(parallel.from_each(np.int32(len(steps)))[0])
    own = np.array(steps[:count] + [0] * (count - len(steps)), np.int32)
    found: list[int] = parallel.from_each(own)[0].tolist() if count else []
    return found


def _move_aside(root: Path, name: str, step: int) -> None:
    """Moves a checkpoint that cannot be used to WORKDIR/unusable."""
    target = root / "unusable" / f"{name}-{step}"
    number = 0
    while target.exists():
        number += 1
        target = target.with_name(f"{name}-{step}-{number}")
    target.parent.mkdir(exist_ok=True)
    logging.warning("moving %s to %s: it cannot be used", root / name / str(step), target)
    (root / name / str(step)).rename(target)


def _refuse_nonfinite(
    step: int, host: dict[str, np.ndarray], find: Callable[[], int | None]
) -> None:
    bad = []
    for name, values in host.items():
        if not jnp.issubdtype(values.dtype, jnp.inexact):
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(values.sum()):  # so are all of them, and this passes over them once
                continue
        if not np.isfinite(values).all():
            bad.append(f"{name} ({np.sum(~np.isfinite(values)):,} of {values.size:,})")
    if bad:
        newest = find()
        raise NonFiniteState(
            f"the State after step {step} holds NaN or inf in {len(bad)} of {len(host)} arrays: "
            f"{some(bad, 3)}. It is not saved; "
            + (
                "there is no checkpoint yet. "
                if newest is None
                else f"the newest checkpoint is of step {newest}. "
            )
            + "Likely causes: a learning rate too high, a temperature too low."
        )


def _manager(path: Path, keep: int) -> "ocp.CheckpointManager":
    import orbax.checkpoint as ocp

    path.mkdir(parents=True, exist_ok=True)
    logging.get_absl_logger().addFilter(_not_of_a_failed_save)  # a second time changes nothing
    processes = _processes(path.name)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=True,
        create=False,
        multiprocessing_options=processes,
    )
    store = ocp.CheckpointManager(
        path,
        options=options,
        item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=processes),
    )
    # `stopping.Stop` asks; numbers of another count between its own would hide the agreed point.
    store.reached_preemption = lambda step: False  # type: ignore[method-assign]
    return store


def _not_of_a_failed_save(record: "LogRecord") -> bool:
    """False for the tracebacks that Orbax's threads log: `Checkpoints` raises the same error."""
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


def _processes(name: str) -> "ocp.options.MultiprocessingOptions":
    """Two stores that save the same step wait for the other processes under names of their own, or
    hang."""
    import orbax.checkpoint as ocp

    return ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)


def _restored(manager: "ocp.CheckpointManager", step: int, like: Any) -> Any:
    """One checkpoint as a State like `like`; raises where it is not whole or of another shape."""
    import orbax.checkpoint as ocp

    stored = manager.item_metadata(step)

    def read(target: dict[str, Any]) -> dict[str, Any]:
        names = sorted(target)
        if CHECKSUMS in stored:  # runs of the first versions have none
            target = target | {CHECKSUMS: np.zeros(len(names), np.uint32)}
        tree: dict[str, Any] = manager.restore(step, args=ocp.args.StandardRestore(target))
        if CHECKSUMS in tree:
            kept = np.asarray(tree.pop(CHECKSUMS))
            wrong = [
                name for name, found, then in zip(names, checksums(tree), kept) if found != then
            ]
            if wrong:
                raise ValueError(
                    f"the checksums of {len(wrong)} of {len(names)} arrays are not those that were "
                    f"saved, for instance of {wrong[0]}"
                )
        return tree

    return _read(read, stored, like)


def _read(read: Callable[[dict[str, Any]], dict[str, Any]], stored: Any, like: Any) -> Any:
    """The State that a store holds under the names `stored`, as one like `like`. That of a
    population is read in whichever of its two forms it was saved."""
    same = all(name in stored for name in _plain(like))
    if same or not isinstance(getattr(like, "memory", None), Members):
        return _filled(like, read(_wanted(like)))
    other = other_form(jax.tree.map(_empty, like, is_leaf=sharded.is_sharded))
    names = list(_plain(other))
    leaves, kinds = jax.tree.flatten(other)
    tree = read(dict(zip(names, leaves, strict=True)))
    saved = jax.tree.unflatten(kinds, [tree[name] for name in names])
    found = _plain(other_form(saved))
    for name, leaf in _plain(like).items():
        if found[name].shape != _empty(leaf).shape:  # a store fills arrays of the host as they come
            raise ValueError(
                f"{name} was saved as {list(found[name].shape)}; here it is {list(leaf.shape)}"
            )
    return _filled(like, _placed(found, _plain(like)))


def _placed(found: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Arrays of the host placed as leaves of a State; those of `Sharded` rows stay on the host."""
    return {
        name: found[name] if sharded.is_sharded(leaf) else parallel.place_as(found[name], leaf)
        for name, leaf in like.items()
    }


def _empty(leaf: Any) -> np.ndarray:
    """An array of the host to read a leaf into; of `Sharded` rows without their padding, since what
    was written depends neither on the number of devices nor on the padding that it asks for."""
    if not sharded.is_sharded(leaf):
        return np.empty(leaf.shape, leaf.dtype)
    axis = len(leaf.rows.shape) - leaf.rank
    return np.empty((*leaf.rows.shape[:axis], *leaf.shape), leaf.dtype)


# How a save goes on beside the training: one process leaves all but the copy to a thread. Of
# several each writes a part of what lies on its devices, and waits at the store's barriers for the
# others. A barrier may not come between the collectives of a step, so the call is made in step with
# the others, and the files alone are written behind it.


def _given(state: Any, host: dict[str, np.ndarray]) -> dict[str, Any]:
    """The leaves that a store is given: those of the host, of several processes copies on the
    devices."""
    if jax.process_count() == 1:
        return dict(host)
    return {
        name: host[name] if sharded.is_sharded(leaf) else jnp.copy(leaf)
        for name, leaf in _plain(state).items()
    }


def _begin(write: Callable[[], None]) -> Future[None]:
    """Calls `write`, in a thread if there is one process; the result raises what went wrong."""
    if jax.process_count() == 1:
        thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        writing = thread.submit(write)
        thread.shutdown(wait=False)
        return writing
    write()
    writing = Future()
    writing.set_result(None)
    return writing


def _write(
    store: "ocp.CheckpointManager", step: int, tree: dict[str, Any], host: dict[str, np.ndarray]
) -> None:
    import orbax.checkpoint as ocp

    store.save(step, args=ocp.args.StandardSave(tree | {CHECKSUMS: checksums(host)}))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _own(leaf: Any) -> np.ndarray:
    """The values of a leaf on this host, which no step writes over; `Sharded` rows without
    padding."""
    values = parallel.fetch(leaf)
    array: np.ndarray = values.rows if sharded.is_sharded(values) else values
    rows = leaf.rows if sharded.is_sharded(leaf) else leaf
    on_cpu = not isinstance(rows, jax.Array) or next(iter(rows.devices())).platform == "cpu"
    return np.array(array) if on_cpu else array  # of a CPU's array NumPy shows its own memory


def checksums(tree: dict[str, Any]) -> np.ndarray:
    """CRC-32 of the bytes of each array, uint32 in the order of their names."""
    return np.array(
        [
            zlib.crc32(np.ascontiguousarray(parallel.fetch(tree[name])).view(np.uint8).data)
            for name in sorted(tree)
        ],
        np.uint32,
    )


def _plain(state: Any) -> dict[str, Any]:
    """A State as a dict of its leaves by path, which Orbax stores whatever records the tree is made
    of. `Sharded` rows are one leaf, under whose path their N rows are stored."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=sharded.is_sharded)
    }


def _wanted(like: Any) -> dict[str, Any]:
    """What a State like `like` is restored into, `Sharded` rows on the host."""
    import orbax.checkpoint as ocp

    return {
        name: _empty(leaf) if sharded.is_sharded(leaf) else ocp.utils.to_shape_dtype_struct(leaf)
        for name, leaf in _plain(like).items()
    }


def _filled(like: Any, tree: Mapping[str, Any]) -> Any:
    """The State of the restored leaves, `Sharded` rows placed as those of `like`."""

    def one(leaf: Any, found: Any) -> Any:
        return parallel.resharded(leaf, found) if sharded.is_sharded(leaf) else found

    kinds = jax.tree.structure(like, is_leaf=sharded.is_sharded)
    return jax.tree.unflatten(kinds, [one(leaf, tree[name]) for name, leaf in _plain(like).items()])


def keep(path: str | Path, state: Any) -> None:
    """Writes one State into a folder of its own, in place of another that is there; waits until it
    is whole."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer(multiprocessing_options=_processes("kept")) as store:
        tree = {
            name: _own(leaf) if sharded.is_sharded(leaf) else leaf
            for name, leaf in _plain(state).items()
        }
        store.save(Path(path).absolute(), tree, force=True)


def kept(path: str | Path, like: Any) -> Any:
    """The State that `keep` wrote, shaped and placed like `like`."""
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    with ocp.StandardCheckpointer() as store:
        stored = store.metadata(path).item_metadata
        return _read(lambda target: store.restore(path, target), stored, like)
