"""Programs that are kept on disk: the same bits as traced ones, under a key of all that a trace
reads, and none where that cannot be known."""

import functools
import operator
import os
import subprocess
import sys
import time

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.core.method import Run
from cl_jax.core.parallel import SAME
from cl_jax.training import configs, loop, programs
from cl_jax.training.experiment import Start
from cl_jax.training.programs import Asked, Refused
from tests import small

SETTINGS = {"seed": 0, "batch_size": 4, "total_epochs": 2.0}
CONFIG = ConfigDict(SETTINGS)
RUN = Run(None, 4, size=16, steps_per_epoch=4, total_steps=8, sizes={"label": 2})
X = np.arange(4, dtype=np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache of jax's, and what is kept beside it."""
    monkeypatch.setenv("CL_JAX_KEEP_PROGRAMS", "1")
    monkeypatch.setattr(programs, "_config_files", list)  # the tests' own
    changed = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    for values in (changed, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is changed:
            yield tmp_path / "programs"


def lifted(function):
    return parallel.lift(function, parallel.make_mesh(1), (SAME,), SAME)


def placed(x=X):
    return (parallel.replicate(x, parallel.make_mesh(1)),)


def adding(constant=1.0):
    return lifted(functools.partial(lax.add, np.full(4, constant, np.float32)))


def untraceable():
    return object()


def names(folder):
    return sorted(path.suffix for path in folder.glob("*"))


def test_a_second_start_reads_the_program_without_tracing_it(folder):
    first = programs.compiled("one", adding(), placed(), CONFIG, RUN)
    second = programs.compiled("one", untraceable(), placed(), CONFIG, RUN)
    assert names(folder) == [".key", ".program"]
    np.testing.assert_array_equal(first(*placed()), second(*placed()))
    np.testing.assert_array_equal(second(*placed()), X + 1)


@pytest.mark.parametrize(
    "name, config, run",
    [
        ("many", CONFIG, RUN),
        ("one", ConfigDict({**SETTINGS, "batch_size": 8}), RUN),
        ("one", ConfigDict({**SETTINGS, "batch_size": 4.0}), RUN),
        ("one", ConfigDict({"total_epochs": 2.0, "batch_size": 4}), RUN),
        ("one", CONFIG, RUN._replace(total_steps=3)),
        ("one", CONFIG, RUN._replace(sizes={"label": 3})),
    ],
    ids=["name", "value", "type", "order", "steps", "sizes"],
)
def test_another_program_has_another_key(folder, name, config, run):
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    with pytest.raises(AttributeError, match="trace"):
        programs.compiled(name, untraceable(), placed(), config, run)
    found = programs.compiled(name, adding(2.0), placed(), config, run)
    np.testing.assert_array_equal(found(*placed()), X + 2)


def test_the_libraries_are_looked_through_once_a_process(folder, monkeypatch):
    walked, installed = [], programs._installed
    monkeypatch.setattr(programs, "_installed", lambda: walked.append(1) or installed())
    for name in ("one", "many"):
        programs.compiled(name, adding(), placed(), CONFIG, RUN)
    assert names(folder).count(".key") == 2 and len(walked) <= 1


@pytest.mark.parametrize("x", [X.astype(np.int32), X[:2]], ids=["type", "shape"])
def test_other_arguments_have_another_key(folder, x):
    programs.compiled("one", lifted(lax.neg), placed(), CONFIG, RUN)
    found = programs.compiled("one", lifted(lax.neg), placed(x), CONFIG, RUN)
    np.testing.assert_array_equal(found(*placed(x)), -x)


def test_what_no_step_reads_is_not_in_the_key(folder):
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    other = ConfigDict({**SETTINGS, "seed": 1, "log_steps": 3, "evals": {"every_epochs": 9.0}})
    programs.compiled("one", untraceable(), placed(), other, RUN)


def test_a_program_that_another_config_led_to_is_traced_and_not_compiled(folder):
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    other = ConfigDict({**SETTINGS, "batch_size": 8})
    with programs._compilations() as seen:
        found = programs.compiled("one", adding(), placed(), other, RUN)
    assert not any(seen.values())
    np.testing.assert_array_equal(found(*placed()), X + 1)
    programs.compiled("one", untraceable(), placed(), other, RUN)


def test_the_same_text_of_another_argument_is_another_program(folder):
    """A lowered function's text lacks the arguments that it does not read."""
    mesh = parallel.make_mesh(1)
    both = {"a": X, "b": X + 9}
    given = (parallel.replicate(both, mesh),)
    for name in both:
        function = lifted(operator.itemgetter(name))
        found = programs.compiled(name, function, given, CONFIG, RUN)
        np.testing.assert_array_equal(found(*given), both[name])
        assert ".program" in names(folder)


def test_a_result_of_weak_type_is_another_program(folder):
    """Its text is that of a strong one, and what reads it promotes it otherwise."""
    for weak in (False, True):
        function = functools.partial(
            lax.full_like, fill_value=1.0, dtype=None if weak else "float32"
        )
        x = jax.device_put(jnp.asarray(2.0), NamedSharding(parallel.make_mesh(1), SAME))
        found = programs.compiled(f"{weak}", lifted(function), (x,), CONFIG, RUN)
        assert found(x).weak_type == weak
        assert ".program" in names(folder)


def test_a_program_from_the_cache_of_jax_is_not_kept(folder):
    """Written again, XLA's CPU programs lack functions, and a third start would fail."""
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    for path in folder.iterdir():
        path.unlink()
    jax.clear_caches()
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    assert names(folder) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda old: b"",
        lambda old: old[:-9],
        lambda old: old[:99] + b"?" + old[100:],
        lambda _: b"x",
    ],
    ids=["empty", "truncated", "changed", "foreign"],
)
@pytest.mark.parametrize("kind", ["program", "key"])
def test_a_damaged_file_is_as_none(folder, kind, damage):
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    (path,) = folder.glob(f"*.{kind}")
    content = path.read_bytes()
    path.write_bytes(damage(content) if kind == "program" else damage(content + b"0" * 64)[:64])
    found = programs.compiled("one", adding(), placed(), CONFIG, RUN)
    np.testing.assert_array_equal(found(*placed()), X + 1)


