"""Wrong settings of every section get one sentence that names them, before anything is built; those
of all configs pass."""

import importlib
import inspect
import math
import pathlib
import pkgutil
import re
import sys
import types
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cl_jax import views
from cl_jax.core import processor, settings
from cl_jax.core.errors import ConfigError
from cl_jax.core.method import Method, State
from cl_jax.core.parallel import AXIS
from cl_jax.data import batches
from cl_jax.encoders import resnet
from cl_jax.training import configs, experiment, optim, optimizer_settings, resuming, stages
from cl_jax.views import presets
from cl_jax.views.recipe import Recipe

GIVEN = {"encoder", "tx", "views", "run", "base", "axis_name", "sizes"}  # not by the config
WRONG = {
    int: (math.nan, math.inf, "abc", None, [], {}, True, 1.5),
    float: (math.nan, math.inf, -math.inf, 1e39, "abc", None, [], {}, True),
    bool: ("yes", 2, None, 0.0),
    str: (3, None, ["a"], True),
}


def modules(package):
    found = importlib.import_module(f"cl_jax.{package}")
    for entry in pkgutil.iter_modules(found.__path__):
        module = importlib.import_module(f"{found.__name__}.{entry.name}")
        if hasattr(module, "make"):
            yield entry.name, module.make


FACTORIES = {
    f"{package}.{name}": make
    for package in ("data", "encoders", "methods", "evals", "views")
    for name, make in modules(package)
} | {"optimizer": optim.build, "loading": batches.loading, "views": Recipe}


def keywords(make):
    """(name, annotation) of the settings of a factory."""
    hints = typing.get_type_hints(make)
    return [
        (key, hints[key])
        for key in inspect.signature(make).parameters
        if key in hints and key not in GIVEN
    ]


def has_numbers(kind):
    return kind in (int, float) or any(map(has_numbers, typing.get_args(kind)))


# Amounts that have no upper end; a learning rate of 1e30 is how a run is made to fail.
UNBOUNDED = r"learning_rate$|^warmup_start$|weight_decay$|_norm$"


@pytest.mark.parametrize("name", FACTORIES)
def test_no_numeric_setting_takes_nonsense(name):
    """Whatever its name, and as each item of a list; a sentence names it."""
    for key, kind in keywords(FACTORIES[name]):
        if not has_numbers(kind):
            continue
        wrong = [math.nan, math.inf, -1e30]
        if not re.search(UNBOUNDED, key):
            wrong.append(1e30)
        for number in wrong:
            for value in (number, (number,), (number, number)):
                with pytest.raises(ConfigError, match=rf"section\.{key}=.*; expected "):
                    settings.check("section", FACTORIES[name], {key: value})
                    pytest.fail(f"{name}: {key}={value!r} was taken")


@pytest.mark.parametrize(
    "section, key, values",
    [
        ("data.glyphs", "rotation", (-1.0,)),
        ("data.glyphs", "slant", (-1.0,)),
        ("data.image_text", "limit", (-1,)),
        ("encoders.biggan", "down", (-1,)),
        ("evals.generation", "shown", (-1,)),
        ("evals.logistic", "c", (-1.0, 0.0)),
        ("evals.sts", "aligned", (-1.0, 2.0)),
        ("evals.svm_folds", "folds", (-1,)),
        ("evals.transfer", "strengths", ((0.0,), (-1.0, 1.0))),
        ("methods.clae", "weight", (-1.0,)),
        ("methods.clip", "max_scale", (-1.0, 0.0)),
        ("methods.contragan", "weight", (-1.0,)),
        ("methods.hcl", "beta", (-1.0,)),
        ("methods.imix", "alpha", (-1.0,)),
        ("methods.lejepa", "t_max", (-1.0, 0.0)),
        ("views", "std", ((0.0, 1.0, 1.0), (-1.0, 1.0, 1.0))),
    ],
)
def test_a_number_outside_its_range_is_refused(section, key, values):
    for value in values:
        with pytest.raises(ConfigError, match=rf"section\.{key}=.*; expected "):
            settings.check("section", FACTORIES[section], {key: value})
            pytest.fail(f"{section}: {key}={value!r} was taken")


