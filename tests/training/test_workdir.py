"""The folder of a run: its path, its lock, files that are replaced whole."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cl_jax.core.errors import ConfigError
from cl_jax.training import loop, workdir

HOLD = """
import sys, time
from cl_jax.training import workdir
lock = workdir.Lock(sys.argv[1])
print("locked", flush=True)
time.sleep(60)
"""


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_run_is_refused_with_host_and_process(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(ConfigError, match=rf"in use by another run, process {process.pid} on"):
            workdir.Lock(tmp_path)
        os.kill(process.pid, signal.SIGKILL)  # the lock ends with its process
        process.wait()
    lock = workdir.Lock(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    lock.release()
    assert not (tmp_path / "lock").exists()


def test_one_process_cannot_run_twice_in_a_workdir_and_a_release_frees_it(tmp_path):
    with loop.locked(tmp_path):
        with pytest.raises(ConfigError, match="in use"):
            with loop.locked(tmp_path):
                pass
    with loop.locked(tmp_path):
        pass


def test_a_forked_child_does_not_hold_the_lock_beyond_its_parent(tmp_path):
    lock = workdir.Lock(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b"up")
        time.sleep(60)
        os._exit(0)
    assert os.read(reader, 2) == b"up"
    os.close(lock.file)  # as the end of the parent does
    lock.file = None
    try:
        workdir.Lock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_file_that_nobody_holds_is_taken_over(tmp_path):
    for content in ("", "not JSON", '{"host": "elsewhere", "process": 1, "since": "then"}'):
        (tmp_path / "lock").write_text(content)
        workdir.Lock(tmp_path).release()


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(workdir.fcntl, "flock", unsupported)
    workdir.Lock(tmp_path).release()
    assert "make sure that no second run uses this workdir" in caplog.text


def test_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir.path_of("~/runs/a") == tmp_path / "runs/a"
    assert workdir.path_of("file:///data/a") == workdir.Path("/data/a")
    assert workdir.path_of("C:\\runs").name == "C:\\runs"


def test_file_urls_and_home_directories(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in ("file:///data/a%20b", "FILE:///data/a b", "file://localhost/data/a b"):
        assert workdir.path_of(url) == workdir.Path("/data/a b")
    assert workdir.path_of("file://~/a") == workdir.path_of("file:~/a") == tmp_path / "a"
    for given, words in (
        ("file://other/data", "is on the machine other"),
        ("~nobody_of_that_name/a", "home directory that is not known"),
        ("/tmp/a\x1b[2Jb", "cannot be printed"),
        ("/tmp/a\0b", "cannot be printed"),
    ):
        with pytest.raises(ConfigError, match=words):
            workdir.path_of(given)


URLS = ("gs://bucket/run", "s3://bucket/run", "memory://run", "hdfs:/a", "GS://b", "gs:bucket")


@pytest.mark.parametrize("url", URLS)
def test_urls_are_refused(url):
    with pytest.raises(ConfigError, match="is a URL; a file system is needed") as refused:
        workdir.path_of(url)
    # Not a mount on which a run cannot save.
    assert "NFS" in str(refused.value) and "mountpoint-s3" not in str(refused.value)


def test_what_is_no_folder_to_write_in(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file; expected a folder"):
        workdir.make(tmp_path / "file")
    with pytest.raises(ConfigError, match="lies below a file; expected a folder"):
        workdir.make(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="cannot be written"):
        workdir.make("/proc/run")


def test_a_file_system_that_renames_no_folders_is_refused_before_the_run(tmp_path, monkeypatch):
    rename = os.rename

    def mounted(source, target, **_):
        # As a bucket: EMFILE for a folder that is not empty, or has folders in it.
        if os.path.isdir(source) and any(path.is_dir() for path in Path(source).iterdir()):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return rename(source, target)

    workdir.make(tmp_path / "a")
    monkeypatch.setattr(os, "rename", mounted)
    with pytest.raises(ConfigError, match="does not rename folders") as refused:
        workdir.make(tmp_path / "a")
    for words in ("(Too many open files)", "--rename-dir-limit", "NFS"):
        assert words in str(refused.value)
    assert not list((tmp_path / "a").iterdir())  # no trace, as without the refusal


def test_a_replaced_file_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    workdir.replace_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fsync", full)
        workdir.replace_text(path, "new")
    assert path.read_text() == "old"
    workdir.replace_text(path, "new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
