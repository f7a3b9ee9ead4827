"""Softmax attention within buckets of a hash: tokens sorted by bucket, in chunks that see
themselves and one back."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.softmax import FLOOR, MASKED, drop, wide


class Sorted(NamedTuple):
    """Tokens of N places in T chunks of C, in the order of their bucket and then of their position.

    Attributes:
      order: `[B, H, R, T C]`, the position of each; inverse: where each position went.
      bucket: `[B, H, R, T, C]`; `buckets` or above at padding.
    """

    order: Array
    inverse: Array
    bucket: Array


@jax.custom_vjp
def permute(x: Array, order: Array, inverse: Array) -> Array:
    """x `[..., N, D]` in `order` `[..., N]`, whose inverse is given: then the gradient is a gather
    as well.

    That of a plain gather is a scatter, which takes forty times as long on a CPU.
    """
    return _take(x, order)


def _take(x: Array, order: Array) -> Array:
    return jnp.take_along_axis(x, order[..., None], axis=-2, mode="promise_in_bounds")


permute.defvjp(
    lambda x, order, inverse: (_take(x, order), inverse),
    lambda inverse, g: (_take(g, inverse), None, None),
)


def sort_by_bucket(bucket: Array, count: int, chunk: int) -> Sorted:
    """The order of `bucket` `[B, H, R, N]`, in [0, count] where `count` is padding; filled up to
    whole chunks."""
    length = bucket.shape[-1]
    size = length + -length % chunk
    bucket = jnp.pad(bucket, [(0, 0)] * 3 + [(0, size - length)], constant_values=count)
    # One integer holds bucket and position: sorting that is far quicker than sorting two arrays by
    # one.
    packed = jnp.sort(bucket * size + jnp.arange(size, dtype=jnp.int32))
    order = packed % size
    places = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), order.shape)
    b, h, r = (
        jnp.arange(n).reshape(-1, *(1,) * after)
        for n, after in zip(order.shape, (3, 2, 1), strict=False)
    )
    inverse = (
        jnp.zeros_like(order)
        .at[b, h, r, order]
        .set(places, unique_indices=True, mode="promise_in_bounds")
    )
    return Sorted(order, inverse, (packed // size).reshape(*order.shape[:3], -1, chunk))


def unit(x: Array) -> Array:
    """x / |x| over the last axis, in float32 or wider; zero where x is zero."""
    x = x.astype(wide(x))
    square = (x * x).sum(-1, keepdims=True)
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
) -> Array:
    """One softmax over what the rounds of a hash show to a token: softmax_j(q_i . k_j / sqrt(D))
    v_j, k = q / |q|.

    In a round, tokens are sorted by bucket and then position, and cut into chunks; token i sees the
    others of its bucket that lie in its own chunk or the one before. Causal: those of the `chunk`
    tokens of its bucket before it. A token seen in several rounds counts as often. One that sees no
    other in any round gives its own value.

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

    Returns:
      `[B, N, H, D]` in the dtype of v; anything at padding. Time and memory O(R N chunk), beside
      the sort.
    """
    length, width = q.shape[1], q.shape[-1]
    ordered = sort_by_bucket(bucket, count, chunk)
    tiles = ordered.bucket.shape[-2]
    qv = jnp.concatenate([x.astype(wide(q, v)) for x in (q, v)], axis=-1).swapaxes(1, 2)
    qv = jnp.pad(qv, ((0, 0), (0, 0), (0, tiles * chunk - length), (0, 0)))
    qv = jnp.broadcast_to(qv[:, :, None], (*ordered.order.shape, 2 * width))
    qv = permute(qv, ordered.order, ordered.inverse).reshape(*ordered.bucket.shape, 2 * width)
    queries, values = qv[..., :width], qv[..., width:]
    keys = unit(queries)
    position = ordered.order.reshape(ordered.bucket.shape)

    apart = np.arange(chunk) - np.arange(chunk)[:, None]  # key minus query, in the order
    first = np.arange(tiles)[:, None, None] == 0
    scores = []
    for back in range(1 if tiles == 1 else 2):
        place, other, there = (
            _back(x, axis) if back else x
            for x, axis in ((keys, -3), (ordered.bucket, -2), (position, -2))
        )
        allowed = ordered.bucket[..., None] == other[..., None, :]
        if causal:
            allowed = allowed & (~first & (apart >= 0) if back else apart < 0)
        elif back:
            allowed = allowed & (
                ~first if few is None else ~first | few[:, None, None, None, None, None]
            )
        else:
            allowed = allowed & (apart != 0)
        dots = jnp.einsum("...qd,...kd->...qk", queries, place) * width**-0.5
        if slopes is not None:
            distance = abs(position[..., None] - there[..., None, :]).astype(dots.dtype)
            dots = dots - slopes.astype(dots.dtype)[:, None, None, None, None] * distance
        scores.append(dots + jnp.where(allowed, 0, MASKED))

    top = functools.reduce(jnp.maximum, [jax.lax.stop_gradient(s).max(-1) for s in scores])
    top = _every_round(jnp.maximum(top, FLOOR), ordered)
    numerators = [jnp.exp(s - top[..., None]) for s in scores]
    total = sum(n.sum(-1, keepdims=True) for n in numerators)
    dropped = [
        drop(n, dropout, None if key is None else jax.random.fold_in(key, i))
        for i, n in enumerate(numerators)
    ]
    out = sum(
        jnp.einsum("...qk,...kd->...qd", n, _back(values, -3) if back else values)
        for back, n in enumerate(dropped)
    )
    out = jnp.concatenate([out, total], axis=-1)
    out = permute(out.reshape(*ordered.order.shape, width + 1), ordered.inverse, ordered.order)
    out = out.sum(2)[:, :, :length].swapaxes(1, 2)  # over rounds; [B, N, H, D + 1]
    out, total = out[..., :-1], out[..., -1:]
    alone = (
        drop(jnp.ones_like(total), dropout, None if key is None else jax.random.fold_in(key, 2)) * v
    )
    return jnp.where(total == 0, alone, out / jnp.where(total == 0, 1, total)).astype(v.dtype)


def _back(x: Array, axis: int) -> Array:
    """At each chunk of `axis` the one before it; at the first the second."""
    index = np.concatenate([[1], np.arange(x.shape[axis] - 1)])
    cut = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
    return jnp.concatenate([cut(1, 2), cut(0, len(index) - 1)], axis=axis)


def _every_round(top: Array, ordered: Sorted) -> Array:
    """The largest of the rounds' `top` `[B, H, R, T, C]` for each token, in the order of each
    round."""
    flat = jnp.take_along_axis(
        top.reshape(ordered.order.shape), ordered.inverse, -1, mode="promise_in_bounds"
    )
    flat = jnp.broadcast_to(flat.max(2, keepdims=True), flat.shape)
    return jnp.take_along_axis(flat, ordered.order, -1, mode="promise_in_bounds").reshape(top.shape)


def shared_attention(
    q: Array,
    v: Array,
    *,
    valid: Array | None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """As `hashed_attention` where a token sees all others, both ways: by definition, for few
    tokens. O(N^2)."""
    i = jnp.arange(q.shape[1])
    allowed = ~jnp.eye(q.shape[1], dtype=bool) & (
        True if valid is None else valid[:, None, None, :]
    )
    scores = (
        jnp.einsum("bnhd,bkhd->bhnk", q, unit(q), preferred_element_type=wide(q))
        * q.shape[-1] ** -0.5
    )
    if slopes is not None:
        scores = scores - slopes.astype(scores.dtype)[:, None, None] * abs(i[:, None] - i)
    scores = scores + jnp.where(allowed, 0, MASKED)
    top = jnp.maximum(jax.lax.stop_gradient(scores).max(-1, keepdims=True), FLOOR)
    rows = jnp.exp(scores - top)
    total = rows.sum(-1, keepdims=True)
    rows = jnp.where(
        total == 0, jnp.eye(q.shape[1], dtype=rows.dtype), rows / jnp.where(total == 0, 1, total)
    )
    out = jnp.einsum(
        "bhnk,bkhd->bnhd", drop(rows, dropout, key), v, preferred_element_type=wide(rows, v)
    )
    return out.astype(v.dtype)
