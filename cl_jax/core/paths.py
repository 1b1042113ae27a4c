"""Paths as a user gives them."""

import os
import re
import urllib.parse
from pathlib import Path

from cl_jax.core.errors import ConfigError

# Schemes of URLs that are known without their slashes too; any "name:/" is taken for one.
_STORES = "gs|gcs|s3|s3a|s3n|az|adl|abfss?|wasbs?|hdfs|dbfs|memory|mem|https?|ftps?|sftp|ssh|scp"
_MOUNT = (
    "Mount the bucket (gcsfuse, mountpoint-s3, rclone) and give the path of the mount, or give a "
    "local path and copy what is there."
)
_URL = re.compile(rf"([A-Za-z][A-Za-z0-9+.-]*):/|({_STORES}|file):", re.IGNORECASE)


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path, with `~` and `~user` at its beginning as home directories; of a `file:` URL the
    path that it names.

    Raises:
      ConfigError: an empty path, another URL, a home directory that is not known, or control
        characters.
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
    text = without_scheme(text, f"the path {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f"the path {text!r} begins with a home directory that is not known here; give the "
            "whole path."
        ) from None


def same_place(then: str, now: str) -> bool:
    """Whether two paths of the same data name one place, however they are written. True too where
    the first one names nothing any more: what was there may have been moved to the second."""
    if then == now or not (then and now):
        return then == now
    return not user_path(then).exists() or user_path(then).resolve() == user_path(now).resolve()


def cache() -> Path | None:
    """Where this package keeps what can be made again; None for a user without a home directory, as
    containers have them."""
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return None if home.startswith("~") else Path(home, "cl_jax")


def without_scheme(text: str, given: str, mend: str = _MOUNT) -> str:
    """The path that a `file:` URL names; a text that is no URL as it is.

    Args:
      given: what the text is, for messages.
      mend: what to give in place of another URL.

    Raises:
      ConfigError: another URL, which as a path would be a folder "gs:" here; a file of another
        machine.
    """
    scheme = _URL.match(text)
    if scheme is None:
        return text
    if (scheme[1] or scheme[2]).lower() != "file":
        raise ConfigError(f"{given} is a URL; a file system is needed. {mend}")
    host, path = text[5:], ""
    if host.startswith("//"):
        host, slash, path = host[2:].partition("/")
        path = slash + path
    else:
        host, path = "", host
    if host.startswith("~"):
        host, path = "", host + path
    if host not in ("", "localhost"):
        raise ConfigError(f"{given} is on the machine {host}; expected file:///PATH of this one.")
    return urllib.parse.unquote(path)
