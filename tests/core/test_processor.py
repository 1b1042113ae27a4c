"""What is read of /proc/cpuinfo."""

import pytest

from cl_jax.core import processor

TWO_CORES = """processor\t: 0
model name\t: A
cpu MHz\t\t: 1
flags\t\t: fpu avx2 {}

processor\t: 1
model name\t: A
flags\t\t: fpu amx_bf16
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    return processor.CPUINFO


def test_the_name_and_the_instructions_are_those_of_the_first_core(cpuinfo):
    cpuinfo.write_text(TWO_CORES.format("fma"))
    assert processor.lines() == ["model name\t: A", "flags\t\t: fpu avx2 fma"]


@pytest.mark.parametrize(
    "flag, lacks", [("fma", True), ("avx512_bf16", False), ("amx_bf16", False)]
)
def test_instructions_for_bfloat16(cpuinfo, flag, lacks):
    cpuinfo.write_text(TWO_CORES.format(flag))
    assert processor.lacks_bfloat16() is lacks


@pytest.mark.parametrize("text", [None, "processor : 0\nFeatures : fp asimd\n"])
def test_nothing_is_said_of_a_processor_whose_flags_are_not_listed(cpuinfo, text):
    if text:
        cpuinfo.write_text(text)
    assert not processor.lacks_bfloat16()
