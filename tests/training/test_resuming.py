"""A workdir's config: what may differ at a resume, and what is refused."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.training import loop, resuming


def test_checkpoints_of_a_run_whose_config_is_lost_are_not_resumed(tmp_path):
    resuming.check_config(tmp_path, {"seed": 0})
    (tmp_path / "last" / "1").mkdir(parents=True)
    for damage in (lambda path: path.write_text('{"seed": '), os.unlink):
        damage(tmp_path / "config.json")
        with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
            resuming.check_config(tmp_path, {"seed": 0})


CHANGES = (
    ({"devices": 2}, True),
    ({"log_steps": 50}, True),
    ({"nonfinite": "skip"}, True),
    ({"evals": {"knn_k": 20}}, True),
    ({"data": {"name": "packed", "path": "/scratch/job2/set"}}, True),
    *(
        ({"data": {"name": "packed", "path": "/scratch/job1/set", key: value}}, True)
        for key, value in (
            ("cache_dir", "/fast"),
            ("tokenizer_cache", "/fast"),
            ("download", False),
            ("on_error", "skip"),
        )
    ),
    ({"a_key_of_a_later_version": 0}, True),
    ({"optimizer": {"rate": float("nan"), "momentum": 0.9}}, True),  # its default
    ({"optimizer": {"rate": float("nan"), "momentum": 0.8}}, False),
    ({"optimizer": {"rate": float("nan"), "nesterov": True}}, False),  # no default is known
    ({"optimizer": {"rate": float("nan"), "betas": (0.5, 1.0)}}, True),  # its default
    ({"optimizer": {"rate": float("nan"), "betas": (0.5, 0.9)}}, False),
    ({"optimizer": {"rate": 0.1}}, False),
    ({"batch_size": 32}, False),
    ({"batch_size": 64.0}, True),
    ({"data": {"name": "folder", "path": "/scratch/job1/set"}}, False),
    ({"data": {"name": "packed", "path": "/scratch/job1/set", "test_path": "/more"}}, False),
    ({"init_from": "/scratch/job2/net.pth"}, True),
    ({"init_from": ""}, False),
    ({"method": {"weights": "/scratch/job2/bert"}}, True),
    ({"method": {"weights": ""}}, False),
)


@pytest.mark.parametrize("change, taken", CHANGES, ids=[str(change) for change, _ in CHANGES])
def test_a_resume_compares_what_decides_the_numbers(change, taken, tmp_path):
    base = {
        "devices": 1,
        "log_steps": 10,
        "nonfinite": "stop",
        "batch_size": 64,
        "evals": {"knn_k": 200},
        "data": {"name": "packed", "path": "/scratch/job1/set"},
        "optimizer": {"rate": float("nan")},
        "init_from": "/scratch/job1/net.pth",
        "method": {"weights": "/scratch/job1/bert"},
    }
    defaults = {"optimizer.momentum": 0.9, "optimizer.betas": (0.5, 1.0)}
    leeway = resuming.Leeway(defaults, movable=["method.weights"])
    assert resuming.check_config(tmp_path, base, leeway) == []
    (tmp_path / "last" / "1").mkdir(parents=True)
    assert resuming.check_config(tmp_path, base, leeway) == []
    if taken:
        noted = resuming.check_config(tmp_path, base | change, leeway)
        assert json.loads((tmp_path / "config.json").read_text()).keys() >= change.keys()
        assert len(noted) == (0 if "optimizer" in change or "batch_size" in change else 1)
    else:
        with pytest.raises(ConfigError, match="holds a run of another config; it differs in\n  "):
            resuming.check_config(tmp_path, base | change, leeway)
        shutil.rmtree(tmp_path / "last")  # nothing to protect
        assert resuming.check_config(tmp_path, base | change, leeway) == []


def test_every_source_of_a_section_may_lie_elsewhere():
    def section(place, **target):
        source = {"name": "folder", "path": f"/{place}/a"}
        target = {"name": "text", "path": f"/{place}/b", "test_path": f"/{place}/c"} | target
        return {"data": {"name": "domains", "source": source, "target": target, "kind": {}}}

    changed, noted = resuming.differences(section("x"), section("y", on_error="skip"))
    assert not changed and len(noted) == 4
    changed, _ = resuming.differences(section("x"), section("x", length=9, test_path=""))
    assert len(changed) == 2
    plain = {"data": {"name": "outside", "kind": {"path": 1}}}  # a setting, and no source
    assert resuming.differences(plain, {"data": {"name": "outside", "kind": {"path": 2}}})[0]


@pytest.mark.parametrize(
    "then, now, same",
    [
        ({"warmup_epochs": 0.5, "warmup_steps": 1}, {"warmup_steps": 1}, True),
        ({"warmup_steps": 1}, {"warmup_epochs": 0.5, "warmup_steps": 1}, True),
        ({"warmup_epochs": 0.5, "warmup_steps": 1}, {"warmup_epochs": 0.5}, False),
        ({"name": "adamw", "momentum": 0.5}, {"name": "adamw"}, True),
        ({"name": "sgd", "momentum": 0.5}, {"name": "sgd"}, False),
        ({"name": "sgd", "momentum": 0.5}, {"name": "adamw"}, False),
        ({"freeze_paths": ("a",)}, {"freeze_paths": ("a",), "freeze_steps": -1}, False),
    ],
)
def test_a_setting_of_the_optimiser_without_effect_may_come_and_go(then, now, same):
    changed, noted = resuming.differences({"optimizer": then}, {"optimizer": now})
    assert bool(changed) != same and bool(noted) == same


def test_a_run_does_not_start_beside_the_folders_of_others(tmp_path):
    (tmp_path / "pretrain/last/1").mkdir(parents=True)
    resuming.check_config(tmp_path, {"seed": 0})  # a folder, and no run
    (tmp_path / "config.json").rename(tmp_path / "pretrain/config.json")
    with pytest.raises(ConfigError, match="holds 1 runs or stages in folders of their own, such a"):
        resuming.check_config(tmp_path, {"seed": 1})
    assert not (tmp_path / "config.json").exists()
    resuming.check_config(tmp_path / "mine", {"seed": 1})


def test_the_order_of_a_config_is_kept(tmp_path):
    resuming.check_config(tmp_path, {"views": {"large": {}, "a": {}, "small": {}}})
    stored = json.loads((tmp_path / "config.json").read_text())
    assert list(stored["views"]) == ["large", "a", "small"]


def test_a_resumed_run_without_its_first_weights_has_no_baselines(tmp_path):
    said = []
    config = ConfigDict({"init_from": str(tmp_path / "gone.pth"), "encoder": {"name": "resnet"}})
    run = SimpleNamespace(config=config, log=SimpleNamespace(say=said.append))
    assert loop.Training._baselines(run, lambda: None) == {}
    assert "without the figures of the untrained network: " in said[0] and "gone.pth" in said[0]
