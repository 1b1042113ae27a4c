"""Checkpoints of one State: asynchronous, atomic, keep-last and keep-best, no pickle."""

import difflib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging


class Checkpoints:
    """The checkpoints of one run under `workdir`: `last/<step>` the newest few, `best/<step>` the best by a score.

    A save is written beside its final name and moved there when complete, so a run that dies or a disk that fills leaves
    the one before whole.
    """

    def __init__(self, workdir: str | Path, *, keep: int = 2):
        root = Path(workdir).absolute()
        self.last = _manager(root / "last", keep)
        self.best = _manager(root / "best", 1)

    def save(self, state: Any, score: float | None = None, is_best: bool = False) -> None:
        """Starts saving; a failure of this or the previous save is raised when it is waited for."""
        step = int(state.step)
        tree = jax.tree.map(jnp.copy, _plain(state))  # the next step is given the State's own buffers to write in
        if step not in self.last.all_steps():
            self.last.save(step, args=ocp.args.StandardSave(tree))
        if is_best and step not in self.best.all_steps():
            logging.info("best so far: %.4f at step %d", score, step)
            self.best.save(step, args=ocp.args.StandardSave(tree))

    def wait(self) -> None:
        self.last.wait_until_finished()
        self.best.wait_until_finished()

    def restore(self, like: Any, *, best: bool = False) -> Any | None:
        """The newest whole checkpoint shaped and placed like `like`, or None; a damaged one is named and passed over."""
        manager = self.best if best else self.last
        failures = []
        for step in sorted(manager.all_steps(), reverse=True):
            target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(like))
            try:
                tree = manager.restore(step, args=ocp.args.StandardRestore(target))
            except Exception as error:
                failures.append(f"step {step}: {type(error).__name__}: {str(error)[:500]}")
                logging.error("checkpoint of step %d cannot be restored, trying the one before: %s", step, failures[-1])
                continue
            return jax.tree.unflatten(jax.tree.structure(like), [tree[name] for name in _plain(like)])
        if failures:
            raise ValueError("no checkpoint in " + str(manager.directory) + " fits this run:\n  " + "\n  ".join(failures) +
                             "\nIf the method or its sizes were changed, use a new --workdir.")
        return None

    def close(self) -> None:
        self.wait()
        self.last.close()
        self.best.close()


def _manager(path: Path, keep: int) -> ocp.CheckpointManager:
    path.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        for folder in path.iterdir():  # what a killed save left without its commit marker would be listed as the newest
            if folder.is_dir() and folder.name.isdigit() and not (folder / "_CHECKPOINT_METADATA").exists():
                logging.warning("removing %s: a save that never finished", folder)
                shutil.rmtree(folder)
    if jax.process_count() > 1:  # no process lists what process 0 is about to remove
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"checkpoints of {path}")
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True, create=False)
    return ocp.CheckpointManager(path, options=options)


def _plain(state: Any) -> dict[str, Any]:
    """A State as a dict of its leaves by path, which Orbax stores whatever records the tree is made of."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def check_config(workdir: str | Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json` into a new workdir; in a used one, refuses another config and shows the difference."""
    path = Path(workdir) / "config.json"
    given = flatten(config)
    if path.exists():
        stored = flatten(json.loads(path.read_text()))
        rows = [f"  {key}: {stored.get(key, '(absent)')} in the workdir, {given.get(key, '(absent)')} now"
                for key in sorted(stored.keys() | given.keys()) if stored.get(key) != given.get(key)]
        if rows:
            raise ValueError(f"{workdir} holds a run of another config; it differs in\n" + "\n".join(rows) +
                             "\nGive the same config to resume it, or another --workdir for this one.")
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


def nearest(name: str, known: Any) -> str:
    """The words "; did you mean 'x'" for a name close to a known one, else nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], 1)
    return f"; did you mean {close[0]!r}" if close else ""

