"""Tables for people and other programs: .csv files that are replaced whole."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.paths import user_path


def check_place(path: str, suffix: str) -> None:
    """Checks that a file of that suffix may be written at a path; "" is none.

    Raises:
      ConfigError: another suffix, or no such folder.
    """
    if not path:
        return
    if Path(path).suffix.lower() != suffix:
        raise ConfigError(f"{path}: expected a name that ends in {suffix}.")
    if not user_path(path).resolve().parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist.")


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
