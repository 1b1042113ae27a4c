"""Configs are found by path, name and module from any folder; settings keep their types."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.encoders import encoder_decoder
from cl_jax.training import configs, defaults, experiment, optim, stages

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
            views=dict(both=dict(name="moco")),
            encoder=dict(image=dict(depth=10), text=dict(depth=2)),
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
        ("evals.protocols.linear", "True", r"linear=True: linear would be a section"),
        ("evals.protocols.linear", "dict()", "give it no value for its defaults"),
        ("evals.protocols.kn", "None", "no 'kn' there; did you mean 'knn'"),
        ("stages.tune.evals.protocols.kn", "None", "no 'kn' there; did you mean 'knn'"),
        ("stages.tun.evals.protocols.knn", "None", "no 'tun' there; did you mean 'tune'"),
        ("stages.tune.more.evals.protocols.knn", "None", "no 'more' there"),
        ("evals.protocols.knn", "1", "is a section; set one of its keys: k"),
        ("views.second", "simclr", r"set one of its keys, --config.views.second.KEY=VALUE"),
        ("encoder.depth", "18", r"depth would be a section of encoder, beside image, text; set"),
    ],
)
def test_a_setting_that_cannot_be_names_what_can(key, text, words):
    with pytest.raises(ValueError, match=words):
        configs.change(base(), [(key, text)])


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("evals.protocols.linear", None, {}),  # an evaluator with its defaults
        ("evals.protocols.linear", "{}", {}),
        ("evals.protocols.linear", "{'k': 2}", {"k": 2}),
        ("evals.protocols.knn", None, {"k": 1}),
        ("views.second", "{'name': 'simclr'}", {"name": "simclr"}),
    ],
)
def test_a_section_without_a_value_has_its_defaults(key, text, value):
    config = base()
    configs.change(config, [(key, text)])
    for name in key.split("."):
        config = config[name]
    assert config.to_dict() == value


@pytest.mark.parametrize("path", ["views.second", "encoder.image", "evals.protocols.knn"])
def test_what_is_no_section_is_refused_before_anything_is_built(path):
    config = defaults.get_config()
    del config.encoder["name"]
    *parents, key = path.split(".")
    section = functools.reduce(getattr, parents, config)
    with section.ignore_type():
        section[key] = True
    for role in set(config.encoder) - {key}:
        del config.encoder[role]
    with pytest.raises(ConfigError, match=rf"{path}=True; expected a section"):
        experiment.build(config)


def test_an_evaluator_is_left_out_of_all_stages():
    config = base()
    with config.unlocked():
        config.stages.tune.evals = ConfigDict(dict(protocols=dict(knn=dict(k=2), own=dict())))
    configs.change(config, [("evals.protocols.knn", "None"), ("evals.protocols.own", "None")])
    assert not config.evals.protocols and not config.stages.tune.evals.protocols


@pytest.mark.parametrize("changes", [{}, dict(evals=dict(protocols=dict(knn=dict(k=2), own={})))])
@pytest.mark.parametrize("more", [[], [("evals.protocols.knn.k", "3")]])
def test_an_evaluator_of_all_stages_is_left_out_of_one(changes, more, tmp_path):
    config = ConfigDict(configs.plain(base()))
    config.update(dict(stage="all", stage_order=("first", "tune")))
    config.stages.first, config.stages.tune = ConfigDict(), ConfigDict(changes)
    settings = [("stages.tune.evals.protocols.knn", "None"), *more]
    configs.change(config, settings)
    keys = [key for key, _ in settings]
    (_, first, _), (_, tune, _) = stages.stages(config, tmp_path, keys)
    assert first.evals.protocols.to_dict() == dict(knn=dict(k=3 if more else 1))
    assert tune.evals.protocols.to_dict() == (dict(own={}) if changes else {})
    again = "stages.tune.evals.protocols.knn.k"
    configs.change(config, [(again, "5")])
    _, (_, tune, _) = stages.stages(config, tmp_path, [*keys, again])
    assert tune.evals.protocols.knn.k == 5


def test_an_evaluator_that_a_file_leaves_out_of_a_stage_is_one_that_there_is(tmp_path):
    config = ConfigDict(configs.plain(base()))
    config.update(dict(stage="", stage_order=("tune",)))
    config.stages.tune = ConfigDict(dict(evals=dict(protocols=dict(kn=None))))
    with pytest.raises(ConfigError, match=r"tune\.evals\.protocols\.kn=None .*did you mean 'knn'"):
        stages.stages(config, tmp_path)


def test_an_evaluator_that_is_named_keeps_what_a_stage_changes_in_it(tmp_path):
    config = ConfigDict(configs.plain(base()))
    config.update(dict(stage="all", stage_order=("tune",)))
    config.stages.tune.evals = ConfigDict(dict(protocols=dict(knn=dict(k=2), own=dict(k=3))))
    keys = ["evals.protocols.knn", "evals.protocols.own"]
    configs.change(config, [(key, None) for key in keys])
    ((_, found, _),) = stages.stages(config, tmp_path, keys)
    assert found.evals.protocols.to_dict() == dict(knn=dict(k=2), own=dict(k=3))


# What the authors' commands say and a default could hide --------------------------------------


@pytest.mark.parametrize(
    "text, settings",
    [
        (
            "dino:imagenet2012_resnet50",  # 8 GPUs of 64; what the command leaves at its default
            {"batch_size": 512, "views.c_local.copies": 8, "optimizer.clip_tensor_norm": 3.0},
        ),
        (
            "crd:cifar100",
            {"stages.kd.method.label_weight": 0.1, "stages.kd.method.kd_weight": 0.9},
        ),
        ("crd:cifar100", {"stages.crd_kd.method.kd_weight": 1.0}),
        (
            "crd:cifar100,resnet32x4",  # CIFAR-100's statistics of pixels, and whole test images
            {"views.one.test_crop": 1.0, "views.one.mean": (0.5071, 0.4867, 0.4408)}
            | {"views.one.std": (0.2675, 0.2565, 0.2761)},
        ),
        ("supcon:cifar100", {"views.both.std": (0.2675, 0.2565, 0.2761)}),
        ("supcon:cifar100", {"stages.linear.views.one.mean": (0.5071, 0.4867, 0.4408)}),
        ("supcon:cifar10", {"views.both.scale": (0.2, 1.0), "views.both.copies": 2}),
        # solo-learn's pixels and crops
        *(
            (
                f"{name}:cifar10",
                {f"views.{view}.interpolation": "bicubic"}
                | {f"views.{view}.std": (0.2470, 0.2435, 0.2616)},
            )
            for name, view in (("barlow", "a"), ("barlow", "b"), ("nnclr", "b"), ("vicreg", "both"))
        ),
        ("simsiam:cifar10,fastsiam", {"views.both.mean": (0.485, 0.456, 0.406)}),
        # what the other stage, fine-tuning, does
        ("mae:imagenet2012,simmim", {"encoder.drop_path": 0.1}),
        ("mae:imagenet2012,simmim", {"stages.scratch.encoder.drop_path": 0.0}),
        # the centre of the resized picture, which the data have cut already
        ("clip:folder", {"views.image.test_crop": 1.0}),
        ("clip:vit_b32", {"views.image.test_crop": 1.0}),
        ("ibot:imagenet2012,dinov2", {"method.smallest_block": 4}),
        ("contragan:cifar10", {"optimizer.eps": 1e-6, "optimizer.b1": 0.5}),
        # several evaluations in the one epoch: `evals.best` chooses among them
        ("simcse:bert", {"total_epochs": 1.0, "evals.every_epochs": 0.1}),
        ("clae:cifar10", {"views.both.family": "tv", "encoder.kernel_init": "torch"}),
        ("clae:cifar10,plain", {"encoder.variant": "torchvision", "encoder.kernel_init": "torch"}),
        (
            "clae:cifar10,plain",
            {
                "method.base.base.head": "linear",
                "method.base.temperature": 0.1,
                "evals.feature": "z",
            },
        ),
    ],
)
def test_published_settings(text, settings):
    config = configs.load(text)
    for path, value in settings.items():
        found = config
        for part in path.split("."):
            found = found[part]
        assert found == value, path


@pytest.mark.parametrize(
    "text",
    ["simcse:file,debug", "cpc_audio:folder,debug", "cmc_video:folder,debug"]
    + ["support_set:folder,debug"]
    + [f"{name}:audio,debug" for name in ("imix", "simclr_v1", "moco_v2", "byol")],
)
def test_a_trial_reads_few_of_ones_own_data(text):
    data = configs.load(text).data
    assert data.limit == 64
    if ":audio" in text:  # --config.data.name=audio takes every key of the section
        assert "train_size" not in data and "test_size" not in data


@pytest.mark.parametrize(
    "text, second",
    [("wmse:cifar10", 3e-3 / 500), ("mae:imagenet2012,simmim", 1e-4 * 4 / 10)],
)
def test_a_warm_up_starts_at_0(text, second):
    """As these configs say among their differences from the authors' code."""
    config = configs.load(text)
    of_run = dict(batch_size=config.batch_size, steps_per_epoch=1, total_steps=1000)
    _, rate = optim.build(**config.optimizer.to_dict(), **of_run)
    assert [float(rate(0)), float(rate(1))] == pytest.approx([0.0, second], rel=1e-5)


