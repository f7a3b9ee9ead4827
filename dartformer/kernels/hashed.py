"""Softmax attention within buckets of a hash.

Tokens are sorted by bucket, and cut into chunks that see themselves and the chunk before.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.softmax import FLOOR, MASKED, drop, dropout_key, row_maximum, wide
from dartformer.kernels.target import Target, here


class Sorted(NamedTuple):
    """Tokens in T chunks of C, in the order of their bucket and then of their position.

    Attributes:
      order: the position of each, `[B, H, R, T C]`.
      inverse: where each position went, `[B, H, R, T C]`.
      bucket: `[B, H, R, T, C]`; the number of buckets or above at padding.
    """

    order: Array
    inverse: Array
    bucket: Array


@jax.custom_vjp
def permute(x: Array, order: Array, inverse: Array) -> Array:
    """x `[..., N, D]` in `order` `[..., N]`, with a gather by `inverse` as its gradient.

    That of a plain gather is a scatter, which takes forty times as long on a CPU.
    """
    return _take(x, order)


def _take(x: Array, order: Array) -> Array:
    return jnp.take_along_axis(x, order[..., None], axis=-2, mode="promise_in_bounds")


def _permute_forward(x: Array, order: Array, inverse: Array) -> tuple[Array, Array]:
    return _take(x, order), inverse


def _permute_backward(inverse: Array, cotangent: Array) -> tuple[Array, None, None]:
    return _take(cotangent, inverse), None, None


permute.defvjp(_permute_forward, _permute_backward)


def sort_by_bucket(bucket: Array, count: int, chunk: int) -> Sorted:
    """The order of `bucket` `[B, H, R, N]`, filled up to full chunks.

    Buckets are in [0, count], where `count` is padding.
    """
    length = bucket.shape[-1]
    filling = -length % chunk
    size = length + filling
    # The filling is of the bucket of padding, the last: it comes after all tokens.
    bucket = jnp.pad(bucket, [(0, 0)] * 3 + [(0, filling)], constant_values=count)
    # One integer holds bucket and position: sorting that is far quicker than sorting two arrays by
    # one of them.
    packed = jnp.sort(bucket * size + jnp.arange(size, dtype=jnp.int32))
    order = packed % size
    places = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), order.shape)
    batch, heads, rounds, _ = order.shape
    b = jnp.arange(batch).reshape(-1, 1, 1, 1)
    h = jnp.arange(heads).reshape(-1, 1, 1)
    r = jnp.arange(rounds).reshape(-1, 1)
    # The inverse by a scatter of the places, in place of a second sort.
    at = jnp.zeros_like(order).at[b, h, r, order]
    inverse = at.set(places, unique_indices=True, mode="promise_in_bounds")
    sorted_bucket = (packed // size).reshape(*order.shape[:3], -1, chunk)
    return Sorted(order, inverse, sorted_bucket)


def unit(x: Array) -> Array:
    """x / |x| over the last axis, in float32 or wider; zero where x is zero."""
    x = x.astype(wide(x))
    square = (x * x).sum(-1, keepdims=True)
    # The inner `where` keeps the gradient at zero finite.
    return x * jax.lax.rsqrt(jnp.where(square == 0, 1, square))


def hashed_attention(
    q: Array,
    v: Array,
    bucket: Array,
    *,
    count: int,
    chunk: int,
    causal: bool = False,
    few: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
    target: Target | None = None,
) -> Array:
    """One softmax over the tokens that share a bucket: sum_j softmax_j(q_i . k_j / sqrt(D)) v_j.

    k = q / |q|. Paper: Kitaev et al. 2020, arXiv:2001.04451, equations 4 to 7. In a round, tokens
    are sorted by bucket and then position, and cut into chunks. Token i sees the others of its
    bucket that lie in its own chunk or the one before. Causal: those of the `chunk` tokens of its
    bucket before it. A token that shares buckets with i in several rounds counts as often. One that
    sees no other in any round gives its own value.

    Args:
      q, v: `[B, N, H, D]`.
      bucket: `[B, H, R, N]` integers in [0, count], `count` at padding.
      count: number of buckets.
      chunk: C.
      causal: no key after the query.
      few: `[B]`, where chunk 0 also sees chunk 1: where both hold all tokens, and these are of one
        bucket.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]` in the dtype of v; anything at padding. Time and memory O(R N chunk), beside
      the sort.
    """
    length, width = q.shape[1], q.shape[-1]
    ordered = sort_by_bucket(bucket, count, chunk)
    queries, values = _in_order(q, v, ordered, target or here())
    backs = range(2)  # each chunk sees itself and, 1 back, the one before it
    if ordered.bucket.shape[-2] == 1:
        backs = range(1)

    keys = unit(queries)
    scores = []
    for back in backs:
        dots = _chunk_scores(queries, keys, ordered, back, slopes)
        allowed = _chunk_mask(ordered, back, causal, few)
        scores.append(dots + jnp.where(allowed, 0, MASKED))

    # One maximum for each token over its rounds, so that their sums can be added.
    tops = [jax.lax.stop_gradient(part).max(-1) for part in scores]
    top = jnp.maximum(functools.reduce(jnp.maximum, tops), FLOOR)
    top = _over_rounds(top, ordered)[..., None]
    numerators = [jnp.exp(part - top) for part in scores]
    total = sum(numerator.sum(-1, keepdims=True) for numerator in numerators)
    sums: Any = 0
    for back, numerator in enumerate(numerators):
        numerator = drop(numerator, dropout, dropout_key(key, back))
        chunk_values = _shifted(values, back, -3)
        sums = sums + jnp.einsum("...qk,...kd->...qd", numerator, chunk_values)

    # Numerator and denominator back to the order of the input, as one array: one gather.
    joint = jnp.concatenate([sums, total], axis=-1)
    joint = joint.reshape(*ordered.order.shape, width + 1)
    joint = permute(joint, ordered.inverse, ordered.order)
    joint = joint.sum(2)[:, :, :length].swapaxes(1, 2)  # over rounds; [B, N, H, D + 1]
    out, total = joint[..., :-1], joint[..., -1:]
    alone = drop(jnp.ones_like(total), dropout, dropout_key(key, 2)) * v
    mean = out / jnp.where(total == 0, 1, total)
    return jnp.where(total == 0, alone, mean).astype(v.dtype)


def _in_order(q: Array, v: Array, ordered: Sorted, target: Target) -> tuple[Array, Array]:
    """Queries and values sorted and in chunks, `[B, H, R, T, C, D]`."""
    dtype = wide(q, v)
    q, v = q.astype(dtype), v.astype(dtype)
    if not target.accelerated:
        # A gradient of both as one array would be put together, number by number, in the loop that
        # gathers it.
        return _sorted(q, ordered), _sorted(v, ordered)
    joint = _sorted(jnp.concatenate([q, v], axis=-1), ordered)  # as one array: one gather
    width = q.shape[-1]
    return joint[..., :width], joint[..., width:]


def _sorted(x: Array, ordered: Sorted) -> Array:
    """x `[B, N, H, D]` sorted and in chunks, `[B, H, R, T, C, D]`."""
    filling = ordered.order.shape[-1] - x.shape[1]
    x = jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, filling), (0, 0)))
    x = jnp.broadcast_to(x[:, :, None], (*ordered.order.shape, x.shape[-1]))
    x = permute(x, ordered.order, ordered.inverse)
    return x.reshape(*ordered.bucket.shape, x.shape[-1])


def _chunk_scores(
    queries: Array, keys: Array, ordered: Sorted, back: int, slopes: Array | None
) -> Array:
    """Scaled dot products of queries with the keys `back` chunks before, `[B, H, R, T, C, C]`."""
    keys = _shifted(keys, back, -3)
    dots = jnp.einsum("...qd,...kd->...qk", queries, keys) * queries.shape[-1] ** -0.5
    if slopes is None:
        return dots
    position = ordered.order.reshape(ordered.bucket.shape)
    key_position = _shifted(position, back, -2)
    distance = abs(position[..., None] - key_position[..., None, :]).astype(dots.dtype)
    return dots - slopes.astype(dots.dtype)[:, None, None, None, None] * distance


def _chunk_mask(ordered: Sorted, back: int, causal: bool, few: Array | None) -> Array:
    """Which keys `back` chunks before each query sees, `[B, H, R, T, C, C]` bool."""
    tiles, chunk = ordered.bucket.shape[-2:]
    key_bucket = _shifted(ordered.bucket, back, -2)
    same = ordered.bucket[..., None] == key_bucket[..., None, :]
    apart = np.arange(chunk) - np.arange(chunk)[:, None]  # key minus query, in the order
    if not back:
        if causal:
            return same & (apart < 0)
        return same & (apart != 0)  # not itself
    before: np.ndarray | Array = np.arange(tiles)[:, None, None] > 0  # chunk 0 has none before it
    if causal:
        return same & (before & (apart >= 0))  # the last C tokens of the bucket
    if few is not None:
        before = before | few[:, None, None, None, None, None]
    return same & before


def _shifted(x: Array, back: int, axis: int) -> Array:
    """At each chunk of `axis` the one `back`, 0 or 1, before it; at the first the second."""
    if back == 0:
        return x
    count = x.shape[axis]
    second = jax.lax.slice_in_dim(x, 1, 2, axis=axis)
    earlier = jax.lax.slice_in_dim(x, 0, count - 1, axis=axis)
    return jnp.concatenate([second, earlier], axis=axis)


def _over_rounds(top: Array, ordered: Sorted) -> Array:
    """The largest `top` of a token's rounds, `[B, H, R, T, C]`, in the order of each round."""
    flat = top.reshape(ordered.order.shape)
    flat = jnp.take_along_axis(flat, ordered.inverse, -1, mode="promise_in_bounds")
    flat = jnp.broadcast_to(flat.max(2, keepdims=True), flat.shape)
    flat = jnp.take_along_axis(flat, ordered.order, -1, mode="promise_in_bounds")
    return flat.reshape(top.shape)


def shared_attention(
    q: Array,
    v: Array,
    *,
    valid: Array | None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """`hashed_attention` where a token sees all others, both ways: by definition, for few tokens.

    Takes O(N^2) time and memory.
    """
    length = q.shape[1]
    allowed = ~jnp.eye(length, dtype=bool)
    if valid is not None:
        allowed = allowed & valid[:, None, None, :]
    dots = jnp.einsum("bnhd,bkhd->bhnk", q, unit(q), preferred_element_type=wide(q))
    scores = dots * q.shape[-1] ** -0.5
    if slopes is not None:
        i = jnp.arange(length)
        distance = abs(i[:, None] - i)
        scores = scores - slopes.astype(scores.dtype)[:, None, None] * distance
    scores = scores + jnp.where(allowed, 0, MASKED)
    top = jnp.maximum(row_maximum(scores), FLOOR)
    rows = jnp.exp(scores - top)
    total = rows.sum(-1, keepdims=True)
    # A token that sees no other gives its own value.
    itself = jnp.eye(length, dtype=rows.dtype)
    rows = jnp.where(total == 0, itself, rows / jnp.where(total == 0, 1, total))
    rows = drop(rows, dropout, key)
    out = jnp.einsum("bhnk,bkhd->bnhd", rows, v, preferred_element_type=wide(rows, v))
    return out.astype(v.dtype)
