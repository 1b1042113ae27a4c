"""launch/local.sh: what each process is given, how statuses and signals pass through."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

from tests.launch.scripts import LAUNCH, run


def test_dry_run_prints_a_command_per_process():
    lines = run(
        "local.sh", "-n", "2", "-d", "2", "-p", "1234", "--dry-run", "python", "-m", "a b"
    ).stdout.splitlines()
    for i, line in enumerate(lines):
        assert shlex.split(line) == [
            "env",
            "JAX_COORDINATOR_ADDRESS=127.0.0.1:1234",
            "JAX_NUM_PROCESSES=2",
            f"JAX_PROCESS_ID={i}",
            "JAX_NUM_CPU_DEVICES=2",
            f"JAX_LOCAL_DEVICE_IDS={2 * i},{2 * i + 1}",
            "python",
            "-m",
            "a b",
        ]
    assert len(lines) == 2


def test_processes_share_a_free_port_and_their_lines_are_marked():
    done = run(
        "local.sh",
        "-n",
        "3",
        "sh",
        "-c",
        "echo $JAX_PROCESS_ID of $JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS",
    )
    assert done.returncode == 0
    found = sorted(
        re.fullmatch(r"\[(\d)\] (\d) of 3 127.0.0.1:(\d+)", line).groups()
        for line in done.stdout.splitlines()
    )
    assert [(mark, own) for mark, own, _ in found] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert len({port for _, _, port in found}) == 1


def test_a_failure_ends_the_others_and_is_the_exit_status():
    since = time.monotonic()
    done = run(
        "local.sh", "-n", "2", "sh", "-c", '[ "$JAX_PROCESS_ID" = 1 ] && exit 7; exec sleep 30'
    )
    assert done.returncode == 7 and "process 1 ended with status 7" in done.stderr
    assert time.monotonic() - since < 20


def test_sigterm_reaches_every_process_and_75_means_resume():
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        "print('up', flush=True); time.sleep(30)"
    )
    with subprocess.Popen(
        [LAUNCH / "local.sh", "-n", "2", sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
    ) as job:
        assert {job.stdout.readline(), job.stdout.readline()} == {"[0] up\n", "[1] up\n"}
        os.kill(job.pid, signal.SIGTERM)
        assert job.wait(timeout=20) == 75