def plain_kinds(kind):
    """The plain types among those of an annotation, and whether None is one."""
    options = typing.get_args(kind) if typing.get_origin(kind) else (kind,)
    return {option for option in options if option in WRONG}, type(None) in options


@pytest.mark.parametrize("name", FACTORIES)
def test_wrong_settings_of_every_section_are_refused_by_name(name):
    make, tried = FACTORIES[name], 0
    for key, kind in keywords(make):
        if typing.get_origin(kind) not in (None, typing.Union, type(int | None)):
            continue  # lists: below
        if any(typing.get_origin(option) for option in typing.get_args(kind)):
            continue  # a number, or one for each
        kinds, optional = plain_kinds(kind)
        wrong = [value for one in kinds for value in WRONG[one]]
        wrong = [
            value
            for value in wrong
            if not (value is None and optional)
            and not any(settings._fits(value, one) and one not in (int, float) for one in kinds)
            and not (float in kinds and value in (1.5,))
        ]
        found = settings.range_of(key)
        if found is not None and kinds & {int, float}:
            wrong.append(found.low if found.open_low else found.low - 1)
            if found.high < math.inf:
                wrong.append(found.high + 1)
        for value in wrong:
            with pytest.raises(ConfigError, match=rf"section\.{key}=.*; expected "):
                settings.check("section", make, {key: value})
                pytest.fail(f"{name}: {key}={value!r} was taken")
            tried += 1
    print(f"wrong settings refused: {tried} of {tried} ({name})")


def test_lists_are_looked_into():
    for value in (5, [0], [-3, 4], ["a"], [math.nan], None):
        with pytest.raises(ConfigError, match=r"method\.num_prototypes="):
            settings.check("method", FACTORIES["methods.pcl"], {"num_prototypes": value})
    settings.check("method", FACTORIES["methods.pcl"], {"num_prototypes": (10, 20)})


def test_sections_within_a_section_are_looked_into():
    make = FACTORIES["methods.cpc"]
    for value in (-1, [], "abc", {"degrees": "abc"}):
        with pytest.raises(ConfigError, match=r"method\.warp=.*; expected a section of settings"):
            settings.check("method", make, {"warp": value})
    for value in (None, {}, {"degrees": 10.0}, ConfigDict({"degrees": 10.0})):
        settings.check("method", make, {"warp": value})


def test_a_section_of_anything_is_one():
    """A factory outside the package may say no more than that it takes a mapping."""
    for kind in (typing.Mapping, dict, typing.Mapping[str, typing.Any]):
        for value in ({}, {"a": 1}, ConfigDict({"a": [1, "b"]})):
            settings.check_value("method.more", value, kind)
    with pytest.raises(ConfigError, match=r"method\.more=3; expected a section of settings\."):
        settings.check_value("method.more", 3, typing.Mapping)
    kind = typing.Mapping[str, float] | None
    with pytest.raises(ConfigError, match="expected a section of settings, each a number or None"):
        settings.check_value("method.warp", {"degrees": "abc"}, kind)


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(3), jnp.float32(0.5)])
def test_a_number_of_an_array_library_gets_its_mend(value):
    with pytest.raises(ConfigError, match=r"expected a number\. .* \.item\(\)"):
        settings.check_value("method.temperature", value, float)
    settings.check_value("method.temperature", value.item(), float)


def variants():
    for name in configs.names():
        source = (configs.folder() / f"{name}.py").read_text()
        words = re.findall(r'"([a-z0-9_]+)" in chosen', source)
        yield name
        yield from (f"{name}:{word}" for word in dict.fromkeys([*words, "debug"]))


