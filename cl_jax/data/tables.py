"""Tables for people and other programs: .csv files that are replaced whole."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.paths import user_path


def check_place(path: str, suffix: str) -> None:
    """Checks that a file of that suffix may be written at a path; "" is none.

    Raises:
      ConfigError: another suffix, no such folder, a folder of that name, or one in which this user
        may not write.
    """
    if not path:
        return
    if Path(path).suffix.lower() != suffix:
        raise ConfigError(f"{path}: expected a name that ends in {suffix}.")
    if not user_path(path).resolve().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist.")
    check_writable(path)


def check_writable(path: str | Path) -> None:
    """Checks that a file may be made at a path, and makes its folder.

    Raises:
      ConfigError: it is a folder, or cannot be written.
    """
    file = user_path(path)
    if file.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file.")
    probe = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Give a file in a folder in which this "
            "user may write."
        ) from None


def write_table(path: str, columns: Mapping[str, Any]) -> None:
    """Writes columns of equal length as .csv; an old file stays until the new one is whole.

    Raises:
      SaveError: it cannot be written.
    """
    file = user_path(path)
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
            writer = csv.writer(out)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SaveError(f"{path} cannot be written: {error.strerror}.") from error