def test_a_file_of_another_name_is_damaged(folder):
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    (path,) = folder.glob("*.program")
    moved = path.rename(path.with_name("0" * 64 + ".program"))
    assert programs._read(moved, placed()) is None


def test_a_key_in_another_ones_place_is_damaged(folder):
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    (key,) = folder.glob("*.key")
    programs.compiled("two", adding(2.0), placed(), CONFIG, RUN)
    (other,) = set(folder.glob("*.key")) - {key}
    other.write_bytes(key.read_bytes())
    found = programs.compiled("two", adding(2.0), placed(), CONFIG, RUN)
    np.testing.assert_array_equal(found(*placed()), X + 2)


def test_one_setting_turns_it_off(folder, monkeypatch):
    monkeypatch.setenv("CL_JAX_KEEP_PROGRAMS", "0")
    programs.compiled("one", adding(), placed(), CONFIG, RUN)
    assert names(folder) == []


def test_a_folder_that_cannot_be_written_changes_nothing(folder):
    folder.write_text("a file in its place")
    found = programs.compiled("one", adding(), placed(), CONFIG, RUN)
    np.testing.assert_array_equal(found(*placed()), X + 1)


def test_old_programs_are_deleted(folder, monkeypatch):
    monkeypatch.setattr(programs, "FILES", 2)
    for constant in range(4):
        programs.compiled(str(constant), adding(float(constant)), placed(), CONFIG, RUN)
    assert names(folder).count(".program") == 2
    programs.compiled("3", untraceable(), placed(), CONFIG, RUN)