@pytest.mark.parametrize("name", variants())
def test_the_settings_of_every_config_pass(name):
    config = configs.load(name)
    with config.unlocked():
        config.stage = "all" if "stage_order" in config else ""
    for _, stage, _ in stages.stages(config, "unused"):
        experiment._check_run(stage)
        plain = configs.plain(stage)
        for section, make in (
            ("data", FACTORIES[f"data.{plain['data']['name']}"]),
            ("optimizer", optim.build),
        ):
            settings.check(section, make, plain[section])
        assert optimizer_settings.without_effect(plain["optimizer"]) == {}
        run = dict(batch_size=256, steps_per_epoch=100, total_steps=10**6)
        optim.build(**plain["optimizer"], **run)
        for view in plain["views"].values():
            for make in views.factories(view.pop("kind", "image"), view):
                settings.check("view", make, view)
        for protocol, section in plain["evals"]["protocols"].items():
            name = section.pop("name", protocol)
            settings.check(protocol, FACTORIES[f"evals.{name}"], section)
        for package, section in (("methods", plain["method"]), ("encoders", plain["encoder"])):
            make = FACTORIES.get(f"{package}.{section.get('name')}")
            if make is not None:  # else of parts, or one for each role
                settings.check(package, make, section)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_default_may_be_written_down(name):
    for key, parameter in inspect.signature(FACTORIES[name]).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            settings.check("section", FACTORIES[name], {key: parameter.default})


def test_every_preset_passes():
    for name, preset in inspect.getmembers(presets, inspect.isfunction):
        if name[0] != "_" and inspect.signature(preset).return_annotation is Recipe:
            found = {
                key: value.default
                for key, value in inspect.signature(preset).parameters.items()
                if value.default is not inspect.Parameter.empty
            }
            settings.check("view", preset, found)


TRAINER = (
    ("batch_size", (0, -1, 1.5, "abc", math.nan, None)),
    ("total_epochs", (0, -1.0, math.nan, math.inf, "abc")),
    ("log_steps", (0, -1, 2.5)),
    ("checkpoint_steps", (-1, 0.5, "abc")),
    ("keep_checkpoints", (0, -1)),
    ("dispatch_steps", (-1, "abc")),
    ("devices", (-1, 1.5, "abc")),
    ("seed", (-1, 2**32, 1.5, "abc")),
    ("evals.every_epochs", (-1.0, math.nan, "abc")),
    ("evals.batch_size", (0, -1, "abc")),
    ("evals.feature", (3, None)),
    ("evals.baselines", ("yes", 2)),
    ("optimizer.learning_rate", (-1.0, math.nan, 1e39)),
    ("method.temperature", (0.0, -1.0, math.inf, "abc")),
    ("views.both.size", (0, -1, 1.5, "abc")),
    ("views.both.copies", (0, -1, 1.5)),
    ("data.fraction", (0, -0.1, 1.5, math.nan, "abc")),
    ("data.validation", (-0.1, 1.0, math.nan, "abc")),
    ("data.imbalance", (0, 0.5, -1.0, math.nan, "abc")),
)


@pytest.mark.parametrize("key, values", TRAINER, ids=[key for key, _ in TRAINER])
def test_wrong_settings_of_the_trainer_are_refused_by_the_build(key, values):
    for value in values:
        config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
        *path, last = key.split(".")
        section = config
        for part in path:
            section = section[part]
        with section.ignore_type():
            section[last] = value
        with pytest.raises(ConfigError, match=rf"{re.escape(key)}=.*; expected "):
            experiment.build(config)


def test_a_wrong_key_of_a_section_names_the_nearest():
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    config.optimizer.learning_rat = 1.0
    with pytest.raises(ConfigError, match=r"has no setting 'learning_rat'; did you mean"):
        experiment.build(config)


def test_a_setting_without_effect_of_an_older_config_does_no_harm():
    """It is printed. Where the user gives it, `stages` refuses it: tests/training/test_stages.py"""
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    config.optimizer.update(dict(name="adamw", nesterov=True))
    built = experiment.build(config)
    text = experiment.describe(config, built, experiment.shape_of_state(built))
    assert "\noptimizer.nesterov=True has no effect with name='adamw'" in text


def test_bfloat16_on_a_processor_without_instructions_for_it_is_told(monkeypatch, tmp_path):
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    built = experiment.build(config)
    state = experiment.shape_of_state(built)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")

    def told(encoder, flags):
        config.encoder = ConfigDict(encoder)
        processor.CPUINFO.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        line = experiment.describe(config, built, state).splitlines()[-1]
        return re.findall(r"--config\.(\S+)=float32", line) if "bfloat16 is slower" in line else []

    one = dict(name="a", dtype="bfloat16")
    assert told(one, "fpu avx2") == ["encoder.dtype"]
    assert "slower" not in experiment.describe(config, built, state, begins=False)  # it must stay
    assert told(dict(left=one, right=dict(name="b"), top=one), "fpu avx2") == [
        "encoder.left.dtype",
        "encoder.top.dtype",
    ]
    assert told(one, "fpu avx2 avx512_bf16") == []
    assert told(dict(name="a", dtype="float32"), "fpu avx2") == []


