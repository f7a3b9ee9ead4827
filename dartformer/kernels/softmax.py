"""Softmax with a mask, and dense softmax attention.

Every kernel of this folder keeps one contract. Softmax and normalisers are computed in float32 or
wider. A query that may see no key gives exactly zero, with exactly zero gradient. The output has
the dtype of v.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Finite, so that inf - inf cannot arise. The floor of the row maximum is ten times higher: a masked
# score then underflows to an exact zero even in a row where every score is masked.
MASKED = -1e30
FLOOR = -1e29


def wide(*arrays: Array) -> jnp.dtype:
    """The dtype to compute in: what `arrays` promote to, and at least float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def exponentials(
    scores: Array, allowed: Array | None, *, on_cpu: bool = False
) -> tuple[Array, Array]:
    """Numerator and denominator of a masked softmax over the last axis.

    They are apart because dividing after the product with v touches [N, D] numbers and not [N, N].

    Args:
      scores: `[..., K]`.
      allowed: bool, broadcastable to `scores`; None if everything is allowed.
      on_cpu: as in `row_maximum`.

    Returns:
      exp(scores - row maximum) `[..., K]`, exactly zero where not allowed, and its sum `[..., 1]`,
      with 1 in place of 0 in rows where nothing is allowed.
    """
    (numerator,), total = joint_exponentials([scores], [allowed], on_cpu=on_cpu)
    return numerator, total


def joint_exponentials(
    scores: Sequence[Array],
    allowed: Sequence[Array | np.ndarray | None],
    *,
    on_cpu: bool = False,
) -> tuple[list[Array], Array]:
    """As `exponentials`, of one softmax over several sets of keys that are not joined in memory.

    Args:
      scores: `[..., K_1]`, `[..., K_2]`, ...
      allowed: for each of them.
      on_cpu: as in `row_maximum`.

    Returns:
      The numerators, and their common denominator `[..., 1]`.
    """
    masked = []
    tops = []
    for part, mask in zip(scores, allowed, strict=True):
        part = masked_scores(part.astype(wide(part)), mask)
        masked.append(part)
        tops.append(row_maximum(part, on_cpu=on_cpu))
    # One maximum and one sum over all sets make them one softmax.
    top = jnp.maximum(functools.reduce(jnp.maximum, tops), FLOOR)
    numerators = []
    totals = []
    for part in masked:
        numerator = jnp.exp(part - top)
        numerators.append(numerator)
        totals.append(jnp.sum(numerator, axis=-1, keepdims=True))
    return numerators, without_zeros(functools.reduce(jnp.add, totals))


def masked_scores(scores: Array, allowed: Array | np.ndarray | None) -> Array:
    """`scores` `[..., K]`, lowered to about `MASKED` where not `allowed`; as they are for None."""
    if allowed is None:
        return scores
    # A sum and not a choice: its gradient needs no [N, N] mask, because the numerator is zero where
    # the mask is.
    return scores + jnp.where(allowed, 0, jnp.asarray(MASKED, scores.dtype))


LANES = 16
"""Numbers that a CPU computes at once, at most: AVX-512 in float32."""


def row_maximum(scores: Array, *, on_cpu: bool = False) -> Array:
    """The largest of `scores` `[..., K]` in each row, `[..., 1]`, as a constant.

    It cancels in the softmax, so its gradient is zero in theory, and would be rounding in practice.

    Args:
      scores: the rows.
      on_cpu: whether the program is for a CPU. XLA compares the numbers of a row there one by one,
        which takes ten times as long as to compare the halves of rows until they are short.
    """
    scores = jax.lax.stop_gradient(scores)
    width = scores.shape[-1]
    # The width of an exported model may be a symbol.
    while on_cpu and isinstance(width, int) and width > LANES and width % 2 == 0:
        width //= 2
        scores = jnp.maximum(scores[..., :width], scores[..., width:])
    return jnp.max(scores, axis=-1, keepdims=True)


def without_zeros(total: Array) -> Array:
    """`total` with 1 in place of 0: a sum of exponentials is zero where nothing is allowed.

    Elsewhere the row maximum contributes 1. A constant is added, where `where` would do, because
    that halves the memory of the backward pass: XLA then need not keep a second [N, N] array.
    """
    return total + jax.lax.stop_gradient(total == 0)


def masked_softmax(scores: Array, allowed: Array | None) -> Array:
    """Softmax over the last axis of `scores` `[..., K]` where `allowed`.

    Rows with nothing allowed are zero.
    """
    numerator, total = exponentials(scores, allowed)
    return numerator / total


def dropout_key(key: Array | None, stream: int | Array) -> Array | None:
    """The key of one of several draws from `key`, or None for None."""
    if key is None:
        return None
    return jax.random.fold_in(key, stream)


