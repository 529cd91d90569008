"""The reader of compiled programs, on a program written by hand."""

import hlo
import pytest

PROGRAM = """HloModule step

%body (state: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %state = (s32[], bf16[4,8]{1,0}) parameter(0)
  %stack = bf16[4,8]{1,0} get-tuple-element(%state), index=1
  %i = s32[] get-tuple-element(%state), index=0
  %whole = (f32[2]{0}, f32[16]{0}) all-gather-start(%some), dimensions={0}
  %product = bf16[8,16]{1,0} fusion(%stack, %i), kind=kCustom, calls=%fused, metadata={op_name="attn/dot_general"}
  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%i, %stack)
}

%fused (p: bf16[4,8], j: s32[]) -> bf16[8,16] {
  %p = bf16[4,8]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %one = bf16[1,8]{1,0} dynamic-slice(%p, %j, %j), dynamic_slice_sizes={1,8}
  ROOT %dot = bf16[8,16]{1,0} dot(%one, %one), lhs_contracting_dims={0}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %sum = f32[100]{0} all-reduce(%a), to_apply=%add
  %sums = (bf16[10]{0}, f32[10]{0}) all-reduce-start(%a), to_apply=%add
  %copy = bf16[4,8]{1,0} copy(%a), metadata={op_name="jit(train_step)/copy"}
  %loop = (s32[], bf16[4,8]{1,0}) while(%copy), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_kernels_are_counted_with_their_slices_and_loops():
    copy, product = sorted(hlo.Program(PROGRAM).kernels(), key=lambda kernel: kernel.name)
    assert (copy.bytes, copy.flops, copy.times) == (2 * 4 * 8 * 2, 0, 1)
    # A row of bfloat16, an int32, and the product.
    assert (product.bytes, product.flops, product.times) == (8 * 2 + 4 + 8 * 16 * 2, 2 * 8 * 16, 5)
    assert product.source == "attn/dot_general"


def test_collectives_are_counted_with_their_dtypes_and_loops():
    first, second, third = hlo.Program(PROGRAM).collectives()
    assert first == ("all-reduce", {"f32": 400}, 1) and second == ("all-reduce", {"bf16": 20, "f32": 40}, 1)
    assert third == ("all-gather", {"f32": 64}, 5)


@pytest.mark.parametrize(("text", "endless"), [(PROGRAM, 0), (PROGRAM.replace("known_trip_count", "x"), 1)])
def test_loops_without_a_known_number_of_iterations(text, endless):
    assert len(hlo.Program(text).endless()) == endless


def test_operands_and_callbacks_of_a_lowered_program():
    text = """
      %1 = stablehlo.dot_general %a, %b, x : (tensor<4x8xbf16>, tensor<8x2xf32>) -> ...
      %2 = stablehlo.custom_call @xla_ffi_python_cpu_callback(%1)
      %3 = stablehlo.custom_call @Sharding(%2)"""
    assert hlo.operand_dtypes(text) == {("bf16", "f32"): 1}
    assert hlo.callbacks(text) == ["xla_ffi_python_cpu_callback"]
