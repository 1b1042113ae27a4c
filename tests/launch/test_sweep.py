"""launch/sweep.py: grids, lists, workdirs, what is left to do, and how runs end."""

import importlib.util
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
    ],
)
def test_mistakes_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main(["--config=c", "--workdir=w", *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err


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
        "--config=c",
        f"--workdir={tmp_path}/lr=2,seed=0",
        "--config.lr=2",
        "--config.seed=0",
        "--stage=all",
        "&&",
        "touch",
        f"{tmp_path}/lr=2,seed=0/done",
    ]


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


def test_a_stopped_sweep_lets_its_runs_save(tmp_path):
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
        job.send_signal(signal.SIGINT)
        assert job.wait(timeout=20) == 75
    assert (tmp_path / "saved").exists() and not (tmp_path / "w" / "a=2").exists()
