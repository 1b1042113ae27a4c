"""Several processes of one machine, joined by jax.distributed, against one process."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cl_jax.checks import verify
from cl_jax.core import parallel
from cl_jax.data import batches
from cl_jax.tools import train
from cl_jax.training import loop, stages
from tests import processes, small

ROOT = Path(__file__).parents[2]
SHAPES = [(2, 2), pytest.param((4, 1), marks=pytest.mark.slow)]  # processes, devices of each


def launched(shape, *command, timeout=500):
    """launch/local.sh, without this process's own devices."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": processes.flags()}
    line = [
        ROOT / "launch/local.sh",
        "-n",
        str(shape[0]),
        "-d",
        str(shape[1]),
        sys.executable,
        "-m",
        *command,
    ]
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def job(shape, folder, *start):
    done = launched(shape, "tests.processes", str(folder), *map(str, start))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {
        f"process {i + 1} of {shape[0]} is done: {shape[1]} of 4 devices" for i in range(shape[0])
    } <= {line.partition("] ")[2] for line in done.stdout.splitlines()}
    return folder


@pytest.fixture(scope="module")
def one():
    """A run on one device; called with the seed of a nudge or None."""
    return verify.Runner(small.built(1), small.config(1))


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def cluster(request, tmp_path_factory):
    """(shape, folder) of a job that trained from the start to the end."""
    return request.param, job(request.param, tmp_path_factory.mktemp("job"))


def bounded(one, found):
    """The verdict of cl_jax.checks.verify on what four devices came to."""
    return verify.compare(
        lambda devices, seed: one(seed) if devices == 1 else found, (1, 4), "processes"
    )


def test_the_same_as_one_process(cluster, one):
    record = bounded(one, processes.outcome_of(cluster[1], one.state))
    assert record.same(), verify.table([record])


def test_each_example_is_read_by_one_process(cluster, one):
    """By ids: of every step the processes' rows are the global batch in rank order, and of an epoch
    each example once."""
    (count, _), folder = cluster
    rows = [np.load(folder / f"ids{index}.npy") for index in range(count)]
    assert all(part.shape == (small.STEPS, small.BATCH // count) for part in rows)
    for step, ids in enumerate(np.concatenate(rows, axis=1)):
        np.testing.assert_array_equal(
            ids, batches.ids_at(step, seed=3, size=small.SIZE, batch_size=small.BATCH)
        )
    epoch = small.SIZE // small.BATCH
    assert sorted(np.concatenate([part[:epoch].ravel() for part in rows])) == list(
        range(small.SIZE)
    )
    # The devices saw what was read: counted by the method itself.
    seen = processes.outcome_of(folder, one.state).state.memory["seen"]
    np.testing.assert_array_equal(
        seen, np.bincount(np.concatenate([part.ravel() for part in rows]), minlength=small.SIZE)
    )


def test_a_checkpoint_of_the_cluster_is_restored_by_one_process(cluster, one, tmp_path):
    """On four devices of one process: from the cluster's half way to the end, against the run on
    one device."""
    rest, _ = processes.train(tmp_path, cluster[1], devices=4)
    whole = processes.outcome_of(cluster[1], one.state)
    assert rest.loss.shape == (small.STEPS - processes.HALF,)
    joined = verify.Outcome(
        np.concatenate([whole.loss[: processes.HALF], rest.loss]),
        np.concatenate([whole.grad_norm[: processes.HALF], rest.grad_norm]),
        rest.state,
    )
    record = bounded(one, joined)
    assert record.same(), verify.table([record])


@pytest.mark.slow
def test_a_checkpoint_of_one_process_is_restored_by_the_cluster(one, tmp_path):
    whole, half = processes.train(tmp_path / "one", devices=4)
    assert half.step == processes.HALF
    rest = processes.outcome_of(job((2, 2), tmp_path / "job", tmp_path / "one"), one.state)
    joined = verify.Outcome(
        np.concatenate([whole.loss[: processes.HALF], rest.loss]),
        np.concatenate([whole.grad_norm[: processes.HALF], rest.grad_norm]),
        rest.state,
    )
    record = bounded(one, joined)
    assert record.same(), verify.table([record])


def test_a_wrong_cluster_would_be_found(one):
    """The comparison of these tests sees a process that trains on rows of another."""
    runner = verify.Runner(small.built(4, small.FAULTS[2]), small.config(4))
    assert not bounded(one, runner(None)).same()


def test_the_first_line_names_the_process_and_its_devices(tmp_path, monkeypatch, capsys):
    """As the second of two processes prints it; the next test starts both."""
    monkeypatch.setattr(parallel, "join", lambda: None)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop, "stages", lambda *_: [])
    assert train.main(["simclr_v1:debug", f"--workdir={tmp_path}/run", "--distributed"]) == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("process 2 of 2, devices [CpuDevice(id=")
    assert first.count("CpuDevice") == jax.local_device_count()


@pytest.mark.slow
def test_first_line_of_each_process_names_it_and_its_devices():
    """The config is refused after that, so that nothing is trained."""
    done = launched(
        (2, 2),
        "cl_jax.main",
        "--distributed",
        "--config=configs/simclr_v1.py:debug",
        "--workdir=unused",
        "--config.batch_size=18",
    )
    lines = [line for line in done.stdout.splitlines() if "Gloo" not in line]
    for i in range(2):
        mine = [line for line in lines if line.startswith(f"[{i}]")]
        assert (
            mine[0].startswith(f"[{i}] process {i + 1} of 2, devices [CpuDevice(id=")
            and mine[0].count("CpuDevice") == 2
        )
        assert "batch_size=18 is not divisible by 4 devices" in mine[-1]
    assert done.returncode == 1


@pytest.mark.parametrize(
    "given,message",
    [
        (
            {"JAX_NUM_PROCESSES": "2"},
            "expected the three of JAX_NUM_PROCESSES, JAX_PROCESS_ID, JAX_COORDINATOR_ADDRESS",
        ),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "one", "JAX_COORDINATOR_ADDRESS": "a:1"},
            "the first two whole numbers",
        ),
    ],
)
def test_half_a_description_of_the_job_is_refused(given, message, monkeypatch):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        parallel.join()


CONFIG = """
from ml_collections import ConfigDict
from cl_jax.checks import verify
from configs import moco_v2

def get_config(arg=None):
    config = moco_v2.get_config("debug")
    config.update(dict(devices=4, total_epochs=2.5, log_steps=1))
    config.optimizer = ConfigDict(verify.OPTIMIZER)
    config.encoder.splits = 4
    config.evals.update(dict(every_epochs=0.0, baselines=False))
    return config
"""


@pytest.mark.slow  # compiles MoCo in every process
@pytest.mark.parametrize("shape", [(2, 2), (4, 1)], ids=str)
def test_the_program_itself_with_queue_and_momentum_network(shape, tmp_path):
    """cl_jax.main on a whole method, from the command line to the checkpoint, against one
    device."""
    (tmp_path / "moco.py").write_text(CONFIG)
    done = launched(
        shape,
        "cl_jax.main",
        "--distributed",
        f"--config={tmp_path}/moco.py",
        f"--workdir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config, _, state = stages.load(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    loss, norm = (
        np.float32([row[name] for row in rows if name in row]) for name in ("loss", "grad_norm")
    )
    one = verify.runner(config, 1, None, 10)
    record = bounded(
        one, verify.Outcome(loss, norm, jax.tree.map(np.asarray, dataclasses.replace(state)))
    )
    assert record.same(), verify.table([record])
