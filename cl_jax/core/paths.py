"""Paths as a user gives them."""

import os
from pathlib import Path

from cl_jax.core.errors import ConfigError


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path, with `~` and `~user` at its beginning as home directories.

    Raises:
      ConfigError: an empty path, a home directory that is not known, or a zero byte.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError(
            "a path is empty, and would be the current folder; set it, for instance by "
            "--config.data.path."
        )
    if "\0" in text:
        raise ConfigError(f"the path {text!r} has a zero byte; expected the name of a file.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"the path {text!r} begins with a home directory that is not known here; give the "
            "whole path."
        ) from None
