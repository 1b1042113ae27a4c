"""Paths as a user gives them."""

import os
import re
from pathlib import Path

from cl_jax.core.errors import ConfigError


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path, with `~` and `~user` at its beginning as home directories.

    Raises:
      ConfigError: an empty path, a home directory that is not known, or control characters.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError(
            "a path is empty, and would be the current folder; give one (in a config, for instance "
            "by --config.data.path)."
        )
    if re.search(r"[\x00-\x1f\x7f]", text):  # they could rewrite the terminal in a message
        raise ConfigError(
            f"the path {text!r} has a control character; expected the name of a file or folder. "
            "Rename it."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"the path {text!r} begins with a home directory that is not known here; give the "
            "whole path."
        ) from None
