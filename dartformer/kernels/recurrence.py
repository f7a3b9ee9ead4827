"""Recurrences whose state is a matrix, one token at a time: what fast scans are compared with."""

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import wide, zero_queries


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

    u_t is v_t, or with `beta` the correction of the delta rule, beta_t (v_t - (A_t S_{t-1})^T k_t)
    (Schlag et al. 2021, arXiv:2102.11174). Unless causal, a second state runs from the last token
    to the first. q_t reads it too, after its decay by token t and before t is written: each token is
    read once, and decays are the same both ways.

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
        mask = valid[:, :, None, None]
        # A log-decay of zero lets the state pass unchanged, a key of zero writes nothing.
        log_decay = jnp.where(mask, log_decay, 0)
        k = jnp.where(mask, k, 0)
    arrays = [q, k, v, jnp.exp(log_decay)]
    if beta is not None:
        arrays.append(beta[..., None])
    tokens = []
    for x in arrays:
        tokens.append(x.astype(dtype).swapaxes(0, 1))  # [N, B, H, ...]: a scan runs over axis 0
    batch, _, heads, width = v.shape
    start = jnp.zeros((batch, heads, k.shape[-1], width), dtype)

    def step(state: Array, token: list[Array]) -> tuple[Array, tuple[Array, Array]]:
        """The next state, and it before and after token t is written."""
        _, k, v, decay, *beta = token
        before = decay[..., None] * state
        after = _written(before, k, v, *beta)
        return after, (before, after)

    def forward(state: Array, token: list[Array]) -> tuple[Array, Array]:
        state, (_, after) = step(state, token)
        return state, jnp.einsum("bhmd,bhm->bhd", after, token[0])

    def backward(state: Array, token: list[Array]) -> tuple[Array, Array]:
        # Token t was read by the forward state: here it is read before it is written.
        state, (before, _) = step(state, token)
        return state, jnp.einsum("bhmd,bhm->bhd", before, token[0])

    out = jax.lax.scan(forward, start, tokens)[1]
    if not causal:
        out = out + jax.lax.scan(backward, start, tokens, reverse=True)[1]
    return out.swapaxes(0, 1)  # [B, N, H, D]


def _written(before: Array, k: Array, v: Array, beta: Array | None = None) -> Array:
    """The state `[B, H, M, D]` after a token is written to it; with `beta` by the delta rule."""
    update = v
    if beta is not None:
        held = jnp.einsum("bhmd,bhm->bhd", before, k)  # what the state answers to k_t
        update = beta * (v - held)
    return before + k[..., None] * update[..., None, :]


def recurrence_step(
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    beta: Array | None = None,
    valid: Array | None = None,
) -> tuple[Array, Array]:
    """One token of `recurrence`, causal.

    Args:
      state: `[B, H, M, D]`, what the tokens before it have left.
      q, k, v, log_decay, beta, valid: as there, with N = 1.

    Returns:
      The output `[B, 1, H, D]`, and the next state; both in float32 or wider.
    """
    dtype = wide(q, k, v, log_decay)
    decay = jnp.exp(log_decay[:, 0].astype(dtype))
    if decay.ndim == 2:
        decay = decay[..., None]
    share = None
    if beta is not None:
        share = beta[:, 0, :, None].astype(dtype)
    before = decay[..., None] * state
    after = _written(before, k[:, 0].astype(dtype), v[:, 0].astype(dtype), share)
    if valid is not None:
        after = jnp.where(valid[:, :, None, None], after, state)
    out = jnp.einsum("bhmd,bhm->bhd", after, q[:, 0].astype(dtype))
    return out[:, None], after


def recurrence_weights(
    q: Array,
    k: Array,
    log_decay: Array,
    *,
    beta: Array | None = None,
    causal: bool = True,
    valid: Array | None = None,
) -> Array:
    """The matrix `[B, H, N, N]` that `recurrence` multiplies v by.

    Rows of invalid queries are zero.
    """
    batch, length, heads, _ = q.shape
    # The output for unit vectors in place of v is the matrix.
    eye = jnp.eye(length, dtype=wide(q, k))[:, None]
    unit = jnp.broadcast_to(eye, (batch, length, heads, length))
    out = recurrence(q, k, unit, log_decay, beta=beta, causal=causal, valid=valid)
    return zero_queries(out.transpose(0, 2, 1, 3), valid)
