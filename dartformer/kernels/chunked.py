"""Softmax attention over all keys without the N x N array.

The scores are tiles of a few queries, computed again in the backward pass.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from dartformer.kernels.softmax import (
    FLOOR,
    distance_bias,
    drop,
    dropout_key,
    masked_scores,
    row_maximum,
    wide,
    without_zeros,
)
from dartformer.kernels.target import Target, here, on_cpu

TILE = 256
"""Queries in a tile, at most.

With 2,048 keys in float32 its scores are 2 MiB, about what a core's cache holds.
"""

SEGMENTS = 4
"""Parts that causal attention is cut into, each with the keys up to its own end.

5/8 of the work is left.
"""


class Cell(NamedTuple):
    """What is computed at once: M heads, of one example or of all.

    Attributes:
      q: scaled and filled up to whole tiles, `[M, tiles rows, D]`.
      k: `[M, D, N]`.
      v: `[M, V, N]`.
      numbers: of the tiles, `[tiles]`.
      valid: `[M, N]` bool, or None.
      slopes: `[M]`, or None.
      key: for dropout, or None.
    """

    q: Array
    k: Array
    v: Array
    numbers: Array
    valid: Array | None = None
    slopes: Array | None = None
    key: Array | None = None


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
    scale: float | None = None,
    dtype: DTypeLike | None = None,
    target: Target | None = None,
) -> Array:
    """`softmax_attention`, with its arguments and its result, in O(N) memory.

    Paper: Rabe and Staats 2021, arXiv:2112.05682 (queries in chunks, recomputed); Dao et al. 2022,
    arXiv:2205.14135. The backward pass computes a tile's scores again, from the row's maximum and
    sum that the forward pass kept. It is plain JAX under `jax.checkpoint`, and can be
    differentiated any number of times, in both modes.

    Args:
      v: `[B, K, H, V]`; V, the width of the output, may differ from that of q and k.
      tile: queries in a tile, at most.
      scale: factor of the dot products; None for 1 / sqrt(D).
      dtype: of the output; None for that of v.
      target: the device that the program is made for; None for that of this process.
    """
    batch, length, heads, width = q.shape
    if scale is None:
        scale = width**-0.5
    computed = wide(q, k, v)
    cells = _cells(batch, heads, target or here())
    tiles = -(-length // tile)
    rows = -(-length // tiles)

    def cut(x: Array) -> Array:
        """`[B, N, H, D]` to `[cells, (B H) / cells, N, D]`."""
        # The batch stays in front of the heads: devices share it out, and a merged axis is shared
        # out only along the first of its parts.
        return x.transpose(0, 2, 1, 3).reshape(cells, -1, x.shape[1], x.shape[3])

    # Scaled in float32 or wider, before it is cut: N D products, and not N^2.
    scaled = q.astype(computed) * scale
    padded = jnp.pad(scaled, ((0, 0), (0, tiles * rows - length), (0, 0), (0, 0)))
    inputs = Cell(
        cut(padded.astype(q.dtype)),
        cut(k).swapaxes(2, 3),
        cut(v).swapaxes(2, 3),
        # Each cell has its own copy of the numbers: from numbers that all share, JAX would make the
        # masks of all tiles at once, outside the loop.
        jnp.broadcast_to(jnp.arange(tiles), (cells, tiles)),
    )
    if valid is not None:
        mask = jnp.broadcast_to(valid[:, :, None, None], (batch, k.shape[1], heads, 1))
        inputs = inputs._replace(valid=cut(mask)[..., 0])
    if slopes is not None:
        slopes = jnp.broadcast_to(slopes, (batch, 1, heads))[..., None]
        inputs = inputs._replace(slopes=cut(slopes)[..., 0, 0])
    if dropout > 0 and key is not None:
        inputs = inputs._replace(key=jax.random.split(key, cells))

    run = functools.partial(
        _cell, rows=rows, causal=causal, dropout=dropout, dtype=computed, on_cpu=on_cpu(target)
    )
    if cells > 1:
        out = jax.lax.map(run, inputs)
    else:
        only = jax.tree.map(lambda x: x[0], inputs)
        out = run(only)[None]
    out = out.reshape(-1, heads, tiles * rows, v.shape[-1])[:, :, :length]  # [B, H, N, V]
    return out.transpose(0, 2, 1, 3).astype(dtype or v.dtype)


def _cells(batch: int, heads: int, target: Target) -> int:
    """Into how many cells the heads of all examples are cut.

    A CPU is quickest with one head of one example at a time, in its cache. Other devices want all
    of them at once.
    """
    if target.accelerated:
        return 1
    if isinstance(batch, int):
        return heads * batch
    return heads  # an exported model's batch is a symbol, over which there is no loop


def _cell(
    cell: Cell, *, rows: int, causal: bool, dropout: float, dtype: jnp.dtype, on_cpu: bool
) -> Array:
    """The output of a cell, `[M, tiles rows, V]`, one tile of `rows` queries after another."""
    tiles = len(cell.numbers)
    length = cell.k.shape[-1]
    width = cell.q.shape[-1]
    segments = 1
    if causal:
        segments = min(SEGMENTS, tiles)
    bounds = [round(s * tiles / segments) for s in range(segments + 1)]
    policy = jax.checkpoint_policies.save_only_these_names("statistics")
    parts = []
    for first, last in itertools.pairwise(bounds):
        visible = cell
        if causal:  # no query of this segment sees a later key
            end = min(last * rows, length)
            visible = _first_keys(cell, end)
        tile = functools.partial(
            _tile, cell=visible, causal=causal, dropout=dropout, dtype=dtype, on_cpu=on_cpu
        )
        queries = cell.q[:, first * rows : last * rows]
        queries = queries.reshape(-1, last - first, rows, width).swapaxes(0, 1)
        numbers = cell.numbers[first:last]
        # A loop, not a `vmap`: the scores of one tile at a time are in memory.
        out = jax.lax.map(jax.checkpoint(tile, policy=policy), (numbers, queries))
        # [tiles, M, rows, V] to [M, tiles rows, V]
        parts.append(out.swapaxes(0, 1).reshape(-1, (last - first) * rows, out.shape[-1]))
    return jnp.concatenate(parts, axis=1)


def _first_keys(cell: Cell, end: int) -> Cell:
    """`cell` with the first `end` keys alone."""
    valid = cell.valid
    if valid is not None:
        valid = valid[..., :end]
    return cell._replace(k=cell.k[..., :end], v=cell.v[..., :end], valid=valid)


def _tile(
    queries: tuple[Array, Array],
    cell: Cell,
    *,
    causal: bool,
    dropout: float,
    dtype: jnp.dtype,
    on_cpu: bool,
) -> Array:
    """One tile's output, `[M, rows, V]`.

    `queries` is its number and its queries, `[M, rows, D]`; `cell` has the K keys they see.
    """
    number, q = queries
    rows, keys = q.shape[1], cell.k.shape[2]
    position = number * rows + jnp.arange(rows)
    distance = jnp.arange(keys) - position[:, None]  # [rows, K]
    scores = _products("qd,dk->qk", q, cell.k, dtype)  # [M, rows, K]
    if cell.slopes is not None:
        scores = distance_bias(scores[None], cell.slopes, distance)[0]
    if causal:
        scores = masked_scores(scores, distance <= 0)
    if cell.valid is not None:
        scores = masked_scores(scores, cell.valid[:, None])
    # The row's maximum and sum, and the output before it is divided, are all that is kept for the
    # backward pass.
    top = jnp.maximum(row_maximum(scores, on_cpu=on_cpu), FLOOR)
    numerator = jnp.exp(scores - checkpoint_name(top, "statistics"))
    total = without_zeros(jnp.sum(numerator, axis=-1, keepdims=True))
    total = checkpoint_name(total, "statistics")
    if dropout > 0:
        numerator = drop(numerator, dropout, dropout_key(cell.key, number))
    out = _products("qk,dk->qd", numerator, cell.v, dtype)
    return checkpoint_name(out, "statistics") / total


def _products(axes: str, x: Array, y: Array, dtype: jnp.dtype) -> Array:
    """`jnp.einsum` for each of M pairs of matrices; of one pair without an axis for M.

    Gradients of keys and values are wanted as `[D, K]`: on a CPU the same product takes six times
    as long as `[K, D]`. XLA chooses the layout that its user asks for only in products of plain
    matrices.
    """

    def product(x: Array, y: Array) -> Array:
        return jnp.einsum(axes, x, y, preferred_element_type=dtype)

    if x.shape[0] == 1:
        return product(x.squeeze(0), y.squeeze(0))[None]
    return jax.vmap(product)(x, y)
