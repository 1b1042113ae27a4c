"""Kills, damaged checkpoints, full disks: a run loses nothing that it had saved, and ends bit for
bit as one left alone."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core import parallel
from cl_jax.core.method import State
from cl_jax.training import checkpoint, experiment, metrics
from configs import simclr_v1
from tests import small
from tests.training.test_resume import CLOCK, assert_same

ROOT = Path(__file__).parents[2]
KILLS, STEPS, DAMAGED = 20, 99, ("cut", "lost", "flipped")
CONFIG = f"""
from configs import simclr_v1

def get_config(arg=None):
    config = simclr_v1.get_config("debug")
    config.update(dict(devices=2, total_epochs={STEPS / 3}, log_steps=1))
    config.update(dict(checkpoint_steps=1, keep_checkpoints=3))
    config.evals.update(dict(every_epochs=1.0, baselines=False))
    return config
"""


class Job:
    """The two-process run of a workdir, started by launch/local.sh: the same command each time."""

    def __init__(self, folder, workdir):
        (folder / "config.py").write_text(CONFIG)
        self.folder, self.workdir, self.last = folder, folder / workdir, folder / workdir / "last"
        self.line = [
            ROOT / "launch/local.sh",
            "-n",
            "2",
            sys.executable,
            "-m",
            "tests.killed",
            "--distributed",
            f"--config={folder}/config.py",
            f"--workdir={self.workdir}",
        ]
        self.environment = {
            name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
        }
        self.environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}

    def start(self):
        self.said = self.folder / f"{self.workdir.name}.log"
        with self.said.open("w") as file:
            self.process = subprocess.Popen(
                self.line,
                cwd=ROOT,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def output(self):
        return self.said.read_text()

    def ended(self):
        return self.process.poll() is not None

    def wait(self, timeout=600):
        self.process.wait(timeout)
        return self.process.returncode

    def kill(self):
        """All processes at once, as when a machine is lost."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_one(self, chance):
        """One of the two; the launcher ends the other."""
        found = subprocess.run(
            ["pgrep", "-g", str(self.process.pid), "-f", "tests.killed --distributed"],
            capture_output=True,
            text=True,
        ).stdout.split()
        python = [
            pid for pid in found if "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        ]
        os.kill(int(chance.choice(python)), signal.SIGKILL)
        assert self.wait(60) not in (0, 75), self.output()

    def saved(self):
        """Steps of the checkpoints that are whole, ascending."""
        return sorted(int(path.name) for path in self.last.glob("*") if path.name.isdigit())

    def saving(self):
        return any(self.last.glob("*-tmp*"))

    def until(self, condition, timeout=300):
        end = time.monotonic() + timeout
        while not self.ended() and not condition():
            assert time.monotonic() < end, self.output()
            time.sleep(0.003)

    def result(self):
        config = simclr_v1.get_config("debug")
        config.update({"devices": 2, "total_epochs": STEPS / 3})
        store = checkpoint.Checkpoints(self.workdir)
        state = store.restore(experiment.initial_state(small.epochal(config), config))
        store.close()
        assert state.step == STEPS
        rows = [
            {name: row[name] for name in row.keys() - CLOCK} for row in metrics.read(self.workdir)
        ]
        return parallel.fetch(state), rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("chaos"), "whole").start()
    assert job.wait() == 0, job.output()
    return job.result()


def damage(checkpoint_folder, how, chance):
    """Damages the largest file of a checkpoint."""
    damage_file(
        max(
            (path for path in checkpoint_folder.rglob("*") if path.is_file()),
            key=lambda path: path.stat().st_size,
        ),
        how,
        chance,
    )


