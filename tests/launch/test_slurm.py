"""launch/slurm.sh: what it submits, and that the body requeues a run that saved and no other."""

import os
import shlex
import signal
import subprocess

import pytest

from tests.launch.scripts import LAUNCH, before, program, run

RUN = ("--", "--config=configs/simclr_v1.py", "--workdir=/runs/a b")


def test_a_task_per_gpu():
    words = shlex.split(
        run(
            "slurm.sh", "--dry-run", "--nodes=4", "--gpus", "2", "--sbatch=--partition=a b", *RUN
        ).stdout
    )
    assert words[0] == "sbatch" and words[-5:] == [str(LAUNCH / "slurm.sh"), "--body", "", *RUN[1:]]
    assert {
        "--nodes=4",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--cpus-per-task=8",
        "--requeue",
        "--signal=TERM@180",
        "--partition=a b",
    } <= set(words)


def test_a_task_per_node_holds_all_its_gpus():
    words = shlex.split(run("slurm.sh", "--dry-run", "--per-node", "--gpus=4", *RUN).stdout)
    assert {"--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=32"} <= set(words)
    assert words[words.index("--body") + 1] == "0,1,2,3"


def test_it_submits(tmp_path):
    program(tmp_path / "bin", "sbatch", 'printf "%s\\n" "$@"')
    done = run("slurm.sh", *RUN, PATH=before(tmp_path / "bin"))
    assert done.returncode == 0 and done.stdout.splitlines()[-2:] == list(RUN[1:])


@pytest.fixture
def cluster(tmp_path):
    """srun that runs the command here, python that ends as it is told, scontrol that notes what it
    is asked."""
    program(
        tmp_path / "bin",
        "srun",
        f'while [ "${{1#-}}" != "$1" ]; do echo "$1" >>{tmp_path}/options; shift; done; exec "$@"',
    )
    program(tmp_path / "bin", "scontrol", f'echo "$@" >>{tmp_path}/asked')
    program(
        tmp_path / "bin",
        "python",
        f'printf "%s\\n" "${{JAX_LOCAL_DEVICE_IDS:-none}}" "$@" >{tmp_path}/given\neval "$TASK"',
    )
    return tmp_path


@pytest.mark.parametrize("status", [0, 1, 75])
def test_the_body_requeues_on_75(cluster, status):
    done = run(
        "slurm.sh",
        "--body",
        "0,1",
        *RUN[1:],
        PATH=before(cluster / "bin"),
        SLURM_JOB_ID="12",
        TASK=f"exit {status}",
    )
    assert done.returncode == status
    assert (cluster / "given").read_text().splitlines() == [
        "0,1",
        "-m",
        "cl_jax.main",
        "--distributed",
        *RUN[1:],
    ]
    asked = cluster / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 12\n" if status == 75 else "")


def test_tasks_have_the_cores_that_were_asked_for(cluster):
    """srun of Slurm 22.05 to 23.02 does not take them from the job."""
    words = ("slurm.sh", "--body", "", *RUN[1:])
    bin_ = before(cluster / "bin")
    run(*words, PATH=bin_, SLURM_CPUS_PER_TASK="8", TASK="exit 0")
    assert "--cpus-per-task=8" in (cluster / "options").read_text().splitlines()
    (cluster / "options").unlink()
    run(*words, PATH=bin_, SLURM_CPUS_PER_TASK="", TASK="exit 0")
    assert "--cpus-per-task" not in (cluster / "options").read_text()


def test_the_body_outlives_the_signal_that_its_tasks_save_on(cluster):
    task = "trap 'sleep 0.5; exit 75' TERM; echo up; while :; do sleep 0.1; done"
    environment = os.environ | {"PATH": before(cluster / "bin"), "SLURM_JOB_ID": "12", "TASK": task}
    with subprocess.Popen(
        [LAUNCH / "slurm.sh", "--body", "", *RUN[1:]],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as job:
        assert job.stdout.readline() == "up\n"
        os.killpg(job.pid, signal.SIGTERM)  # the script and its task, as a preemption
        assert job.wait(timeout=20) == 75
    assert (cluster / "given").read_text().startswith("none\n") and (
        cluster / "asked"
    ).read_text() == "requeue 12\n"