def test_invaspread_has_the_authors_head_wherever_z_is_evaluated():
    for text in ("invaspread:cifar10", "invaspread:imagenet2012"):
        config = configs.load(text)
        assert config.evals.feature == "z" and config.method.head == "linear", text


def test_barlow_twins_moves_biases_and_norms_at_a_rate_of_their_own():
    """Two updates in the warm-up of ten steps by the same gradient; the first is at a rate of 0."""
    config = configs.load("barlow:imagenet2012")
    tx, rate = optim.build(
        **config.optimizer.to_dict(),
        batch_size=config.batch_size,
        steps_per_epoch=1,
        total_steps=1000,
    )
    w, g = np.array([[3.0, 4.0]]), np.array([[0.6, -0.8]])
    vector = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    params = {"encoder": {"conv1": {"kernel": jnp.asarray(w, jnp.float32)}, "norm1": vector}}
    grads = {"encoder": {"conv1": {"kernel": g}, "norm1": {"scale": g[0], "bias": g[0]}}}
    grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads)
    state = tx.init(params)
    _, state = tx.update(grads, state, params)
    moved = tx.update(grads, state, params)[0]["encoder"]
    scale = 2048 / 256 / 10
    decayed = g + 1e-6 * w
    adapted = 1e-3 * np.linalg.norm(w) / np.linalg.norm(decayed) * decayed
    np.testing.assert_allclose(moved["conv1"]["kernel"], -0.2 * scale * 1.9 * adapted, rtol=1e-5)
    for leaf in moved["norm1"].values():
        np.testing.assert_allclose(leaf, -0.0048 / 16 * scale * 1.9 * g[0], rtol=1e-5)
    np.testing.assert_allclose(rate(1), 0.2 * scale, rtol=1e-6)


def test_calm_of_t5_s_size_does_not_decay_relative_positions():
    config = configs.load("calm:base")
    net = encoder_decoder.make(vocab_size=40, width=8, depth=1, heads=2)
    row = jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), row, row, train=False)["params"])
    keep = optim.decay_mask(exclude_paths=config.optimizer.exclude_paths)(params)
    leaves = jax.tree_util.tree_leaves_with_path(keep)
    left = [optim.path_of(path) for path, kept in leaves if not kept]
    assert sorted(left) == ["decoder/relative", "encoder/relative"]
