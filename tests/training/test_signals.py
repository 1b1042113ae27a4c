"""The command under signals, in processes of its own; and jobs of which one process fails."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cl_jax.core import parallel
from cl_jax.tools import train
from cl_jax.training import checkpoint, configs, experiment, stages, stopping
from tests import small

ROOT = Path(__file__).parents[2]
CONFIG = """
from configs import simclr_v1

def get_config(arg=None):
    config = simclr_v1.get_config("debug")
    config.update(dict(total_epochs=2000.0, log_steps=1))
    config.evals.update(dict(every_epochs=0.0, baselines=False))
    return config
"""


def environment(**more):
    given = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return given | {"PYTHONPATH": str(ROOT)} | more


def command(folder, *words, module="cl_jax.main"):
    (folder / "config.py").write_text(CONFIG)
    words = (f"--config={folder}/config.py", f"--workdir={folder}/run", *words)
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process, text):
    """Reads what a process says up to a line with this text."""
    said = ""
    for line in process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def test_a_stop_that_jax_took_for_an_error_is_a_stop(monkeypatch, capsys):
    """As its comparison of trees does."""

    def compares(*_):
        try:
            raise stopping.Interrupted("SIGTERM: stopped")
        except stopping.Interrupted as stopped:
            raise ValueError("checking equality") from stopped

    monkeypatch.setattr(train, "_run", compares)
    assert train.run(None, None, [], "train") == stopping.STOPPED
    assert capsys.readouterr().err == "SIGTERM: stopped\n"


@pytest.mark.parametrize(
    "number, text",
    [
        pytest.param(signal.SIGTERM, "process 1 of 1", marks=pytest.mark.slow),
        (signal.SIGINT, "parameters"),
    ],
)
def test_a_signal_while_the_program_compiles_is_answered(number, text, tmp_path):
    """Python does not run then, and the process ends by its thread that listens; or a step is
    compiled beside it, whose end is not waited for."""
    with command(tmp_path) as process:
        until(process, text)
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "stopped while starting; the same command resumes" in said
    assert time.monotonic() - began < 10  # of a machine that does other things besides


IMPORTS = """
import os, signal, sys
from cl_jax.training import stopping

class Finder:
    def find_spec(self, name, *_):
        if name == "jax":
            signal.raise_signal(int(sys.argv[1]))

sys.meta_path.insert(0, Finder())
sys.argv[2:] or stopping.end_by_ctrl_c()
try:
    with stopping.Stop(hard=True) if sys.argv[2:] else open(os.devnull):
        import jax
except BaseException:
    os._exit(99)
"""


@pytest.mark.parametrize(
    ("number", "words", "status"),
    [(signal.SIGTERM, ["train"], 75), (signal.SIGINT, ["train"], 75), (signal.SIGINT, [], 130)],
)
def test_a_signal_within_an_import_raises_nothing_there(number, words, status):
    """Compiled modules make an ImportError of what is raised, or crash."""
    command = [sys.executable, "-c", IMPORTS, str(int(number)), *words]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert ended.returncode == status, ended.stderr
    assert ("stopped while starting" in ended.stderr) == (status == 75)


def test_two_signals_at_a_step_save_once_and_whole(tmp_path):
    with command(tmp_path, module="tests.killed") as process:
        until(process, "step    3 of")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    step = re.search(r"stopped at step (\d+) of 6000; the same command resumes there", said)[1]
    assert [path.name for path in (tmp_path / "run/last").iterdir()] == [step]
    config = stages.stages(configs.load(f"{tmp_path}/config.py"), "unused")[0][1]
    config.devices = 1
    store = checkpoint.Checkpoints(tmp_path / "run")
    restored = store.restore(experiment.shape_of_state(small.epochal(config)))
    store.close()
    assert int(restored.step) == int(step)


FAILS = """
import os, sys
from cl_jax import main
from cl_jax.training.steps import Stepper
from tests import killed

advance = Stepper.advance

def fails(self, state, until):
    import jax
    if self.step == 5 and jax.process_index() == int(sys.argv.pop()):
        raise RuntimeError("the disk of this machine is gone")
    return advance(self, state, until)

if os.environ.get("FAIL"):
    Stepper.advance = fails
sys.exit(main.main(sys.argv[1:-1]))
"""


def two_processes(words, folder, **more):
    """A job of two processes without a launcher, which write FOLDER/0.log and FOLDER/1.log."""
    port, jobs = 20000 + (os.getpid() + len(words)) % 20000, []
    for number in (0, 1):
        with (folder / f"{number}.log").open("w") as log:
            jobs.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    cwd=ROOT,
                    env=environment(
                        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
                        JAX_NUM_PROCESSES="2",
                        JAX_PROCESS_ID=str(number),
                        **more,
                    ),
                    stderr=log,
                )
            )
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_when_one_process_fails_all_end_and_it_is_named(which, tmp_path):
    """Without a launcher: nobody else ends them."""
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "fails.py").write_text(FAILS)
    words = ["--distributed", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    jobs = two_processes([tmp_path / "fails.py", *words, str(which)], tmp_path, FAIL="1")
    log = tmp_path / f"{which}.log"
    while "the disk of this machine is gone" not in log.read_text():
        assert jobs[which].poll() is None or "gone" in log.read_text(), log.read_text()
        time.sleep(0.1)
    began = time.monotonic()
    statuses = [job.wait(60) for job in jobs]
    seconds = time.monotonic() - began
    print(f"one of two failed ({which}): all ended after {seconds:.1f} s, statuses {statuses}")
    assert f"process {which + 1} of 2" in log.read_text()
    # 134 of a shell: jax.distributed ends the other one by SIGABRT.
    assert statuses[which] == 1 and statuses[1 - which] in (1, -signal.SIGABRT) and seconds < 15


LACKS = """
import os, time
from configs import simclr_v1

def get_config(arg=None):
    if os.environ["JAX_PROCESS_ID"] == "0":
        time.sleep(120)
    config = simclr_v1.get_config("folder")
    config.data.path = "missing"
    return config
"""


@pytest.mark.slow
def test_a_process_that_lacks_the_data_is_named_and_all_end(tmp_path):
    """It fails before anything is built, and the others are still busy with their config."""
    (tmp_path / "config.py").write_text(LACKS)
    words = ["--distributed", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    jobs = two_processes(["-m", "cl_jax.main", *words], tmp_path)
    try:
        assert jobs[1].wait(60) == 1
        assert "process 2 of 2: error: " in (tmp_path / "1.log").read_text()
        assert jobs[0].wait(15) in (1, -signal.SIGABRT)
    finally:
        for job in jobs:
            job.kill()


def test_a_process_joins_the_others_before_it_can_fail(monkeypatch, capsys):
    monkeypatch.setattr(parallel, "join", lambda: print("joined"))
    words = ["simclr_v1:folder", "missing", "--workdir=unused", "--distributed"]
    assert train.main(words) == 1
    said = capsys.readouterr()
    assert said.out == "joined\n" and "error: " in said.err and "missing" in said.err


@pytest.mark.slow
def test_ctrl_c_to_one_process_stops_the_job(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    words = ["--distributed", f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    jobs = two_processes(["-m", "tests.killed", *words], tmp_path)
    while "step    3 of" not in (tmp_path / "0.log").read_text():
        assert jobs[0].poll() is None, (tmp_path / "0.log").read_text()
        time.sleep(0.1)
    jobs[1].send_signal(signal.SIGINT)
    assert [job.wait(60) for job in jobs] == [75, 75]
    assert "stopped at step" in (tmp_path / "1.log").read_text()
