"""Finds configs by path, name or module, and puts settings of the command line into them.

Nothing here imports jax, so that the help of a command appears at once.
"""

import ast
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError, NotFoundError
from cl_jax.core.names import nearest
from cl_jax.core.paths import user_path
from cl_jax.training.defaults import UnknownVariant
from cl_jax.training.defaults import get_config as get_defaults
from cl_jax.training.workdir import path_of

# Sections whose keys are keywords of a function: any may be given, listed in the config or not, and
# `experiment.build` refuses those that the function does not take.
KEYWORDS = ("data", "views", "encoder", "optimizer", "method")
# A section of this name holds further sections of keywords, one for each evaluator.
PROTOCOLS = "protocols"


def folder() -> Path:
    """The folder of the package's configs: inside the package where it was installed from a wheel,
    beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside, beside = package / "configs", package.parent / "configs"
    return inside if inside.is_dir() else beside


def names() -> list[str]:
    """The package's configs, sorted."""
    return sorted(path.stem for path in folder().glob("*.py") if path.stem != "__init__")


def load(text: str) -> ConfigDict:
    """The config that `text` names, with its variants.

    Args:
      text: a name of the package's configs ("simclr_v2"), a path ("configs/simclr_v2.py"), or a
        module ("my_lab.configs.mine"); after a colon, variants with commas between them
        ("simclr_v2:cifar10,debug").

    Raises:
      ConfigError: there is no such config, or no such variant; its file is not Python, or returns
        something else.
    """
    name, _, variants = text.partition(":")
    module = _module(name)
    if not hasattr(module, "get_config"):
        raise ConfigError(
            f"config {name!r} has no function get_config(variants=None) that returns a ConfigDict."
        )
    if not inspect.signature(module.get_config).parameters:
        if variants:
            raise UnknownVariant(f"config {name!r} has no variants; it was given {variants!r}.")
        return _checked(name, module.get_config()).lock()
    return _checked(name, module.get_config(variants or None)).lock()


def _checked(name: str, found: Any) -> ConfigDict:
    """What a config's function returned, if it is a whole config."""
    if isinstance(found, dict):
        found = ConfigDict(found)
    begin = "begin with that of cl_jax.training.defaults.get_config(), which has all."
    if not isinstance(found, ConfigDict):
        raise ConfigError(
            f"get_config of {name!r} returned {type(found).__name__}; expected a ConfigDict: "
            f"{begin}"
        )
    missing = [key for key in get_defaults() if key not in found]
    if missing:
        raise ConfigError(f"config {name!r} lacks {', '.join(missing)}: {begin}")
    return found


def smallest(text: str) -> ConfigDict:
    """The `debug` variant of a config; the config itself where it has none."""
    try:
        return load(f"{text}{',' if ':' in text else ':'}debug")
    except UnknownVariant:
        return load(text)


def _module(name: str) -> ModuleType:
    if name.endswith(".py") or "/" in name:
        path = user_path(name)
        if path.is_file():
            return _from_file(path)
        # `configs/NAME.py` also means the package's own config where there is no checkout.
        if path.parts == ("configs", path.name) and path.stem in names():
            return _from_file(folder() / path.name)
        raise ConfigError(
            f"config {name} does not exist{nearest(path.stem, names())}. Give the path of a "
            f"file, or one of {', '.join(names())}."
        )
    if name in names():
        return _from_file(folder() / f"{name}.py")
    package, dot, _ = name.partition(".")
    if package and dot and importlib.util.find_spec(package) is not None:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
    if Path(f"{name}.py").is_file():
        raise ConfigError(f"config {name!r} is not one of the package; did you mean {name}.py.")
    raise ConfigError(
        f"config {name!r} does not exist{nearest(name, names())}. Have "
        f"{', '.join(names())}; the path of a file and the name of a module work too."
    )


def _from_file(path: Path) -> ModuleType:
    if path.suffix != ".py":
        raise ConfigError(
            f"config {path} does not end in .py; expected a Python file with a function "
            "get_config. A run's own config.json is read by `cl-jax eval --workdir=...`."
        )
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"config {path.resolve()}"] = module  # for `programs`: all code that was run
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        if Path(error.filename or "").resolve() != path.resolve():  # of what it imports
            raise
        raise ConfigError(
            f"config {path}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
        ) from None
    return module


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as nested dicts, references resolved, in the order in which it is written.

    A ConfigDict iterates in alphabetical order, and its copies are written in that order; the order
    of views is one of the things that a config says.
    """
    order = json.loads(config.to_json_best_effort())
    return {
        key: plain(config[key]) if isinstance(config[key], ConfigDict) else config[key]
        for key in order
    }


def folder_of_run(workdir: str | Path) -> Path:
    """The workdir; of a run in stages of which only one has begun, that stage's."""
    place = path_of(workdir)
    begun = list(place.glob("*/config.json"))
    return begun[0].parent if len(begun) == 1 and not (place / "config.json").exists() else place


