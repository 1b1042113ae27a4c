"""The table of all methods: shared settings, rows that are kept, failures that leave the others
theirs."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from cl_jax.core.errors import SaveError
from cl_jax.tools import benchmark
from cl_jax.training import configs


def settings(tmp_path, **changed):
    given = {
        "data": "scenes",
        "variant": "debug",
        "packed": "",
        "epochs": 0.0,
        "seeds": 1,
        "set": [],
        "probe_epochs": 3.0,
        "augmented_epochs": 0.0,
        "workdir": str(tmp_path),
        "out": "",
        "all": False,
        "against": "",
    } | changed
    return type("Args", (), given)()


def row(text, workdir, augmented_epochs):
    config = json.loads(text)
    return {
        "knn": 0.5 + config["seed"] / 10,
        "epochs": config["total_epochs"],
        "linear_augmented": None,
    }


@pytest.mark.parametrize("name", benchmark.of_scenes())
def test_every_config_takes_the_shared_settings(tmp_path, name):
    config = benchmark.config_of(
        name, settings(tmp_path, epochs=2.0, set=["views.size=12", "batch_size=8"]), seed=3
    )
    assert (config.seed, config.batch_size, config.total_epochs, config.evals.protocols.knn.k) == (
        3,
        8,
        2.0,
        200,
    )
    assert config.evals.feature == "h"
    assert max(view.size for view in config.views.values()) == 12
    assert config.optimizer.get("warmup_epochs", 0) <= 0.5


def test_a_shorter_side_of_views_keeps_their_proportions(tmp_path):
    sides = [
        [
            view.size
            for view in benchmark.config_of(
                "swav", settings(tmp_path, variant="", set=change), 0
            ).views.values()
        ]
        for change in ([], ["views.size=8"])
    ]
    assert sides == [[16, 12], [8, 6]]
    with pytest.raises(ValueError, match=r"views\.size=x; expected a number of pixels"):
        benchmark.config_of("swav", settings(tmp_path, set=["views.size=x"]), 0)


def test_a_setting_on_the_command_line_is_not_shortened(tmp_path):
    given = settings(tmp_path, data="cifar10", variant="", epochs=2.0)
    assert benchmark.config_of("dino", given, 0).method.momentum < 0.98
    given.set = ["method.momentum=0.9995"]
    assert benchmark.config_of("dino", given, 0).method.momentum == 0.9995


def test_a_setting_is_left_out_where_the_section_has_no_such_key(tmp_path):
    change = settings(tmp_path, set=["encoder.width=0.5"])
    assert benchmark.config_of("simclr_v2", change, 0).encoder.width == 0.5
    assert (
        "depth"
        not in benchmark.config_of("cpc", settings(tmp_path, set=["encoder.depth=18"]), 0).encoder
    )


def test_a_setting_may_be_deep_and_one_that_no_config_has_is_refused(tmp_path, capsys):
    deep = ["views.both.scale=[0.85,1.0]", "method.base.temperature=0.3"]
    simclr, imix, swav = (
        benchmark.config_of(name, settings(tmp_path, set=deep), 0)
        for name in ("simclr_v1", "imix", "swav")
    )
    assert simclr.views.both.scale == (0.85, 1.0) and imix.method.base.temperature == 0.3
    assert "both" not in swav.views and "base" not in simclr.method
    benchmark.refuse_unknown(deep, [simclr, imix, swav])
    words = ["--methods=simclr_v1,swav", f"--workdir={tmp_path}", f"--set={deep[1]}"]
    assert benchmark.main(words) == 1
    said = capsys.readouterr().err
    assert f"--set={deep[1]}: none of the configs of simclr_v1, swav has it" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change, message",
    [
        ("width", "expected section.key=value"),
        ("a..c=1", "expected section.key=value"),
        ("a.b.c=1", "no section 'a'"),
        ("batch_size=many", "expected a value like that of the config, [0-9]+"),
        ("batchsize=3", "no 'batchsize'; did you mean 'batch_size'"),
        ("model.width=1", "no section 'model'"),
    ],
)
def test_settings_that_mean_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        benchmark.config_of("simclr_v2", settings(tmp_path, set=[change]), 0)


def test_what_is_counted_in_epochs_shrinks_with_the_budget(tmp_path):
    whole = benchmark.config_of("instdisc", settings(tmp_path, data="cifar10", variant=""), 0)
    short = benchmark.config_of(
        "instdisc", settings(tmp_path, data="cifar10", variant="", epochs=20), 0
    )
    share = 20 / whole.total_epochs
    assert short.optimizer.milestones_epochs == pytest.approx(
        [at * share for at in whole.optimizer.milestones_epochs]
    )


def test_rows_are_kept_and_another_setting_is_refused(tmp_path):
    calls = []

    def run(*given):
        calls.append(given)
        return row(*given)

    args = settings(tmp_path, seeds=2)
    benchmark.run_all(args, ["simclr_v1", "byol"], run)
    rows = benchmark.run_all(args, ["simclr_v1", "byol"], run)
    assert len(calls) == 4 and len(rows) == 4
    assert json.loads((tmp_path / "table.json").read_text()) == rows
    assert "| simclr_v1 | knn/top1 | 1 | 2 | 55.0 ± 7.1 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "table.csv").read_text().count("\n") == 5
    with pytest.raises(ValueError, match="holds the run of another setting"):
        benchmark.run_all(settings(tmp_path, seeds=2, set=["batch_size=8"]), ["byol"], run)


def test_tables_keep_their_name_and_rows_are_written_whole(tmp_path, monkeypatch, capsys):
    args = settings(tmp_path, out=str(tmp_path / "v1.2"))
    benchmark.run_all(args, ["simclr_v1"], row)
    assert {path.name for path in tmp_path.glob("v1*")} == {"v1.2.json", "v1.2.csv", "v1.2.md"}
    kept = tmp_path / "simclr_v1" / "seed0" / "row.json"
    before = kept.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    kept.write_text(json.dumps(json.loads(before) | {"error": "x"}))  # it is run again
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SaveError, match=r"row\.json cannot be written"):
            benchmark.run_all(args, ["simclr_v1"], row)
        assert not kept.with_name("row.json.part").exists()
        patch.setattr(benchmark, "run_all", lambda *_: benchmark.write([], tmp_path / "t", ""))
        assert benchmark.main(["--methods=simclr_v1", f"--workdir={tmp_path}"]) == 1
    assert "error: " in (said := capsys.readouterr().err) and "t.json cannot be written" in said
    assert json.loads(kept.read_text())["error"] == "x"
    words = ["--methods=simclr_v1", f"--workdir={tmp_path}", "--out=/proc/tables"]
    assert benchmark.main(words) == 1
    assert "/proc/tables cannot be written" in capsys.readouterr().err


def test_a_failure_leaves_the_others_their_rows_and_is_tried_again(tmp_path):
    def run(text, *rest):
        if json.loads(text)["method"]["name"] == "byol":
            raise FloatingPointError("step 3: loss nan")
        return row(text, *rest)

    benchmark.run_all(settings(tmp_path), ["byol", "simclr_v1"], run)
    table = (tmp_path / "table.md").read_text()
    assert (
        "| byol | failed: FloatingPointError: step 3: loss nan |" in table
        and "| simclr_v1 | knn/top1 | 1 | 1 | 50.0 |" in table
    )
    benchmark.run_all(settings(tmp_path), ["byol", "simclr_v1"], row)
    assert "failed" not in (tmp_path / "table.md").read_text()


def test_settings_may_be_corrected_after_a_failure(tmp_path):
    def run(text, *rest):
        if json.loads(text)["batch_size"] > 32:
            raise ValueError("batch_size=4096; the data have 400 examples")
        return row(text, *rest)

    (failed,) = benchmark.run_all(settings(tmp_path, set=["batch_size=4096"]), ["byol"], run)
    (found,) = benchmark.run_all(settings(tmp_path, set=["batch_size=32"]), ["byol"], run)
    assert "error" in failed and "error" not in found and found["config"] != failed["config"]
    benchmark.run_all(settings(tmp_path, set=["batch_size=4096"]), ["simclr_v1"], run)
    with pytest.raises(ValueError, match="byol/seed0 holds the run of another setting"):
        benchmark.run_all(
            settings(tmp_path, set=["batch_size=16"]),
            ["simclr_v1", "byol"],
            lambda *_: pytest.fail("one was run before all were compared"),
        )


@pytest.mark.parametrize("given", ["{}/lab/mine.py", "../lab/mine.py"])
def test_the_runs_of_a_config_given_by_its_path_lie_in_the_workdir(given, tmp_path, monkeypatch):
    place = tmp_path / "lab"
    place.mkdir()
    (place / "mine.py").write_text("from configs.simclr_v1 import get_config\n")
    monkeypatch.chdir(place)
    name, args = given.format(tmp_path), settings(tmp_path / "bench")
    seen = []

    def run(text, workdir, *rest):
        seen.append(workdir)
        return row(text, workdir, *rest)

    (found,) = benchmark.run_all(args, [name], run)
    assert found["method"] == name and seen == [f"{tmp_path}/bench/mine/seed0"]
    assert benchmark.run_all(args, ["./mine.py"], run) == [found | {"method": "./mine.py"}]
    assert len(seen) == 1 and benchmark.kept_rows(args, [name]) == [found]
    words = re.escape(f"{name}, mine.py would have one folder, mine, in")
    with pytest.raises(ValueError, match=words):
        benchmark.names_of(settings(tmp_path, methods=f"byol,{name},mine.py"))


def test_a_file_in_the_place_of_a_run_is_one_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "byol").write_text("")
    monkeypatch.setattr(benchmark.run_all, "__defaults__", (row,))
    words = ["--methods=byol", "--variant=debug", f"--workdir={tmp_path}"]
    assert benchmark.main(words) == 1
    assert "lies below a file; expected a folder" in capsys.readouterr().err


def test_unknown_method_names_the_nearest(tmp_path, capsys):
    assert benchmark.main(["--methods=simclrv2", f"--workdir={tmp_path}"]) == 1
    assert "config 'simclrv2' does not exist; did you mean 'simclr_v2'" in capsys.readouterr().err


@pytest.mark.slow
def test_one_real_row(tmp_path):
    config = benchmark.config_of("simclr_v1", settings(tmp_path), 0)
    found = benchmark.in_a_process(config.to_json(), str(tmp_path / "run"), 1.0)
    assert (
        0 <= found["linear_augmented"] <= 1
        and found["steps"] == 4
        and found["peak_memory_mib"] > 10
    )
    again = benchmark.in_a_process(config.to_json(), str(tmp_path / "run"), 1.0)
    assert (
        again["resumed"]
        and again["knn"] == found["knn"]
        and again["linear_cached"] == found["linear_cached"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_the_run_as_well_which_saves_and_goes_on_later(number, status, tmp_path):
    """Also one that the parent cannot pass on."""
    command = [
        sys.executable,
        "-m",
        "cl_jax",
        "benchmark",
        "--methods=simclr_v1",
        "--variant=debug",
        "--epochs=5000",
        f"--workdir={tmp_path}",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    workdir = tmp_path / "simclr_v1" / "seed0"
    log = workdir / "metrics.jsonl"
    until = time.time() + 120
    while not (log.exists() and log.read_text()) and time.time() < until:
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == status
    until = time.time() + 60
    while (workdir / "lock").exists() and time.time() < until:
        time.sleep(0.1)
    said = log.read_text()
    time.sleep(1)
    assert log.read_text() == said and not (workdir / "row.json").exists()
    assert any((workdir / "last").iterdir())


def test_a_system_of_other_data_keeps_its_own_protocols(tmp_path):
    config = benchmark.config_of("simcse", settings(tmp_path), 0)
    assert "sts" in config.evals.protocols and "knn20" not in config.evals.protocols
    assert "knn20" in benchmark.config_of("byol", settings(tmp_path), 0).evals.protocols


def test_the_survey_lists_every_system_and_keeps_what_was_run(tmp_path, capsys, monkeypatch):
    """Stopped after its time, it says which systems were not run; the same command continues."""
    slow = {"byol": 30.0}

    def run(text, workdir, augmented_epochs):
        name = json.loads(text)["method"]["name"]
        time.sleep(slow.get(name, 0.0))
        measure = {"measure": "knn/top1", "share": True, "better": 1, "test_units": 400}
        return measure | {
            "epochs": 1,
            "reached": 0.8,
            "reached_untrained": 0.3,
            "processor_seconds": 9,
        }

    monkeypatch.setattr(benchmark.run_all, "__defaults__", (run,))
    command = ["--all", "--methods=simclr_v1,byol", f"--workdir={tmp_path}", "--variant=debug"]
    assert benchmark.main([*command, "--minutes=0.02"]) == benchmark.OUT_OF_TIME
    said = capsys.readouterr().out
    assert "| `simclr_v1` | knn/top1 | 30.0 % | 80.0 % | +50.0, one seed | 1 | 9 |" in said
    assert "| `byol` | not run | not run |" in said and "92.58 % online linear" in said
    slow.clear()
    assert benchmark.main(command) == 0
    assert "not run" not in capsys.readouterr().out


def test_all_is_every_config(tmp_path):
    args = settings(tmp_path, all=True, methods="all")
    assert benchmark.names_of(args) == configs.names()
    assert benchmark.main(["--seeds=0", f"--workdir={tmp_path / 'none'}"]) == 1
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="--against=byoll is not in the table"):
        benchmark.names_of(settings(tmp_path, methods="byol,dino", against="byoll"))
