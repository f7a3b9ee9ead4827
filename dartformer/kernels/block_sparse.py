"""Softmax attention over some blocks of keys: by gathered block ids, or over a band by shifted views.

Neither form makes an array of N x N: the scores are tiles of one block of queries against the keys it may see.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.softmax import distance_bias, drop, exponentials, wide

Predicate = Callable[[Array, Array], Array]
"""`allowed(query_position, key_position) -> bool`, elementwise on broadcastable integer arrays."""


def _blocks(x: Array, block: int) -> Array:
    """`[B, N, H, D]` to `[B, H, ceil(N / block), block, D]`, zeros after the end."""
    batch, length, heads, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
    return x.reshape(batch, -1, block, heads, width).transpose(0, 3, 1, 2, 4)


def _attend(q: Array, k: Array, v: Array, allowed: Array | None, length: int, *, distance: Array | np.ndarray,
            slopes: Array | None, dropout: float, key: Array | None) -> Array:
    """Tiles q `[B, H, T, b, D]` against k, v `[B, H, T, K, D]`; returns `[B, length, H, D]`.

    `distance` is key minus query position, broadcastable to `[H, T, b, K]`.
    """
    scores = jnp.einsum("bhtqd,bhtkd->bhtqk", q, k, preferred_element_type=wide(q, k)) * q.shape[-1] ** -0.5
    numerator, total = exponentials(distance_bias(scores, slopes, distance), allowed)
    numerator = drop(numerator, dropout, key)
    out = jnp.einsum("bhtqk,bhtkd->bhtqd", numerator, v, preferred_element_type=wide(numerator, v)) / total
    batch, heads, tiles, block, width = out.shape
    out = out.astype(v.dtype).transpose(0, 2, 3, 1, 4)
    return out.reshape(batch, tiles * block, heads, width)[:, :length]


def unique_ids(ids: np.ndarray | Array, blocks: int) -> np.ndarray | Array:
    """`ids` `[..., M]` with -1 where an id repeats an earlier one of its row, or lies outside [0, blocks)."""
    xp = np if isinstance(ids, np.ndarray) else jnp
    slots = ids.shape[-1]
    earlier = np.tril(np.ones((slots, slots), bool), k=-1)
    repeated = ((ids[..., :, None] == ids[..., None, :]) & earlier).any(axis=-1)
    return xp.where(repeated | (ids < 0) | (ids >= blocks), -1, ids)


def block_sparse_attention(q: Array, k: Array, v: Array, ids: np.ndarray | Array, *, block: int,
                           allowed: Predicate | None = None, valid: Array | None = None,
                           slopes: Array | None = None, dropout: float = 0.0, key: Array | None = None) -> Array:
    """Each block of queries attends to the blocks of keys that `ids` names.

    Args:
      q, k, v: `[B, N, H, D]`, any N: the last block may be partly filled.
      ids: `[H or 1, ceil(N / block), M]` block numbers, static (numpy) or traced. -1 is an empty slot. A set:
        a block named twice for the same queries counts once. Static ids outside [-1, ceil(N / block)) raise
        `ValueError`; traced ones cannot be looked at, and are empty slots.
      block: positions in a block.
      allowed: further condition on absolute positions, evaluated on the gathered tiles only.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key. Time and memory O(N M block).
    """
    batch, length, heads, _ = q.shape
    blocks = -(-length // block)
    if ids.ndim != 3 or ids.shape[0] not in (1, heads) or ids.shape[1] != blocks:
        raise ValueError(f"ids must be [1 or {heads}, {blocks}, M] for {length} positions in blocks of {block}, "
                         f"got {list(ids.shape)}.")
    if isinstance(ids, np.ndarray) and ids.size and not (ids.min() >= -1 and ids.max() < blocks):
        raise ValueError(f"block ids must lie in [-1, {blocks}), got {ids.min()} to {ids.max()}.")
    ids = unique_ids(ids, blocks)
    index = np.maximum(ids, 0) if isinstance(ids, np.ndarray) else jnp.maximum(ids, 0)
    span = ids.shape[-1] * block

    def gather(x: Array) -> Array:
        x = _blocks(x, block)
        x = x[:, :, index[0]] if len(index) == 1 else x[:, np.arange(heads)[:, None, None], index]
        return x.reshape(batch, heads, blocks, span, x.shape[-1])

    k_position = (index[..., None] * block + np.arange(block)).reshape(len(index), blocks, 1, span)
    q_position = np.arange(blocks * block).reshape(1, blocks, block, 1)
    filled = np.repeat(ids >= 0, block, axis=-1) if isinstance(ids, np.ndarray) else jnp.repeat(ids >= 0, block, -1)
    tile = (filled[:, :, None, :] & (k_position < length))[None]  # [1, H or 1, T, 1, M block]
    if allowed is not None:
        tile = tile & allowed(jnp.asarray(q_position), jnp.asarray(k_position))
    if valid is not None:
        exists = jnp.pad(valid, ((0, 0), (0, -length % block)))
        tile = tile & exists[:, k_position]
    return _attend(_blocks(q, block), gather(k), gather(v), jnp.asarray(tile), length,
                   distance=k_position - q_position, slopes=slopes, dropout=dropout, key=key)


def band_layout(length: int, window: int, *, causal: bool = False) -> tuple[int, int, int]:
    """How `band_attention` cuts its tiles: (number of tiles, queries in a tile, keys in a tile).

    A tile of b queries needs b + 2 window keys, of which a query uses 2 window + 1. Blocks as wide as the
    window keep that within half as much again and need one neighbour each side; below 32 tiles are too small for matrix
    products to be quick.
    """
    block = min(max(window, 32), length)
    tiles = -(-length // block)
    return tiles, block, block if tiles == 1 else block + (1 if causal else 2) * min(window, block)


def band_attention(q: Array, k: Array, v: Array, *, window: int, causal: bool = False,
                   valid: Array | None = None, slopes: Array | None = None, dropout: float = 0.0,
                   key: Array | None = None) -> Array:
    """Query i attends to keys j with |i - j| <= window (and j <= i if causal), exactly.

    Args:
      q, k, v: `[B, N, H, D]`, any N.
      window: one-sided and inclusive, at least 0.
      causal: no key after the query.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key. Time and memory O(N window).
    """
    length = q.shape[1]
    tiles, block, span = band_layout(length, window, causal=causal)
    before = min(window, block) if tiles > 1 else 0
    after = 0 if causal else before

    def widen(x: Array, axis: int) -> Array:
        """Each block with the end of the one before and the start of the one after, by shifted views."""
        if tiles == 1:
            return x

        def shifted(part: Array, first: int) -> Array:
            pad = [(0, 0)] * x.ndim
            pad[axis] = (1, 0) if first < 0 else (0, 1)
            return jnp.pad(part, pad)

        head = (slice(None),) * axis
        pieces = []
        if before:
            pieces.append(shifted(x[(*head, slice(None, -1), slice(block - before, None))], -1))
        pieces.append(x)
        if after:
            pieces.append(shifted(x[(*head, slice(1, None), slice(None, after))], 1))
        return jnp.concatenate(pieces, axis=axis + 1)

    offset = np.arange(span) - before - np.arange(block)[:, None]  # key minus query, the same in every tile
    band = (abs(offset) <= window) & (offset <= 0 if causal else True)  # [b, span]
    exists = np.arange(tiles * block).reshape(1, tiles, block) < length if valid is None else (
        jnp.pad(valid, ((0, 0), (0, -length % block))).reshape(-1, tiles, block))
    allowed = jnp.asarray(band) & widen(jnp.asarray(exists), 1)[:, None, :, None, :]
    return _attend(_blocks(q, block), widen(_blocks(k, block), 2), widen(_blocks(v, block), 2), allowed, length,
                   distance=offset, slopes=slopes, dropout=dropout, key=key)
