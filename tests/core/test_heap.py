"""Freed memory is returned to the system, and a program's pages are huge where that is a choice."""

import ctypes
import os
import subprocess
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


@pytest.fixture
def choice(monkeypatch, tmp_path):
    """A CPU's program on a system where huge pages are for programs to ask for."""
    place = tmp_path / "enabled"
    place.write_text("always [madvise] never\n")
    monkeypatch.setattr(heap, "_CHOICE", place)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.35", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return monkeypatch


def test_huge_pages_are_a_gain(choice):
    assert heap.gains_by_huge_pages()
    choice.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert heap.gains_by_huge_pages()


@pytest.mark.parametrize("answer", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1"])
def test_the_users_answer_stays(choice, answer):
    choice.setenv("GLIBC_TUNABLES", f"glibc.malloc.check=0:{answer}")
    assert not heap.gains_by_huge_pages()


@pytest.mark.parametrize("said", ["[always] madvise never", "always madvise [never]", None])
def test_where_the_system_decides_it_is_left_alone(choice, said):
    heap._CHOICE.unlink() if said is None else heap._CHOICE.write_text(said)
    assert not heap.gains_by_huge_pages()


@pytest.mark.parametrize("said", ["glibc 2.34", "musl 1.2.5", "", None])
def test_another_c_library_is_left_alone(choice, said):
    choice.setattr(os, "confstr", lambda name: said)
    assert not heap.gains_by_huge_pages()


def test_a_gpu_is_left_alone(choice):
    choice.setenv("JAX_PLATFORMS", "cuda")
    assert not heap.gains_by_huge_pages()


@pytest.mark.parametrize("huge", [True, False])
def test_the_program_starts_again_with_its_own_words(choice, tmp_path, huge):
    if not huge:
        heap._CHOICE.write_text("[always] madvise never")
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "from cl_jax.core import heap\n"
        "heap._CHOICE = pathlib.Path(sys.argv[1])\n"
        "os.confstr = lambda name: 'glibc 2.35'\n"
        "print('started', flush=True)\n"
        "heap.restart_with_huge_pages()\n"
        "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[2:], sys.flags.utf8_mode)\n"
    )
    words = [sys.executable, "-X", "utf8", program, heap._CHOICE, "a b", "--c='"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        said = process.communicate()[0].splitlines()
    tunables = "glibc.malloc.hugetlb=1" if huge else None
    assert said == ["started"] * (1 + huge) + [f"{process.pid} {tunables} {words[5:]} 1"]
