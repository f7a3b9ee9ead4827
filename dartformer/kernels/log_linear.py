"""Linear attention of features that are exponentials, from their logarithms.

Exact whatever their size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import (
    carried,
    chunked,
    group_of,
    grouped,
    joined,
    ratio,
    read_chunks,
    two_products,
)
from dartformer.kernels.softmax import FLOOR, MASKED, masked_softmax, wide
from dartformer.kernels.target import Target, here


def log_linear_attention(
    log_q: Array,
    log_k: Array,
    v: Array,
    *,
    causal: bool = False,
    valid: Array | None = None,
    chunk: int = 16,
    target: Target | None = None,
) -> Array:
    """sum_j w_ij v_j / sum_j w_ij with w_ij = sum_m exp(log_q_im + log_k_jm).

    Over all j, or over j <= i if causal. Each feature is held relative to its largest value among
    the keys in reach, and each query relative to the largest of its terms. No exponent is above
    zero and every denominator is at least one: nothing overflows, and no query loses all its keys,
    even where features differ by more than a float can hold.

    Args:
      log_q, log_k: logarithms of the features, `[B, N, H, M]`; what is added to all features of a
        query cancels.
      v: `[B, N, H, D]`.
      causal: over j <= i only, by a recurrence over chunks.
      valid: `[B, N]` bool, which keys exist; None if all do.
      chunk: tokens handled together when causal.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero where no key exists. Time O(N M D), and O(N chunk M)
      exponentials if causal; memory O(N (M + D) + M D), and a state for each group of tokens if
      causal (`grouped`).
    """
    dtype = wide(log_q, log_k, v)
    if causal:
        batch, _, heads, features = log_k.shape
        state = jnp.zeros((batch, heads, features, v.shape[3]), dtype)
        tokens = _Tokens(log_q, log_k, v, valid)
        return _recurrent(no_sums(state), tokens, v.dtype, chunk, target)[1]
    # Heads first, as `two_products` wants them: the arrays of features are not turned.
    log_q = log_q.astype(dtype).swapaxes(1, 2)  # [B, H, N, M]
    log_k = log_k.astype(dtype).swapaxes(1, 2)
    value = v.astype(dtype).swapaxes(1, 2)
    if valid is not None:
        log_k = jnp.where(valid[:, None, :, None], log_k, MASKED)
    top = jnp.maximum(_top(log_k, 2), FLOOR)  # of each feature, [B, H, 1, M]
    phi_k = jnp.exp(log_k - top)
    terms = log_q + top  # what was taken from the keys goes to the queries
    phi_q = jnp.exp(terms - _top(terms, -1))
    out = two_products(phi_q, phi_k, value, dtype, target or here())
    return out.swapaxes(1, 2).astype(v.dtype)


class LogSums(NamedTuple):
    """What the tokens so far leave for later ones.

    Attributes:
      top: R_m, the largest of each log-feature so far, `[B, H, M, 1]`.
      state: sum_j exp(log_k_jm - R_m) v_j, `[B, H, M, D]`.
      total: sum_j exp(log_k_jm - R_m), `[B, H, M, 1]`.
    """

    top: Array
    state: Array
    total: Array


def no_sums(state: Array) -> LogSums:
    """The sums before the first token, from a state of zeros `[B, H, M, D]`."""
    total = state[..., :1]
    return LogSums(jnp.full_like(total, FLOOR), state, total)


def log_linear_attention_from(
    sums: LogSums,
    log_q: Array,
    log_k: Array,
    v: Array,
    *,
    valid: Array | None = None,
    chunk: int = 16,
    target: Target | None = None,
) -> tuple[Array, LogSums]:
    """`log_linear_attention`, causal, of tokens that follow those in `sums`; and the sums after.

    The output is in float32 or wider.
    """
    dtype = wide(log_q, log_k, v)
    if v.shape[1] > 1:
        tokens = _Tokens(log_q, log_k, v, valid)
        sums, out = _recurrent(sums, tokens, dtype, chunk, target)
        return out, sums
    log_q, log_k, v = log_q.astype(dtype), log_k.astype(dtype), v.astype(dtype)
    if valid is not None:
        log_k = jnp.where(valid[:, :, None, None], log_k, MASKED)
    # One token: no chunks, and no products of matrices.
    q = log_q[:, 0, :, :, None]  # [B, H, M, 1]
    k = log_k[:, 0, :, :, None]
    top = jnp.maximum(sums.top, k)
    shrink = jnp.exp(sums.top - top)
    write = jnp.exp(k - top)
    state = sums.state * shrink + write * v[:, 0, :, None]
    total = sums.total * shrink + write
    terms = q + top
    read = jnp.exp(terms - jnp.max(terms, axis=2, keepdims=True))
    numerator = jnp.einsum("bhmo,bhmd->bhd", read, state)
    denominator = jnp.einsum("bhmo,bhmd->bhd", read, total)
    return ratio(numerator, denominator)[:, None], LogSums(top, state, total)


def log_linear_weights(log_q: Array, log_k: Array, allowed: Array | None) -> Array:
    """The matrix of `log_linear_attention` by definition, `[B, H, N, N]`.

    A softmax of the logarithms of the products. `allowed` is as in `dense_allowed`.
    """
    terms = log_q[:, :, None] + log_k[:, None]  # [B, N, N, H, M]
    scores = jax.nn.logsumexp(terms, axis=-1).transpose(0, 3, 1, 2)  # [B, H, N, N]
    return masked_softmax(scores, allowed)


def _top(x: Array, axis: int) -> Array:
    """The largest along `axis`, as a constant: it cancels, and so would its gradient."""
    return jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))


class _Tokens(NamedTuple):
    """What `log_linear_attention` takes for each token."""

    log_q: Array
    log_k: Array
    v: Array
    valid: Array | None


def _recurrent(
    sums: LogSums, tokens: _Tokens, out: jnp.dtype, chunk: int, target: Target | None
) -> tuple[LogSums, Array]:
    """The causal sums after the tokens, and the output in the dtype `out`."""
    length = tokens.v.shape[1]
    chunk = min(chunk, length)
    group = group_of(length, target)
    if tokens.valid is None and length > group:  # of tokens that fill up the last group: False
        tokens = tokens._replace(valid=jnp.ones(tokens.v.shape[:2], bool))

    def body(sums: LogSums, tokens: _Tokens) -> tuple[LogSums, Array]:
        sums, y = _group(sums, tokens, chunk)
        return sums, y.astype(out)

    return grouped(body, sums, tokens, chunk=chunk, group=group)


def _group(sums: LogSums, tokens: _Tokens, chunk: int) -> tuple[LogSums, Array]:
    """Within a chunk term by term, from earlier chunks by a state.

    The states before each chunk are sum_j exp(log_k_jm - R_m) v_j and sum_j exp(log_k_jm - R_m),
    where R is the largest of each feature up to there.
    """
    dtype = wide(*tokens[:3])
    log_k = tokens.log_k.astype(dtype)
    if tokens.valid is not None:
        log_k = jnp.where(tokens.valid[:, :, None, None], log_k, MASKED)
    q = chunked(tokens.log_q.astype(dtype), chunk)
    k = chunked(log_k, chunk, MASKED)
    value = chunked(tokens.v.astype(dtype), chunk)
    # R after each chunk and before it, [T, B, H, 1, M].
    start = sums.top.swapaxes(2, 3)[None]
    largest = jax.lax.cummax(jnp.maximum(_top(k, 3), start), axis=0)
    before = jnp.concatenate([start, largest[:-1]])
    # The largest of each feature up to each token, [T, B, H, C, M], and the largest term of each
    # query, [T, B, H, C, 1].
    reached = jnp.maximum(before, jax.lax.cummax(jax.lax.stop_gradient(k), axis=3))
    top = _top(q + reached, -1)
    within = _within(q - top, k)
    read = jnp.exp(q - top + before)
    write = jnp.exp(k - largest)
    # From one R to the next the states shrink by exp(before - largest), [T, B, H, M, 1].
    decay = jnp.exp(before - largest)[:, :, :, 0, :, None]
    update = jnp.einsum("tbhjm,tbhjd->tbhmd", write, value)
    state, last = carried(decay, update, sums.state)
    total, last_total = carried(decay, jnp.sum(write, axis=3)[..., None], sums.total)
    y = joined(ratio(*read_chunks(within, value, read, state, total)), tokens.v.shape[1])
    return LogSums(largest[-1].swapaxes(2, 3), last, last_total), y


@jax.checkpoint
def _within(q: Array, k: Array) -> Array:
    """sum_m exp(q_im + k_jm) for j <= i, `[T, B, H, C, C]`.

    Its gradient computes the C x C x M terms again, and keeps none.
    """
    chunk = q.shape[3]
    past = jnp.tril(jnp.ones((chunk, chunk), bool))[:, :, None]
    terms = q[:, :, :, :, None] + k[:, :, :, None]  # [T, B, H, C, C, M]
    return jnp.sum(jnp.exp(jnp.where(past, terms, MASKED)), axis=-1)
