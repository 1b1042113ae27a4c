"""Errors that a user can act on: a command prints their message as one sentence, without a
traceback. Every other error keeps its traceback."""

import contextlib
import warnings
from collections.abc import Iterator


class ConfigError(ValueError):
    """A mistake in what the user gave: a setting, a workdir, a file. The message says what was
    given, what was expected and the likely remedy."""


class NotFoundError(ConfigError, FileNotFoundError):
    """A file or folder that the user named does not exist, or does not hold what it should."""


class WithoutEffect(ConfigError, UserWarning):
    """A setting that changes nothing. It is raised by `warnings.warn`: a warning where a run that
    an earlier version made is loaded or resumed, and an error where one begins.

    setting: its key in a config, "encoder.drop_path": a resume may take it back to its default.
    """

    def __init__(self, message: str, setting: str = ""):
        super().__init__(message)
        self.setting = setting


@contextlib.contextmanager
def of_another_run() -> Iterator[None]:
    """No `WithoutEffect` within: the network is of a run that the new one starts from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WithoutEffect)
        yield


class SaveError(OSError):
    """A file could not be written. The message says which one and why; of a checkpoint, also which
    one is the newest whole one."""
