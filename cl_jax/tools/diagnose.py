"""Prints the verdict at every evaluation of some runs: healthy, at chance level, or collapsing.

example:
  cl-jax diagnose runs/first runs/second

The verdict is read from the log alone, while a run trains or after it.
"""

import argparse
import sys
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "cl-jax diagnose",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)

    from cl_jax.checks import diagnosis
    from cl_jax.core.errors import ConfigError

    try:
        print(diagnosis.table(args.workdirs))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
