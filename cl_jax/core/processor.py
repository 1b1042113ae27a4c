"""What the operating system says of the processor."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_LINES = ("model name", "flags", "Features", "CPU part", "CPU implementer")
_BFLOAT16 = {"avx512_bf16", "amx_bf16"}  # of /proc/cpuinfo on x86


def lines() -> list[str]:
    """The lines of /proc/cpuinfo with the first core's name and instructions; empty where there is
    no such file."""
    try:
        with CPUINFO.open() as file:
            found = file.read(1 << 14).partition("\n\n")[0].splitlines()  # of the first core
    except OSError:
        return []
    return [line for line in found if line.startswith(_LINES)]


def lacks_bfloat16() -> bool:
    """True for an x86 processor without instructions for bfloat16; False where they are there, or
    where the operating system does not list instructions in this way."""
    flags = [word for line in lines() if line.startswith("flags") for word in line.split()]
    return bool(flags) and not _BFLOAT16 & set(flags)
