"""What the C library does with memory: what it keeps of freed memory, and the size of its pages."""

import contextlib
import ctypes
import os
import sys
from pathlib import Path

from cl_jax.core import xla

_HUGE = "glibc.malloc.hugetlb"  # a tunable of glibc 2.35 and newer, read once, as a program starts
_CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def give_back() -> bool:
    """Returns freed memory to the system; True if any was. Compiling a training step frees hundreds
    of MB, which glibc would keep for the process. False where the C library has no `malloc_trim`.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


def restart_with_huge_pages() -> None:
    """Starts this program again, in its own process and with its own words, such that the C library
    asks the system for huge pages; does nothing where that is no gain (`gains_by_huge_pages`).

    XLA allocates the temporaries of a step at every step on a CPU, and from 32 MiB on glibc takes
    them from the system each time, which clears them page by page. For a program that has done
    nothing yet: what it holds is lost.
    """
    if not gains_by_huge_pages():
        return
    given = os.environ.get("GLIBC_TUNABLES")
    os.environ["GLIBC_TUNABLES"] = f"{given}:{_HUGE}=1" if given else f"{_HUGE}=1"
    with contextlib.suppress(OSError):  # then with small pages
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def gains_by_huge_pages() -> bool:
    """Whether this program is to run on a CPU, huge pages are for programs to ask for, and it did
    not start with an answer of its own (GLIBC_TUNABLES=glibc.malloc.hugetlb=0 is one)."""
    if not (sys.platform.startswith("linux") and sys.executable and xla.chosen() == "cpu"):
        return False
    if _HUGE in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        new_enough = name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
        return new_enough and "[madvise]" in _CHOICE.read_text()
    except (OSError, ValueError):  # another C library, or a system that does not say
        return False
