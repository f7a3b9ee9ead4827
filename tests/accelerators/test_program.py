"""What is read from the text of a compiled program, on texts whose numbers are known."""

import jax
import jax.numpy as jnp
import pytest

from dartformer.accelerators.compile import needed_bytes
from dartformer.accelerators.program import Exchange, Program, arrays_of, facts, meetings


def test_an_array_is_filled_up_to_its_tiles():
    (plain,) = arrays_of("f32[3,100]{1,0}")
    assert plain.bytes == 4 * 3 * 100
    (tiled,) = arrays_of("bf16[3,100]{1,0:T(8,128)(2,1)}")
    assert tiled.bytes == 2 * 8 * 128
    # The axis that is the most minor in memory is named first.
    (turned,) = arrays_of("f32[5,1,300]{1,2,0:T(8,128)}")
    assert turned.bytes == 4 * 5 * 304 * 128
    (fast,) = arrays_of("f32[8,128]{1,0:T(8,128)S(1)}")
    assert fast.fast
    assert not plain.fast
    assert len(arrays_of("(f32[2]{0}, pred[4]{0}, token[])")) == 2


LOOP = """HloModule loop

%fused (p: f32[10,8,8], i: s32[], y: f32[8,8]) -> f32[10,8,8] {
  %p = f32[10,8,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %y = f32[8,8]{1,0} parameter(2)
  %row = f32[1,8,8]{2,1,0} bitcast(%y)
  %zero = s32[] constant(0)
  ROOT %out = f32[10,8,8]{2,1,0} dynamic-update-slice(%p, %row, %i, %zero, /*index=4*/%zero)
}

%body (s: (s32[], f32[8,8], f32[10,8,8])) -> (s32[], f32[8,8], f32[10,8,8]) {
  %s = (s32[], f32[8,8]{1,0}, f32[10,8,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%s), index=1
  %all = f32[10,8,8]{2,1,0} get-tuple-element(%s), index=2
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %kept = f32[10,8,8]{2,1,0} fusion(%all, %i, %y), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[8,8]{1,0}, f32[10,8,8]{2,1,0}) tuple(%i, %y, %kept)
}

%condition (s: (s32[], f32[8,8], f32[10,8,8])) -> pred[] {
  %s = (s32[], f32[8,8]{1,0}, f32[10,8,8]{2,1,0}) parameter(0)
  %n = s32[] constant(10)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (s: (s32[], f32[8,8], f32[10,8,8])) -> (s32[], f32[8,8], f32[10,8,8]) {
  %s = (s32[], f32[8,8]{1,0}, f32[10,8,8]{2,1,0}) parameter(0)
  ROOT %w = (s32[], f32[8,8]{1,0}, f32[10,8,8]{2,1,0}) while(%s), condition=%condition, body=%body
}
"""


def test_a_loop_counts_as_often_as_it_turns():
    found = facts(LOOP)
    assert found.flops == 10 * 2 * 8**3
    # Two operands and an output of the product; the row that is kept, read and written, and its
    # number. The ten rows beside it are not touched.
    matrix = 4 * 8 * 8
    assert found.moved == 10 * (3 * matrix + 2 * matrix + 4)
    assert found.largest == 10 * matrix
    assert found.array == "f32[10,8,8]"
    assert found.operations["while"] == 1
    assert found.unknown == 0


def test_exchanges_between_devices_count_as_often_as_they_run():
    product = "  %y = f32[8,8]{1,0} dot"
    text = LOOP.replace(product, f"  %r = f32[8]{{0}} all-reduce(%x), to_apply=%add\n{product}")
    gather = "  %g = (f32[4]{0}, f32[8]{0}) all-gather-start(%s), dimensions={0}\n"
    permute = "  %p = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%s)\n"
    text = text.replace("  ROOT %w", f"{gather}{permute}  ROOT %w")
    assert Program(text).exchanges() == {
        "all-reduce": Exchange(10, 10 * 4 * 8.0),
        "all-gather": Exchange(1, 4 * 8.0),
        "collective-permute": Exchange(1, 4 * 6.0),
    }


def test_a_loop_of_unknown_turns_is_said():
    found = facts(LOOP.replace("%n = s32[] constant(10)", "%n = s32[] parameter(1)"))
    assert found.flops == 2 * 8**3
    assert found.unknown == 1