def damage_file(path, how, chance):
    """Cuts, removes or flips bits of a file."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "lost":
        path.unlink()
    else:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)


def moment(job, kind, chance):
    """Waits for the moment of a kill: soon after the start, some steps on, or in the middle of a
    save some steps on."""
    if kind == "early":
        time.sleep(chance.uniform(0.2, 8.0))
        return
    steps, before = chance.randrange(1, 4), max(job.saved(), default=0)
    job.until(lambda: max(job.saved(), default=0) >= before + steps)
    if kind == "save":
        job.until(job.saving)
        time.sleep(chance.uniform(0.0, 0.03))
    else:
        time.sleep(chance.uniform(0.0, 0.3))


@pytest.mark.slow  # twenty restarts of two processes
def test_killed_at_random_moments_and_its_checkpoints_damaged(undisturbed, tmp_path):
    """Each start goes on from the newest whole checkpoint. Now and then that one is damaged, and
    the one before serves."""
    chance, job = random.Random(int(os.environ.get("CL_JAX_CHAOS_SEED", "0"))), Job(tmp_path, "run")
    count = dict.fromkeys(("kills", "within a save", "of one process", "damaged", "fallen back"), 0)
    allowed, to_damage = {0}, list(DAMAGED)
    while count["kills"] < KILLS:
        job.start()
        kind = (
            chance.choice(("early", "any", "save", "save", "one")) if len(allowed) == 1 else "any"
        )
        moment(job, kind, chance)
        assert not job.ended(), job.output()
        resumed = re.search(r"resuming at step (\d+)", job.output())
        if resumed or kind != "early":
            assert int(resumed[1]) in allowed if resumed else allowed == {0}, (
                allowed,
                job.output(),
            )
            if len(allowed) == 2 and int(resumed[1]) == min(allowed):
                assert (
                    f"checkpoint of step {max(allowed)} cannot be restored, trying the one before"
                    in job.output()
                )
                count["fallen back"] += 1
        if kind == "one":
            job.kill_one(chance)
            count["of one process"] += 1
        else:
            job.kill()
        count["kills"] += 1
        count["within a save"] += job.saving()
        print(
            f"kill {count['kills']} ({kind}) after step {max(job.saved(), default=0)}", flush=True
        )
        if kind == "early" and not resumed:
            continue
        allowed = {max(job.saved(), default=0)}
        if to_damage and count["kills"] % 5 == 0 and len(job.saved()) > 1:
            allowed = set(job.saved()[-2:])  # one damaged in what it does not need is whole
            damage(job.last / str(max(allowed)), to_damage.pop(0), chance)
            count["damaged"] += 1
    assert job.start().wait() == 0, job.output()
    count["fallen back"] += "trying the one before" in job.output()
    state, rows = job.result()
    print(
        f"kills survived: {KILLS} of {KILLS}; "
        + ", ".join(f"{number} {name}" for name, number in count.items())
    )
    assert_same(undisturbed[0], state, "after the kills")
    assert undisturbed[1] == rows
    assert count["within a save"] >= 3 and count["fallen back"] >= 2


@pytest.mark.slow
def test_sigterm_saves_at_one_step_of_all_processes_and_the_same_command_resumes(
    undisturbed, tmp_path
):
    job = Job(tmp_path, "run").start()
    job.until(lambda: len(job.saved()) >= 3)
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 75, job.output()
    step = int(
        re.search(
            rf"stopped at step (\d+) of {STEPS}; the same command resumes there", job.output()
        )[1]
    )
    assert max(job.saved()) == step < STEPS and not job.saving()
    assert job.start().wait() == 0, job.output()
    assert f"resuming at step {step} of {STEPS}" in job.output()
    state, rows = job.result()
    assert_same(undisturbed[0], state, "after SIGTERM")
    assert undisturbed[1] == rows


# One process --------------------------------------


def state_of(step):
    keys = jax.random.split(jax.random.key(step))
    return State(
        jnp.int32(step),
        {"w": jax.random.normal(keys[0], (64, 96)), "b": jnp.full(9, step, jnp.bfloat16)},
        (),
        {},
        memory={"rows": jax.random.normal(keys[1], (40, 32)), "seen": jnp.arange(12) + step},
    )


@pytest.mark.slow  # each file in three ways
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of the store's own cancelled reads
@pytest.mark.parametrize("how", DAMAGED)
def test_every_file_of_the_newest_checkpoint_damaged(how, tmp_path, caplog):
    """Whatever is damaged, a State that was saved comes back: the newest, if the file is one that
    it does not need, or the one before, with a line that says so; and the run saves again over the
    damaged one."""
    store = checkpoint.Checkpoints(tmp_path / "whole")
    for step in (1, 2):
        store.save(state_of(step))
    store.close()
    tried = fallen_back = 0
    newest = tmp_path / "whole/last/2"
    for path in sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file()):
        for number in range(3 if how == "flipped" else 1):
            folder = tmp_path / f"{tried}"
            shutil.copytree(tmp_path / "whole", folder)
            damage_file(folder / "last/2" / path, how, random.Random(number))
            caplog.clear()
            store = checkpoint.Checkpoints(folder)
            found = store.restore(state_of(0))
            assert_same(state_of(int(found.step)), found, f"{path} {how}")
            if found.step == 1:
                assert (
                    "trying the one before" in caplog.text
                    or "a save that never finished" in caplog.text
                )
                fallen_back += 1
            store.save(state_of(2))
            store.close()
            store = checkpoint.Checkpoints(folder)
            assert store.restore(state_of(0)).step == 2
            store.close()
            tried += 1
    print(
        f"damaged checkpoints survived: {tried} of {tried} ({how}); {fallen_back} went back to "
        f"the one before"
    )
    assert fallen_back >= 4


def test_a_flip_that_the_store_does_not_see_is_found_by_its_checksum(tmp_path, monkeypatch):
    store = checkpoint.Checkpoints(tmp_path)
    store.save(state_of(1))
    monkeypatch.setattr(
        checkpoint, "checksums", lambda tree, right=checkpoint.checksums: right(tree) ^ np.uint32(1)
    )
    store.save(state_of(2))
    store.close()
    monkeypatch.undo()
    store = checkpoint.Checkpoints(tmp_path)
    assert store.restore(state_of(0)).step == 1
    store.close()


FULL = """
import resource, sys
from cl_jax.training import checkpoint
from tests.training.test_chaos import assert_same, state_of
store = checkpoint.Checkpoints(sys.argv[1])
store.save(state_of(1))
store.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    store.save(state_of(2))
    store.close()
