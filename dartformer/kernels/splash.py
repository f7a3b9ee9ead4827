"""Softmax attention on TPUs by splash attention, the Pallas kernel that comes with JAX.

This project has not run it on a TPU. Its outputs and derivatives are tested in Pallas' interpreter
on a CPU, and the TPU's own compiler compiles it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from dartformer.kernels.block_sparse import band_attention
from dartformer.kernels.chunked import chunked_attention
from dartformer.kernels.fused import Function, fused

LANES = 128
"""Tokens of a block are a multiple of it: the width of a TPU's registers."""

BLOCK = 512
"""Tokens of a block, at most."""


def splash_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    window: int | None = None,
    prefix: int = 0,
    valid: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Softmax over all tokens, or over those of a window, with exact derivatives of every order.

    The scores of a block stay in the chip's fast memory, and blocks without an allowed pair are
    left out. Derivatives after the first, and those of forward mode, are by `chunked_attention`, or
    by `band_attention` for a window.

    Source: jax.experimental.pallas.ops.tpu.splash_attention; Dao et al. 2022, arXiv:2205.14135.

    Args:
      q, k, v: `[B, N, H, D]`.
      causal: query i sees key j only if j <= i.
      window: query i sees key j only if |i - j| <= window or j < prefix; None for no limit.
      prefix: number of first keys that a window does not hide.
      valid: `[B, N]` bool, which tokens exist; None if all do.
      interpret: run in Pallas' interpreter, on any device.

    Returns:
      `[B, N, H, D]` in the dtype of v, zero where not valid.
    """
    batch, length = q.shape[:2]
    block, padded = blocks_of(length)
    if valid is None:
        valid = jnp.ones((batch, length), bool)
    filling = padded - length
    present = jnp.pad(valid, ((0, 0), (0, filling)))
    dtype = jnp.result_type(q, k, v)

    def filled(x: Array) -> Array:
        return jnp.pad(x.astype(dtype), ((0, 0), (0, filling), (0, 0), (0, 0)))

    run = _by_segments(_Pattern(causal, window, prefix), block, interpret)
    out = run(filled(q), filled(k), filled(v), present.astype(jnp.int32))[:, :length]
    return jnp.where(valid[:, :, None, None], out, 0).astype(v.dtype)


def blocks_of(length: int) -> tuple[int, int]:
    """Tokens of a block, and of all blocks, for as many tokens."""
    count = -(-length // BLOCK)
    rows = -(-length // count)
    block = rows + -rows % LANES
    return block, count * block


class _Pattern(NamedTuple):
    """Which keys a query sees, as in `splash_attention`."""

    causal: bool
    window: int | None
    prefix: int

    def mask(self, length: int) -> masks.Mask:
        """For so many tokens."""
        shape = (length, length)
        causal = masks.CausalMask(shape)
        if self.window is None:
            return causal if self.causal else masks.FullMask(shape)
        after = self.window
        if self.causal:
            after = 0
        window = masks.LocalMask(shape, (self.window, after), 0)
        if not self.prefix:
            return window
        first: masks.Mask = _FirstKeys(length, self.prefix)
        if self.causal:
            first = first & causal
        return window | first


class _FirstKeys(masks.Mask):
    """The first `prefix` keys, for `length` queries and keys."""

    def __init__(self, length: int, prefix: int):
        self.length, self.prefix = length, prefix

    @property
    def shape(self) -> tuple[int, ...]:
        return self.length, self.length

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        queries, keys = (np.arange(self.length)[part] for part in index)
        return np.broadcast_to(keys < self.prefix, (len(queries), len(keys)))


# Kept, so that equal calls are the same function to JAX, which traces it only once.
@functools.cache
def _by_segments(pattern: _Pattern, block: int, interpret: bool) -> Function:
    """Attention to the keys for which the last argument, `[B, N]` integers, is 1."""

    def fast(q: Array, k: Array, v: Array, present: Array) -> Array:
        kernel = _kernel(q.shape[1], q.shape[2], pattern, block, interpret)
        # Every query is of segment 1. A query that is not valid sees the same keys as others, and
        # its row is zeroed afterwards: a row without a key would divide by zero.
        segments = kernels.SegmentIds(jnp.ones_like(present), present)
        scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        heads_first = []
        for x in (scaled, k, v):
            heads_first.append(x.swapaxes(1, 2))
        out = jax.vmap(kernel)(*heads_first, segments)
        assert isinstance(out, Array)  # the kernel can return its statistics beside it
        return out.swapaxes(1, 2)

    def definition(q: Array, k: Array, v: Array, present: Array) -> Array:
        valid = present == 1
        causal, window, prefix = pattern
        if window is None:
            return chunked_attention(q, k, v, causal=causal, valid=valid)
        return band_attention(q, k, v, window=window, prefix=prefix, causal=causal, valid=valid)

    return fused(fast, definition)


def _kernel(
    length: int, heads: int, pattern: _Pattern, block: int, interpret: bool
) -> kernels.SplashAttentionKernel:
    """Splash attention of one example, `[H, N, D]`."""
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        # Gradients of queries by a kernel of their own: fused with those of keys they would be
        # summed from an array for each block, which takes more memory.
        block_q_dq=block,
        block_kv_dq=block,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([pattern.mask(length)] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
