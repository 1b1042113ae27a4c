"""Checkpoints of one State: asynchronous, atomic, keep-last and keep-best, no pickle."""

import json
import shutil
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cl_jax.core import parallel

if (
    TYPE_CHECKING
):  # elsewhere where it is used: a new run takes its first step before it needs a store
    import orbax.checkpoint as ocp

CHECKSUMS = "checksums"  # beside the leaves of a State, whose names begin with a dot


class Checkpoints:
    """The checkpoints of one run under `workdir`: `last/<step>` the newest few, `best/<step>` the
    best by a score.

    A save is written beside its final name and moved there when complete, so a run that dies or a
    disk that fills leaves the one before whole. Each holds a checksum of every array, since a store
    does not notice every flipped bit."""

    def __init__(self, workdir: str | Path, *, keep: int = 2):
        self.root, self.keep = Path(workdir).absolute(), keep
        self.damaged: list[
            tuple[ocp.CheckpointManager, int]
        ] = []  # passed over by `restore`; they go at the next save
        self.cleaned = False

    @cached_property
    def _stores(self) -> tuple["ocp.CheckpointManager", "ocp.CheckpointManager"]:
        """Both at once: processes wait for each other when they open one."""
        return _manager(self.root / "last", self.keep), _manager(self.root / "best", 1)

    @property
    def last(self) -> "ocp.CheckpointManager":
        return self._stores[0]

    @property
    def best(self) -> "ocp.CheckpointManager":
        return self._stores[1]

    def save(self, state: Any, score: float | None = None, is_best: bool = False) -> None:
        """Starts saving; a failure of this or the previous save is raised when it is waited for."""
        import orbax.checkpoint as ocp

        last, best = self._stores  # opened by every process, before the first of them cleans up
        step = int(state.step)
        self._clean()
        tree = jax.tree.map(
            jnp.copy, _plain(state)
        )  # the next step is given the State's own buffers to write in
        tree[CHECKSUMS] = checksums(tree)
        if step not in last.all_steps():
            last.save(step, args=ocp.args.StandardSave(tree))
        if is_best and step not in best.all_steps():
            logging.info("best so far: %.4f at step %d", score, step)
            if jax.process_count() > 1:
                last.wait_until_finished()  # a store's threads meet those of other processes
            best.save(step, args=ocp.args.StandardSave(tree))

    def _clean(self) -> None:
        """Before the first save: what killed saves left, and what could not be read (a store takes
        no step at or below its newest). Not sooner, since another process may only look at a run
        that goes on."""
        for manager, step in self.damaged:
            manager.delete(step)
        self.damaged = []
        if not self.cleaned and jax.process_index() == 0:
            for left in (
                path
                for manager in (self.last, self.best)
                for path in Path(manager.directory).glob("*-tmp*")
            ):
                logging.warning("removing %s: a save that never finished", left)
                shutil.rmtree(left)
        self.cleaned = True

    def wait(self) -> None:
        for store in vars(self).get("_stores", ()):
            store.wait_until_finished()

    def restore(self, like: Any, *, best: bool = False) -> Any | None:
        """The newest whole checkpoint shaped and placed like `like`, or None; a damaged one is
        named and passed over."""
        if jax.process_count() == 1 and not any(
            (self.root / ("best" if best else "last")).glob("*")
        ):
            return None
        manager = self.best if best else self.last
        failures, damaged = [], []
        for step in sorted(manager.all_steps(), reverse=True):
            path = Path(manager.directory) / str(step)
            if not (path / "_CHECKPOINT_METADATA").exists():
                logging.warning("passing over %s: a save that never finished", path)
                damaged.append((manager, step))
                continue
            state, failure = None, ""
            try:
                state = _restored(manager, step, like)
            except Exception as error:
                failure = f"{type(error).__name__}: {str(error)[:500]}"
            if parallel.everywhere(
                state is not None
            ):  # else processes would go on from different steps
                self.damaged += damaged
                return state
            failures.append(f"step {step}: {failure or 'another process could not read it'}")
            damaged.append((manager, step))
            logging.error(
                "checkpoint of step %d cannot be restored, trying the one before: %s",
                step,
                failures[-1],
            )
        if failures:
            raise ValueError(
                "no checkpoint in "
                + str(manager.directory)
                + " fits this run:\n  "
                + "\n  ".join(failures)
                + "\nIf the method or its sizes were changed, use a new --workdir."
            )
        self.damaged += damaged
        return None

    def close(self) -> None:
        self.wait()
        for store in vars(self).get("_stores", ()):
            store.close()


def _manager(path: Path, keep: int) -> "ocp.CheckpointManager":
    import orbax.checkpoint as ocp

    path.mkdir(parents=True, exist_ok=True)
    processes = _processes(path.name)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=True,
        create=False,
        multiprocessing_options=processes,
    )
    return ocp.CheckpointManager(
        path,
        options=options,
        item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=processes),
    )


def _processes(name: str) -> "ocp.options.MultiprocessingOptions":
    """Two stores that save the same step wait for the other processes under names of their own, or
    hang."""
    import orbax.checkpoint as ocp

    return ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name)


def _restored(manager: "ocp.CheckpointManager", step: int, like: Any) -> Any:
    """One checkpoint as a State like `like`; raises where it is not whole or of another shape."""
    import orbax.checkpoint as ocp

    names = list(_plain(like))
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
    if CHECKSUMS in manager.item_metadata(step):  # runs of the first versions have none
        target[CHECKSUMS] = np.zeros(len(names), np.uint32)
    tree = manager.restore(step, args=ocp.args.StandardRestore(target))
    if CHECKSUMS in tree:
        stored = np.asarray(tree.pop(CHECKSUMS))
        wrong = [
            name
            for name, found, kept in zip(sorted(names), checksums(tree), stored)
            if found != kept
        ]
        if wrong:
            raise ValueError(
                f"the checksums of {len(wrong)} of {len(names)} arrays are not those that were "
                f"saved, for "
                f"instance of {wrong[0]}"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [tree[name] for name in names])


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
    of."""
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def keep(path: str | Path, state: Any) -> None:
    """Writes one State into a folder of its own, in place of another that is there; waits until it
    is whole."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer(multiprocessing_options=_processes("kept")) as store:
        store.save(Path(path).absolute(), _plain(state), force=True)


def kept(path: str | Path, like: Any) -> Any:
    """The State that `keep` wrote, shaped and placed like `like`."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as store:
        tree = store.restore(
            Path(path).absolute(), jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
        )
    return jax.tree.unflatten(jax.tree.structure(like), [tree[name] for name in _plain(like)])


def check_config(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json` into a new workdir; in a used one, refuses another config and shows the
    difference."""
    path = Path(workdir) / "config.json"
    given = flatten(config)
    if path.exists():
        stored = flatten(json.loads(path.read_text()))
        rows = [
            f"  {key}: {stored.get(key, '(absent)')} in the workdir, {given.get(key, '(absent)')} "
            f"now"
            for key in sorted(stored.keys() | given.keys())
            if stored.get(key) != given.get(key)
        ]
        if rows:
            raise ValueError(
                f"{workdir} holds a run of another config; it differs in\n"
                + "\n".join(rows)
                + "\nGive the same config to resume it, or another --workdir for this one."
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        written = path.with_suffix(".part")
        written.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        written.replace(path)  # whole at once: another process may look at it now


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections -> {"section.key": value}."""
    if not isinstance(config, Mapping):
        return {prefix: list(config) if isinstance(config, tuple) else config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
