"""Linear attention of features that are exponentials, from their logarithms: exact whatever their
size."""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import carry, chunked, joined, ratio, two_products
from dartformer.kernels.softmax import FLOOR, MASKED, masked_softmax, wide


def log_linear_attention(
    log_q: Array,
    log_k: Array,
    v: Array,
    *,
    causal: bool = False,
    valid: Array | None = None,
    chunk: int = 16,
) -> Array:
    """sum_j w_ij v_j / sum_j w_ij with w_ij = sum_m exp(log_q_im + log_k_jm), over all j or over j
    <= i.

    Each feature is held relative to its largest value among the keys seen, and each query relative
    to the largest of its terms: no exponent is above zero and every denominator is at least one, so
    that nothing overflows, and no query loses all its keys, even where features differ by more than
    a float can hold.

    Args:
      log_q, log_k: logarithms of the features, `[B, N, H, M]`; what is added to all features of a
        query cancels.
      v: `[B, N, H, D]`.
      causal: over j <= i only, by a recurrence over chunks.
      valid: `[B, N]` bool, which keys exist; None if all do.
      chunk: tokens handled together when causal.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero where no key is seen. Time O(N M D), and O(N chunk M)
      exponentials if causal; memory O(N (M + D) + M D), and the states of N / chunk chunks if
      causal.
    """
    dtype = wide(log_q, log_k, v)
    log_q, log_k, value = log_q.astype(dtype), log_k.astype(dtype), v.astype(dtype)
    if valid is not None:
        log_k = jnp.where(valid[:, :, None, None], log_k, MASKED)
    if causal:
        return _recurrent(log_q, log_k, value, min(chunk, v.shape[1])).astype(v.dtype)
    top = jnp.maximum(_top(log_k, 1), FLOOR)  # of each feature, [B, 1, H, M]
    phi_k = jnp.exp(log_k - top)
    terms = log_q + top
    phi_q = jnp.exp(terms - _top(terms, -1))
    return two_products(phi_q, phi_k, value, dtype).astype(v.dtype)


def log_linear_weights(log_q: Array, log_k: Array, allowed: Array | None) -> Array:
    """The matrix of `log_linear_attention` by definition, `[B, H, N, N]`: a softmax of the
    logarithms of the products.

    `allowed` is as in `dense_allowed`.
    """
    terms = log_q[:, :, None] + log_k[:, None]  # [B, N, N, H, M]
    return masked_softmax(jax.nn.logsumexp(terms, axis=-1).transpose(0, 3, 1, 2), allowed)


def _top(x: Array, axis: int) -> Array:
    """The largest along `axis`, as a constant: where it is subtracted it cancels, and so would its
    gradient."""
    return jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))


def _recurrent(log_q: Array, log_k: Array, v: Array, chunk: int) -> Array:
    """The causal sums: within a chunk term by term, from earlier chunks by a state.

    The states before each chunk are sum_j exp(log_k_jm - R_m) v_j and sum_j exp(log_k_jm - R_m),
    where R is the largest of each feature up to there."""
    q, k, value = chunked(log_q, chunk), chunked(log_k, chunk, MASKED), chunked(v, chunk)
    largest = jax.lax.cummax(
        jnp.maximum(_top(k, 3), FLOOR), axis=0
    )  # up to the end of each chunk, [T, B, H, 1, M]
    before = jnp.concatenate([jnp.full_like(largest[:1], FLOOR), largest[:-1]])
    seen = jnp.maximum(before, jax.lax.cummax(jax.lax.stop_gradient(k), axis=3))  # up to each token
    top = _top(q + seen, -1)  # of each query, [T, B, H, C, 1]
    within, read, write = _within(q - top, k), jnp.exp(q - top + before), jnp.exp(k - largest)
    decay = jnp.exp(before - largest)[:, :, :, 0, :, None]
    state = carry(decay, jnp.einsum("tbhjm,tbhjd->tbhmd", write, value))
    total = carry(decay, jnp.sum(write, axis=3)[..., None])
    numerator = jnp.einsum("tbhij,tbhjd->tbhid", within, value) + jnp.einsum(
        "tbhim,tbhmd->tbhid", read, state
    )
    denominator = jnp.sum(within, axis=-1, keepdims=True) + jnp.einsum(
        "tbhim,tbhmd->tbhid", read, total
    )
    return joined(ratio(numerator, denominator), v.shape[1])


@jax.checkpoint
def _within(q: Array, k: Array) -> Array:
    """sum_m exp(q_im + k_jm) for j <= i, `[T, B, H, C, C]`; its gradient computes the terms again,
    and keeps none."""
    past = jnp.tril(jnp.ones((q.shape[3],) * 2, bool))[:, :, None]
    return jnp.sum(
        jnp.exp(jnp.where(past, q[:, :, :, :, None] + k[:, :, :, None], MASKED)), axis=-1
    )
