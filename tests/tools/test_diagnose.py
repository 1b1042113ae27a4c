"""`cl-jax diagnose` of logs alone."""

import json
import re

import pytest

from cl_jax.tools import diagnose


def test_a_folder_without_a_log_is_one_sentence(tmp_path, capsys):
    assert diagnose.main([str(tmp_path)]) == 1
    assert "config.json is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{}", "total_epochs=None; expected a number of epochs above 0"),
        ('{"total_epochs": 0}', "total_epochs=0; expected a number of epochs above 0"),
        ('{"total_epochs": 1, "a.b": 1}', "config.json cannot be read: .*a.b"),
    ],
)
def test_a_config_that_no_run_wrote_is_one_sentence(config, words, tmp_path, capsys):
    (tmp_path / "config.json").write_text(config)
    rows = [{"step": 5000, "loss": 5.0, "epoch": 3.0}, {"step": 5000, "knn/top1": 0.1}]
    rows[:0] = [{"step": 0, "untrained/knn/top1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert diagnose.main([str(tmp_path)]) == 1
    assert re.match(f"error: .*{words}", capsys.readouterr().err)


def test_a_log_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text('{"total_epochs": 1}')
    (tmp_path / "metrics.jsonl").write_text("")

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "read_bytes", denied)
    assert diagnose.main([str(tmp_path)]) == 1
    assert "metrics.jsonl cannot be read: Permission denied" in capsys.readouterr().err


def test_the_verdict_of_each_evaluation_is_printed(tmp_path, capsys):
    rows = [
        {"step": 1, "loss": 5.0, "chance": 5.0},
        {"step": 1, "knn/top1": 0.1, "h/effective_rank": 1.2, "h/std": 1e-5},
    ]
    root, tmp_path = tmp_path, tmp_path / "pretrain"  # the only stage that has begun
    tmp_path.mkdir()
    (tmp_path / "config.json").write_text('{"total_epochs": 12.0}')
    assert diagnose.main([str(root)]) == 0
    assert "no evaluation is logged: it has no metrics.jsonl" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert diagnose.main([str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out
