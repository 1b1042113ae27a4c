"""The stages of a config, and a stage read back from its workdir."""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from cl_jax.core.method import Stage, State
from cl_jax.core.names import nearest
from cl_jax.training import checkpoint
from cl_jax.training.experiment import Built, build, initial_state


def stages(config: ConfigDict, workdir: str | Path) -> list[tuple[str, ConfigDict, Path]]:
    """(name, config, workdir) of what is to run: one run, the stage asked for, or all stages in
    their order."""
    config = ConfigDict(config.copy_and_resolve_references()).unlock()
    overrides, order, asked = config.stages, list(config.get("stage_order", ())), config.stage
    del config.stages, config.stage
    if "stage_order" in config:
        del config.stage_order
    if not order:
        if asked:
            raise ValueError(f"stage={asked!r}: this config has one stage only; leave it out.")
        return [("", config, Path(workdir))]
    if asked not in ("", "all", *order):
        raise ValueError(
            f"stage={asked!r} is unknown; have all, {', '.join(order)}{nearest(asked, order)}."
        )
    chosen = order if asked == "all" else [asked or order[0]]
    found = []
    for name in chosen:
        stage = ConfigDict(config.copy_and_resolve_references()).unlock()
        for section, value in overrides[name].items():
            if section in stage and isinstance(stage[section], ConfigDict):
                if section == "views" or "name" in value:
                    stage[section] = ConfigDict(value)
                else:
                    stage[section].update(value)
            else:
                stage[section] = value
        found.append((name, stage, Path(workdir) / name))
    return found


def previous_stage(config: ConfigDict, workdir: str | Path) -> Stage | None:
    """The stage that `config.previous` names, a path relative to this stage's workdir."""
    name = config.get("previous", "")
    if not name:
        return None
    _, built, state = load(
        os.path.normpath(Path(workdir) / name)
    )  # "../pretrain" of a folder that is not there yet
    return Stage(built.method, state)


def load(workdir: str | Path, *, best: bool = False) -> tuple[ConfigDict, Built, State]:
    """A finished (or interrupted) run from its workdir: config, what it built, and its newest
    State."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{workdir} holds no run: {path} is missing. Train first, with --workdir={workdir}."
        )
    config = ConfigDict(json.loads(path.read_text()))
    built = build(config, previous_stage(config, workdir))
    like = initial_state(built, config)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    state = checkpoints.restore(like, best=best)
    checkpoints.close()
    if state is None:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
    return config, built, state
