"""The two factorised patterns of the Sparse Transformer: a block and summaries, or a band and
columns.

Child et al. 2019, arXiv:1904.10509, section 4.3. Its two sets of keys come under one softmax, the
paper's "merged" head. Neither gathers: summaries and columns are reshaped views. Scores are N
(stride + N / stride) at most."""

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
    """Query i attends to keys j of its own block, and to the last `summary` places of every block.

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
    block = block if length > block else length
    exists = existing(length, block, valid)
    q, k, v = (tile(x, block) for x in (q, k, v))
    tiles, first = q.shape[2], block - summary
    position = np.arange(tiles * block).reshape(tiles, block)
    there = exists[:, None, :, None, :]
    sets = [Keys(k, v, position[:, None], there & np.tri(block, dtype=bool) if causal else there)]
    if summary and tiles > 1:
        here, there = (
            np.arange(tiles)[:, None, None],
            np.repeat(np.arange(tiles), summary),
        )  # number of the block
        # Those of its own block a query has already; earlier blocks are wholly in the past.
        other = there < here if causal else there != here  # [T, 1, T summary]
        seen = exists[:, :, first:].reshape(-1, 1, 1, 1, tiles * summary) & other
        sets.append(
            Keys(
                flat(k[:, :, :, first:]),
                flat(v[:, :, :, first:]),
                position[:, first:].reshape(-1),
                seen,
                "bhkd",
            )
        )
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
    """Query i attends to keys j with |i - j| < stride or (i - j) mod stride = 0 (and j <= i if
    causal), exactly.

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
    exists = existing(length, stride, valid)
    q, k, v = (tile(x, stride) for x in (q, k, v))
    tiles = q.shape[2]
    before = stride - 1 if tiles > 1 else 0
    after = 0 if causal else before
    offset = (
        np.arange(before + stride + after) - before - np.arange(stride)[:, None]
    )  # key minus query
    band = (abs(offset) < stride) & (offset <= 0 if causal else True)
    there = around(jnp.asarray(exists), before, after, axis=1)[:, None, :, None, :]
    start = np.arange(tiles)[:, None, None] * stride
    sets = [
        Keys(
            around(k, before, after, axis=2),
            around(v, before, after, axis=2),
            start + np.arange(offset.shape[1]) - before,
            band & there,
        )
    ]
    if tiles > 1:
        # In tiles of one stride a column is the same place of every tile; that of its own tile is
        # in the band.
        row = np.arange(tiles)
        other = row < row[:, None] if causal else row != row[:, None]  # [T, T]
        seen = (
            jnp.asarray(exists).swapaxes(1, 2)[:, None, None] & other[:, None]
        )  # [B or 1, 1, T, b, T]
        position = row * stride + np.arange(stride)[:, None]
        sets.append(Keys(k, v, position, seen, "bhkqd"))
    return untile(attend(q, sets, slopes=slopes, dropout=dropout, key=key), length)
