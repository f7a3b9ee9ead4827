"""The two factorised patterns of the Sparse Transformer.

A block and summaries, or a band and columns: Child et al. 2019, arXiv:1904.10509, section 4.3. Both
sets of keys come under one softmax, the paper's "merged" head. Neither form gathers: summaries and
columns are reshaped views. Scores are N (stride + N / stride) at most.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.tiles import Keys, around, attend, existing, flat, tile, untile


def fixed_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    block: int,
    summary: int = 0,
    causal: bool = False,
    valid: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Query i attends to the keys of its own block and the last `summary` places of all blocks.

    Exactly: floor(i / block) = floor(j / block) or j mod block >= block - summary (and j <= i if
    causal).

    Args:
      q, k, v: `[B, N, H, D]`, any N.
      block: positions in a block.
      summary: places at the end of each block that all queries see, 0 to block.
      causal: no key after the query.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key. Time and memory
      O(N (block + summary N / block)).
    """
    length = q.shape[1]
    block = min(block, length)
    exists = existing(length, block, valid)  # [B or 1, T, b]
    q, k, v = tile(q, block), tile(k, block), tile(v, block)
    tiles = q.shape[2]
    first = block - summary
    position = np.arange(tiles * block).reshape(tiles, block)
    mask = exists[:, None, :, None, :]
    if causal:
        mask = mask & np.tri(block, dtype=bool)
    sets = [Keys(k, v, position[:, None], mask)]
    if summary and tiles > 1:
        query_block = np.arange(tiles)[:, None, None]
        key_block = np.repeat(np.arange(tiles), summary)  # [T summary]
        # A query already has the summaries of its own block. Earlier blocks are wholly in the past.
        apart = key_block != query_block  # [T, 1, T summary]
        if causal:
            apart = key_block < query_block
        mask = exists[:, :, first:].reshape(-1, 1, 1, 1, tiles * summary) & apart
        summary_k = flat(k[:, :, :, first:])  # [B, H, T summary, D]
        summary_v = flat(v[:, :, :, first:])
        sets.append(Keys(summary_k, summary_v, position[:, first:].reshape(-1), mask, "bhkd"))
    return untile(attend(q, sets, slopes=slopes, dropout=dropout, key=key), length)


def strided_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    stride: int,
    causal: bool = False,
    valid: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Query i attends to keys j with |i - j| < stride or (i - j) mod stride = 0.

    And with j <= i if causal.

    Args:
      q, k, v: `[B, N, H, D]`, any N.
      stride: at least 1.
      causal: no key after the query.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key. Time and memory
      O(N (stride + N / stride)).
    """
    length = q.shape[1]
    stride = min(stride, length)
    exists = jnp.asarray(existing(length, stride, valid))  # [B or 1, T, stride]
    q, k, v = tile(q, stride), tile(k, stride), tile(v, stride)
    tiles = q.shape[2]
    # How many keys of the neighbouring tiles a tile sees in the band.
    before = after = 0
    if tiles > 1:
        before = stride - 1
        if not causal:
            after = before
    span = before + stride + after
    offset = np.arange(span) - before - np.arange(stride)[:, None]  # key minus query
    band = abs(offset) < stride
    if causal:
        band = band & (offset <= 0)
    in_reach = around(exists, before, after, axis=1)[:, None, :, None, :]
    start = np.arange(tiles)[:, None, None] * stride
    near = Keys(
        around(k, before, after, axis=2),
        around(v, before, after, axis=2),
        start + np.arange(span) - before,
        band & in_reach,
    )
    sets = [near]
    if tiles > 1:
        # In tiles of one stride a column is the same place of every tile. That of its own tile is
        # in the band.
        row = np.arange(tiles)
        apart = row != row[:, None]  # [T, T]
        if causal:
            apart = row < row[:, None]
        mask = exists.swapaxes(1, 2)[:, None, None] & apart[:, None]  # [B or 1, 1, T, stride, T]
        position = row * stride + np.arange(stride)[:, None]
        sets.append(Keys(k, v, position, mask, "bhkqd"))
    return untile(attend(q, sets, slopes=slopes, dropout=dropout, key=key), length)
