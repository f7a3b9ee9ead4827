"""Softmax attention over some blocks of keys: by gathered block ids, or a band by shifted views.

Neither form makes an array of N x N: the scores are tiles of one block of queries against the keys
it may see.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.softmax import dropout_key
from dartformer.kernels.target import Target, here, on_cpu
from dartformer.kernels.tiles import Keys, around, attend, existing, flat, tile, untile

Predicate = Callable[[Array, Array], Array]
"""`allowed(query_position, key_position) -> bool`, elementwise on broadcastable integer arrays."""


def unique_ids(ids: np.ndarray | Array, blocks: int) -> np.ndarray | Array:
    """`ids` `[..., M]` with -1 where an id repeats an earlier one of its row.

    Ids outside [0, blocks) become -1 too.
    """
    slots = ids.shape[-1]
    earlier = np.tril(np.ones((slots, slots), bool), k=-1)
    same = ids[..., :, None] == ids[..., None, :]  # [..., M, M]
    repeated = (same & earlier).any(axis=-1)
    return _emptied(ids, repeated | (ids < 0) | (ids >= blocks))


def _emptied(ids: np.ndarray | Array, excluded: np.ndarray | Array) -> np.ndarray | Array:
    """`ids` with -1 where `excluded`; static where both are."""
    if isinstance(excluded, np.ndarray):
        return np.where(excluded, -1, ids)
    return jnp.where(excluded, -1, ids)


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
    target: Target | None = None,
) -> Array:
    """Each block of queries attends to the blocks of keys that `ids` names.

    Args:
      q, k, v: `[B, N, H, D]`, any N: the last block may be partly filled.
      ids: `[H or 1, ceil(N / block), M]`, or the same for each example, `[B or 1, H or 1, ceil(N /
        block), M]`: block numbers, static (numpy) or traced. -1 is an empty slot. A set: a block
        named twice for the same queries counts once. Static ids outside [-1, ceil(N / block)) raise
        `ValueError`; traced ones cannot be checked, and are empty slots.
      block: positions in a block.
      everywhere: `[B or 1, G]`, global blocks of keys, which all queries see beside their own; as
        in `ids`. They are not gathered for each block of queries. A block named here and in `ids`
        counts once.
      both_ways: the queries of global blocks also see all keys, as far as `allowed` lets them.
      allowed: further condition on absolute positions, evaluated on the gathered tiles only.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key. Time and memory O(N (M +
      G) block).
    """
    length = q.shape[1]
    blocks = -(-length // block)
    ids = unique_ids(_checked(ids, q.shape, block), blocks)
    q, k, v = tile(q, block), tile(k, block), tile(v, block)
    take = _taking(q.shape[-1], target or here())
    cpu = on_cpu(target)
    cells = _Blocks(k, v, existing(length, block, valid), allowed, take)
    if everywhere is None:
        keys = [cells.gather(ids, "bhtkd")]
        out = attend(q, keys, slopes=slopes, dropout=dropout, key=key, on_cpu=cpu)
        return untile(out, length)

    everywhere = unique_ids(everywhere, blocks)[:, None]  # [B or 1, 1, G]
    repeated = (ids[..., None] == everywhere[:, :, None, None]).any(axis=-1)
    ids = _emptied(ids, repeated)
    keys = [cells.gather(ids, "bhtkd"), cells.gather(everywhere, "bhkd")]
    out = attend(q, keys, slopes=slopes, dropout=dropout, key=key, on_cpu=cpu)
    if both_ways:
        index = everywhere.clip(0)
        position = (index[..., None] * block + np.arange(block))[..., None]  # [B or 1, 1, G, b, 1]
        rows = attend(
            take(q, index),
            [cells.all_keys(position)],
            position=position,
            slopes=slopes,
            dropout=dropout,
            on_cpu=cpu,
            key=dropout_key(key, 2),  # 0 and 1 are the two sets of keys above
        )
        out = _with_rows(out, rows, everywhere)
    return untile(out, length)


def _checked(ids: np.ndarray | Array, shape: tuple[int, ...], block: int) -> np.ndarray | Array:
    """`ids` as `[B or 1, H or 1, T, M]`; raises `ValueError` for other shapes and bad numbers."""
    batch, length, heads, _ = shape
    blocks = -(-length // block)
    full = ids
    if ids.ndim == 3:
        full = ids[None]
    fits = full.ndim == 4 and full.shape[0] in (1, batch) and full.shape[1] in (1, heads)
    if not fits or full.shape[2] != blocks:
        raise ValueError(
            f"ids must be [1 or {heads}, {blocks}, M] for {length} positions in blocks of {block}, "
            f"got {list(ids.shape)}."
        )
    if not isinstance(full, np.ndarray) or not full.size:
        return full
    least, most = full.min(), full.max()
    if least < -1 or most >= blocks:
        raise ValueError(f"block ids must lie in [-1, {blocks}), got {least} to {most}.")
    return full


class _Blocks(NamedTuple):
    """Keys and values in T blocks of b, to be gathered.

    Attributes:
      k, v: `[B, H, T, b, D]`.
      exists: `[B or 1, T, b]` bool, static without padding.
      allowed: further condition on positions, or None.
      take: how blocks of keys and values are taken, `_take` or `_product`.
    """

    k: Array
    v: Array
    exists: np.ndarray | Array
    allowed: Predicate | None
    take: Callable[[Array, np.ndarray | Array], Array]

    def gather(self, index: np.ndarray | Array, axes: str) -> Keys:
        """The keys of the blocks `index`, -1 for none.

        `[B or 1, H or 1, T, M]`: for each tile of queries; `[B or 1, 1, M]`: for all tiles.
        """
        blocks, block = self.k.shape[2:4]
        filled = index >= 0
        index = index.clip(0)
        tiles = 1
        if index.ndim == 4:
            tiles = blocks
        shape = (*index.shape[:2], tiles, 1, -1)
        position = (index[..., None] * block + np.arange(block)).reshape(shape)
        exists = filled[..., None] & _take(jnp.asarray(self.exists)[:, None], index)
        exists = exists.reshape(exists.shape[0], *shape[1:])  # [B, H or 1, T or 1, 1, M b]
        queries = np.arange(blocks * block).reshape(blocks, block, 1)
        mask = self.visible(exists, queries, position)
        k, v = self.take(self.k, index), self.take(self.v, index)
        return Keys(flat(k), flat(v), position, mask, axes)

    def all_keys(self, queries: np.ndarray | Array) -> Keys:
        """The keys of all blocks, for queries at the positions `queries`."""
        position = np.arange(self.exists.shape[1] * self.exists.shape[2])
        exists = self.exists.reshape(-1, 1, 1, 1, len(position))
        return Keys(
            flat(self.k), flat(self.v), position, self.visible(exists, queries, position), "bhkd"
        )

    def visible(
        self,
        exists: np.ndarray | Array,
        queries: np.ndarray | Array,
        keys: np.ndarray | Array,
    ) -> np.ndarray | Array:
        """Which keys the queries see: those that exist, as far as `allowed` lets them."""
        if self.allowed is None:
            return exists
        return jnp.asarray(exists) & self.allowed(jnp.asarray(queries), jnp.asarray(keys))


def _with_rows(out: Array, rows: Array, everywhere: np.ndarray | Array) -> Array:
    """`out` `[B, H, T, b, D]` with `rows` `[B, H, G, b, D]` at the blocks `everywhere`."""
    number = np.arange(out.shape[2])
    for g in range(rows.shape[2]):  # few: a choice for each is cheaper than a scatter
        chosen = number == everywhere[:, :, g, None]  # [B or 1, 1, T]
        out = jnp.where(chosen[..., None, None], rows[:, :, g, None], out)
    return out


NARROW = 32
"""The widest head whose blocks a TPU takes by a product.

