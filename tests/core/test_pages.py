"""A program asks for huge pages once, and never where somebody else decided."""

import subprocess
import sys

import pytest

from cl_jax.core import pages

CPU = {"JAX_PLATFORMS": "cpu"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    kernel = tmp_path / "enabled"
    kernel.write_text("always [madvise] never\n")
    monkeypatch.setattr(pages, "KERNEL", kernel)
    monkeypatch.setattr(pages, "_glibc", lambda: pages.SINCE)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return monkeypatch, kernel


def test_they_are_asked_for_where_linux_waits_for_it(machine):
    _, kernel = machine
    ours = f"{pages.TUNABLE}=1"
    assert pages.wanted(CPU) == ours
    assert (
        pages.wanted({"GLIBC_TUNABLES": "glibc.malloc.check=1"}) == f"glibc.malloc.check=1:{ours}"
    )
    assert pages.wanted({"GLIBC_TUNABLES": f"{pages.TUNABLE}=0"}) is None
    for text in ("[always] madvise never", "always madvise [never]"):
        kernel.write_text(text)
        assert pages.wanted(CPU) is None
    kernel.unlink()
    assert pages.wanted(CPU) is None


@pytest.mark.parametrize("version", [(), (2, 34)])
def test_another_c_library_is_left_alone(machine, version):
    machine[0].setattr(pages, "_glibc", lambda: version)
    assert pages.wanted(CPU) is None


def test_accelerators_need_none(machine):
    machine[0].setenv("JAX_PLATFORMS", "cuda")
    assert pages.wanted({}) is None


PROGRAM = """
import os, sys, tempfile
from pathlib import Path
from cl_jax.core import pages
pages._glibc = lambda: pages.SINCE
pages.KERNEL = Path(sys.argv[1])
print("begins", os.getpid(), flush=True)
pages.restart()
print(os.environ["GLIBC_TUNABLES"], sys.argv[2:])
"""


def test_a_program_starts_again_once_as_the_same_process(machine):
    command = [sys.executable, "-c", PROGRAM, str(machine[1]), "--a=b c"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == lines[1] and lines[0].startswith("begins")
    assert lines[2:] == [f"{pages.TUNABLE}=1 ['--a=b c']"]
