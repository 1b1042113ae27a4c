"""XLA's flags are added where the compiler knows them, and never over the user's own."""

import os
import platform
import subprocess
import sys

import pytest

from cl_jax.core import xla

CPU = xla.FLAGS["cpu"][0]


@pytest.fixture
def environment(monkeypatch):
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, "")
    return monkeypatch


def test_flags_are_added_once_and_after_the_users(environment):
    environment.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    assert xla.prepare("cpu") == CPU
    assert os.environ["XLA_FLAGS"] == f"--xla_force_host_platform_device_count=2 {CPU}"
    assert xla.prepare("cpu") == ""


def test_a_flag_that_the_user_set_stays(environment):
    environment.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")
    assert xla.prepare("cpu") == ""
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_experimental_ynn_fusion_type="


def test_a_flag_that_xla_does_not_know_is_left_out(environment):
    environment.setitem(
        xla.FLAGS, "cpu", ("--xla_no_such_flag=1", "--xla_cpu_experimental_ynn=1")
    )  # the start of a name
    assert xla.prepare("cpu") == "" and os.environ["XLA_FLAGS"] == ""


def test_the_platform_is_the_one_asked_for(environment):
    for asked, expected in (("cpu", "cpu"), ("cuda,cpu", "gpu"), ("tpu", "tpu")):
        environment.setenv("JAX_PLATFORMS", asked)
        assert xla.chosen() == expected


def test_every_flag_is_accepted_by_this_jaxlib(environment):
    """XLA ends the process on a flag that it does not know."""
    environment.setenv("JAX_PLATFORMS", "cpu")
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "from cl_jax.core import xla; xla.prepare('cpu'); xla.prepare('gpu')\n"
            "import jax, os; jax.devices(); print(os.environ['XLA_FLAGS'])",
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [flag for flag in (CPU, *xla.FLAGS["gpu"]) if xla.known(flag)]


MEMORY = """
import resource
from cl_jax.core import xla
print(xla.keep_memory())
import jax, jax.numpy as jnp
@jax.jit
def step(x):  # 64 MiB besides its argument and result, of the program, not of a thread
    return jnp.exp(x @ x.T) @ x
x = jnp.ones((4096, 64))
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[5:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ({}, True),
        ({"MALLOC_ARENA_MAX": "4"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}, False),
    ],
)
def test_freed_memory_is_kept_unless_the_user_set_malloc(setting, kept):
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY],
        capture_output=True,
        text=True,
        env=clean | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | setting,
    )
    assert ran.returncode == 0, ran.stderr
    said, faults = ran.stdout.split()
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert said == str(kept) and (int(faults) < pages / 20) == kept


def test_other_platforms_keep_their_memory_as_it_is(environment):
    environment.setenv("JAX_PLATFORMS", "cuda")
    assert not xla.keep_memory()
