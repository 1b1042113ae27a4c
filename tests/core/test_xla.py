"""XLA's flags are added where the compiler knows them, and never over the user's own."""

import os
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


def test_the_level_of_a_cpu_s_program_is_set_unless_the_user_set_it(environment):
    assert xla.optimised(2, "cpu") == {"xla_backend_optimization_level": 2}
    assert xla.optimised(2, "gpu") == xla.optimised(2, "tpu") == {}
    environment.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert xla.optimised(2, "cpu") == {}
