"""The command line: every verb has its help without jax, and a wrong one names the nearest."""

import os
import subprocess
import sys
import time

import pytest

from cl_jax import __main__ as command
from cl_jax.tools import plan

HELP = """
import sys
for name in ("jax", "flax", "optax", "orbax", "tensorflow_datasets", "sklearn", "matplotlib"):
    sys.modules[name] = None
from cl_jax.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", [[], ["--help"], *([verb, "--help"] for verb in command.VERBS)])
def test_help_has_an_example_and_comes_at_once(words):
    """Measured as processor time, since the machine may do other things: under a second."""
    before = os.times()
    ran = subprocess.run([sys.executable, "-c", HELP, *words], capture_output=True, text=True)
    after = os.times()
    assert ran.returncode == 0, ran.stderr
    assert f"  cl-jax {words[0]} " in ran.stdout if len(words) == 2 else "example" in ran.stdout
    spent = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    assert spent < 1, f"{spent:.1f} s"


def test_every_verb_is_listed(capsys):
    assert command.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {verb} " in said for verb in command.VERBS) and len(said.splitlines()) < 30


def test_an_unknown_verb_names_the_nearest(capsys):
    assert command.main(["trian"]) == 2
    assert "no verb 'trian'; did you mean 'train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["simclr_v3"], "did you mean 'simclr_v2'"),
        (["simclr_v2:foldr"], "did you mean 'folder'"),
        (["simclr_v2:folder"], "path is empty; set --config.data.path"),
        (["simclr_v2", "--config.batch_sise=3"], "did you mean 'batch_size'"),
    ],
)
def test_a_mistake_is_named_without_a_workdir_and_leaves_none(
    words, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert command.main(["train", *words]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_any_verb_without_a_traceback(monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "main", interrupted)
    assert command.main(["plan", "simclr_v1"]) == 130


def test_the_old_command_is_there():
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", "cl_jax.main", "--help"], capture_output=True, text=True
    )
    assert ran.returncode == 0 and "--workdir" in ran.stdout and time.perf_counter() - began < 60
    ran = subprocess.run(
        [sys.executable, "-m", "cl_jax.main", "--workdir=x"], capture_output=True, text=True
    )
    assert ran.returncode == 2 and "--config and --workdir are needed" in ran.stderr
