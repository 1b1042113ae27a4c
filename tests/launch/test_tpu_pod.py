"""launch/tpu_pod.sh against a stand-in for gcloud whose workers are folders of this machine."""

import os
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.scripts import LAUNCH, before, program, run

RUN = ("--", "--config=configs/simclr_v1.py", "--workdir=/runs/a b")


def test_dry_run_prints_every_command_and_runs_none(tmp_path):
    program(tmp_path / "bin", "gcloud", f"touch {tmp_path}/called")
    done = run(
        "tpu_pod.sh",
        "run",
        "a",
        "--zone=z",
        "--type=v6e-16",
        "--spot",
        "--nfs=h:/p",
        "--setup=true",
        "--dry-run",
        *RUN,
        PATH=before(tmp_path / "bin"),
    )
    assert done.returncode == 0 and not (tmp_path / "called").exists()
    words = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("gcloud")]
    assert all(line[-1] == "--zone=z" for line in words)
    assert [line[4] for line in words] == [
        "describe",
        "create",
        "ssh",
        "ssh",
        "scp",
        "ssh",
        "ssh",
        "ssh",
        "ssh",
        "ssh",
    ]
    assert {"--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e", "--spot"} <= set(words[1])
    start = shlex.split(words[-2][-2].removeprefix("--command="))
    assert (
        start == ["sh", "cl_jax/launch/tpu_worker.sh", "start", *RUN[1:]]
        and "--worker=all" in words[-2]
    )
    assert "--worker=0" in words[-1] and words[-1][-2].endswith("follow")
    for task, last in (("follow", "--worker=0"), ("stop", "--worker=all"), ("delete", "--quiet")):
        assert last in run("tpu_pod.sh", task, "a", "--zone=z", "--dry-run").stdout


