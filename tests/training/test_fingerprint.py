"""A resume on other data is noticed."""

import dataclasses
import json
import os
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.data.source import Splits, from_arrays, subset, with_learnt
from cl_jax.training import fingerprint


def parts(train, test=2):
    """Splits of so many examples."""
    images = np.zeros((train, 2, 2, 3), np.uint8)
    source = from_arrays("parts", {"image": images}, {})
    return Splits(source, subset(source, range(test)))


DATA = parts(8)


@pytest.fixture
def run(tmp_path):
    """(folder of the data, check) of a run that has a checkpoint."""
    data, workdir = tmp_path / "data", tmp_path / "run"
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(name.encode())
    workdir.mkdir()

    def check(path=data, parts=DATA):
        return fingerprint.check(workdir, ConfigDict({"data": {"path": str(path)}}), parts)

    assert check() == []
    (workdir / "last" / "1").mkdir(parents=True)
    return data, check


def test_the_same_data_elsewhere_are_the_same(run, tmp_path):
    data, check = run
    assert check() == []
    shutil.copytree(data, tmp_path / "copy")  # with its times
    assert check(tmp_path / "copy") == []


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "grown", "other size"])
def test_other_names_or_sizes_are_refused(change, run):
    data, check = run
    file = data / "cat" / "1.png"
    if change == "added":
        (data / "cat" / "3.png").write_bytes(b"")
    elif change == "removed":
        file.unlink()
    elif change == "renamed":
        file.rename(data / "dog" / "2.png")
    elif change == "grown":
        file.write_bytes(b"more than before")
    now = parts(9) if change == "other size" else DATA
    with pytest.raises(ConfigError, match="the data have changed since the run in"):
        check(parts=now)


HIDDEN = (".DS_Store", "cat/Thumbs.db", "cat/desktop.ini", ".git/HEAD")
OF_A_DRIVE = ("cat/@eaDir/1.png/thumb.jpg", "$RECYCLE.BIN/2.png", "#recycle/2.png")


def leave_behind(data, names=(*HIDDEN, *OF_A_DRIVE)):
    for name in names:
        (data / name).parent.mkdir(exist_ok=True, parents=True)
        (data / name).write_bytes(b"left by a file manager")


def test_what_a_file_manager_leaves_is_no_change_of_the_data(run):
    data, check = run
    leave_behind(data)
    assert check() == []
    (data / "cat" / ".DS_Store.png").write_bytes(b"")
    assert check() == []


