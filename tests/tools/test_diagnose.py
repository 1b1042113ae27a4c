"""`cl-jax diagnose` of logs alone."""

import json

from cl_jax.tools import diagnose


def test_a_folder_without_a_log_is_one_sentence(tmp_path, capsys):
    assert diagnose.main([str(tmp_path)]) == 1
    assert "config.json is missing" in capsys.readouterr().err


def test_a_config_without_a_length_is_one_sentence(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert diagnose.main([str(tmp_path)]) == 1
    assert "total_epochs=None; expected a number of epochs" in capsys.readouterr().err


def test_the_verdict_of_each_evaluation_is_printed(tmp_path, capsys):
    rows = [
        {"step": 1, "loss": 5.0, "chance": 5.0},
        {"step": 1, "knn/top1": 0.1, "h/effective_rank": 1.2, "h/std": 1e-5},
    ]
    root, tmp_path = tmp_path, tmp_path / "pretrain"  # the only stage that has begun
    tmp_path.mkdir()
    (tmp_path / "config.json").write_text('{"total_epochs": 12.0}')
    assert diagnose.main([str(root)]) == 0
    assert "no evaluation is logged" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert diagnose.main([str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out
