"""Normalised linear attention from positive features.

Two products of matrices, or a recurrence over chunks when causal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import wide


def ratio(numerator: Array, denominator: Array) -> Array:
    """`numerator / denominator` `[..., D]` by `[..., 1]`, zero where the denominator is.

    No epsilon is added: features may all be tiny, and an epsilon would then decide. Dividing both
    by the denominator's value first keeps gradients from squaring it, which underflows below 1e-19
    in float32.
    """
    denominator = jnp.where(denominator == 0, 1, denominator)
    size = jax.lax.stop_gradient(denominator)
    return (numerator / size) / (denominator / size)


def linear_attention(
    phi_q: Array,
    phi_k: Array,
    v: Array,
    *,
    causal: bool = False,
    valid: Array | None = None,
    chunk: int = 64,
) -> Array:
    """sum_j (phi_q_i . phi_k_j) v_j / sum_j (phi_q_i . phi_k_j), over all j or over j <= i.

    Paper: Katharopoulos et al. 2020, arXiv:2006.16236, equations 5 and 9.

    Args:
      phi_q, phi_k: features, not negative, `[B, N, H, M]`.
      v: `[B, N, H, D]`.
      causal: over j <= i only, by a recurrence over chunks.
      valid: `[B, N]` bool, which keys exist; None if all do. The features of the others are set to
        zero, so that the state passes them unchanged wherever they stand.
      chunk: tokens handled together when causal.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero where the denominator is zero. Time O(N M D), plus O(N
      chunk (M + D)) if causal; memory O(N (M + D) + M D), plus the states kept for the gradient if
      causal.
    """
    dtype = wide(phi_q, phi_k, v)
    if valid is not None:
        phi_k = jnp.where(valid[:, :, None, None], phi_k, 0)
    if causal:
        return _recurrent(phi_q, phi_k, v, dtype, min(chunk, v.shape[1])).astype(v.dtype)
    return two_products(phi_q, phi_k, v, dtype).astype(v.dtype)


def two_products(phi_q: Array, phi_k: Array, v: Array, dtype: jnp.dtype) -> Array:
    """`linear_attention` over all j, in `dtype`.

    Heads come first, and the state is `[D, M]`: on a CPU half the time of `bnhm,bnhd->bhmd`, which
    transposes each array on its own and multiplies into narrow rows.
    """
    phi_q = phi_q.swapaxes(1, 2)  # [B, H, N, M]
    phi_k = phi_k.swapaxes(1, 2)
    value = v.swapaxes(1, 2)  # [B, H, N, D]
    state = jnp.einsum("bhnd,bhnm->bhdm", value, phi_k, preferred_element_type=dtype)
    numerator = jnp.einsum("bhnm,bhdm->bhnd", phi_q, state, preferred_element_type=dtype)
    total = jnp.sum(phi_k, axis=2, dtype=dtype)
    denominator = jnp.einsum("bhnm,bhm->bhn", phi_q, total, preferred_element_type=dtype)
    return ratio(numerator, denominator[..., None]).swapaxes(1, 2)


def linear_weights(phi_q: Array, phi_k: Array, allowed: Array | None) -> Array:
    """The matrix of `linear_attention` by definition, `[B, H, N, N]`.

    Products of features, divided by their sum. `allowed` is as in `dense_allowed`.
    """
    dtype = wide(phi_q, phi_k)
    products = jnp.einsum("bnhm,bkhm->bhnk", phi_q, phi_k, preferred_element_type=dtype)
    if allowed is not None:
        products = jnp.where(allowed, products, 0)
    return ratio(products, products.sum(-1, keepdims=True))


def chunk_of(length: int, chunk: int, leaf: int = 1) -> int:
    """`chunk`, halved as long as `length` tokens fit into the half, to `leaf` at least."""
    while chunk > leaf and chunk // 2 >= length:
        chunk //= 2
    return chunk


def chunked(x: Array, chunk: int, fill: float = 0) -> Array:
    """`[B, N, H, F]` to `[T, B, H, chunk, F]`, the last chunk filled up with `fill`."""
    batch, length, heads, width = x.shape
    padding = ((0, 0), (0, -length % chunk), (0, 0), (0, 0))
    x = jnp.pad(x, padding, constant_values=fill)
    chunks = x.reshape(batch, -1, chunk, heads, width)
    return chunks.transpose(1, 0, 3, 2, 4)


def joined(x: Array, length: int) -> Array:
    """`[T, B, H, chunk, F]` to `[B, N, H, F]`: the inverse of `chunked`."""
    chunks, batch, heads, chunk, width = x.shape
    tokens = x.transpose(1, 0, 3, 2, 4).reshape(batch, chunks * chunk, heads, width)
    return tokens[:, :length]


def carry(decay: Array | None, update: Array) -> Array:
    """States before each chunk, `[T, B, H, M, D]`, as `carried` gives them from a state of zeros."""
    return carried(decay, update, jnp.zeros_like(update[0]))[0]


def carried(decay: Array | None, update: Array, start: Array) -> tuple[Array, Array]:
    """States before each chunk, `[T, B, H, M, D]`, and the one after the last, `[B, H, M, D]`.

    S_0 = start, S_{t+1} = decay_t S_t + update_t. The expensive parts, the updates and what is read
    from the states, are computed for all chunks at once. Only this runs from chunk to chunk.

    Args:
      decay: factors, broadcastable to `update`; None for 1.
      update: `[T, B, H, M, D]`.
      start: `[B, H, M, D]`.
    """

    def step(state: Array, chunk: tuple[Array | None, Array]) -> tuple[Array, Array]:
        factor, new = chunk
        kept = state
        if factor is not None:
            kept = factor * state
        return kept + new, state

    if len(update) == 1:  # one chunk: no loop
        factor = decay
        if factor is not None:
            factor = factor[0]
        last, _ = step(start, (factor, update[0]))
        return start[None], last
    last, states = jax.lax.scan(step, start, (decay, update))
    return states, last


class Sums(NamedTuple):
    """What the tokens so far leave for later ones.

    Attributes:
      state: sum_j phi_k_j v_j^T, `[B, H, M, D]`.
      total: sum_j phi_k_j, `[B, H, M, 1]`.
    """

    state: Array
    total: Array


def linear_attention_from(
    sums: Sums,
    phi_q: Array,
    phi_k: Array,
    v: Array,
    *,
    valid: Array | None = None,
    chunk: int = 64,
) -> tuple[Array, Sums]:
    """`linear_attention`, causal, of tokens that follow those in `sums`; and the sums after them.

    The output is in float32 or wider.
    """
    parts, sums = linear_parts_from(sums, phi_q, phi_k, v, valid=valid, chunk=chunk)
    return ratio(*parts), sums


class Parts(NamedTuple):
    """A weighted mean that is not divided yet.

    Attributes:
      numerator: the weighted sum of the values, `[..., D]`.
      denominator: the sum of the weights, `[..., 1]`.
    """

    numerator: Array
    denominator: Array


def linear_parts_from(
    sums: Sums,
    phi_q: Array,
    phi_k: Array,
    v: Array,
    *,
    valid: Array | None = None,
    chunk: int = 64,
) -> tuple[Parts, Sums]:
    """`linear_attention_from` before it is divided, `[B, N, H, ...]`; and the sums after it."""
    dtype = wide(phi_q, phi_k, v)
    if valid is not None:
        phi_k = jnp.where(valid[:, :, None, None], phi_k, 0)
    if v.shape[1] > 1:
        return _recurrent_from(sums, phi_q, phi_k, v, dtype, min(chunk, v.shape[1]))
    # One token: no chunks, and no products of matrices.
    q = phi_q[:, 0].astype(dtype)  # [B, H, M]
    k = phi_k[:, 0].astype(dtype)[..., None]  # [B, H, M, 1]
    value = v[:, 0].astype(dtype)[:, :, None]  # [B, H, 1, D]
    sums = Sums(sums.state + k * value, sums.total + k)
    numerator = jnp.einsum("bhm,bhmd->bhd", q, sums.state)
    denominator = jnp.einsum("bhm,bhmd->bhd", q, sums.total)
    return Parts(numerator[:, None], denominator[:, None]), sums


def no_sums_of(phi_k: Array, v: Array) -> Sums:
    """The sums before the first token, for features `[B, N, H, M]` and values `[B, N, H, D]`."""
    batch, _, heads, width = phi_k.shape
    state = jnp.zeros((batch, heads, width, v.shape[-1]), wide(phi_k, v))
    return Sums(state, state[..., :1])


def _recurrent(phi_q: Array, phi_k: Array, v: Array, dtype: jnp.dtype, chunk: int) -> Array:
    """`_recurrent_from` no earlier tokens, divided."""
    sums = Sums(*(part.astype(dtype) for part in no_sums_of(phi_k, v)))
    return ratio(*_recurrent_from(sums, phi_q, phi_k, v, dtype, chunk)[0])


def _recurrent_from(
    sums: Sums, phi_q: Array, phi_k: Array, v: Array, dtype: jnp.dtype, chunk: int
) -> tuple[Parts, Sums]:
    """The causal sums: within a chunk by a masked product, from earlier ones by states.

    The states are sum phi_k v^T and sum phi_k.
    """
    q = chunked(phi_q.astype(dtype), chunk)  # [T, B, H, C, M]
    k = chunked(phi_k.astype(dtype), chunk)
    value = chunked(v.astype(dtype), chunk)
    past = jnp.tril(jnp.ones((chunk, chunk), bool))  # j <= i
    within = jnp.where(past, jnp.einsum("tbhim,tbhjm->tbhij", q, k), 0)
    state, last = carried(None, jnp.einsum("tbhjm,tbhjd->tbhmd", k, value), sums.state)
    total, last_total = carried(None, jnp.sum(k, axis=3)[..., None], sums.total)  # [T, B, H, M, 1]
    parts = read_chunks(within, value, q, state, total)
    length = v.shape[1]
    joint = Parts(joined(parts.numerator, length), joined(parts.denominator, length))
    return joint, Sums(last, last_total)


def read_chunks(within: Array, value: Array, read: Array, state: Array, total: Array) -> Parts:
    """What each token reads of its own chunk and of the chunks before it.

    Args:
      within: weights of tokens of the same chunk, `[T, B, H, C, C]`.
      value: `[T, B, H, C, D]`.
      read: what the states are multiplied by, `[T, B, H, C, M]`.
      state, total: sums over earlier chunks with and without values, `[T, B, H, M, D]` and
        `[T, B, H, M, 1]`.

    Returns:
      Numerators `[T, B, H, C, D]` and denominators.
    """
    near = jnp.einsum("tbhij,tbhjd->tbhid", within, value)
    far = jnp.einsum("tbhim,tbhmd->tbhid", read, state)
    numerator = near + far
    near = jnp.sum(within, axis=-1, keepdims=True)
    far = jnp.einsum("tbhim,tbhmd->tbhid", read, total)
    denominator = near + far
    return Parts(numerator, denominator)
