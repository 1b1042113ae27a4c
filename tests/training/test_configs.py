"""Configs are found by path, name and module from any folder; settings keep their types."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.training import configs

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("text", ["simclr_v2:folder", "configs/simclr_v2.py:folder"])
def test_a_config_of_the_package_from_any_folder(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.load(text)
    assert config.method.name == "simclr_v2" and config.data.name == "folder"


def test_every_config_loads_where_no_checkout_is(tmp_path):
    """As in a wheel: no package `configs` can be imported."""
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.modules['configs'] = None\n"
            "from cl_jax.training import configs\n"
            "for name in configs.names(): configs.load(f'{name}:debug')\n"
            "print(len(configs.names()))",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 18


def test_a_file_and_a_module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "mine.py").write_text(
        "from cl_jax.training import defaults\n"
        "def get_config(variants=None):\n"
        "    config = defaults.get_config()\n"
        "    config.seed = len(defaults.variants(variants, ('a', 'b')))\n"
        "    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    for name in ("lab.mine", "lab/mine.py", str(tmp_path / "lab" / "mine.py")):
        assert configs.load(name).seed == 0 and configs.load(f"{name}:a,b").seed == 2
    with pytest.raises(ValueError, match="variant 'c' of this config is unknown; have a, b"):
        configs.load("lab.mine:c")


BEGIN = "from cl_jax.training import defaults\ndef get_config(variants=None):\n    "


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:\n", r"config mine.py, line 1: invalid syntax: def get_config\(:"),
        (BEGIN + "return None", "returned NoneType; expected a ConfigDict: begin with that of"),
        (BEGIN + "return {'seed': 0, 'data': {}}", "lacks batch_size, .*: begin with"),
        (BEGIN + "c = defaults.get_config(); del c.optimizer; return c", "lacks optimizer: begin"),
    ],
)
def test_a_file_that_is_no_config(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(text)
    with pytest.raises(ConfigError, match=words):
        configs.load("mine.py")
    with pytest.raises(ConfigError, match="'mine' is not one of the package; did you mean mine"):
        configs.load("mine")
    Path("config.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not end in"):
        configs.load("./config.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("simclrv2", "config 'simclrv2' does not exist; did you mean 'simclr_v2'"),
        ("configs/simclr_v3.py", "configs/simclr_v3.py does not exist; did you mean"),
        ("no_lab.mine", "config 'no_lab.mine' does not exist"),
        ("os.path", "'os.path' has no function get_config"),
        (".", "config '.' does not exist"),
        ("~nobody-of-that-name/a.py", "begins with a home directory that is not known"),
    ],
)
def test_a_config_that_is_not_there(text, words):
    with pytest.raises(ValueError, match=words):
        configs.load(text)


def test_settings_are_taken_out_of_a_command_line():
    words = "a --config.x=1=2 --b --config.y 3 --config.z --noconfig.w --c d --config.last"
    settings, others = configs.take_settings(words.split())
    assert others == ["a", "--b", "--c", "d"]
    assert settings == [("x", "1=2"), ("y", "3"), ("z", None), ("w", "false"), ("last", None)]


def base() -> ConfigDict:
    return ConfigDict(
        dict(
            seed=0,
            epochs=1.0,
            sure=False,
            name="a",
            pair=(0.2, 1.0),
            words=("a",),
            data=dict(name="folder", path=""),
            evals=dict(knn_k=5, protocols=dict(knn=dict(k=1))),
            stages=dict(tune=dict(data=dict(fraction=0.1))),
        )
    ).lock()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "3", 3),
        ("epochs", "2", 2.0),
        ("sure", None, True),
        ("sure", "1", True),
        ("name", "1", "1"),
        ("pair", "0.1,2", (0.1, 2)),
        ("pair", "(0.1, 2.0)", (0.1, 2.0)),
        ("words", "b", ("b",)),
        ("words", "b,c", ("b", "c")),
        ("data.path", "1/2", "1/2"),
        ("data.channels", "1", 1),
        ("data.labels", "false", False),
        ("data.root", "some/path", "some/path"),
        ("evals.protocols.knn.temperature", "0.1", 0.1),
        ("evals.protocols.mine.name", "lab.mine", "lab.mine"),
        ("stages.tune.data.channels", "3", 3),
        ("stages.tune.epochs", "4.0", 4.0),
        ("evals.protocols.knn.k", "None", None),  # of keywords; whether it may be, others say
        ("data.path", "None", "None"),
    ],
)
def test_values_have_the_type_of_what_they_replace(key, text, value):
    config = base()
    configs.change(config, [(key, text)])
    for name in key.split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("seeds", "1", "no 'seeds' there; did you mean 'seed'"),
        ("evals.knn", "1", "no 'knn' there; did you mean 'knn_k'"),
        ("seed", "1.5", r"--config.seed=1.5: expected a whole number"),
        ("seed", "None", r"--config.seed=None: expected a whole number"),
        ("epochs", "x", "expected a number"),
        ("sure", "maybe", "expected true or false"),
        ("data", "x", "is a section; set one of its keys: name, path"),
        ("seed.a", "1", "seed is 0, not a section"),
        ("probes.a", "1", "no 'probes' there"),
    ],
)
def test_a_setting_that_cannot_be_names_what_can(key, text, words):
    with pytest.raises(ValueError, match=words):
        configs.change(base(), [(key, text)])