except OSError as error:
    assert "File too large" in str(error) and "newest whole checkpoint is of step 1" in str(error)
else:
    raise AssertionError("no room, and no error")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store = checkpoint.Checkpoints(sys.argv[1])
assert_same(state_of(1), store.restore(state_of(0)), "the one before")
store.save(state_of(2))
store.close()
store = checkpoint.Checkpoints(sys.argv[1])
assert_same(state_of(2), store.restore(state_of(0)), "saved once there is room")
"""


@pytest.mark.slow
def test_no_room_for_a_save_leaves_the_one_before_whole(tmp_path):
    """The limit on the size of files stands for the disk: the store meets it in the middle of a
    write."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "last").glob("*-tmp*"))


# Whole methods --------------------------------------

REAL_KILLS = int(os.environ.get("CL_JAX_REAL_KILLS", "5"))
MOMENTS = ("start", "step", "save", "evaluation")


class Whole:
    """The command of a method in its debug variant, all stages, three epochs of each, a checkpoint
    each step and an evaluation each epoch."""

    def __init__(self, name, workdir, log):
        self.workdir, self.log = workdir, log
        words = [f"--config=configs/{name}.py:debug", f"--workdir={workdir}"]
        words += ["--config.checkpoint_steps=1", "--config.log_steps=1"]
        words += ["--config.total_epochs=3", "--config.evals.every_epochs=1"]
        words += ["--stage=all"] if name == "simclr_v2" else []
        self.line = [sys.executable, "-m", "cl_jax.main", *words]

    def start(self):
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                self.line,
                cwd=ROOT,
                env=environment | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )
        return self

    def to_its_end(self):
        assert self.process.wait(600) == 0, self.log.read_text()

    def seen(self, pattern):
        """What there is below the workdir by names of that pattern."""
        paths = (
            Path(folder, name)
            for folder, folders, files in os.walk(self.workdir)  # which forgives what vanishes
            for name in folders + files
        )
        return {path for path in paths if path.match(pattern)}

    def saved(self):
        return {path for path in self.seen("last/[0-9]*") if path.name.isdigit()}

    def killed(self, moment, chance):
        """Kills the program at a moment of that kind; False where it ended before."""
        rows, saves = self.rows(), self.saved()
        self.start()
        if moment == "start":
            self.until(lambda: False, chance.uniform(0.2, 8.0))
        elif moment == "step":
            self.until(lambda: self.rows() > rows, 600)
            self.until(lambda: False, chance.uniform(0.0, 0.5))
        else:
            times = chance.randrange(1, 4)
            for _ in range(times):
                self.until(lambda: self.saved() - saves, 600)
                saves |= self.saved()
            if moment == "save":
                self.until(lambda: self.seen("*/*-tmp*"), 600)
                self.until(lambda: False, chance.uniform(0.0, 0.03))
            else:
                self.until(lambda: False, chance.uniform(0.0, 4.0))
        ended = self.process.poll() is not None
        self.process.kill()
        status = self.process.wait()
        assert not ended or status == 0, self.log.read_text()
        return not ended

    def rows(self):
        return sum(path.read_bytes().count(b"\n") for path in self.seen("metrics.jsonl"))

    def until(self, condition, seconds):
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end and not condition():
            time.sleep(0.005)

    def left(self):
        """{checkpoint: its arrays}, and the logs without clocks, of all stages."""
        import orbax.checkpoint as ocp

        arrays, rows = {}, {}
        for path in sorted(self.workdir.rglob(checkpoint.METADATA)):
            if path.parent.parent.name in ("last", "best"):
                with ocp.StandardCheckpointer() as store:
                    arrays[str(path.parent.relative_to(self.workdir))] = store.restore(
                        path.parent / "default"
                    )
        clocks = CLOCK | {"eval_seconds", "mfu"}
        for path in sorted(self.workdir.rglob("metrics.jsonl")):
            rows[str(path.relative_to(self.workdir))] = [
                {key: row[key] for key in row.keys() - clocks} for row in metrics.read(path.parent)
            ]
        return arrays, rows


