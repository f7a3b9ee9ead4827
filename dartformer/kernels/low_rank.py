"""Softmax attention over a few slots in place of N keys."""

import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import drop, exponentials, wide


def project(matrix: Array, x: Array) -> Array:
    """Slots `[B, H, M, D]` = `matrix` `[H, M, N]` times x `[B, N, H, D]`, in float32 or wider."""
    return jnp.einsum("hmn,bnhd->bhmd", matrix, x, preferred_element_type=wide(matrix, x))


def slot_scores(q: Array, k_slots: Array) -> Array:
    """Scaled dot products `[B, H, N, M]` of q `[B, N, H, D]` and k_slots `[B, H, M, D]`."""
    scale = q.shape[-1] ** -0.5
    return jnp.einsum("bnhd,bhmd->bhnm", q, k_slots, preferred_element_type=wide(q, k_slots)) * scale


def low_rank_attention(q: Array, k_slots: Array, v_slots: Array, allowed: Array | None = None, *,
                       dropout: float = 0.0, key: Array | None = None) -> Array:
    """softmax(q k_slots^T / sqrt(D)) v_slots.

    Args:
      q: `[B, N, H, D]`.
      k_slots, v_slots: `[B, H, M, D]`.
      allowed: bool, broadcastable to `[B, H, N, M]`; None if every slot may be used.
      dropout, key: rate at which single weights of slots are dropped, and the noise.

    Returns:
      `[B, N, H, D]` in float32 or wider. Time O(N M D), memory O(N M).
    """
    numerator, total = exponentials(slot_scores(q, k_slots), allowed)
    numerator = drop(numerator, dropout, key)
    out = jnp.einsum("bhnm,bhmd->bhnd", numerator, v_slots, preferred_element_type=wide(numerator, v_slots)) / total
    return out.transpose(0, 2, 1, 3)