def test_labels_that_a_run_was_built_from_are_in_the_key(folder):
    """As the budget of a graph's view."""
    labels = [np.array([0, 1]), np.array([0, 1]), np.array([0, 2])]
    runs = [RUN._replace(labels=Asked(lambda field, found=found: found)) for found in labels]
    for run in runs:
        run.labels("label")
    programs.compiled("one", adding(), placed(), CONFIG, runs[0])
    programs.compiled("one", untraceable(), placed(), CONFIG, runs[1])
    with pytest.raises(AttributeError, match="trace"):
        programs.compiled("one", untraceable(), placed(), CONFIG, runs[2])


def test_a_program_whose_trace_read_the_labels_is_not_found_again(folder):
    """The next start would not know them before its own trace."""
    run = RUN._replace(labels=Asked(lambda field: X))

    def scaled(x):
        return x * run.labels("label").sum()

    programs.compiled("one", lifted(scaled), placed(), CONFIG, run)
    assert names(folder) == [".program"]


@pytest.mark.parametrize(
    "run, method, refusal",
    [
        ({"previous": object()}, {}, "a stage after another"),
        ({"labels": lambda field: X}, {}, "labels"),
        ({}, {"name": "tests.training.test_programs"}, "the module tests.training"),
        ({}, {"name": "simcse", "weights": __file__}, "the file /"),
        ({}, {"values": (1, {2})}, "method has a set"),
    ],
    ids=["stage", "labels", "module", "file", "value"],
)
def test_what_is_built_from_more_than_its_config_is_not_kept(folder, run, method, refusal):
    config, run = ConfigDict({**SETTINGS, "method": method}), RUN._replace(**run)
    with pytest.raises(Refused, match=refusal):
        programs._facts(config, run)
    found = programs.compiled("one", adding(), placed(), config, run)
    np.testing.assert_array_equal(found(*placed()), X + 1)
    assert names(folder) == []


def test_files_and_words_of_the_data_do_not_keep_it_from_being_kept(folder):
    data = {"name": "folder", "path": str(folder.parent), "kind": "random", "format": "..."}
    programs.compiled("one", adding(), placed(), ConfigDict({**SETTINGS, "data": data}), RUN)
    assert names(folder) == [".key", ".program"]


def test_sources_count_by_their_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_roots", lambda: {programs.PACKAGE: f"{tmp_path}/"})
    file = tmp_path / "method.py"
    file.write_text("TEMPERATURE = 0.1")
    with pytest.raises(Refused, match="changed after this process began"):
        programs._sources()
    monkeypatch.setattr(programs, "_began", lambda: float("inf"))
    before = programs._sources()
    file.write_text("TEMPERATURE = 0.2")
    assert programs._sources() != before


CODE = """
import sys
from cl_jax.training import configs, programs
from configs import simclr_v2

found = programs._config_files()
print(found)
for file in sys.argv[1:]:
    configs._module(file)
    more = programs._config_files()
    print(*more[len(found):])
    found = more
import mine
try:
    programs._config_files()
except programs.Refused as refused:
    print(refused)
"""


def test_config_files_of_the_users_count_by_contents_and_with_other_code_nothing_is_kept(tmp_path):
    """A config file may hold more than values."""
    with pytest.raises(Refused, match="the module "):  # of the tests
        programs._config_files()
    texts = ("def get_config(): pass", "def get_config(): return 1", "def get_config(): pass")
    files = [tmp_path / f"config{number}.py" for number in range(len(texts))]
    for file, text in zip((*files, tmp_path / "mine.py"), (*texts, "")):
        file.write_text(text)
    time.sleep(0.1)  # a file that is no older than the process is refused
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, files)],
        env=os.environ | {"PYTHONPATH": f"{os.getcwd()}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=True,
    )
    package, *found, refused = done.stdout.splitlines()
    assert package == "[]" and f"the module mine of {tmp_path / 'mine.py'}" in refused
    named, (first, second, third) = zip(*map(str.split, found))
    assert [*named] == [*map(str, files)] and first == third != second


