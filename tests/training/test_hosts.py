"""Machines of one job that do not share what they should: all processes refuse it, and say why."""

import pytest

from tests.training.test_processes import launched


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The lines of each of two processes, {case: what was said}."""
    folder = tmp_path_factory.mktemp("hosts")
    for name in ("data0/1.png", "data0/2.png", "data1/1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name[6:].encode())
    done = launched((2, 1), "tests.hosts", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    found = [{}, {}]
    for line in done.stdout.splitlines():
        process, _, text = line.partition("] ")
        if ": " in text:
            case, _, words = text.partition(": ")
            found[int(process[1:])][case] = words
    return found


def test_a_workdir_of_each_machine_is_refused(said):
    for one in said:
        for case in ("own workdirs", "an evaluation of own workdirs"):
            words = "is not one folder for all processes: process 2 of 2 cannot see"
            assert words in one[case], case
        assert one["a shared workdir"] == one["a workdir that is not there"] == "None"


def test_data_of_which_a_machine_lacks_a_file_are_refused(said):
    for one, files in zip(said, (2, 1), strict=True):
        for case in ("data", "data of an evaluation"):
            assert one[case].startswith("the data of process 2 are not those of process 1"), case
            assert f"This one has train=8, test=8, files={files}" in one[case]


def test_a_source_that_learnt_something_else_on_a_machine_is_refused(said):
    """But for the last digits of floats, in which machines differ."""
    for one, more in zip(said, ("", ": another mean, words"), strict=True):
        words = "the source of the data learnt something else in process 2 than in process 1"
        assert one["learnt else"].startswith(f"{words}{more}. ")
        assert one["learnt alike"] == "[]"


def test_all_processes_try_the_checkpoints_that_the_first_one_sees(said):
    for one in said:
        assert (
            "fits this run:   last/2: ValueError: a save that never finished"
            in (one["checkpoints"])
        )
        assert "last/1" in one["checkpoints"]
