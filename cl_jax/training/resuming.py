"""The config of a workdir: what a resumed run may be given otherwise, and what would change its
numbers."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError
from cl_jax.training import checkpoint
from cl_jax.training import workdir as folder
from cl_jax.training.optimizer_settings import without_effect

# What a resumed run may be given otherwise: where things are and how often something is written,
# never what a training step computes.
NOTED = (
    "checkpoint_steps",
    "data.cache_bytes",
    "data.cache_dir",
    "data.data_dir",
    "data.download",
    "data.max_bytes",
    "data.max_pixels",
    "data.on_error",  # `fingerprint` compares how many examples are left
    "data.on_parts",  # it compares their names
    "data.path",
    "data.processes",
    "data.resident_bytes",
    "data.threads",
    "data.tokenizer_cache",
    "data.workers",
    "devices",
    "dispatch_steps",
    "evals",
    "keep_checkpoints",
    "loading",
    "log",
    "log_steps",
    "nonfinite",
    "probe",
    "stage",
    "stage_order",
    "stages",
)
# Files that may lie elsewhere, and may neither come nor go: one that a run started from, its test
# part, and its tokenizer, of which `learnt.json` says whether it is the same. Beside them those of
# `Leeway.movable`.
MOVABLE = ("data.test_path", "data.tokenizer_path", "init_from")


class Leeway(NamedTuple):
    """How a config may differ from its run's beside `NOTED`, see `experiment.leeway` and
    `stages.leeway_of`.

    defaults: {"section.key": value} that a key has where a config does not list it. Then a key that
      a later version added is the same as its absence in an older run.
    free: keys that only evaluators read.
    movable: as `MOVABLE`, keys that a factory annotates so (`core.annotations.Movable`).
    idle: returns keys of the run's config that change nothing, which may be set to their default.
      It is called where the configs differ in more than the others.
    """

    defaults: Mapping[str, Any] = MappingProxyType({})
    free: Sequence[str] = ()
    movable: Sequence[str] = ()
    idle: Callable[[], Collection[str]] | None = None


_EXACT = Leeway()


def check_config(
    workdir: str | Path, config: Mapping[str, Any], leeway: Leeway = _EXACT
) -> list[str]:
    """Writes `config.json` into the workdir. Where a checkpoint is there, refuses a config that
    would compute other numbers; without one there is nothing to protect.

    Args:
      config: nested sections.
      leeway: how it may differ.

    Returns:
      Lines that name other differences: `NOTED`, `MOVABLE`, those of the leeway, and settings of
      the optimiser without effect.

    Raises:
      ConfigError: the config differs in what decides the numbers, the config of a workdir with
        checkpoints cannot be read, a new run would lie beside the folders of others, or the
        workdir cannot be written.
    """
    path = (folder.make(workdir) if jax.process_index() == 0 else folder.path_of(workdir)).joinpath(
        "config.json"
    )
    saved = checkpoint.are_in(path.parent)
    if not saved and not path.exists():
        _refuse_a_folder_of_runs(workdir, path.parent)
    stored: dict[str, Any] | None = None
    if saved:
        try:
            stored = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path.parent} holds checkpoints, and its config.json cannot be read ({error}): "
                "they may be of another run. Put the file back, or use a new --workdir."
            ) from None
    changed, noted = differences(stored or config, config, leeway)
    if changed:
        raise ConfigError(
            f"{workdir} holds a run of another config; it differs in\n"
            + "\n".join(changed)
            + "\nGive the same config to resume it, or another --workdir for this one."
        )
    text = json.dumps(config, indent=2) + "\n"  # in the order of the config: that of its views
    parallel.everywhere(True)  # all have read it
    if jax.process_index() == 0 and not (path.exists() and path.read_text() == text):
        folder.replace_text(path, text)
    return noted


def _refuse_a_folder_of_runs(workdir: str | Path, place: Path) -> None:
    runs = sorted(
        one.parent for one in place.glob("*/config.json") if checkpoint.are_in(one.parent)
    )
    if runs:
        raise ConfigError(
            f"{workdir} holds {len(runs)} runs or stages in folders of their own, such as "
            f"{runs[0].name}, and a run beside them would be taken for theirs. Give a new folder, "
            f"such as --workdir={place / 'NAME'}."
        )


def differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], leeway: Leeway = _EXACT
) -> tuple[list[str], list[str]]:
    """(lines that name settings which decide the numbers, lines that name others) in which two
    configs differ."""
    then, now = flatten(json.loads(json.dumps(stored))), flatten(json.loads(json.dumps(given)))
    sides = (then, _idle(stored)), (now, _idle(given))
    changed: dict[str, str] = {}
    noted: list[str] = []
    unset: list[str] = []
    for key in sorted(then.keys() | now.keys()):
        # Keys of the trainer itself come with versions: an older run did as if they were unset.
        new = "." not in key and key not in then and key not in leeway.defaults
        old, value = (side.get(key, leeway.defaults.get(key, "(absent)")) for side in (then, now))
        if json.dumps(_number(old)) == json.dumps(_number(value)):  # NaN is itself
            continue
        plain = _of_one_source(key, now)
        may = (
            new
            or any(plain == name or plain.startswith(f"{name}.") for name in (*NOTED, *leeway.free))
            or (plain in (*MOVABLE, *leeway.movable) and bool(then.get(key)) and bool(now.get(key)))
            or all(key in idle for listed, idle in sides if key in listed)
        )
        line = f"  {key}: {old} in the workdir, {value} now"
        if may:
            noted.append(line)
            continue
        changed[key] = line
        # Not of a key of the trainer itself, which has an effect: `idle` takes a while.
        if (
            "." in key
            and key in leeway.defaults
            and _number(value) == _number(leeway.defaults[key])
        ):
            unset.append(key)
    idle = leeway.idle() if unset and leeway.idle is not None else ()
    noted += [changed.pop(key) for key in unset if key in idle]
    return list(changed.values()), noted


def _of_one_source(key: str, flat: Mapping[str, Any]) -> str:
    """ "data.source.path", of a source in a data section of several, as "data.path"."""
    role, _, setting = key.rpartition(".")
    return f"data.{setting}" if role.startswith("data.") and f"{role}.name" in flat else key


def _idle(config: Mapping[str, Any]) -> set[str]:
    """Settings of the optimiser without effect: `describe` advises to leave them out."""
    return {f"optimizer.{key}" for key in without_effect(config.get("optimizer", {}))}


def _number(value: Any) -> Any:
    """1 and 1.0 are one setting."""
    if isinstance(value, list | tuple):  # a default may be a tuple
        return [_number(item) for item in value]
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections -> {"section.key": value}."""
    if not isinstance(config, Mapping):
        return {prefix: list(config) if isinstance(config, tuple) else config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
