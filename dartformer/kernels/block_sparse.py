"""Softmax attention over some blocks of keys: by gathered block ids, or over a band by shifted
views.

Neither form makes an array of N x N: the scores are tiles of one block of queries against the keys
it may see."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.tiles import Keys, around, attend, existing, flat, tile, untile

Predicate = Callable[[Array, Array], Array]
"""`allowed(query_position, key_position) -> bool`, elementwise on broadcastable integer arrays."""


def unique_ids(ids: np.ndarray | Array, blocks: int) -> np.ndarray | Array:
    """`ids` `[..., M]` with -1 where an id repeats an earlier one of its row, or lies outside [0,
    blocks)."""
    xp = np if isinstance(ids, np.ndarray) else jnp
    slots = ids.shape[-1]
    earlier = np.tril(np.ones((slots, slots), bool), k=-1)
    repeated = ((ids[..., :, None] == ids[..., None, :]) & earlier).any(axis=-1)
    return xp.where(repeated | (ids < 0) | (ids >= blocks), -1, ids)


def block_sparse_attention(
    q: Array,
    k: Array,
    v: Array,
    ids: np.ndarray | Array,
    *,
    block: int,
    everywhere: np.ndarray | Array | None = None,
    both_ways: bool = False,
    allowed: Predicate | None = None,
    valid: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Each block of queries attends to the blocks of keys that `ids` names.

    Args:
      q, k, v: `[B, N, H, D]`, any N: the last block may be partly filled.
      ids: `[H or 1, ceil(N / block), M]`, or the same for each example, `[B or 1, H or 1, ceil(N /
        block), M]`: block numbers, static (numpy) or traced. -1 is an empty slot. A set: a block
        named twice for the same queries counts once. Static ids outside [-1, ceil(N / block)) raise
        `ValueError`; traced ones cannot be looked at, and are empty slots.
      block: positions in a block.
      everywhere: `[B or 1, G]`, blocks of keys that all queries see beside their own, named as in
        `ids`; they are not gathered for each block of queries. A block named here and in `ids`
        counts once.
      both_ways: the blocks `everywhere` also see every key, as far as `allowed` lets them.
      allowed: further condition on absolute positions, evaluated on the gathered tiles only.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key. Time and memory O(N (M +
      G) block).
    """
    batch, length, heads, _ = q.shape
    blocks = -(-length // block)
    given = ids.shape
    ids = ids[None] if ids.ndim == 3 else ids
    if (
        ids.ndim != 4
        or ids.shape[0] not in (1, batch)
        or ids.shape[1] not in (1, heads)
        or ids.shape[2] != blocks
    ):
        raise ValueError(
            f"ids must be [1 or {heads}, {blocks}, M] for {length} positions in blocks of {block}, "
            f"got {list(given)}."
        )
    if isinstance(ids, np.ndarray) and ids.size and not (ids.min() >= -1 and ids.max() < blocks):
        raise ValueError(f"block ids must lie in [-1, {blocks}), got {ids.min()} to {ids.max()}.")
    ids = unique_ids(ids, blocks)
    q, k, v = (tile(x, block) for x in (q, k, v))
    q_position = np.arange(blocks * block).reshape(blocks, block, 1)
    exists = existing(length, block, valid)

    def see(there: Any, queries: Any, keys: Any) -> Any:
        return (
            there if allowed is None else there & allowed(jnp.asarray(queries), jnp.asarray(keys))
        )

    def named(index: Any, axes: str) -> Keys:
        """The keys of the blocks `index` `[B or 1, H or 1, T, M]`, or `[B or 1, 1, M]` for all
        tiles."""
        filled, index = index >= 0, index.clip(0)
        shape = (*index.shape[:2], 1 if index.ndim == 3 else blocks, 1, -1)
        position = (index[..., None] * block + np.arange(block)).reshape(shape)
        there = filled[..., None] & _take(jnp.asarray(exists)[:, None], index)
        there = there.reshape(there.shape[0], *shape[1:])
        return Keys(
            flat(_take(k, index)),
            flat(_take(v, index)),
            position,
            see(there, q_position, position),
            axes,
        )

    options: dict[str, Any] = {"slopes": slopes, "dropout": dropout}
    if everywhere is None:
        return untile(attend(q, [named(ids, "bhtkd")], key=key, **options), length)
    everywhere = unique_ids(everywhere, blocks)[:, None]  # [B or 1, 1, G]
    repeated = (ids[..., None] == everywhere[:, :, None, None]).any(axis=-1)
    ids = (np if isinstance(repeated, np.ndarray) else jnp).where(repeated, -1, ids)
    out = attend(q, [named(ids, "bhtkd"), named(everywhere, "bhkd")], key=key, **options)
    if both_ways:
        index = everywhere.clip(0)
        row_position = (index[..., None] * block + np.arange(block))[
            ..., None
        ]  # [B or 1, 1, G, b, 1]
        k_position = np.arange(blocks * block)
        every = Keys(
            flat(k),
            flat(v),
            k_position,
            see(exists.reshape(-1, 1, 1, 1, blocks * block), row_position, k_position),
            "bhkd",
        )
        rows = attend(
            _take(q, index),
            [every],
            position=row_position,
            key=None if key is None else jax.random.fold_in(key, 2),
            **options,
        )
        for g in range(rows.shape[2]):  # few: a choice for each is cheaper than a scatter
            here = np.arange(blocks) == everywhere[:, :, g, None]  # [B or 1, 1, T]
            out = jnp.where(here[..., None, None], rows[:, :, g, None], out)
    return untile(out, length)


def _take(x: Array, index: np.ndarray | Array) -> Array:
    """Blocks `index` `[B or 1, H or 1, ...]`, all in range, of x `[B, H or 1, T, ...]`, in place of
    T."""
    within: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
    after = (1,) * (index.ndim - 2)
    heads = np.arange(x.shape[1]).reshape(-1, *after)
    if index.shape[0] != 1:  # an exported model's B is a symbol, which `>` and numpy do not take
        return x.at[jnp.arange(x.shape[0]).reshape(-1, 1, *after), heads[None], index].get(**within)
    if index.shape[1] > 1:
        return x.at[:, heads, index[0]].get(**within)
    return x.at[:, :, index[0, 0]].get(**within)


def band_layout(length: int, window: int, *, causal: bool = False) -> tuple[int, int, int]:
    """How `band_attention` cuts its tiles: (number of tiles, queries in a tile, keys in a tile).

    A tile of b queries needs b + 2 window keys, of which a query uses 2 window + 1. Blocks as wide
    as the window keep that within half as much again and need one neighbour each side; below 32
    tiles are too small for matrix products to be quick."""
    block = min(max(window, 32), length)
    tiles = -(-length // block)
    return tiles, block, block if tiles == 1 else block + (1 if causal else 2) * min(window, block)


def band_scores(length: int, window: int, prefix: int = 0) -> int:
    """How many scores `band_attention` computes for each head of each example, not causal."""
    tiles, block, span = band_layout(length, window)
    return tiles * block * (span + min(prefix, length))


def band_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    window: int,
    prefix: int = 0,
    causal: bool = False,
    valid: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Query i attends to keys j with |i - j| <= window or j < prefix (and j <= i if causal),
    exactly.

    Args:
      q, k, v: `[B, N, H, D]`, any N.
      window: one-sided and inclusive, at least 0.
      prefix: number of first keys that every query sees.
      causal: no key after the query.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key. Time and memory
      O(N (window + prefix)).
    """
    length = q.shape[1]
    prefix = min(prefix, length)
    tiles, block, span = band_layout(length, window, causal=causal)
    before = min(window, block) if tiles > 1 else 0
    after = 0 if causal else before
    start = np.arange(tiles)[:, None, None] * block
    exists = existing(length, block, valid)
    offset = (
        np.arange(span) - before - np.arange(block)[:, None]
    )  # key minus query, the same in every tile
    band = (abs(offset) <= window) & (offset <= 0 if causal else True)  # [b, span]
    # The prefix is not in the band: a key counts once.
    outside = exists & (np.arange(tiles * block).reshape(tiles, block) >= prefix)
    allowed = band & around(jnp.asarray(outside), before, after, axis=1)[:, None, :, None, :]
    sets = [
        Keys(
            around(tile(k, block), before, after, axis=2),
            around(tile(v, block), before, after, axis=2),
            start + np.arange(span) - before,
            allowed,
        )
    ]
    if prefix:
        position = np.arange(prefix)
        seen = np.ones((1, prefix), bool) if valid is None else valid[:, :prefix]
        seen = seen[:, None, None, None, :]
        if causal:
            seen = seen & (position <= start + np.arange(block)[:, None])
        sets.append(
            Keys(k[:, :prefix].swapaxes(1, 2), v[:, :prefix].swapaxes(1, 2), position, seen, "bhkd")
        )
    return untile(attend(tile(q, block), sets, slopes=slopes, dropout=dropout, key=key), length)
