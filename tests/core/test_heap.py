"""Freed memory is returned to the system."""

import ctypes
import sys
from pathlib import Path

import pytest

from cl_jax.core import heap

PIECE, COUNT = 100_000, 1000  # below the size from which the C library returns each at once


def resident():
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1]) << 10


@pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim")),
    reason="the C library has no malloc_trim",
)
def test_freed_pieces_are_returned():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    pieces = [libc.malloc(PIECE) for _ in range(COUNT)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    for piece in pieces[:-1]:  # the last one holds what lies below it
        libc.free(piece)
    before = resident()
    assert heap.give_back()
    assert before - resident() > PIECE * COUNT / 2
    libc.free(pieces[-1])


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not heap.give_back()