@pytest.fixture
def cloud(tmp_path):
    """Two workers, ~ of each a folder; pip does what `pip` says, uv makes a Python that notes its
    arguments and does what `behaviour` says. A zone that is `full` refuses one slice; one that
    `refuses` says why, each time."""
    bin_, checkout = tmp_path / "bin", tmp_path / "checkout"
    program(
        bin_,
        "gcloud",
        f"""
verb=$4 slice=$5 home={tmp_path}/workers
case $verb in
    describe) cat {tmp_path}/state ;;
    create)
        if [ -e {tmp_path}/full ]; then rm {tmp_path}/full; echo 'no capacity' >&2; exit 1; fi
        if [ -e {tmp_path}/refuses ]; then cat {tmp_path}/refuses >&2; exit 1; fi
        echo "$@" >>{tmp_path}/created; mkdir -p $home/0 $home/1; echo READY >{tmp_path}/state ;;
    delete) rm -r $home {tmp_path}/state ;;
    scp) cp "$5" $home/0/; cp "$5" $home/1/ ;;
    ssh)
        for word; do case $word in
            --worker=all) workers='0 1' ;;
            --worker=*) workers=${{word#*=}} ;;
            --command=*) command=${{word#*=}} ;;
        esac; done
        for i in $workers; do HOME=$home/$i sh -c "cd && $command" || exit; done ;;
esac""",
    )
    # The script's own pauses are noted and cost nothing; `paused` says what happens meanwhile.
    program(
        bin_,
        "sleep",
        f"""
case $1 in
    30 | 60) echo "$1" >>{tmp_path}/slept; [ ! -e {tmp_path}/paused ] || . {tmp_path}/paused ;;
    *) exec /bin/sleep "$1" ;;
esac""",
    )
    program(bin_, "pip", f"[ ! -e {tmp_path}/pip ] || . {tmp_path}/pip")
    program(tmp_path / "fake", "python", f'echo "$@" >>~/given\n. {tmp_path}/behaviour')
    program(
        bin_,
        "uv",
        'for last; do :; done\n[ "$1" = pip ] || { mkdir -p "$last/bin" && '
        f'cp {tmp_path}/fake/python "$last/bin/"; }}',
    )
    for name in ("cl_jax/main.py", "launch/README", "runs/ignored"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    for script in LAUNCH.glob("*.sh"):
        (checkout / "launch" / script.name).write_bytes(script.read_bytes())
        (checkout / "launch" / script.name).chmod(0o755)
    (checkout / ".gitignore").write_text("runs/\n")
    subprocess.run(["git", "init", "-q", checkout], check=True)
    return tmp_path


def pod(cloud, *words):
    return subprocess.run(
        [cloud / "checkout/launch/tpu_pod.sh", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PATH": before(cloud / "bin"), "CLOUDSDK_COMPUTE_ZONE": "z"},
    )


def test_a_run_from_nothing_and_again(cloud):
    (cloud / "behaviour").write_text("echo training; exit 3\n")
    first = pod(cloud, "run", "a", *RUN)
    assert first.returncode == 3 and "training\n" in first.stdout, first.stderr
    for i in (0, 1):
        home = cloud / "workers" / str(i)
        assert (home / "given").read_text() == f"-m cl_jax.main --distributed {' '.join(RUN[1:])}\n"
        assert (home / "cl_jax/cl_jax/main.py").exists() and not (home / "cl_jax/runs").exists()
    # Again: the slice is used, the checkout replaced, what lies beside it kept.
    (cloud / "behaviour").write_text("exit 0\n")
    (cloud / "workers/0/cl_jax/runs").mkdir()
    (cloud / "checkout/cl_jax/main.py").rename(cloud / "checkout/cl_jax/other.py")
    second = pod(cloud, "run", "a", *RUN)
    assert second.returncode == 0, second.stderr
    assert (cloud / "created").read_text().count("\n") == 1
    home = cloud / "workers/0/cl_jax"
    assert (
        sorted(path.name for path in (home / "cl_jax").iterdir()) == ["other.py"]
        and (home / "runs").exists()
    )
    assert pod(cloud, "delete", "a").returncode == 0 and not (cloud / "workers").exists()


def test_stop_ends_the_run_and_follow_tells_its_status(cloud):
    (cloud / "behaviour").write_text("trap 'exit 75' TERM; echo up; while :; do sleep 0.1; done\n")
    with subprocess.Popen(
        [cloud / "checkout/launch/tpu_pod.sh", "run", "a", *RUN],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": before(cloud / "bin"), "CLOUDSDK_COMPUTE_ZONE": "z"},
    ) as job:
        assert job.stdout.readline() == "up\n"
        (cloud / "checkout/cl_jax/main.py").write_text("edited")
        again = pod(cloud, "run", "a", *RUN)
        assert again.returncode != 0 and "a run is going on here already" in again.stderr
        assert (cloud / "workers/0/cl_jax/cl_jax/main.py").read_text() == "cl_jax/main.py"
        assert pod(cloud, "stop", "a").returncode == 0
        assert job.wait(timeout=20) == 75
    assert pod(cloud, "follow", "a").returncode == 75


def test_a_slice_that_was_taken_away_is_asked_for_again(cloud):
    (cloud / "behaviour").write_text(
        f"if [ -e {cloud}/once ]; then exit 0; fi\n"
        f"sleep 0.5; touch {cloud}/once; echo PREEMPTED >{cloud}/state; exit 1\n"
    )
    done = pod(cloud, "run", "a", "--spot", *RUN)
    assert done.returncode == 0 and "the slice was taken away" in done.stderr
    assert (cloud / "created").read_text().count("--spot") == 2


def test_a_slice_that_the_zone_has_not_is_asked_for_again(cloud):
    (cloud / "behaviour").write_text(
        f"if [ -e {cloud}/once ]; then exit 0; fi\n"
        f"touch {cloud}/once {cloud}/full; echo PREEMPTED >{cloud}/state; exit 75\n"
    )
    done = pod(cloud, "run", "a", "--spot", *RUN)
    assert done.returncode == 0 and "no capacity" in done.stderr, done.stderr
    assert (cloud / "created").read_text().count("--spot") == 2
    assert (cloud / "slept").read_text().split() == ["60", "60"]
    # Without --spot nothing is repeated.
    (cloud / "full").touch()
    assert pod(cloud, "delete", "a").returncode == 0
    assert pod(cloud, "run", "a", *RUN).returncode == 1


@pytest.mark.parametrize(
    "refusal, ends",
    [
        ("RESOURCE_EXHAUSTED: Quota limit 'TPUV5sPreemptible' has been exceeded. Limit: 0", True),
        ("INVALID_ARGUMENT: Cloud TPU received an invalid AcceleratorType", True),
        ('{"code": 7, "message": "denied"}', True),
        ('{"code": 8, "message": "There is no more capacity in the zone"}', False),
        ("RESOURCE_EXHAUSTED: Quota exceeded for 'Create requests per minute'", False),
    ],
)
def test_a_refusal_that_a_minute_does_not_change_ends_the_run(cloud, refusal, ends):
    """The second time in a row: a deleted slice may still be counted in a quota."""
    (cloud / "behaviour").write_text(
        f"if [ -e {cloud}/once ]; then exit 0; fi\n"
        f"touch {cloud}/once; echo PREEMPTED >{cloud}/state; exit 75\n"
    )
    (cloud / "refusal").write_text(f"{refusal}\n")
    (cloud / "paused").write_text(
        f"case $(grep -c 60 {cloud}/slept) in\n"
        f"    1) cp {cloud}/refusal {cloud}/refuses ;;\n"
        f"    4) rm {cloud}/refuses ;;\n"
        "esac\n"
    )
    done = pod(cloud, "run", "a", "--spot", *RUN)
    assert done.returncode == (1 if ends else 0), done.stderr
    assert (cloud / "slept").read_text().split() == ["60"] * (2 if ends else 4)
    assert done.stderr.count(refusal) == (2 if ends else 3)
    assert done.stderr.endswith(f"{refusal}\n") == ends


@pytest.mark.parametrize("left", ["PREEMPTED", "READY"])
def test_an_installation_that_fails_is_repeated_only_where_its_slice_was_taken_away(cloud, left):
    (cloud / "behaviour").write_text("exit 0\n")
    (cloud / "pip").write_text(f"rm {cloud}/pip; echo {left} >{cloud}/state; exit 255\n")
    done = pod(cloud, "run", "a", "--spot", *RUN)
    again = left == "PREEMPTED"
    assert done.returncode == (0 if again else 255), done.stderr
    assert (cloud / "created").read_text().count("--spot") == (2 if again else 1)
    assert (cloud / "workers/0/given").exists() == again


def test_a_slice_whose_state_shows_late_that_it_was_taken_away_is_asked_for_again(cloud):
    (cloud / "behaviour").write_text(
        f"if [ -e {cloud}/once ]; then exit 0; fi; touch {cloud}/once; exit 75\n"
    )
    (cloud / "paused").write_text(f"rm {cloud}/paused; echo PREEMPTED >{cloud}/state\n")
    done = pod(cloud, "run", "a", "--spot", *RUN)
    assert done.returncode == 0, done.stderr
    assert (cloud / "created").read_text().count("--spot") == 2
    assert (cloud / "slept").read_text().split() == ["30", "60"]


def test_ctrl_c_ends_the_script_and_leaves_the_run(cloud):
    """Also where gcloud answers it with a status of its own and the slice is not READY."""
    (cloud / "behaviour").write_text(
        f"echo PREEMPTED >{cloud}/state; echo up\n"
        f"while [ ! -e {cloud}/end ]; do sleep 0.1; done; touch {cloud}/ended; exit 0\n"
    )
    gcloud = cloud / "bin/gcloud"
    gcloud.write_text(gcloud.read_text().replace("#!/bin/sh", "#!/bin/sh\ntrap 'exit 1' INT"))
    with subprocess.Popen(
        [cloud / "checkout/launch/tpu_pod.sh", "run", "a", "--spot", *RUN],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": before(cloud / "bin"), "CLOUDSDK_COMPUTE_ZONE": "z"},
        start_new_session=True,
    ) as job:
        assert job.stdout.readline() == "up\n"
        os.killpg(job.pid, signal.SIGINT)
        assert job.wait(timeout=20) == 130
    assert not (cloud / "ended").exists() and not (cloud / "slept").exists()
    (cloud / "end").touch()
    while not (cloud / "ended").exists():
        time.sleep(0.05)


def test_a_machine_without_gcloud_is_told_so(tmp_path):
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    told = run("tpu_pod.sh", "run", "a", "--zone=z", "--spot", *RUN, PATH=tmp_path)
    assert told.returncode == 2 and "there is no gcloud on the PATH" in told.stderr


def test_a_slice_in_another_state_is_refused(cloud):
    (cloud / "state").write_text("CREATING\n")
    refused = pod(cloud, "run", "a", *RUN)
    assert (
        refused.returncode == 2
        and "the slice a is CREATING. Wait until it is READY" in refused.stderr
    )


def test_a_share_is_for_the_users_group_and_not_for_everybody(tmp_path):
    """launch/tpu_worker.sh mount, with stand-ins for the machine's programs."""
    for name, body in (
        ("sudo", f'echo "$*" >>{tmp_path}/said'),
        ("mountpoint", "exit 1"),
        ("id", "echo 1234"),
    ):
        program(tmp_path / "bin", name, body)
    done = run("tpu_worker.sh", "mount", "host:/runs", PATH=before(tmp_path / "bin"), HOME=tmp_path)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "said").read_text()
    assert "mount -t nfs host:/runs /mnt/runs" in said and "777" not in said
    assert "chgrp 1234 /mnt/runs" in said and "chmod g+rwx,+t /mnt/runs" in said
