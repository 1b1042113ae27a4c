"""Which settings of a config's section `optimizer` have an effect, and which of its patterns match
a parameter. `optim.build` itself ignores what it does not read."""

import functools
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import optax

from cl_jax.core.errors import ConfigError
from cl_jax.training import optim
from cl_jax.training.optim import OPTIMIZERS, SCHEDULES

# Settings that not every optimiser or schedule reads: the key that chooses it, and which do.
_READERS: Mapping[str, tuple[str, Sequence[str]]] = {
    "momentum": ("name", (*OPTIMIZERS[:4], "muon")),
    "nesterov": ("name", ("lars_simclr", "larc_sgd", "sgd")),
    "trust_coefficient": ("name", OPTIMIZERS[:3]),
    "larc_clip": ("name", ("larc_sgd",)),
    "b1": ("name", ("adamw", "muon")),
    "b2": ("name", ("adamw", "muon")),
    "eps": ("name", ("adamw", "muon")),
    "final_learning_rate": ("schedule", SCHEDULES[:3]),
    "warmup_start": ("schedule", ("linspace_warmup_cosine",)),
    "milestones_epochs": ("schedule", ("step_decay",)),
    "decay_factor": ("schedule", ("step_decay",)),
}
_KNOWN = {"name": OPTIMIZERS, "schedule": SCHEDULES}
# Lengths that may be given in epochs or in steps; steps win.
_IN_STEPS = {"warmup_epochs": "warmup_steps", "freeze_epochs": "freeze_steps"}


def without_effect(section: Mapping[str, Any]) -> dict[str, str]:
    """{key: sentence} of the settings of a section `optimizer` that change nothing: they differ
    from their default, and neither the section's optimiser and schedule nor those of a part read
    them; or they are a length in epochs, even the default, beside another in steps.

    A part's own settings have the key "parts.NAME.KEY". Those that it inherits from the section are
    not judged. `freeze_paths` beside a length that is given as 0 is switched off on purpose, and
    not among them.

    Args:
      section: the keywords of `optim.build` that are given, of the right types.
    """
    parts = {name: dict(part) for name, part in (section.get("parts") or {}).items()}
    shared = {key: value for key, value in section.items() if key != "parts"}
    found = {}
    for key in shared:
        readers = [shared, *(shared | part for part in parts.values() if key not in part)]
        reasons = [_no_effect(one, key) for one in readers]
        if all(reasons):
            found[key] = f"optimizer.{key}={shared[key]!r} has no effect {reasons[0]}"
    for name, part in parts.items():
        for key in part:
            if reason := _no_effect(shared | part, key):
                where = f"parts.{name}.{key}"
                found[where] = f"optimizer.{where}={part[key]!r} has no effect {reason}"
    return found


def _no_effect(section: Mapping[str, Any], key: str) -> str:
    """Why a setting changes nothing, and the mend; "" where it has an effect or is the default."""
    defaults, value = _defaults(), section[key]
    if key in _IN_STEPS and value is not None:
        wins = _IN_STEPS[key]
        steps = section.get(wins)
        if steps is not None and (steps or value):
            return (
                f"beside {wins}={steps!r}, which wins. Give the length as {wins}, or set "
                f"{wins}=None."
            )
    if key not in defaults or _listed(value) == _listed(defaults[key]):
        return ""
    if key in _READERS:
        choice, readers = _READERS[key]
        chosen = section.get(choice, defaults.get(choice))
        if chosen in readers or chosen not in _KNOWN[choice]:  # `build` refuses what is unknown
            return ""
        return (
            f"with {choice}={chosen!r}, only with {', '.join(readers)}. Leave it at its default, "
            f"{defaults[key]!r}."
        )
    lengths = section.get("freeze_steps"), section.get("freeze_epochs")
    if key == "freeze_paths" and lengths == (None, None):
        return (
            "without freeze_epochs or freeze_steps, for how long; freeze_steps=-1 freezes for the "
            "whole run."
        )
    if key in ("freeze_epochs", "freeze_steps") and value and not section.get("freeze_paths"):
        return "without freeze_paths, patterns of the parameters that are frozen; give some."
    return ""


@functools.cache
def _defaults() -> Mapping[str, Any]:
    """The defaults of the settings of `build` that have one."""
    known = inspect.signature(optim.build).parameters
    empty = inspect.Parameter.empty
    return {key: one.default for key, one in known.items() if one.default is not empty}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def watched(tx: optax.GradientTransformation, seen: set[str]) -> optax.GradientTransformation:
    """The same optimiser, whose `init` adds the paths of its parameters to `seen`."""

    def init(params: Any) -> Any:
        seen.update(_paths(params))
        return tx.init(params)

    return tx._replace(init=init)


def check_patterns(section: Mapping[str, Any], params: Any, seen: Collection[str] = ()) -> None:
    """Refuses a pattern of a section `optimizer` that matches no parameter: a typo would silently
    train everything.

    Args:
      section: keywords of `optim.build`.
      params: all parameters of the run, or their shapes.
      seen: paths as the optimiser sees them (`watched`). A method may call it for each of its
        players or members, whose paths do not begin where those of `params` do.

    Raises:
      ConfigError: the pattern, and where the paths begin.
    """
    paths = {*seen, *_paths(params)}
    for pattern in _patterns(section):
        if not any(re.search(pattern, path) for path in paths):
            begins = sorted({"/".join(path.split("/")[:2]) for path in seen or paths})
            raise ConfigError(
                f"no parameter's path contains {pattern!r}; the paths begin "
                f"{', '.join(begins[:8])}."
            )


def _patterns(section: Mapping[str, Any]) -> list[str]:
    """The patterns of paths of a section `optimizer` and of its parts."""
    kinds = ("paths", "exclude_paths", "freeze_paths", "constant_lr_paths")
    sections = [section, *(section.get("parts") or {}).values()]
    return [pattern for one in sections for kind in kinds for pattern in one.get(kind, ())]


def _paths(params: Any) -> set[str]:
    return {optim.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
