"""Checkpoints that are there are used or named, never started over in silence, never deleted."""

import dataclasses
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core import parallel, population
from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.method import State
from cl_jax.core.sharded import whole
from cl_jax.training import checkpoint
from tests import killed_save
from tests.training.test_chaos import state_of
from tests.training.test_resume import assert_same


def saved(folder, *steps, best=()):
    store = checkpoint.Checkpoints(folder, keep=3)
    for step in steps:
        store.save(state_of(step))
    for step in best:
        store.save_best(state_of(step), 0.5)
    store.close()


def restored(folder, **given):
    store = checkpoint.Checkpoints(folder, keep=3)
    found = store.restore(state_of(0), **given)
    store.close()
    return found


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_the_best_one_serves_where_the_last_are_gone(tmp_path, caplog):
    saved(tmp_path, 1, 2, 3, best=(2,))
    shutil.rmtree(tmp_path / "last")
    found = restored(tmp_path)
    assert_same(state_of(2), found, "best")
    assert "going on from the best one, of step 2" in caplog.text
    store = checkpoint.Checkpoints(tmp_path, keep=3)
    store.restore(state_of(0))
    store.save(state_of(3))
    store.close()
    assert restored(tmp_path).step == 3


FULL = """
import dataclasses, resource, sys
import numpy as np
from cl_jax.core.errors import SaveError
from cl_jax.tools import train
from cl_jax.training import checkpoint
from tests.training.test_chaos import state_of

train.prepare()
store = checkpoint.Checkpoints(sys.argv[1])
params = {"w": np.random.default_rng(0).normal(size=200_000)}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
store.save(dataclasses.replace(state_of(1), params=params))
try:
    store.wait()
except SaveError as error:
    print(error)
"""


