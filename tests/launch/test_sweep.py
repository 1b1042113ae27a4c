"""launch/sweep.py: grids, lists, workdirs, what is left to do, and how runs end."""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.scripts import LAUNCH, program

_SPEC = importlib.util.spec_from_file_location("sweep", LAUNCH / "sweep.py")
sweep = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sweep)


def test_grid_and_list():
    assert sweep.grid(["a.b=1,2", "--config.c=x"]) == [
        (("a.b", "1"), ("c", "x")),
        (("a.b", "2"), ("c", "x")),
    ]
    assert sweep.grid([]) == [()]
    assert sweep.listed("a=1 b='x y'\n# none\n\na=(1,2)\n") == [
        (("a", "1"), ("b", "x y")),
        (("a", "(1,2)"),),
    ]


@pytest.mark.parametrize(
    "words,message",
    [
        (["a"], "'a' is not a setting; expected NAME=VALUE"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=1,1"], "two runs would share the workdir a=1"),
        (["a=1", "--jobs=0"], "--jobs is 0"),
        (["--list=missing"], "No such file"),
        (["a=1", "--list=missing"], "both --list and settings"),
        (["a=1", "--launcher=local.sh '"], "No closing quotation"),
    ],
)
def test_mistakes_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main(["--config=c", "--workdir=w", *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_paths_are_read_as_each_run_reads_them(tmp_path, monkeypatch, capsys):
    """Else logs and `done` lie in a folder named "~" or "gs:", and the run elsewhere."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.txt").write_text("lr=1\nlr=2\n")
    (tmp_path / "w" / "lr=1").mkdir(parents=True)
    (tmp_path / "w" / "lr=1" / "done").touch()
    words = ["--config=c", "--workdir=~/w", "--list=~/settings.txt", "--print"]
    assert sweep.main(words) == 0
    printed = capsys.readouterr()
    assert "2 runs, 1 done before" in printed.err
    assert f"--workdir={tmp_path}/w/lr=2 " in printed.out
    with pytest.raises(SystemExit) as ended:
        sweep.main(["--config=c", "--workdir=gs://b/x", "lr=1"])
    assert ended.value.code == 2 and "is a URL" in capsys.readouterr().err
    assert not (tmp_path / "gs:").exists()


def test_print_leaves_out_what_is_done(tmp_path, capsys):
    (tmp_path / "lr=1,seed=0").mkdir()
    (tmp_path / "lr=1,seed=0" / "done").touch()
    assert (
        sweep.main(
            [
                "--config=c",
                f"--workdir={tmp_path}",
                "--print",
                "--launcher=local.sh -n 2",
                "lr=1,2",
                "seed=0",
                "--",
                "--stage=all",
            ]
        )
        == 0
    )
    printed = capsys.readouterr()
    assert "2 runs, 1 done before" in printed.err
    assert shlex.split(printed.out) == [
        "local.sh",
        "-n",
        "2",
        sys.executable,
        "-m",
        "cl_jax.main",
        "--distributed",
        f"--workdir={tmp_path}/lr=2,seed=0",
        "--config=c",
        "--config.lr=2",
        "--config.seed=0",
        "--stage=all",
        "&&",
        "printf",
        "%s\\n",
        "--config=c --config.lr=2 --config.seed=0 --stage=all",
        ">",
        f"{tmp_path}/lr=2,seed=0/done",
    ]
    # The printed command marks the run as the sweep itself does.
    _, _, mark = printed.out.partition(" && ")
    (tmp_path / "lr=2,seed=0").mkdir()
    subprocess.run(["sh", "-c", mark], check=True)
    words = ["--config=c", f"--workdir={tmp_path}", "lr=1,2", "seed=0", "--", "--stage=all"]
    assert sweep.main(words) == 0 and "2 runs, 2 done before" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--print"]])
def test_a_run_that_is_done_with_other_arguments_is_refused(tmp_path, capsys, extra):
    program(tmp_path, "launcher", "exit 0")
    place = [f"--workdir={tmp_path}/w", f"--launcher={tmp_path}/launcher"]
    assert sweep.main(["--config=configs/byol.py", *place, "seed=0,1", "--", "--stage='a b'"]) == 0
    capsys.readouterr()
    for config, rest in (("simclr_v1", "--stage='a b'"), ("byol", "--config.total_epochs=200")):
        with pytest.raises(SystemExit) as ended:
            sweep.main([f"--config=configs/{config}.py", *place, *extra, "seed=0,1", "--", rest])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "w/seed=0 is done with other arguments" in said
        assert "configs/byol.py --config.seed=0" in said and rest.split("=")[0] in said
    again = ["--config=configs/byol.py", *place, *extra, "seed=0,1", "--", "--stage='a b'"]
    assert sweep.main(again) == 0 and "2 done before" in capsys.readouterr().err


@pytest.mark.parametrize("launcher", ["no_such_program -n 2", "."])
def test_a_run_that_cannot_be_started_has_failed(tmp_path, capsys, launcher):
    words = ["--config=c", f"--workdir={tmp_path}", f"--launcher={launcher}", "a=1,2", "--jobs=2"]
    assert sweep.main(words) == 1
    said = capsys.readouterr().err
    assert "a=2 cannot be started" in said and launcher.split()[0] in said
    assert "0 of 2 done, 2 failed" in said


def test_the_accuracy_of_a_run_in_stages_is_that_of_the_newest_with_one(tmp_path):
    assert sweep.result(tmp_path) == ""
    for number, (stage, row) in enumerate(
        [("distill", '{"loss": 1}'), ("pretrain", '{"knn/top1": 0.25}\nbroken')]
    ):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(row)
        os.utime(tmp_path / stage / "metrics.jsonl", (2 - number, 2 - number))
    assert sweep.result(tmp_path) == ", kNN 0.2500"


def test_long_settings_have_folders_of_their_own(tmp_path):
    names = [
        sweep.label((("data.path", f"/{letter * 300}{end}"),)) for letter in "aé" for end in "12"
    ]
    assert len(set(names)) == 4
    for name in names:
        (tmp_path / name).mkdir()
    assert sweep.label((("a", "x" * 253),)) == "a=" + "x" * 253  # what fits is kept as it is


def test_runs_end_well_fail_or_are_resumed(tmp_path, capsys):
    """The launcher stands in for the run: it ends with the status that the setting names, and says
    so."""
    program(
        tmp_path,
        "launcher",
        "for word; do case $word in --config.status=*) status=${word#*=} ;; esac; done\n"
        'echo "ended $status"; exit "$status"',
    )
    words = ["--config=c", f"--workdir={tmp_path}/w", f"--launcher={tmp_path}/launcher", "--jobs=2"]
    assert sweep.main([*words, "status=0,4,75"]) == 1
    said = capsys.readouterr().err
    assert (
        "status 4; the end of" in said
        and "    ended 4" in said
        and "1 of 3 done, 1 failed, 1 left" in said
    )
    assert [path.parent.name for path in sorted((tmp_path / "w").glob("*/done"))] == ["status=0"]
    assert (
        sweep.main([*words, "status=0"]) == 0 and "1 runs, 1 done before" in capsys.readouterr().err
    )
    assert sweep.main([*words, "status=75"]) == 75


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_stopped_sweep_lets_its_runs_save(tmp_path, number):
    program(
        tmp_path,
        "launcher",
        f"trap 'touch {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/up\n"
        "while :; do sleep 0.1; done",
    )
    with subprocess.Popen(
        [
            sys.executable,
            LAUNCH / "sweep.py",
            "--config=c",
            f"--workdir={tmp_path}/w",
            "a=1,2",
            f"--launcher={tmp_path}/launcher",
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        for line in job.stderr:
            if line.startswith("started"):
                break
        while not (tmp_path / "up").exists():
            time.sleep(0.05)
        if number == signal.SIGHUP:
            job.stderr.close()  # the terminal is gone
        job.send_signal(number)
        assert job.wait(timeout=20) == 75
    assert (tmp_path / "saved").exists() and not (tmp_path / "w" / "a=2").exists()


def test_a_sweep_under_nohup_goes_on(tmp_path):
    program(
        tmp_path,
        "launcher",
        f"touch {tmp_path}/up; while [ ! -e {tmp_path}/end ]; do sleep 0.05; done",
    )
    with subprocess.Popen(
        [
            "sh",
            "-c",
            "trap '' HUP; exec \"$@\"",
            "sh",
            sys.executable,
            LAUNCH / "sweep.py",
            "--config=c",
        ]
        + [f"--workdir={tmp_path}/w", "a=1", f"--launcher={tmp_path}/launcher"],
        stderr=subprocess.DEVNULL,
    ) as job:
        while not (tmp_path / "up").exists():
            time.sleep(0.05)
        job.send_signal(signal.SIGHUP)
        (tmp_path / "end").touch()
        assert job.wait(timeout=20) == 0
