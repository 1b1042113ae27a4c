"""Wrong values of every setting of every config, on `build`: each gets a sentence, none a raw
exception, and no value of another kind is taken."""

import collections
import inspect
import math
import traceback
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import cl_jax
from cl_jax import views
from cl_jax.training import configs, experiment, optim, stages

PACKAGE = Path(cl_jax.__file__).parent
WRONG = {
    bool: ("yes", 2, None, []),
    int: (-1, 0, 1.5, "abc", 10**10, math.nan, None, [], -(10**30)),
    float: (-1.0, 0.0, math.nan, math.inf, 1e39, "abc", None, 2.5, [], 100.0),
    str: ("nonsense", "", 3, None, "../x", "a b"),
    tuple: ((0,), (-1,), "abc", (), (1, 2, 3), 5, None, ("a",), (1.5,), (math.nan,), [[1]]),
    list: ((0,), (-1,), "abc", (), (1, 2, 3), 5, None, ("a",), (1.5,), (math.nan,), [[1]]),
    type(None): (-1, 0, "abc", 1.5, math.nan, [], {}),
}


def settings_of(section, path=()):
    """(path, value) of every setting that a config lists."""
    for key in section:
        value = section[key]
        if isinstance(value, ConfigDict):
            yield from settings_of(value, (*path, key))
        else:
            yield (*path, key), value


def unlisted(config):
    """(path, default) of settings that the functions behind the sections take besides."""

    def of(make, path):
        section = config
        for key in path:
            section = section[key]
        for key, parameter in inspect.signature(make).parameters.items():
            if parameter.default is not inspect.Parameter.empty and key not in section:
                yield (*path, key), parameter.default

    for package in ("data", "method", "encoder"):
        section = config[package]
        places = [(package,)] if "name" in section else [(package, role) for role in section]
        for path in places:
            name = config[package].name if len(path) == 1 else section[path[1]].name
            folder = f"cl_jax.{package}{'s' * (package != 'data')}"
            yield from of(experiment._factory(folder, name), path)
    yield from of(optim.build, ("optimizer",))
    for name, view in config.views.items():
        for make in views.factories(view.get("kind", "image"), configs.plain(view)):
            yield from of(make, ("views", name))
    for name, section in config.evals.protocols.items():
        make = experiment._factory("cl_jax.evals", section.get("name", name))
        yield from of(make, ("evals", "protocols", name))


def with_value(config, path, value):
    changed = ConfigDict(configs.plain(config))
    section = changed
    for key in path[:-1]:
        section = section[key]
    with section.unlocked(), section.ignore_type():
        section[path[-1]] = value
    return changed


def is_sentence(error) -> bool:
    """Whether the package raised it for a user; what Python or a library raises is none."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, ValueError) and Path(last).is_relative_to(PACKAGE)


def is_of_another_kind(value, right) -> bool:
    """What no setting with such a value may be."""
    number = isinstance(right, int | float) and not isinstance(right, bool)
    if number and isinstance(value, float) and not math.isfinite(value):
        return True
    return number and isinstance(value, str | list)


@pytest.mark.slow
@pytest.mark.parametrize("name", configs.names())
def test_wrong_settings_of_every_config_get_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some values are names of files to be written
    config = configs.smallest(name)
    if "stage_order" in config:
        with config.unlocked():
            config.stage = "all"
    counts, raw, taken = collections.Counter(), [], []
    for _, stage, _ in stages.stages(config, "unused"):
        if stage.get("previous", ""):
            continue  # its build needs the end of another run
        data = experiment.load_data(stage)
        experiment.build(stage, None, data)
        found = dict([*unlisted(stage), *settings_of(stage)])
        for path, right in found.items():
            for value in WRONG.get(type(right), ()):
                if repr(value) == repr(right):
                    continue
                try:
                    changed = with_value(stage, path, value)
                except (TypeError, ValueError):
                    continue  # what a ConfigDict itself refuses
                told = f"{'.'.join(path)}={value!r}"
                try:
                    with pytest.MonkeyPatch.context() as patch:
                        if path[0] not in ("data", "seed"):  # read once
                            patch.setattr(experiment, "load_data", lambda config, data=data: data)
                        experiment.build(changed)
                except Exception as error:
                    if is_sentence(error):
                        counts["refused"] += 1
                        continue
                    raw.append(f"{told}: {type(error).__name__}: {error}")
                else:
                    counts["taken"] += 1
                    # a factor, or one for each milestone
                    if is_of_another_kind(value, right) and path[-1] != "decay_factor":
                        taken.append(told)
    print(f"{name}: {dict(counts)}, {len(raw)} raw exceptions")
    assert not raw and not taken, (raw, taken)
    assert counts["refused"] > 100
