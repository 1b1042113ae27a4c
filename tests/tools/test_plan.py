"""`cl-jax plan`: a plan on paper, and settings that have none."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cl_jax.tools import plan
from cl_jax.training import configs, fit


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "CONFIG is needed"),
        (["simclr_v1", "--devices=0"], "--devices=0; expected at least 1"),
        (["simclr_v1", "--device=abacus"], "invalid choice: 'abacus'"),
    ],
)
def test_words_that_are_no_plan_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        plan.main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simclr_v1", "--stage=distil"], "distil"),
        (["simclr_v9"], "did you mean 'simclr_v"),
        (["simclr_v1", "--compiler=gpu", "--device=v5p"], "'.[cuda]'"),
        (["simclr_v1", "--out=/none/plan.json"], "its folder does not exist"),
        (["simclr_v1", "--out=plan.txt"], "ends in .json"),
        (["simclr_v1", "--config.init_from=/none.pth"], "/none.pth"),
    ],
)
def test_configs_that_have_no_plan_are_one_sentence(words, said, capsys, monkeypatch):
    import jax

    # A plan chooses devices of its own before jax has any; here the tests' are there.
    monkeypatch.setattr(type(jax.config), "update", lambda *_: None)
    assert plan.main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and said in err


def test_a_plan_that_cannot_be_written_leaves_the_old_one(tmp_path, capsys, monkeypatch):
    import jax

    out, made = tmp_path / "plan.json", {"fits": True}
    out.write_text("the old plan")
    (tmp_path / "plan.json.part").mkdir()  # what a new one is written to
    monkeypatch.setattr(type(jax.config), "update", lambda *_: None)
    monkeypatch.setattr("cl_jax.planning.plan.plan", lambda *_, **__: made)
    monkeypatch.setattr("cl_jax.planning.plan.report", lambda *_, **__: "the plan")
    words = ["simclr_v1:debug", f"--out={out}"]
    assert plan.main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == "the plan\n" and f"error: {out} cannot be written" in printed.err
    assert out.read_text() == "the old plan"
    (tmp_path / "plan.json.part").rmdir()
    assert plan.main(words) == 0 and json.loads(out.read_text()) == made


def planned(words, monkeypatch):
    """The config that these words plan."""
    import jax

    seen = []
    monkeypatch.setattr(type(jax.config), "update", lambda *_: None)
    monkeypatch.setattr(
        "cl_jax.planning.plan.plan", lambda config, *_, **__: seen.append(config) or {"fits": True}
    )
    monkeypatch.setattr("cl_jax.planning.plan.report", lambda *_, **__: "the plan")
    assert plan.main(words) == 0
    return seen[0]


def test_a_plan_is_of_the_sizes_that_training_fits_to_a_folder(tmp_path, monkeypatch, capsys):
    for i in range(40):
        Image.fromarray(np.full((20, 20, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    settings = [("data.path", str(tmp_path)), ("total_epochs", "7")]
    trained = configs.load("moco_v2:folder")
    default = trained.batch_size
    configs.change(trained, settings)
    lines = fit.fit(trained, [key for key, _ in settings], tmp_path / "run")
    words = [f"--config.{key}={value}" for key, value in settings]
    found = planned(["moco_v2:folder", *words], monkeypatch)
    assert found.batch_size == trained.batch_size != default and found.total_epochs == 7
    assert found.method.queue_size == trained.method.queue_size
    assert capsys.readouterr().err == "\n".join(lines) + "\n"


def test_a_plan_is_fitted_to_a_number_of_images(monkeypatch, capsys):
    found = planned(["simclr_v2:folder", "--examples=10000"], monkeypatch)
    assert found.batch_size == fit.BATCH[1] and found.total_epochs == fit.EPOCHS[0]
    assert "fitted to 10000 training images" in capsys.readouterr().err
    assert plan.main(["simclr_v2:folder", "--examples=10"]) == 1
    assert "the folder has 10 training images; expected" in capsys.readouterr().err


def test_a_setting_for_all_stages_is_planned_as_it_is_trained(monkeypatch):
    own = planned(["mae", "--stage=scratch"], monkeypatch)
    given = planned(["mae", "--stage=scratch", "--config.batch_size=16"], monkeypatch)
    assert (own.batch_size, given.batch_size) == (32, 16)


@pytest.mark.slow
def test_a_plan_is_printed_and_written(tmp_path):
    """In a process of its own: a plan chooses its devices before jax has any."""
    out = tmp_path / "plan.json"
    words = ["simclr_v1:cifar10,debug", "--device=h200", "--nosearch", f"--out={out}"]
    ran = subprocess.run(
        [sys.executable, "-m", "cl_jax", "plan", *words], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "memory" in ran.stdout
    assert json.loads(out.read_text())["fits"]