def test_a_pattern_is_looked_for_in_the_parameters_of_all_players():
    """ContraGAN's players have an optimiser's state each."""
    config = stages.stages(configs.load("contragan:debug"), "unused")[0][1].unlock()
    part = dict(paths=("disc",), learning_rate=4e-4)
    config.optimizer.update(dict(parts=dict(discriminator=part), exclude_paths=("^generator",)))
    experiment.shape_of_state(experiment.build(config))
    config.optimizer.parts.discriminator.paths = ("dics",)
    built = experiment.build(config)
    with pytest.raises(ConfigError, match="contains 'dics'; the paths begin discriminator/"):
        experiment.shape_of_state(built)


def outside(monkeypatch, **functions):
    """Makes the functions the `make` of modules lab.NAME."""
    monkeypatch.setitem(sys.modules, "lab", types.ModuleType("lab"))
    for name, make in functions.items():
        module = types.ModuleType(f"lab.{name}")
        module.make = make
        monkeypatch.setitem(sys.modules, f"lab.{name}", module)


def two_players(*, encoder, tx, views, run):
    """A method whose optimiser has two players as a pair, which the State keeps under a name."""

    def init(key, batch):
        pair = {"encoder": jnp.ones(2)}, {"encoder": jnp.ones(2)}
        return State(jnp.zeros((), jnp.int32), {"players": pair}, tx.init(pair), {})

    return Method(init, lambda state, batch, key: (state, {}), {}, ("image",), features=len)


def test_a_pattern_may_begin_where_the_optimiser_s_paths_do(monkeypatch):
    outside(monkeypatch, mine=two_players)
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    config.method = ConfigDict(dict(name="lab.mine"))
    config.optimizer.exclude_paths = ("^0/encoder",)
    experiment.shape_of_state(experiment.build(config))
    config.optimizer.exclude_paths = ("^2/encoder",)
    with pytest.raises(
        ConfigError, match=r"contains '\^2/encoder'; the paths begin 0/encoder, 1/e"
    ):
        experiment.shape_of_state(experiment.build(config))


def test_an_encoder_s_factory_of_any_keywords_is_given_the_axis(monkeypatch):
    outside(monkeypatch, wide=lambda **section: resnet.make(width=2, **section))
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    config.encoder = ConfigDict(dict(name="lab.wide"))
    assert experiment.build(config).encoder.axis_name == AXIS


class Bare(nn.Module):
    """An encoder without a dtype."""

    @nn.compact
    def __call__(self, x, train):
        return {"h": nn.Dense(4)(x.reshape(len(x), -1))}


def test_an_encoder_without_dtype_is_refused_where_the_method_reads_it(monkeypatch):
    outside(monkeypatch, bare=lambda: Bare(), players=two_players)
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    config.encoder = ConfigDict(dict(name="lab.bare"))
    with pytest.raises(ConfigError, match=r"Bare has no dtype, which the method gives its heads"):
        experiment.build(config)
    config.method = ConfigDict(dict(name="lab.players"))
    experiment.build(config)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("feature", "hh", r"reads the feature 'hh'.*did you mean 'h'"),
        ("best", "knn/top2", r"evals\.best='knn/top2' is not measured; did you mean"),
        ("knn_k", 5, r"evals has no setting 'knn_k'"),
        ("protocols.logistic.feature", "zz", r"reads the feature 'zz'"),
        ("protocols.sts.sources", ("gold",), r"sts reads the further source of the data 'gold'"),
    ],
)
def test_what_evaluators_lack_is_refused_by_the_build(key, value, words):
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    *path, last = key.split(".")
    section = config.evals
    for part in path:
        if part not in section:
            section[part] = {}
        section = section[part]
    section[last] = value
    with pytest.raises(ConfigError, match=words):
        experiment.build(config)


