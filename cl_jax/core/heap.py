"""What the C library keeps of freed memory."""

import ctypes
import sys


def give_back() -> bool:
    """Returns freed memory to the system; True if any was. Compiling a training step frees hundreds
    of MB, which glibc would keep for the process. False where the C library has no `malloc_trim`.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
