"""Softmax attention over a few slots in place of N keys."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.kernels.softmax import drop, exponentials, wide
from dartformer.kernels.target import Target, on_cpu


def project(matrix: Array, x: Array) -> Array:
    """Slots `[B, H, M, D]` = `matrix` `[H, M, N]` times x `[B, N, H, D]`, in float32 or wider."""
    return jnp.einsum("hmn,bnhd->bhmd", matrix, x, preferred_element_type=wide(matrix, x))


def slot_scores(q: Array, k_slots: Array) -> Array:
    """Scaled dot products `[B, H, N, M]` of q `[B, N, H, D]` and k_slots `[B, H, M, D]`."""
    dtype = wide(q, k_slots)
    scale = q.shape[-1] ** -0.5
    return jnp.einsum("bnhd,bhmd->bhnm", q, k_slots, preferred_element_type=dtype) * scale


def low_rank_attention(
    q: Array,
    k_slots: Array,
    v_slots: Array,
    allowed: Array | None = None,
    *,
    dropout: float = 0.0,
    key: Array | None = None,
    target: Target | None = None,
) -> Array:
    """softmax(q k_slots^T / sqrt(D)) v_slots.

    Args:
      q: `[B, N, H, D]`.
      k_slots, v_slots: `[B, H, M, D]`.
      allowed: bool, broadcastable to `[B, H, N, M]`; None if every slot may be used.
      dropout, key: rate at which single weights of slots are dropped, and the noise.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]` in float32 or wider. Time O(N M D), memory O(N M).
    """
    numerator, total = exponentials(slot_scores(q, k_slots), allowed, on_cpu=on_cpu(target))
    numerator = drop(numerator, dropout, key)
    dtype = wide(numerator, v_slots)
    sums = jnp.einsum("bhnm,bhmd->bhnd", numerator, v_slots, preferred_element_type=dtype)
    out = sums / total
    return out.transpose(0, 2, 1, 3)  # [B, N, H, D]


def slot_attention(
    q_slots: Array,
    k: Array,
    v: Array,
    allowed: Array | None = None,
    *,
    target: Target | None = None,
) -> Array:
    """softmax(q_slots k^T / sqrt(D)) v: what a few slots read of N tokens.

    Args:
      q_slots: `[B, H, M, D]`.
      k, v: `[B, N, H, D]`.
      allowed: bool, broadcastable to `[B, H, M, N]`; None if every token may be seen.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, H, M, D]` in float32 or wider.
    """
    dtype = wide(q_slots, k)
    scale = k.shape[-1] ** -0.5
    scores = jnp.einsum("bhmd,bnhd->bhmn", q_slots, k, preferred_element_type=dtype) * scale
    numerator, total = exponentials(scores, allowed, on_cpu=on_cpu(target))
    dtype = wide(numerator, v)
    return jnp.einsum("bhmn,bnhd->bhmd", numerator, v, preferred_element_type=dtype) / total


def segments(
    arrays: Sequence[Array], count: int, valid: Array | None
) -> tuple[list[Array], Array | None]:
    """Means over `count` runs of the valid tokens, with lengths that differ by one at most.

    Token r of n valid ones is in run floor(r count / n).

    Args:
      arrays: each `[B, N, H, D]`.
      count: M.
      valid: `[B, N]` bool, which tokens exist; None if all do.

    Returns:
      The means, each `[B, H, M, D]`, float32 or wider, zero where a run holds no token; and which
      runs hold one, `[B, M]` or `[1, M]`, or None if all do.
    """
    length = arrays[0].shape[1]
    if valid is None and length % count == 0:
        return [_equal_means(x, count) for x in arrays], None
    member = run_members(length, count, valid)
    sizes = member.sum(-1)
    filled = None
    if valid is not None or length < count:
        filled = jnp.asarray(sizes > 0)
    means = []
    for x in arrays:
        dtype = wide(x)
        matrix = jnp.broadcast_to(member, (x.shape[0], count, length)).astype(dtype)
        sums = jnp.einsum("bmn,bnhd->bhmd", matrix, x, preferred_element_type=dtype)
        divisor = jnp.maximum(sizes, 1)[:, None, :, None]  # [B or 1, 1, M, 1]
        means.append(sums / divisor.astype(dtype))
    return means, filled


def run_members(length: int, count: int, valid: Array | None) -> np.ndarray | Array:
    """Which token is in which of `count` runs, `[B or 1, M, N]` bool; static without `valid`."""
    exists: np.ndarray | Array
    run: np.ndarray | Array
    if valid is None:
        exists = np.ones((1, length), bool)
        run = np.arange(length)[None] * count // length
    else:
        exists = valid
        total = jnp.maximum(valid.sum(1, keepdims=True), 1)
        rank = jnp.cumsum(valid, axis=1) - 1
        run = rank * count // total
    return (run[:, None] == np.arange(count)[:, None]) & exists[:, None]


def _equal_means(x: Array, count: int) -> Array:
    """`[B, H, M, D]`: the means of runs that are equally long, by a reshaped view."""
    batch, length, heads, width = x.shape
    runs = x.reshape(batch, count, length // count, heads, width)
    return runs.mean(2, dtype=wide(x)).swapaxes(1, 2)


def pseudo_inverse(a: Array, iterations: int) -> Array:
    """Approximate Moore-Penrose inverse of `a` `[..., M, M]`, whose entries are not negative.

    z <- z (13 I - a z (15 I - a z (7 I - a z))) / 4, from z = a^T / (largest row sum times largest
    column sum): Razavi et al. 2014, as in Xiong et al. 2021, arXiv:2102.03902, equation 14. A
    matrix of zeros gives zeros.
    """
    row_sums = a.sum(-1)
    column_sums = a.sum(-2)
    # The product of the norms bounds the spectral norm of a^T a: the iteration converges from here.
    size = jnp.max(row_sums, -1) * jnp.max(column_sums, -1)
    divisor = jnp.where(size == 0, 1, size)[..., None, None]
    z = a.swapaxes(-1, -2) / divisor
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    for _ in range(iterations):
        az = a @ z
        inner = 15 * eye - az @ (7 * eye - az)
        z = z @ (13 * eye - az @ inner) / 4
    return z