@pytest.mark.parametrize(
    "value, kind, mend",
    [
        ("a, b", typing.Sequence[str], r"Write it as \['a', 'b'\], on a command line in quotation"),
        (pathlib.Path("/x"), str, r"write this one as its str\(\)"),
        (np.ones(3), typing.Sequence[float], r"write this one as its \.tolist\(\)"),
    ],
)
def test_values_of_another_type_say_how_they_are_written(value, kind, mend):
    with pytest.raises(ConfigError, match=f"columns=.*; expected .*{mend}"):
        settings.check_value("data.columns", value, kind)


def test_a_key_at_the_top_that_nothing_reads_is_refused():
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    config.batchsize = 32
    with pytest.raises(ConfigError, match=r"has no setting 'batchsize'; did you mean 'batch_size'"):
        experiment.build(config)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("simclr_v1", r"method\.base='simclr_v1'; expected a section"),
        (
            dict(name="population", base=dict(name="simclr_v1"), over=dict(seed=(0, 1))),
            r"method\.base\.name='population' is made of whole methods",
        ),
    ],
)
def test_a_cross_changes_a_section_of_one_method(base, words):
    config = stages.stages(configs.load("simclr_v1:debug"), "unused")[0][1].unlock()
    config.method = dict(name="imix", base=base)
    with pytest.raises(ConfigError, match=words):
        experiment.build(config)


def test_a_number_of_a_vmapped_population_is_a_number():
    """Its members differ in numbers that are traced; other types are refused as ever."""

    def make(*, weight: float, steps: int) -> None: ...

    def checked(value):
        settings.check("method", make, {"weight": value})
        return value

    assert jax.vmap(checked)(jnp.ones(2)).shape == (2,)

    def wrong(value):
        settings.check("method", make, {"steps": value})
        return value

    with pytest.raises(ValueError, match="expected a whole number"):
        jax.vmap(wrong)(jnp.ones(2))


@pytest.mark.parametrize(
    "name, path, value, other",
    [
        ("simclr_v1:debug", "views.both.quarter_turns", False, True),
        ("simclr_v1:debug", "views.both.brightness", 0.4, 0.8),
        ("simclr_v1:debug", "data.validation", 0.0, 0.2),
        ("simclr_v1:debug", "encoder.sk_ratio", 0.0, 0.0625),
        ("clip:debug", "encoder.image.sk_ratio", 0.0, 0.0625),
        ("graphcl:debug", "optimizer.b1", 0.9, 0.5),
        ("imix:debug", "method.base.micro_batches", 1, 2),
        ("temperature:debug", "method.base.base.micro_batches", 1, 2),
        ("simclr_v1:debug", "steps_per_epoch", 0, 3),
    ],
)
def test_a_key_that_a_run_did_not_list_is_its_default(name, path, value, other):
    """So that a config of a later version, with more keys, resumes the run of an older one."""
    config = stages.stages(configs.load(name), "unused")[0][1].unlock()
    before = configs.plain(config)
    *sections, key = path.split(".")
    section = config
    for one in sections:
        section = section[one]
    assert key not in section
    for given, changes in ((value, []), (other, [path])):
        section[key] = given
        changed, _ = resuming.differences(before, configs.plain(config), experiment.leeway(config))
        assert [line.split(":")[0].strip() for line in changed] == changes


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("simcse:debug", "sts", "other.tsv"),
        ("simcse:debug", "classify", "tasks/"),
        ("cpc_text:debug", "classify", "tasks/"),
        ("clip:debug", "templates", ("a {}",)),
    ],
)
def test_data_that_only_evaluators_read_may_be_others(name, key, value):
    config = stages.stages(configs.load(name), "unused")[0][1].unlock()
    before = configs.plain(config)
    config.data[key] = value
    leeway = experiment.leeway(config)
    changed, noted = resuming.differences(before, configs.plain(config), leeway)
    assert not changed and noted[0].startswith(f"  data.{key}: ")
    config.data["length"] = 7
    changed, _ = resuming.differences(before, configs.plain(config), leeway)
    assert changed[0].startswith("  data.length: ")
