"""The folder of a run: its path, the lock that keeps a second run out, files that are replaced
whole.

Nothing here imports jax."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import logging

from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.paths import without_scheme

LOCK = "lock"
SEEN_WITHIN = 60.0  # seconds for which NFS may keep an older list of a folder by default
# Reading data asks less of a mount: mountpoint-s3 renames nothing in most buckets.
_WHERE = (
    "Give a folder on a local disk or an NFS share, and copy the run from or to the bucket; or one "
    "of a bucket that gcsfuse mounts with a hierarchical namespace or a --rename-dir-limit."
)


def path_of(workdir: str | Path) -> Path:
    """The workdir as a path; `~` and `~user` are home directories, `file:` URLs the paths that they
    name.

    Raises:
      ConfigError: an empty path. Another URL: a run appends to its log, locks its folder and
        renames files and folders, which an object store does not offer. A home directory that is
        not known; control characters.
    """
    text = str(workdir)
    if not text:
        raise ConfigError("a workdir is empty, and would be the current folder; give its path.")
    if not text.isprintable():
        raise ConfigError(
            f"workdir={text!r} has a character that cannot be printed; expected the path of a "
            "folder. Take it out."
        )
    text = without_scheme(text, f"workdir={text!r}", _WHERE)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"workdir={text!r} begins with a home directory that is not known here; give the whole "
            "path."
        ) from None


def make(workdir: str | Path) -> Path:
    """Makes the workdir if it is not there, and checks that files can be written and folders be
    renamed in it, as each save does.

    Raises:
      ConfigError: it is a file, lies below a file, cannot be written, or is on a file system that
        does not rename folders.
    """
    path = path_of(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        refused = _rename_fails(path)
    except FileExistsError:
        raise ConfigError(
            f"workdir={workdir} is a file; expected a folder or a new path."
        ) from None
    except NotADirectoryError:
        raise ConfigError(f"workdir={workdir} lies below a file; expected a folder.") from None
    except OSError as error:
        raise ConfigError(
            f"workdir={workdir} cannot be written: {error.strerror}. Give a folder in which this "
            "user may write."
        ) from None
    if refused is not None:
        raise ConfigError(
            f"workdir={workdir} is on a file system that does not rename folders "
            f"({refused.strerror}), which saving needs. {_WHERE}"
        )
    return path


def _rename_fails(path: Path) -> OSError | None:
    """The error with which a folder that has the shape of a checkpoint, a folder with files in it,
    is not renamed in `path`; None if it is.

    Raises:
      OSError: it cannot be made.
    """
    probe = Path(tempfile.mkdtemp(prefix=".write_test_", dir=path))
    renamed = probe.with_name(f"{probe.name}-tmp")
    try:
        (probe / "folder").mkdir()
        (probe / "folder" / "file").write_bytes(b"")
        try:
            probe.rename(renamed)
        except OSError as error:
            return error
        return None
    finally:
        for left in (probe, renamed):
            shutil.rmtree(left, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a file beside its name, flushes it to the disk and renames it: whoever reads the path
    finds the old content or the new one, also after a crash.

    Raises:
      SaveError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where even that is not allowed
            part.unlink()
        raise SaveError(
            f"{path} cannot be written: {error.strerror}. Make room there, or give another place."
        ) from error


def appears(path: Path) -> bool:
    """Whether a file that another machine makes is seen within `SEEN_WITHIN` seconds. Listing its
    folder asks a network file system for what is new."""
    until = time.monotonic() + SEEN_WITHIN
    while True:
        try:
            if path.name in os.listdir(path.parent):
                return True
        except OSError:
            pass  # the folder is not seen yet either
        if time.monotonic() >= until:
            return False
        time.sleep(0.1)


class Lock:
    """Keeps other runs out of a workdir while this one has it.

    The lock is the operating system's (`flock` on WORKDIR/lock), so it ends with its process
    however that ends; what the file says is for people. A file system without locks is used
    without one, with a warning.

    Raises:
      ConfigError: another process has the lock; the message names its host and process.
    """

    def __init__(self, workdir: str | Path):
        self.path = path_of(workdir) / LOCK
        self.file: int | None = None
        while self.file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(os.pread(file, 4096, 0))
                os.close(file)
                raise ConfigError(
                    f"{self.path.parent} is in use by another run, {owner}. Wait until it ends, "
                    "stop it, or give another --workdir."
                ) from None
            except OSError as error:
                logging.warning(
                    "no lock on %s (%s): make sure that no second run uses this workdir.",
                    self.path.parent,
                    error.strerror,
                )
                os.close(file)
                return
            # Another run may have removed the file, its own, between the two calls.
            if _same_file(file, self.path):
                self.file = file
            else:
                os.close(file)
        _HELD.add(self)
        content = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        try:
            os.ftruncate(self.file, 0)
            os.pwrite(self.file, (json.dumps(content) + "\n").encode(), 0)
        except OSError:
            pass  # a full disk: locked all the same

    def release(self) -> None:
        """Gives the workdir free; twice is once."""
        if self.file is None:
            return
        _HELD.discard(self)
        if _same_file(self.file, self.path):
            self.path.unlink(missing_ok=True)
        os.close(self.file)
        self.file = None


_HELD: set[Lock] = set()


def _close_in_child() -> None:
    # A forked child shares the open file, and would hold the lock beyond its parent's end.
    for lock in _HELD:
        os.close(lock.file)
        lock.file = None
    _HELD.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _owner(content: bytes) -> str:
    try:
        found: dict[str, Any] = json.loads(content)
        return f"process {found['process']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "of which the lock says nothing"
