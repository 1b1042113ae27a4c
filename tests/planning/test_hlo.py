"""Reading XLA's text: of a real program, and of lines written by hand."""

import jax
import jax.numpy as jnp

from cl_jax.planning import hlo

TEXT = """HloModule m

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  ROOT %t = (s32[], f32[4]) tuple(%x, %x)
}

%cond (q: (s32[], f32[4])) -> pred[] {
  ROOT %c = pred[] parameter(0)
}

ENTRY %main (a: bf16[8,2]) -> f32[4] {
  %a = bf16[8,2]{1,0} parameter(0)
  %g = f32[16,2]{1,0} all-gather-start(%a), dimensions={0}
  %w = (s32[], f32[4]) while(%a), condition=%cond, body=%body, "known_trip_count":{"n":"7"}
  ROOT %r = f32[4]{0} get-tuple-element(%w), index=1
}
"""


def test_instructions_of_each_computation():
    parts, entry = hlo.computations(TEXT)
    assert entry == "main" and sorted(parts) == ["body", "cond", "main"]
    gather, loop = parts["main"][1], parts["main"][2]
    assert (gather.kind, gather.started, gather.operands) == ("all-gather", True, ["a"])
    assert sorted(loop.called) == ["body", "cond"] and loop.trips == 7
    assert hlo.runs(parts, entry) == {"main": 1, "body": 7, "cond": 7}


def test_bytes_of_shapes():
    assert hlo.shapes("(s32[], bf16[8,2]{1,0}, pred[3])") == [
        ("s32", []),
        ("bf16", [8, 2]),
        ("pred", [3]),
    ]
    assert [hlo.size(s) for s in hlo.shapes("s32[] bf16[8,2] pred[3] f64[2]")] == [4, 32, 3, 16]


def test_trip_count_of_a_compiled_scan():
    def f(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=13)[0]

    parts, entry = hlo.computations(jax.jit(f).lower(jnp.ones(5)).compile().as_text())
    assert 13 in hlo.runs(parts, entry).values()
