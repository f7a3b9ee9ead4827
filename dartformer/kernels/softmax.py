"""Softmax with a mask, and dense softmax attention.

The contract every kernel of this folder keeps: softmax and normalisers in float32 or wider, a query
that may see no key gives exactly zero with exactly zero gradient, and the output has the dtype of
v."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Finite, so that no inf - inf can arise; the floor of the row maximum is ten times higher, so that
# a masked score always underflows to an exact zero, also in a row where every score is masked.
MASKED = -1e30
FLOOR = -1e29


def wide(*arrays: Array) -> jnp.dtype:
    """The dtype to compute in: what `arrays` promote to, and at least float32."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def exponentials(scores: Array, allowed: Array | None) -> tuple[Array, Array]:
    """Numerator and denominator of a masked softmax over the last axis.

    They are apart because dividing after the product with v touches [N, D] numbers and not [N, N].

    Args:
      scores: `[..., K]`.
      allowed: bool, broadcastable to `scores`; None if everything is allowed.

    Returns:
      exp(scores - row maximum) `[..., K]`, exactly zero where not allowed, and its sum `[..., 1]`,
      with 1 in place of 0 in rows where nothing is allowed.
    """
    (numerator,), total = joint_exponentials([scores], [allowed])
    return numerator, total


def joint_exponentials(
    scores: Sequence[Array], allowed: Sequence[Array | np.ndarray | None]
) -> tuple[list[Array], Array]:
    """As `exponentials`, of one softmax over several sets of keys that are not joined in memory.

    Args:
      scores: `[..., K_1]`, `[..., K_2]`, ...
      allowed: for each of them.

    Returns:
      The numerators, and their common denominator `[..., 1]`.
    """
    tops, masked = [], []
    for part, may in zip(scores, allowed, strict=True):
        part = part.astype(wide(part))
        if (
            may is not None
        ):  # a sum and not a choice: its gradient needs no [N, N] mask, as the numerator is zero
            part = part + jnp.where(may, 0, jnp.asarray(MASKED, part.dtype))
        masked.append(part)
        tops.append(jax.lax.stop_gradient(jnp.max(part, axis=-1, keepdims=True)))
    top = jnp.maximum(functools.reduce(jnp.maximum, tops), FLOOR)
    numerators = [jnp.exp(part - top) for part in masked]
    total = functools.reduce(jnp.add, [jnp.sum(n, axis=-1, keepdims=True) for n in numerators])
    # The sum is zero where nothing is allowed; elsewhere the row maximum contributes 1. Adding a
    # constant, where `where` would do, halves the memory of the backward pass: XLA then need not
    # keep a second [N, N] array.
    return numerators, total + jax.lax.stop_gradient(total == 0)


def masked_softmax(scores: Array, allowed: Array | None) -> Array:
    """Softmax over the last axis of `scores` `[..., K]` where `allowed`; rows with nothing allowed
    are zero."""
    numerator, total = exponentials(scores, allowed)
    return numerator / total


def drop(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout: each number of x is zero with probability `rate`, and x / (1 - rate)
    otherwise.

    Raises:
      ValueError: a rate above 0 without a key.
    """
    if rate == 0:
        return x
    if key is None:
        raise ValueError(f"attention dropout of {rate} in training needs a key.")
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def distance_bias(scores: Array, slopes: Array | None, distance: Array | np.ndarray) -> Array:
    """scores - slopes |distance|: the positions of ALiBi (Press et al. 2022, arXiv:2108.12409);
    scores if None.

    Args:
      scores: `[B, H, ...]`.
      slopes: `[H]`, or None.
      distance: key position minus query position, `[...]` or `[H, ...]` or smaller, as the axes
        after B and H.
    """
    if slopes is None:
        return scores
    extent = abs(jnp.asarray(distance)).astype(scores.dtype)
    return scores - slopes.astype(scores.dtype).reshape(-1, *(1,) * (scores.ndim - 2)) * extent


def dense_scores(q: Array, k: Array, slopes: Array | None = None) -> Array:
    """Scaled dot products `[B, H, N, K]` of q `[B, N, H, D]` and k `[B, K, H, D]`, in float32 or
    wider.

    With `slopes` `[H]`, less slope times distance.
    """
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("bnhd,bkhd->bhnk", q, k, preferred_element_type=wide(q, k)) * scale
    if slopes is None:
        return scores
    return distance_bias(
        scores, slopes, jnp.arange(k.shape[1]) - jnp.arange(q.shape[1])[:, None]
    )  # N may be a symbol


def dense_allowed(length: int, *, causal: bool, valid: Array | None) -> Array | None:
    """Which key each query may see, `[B or 1, 1, N, N]` or smaller; None if all may see all.

    There is no head axis, and no query axis where the mask is only that of the keys.
    """
    keys = None if valid is None else valid[:, None, None, :]
    if not causal:
        return keys
    past = jnp.tril(jnp.ones((length, length), bool))[None, None]
    return past if keys is None else past & keys


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
    out = (
        jnp.einsum("bhnk,bkhd->bhnd", numerator, v, preferred_element_type=wide(numerator, v))
        / total
    )
    return out.transpose(0, 2, 1, 3).astype(v.dtype)


def dense_weights(
    q: Array,
    k: Array,
    pattern: Array | None,
    *,
    causal: bool,
    valid: Array | None,
    slopes: Array | None = None,
) -> Array:
    """`[B, H, N, N]`: the softmax of all scores where `pattern` allows it, by definition, in
    O(N^2).

    Args:
      q, k: `[B, N, H, D]`.
      pattern: bool, broadcastable to `[B, H, N, N]`, apart from causal and valid; None if all may
        see all.
      causal, valid, slopes: as in `softmax_attention`.

    Returns:
      Rows that sum to one, and rows of zeros for queries that see no key or are not valid.
    """
    rest = dense_allowed(q.shape[1], causal=causal, valid=valid)
    if pattern is None or rest is None:
        allowed = rest if pattern is None else pattern
    else:
        allowed = pattern & rest
    rows = masked_softmax(dense_scores(q, k, slopes), allowed)
    return rows if valid is None else rows * valid[:, None, :, None]