def of_run(workdir: str | Path) -> ConfigDict:
    """The config that a run was started with.

    Raises:
      NotFoundError: no run is there, or only the stages of one.
      ConfigError: its config.json is damaged.
    """
    path = path_of(workdir) / "config.json"
    if not path.exists():
        stages = sorted(found.parent.name for found in path.parent.glob("*/config.json"))
        raise NotFoundError(
            f"{workdir} holds the runs {', '.join(stages)}: give one, such as {workdir}/"
            f"{stages[0]}, or the config of all of them."
            if stages
            else f"{workdir} holds no run: {path} is missing. Train first, with "
            f"--workdir={workdir}."
        )
    try:
        kept = {"stage": "", "stages": {}} | json.loads(path.read_text())
        return ConfigDict(kept).lock()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Put a whole one back.") from None


def take_settings(words: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Takes the settings of a config out of a command line.

    Args:
      words: a command line. `--config.KEY=VALUE`, `--config.KEY VALUE`, `--config.KEY` for true and
        `--noconfig.KEY` for false are settings.

    Returns:
      ((key, value or None for true) of each setting, the other words), both in order.
    """
    settings: list[tuple[str, str | None]] = []
    others: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("--config."):
            key, equals, value = word.removeprefix("--config.").partition("=")
            if equals:
                settings.append((key, value))
            elif left and not left[0].startswith("--"):
                settings.append((key, left.pop(0)))
            else:
                settings.append((key, None))
        elif word.startswith("--noconfig."):
            settings.append((word.removeprefix("--noconfig."), "false"))
        else:
            others.append(word)
    return settings, others


def change(config: ConfigDict, settings: Sequence[tuple[str, str | None]]) -> None:
    """Puts settings into a config, in place.

    A key that the config lists keeps its type. In a section of keywords (`data`, `views`,
    `encoder`, `optimizer`, `method`, each evaluator) any key may be given, and None for any that is
    not text; its value is read as Python where it can be and is text elsewhere. That the function
    behind the section takes the key and the value is checked when the run is built. Where all
    stages are to run (`config.stage`), a key of an evaluator that some stages alone have is theirs.

    An evaluator without a value (`evals.protocols.NAME`) is one with its defaults; with None it is
    left out, of all stages, or as `stages.STAGE.evals.protocols.NAME` of one.

    Raises:
      ConfigError: a key that there is not, with the nearest one, or a value of another type.
    """
    with config.unlocked():
        for path, text in settings:
            if text == "None" and _is_protocol(path.split(".")):
                _leave_out(config, path)
                continue
            for place in _places(config, path):
                _change(config, place, text)


def _places(config: ConfigDict, path: str) -> list[str]:
    """The path of a setting; of an evaluator that some stages alone have, where all are to run,
    that in each of these: in the config itself it would add the evaluator to the others."""
    words = path.split(".")
    if words[:2] != ["evals", PROTOCOLS] or len(words) < 4 or config.get("stage") != "all":
        return [path]
    if words[2] in config.get("evals", {}).get(PROTOCOLS, {}):
        return [path]
    having = [
        name
        for name, changes in config.get("stages", {}).items()
        if changes.get("evals", {}).get(PROTOCOLS, {}).get(words[2]) is not None
    ]
    return [f"stages.{name}.{path}" for name in having] or [path]


def _change(config: ConfigDict, path: str, text: str | None) -> None:
    *parents, key = path.split(".")
    section = config
    walked: list[str] = []
    for name in parents:
        if name not in section or _is_left_out(walked, section, name):
            if not _takes_any(walked):
                raise ConfigError(_unknown(path, name, section))
            with section.ignore_type():
                section[name] = ConfigDict()
        section = section[name]
        walked.append(name)
        if not isinstance(section, ConfigDict):
            raise ConfigError(
                f"--config.{path}: {'.'.join(walked)} is {section!r}, not a section; set "
                f"--config.{'.'.join(walked)} itself."
            )
    if _holds_sections(walked, section):
        value = _section(path, text, section)
    elif key in section and _takes_any(walked) and _is_none(text, section[key]):
        value = None  # whether it may be is for the function behind the section to say
    elif key in section:
        value = _read(path, text, section[key])
    elif _takes_any(walked) or _is_stage_of(config, walked, key):
        value = _literal(text)
    else:
        raise ConfigError(_unknown(path, key, section))
    with section.ignore_type():
        section[key] = value


def _is_protocol(words: Sequence[str]) -> bool:
    """Whether this is the path of an evaluator's section, of a stage too."""
    own = words[2:] if words[0] == "stages" else words
    return len(own) == 3 and list(own[:2]) == ["evals", PROTOCOLS]


def _leave_out(config: ConfigDict, path: str) -> None:
    """Takes an evaluator out of the config and out of what each stage changes in it; or out of one
    stage, which says None of an evaluator that the config has."""
    *_, name = words = path.split(".")
    own, sections = config.get("evals", {}).get(PROTOCOLS, {}), config.get("stages", {})
    of_stage = words[0] == "stages"
    if of_stage and words[1] not in sections:
        raise ConfigError(_unknown(path, words[1], sections))
    changed = [sections[words[1]]] if of_stage else [config, *sections.values()]
    protocols = [place.get("evals", {}).get(PROTOCOLS, {}) for place in changed]
    if not any(name in one for one in (own, *protocols)):
        raise ConfigError(_unknown(path, name, [*own, *protocols[0]]))
    for one in protocols:
        if name in one:
            del one[name]
    if of_stage and name in own:
        (section,) = changed
        for key in ("evals", PROTOCOLS):
            if key not in section:
                section[key] = ConfigDict()
            section = section[key]
        section[name] = None


def _is_left_out(walked: Sequence[str], section: ConfigDict, name: str) -> bool:
    """Whether a stage leaves out the evaluator `name` of the section at this path."""
    return section[name] is None and list(walked[-2:]) == ["evals", PROTOCOLS]


def _holds_sections(walked: Sequence[str], section: ConfigDict) -> bool:
    """Whether the keys at this path are sections themselves: evaluators, views, encoders by
    role."""
    if list(walked[:1]) == ["stages"]:
        walked = walked[2:]
    if list(walked) == ["encoder"]:
        return len(section) > 0 and all(isinstance(one, ConfigDict) for one in section.values())
    return list(walked) in (["views"], ["evals", PROTOCOLS])


def _section(path: str, text: str | None, among: ConfigDict) -> Mapping[str, Any]:
    """One of the sections `among`: without a value what it is, or empty; a mapping where there is
    none yet."""
    parent, _, key = path.rpartition(".")
    value = {} if text is None else _literal(text)
    if key in among and among[key] is not None:
        return among[key] if text is None else _read(path, text, among[key])
    if not isinstance(value, dict):
        raise ConfigError(
            f"--config.{path}={text}: {key} would be a section of {parent}, beside "
            f"{', '.join(sorted(among)) or 'no other'}; set one of its keys, "
            f"--config.{path}.KEY=VALUE, or give it no value for its defaults."
        )
    return value


def _takes_any(walked: Sequence[str]) -> bool:
    """Whether the section at this path has the keywords of a function as its keys."""
    if list(walked[:1]) == ["stages"]:
        walked = walked[2:]
    return bool(walked) and (walked[0] in KEYWORDS or PROTOCOLS in walked)


def _is_stage_of(config: ConfigDict, walked: Sequence[str], key: str) -> bool:
    """Whether `key` is a setting of the whole run, given for one stage alone."""
    return len(walked) == 2 and walked[0] == "stages" and key in config


def _unknown(path: str, name: str, section: Iterable[str]) -> str:
    there = sorted(set(map(str, section)))
    return (
        f"--config.{path}: the config has no {name!r} there{nearest(name, there)}. It has "
        f"{', '.join(there) or 'nothing'}."
    )


def _read(path: str, text: str | None, old: Any) -> Any:
    """A value of the type of the one it replaces."""
    if isinstance(old, ConfigDict):
        keys = ", ".join(sorted(map(str, old)))
        raise ConfigError(f"--config.{path} is a section; set one of its keys: {keys}.")
    value = _literal(text)
    if isinstance(old, bool):
        words = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
        wanted = "true or false"
    elif isinstance(old, str):
        return "" if text is None else text
    elif isinstance(old, int):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        wanted = "a whole number"
    elif isinstance(old, float):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if str(value).lower() in ("inf", "-inf", "nan"):
            return float(value)
        wanted = "a number"
    elif isinstance(old, tuple | list):
        if isinstance(value, str):
            value = tuple(word.strip() for word in value.split(",") if word.strip())
        return type(old)(value) if isinstance(value, tuple | list) else type(old)((value,))
    else:
        return value
    raise ConfigError(f"--config.{path}={'' if text is None else text}: expected {wanted}.")


def _is_none(text: str | None, old: Any) -> bool:
    """Whether a value is None, and not the text or section that it would replace."""
    return text == "None" and not isinstance(old, str | ConfigDict)


def _literal(text: str | None) -> Any:
    """Text as a Python value where it is one; None stands for a setting without a value."""
    if text is None:
        return True
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def see_working_folder() -> None:
    """Lets modules of the working folder be imported, as `python -m` does: methods, views and
    configs of one's own."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, "")