It fills the last axis up to 128 numbers: gathered blocks of narrow heads are mostly filling.
"""


def _taking(width: int, target: Target) -> Callable[[Array, np.ndarray | Array], Array]:
    """How blocks of heads of `width` numbers are taken on `target`."""
    if target.platform == "tpu" and width <= NARROW:
        return _product
    return _take


def _product(x: Array, index: np.ndarray | Array) -> Array:
    """`_take` of x `[B, H, T, b, D]`, as a product of a one-hot matrix and rows of b D numbers."""
    rows = x.reshape(*x.shape[:3], -1)
    hot = jnp.asarray(index)[..., None] == jnp.arange(x.shape[2])  # [B or 1, H or 1, ..., T]
    chosen = hot.reshape(*hot.shape[:2], -1, hot.shape[-1]).astype(x.dtype)
    # In full precision: a TPU would round float32 to bfloat16, and these are copies.
    taken = jnp.matmul(chosen, rows, precision=jax.lax.Precision.HIGHEST)
    return taken.reshape(*x.shape[:2], *index.shape[2:], *x.shape[3:])


def _take(x: Array, index: np.ndarray | Array) -> Array:
    """Blocks `index` `[B or 1, H or 1, ...]`, all in range, of x `[B, H or 1, T, ...]` for T."""
    within: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
    after = (1,) * (index.ndim - 2)
    heads = np.arange(x.shape[1]).reshape(-1, *after)
    if index.shape[0] != 1:  # an exported model's B is a symbol, which `>` and numpy do not take
        examples = jnp.arange(x.shape[0]).reshape(-1, 1, *after)
        return x.at[examples, heads[None], index].get(**within)
    if index.shape[1] > 1:
        return x.at[:, heads, index[0]].get(**within)
    return x.at[:, :, index[0, 0]].get(**within)


def band_layout(length: int, window: int, *, causal: bool = False) -> tuple[int, int, int]:
    """How `band_attention` cuts its tiles: (number of tiles, queries in a tile, keys in a tile).

    A tile of b queries needs b + 2 window keys, of which a query uses 2 window + 1. Blocks as wide
    as the window keep that within half as much again, and need one neighbour on each side. Below 32
    queries, tiles are too small for matrix products to be quick.
    """
    block = min(max(window, 32), length)
    tiles = -(-length // block)
    if tiles == 1:
        return tiles, block, block
    sides = 2
    if causal:
        sides = 1
    return tiles, block, block + sides * min(window, block)


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
    target: Target | None = None,
) -> Array:
    """Query i attends to keys j with |i - j| <= window or j < prefix, and j <= i if causal.

    Args:
      q, k, v: `[B, N, H, D]`, any N.
      window: one-sided and inclusive, at least 0.
      prefix: number of first keys that every query sees.
      causal: no key after the query.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key. Time and memory
      O(N (window + prefix)).
    """
    length = q.shape[1]
    prefix = min(prefix, length)
    tiles, block, span = band_layout(length, window, causal=causal)
    # How many keys of the neighbouring tiles a tile sees.
    before = after = 0
    if tiles > 1:
        before = min(window, block)
        if not causal:
            after = before
    start = np.arange(tiles)[:, None, None] * block
    # Key minus query, the same in every tile, [b, span].
    offset = np.arange(span) - before - np.arange(block)[:, None]
    band = abs(offset) <= window
    if causal:
        band = band & (offset <= 0)
    # The prefix is not in the band: a key counts once.
    after_prefix = np.arange(tiles * block).reshape(tiles, block) >= prefix
    outside = jnp.asarray(existing(length, block, valid) & after_prefix)
    outside = around(outside, before, after, axis=1)  # [B or 1, T, span]
    near = Keys(
        around(tile(k, block), before, after, axis=2),
        around(tile(v, block), before, after, axis=2),
        start + np.arange(span) - before,
        band & outside[:, None, :, None, :],
    )
    sets = [near]
    if prefix:
        position = np.arange(prefix)
        exists: np.ndarray | Array = np.ones((1, prefix), bool)
        if valid is not None:
            exists = valid[:, :prefix]
        exists = exists[:, None, None, None, :]
        if causal:
            exists = exists & (position <= start + np.arange(block)[:, None])
        first_k = k[:, :prefix].swapaxes(1, 2)  # [B, H, prefix, D]
        first_v = v[:, :prefix].swapaxes(1, 2)
        sets.append(Keys(first_k, first_v, position, exists, "bhkd"))
    out = attend(
        tile(q, block),
        sets,
        slopes=slopes,
        dropout=dropout,
        key=key,
        on_cpu=on_cpu(target),
    )
    return untile(out, length)
