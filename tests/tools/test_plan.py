"""`cl-jax plan`: a plan on paper, and settings that have none."""

import json
import subprocess
import sys

import pytest

from cl_jax.tools import plan


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
