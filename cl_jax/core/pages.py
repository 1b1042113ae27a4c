"""Huge pages for what a CPU computes in.

XLA allocates a step's temporaries at every step. From 32 MiB on glibc takes such a block from the
system each time and gives it back, and the system clears it in pages of 4 KiB: a seventh of a step.
In pages of 2 MiB that takes a seventh of the time. Linux has them for who asks, as glibc does when
GLIBC_TUNABLES says so at a process's start. Nothing here imports jax."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from cl_jax.core import xla

TUNABLE = "glibc.malloc.hugetlb"
SINCE = (2, 35)  # the first glibc that has it
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
    """Starts this program again, as the same process, where huge pages are to be had and it does
    not ask for them yet; not for its help. For a program's first line, and not where Python runs
    somebody else's program."""
    tunables = wanted(os.environ)
    if tunables is None or {"-h", "--help"} & set(sys.argv):
        return
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    try:
        os.execve(
            sys.executable,
            [sys.executable, *sys.orig_argv[1:]],
            {**os.environ, "GLIBC_TUNABLES": tunables},
        )
    except OSError:  # it computes without them
        return


def wanted(environment: Mapping[str, str]) -> str | None:
    """GLIBC_TUNABLES that ask for huge pages; None where they are there or cannot be had, where
    the environment says something of them already, and where an accelerator is to compute."""
    given = environment.get("GLIBC_TUNABLES", "")
    if TUNABLE in given or not sys.executable or _glibc() < SINCE or xla.chosen() != "cpu":
        return None
    try:
        asked = "[madvise]" in KERNEL.read_text()
    except OSError:
        return None
    return ":".join(filter(None, (given, f"{TUNABLE}=1"))) if asked else None


def _glibc() -> tuple[int, ...]:
    """Version of the C library, () where it is another one."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (AttributeError, ValueError, OSError):  # no confstr, or one that does not know the name
        return ()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()
