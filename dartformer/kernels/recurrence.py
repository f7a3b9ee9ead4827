"""Recurrences whose state is a matrix, one token at a time: the definition that fast scans are
compared with."""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import wide


def recurrence(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    beta: Array | None = None,
    causal: bool = True,
    valid: Array | None = None,
) -> Array:
    """y_t = S_t^T q_t with S_t = A_t S_{t-1} + k_t u_t^T and A_t = diag(exp(log_decay_t)).

    u_t is v_t, or with `beta` the correction of the delta rule, beta_t (v_t - (A_t S_{t-1})^T k_t).
    Unless causal, a second state runs from the last token to the first, and what it holds after its
    decay by token t, and before t is written, is read by q_t too: each token is read once, and
    decays are the same both ways.

    Args:
      q, k: `[B, N, H, M]`.
      v: `[B, N, H, D]`.
      log_decay: at most zero, `[B, N, H]`, or `[B, N, H, M]` with one for each row of S.
      beta: `[B, N, H]`, or None.
      causal: one state, from the first token.
      valid: `[B, N]` bool; the others neither write to the state nor let it decay. None if all are.

    Returns:
      `[B, N, H, D]` in float32 or wider. O(N M D) time, N steps one after another.
    """
    dtype = wide(q, k, v, log_decay)
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    if valid is not None:
        log_decay, k = (jnp.where(valid[:, :, None, None], x, 0) for x in (log_decay, k))
    tokens = [q, k, v, jnp.exp(log_decay), *([] if beta is None else [beta[..., None]])]
    tokens = [x.astype(dtype).swapaxes(0, 1) for x in tokens]
    batch, _, heads, width = v.shape
    start = jnp.zeros((batch, heads, k.shape[-1], width), dtype)

    def step(state: Array, token: list[Array], reads_own: bool) -> tuple[Array, Array]:
        q, k, v, decay, *beta = token
        state = decay[..., None] * state
        update = beta[0] * (v - jnp.einsum("bhmd,bhm->bhd", state, k)) if beta else v
        after = state + k[..., None] * update[..., None, :]
        return after, jnp.einsum("bhmd,bhm->bhd", after if reads_own else state, q)

    out = jax.lax.scan(lambda s, t: step(s, t, True), start, tokens)[1]
    if not causal:
        out = out + jax.lax.scan(lambda s, t: step(s, t, False), start, tokens, reverse=True)[1]
    return out.swapaxes(0, 1)


def recurrence_weights(
    q: Array,
    k: Array,
    log_decay: Array,
    *,
    beta: Array | None = None,
    causal: bool = True,
    valid: Array | None = None,
) -> Array:
    """The matrix `[B, H, N, N]` that `recurrence` multiplies v by; rows of invalid queries are
    zero."""
    batch, length, heads, _ = q.shape
    unit = jnp.broadcast_to(
        jnp.eye(length, dtype=wide(q, k))[:, None], (batch, length, heads, length)
    )
    rows = recurrence(q, k, unit, log_decay, beta=beta, causal=causal, valid=valid).transpose(
        0, 2, 1, 3
    )
    return rows if valid is None else rows * valid[:, None, :, None]
