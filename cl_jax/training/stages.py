"""The stages of a config, and a stage read back from its workdir."""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from cl_jax.core.method import Stage, State
from cl_jax.core.names import nearest
from cl_jax.training import checkpoint, configs
from cl_jax.training.experiment import Built, build, initial_state

# Sections and keys of a config that no training step reads: a run is evaluated with others at will.
EVALUATION = (
    "evals",
    "probe",
    "devices",
    "log_steps",
    "checkpoint_steps",
    "keep_checkpoints",
    "dispatch_steps",
    "nonfinite",
    "stage",
    "stages",
    "stage_order",
)


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


def load(
    workdir: str | Path, config: ConfigDict | None = None, *, best: bool = False
) -> tuple[ConfigDict, Built, State]:
    """Loads a finished or interrupted run: (config, what it built, its newest State).

    Args:
      workdir: of the run.
      config: settings to use instead of the run's own; they may differ from these in what no
        training step reads (`EVALUATION`).
      best: the best State by the evaluations in place of the newest.

    Raises:
      FileNotFoundError: there is no run, or it has no checkpoint.
      ValueError: `config` is of another run; the message lists the differences.
    """
    own = configs.of_run(workdir)
    if config is None:
        config = own
    else:
        _refuse_another_run(workdir, own, config)
    config = ConfigDict(config.copy_and_resolve_references()).unlock()
    built = build(config, previous_stage(config, workdir))
    like = initial_state(built, config)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    state = checkpoints.restore(like, best=best)
    checkpoints.close()
    if state is None:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
    return config, built, state


def _refuse_another_run(workdir: str | Path, own: ConfigDict, given: ConfigDict) -> None:
    kept, now = (
        {
            key: value
            for key, value in checkpoint.flatten(json.loads(config.to_json())).items()
            if key.split(".")[0] not in EVALUATION
        }
        for config in (own, given)
    )
    rows = [
        f"  {key}: {kept.get(key, '(absent)')} in the workdir, {now.get(key, '(absent)')} given"
        for key in sorted(kept.keys() | now.keys())
        if kept.get(key) != now.get(key)
    ]
    if rows:
        raise ValueError(
            f"{workdir} holds a run of another config; it differs in\n"
            + "\n".join(rows)
            + "\nGive the run's own config, or none, with the settings of the evaluation."
        )
