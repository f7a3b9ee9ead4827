"""Queries in tiles, each against one or several sets of keys, under one softmax."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.softmax import distance_bias, drop, joint_exponentials, wide


class Keys(NamedTuple):
    """One set of K keys for T tiles of b queries.

    Attributes:
      k, v: `[B, H, T, K, D]`, or as `axes` says.
      position: of each key, integers broadcastable to `[B, H, T, b, K]`.
      allowed: which key each query may see, bool, broadcastable to `[B, H, T, b, K]`; None if all.
      axes: "bhtkd": each tile has keys of its own. "bhkd": `[B, H, K, D]`, the same for all tiles.
        "bhkqd": `[B, H, K, b, D]`, the i-th query of each tile sees the i-th key of K tiles, a
        column.
      bias: added to the scaled scores, broadcastable to `[B, H, T, b, K]`; None if nothing.
    """

    k: Array
    v: Array
    position: Array | np.ndarray
    allowed: Array | np.ndarray | None = None
    axes: str = "bhtkd"
    bias: Array | None = None


def tile(x: Array, block: int) -> Array:
    """`[B, N, H, D]` to `[B, H, ceil(N / block), block, D]`, zeros after the end."""
    batch, length, heads, width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % block), (0, 0), (0, 0)))
    return x.reshape(batch, -1, block, heads, width).transpose(0, 3, 1, 2, 4)


def untile(x: Array, length: int) -> Array:
    """Inverse of `tile`: `[B, H, T, b, D]` to `[B, length, H, D]`."""
    batch, heads, tiles, block, width = x.shape
    return x.transpose(0, 2, 3, 1, 4).reshape(batch, tiles * block, heads, width)[:, :length]


def flat(x: Array) -> Array:
    """`[..., M, b, D]` to `[..., M b, D]`: tiles as one set of keys."""
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def existing(length: int, block: int, valid: Array | None) -> Array | np.ndarray:
    """`[B or 1, T, b]` bool, in tiles: which of the positions there is a key for. Static where
    `valid` is None."""
    if valid is None:
        return np.arange(length + -length % block).reshape(1, -1, block) < length
    # Not len(valid): an exported model's B is a symbol.
    return jnp.pad(valid, ((0, 0), (0, -length % block))).reshape(valid.shape[0], -1, block)


def around(x: Array, before: int, after: int, axis: int) -> Array:
    """Each tile with the end of the one before it and the start of the one after it, by shifted
    views.

    Args:
      x: `[..., T, b, ...]`.
      before, after: how many positions of the neighbours to take, each at most b.
      axis: that of T; the one after it is that of b.

    Returns:
      `[..., T, before + b + after, ...]`; zeros, or False, beyond both ends.
    """

    def shifted(part: Array, padding: tuple[int, int]) -> Array:
        return jnp.pad(part, [padding if a == axis else (0, 0) for a in range(part.ndim)])

    head, pieces = (slice(None),) * axis, []
    if before:
        pieces.append(
            shifted(x[(*head, slice(None, -1), slice(x.shape[axis + 1] - before, None))], (1, 0))
        )
    pieces.append(x)
    if after:
        pieces.append(shifted(x[(*head, slice(1, None), slice(None, after))], (0, 1)))
    return jnp.concatenate(pieces, axis=axis + 1)


def attend(
    q: Array,
    sets: Sequence[Keys],
    *,
    position: Array | np.ndarray | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """One softmax over the union of `sets`, which must not overlap: sum_j softmax_j(q_i . k_j /
    sqrt(D)) v_j.

    The sets are never joined in memory: they share the row's maximum and its sum.

    Args:
      q: `[B, H, T, b, D]`.
      sets: the keys.
      position: of each query, broadcastable to `[B, H, T, b, 1]`; None if tiles follow one another.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, H, T, b, D]` in the dtype of v; zero for a query that sees no key.
    """
    if position is None:
        position = np.arange(q.shape[2] * q.shape[3]).reshape(q.shape[2], q.shape[3], 1)
    scale, scores = q.shape[-1] ** -0.5, []
    for keys in sets:
        dots = (
            jnp.einsum(
                f"bhtqd,{keys.axes}->bhtqk", q, keys.k, preferred_element_type=wide(q, keys.k)
            )
            * scale
        )
        dots = dots if keys.bias is None else dots + keys.bias
        scores.append(
            dots if slopes is None else distance_bias(dots, slopes, keys.position - position)
        )
    numerators, total = joint_exponentials(scores, [keys.allowed for keys in sets])
    parts = []
    for i, (numerator, keys) in enumerate(zip(numerators, sets, strict=True)):
        numerator = drop(numerator, dropout, None if key is None else jax.random.fold_in(key, i))
        parts.append(
            jnp.einsum(
                f"bhtqk,{keys.axes}->bhtqd",
                numerator,
                keys.v,
                preferred_element_type=wide(numerator, keys.v),
            )
        )
    return (sum(parts[1:], parts[0]) / total).astype(sets[0].v.dtype)