@pytest.mark.slow  # a process of its own: writes that failed end when they like
def test_a_file_that_cannot_be_written_is_one_error_without_the_threads_tracebacks(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "step 1 cannot be written" in found.stdout and "File too large" in found.stdout
    assert "Traceback" not in found.stderr


def test_the_best_one_is_the_files_of_the_last(tmp_path):
    saved(tmp_path, 1, 2, 3, best=(1, 3))
    assert names(tmp_path / "best") == ["3"] and len(names(tmp_path / "last")) == 3
    files = [path for path in (tmp_path / "best").rglob("*") if path.is_file()]
    assert files and {path.stat().st_nlink for path in files} == {2}
    shutil.rmtree(tmp_path / "last")
    assert_same(state_of(3), restored(tmp_path, best=True), "best")


def test_rows_of_the_data_set_are_restored_on_another_number_of_devices(tmp_path):
    rows = np.arange(26, dtype=np.float32).reshape(13, 2)

    def state(devices, values):
        found = dataclasses.replace(state_of(1), memory=(whole(jnp.asarray(values)), jnp.ones(3)))
        return parallel.spread(found, parallel.make_mesh(devices))

    store = checkpoint.Checkpoints(tmp_path)
    store.save(state(4, rows))
    for devices in (1, 2, 8):
        store.wait()
        found = store.restore(state(devices, 0 * rows))
        assert found.memory[0].rows.shape[0] == -(-13 // devices) * devices
        assert len(found.memory[0].rows.addressable_shards) == devices
        np.testing.assert_array_equal(parallel.fetch(found.memory[0]).rows, rows)
    store.close()


def populations(values):
    """(unrolled, stacked) States of two members, one as a run on two devices has it, and one as on
    four."""
    w, rows = (values * np.arange(count, dtype=np.float32) for count in (6, 8))
    w, rows = w.reshape(2, 3), rows.reshape(2, 4, 1)
    step, alive = np.int32(1), np.array([True, False])
    fields = ([{"w": one} for one in w], *[[None] * 2] * 3, [whole(one) for one in rows])
    *trees, memory = map(tuple, fields)
    unrolled = State(step, *trees, population.Members(memory, alive))
    memory = population.Members(dataclasses.replace(whole(rows[0]), rows=rows), alive)
    stacked = State(step, {"w": w}, None, None, None, memory)
    return [
        parallel.replicate(state, parallel.make_mesh(devices))
        for state, devices in ((unrolled, 2), (stacked, 4))
    ]


@pytest.mark.parametrize("then, now", [(0, 1), (1, 0)], ids=["unrolled", "stacked"])
def test_a_population_is_restored_in_the_form_of_this_machine(then, now, tmp_path):
    """What ran as one program on an accelerator is unrolled on a CPU."""
    state, expected = (populations(1)[which] for which in (then, now))
    like = populations(0)[now]
    store = checkpoint.Checkpoints(tmp_path)
    store.save(state)
    store.wait()
    checkpoint.keep(tmp_path / "kept", state)
    for found in (store.restore(like), checkpoint.kept(tmp_path / "kept", like)):
        jax.tree.map(np.testing.assert_array_equal, parallel.fetch(found), parallel.fetch(expected))
        assert [x.sharding for x in jax.tree.leaves(found)] == [
            x.sharding for x in jax.tree.leaves(expected)
        ]
    fewer = dataclasses.replace(like, params=jax.tree.map(lambda x: x[..., :2], like.params))
    with pytest.raises(ConfigError, match=r"'w'\] was saved as \[.*3\]; here it is \[.*2\]"):
        store.restore(fewer)
    store.close()


LOST = {
    "all files lost": lambda path: shutil.rmtree(path) or path.mkdir(),
    "metadata lost": lambda path: (path / checkpoint.METADATA).unlink(),
    "arrays lost": lambda path: [
        file.unlink() for file in path.rglob("*") if file.is_file() and file.parent != path
    ],
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", LOST)
def test_none_that_can_be_used_is_an_error_and_all_stay(how, tmp_path):
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        LOST[how](tmp_path / "last" / str(step))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"last/2: .*\n.*last/1: .*\nThey are left as they"):
            restored(tmp_path)
    assert names(tmp_path / "last") == ["1", "2"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_unusable_one_is_moved_not_deleted(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "last/2" / checkpoint.METADATA).unlink()
    for number in range(2):  # twice damaged
        store = checkpoint.Checkpoints(tmp_path, keep=3)
        assert store.restore(state_of(0)).step == 1
        assert names(tmp_path / "last") == ["1", "2"]  # a look changes nothing
        store.save(state_of(2))
        store.close()
        assert names(tmp_path / "unusable") == ["last-2", "last-2-1"][: number + 1]
        assert restored(tmp_path).step == 2
        (tmp_path / "last/2" / checkpoint.METADATA).unlink()


# A save that ends at every call to the file system --------------------------------------


class Disk:
    """From the `at`-th call of Python code to the file system below `root` on, every one fails."""

    def __init__(self):
        self.root, self.left, self.lock = "", None, threading.Lock()
        sys.addaudithook(self.hook)  # for the rest of the process; idle while `left` is None

    def hook(self, event, given):
        if self.left is None or event not in killed_save.CALLS or self.root not in str(given[0]):
            return
        with self.lock:
            self.left -= 1
            if self.left < 0:
                raise OSError(5, "Input/output error")

    def fails(self, root, at):
        self.root, self.left = str(root), at


def refused_at(disk, folder, what, call):
    """A save that the file system refuses from a call on; whether it came so far."""
    store, failed = checkpoint.Checkpoints(folder, keep=3), True
    assert store.restore(state_of(0)).step == 2
    disk.fails(folder, call)
    try:
        store.save(state_of(3)) if what == "last" else store.save_best(state_of(2), 0.5)
        store.wait()
        failed = False
    except SaveError:
        pass
    reached, disk.left = disk.left < 0, None
    assert reached or not failed
    return reached


def killed_at(folder, what, call):
    """A save in a process that is killed at a call; whether it came so far."""
    command = [sys.executable, "-m", "tests.killed_save", str(folder), what, str(call)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode in (0, killed_save.STATUS), ran.stderr
    return ran.returncode != 0


@pytest.mark.slow  # a save for each call, of "killed" in a process of its own
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["killed", "refused"])
@pytest.mark.parametrize("what", ["last", "best"])
def test_a_save_that_ends_at_any_call_to_the_file_system(what, how, tmp_path):
    """The two checkpoints before stay whole, the run resumes at the newest whole one, and saves
    there again. "killed": nothing that follows happens either; "refused": an error that is told."""
    disk, tried = Disk(), 0
    saved(tmp_path / "start", 1, 2, best=(1,))
    while True:
        folder = tmp_path / str(tried)
        shutil.copytree(tmp_path / "start", folder)
        reached = (
            killed_at(folder, what, tried)
            if how == "killed"
            else refused_at(disk, folder, what, tried)
        )
        if not reached:
            break
        newest, best = restored(folder), restored(folder, best=True)
        assert_same(state_of(int(newest.step)), newest, f"call {tried}")
        assert_same(state_of(int(best.step)), best, f"call {tried}")
        assert newest.step in (2, 3) and best.step in (1, 2)
        again = checkpoint.Checkpoints(folder, keep=3)
        again.restore(state_of(0))
        again.save(state_of(4))
        again.save_best(state_of(4), 0.9)
        again.close()
        assert restored(folder).step == 4 and restored(folder, best=True).step == 4
        assert not list(folder.glob("*/*-tmp*"))
        shutil.rmtree(folder)
        tried += 1
        jax.clear_caches() if tried % 50 == 0 else None
    print(f"saves ended at a call survived: {tried} of {tried} ({what}, {how})")
    assert tried > 10