@pytest.mark.parametrize("version", ["that of a drive", "all"])
def test_a_run_of_a_version_that_counted_hidden_files_is_resumed(version, run, tmp_path):
    """From then on they do not count; a file that is added is a change all the same."""
    data, check = run
    leave_behind(data)
    record = tmp_path / "run" / "data.json"
    of_a_drive, every = fingerprint.of_files(data)["with_hidden"]
    count = len(OF_A_DRIVE) + 3 + (len(HIDDEN) if version == "all" else 0)
    old = json.loads(record.read_text()) | (every if version == "all" else of_a_drive)
    assert old["files"] == count
    record.write_text(json.dumps(old))
    assert check() == [] and json.loads(record.read_text())["files"] == 3
    (data / ".DS_Store").unlink()
    assert check() == []
    hidden = data / ".labels.csv"
    hidden.write_bytes(b"a,b")
    assert fingerprint.of_files(hidden)["files"] == 1  # itself the data
    hidden.unlink()
    record.write_text(json.dumps(old))
    leave_behind(data)
    (data / "cat" / "3.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"files: {count} then, 4 now"):
        check()


def test_files_of_every_source_in_a_section_count(run, tmp_path):
    data, _ = run
    other = tmp_path / "other"
    shutil.copytree(data, other)
    workdir = tmp_path / "domains"
    workdir.mkdir()
    roles = {"source": {"name": "folder", "path": str(data)}, "target": {"path": str(other)}}
    config = ConfigDict({"data": {"name": "domains", **roles}})
    assert fingerprint.check(workdir, config, DATA) == []
    (workdir / "last" / "1").mkdir(parents=True)
    assert json.loads((workdir / "data.json").read_text())["files"] == 6
    (other / "cat" / "1.png").rename(other / "dog" / "2.png")
    with pytest.raises(ConfigError, match="the data have changed"):
        fingerprint.check(workdir, config, DATA)
    record = json.loads((workdir / "data.json").read_text())
    for key in ("files", "bytes", "names", "times"):  # of a version that kept none of these
        del record[key]
    (workdir / "data.json").write_text(json.dumps(record))
    assert fingerprint.check(workdir, config, DATA) == []


def test_other_times_are_noted(run):
    data, check = run
    os.utime(data / "cat" / "1.png", (1, 1))
    assert "of other times" in check()[0]
    assert check() == []  # once


def test_without_a_checkpoint_there_is_nothing_to_compare(run, tmp_path):
    data, check = run
    shutil.rmtree(tmp_path / "run" / "last")
    (data / "cat" / "3.png").write_bytes(b"")
    assert check() == []


def test_a_damaged_record_is_written_anew(run, tmp_path, caplog):
    _, check = run
    (tmp_path / "run" / "data.json").write_text("{")
    assert check() == [] and "written again" in caplog.text
    caplog.clear()
    assert check() == [] and not caplog.text


def test_a_folder_that_may_not_be_listed_is_passed_over(run, monkeypatch):
    """As lost+found, where a whole disk is the folder of the data."""
    data, check = run
    (data / "lost+found").mkdir()
    scandir = os.scandir

    def refused(path):
        if os.fspath(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert check() == []
    assert check(path=f"file://{data}") == []
    (data / "cat" / "1.png").write_bytes(b"another size")
    with pytest.raises(ConfigError):
        check(path=f"file://{data}")


def test_what_was_learnt_is_kept_and_compared(run, tmp_path):
    """But for the last digits of floats, in which machines differ."""
    _, check = run
    workdir, then = tmp_path / "run", {"words": ["a", "b"], "mean": [0.1, 2.0]}
    assert fingerprint.learnt(workdir) is None
    check(parts=with_learnt(DATA, then))  # of a version that did not keep it
    assert fingerprint.learnt(workdir) == then
    check(parts=with_learnt(DATA, then | {"mean": [0.1 + 1e-12, 2.0]}))
    assert fingerprint.learnt(workdir) == then
    for key, value in (("words", ["b", "a"]), ("mean", [0.2, 2.0])):
        with pytest.raises(ConfigError, match=f"gives another {key} than the run in"):
            check(parts=with_learnt(DATA, then | {key: value}))
    (workdir / fingerprint.LEARNT).write_text("{")
    with pytest.raises(ConfigError, match=r"cannot be read .* Put it back; or remove it"):
        fingerprint.learnt(workdir)


def test_data_of_other_sizes_teach_a_run_nothing_that_did_not_keep_what_it_learnt(run, tmp_path):
    learnt = {"words": ["a"]}
    fingerprint.check_learnt(tmp_path / "run", with_learnt(DATA, learnt))
    with pytest.raises(ConfigError, match=r"had 8 and .* It did not keep what it learnt"):
        fingerprint.check_learnt(tmp_path / "run", with_learnt(parts(9), learnt))


def test_a_run_that_kept_no_range_of_deep_pictures_is_not_read_in_another(run, tmp_path):
    _, check = run
    deep = with_learnt(DATA, {"value_ranges": {"depth": [0.0, 4095.0]}})
    for again in (
        lambda: check(parts=deep),
        lambda: fingerprint.check_learnt(tmp_path / "run", deep),
    ):
        with pytest.raises(ConfigError, match=r"in depth of parts .* from 0 to 65535"):
            again()
    assert fingerprint.learnt(tmp_path / "run") is None
    check(parts=with_learnt(DATA, {"value_ranges": {"depth": [0.0, 65535.0]}}))


def test_a_range_that_was_lost_is_found_again(tmp_path):
    """By a run of this version, whose record says that it was learnt."""
    deep = with_learnt(DATA, {"value_ranges": {"depth": [0.0, 4095.0]}})
    config = ConfigDict({"data": {}})
    fingerprint.check(tmp_path, config, deep)
    (tmp_path / "last" / "1").mkdir(parents=True)
    (tmp_path / fingerprint.LEARNT).unlink()
    with pytest.raises(ConfigError, match=r"had 8 and 2\. It did not keep what it learnt"):
        fingerprint.check_learnt(tmp_path, with_learnt(parts(9), deep.learnt))
    assert fingerprint.check(tmp_path, config, deep) == []
    assert fingerprint.learnt(tmp_path) == deep.learnt
    (tmp_path / fingerprint.LEARNT).unlink()
    record = json.loads((tmp_path / "data.json").read_text())
    del record["learnt"]  # of an earlier version, whether it read another range or not
    (tmp_path / "data.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"lost, write \{.*4095\.0\]\}\} into it") as error:
        fingerprint.check(tmp_path, config, deep)
    written = re.search(r"write (.*) into it", str(error.value)).group(1)
    (tmp_path / fingerprint.LEARNT).write_text(written)
    assert fingerprint.check(tmp_path, config, deep) == []


@pytest.mark.parametrize("what", ["test_path", "examples"])
def test_files_of_the_test_part_and_of_a_table_count(what, tmp_path):
    """As those of the training part; a run of a version that did not record them is resumed."""
    table, beside = tmp_path / "data" / "table.csv", tmp_path / "data" / "1.png"
    table.parent.mkdir()
    for file in (table, beside):
        file.write_bytes(b"some")
    section = {"path": str(table)} | ({"test_path": str(beside)} if what == "test_path" else {})
    config, workdir, data = ConfigDict({"data": section}), tmp_path / "run", DATA
    if what == "examples":
        named = dataclasses.replace(DATA.test, names=["1.png", "1.png"])
        data = DATA._replace(test=named)
    workdir.mkdir()

    def check():
        return fingerprint.check(workdir, config, data)

    assert check() == []
    (workdir / "last" / "1").mkdir(parents=True)
    assert check() == []
    os.utime(beside, (1, 1))
    assert "of other times" in check()[0] and check() == []
    beside.write_bytes(b"other")
    with pytest.raises(ConfigError, match=rf"changed .*:\n  {what}: bytes: 4 then, 5 now"):
        check()
    record = json.loads((workdir / "data.json").read_text())
    del record["beside"]
    (workdir / "data.json").write_text(json.dumps(record))
    assert check() == [] and check() == []
    beside.write_bytes(b"and more")
    with pytest.raises(ConfigError, match=rf"{what}: bytes: 5 then, 8 now"):
        check()


def test_sentences_are_no_files(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("some\n")
    data = DATA._replace(test=dataclasses.replace(DATA.test, names=["lines.txt", "a" * 300]))
    assert "beside" not in fingerprint.of_data(ConfigDict({"data": {"path": str(lines)}}), data)


def test_without_a_checkpoint_the_newest_counts(run, tmp_path):
    _, check = run
    shutil.rmtree(tmp_path / "run" / "last")
    for learnt in ({"words": ["a"]}, {"words": ["b"]}, None):
        check(parts=with_learnt(DATA, learnt))
        assert fingerprint.learnt(tmp_path / "run") == learnt
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"] == 8


def test_times_are_those_of_the_examples(run, tmp_path):
    """What is written beside them, such as the features themselves, changes nothing."""
    data, _ = run
    names = ["cat/1.png", "dog/1.png"]
    before = fingerprint.times_of(data, names)
    (data / "features.npz").write_bytes(b"more")
    assert fingerprint.times_of(data, names) == before
    os.utime(data / "dog" / "1.png", (1, 1))
    assert fingerprint.times_of(data, names) != before
    file = tmp_path / "lines.txt"
    file.write_text("a sentence\n")
    before = fingerprint.times_of(file, ["a sentence"])
    os.utime(file, (1, 1))
    assert fingerprint.times_of(file, ["a sentence"]) != before
