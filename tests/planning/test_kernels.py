"""A GPU's kernels from the text of its program: bytes and products against what can be counted by
hand."""

from cl_jax.planning.kernels import kernels_of

GPU = """
%inner (p: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %p = (s32[], f32[4,6]{1,0}) parameter(0)
  %row = f32[4,6]{1,0} get-tuple-element(%p), index=1
  %w = f32[6,6]{1,0} constant({...})
  %dot = (f32[4,6]{1,0}, s8[999]{0}) custom-call(%row, %w), custom_call_target="__cublas$gemm", metadata={op_name="jit(f)/while/body/jvp(Network)/head/dense1/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %again = (s32[], f32[4,6]{1,0}) tuple(%n, %row)
}

%tiles (p: f32[4,6], q: f32[6,6]) -> f32[4,6] {
  %p = f32[4,6]{1,0} parameter(0)
  %q = f32[6,6]{1,0} parameter(1)
  ROOT %dot.1 = f32[4,6]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,highest}
}

%add (p: f32[8]) -> f32[8] {
  ROOT %sum = f32[8]{0} add(%p, %p)
}

%first (p: bf16[2,8,8,3], q: f32[100]) -> (f32[3], f32[100]) {
  %p = bf16[2,8,8,3]{3,2,1,0} parameter(0)
  %wide = f32[2,8,8,3]{3,2,1,0} convert(%p)
  %row = f32[1,8,8,3]{3,2,1,0} slice(%wide), slice={[0:1], [0:8], [0:8], [0:3]}
  %mean = f32[3]{0} reduce(%row, %zero), dimensions={0,1,2}, to_apply=%plus
  %q = f32[100]{0} parameter(1)
  %written = f32[100]{0} dynamic-update-slice(%q, %mean, %start)
  ROOT %both = (f32[3]{0}, f32[100]{0}) tuple(%mean, %written)
}

ENTRY %main (x: bf16[2,8,8,3], w: bf16[3,3,3,16], dy: bf16[2,4,4,16], v: f32[8]) -> f32[] {
  %x = bf16[2,8,8,3]{3,2,1,0} parameter(0)
  %w = bf16[16,3,3,3]{3,2,1,0} parameter(1)
  %dy = bf16[2,4,4,16]{3,2,1,0} parameter(2)
  %v = f32[8]{0} parameter(3)
  %y = (bf16[2,4,4,16]{3,2,1,0}, u8[4096]{0}) custom-call(%x, %w), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(f)/jvp(Network)/encoder/stage1_block1/conv1/conv_general_dilated"}
  %dw = (bf16[16,3,3,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", metadata={op_name="jit(f)/transpose(jvp(Network))/encoder/stage1_block1/conv1/conv_general_dilated"}
  %dx = (bf16[2,8,8,3]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %w), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(f)/transpose(jvp(Network))/encoder/stage1_block1/conv1/conv_general_dilated"}
  %loop = (s32[], f32[4,6]{1,0}) while(%start), condition=%until, body=%inner, backend_config={"known_trip_count":{"n":"5"}}
  %row = f32[4,6]{1,0} parameter(5)
  %w2 = f32[6,6]{1,0} parameter(6)
  %bank = f32[100]{0} parameter(4)
  %q = bf16[2,6,12,8]{3,2,1,0} copy(%x)
  %k = bf16[2,10,12,8]{3,2,1,0} copy(%x)
  %out = (bf16[2,12,6,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  %product = f32[4,6]{1,0} fusion(%row, %w2), kind=kCustom, calls=%tiles
  %pair = (f32[3]{0}, f32[100]{0}) fusion(%x, %bank), kind=kInput, calls=%first, metadata={op_name="jit(f)/sum"}
  ROOT %twice = f32[8]{0} fusion(%v), kind=kLoop, calls=%add, metadata={op_name="jit(f)/optimizer/add"}
}
"""  # noqa: E501


def test_kernels_of_a_gpu():
    """Bytes of operands and results without the libraries' scratch, of slices alone where only they
    are read or written; products whichever of the three arrays is the result."""
    found = kernels_of(GPU)
    x, w, y = 2 * 8 * 8 * 3, 16 * 27, 2 * 16 * 16
    products = 2.0 * y * 27
    assert [(kernel.kind, kernel.times, kernel.bytes, kernel.flops) for kernel in found] == [
        ("cudnn$convForward", 1, 2 * (x + w + y), products),
        ("cudnn$convBackwardFilter", 1, 2 * (x + w + y), products),
        ("cudnn$convBackwardInput", 1, 2 * (x + w + y), products),
        ("cublas$gemm", 5, 4 * (24 + 36 + 24), 2.0 * 4 * 6 * 6),
        ("copy", 1, 2 * (x + 1152), 0.0),
        ("copy", 1, 2 * (x + 1920), 0.0),
        ("cudnn$fmhaSoftmaxBackward", 1, 2 * (2 * 1152 + 2 * 1920), 2.0 * 5 * 1152 * 10),
        ("fusion", 1, 4 * (24 + 36 + 24), 2.0 * 4 * 6 * 6),
        ("fusion", 1, 2 * 8 * 8 * 3 + 4 * (3 + 3), 0.0),
        ("fusion", 1, 64, 0.0),
    ]
    assert [kernel.scope for kernel in found if kernel.scope] == 3 * [
        "Network/encoder/stage1_block1/conv1"
    ] + ["Network/head/dense1", "optimizer"]
    assert found[0].dtype == "bf16"
    assert found[3].floor(1e3, 1e3) == 5 * 0.336 and found[3].floor(1e2, 1e9) == 5 * 2.88
    assert [kernel.exact for kernel in found] == 7 * [False] + [True, False, False]
