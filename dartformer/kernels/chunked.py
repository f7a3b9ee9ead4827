"""Softmax attention over all keys without the N x N array: tiles of queries, made again in the
backward pass."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from dartformer.kernels.softmax import FLOOR, MASKED, distance_bias, drop, wide

TILE = 256
"""Queries in a tile, at most: with 2,048 keys in float32 its scores are 2 MiB, about what a core's
cache holds."""

SEGMENTS = 4
"""Causal attention is cut into this many, each with the keys up to its own end: 5/8 of the work is
left."""


def chunked_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    valid: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
    tile: int = TILE,
) -> Array:
    """`softmax_attention`, with its arguments and its result, in O(N) memory.

    Paper: Rabe and Staats 2021, arXiv:2112.05682 (queries in chunks, recomputed); Dao et al. 2022,
    arXiv:2205.14135. The backward pass computes a tile's scores again, from the row's maximum and
    sum that the forward pass kept. It is plain JAX under `jax.checkpoint`, so that it can be
    differentiated any number of times, in both modes.

    Args:
      tile: queries in a tile, at most.
    """
    batch, length, heads, width = q.shape
    dtype = wide(q, k, v)
    # A CPU is quickest with one head of one example at a time, in its cache; other devices want all
    # of them at once. An exported model's batch is a symbol, over which there is no loop.
    cells = (
        1 if jax.default_backend() != "cpu" else heads * batch if isinstance(batch, int) else heads
    )
    tiles = -(-length // tile)
    rows = -(-length // tiles)
    segments = min(SEGMENTS, tiles) if causal else 1
    bounds = [round(s * tiles / segments) for s in range(segments + 1)]

    def cut(x: Array) -> Array:  # [B, N, H, D] to [cells, (H B) / cells, N, D]
        return x.transpose(2, 0, 1, 3).reshape(cells, -1, x.shape[1], x.shape[3])

    padded = jnp.pad(
        q.astype(dtype) * width**-0.5, ((0, 0), (0, tiles * rows - length), (0, 0), (0, 0))
    )
    # Each cell is given the numbers of its tiles: from numbers that all share, JAX would make the
    # masks of all tiles at once, outside the loop.
    given: dict[str, Any] = {
        "q": cut(padded.astype(q.dtype)),
        "k": cut(k).swapaxes(2, 3),
        "v": cut(v).swapaxes(2, 3),
        "number": jnp.broadcast_to(jnp.arange(tiles), (cells, tiles)),
    }
    if valid is not None:
        given["valid"] = cut(jnp.broadcast_to(valid[:, :, None, None], (batch, length, heads, 1)))[
            ..., 0
        ]
    if slopes is not None:
        given["slopes"] = cut(jnp.broadcast_to(slopes, (batch, 1, heads))[..., None])[..., 0, 0]
    if dropout > 0 and key is not None:
        given["key"] = jax.random.split(key, cells)

    def cell(given: dict[str, Any]) -> Array:
        """`[M, tiles rows, D]`, of one cell's M heads."""
        parts = []
        for first, last in itertools.pairwise(bounds):
            end = min(last * rows, length) if causal else length
            keys: dict[str, Any] = {
                name: given[name][..., :end] for name in ("k", "v", "valid") if name in given
            }
            one = functools.partial(
                _tile, rest={**given, **keys}, causal=causal, dropout=dropout, dtype=dtype
            )
            queries = (
                given["q"][:, first * rows : last * rows]
                .reshape(-1, last - first, rows, width)
                .swapaxes(0, 1)
            )
            policy = jax.checkpoint_policies.save_only_these_names("statistics")
            out = jax.lax.map(
                jax.checkpoint(one, policy=policy), (given["number"][first:last], queries)
            )
            parts.append(out.swapaxes(0, 1).reshape(-1, (last - first) * rows, width))
        return jnp.concatenate(parts, axis=1)

    out = jax.lax.map(cell, given) if cells > 1 else cell(jax.tree.map(lambda x: x[0], given))[None]
    out = out.reshape(heads, -1, tiles * rows, width)[:, :, :length]
    return out.transpose(1, 2, 0, 3).astype(v.dtype)


def _tile(
    queries: tuple[Array, Array], rest: dict[str, Any], *, causal: bool, dropout: float, dtype: Any
) -> Array:
    """`[M, rows, D]`: tile `queries[0]`, of which `queries[1]` is `[M, rows, D]`, against all keys,
    `[M, D, K]`."""
    number, q = queries
    rows, keys = q.shape[1], rest["k"].shape[2]
    distance = jnp.arange(keys) - (number * rows + jnp.arange(rows)[:, None])  # [rows, keys]
    scores = _products("qd,dk->qk", q, rest["k"], dtype)
    if "slopes" in rest:
        scores = distance_bias(scores[None], rest["slopes"], distance)[0]
    # A sum and not a choice, as in `joint_exponentials`.
    if causal:
        scores = scores + jnp.where(distance <= 0, 0, jnp.asarray(MASKED, dtype))
    if "valid" in rest:
        scores = scores + jnp.where(rest["valid"], 0, jnp.asarray(MASKED, dtype))[:, None]
    top = jnp.maximum(jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)), FLOOR)
    numerator = jnp.exp(scores - checkpoint_name(top, "statistics"))
    total = jnp.sum(numerator, axis=-1, keepdims=True)
    total = checkpoint_name(total + jax.lax.stop_gradient(total == 0), "statistics")
    if dropout > 0:
        numerator = drop(
            numerator, dropout, jax.random.fold_in(rest["key"], number) if "key" in rest else None
        )
    out = _products("qk,dk->qd", numerator, rest["v"], dtype)
    return checkpoint_name(out, "statistics") / total


def _products(axes: str, x: Array, y: Array, dtype: Any) -> Array:
    """`jnp.einsum` for each of M pairs of matrices; of one pair without an axis for M.

    Gradients of keys and values are wanted as `[D, K]`: on a CPU the same product takes six times
    as long as `[K, D]`. XLA turns products round to fit what is asked for, if they are of plain
    matrices."""
    if x.shape[0] == 1:
        return jnp.einsum(axes, x.squeeze(0), y.squeeze(0), preferred_element_type=dtype)[None]
    return jax.vmap(lambda x, y: jnp.einsum(axes, x, y, preferred_element_type=dtype))(x, y)