def drop(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout: x / (1 - rate), with each number zero with probability `rate`.

    Raises:
      ValueError: a rate above 0 without a key.
    """
    if rate == 0:
        return x
    if key is None:
        raise ValueError(f"attention dropout of {rate} needs a PRNG key in training, got None.")
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def distance_bias(scores: Array, slopes: Array | None, distance: Array | np.ndarray) -> Array:
    """scores - slopes |distance|: the positions of ALiBi; scores if `slopes` is None.

    Paper: Press et al. 2022, arXiv:2108.12409, section 3.

    Args:
      scores: `[B, H, ...]`.
      slopes: `[H]`, or None.
      distance: key position minus query position, `[...]` or `[H, ...]` or smaller, as the axes
        after B and H.
    """
    if slopes is None:
        return scores
    extent = abs(jnp.asarray(distance)).astype(scores.dtype)
    trailing = (1,) * (scores.ndim - 2)
    slope = slopes.astype(scores.dtype).reshape(-1, *trailing)  # [H, 1, ...]
    return scores - slope * extent


def dense_scores(q: Array, k: Array, slopes: Array | None = None) -> Array:
    """Scaled dot products `[B, H, N, K]` of q `[B, N, H, D]` and k `[B, K, H, D]`.

    In float32 or wider. With `slopes` `[H]`, less slope times distance.
    """
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("bnhd,bkhd->bhnk", q, k, preferred_element_type=wide(q, k)) * scale
    if slopes is None:
        return scores
    # With `jnp`, as the length of an exported model may be a symbol.
    distance = jnp.arange(k.shape[1]) - jnp.arange(q.shape[1])[:, None]  # [N, K]
    return distance_bias(scores, slopes, distance)


def dense_allowed(length: int, *, causal: bool, valid: Array | None) -> Array | None:
    """Which key each query may see, `[B or 1, 1, N, N]` or smaller; None if all may see all.

    There is no head axis, and no query axis where the mask is only that of the keys.
    """
    keys = key_mask(valid)
    if not causal:
        return keys
    past = jnp.tril(jnp.ones((length, length), bool))[None, None]
    return both_masks(past, keys)


def key_mask(valid: Array | None) -> Array | None:
    """`valid` `[B, N]` as a mask of keys, `[B, 1, 1, N]`; None for None."""
    if valid is None:
        return None
    return valid[:, None, None, :]


def both_masks(first: Array | None, second: Array | None) -> Array | None:
    """What both masks allow; None allows everything."""
    if first is None:
        return second
    if second is None:
        return first
    return first & second


def zero_queries(rows: Array, valid: Array | None) -> Array:
    """`rows` `[B, H, N, K]` with those of invalid queries zero; unchanged if `valid` is None."""
    if valid is None:
        return rows
    return rows * valid[:, None, :, None]


def softmax_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    valid: Array | None = None,
    slopes: Array | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """softmax(q k^T / sqrt(D) - slope |i - j|) v by definition: O(N^2) in time and memory.

    Args:
      q, k, v: `[B, N, H, D]`.
      causal: query i sees keys j <= i only.
      valid: `[B, N]` bool, which keys exist; None if all do.
      slopes: `[H]`, of ALiBi; None without.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key.
    """
    allowed = dense_allowed(q.shape[1], causal=causal, valid=valid)
    return softmax_values(dense_scores(q, k, slopes), allowed, v, dropout=dropout, key=key)


def softmax_values(
    scores: Array,
    allowed: Array | None,
    v: Array,
    *,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """softmax(scores) v.

    Args:
      scores: `[B, H, N, K]`, or `[1, H, N, K]` where they are the same for all examples.
      allowed: bool, broadcastable to `scores`; None if everything is allowed.
      v: `[B, K, H, D]`.
      dropout, key: rate at which single weights are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero for a query that sees no key.
    """
    numerator, total = exponentials(scores, allowed)
    numerator = jnp.broadcast_to(numerator, (v.shape[0], *numerator.shape[1:]))
    numerator = drop(numerator, dropout, key)
    dtype = wide(numerator, v)
    sums = jnp.einsum("bhnk,bkhd->bhnd", numerator, v, preferred_element_type=dtype)
    # Divided after the product: N D numbers, and not N K.
    out = sums / total
    return out.transpose(0, 2, 1, 3).astype(v.dtype)  # [B, N, H, D]


def dense_weights(
    q: Array,
    k: Array,
    pattern: Array | None,
    *,
    causal: bool,
    valid: Array | None,
    slopes: Array | None = None,
) -> Array:
    """The softmax of all scores where `pattern` allows it, `[B, H, N, N]`, by definition.

    Takes O(N^2) time and memory.

    Args:
      q, k: `[B, N, H, D]`.
      pattern: bool, broadcastable to `[B, H, N, N]`, apart from causal and valid; None if all may
        see all.
      causal, valid, slopes: as in `softmax_attention`.

    Returns:
      Rows that sum to one, and rows of zeros for queries that see no key or are not valid.
    """
    mask = dense_allowed(q.shape[1], causal=causal, valid=valid)
    scores = dense_scores(q, k, slopes)
    rows = masked_softmax(scores, both_masks(pattern, mask))
    return zero_queries(rows, valid)
