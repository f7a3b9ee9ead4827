"""Queries in tiles, each against one or several sets of keys, under one softmax."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.softmax import distance_bias, drop, dropout_key, joint_exponentials, wide


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
    tiles = x.reshape(batch, -1, block, heads, width)
    return tiles.transpose(0, 3, 1, 2, 4)


def untile(x: Array, length: int) -> Array:
    """Inverse of `tile`: `[B, H, T, b, D]` to `[B, length, H, D]`."""
    batch, heads, tiles, block, width = x.shape
    tokens = x.transpose(0, 2, 3, 1, 4).reshape(batch, tiles * block, heads, width)
    return tokens[:, :length]


def flat(x: Array) -> Array:
    """`[..., M, b, D]` to `[..., M b, D]`: tiles as one set of keys."""
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def existing(length: int, block: int, valid: Array | None) -> Array | np.ndarray:
    """Which positions have a key, in tiles: `[B or 1, T, b]` bool, static where `valid` is None."""
    filling = -length % block
    if valid is None:
        position = np.arange(length + filling).reshape(1, -1, block)
        return position < length
    padded = jnp.pad(valid, ((0, 0), (0, filling)))
    # Not len(valid): an exported model's B is a symbol.
    return padded.reshape(valid.shape[0], -1, block)


def around(x: Array, before: int, after: int, axis: int) -> Array:
    """Each tile with the end of the tile before it and the start of the tile after it.

    Shifted views of x do it, which XLA fuses; a gather would be a copy.

    Args:
      x: `[..., T, b, ...]`.
      before, after: how many positions of the neighbours to take, each at most b.
      axis: that of T; the one after it is that of b.

    Returns:
      `[..., T, before + b + after, ...]`; zeros, or False, beyond both ends.
    """
    block = x.shape[axis + 1]
    leading = (slice(None),) * axis
    pieces = []
    if before:
        ends = x[(*leading, slice(None, -1), slice(block - before, None))]
        pieces.append(_padded(ends, (1, 0), axis))
    pieces.append(x)
    if after:
        starts = x[(*leading, slice(1, None), slice(None, after))]
        pieces.append(_padded(starts, (0, 1), axis))
    return jnp.concatenate(pieces, axis=axis + 1)


def _padded(x: Array, padding: tuple[int, int], axis: int) -> Array:
    """x with zeros before and after it along `axis`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = padding
    return jnp.pad(x, widths)


def attend(
    q: Array,
    sets: Sequence[Keys],
    *,
    position: Array | np.ndarray | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
    on_cpu: bool = False,
) -> Array:
    """One softmax over the union of `sets`: sum_j softmax_j(q_i . k_j / sqrt(D)) v_j.

    The sets must not overlap. They are never joined in memory: they share the row's maximum and its
    sum.

    Args:
      q: `[B, H, T, b, D]`.
      sets: the keys.
      position: of each query, broadcastable to `[B, H, T, b, 1]`; None if tiles follow one another.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.
      on_cpu: whether the program is for a CPU, as in `row_maximum`.

    Returns:
      `[B, H, T, b, D]` in the dtype of v; zero for a query that sees no key.
    """
    tiles, block, width = q.shape[2:]
    if position is None:
        position = np.arange(tiles * block).reshape(tiles, block, 1)
    scores = []
    masks = []
    for keys in sets:
        dtype = wide(q, keys.k)
        # Summed in float32 at least: the scores go into an exponential.
        dots = jnp.einsum(f"bhtqd,{keys.axes}->bhtqk", q, keys.k, preferred_element_type=dtype)
        dots = dots * width**-0.5
        if keys.bias is not None:
            dots = dots + keys.bias
        if slopes is not None:
            dots = distance_bias(dots, slopes, keys.position - position)
        scores.append(dots)
        masks.append(keys.allowed)
    numerators, total = joint_exponentials(scores, masks, on_cpu=on_cpu)
    parts = []
    for i, (numerator, keys) in enumerate(zip(numerators, sets, strict=True)):
        # Each set draws its own noise from the key.
        numerator = drop(numerator, dropout, dropout_key(key, i))
        dtype = wide(numerator, keys.v)
        part = jnp.einsum(
            f"bhtqk,{keys.axes}->bhtqd", numerator, keys.v, preferred_element_type=dtype
        )
        parts.append(part)
    # Divided once, after the products: the sum over all sets is not known before.
    out = sum(parts[1:], parts[0]) / total
    return out.astype(sets[0].v.dtype)