def test_a_conditional_counts_its_longest_branch():
    text = """HloModule either

%product (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  ROOT %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%nothing (x: f32[8,8]) -> f32[8,8] {
  ROOT %x = f32[8,8]{1,0} parameter(0)
}

ENTRY %main (i: s32[], x: f32[8,8]) -> f32[8,8] {
  %i = s32[] parameter(0)
  %x = f32[8,8]{1,0} parameter(1)
  ROOT %y = f32[8,8]{1,0} conditional(%i, %x, %x), branch_computations={%nothing, %product}
}
"""
    assert facts(text).flops == 2 * 8**3


def test_a_batched_product_is_a_convolution_with_a_window_that_meets_one_number():
    text = """HloModule convolved

ENTRY %main (x: f32[64,256,32], y: f32[64,128,32]) -> f32[64,256,128] {
  %x = f32[64,256,32]{2,1,0} parameter(0)
  %y = f32[64,128,32]{2,1,0} parameter(1)
  ROOT %z = f32[64,256,128]{2,1,0} convolution(%x, %y), window={size=64 stride=63 lhs_dilate=64}, \
dim_labels=0bf_0oi->0bf
}
"""
    assert facts(text).flops == 2 * 64 * 256 * 128 * 32


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad", [-1, 0, 2])
@pytest.mark.parametrize("dilated", [1, 3])
def test_meetings_are_those_of_a_convolution(stride, pad, dilated):
    """Ones convolved with ones count them."""
    numbers, window = 9, 4
    out = jax.lax.conv_general_dilated(
        jnp.ones((1, 1, numbers)),
        jnp.ones((1, 1, window)),
        (stride,),
        [(pad, pad)],
        lhs_dilation=(dilated,),
    )
    assert meetings(out.shape[2], numbers, window, stride, pad, dilated, 1) == out.sum()


def test_the_program_of_a_compiler_is_read():
    """Of a scan of products on a CPU, whose own count has one of the turns."""

    def function(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.sin(x + w), x * 2), x, ws)

    shapes = (
        jax.ShapeDtypeStruct((64, 64), "float32"),
        jax.ShapeDtypeStruct((7, 64, 64), "float32"),
    )
    compiled = jax.jit(function).lower(*shapes).compile()
    found = facts(compiled.as_text())
    assert found.operations["while"] == 1
    assert found.unknown == 0
    matrix = 4 * 64 * 64
    # At least: each turn reads a state and a matrix, and writes two. At most twice that.
    assert 7 * 4 * matrix <= found.moved <= 2 * 7 * 4 * matrix + 4 * matrix


def test_what_a_compiler_says_of_memory_is_read():
    assert needed_bytes("XLA:TPU compile: Used 18.77G of 15.75G hbm.") == int(18.77 * 2**30)
    text = "RESOURCE_EXHAUSTED: Allocation (size=1) ... (18.77G) exceeds available HBM (15.75G)"
    assert needed_bytes(text) == int(18.77 * 2**30)
    assert needed_bytes("no number") == 0


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        facts("HloModule nothing\n")


SPLASH = """HloModule splash

ENTRY %main (q: bf16[2,4,512,32], i: s8[1,2,1]) -> bf16[2,4,512,32] {
  %q = bf16[2,4,512,32]{3,2,1,0} parameter(0)
  %i = s8[1,2,1]{2,1,0} parameter(1)
  %splash_mha_fwd.1 = bf16[2,4,512,32]{3,2,1,0} custom-call(%i, %q, %q, %q), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256, \\"block_kv\\": 128}"
}}, metadata={op_name="splash"}
  ROOT %y = bf16[2,4,512,32]{3,2,1,0} copy(%splash_mha_fwd.1)
}
"""


def test_a_kernel_of_splash_attention_counts_the_blocks_that_it_visits():
    """Two blocks of queries, and for each of them one of four of keys. Its attributes are of many
    lines, one of which begins as the end of a computation."""
    size = 2 * 2 * 4 * 512 * 32
    found = facts(SPLASH)
    assert found.flops == 2 * 2 * (2 * 4) * (512 * 128) * 32
    assert found.moved == 2 + 4 * size + 2 * size


STATED = """HloModule stated

ENTRY %main (q: f32[8,128]) -> f32[8,128] {
  %q = f32[8,128]{1,0} parameter(0)
  ROOT %y = f32[8,128]{1,0} custom-call(%q), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"","cost_estimate":{"flops":"1234","bytes_accessed":"1"}}}
}
"""


def test_another_kernel_counts_what_it_says_of_itself():
    found = facts(STATED)
    assert (found.flops, found.moved) == (1234, 2 * 8 * 128 * 4)