@pytest.mark.parametrize("name", ["NPROC", "PJRT_NPROC", "XLA_FLAGS"])
def test_what_the_compiler_reads_of_the_environment_is_in_the_key(monkeypatch, name):
    before = programs._machine()
    monkeypatch.setenv(name, "3")
    assert programs._machine() != before


def test_settings_of_jax_are_in_the_key_those_of_a_context_too():
    before = programs._machine()
    with jax.default_matmul_precision("float32"):
        assert programs._machine() != before
    assert programs._machine() == before


@pytest.fixture(scope="module")
def config():
    return loop.stages(configs.load("simclr_v1:debug"), "unused")[0][1]


def tiny(config):
    """One layer, in the place of the config's network."""
    return small.built(config.devices)


@pytest.fixture(scope="module")
def moco():
    """With a queue and a momentum network."""
    config = configs.load("configs/moco_v2.py:table,debug")
    config.encoder.update({"widths": (8,), "out_dim": 8})
    return loop.stages(config, "unused")[0][1]


def started(config, build):
    """All numbers of three steps, and the functions that were lowered for them."""
    lowered = list[str]()

    def listen(event, duration, **facts):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            lowered.append(facts["fun_name"])

    built = build(config)
    jax.monitoring.register_event_duration_secs_listener(listen)
    state = Start(built, config)()
    steps = loop.stepper(built, config, 0)
    found = []
    for _ in range(3):
        before = state
        state, values = steps(state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params)), "not donated"
        found.append(jax.tree.map(np.array, parallel.fetch((state, values))))
    again = parallel.fetch(steps.again(state, 1))
    jax.monitoring.unregister_event_duration_listener(listen)
    return (found, again, steps.flops, steps.temporary_bytes), " ".join(lowered)


@pytest.mark.parametrize("of", ["tiny", pytest.param("moco", marks=pytest.mark.slow)])
def test_a_run_from_kept_programs_has_the_bits_of_a_traced_one(folder, of, config, moco):
    config, build = (config, tiny) if of == "tiny" else (moco, loop.build)
    config = ConfigDict({**config, "devices": 2})
    traced, lowered = started(config, build)
    assert "indexed" in lowered and names(folder) == [".key", ".key", ".program", ".program"]
    read, lowered = started(config, build)
    assert "indexed" not in lowered
    jax.tree.map(np.testing.assert_array_equal, traced, read)


@pytest.mark.slow
def test_a_run_that_keeps_its_programs_has_the_bits_of_one_that_does_not(folder, moco, monkeypatch):
    config = ConfigDict({**moco, "devices": 2})
    with monkeypatch.context() as off:
        off.setenv("CL_JAX_KEEP_PROGRAMS", "0")
        traced, lowered = started(config, loop.build)
    assert "indexed" in lowered and names(folder) == []
    compilation_cache.reset_cache()
    for path in folder.parent.iterdir():  # of jax
        path.unlink()
    kept, lowered = started(config, loop.build)
    assert "indexed" in lowered and len(names(folder)) == 4
    jax.tree.map(np.testing.assert_array_equal, traced, kept)


def test_a_state_that_is_placed_otherwise_is_stepped_too(folder, config):
    """As jit does it: a program takes the placement of its first arguments alone."""
    found = []
    for placement in (None, jax.devices()[0]):
        built = small.built(1)
        steps = loop.stepper(built, config, 0)
        state, _ = steps(Start(built, config)())
        if placement is not None:
            state = jax.device_put(jax.tree.map(np.asarray, state), placement)
        found.append(parallel.fetch(steps(state)))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_large_constant_counts_by_every_number():
    """The text of a lowered program holds it whole."""
    found = []
    for last in (0.0, 1e-30):
        constant = np.zeros(100_000, np.float32)
        constant[50_000] = last
        found.append(lifted(functools.partial(lax.add, constant)).lower(*placed(constant)))
    assert found[0].as_text() != found[1].as_text()
