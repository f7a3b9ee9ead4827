"""Normalised linear attention from positive features: two products, or a recurrence over chunks when causal."""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import wide


def ratio(numerator: Array, denominator: Array) -> Array:
    """`numerator / denominator` `[..., D]` by `[..., 1]`, zero where the denominator is.

    No epsilon is added: features may all be tiny, and an epsilon would then decide. Dividing both by the
    denominator's value first keeps gradients from squaring it, which underflows below 1e-19 in float32.
    """
    denominator = jnp.where(denominator == 0, 1, denominator)
    size = jax.lax.stop_gradient(denominator)
    return (numerator / size) / (denominator / size)


def linear_attention(phi_q: Array, phi_k: Array, v: Array, *, causal: bool = False, valid: Array | None = None,
                     chunk: int = 64) -> Array:
    """sum_j (phi_q_i . phi_k_j) v_j / sum_j (phi_q_i . phi_k_j), over all j or over j <= i.

    Args:
      phi_q, phi_k: features, not negative, `[B, N, H, M]`.
      v: `[B, N, H, D]`.
      causal: over j <= i only, by a recurrence over chunks.
      valid: `[B, N]` bool, which keys exist; None if all do. The features of the others are set to zero, so
        that the state passes them unchanged wherever they stand.
      chunk: tokens handled together when causal.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero where the denominator is zero. Time O(N M D), plus O(N chunk (M + D)) if
      causal; memory O(N (M + D) + M D), plus the states kept for the gradient if causal.
    """
    dtype = wide(phi_q, phi_k, v)
    if valid is not None:
        phi_k = jnp.where(valid[:, :, None, None], phi_k, 0)
    if causal:
        return _recurrent(phi_q, phi_k, v, dtype, min(chunk, v.shape[1])).astype(v.dtype)
    state = jnp.einsum("bnhm,bnhd->bhmd", phi_k, v, preferred_element_type=dtype)
    total = jnp.sum(phi_k, axis=1, dtype=dtype)
    numerator = jnp.einsum("bnhm,bhmd->bnhd", phi_q, state, preferred_element_type=dtype)
    denominator = jnp.einsum("bnhm,bhm->bnh", phi_q, total, preferred_element_type=dtype)
    return ratio(numerator, denominator[..., None]).astype(v.dtype)


def _recurrent(phi_q: Array, phi_k: Array, v: Array, dtype: jnp.dtype, chunk: int) -> Array:
    """The causal sums: within a chunk by a masked product, from earlier chunks by a carried state.

    The state is S `[B, H, M, D]` = sum phi_k v^T and z `[B, H, M]` = sum phi_k. A decay enters in two places only: as a
    factor on `within`, and as a factor on the state (inside the chunk and from one chunk to the next).
    """
    batch, length, heads, _ = v.shape
    past = jnp.tril(jnp.ones((chunk, chunk), bool))

    def chunks(x: Array) -> Array:  # [B, N, H, F] to [chunks, B, H, chunk, F]
        x = jnp.pad(x, ((0, 0), (0, -length % chunk), (0, 0), (0, 0)))
        return x.reshape(batch, -1, chunk, heads, x.shape[-1]).transpose(1, 0, 3, 2, 4)

    def step(carry: tuple[Array, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        state, total = carry
        q, k, value = part
        within = jnp.where(past, jnp.einsum("bhim,bhjm->bhij", q, k, preferred_element_type=dtype), 0)
        numerator = (jnp.einsum("bhij,bhjd->bhid", within, value, preferred_element_type=dtype)
                     + jnp.einsum("bhim,bhmd->bhid", q, state, preferred_element_type=dtype))
        denominator = (jnp.sum(within, axis=-1)
                       + jnp.einsum("bhim,bhm->bhi", q, total, preferred_element_type=dtype))
        state = state + jnp.einsum("bhjm,bhjd->bhmd", k, value, preferred_element_type=dtype)
        total = total + jnp.sum(k, axis=2, dtype=dtype)
        return (state, total), ratio(numerator, denominator[..., None])

    start = (jnp.zeros((batch, heads, phi_k.shape[-1], v.shape[-1]), dtype),
             jnp.zeros((batch, heads, phi_k.shape[-1]), dtype))
    parts = (chunks(phi_q), chunks(phi_k), chunks(v))
    if length == chunk:  # one chunk: no loop
        out = step(start, jax.tree.map(lambda x: x[0], parts))[1][None]
    else:
        out = jax.lax.scan(step, start, parts)[1]  # [chunks, B, H, chunk, D]
    return out.transpose(1, 0, 3, 2, 4).reshape(batch, -1, heads, v.shape[-1])[:, :length]
