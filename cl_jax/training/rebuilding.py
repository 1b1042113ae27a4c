"""How a run that has begun is built again: from what it began with, whatever has changed since in
this version or on this machine."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from cl_jax.core.paths import same_place, user_path
from cl_jax.training import checkpoint, configs, experiment, fingerprint


def as_begun(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config to build the run in a workdir by, which is another where the run has a checkpoint.

    Where a file `data.NAME_path` is gone, the run's `learnt.json` takes its place, if that holds
    NAME, what the source read of the file. Folders that are named like parts (`on_parts`) are
    told, not refused, of a further stage on the same data too: a run of an earlier version, which
    did not know them, goes on.

    Raises:
      ConfigError: `learnt.json` is damaged.
    """
    begun = checkpoint.are_in(workdir)
    if not (begun or _of_begun_data(config, workdir)):
        return config
    found = ConfigDict(configs.plain(config))
    for section in fingerprint.sections(found):
        if _takes_on_parts(section.get("name", "")):
            section.on_parts = "warn"
    named = {key.removesuffix("_path"): key for key in found.data if key.endswith("_path")}
    held = (fingerprint.learnt(workdir) or {}) if named and begun else {}
    for key in (named[name] for name in held if name in named):
        if found.data[key] and not user_path(found.data[key]).exists():
            found.data[key] = str(workdir / fingerprint.LEARNT)
    return found


def _takes_on_parts(source: str) -> bool:
    try:
        return bool(source) and "on_parts" in experiment.parameters("cl_jax.data", source)
    except (ImportError, ValueError):  # a trained network is used without its source
        return False


def _of_begun_data(config: ConfigDict, workdir: Path) -> bool:
    """Whether a stage reads the data of the stage that it starts from."""
    before = config.get("previous", "") and Path(os.path.normpath(workdir / config.previous))
    if not (before and checkpoint.are_in(before) and (before / "config.json").exists()):
        return False
    then = configs.of_run(before).data.get("path") or ""
    return same_place(then, config.data.get("path") or "")