# Work before each epoch, queues, stages; then one of each kind of data and of training.
WHOLE = ["pcl", "deepcluster", "swav", "simclr_v2"]
WHOLE += ["simcse", "cpc_audio", "graphcl", "clip", "ms_clip", "contragan", "a2c_cpc", "imix"]


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_whole_methods_killed_at_random_moments(name, tmp_path):
    """SIGKILL at any time from the start of the program on; the same command continues to the end:
    last and best checkpoints, and logs, are those of a run left alone."""
    log, chance = tmp_path / "log", random.Random(f"{name} {os.environ.get('CL_JAX_CHAOS_SEED')}")
    alone = Whole(name, tmp_path / "alone", log)
    alone.start().to_its_end()
    arrays, rows = alone.left()
    assert any("best" in place for place in arrays)
    kills, ends = dict.fromkeys(MOMENTS, 0), 0
    cut = Whole(name, tmp_path / "cut", log)

    def compare():
        found, logged = cut.left()
        assert arrays.keys() == found.keys()
        for place, tree in arrays.items():
            assert_same(tree, found[place], f"{name}: {place}")
        assert rows == logged

    while sum(kills.values()) < REAL_KILLS:
        moment = MOMENTS[sum(kills.values()) % len(MOMENTS)]
        if cut.killed(moment, chance):
            kills[moment] += 1
        else:  # it came to its end before; begins again
            compare()
            shutil.rmtree(cut.workdir)
            ends += 1
    cut.start().to_its_end()
    compare()
    print(
        f"{name}: {sum(kills.values())} kills {kills}, {ends + 1} ends, {len(arrays)} checkpoints "
        "the same bit for bit"
    )
