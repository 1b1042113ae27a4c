"""`cl-jax eval`: what it says without a run. With one: tests/training/test_end.py."""

import pytest

from cl_jax.tools import evaluate


def test_a_workdir_is_needed(capsys):
    with pytest.raises(SystemExit):
        evaluate.main([])
    assert "cl-jax eval --workdir=runs/first" in capsys.readouterr().err


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    assert evaluate.main([f"--workdir={tmp_path}"]) == 1
    assert str(tmp_path) in capsys.readouterr().err
