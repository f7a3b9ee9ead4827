"""Linear recurrence with one decay for each token and head, in chunks.

Retention and the state space of Mamba-2 are of this form.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import carried, carry, chunked, joined
from dartformer.kernels.recurrence import recurrence_step
from dartformer.kernels.softmax import wide


# Under jit it is traced once, and is one program outside jit too.
@functools.partial(jax.jit, static_argnames=("causal", "chunk"))
def decay_scan(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    causal: bool = True,
    valid: Array | None = None,
    chunk: int = 64,
) -> Array:
    """`recurrence` with a scalar decay: y_i = sum_j exp(decays between i and j) (q_i . k_j) v_j.

    Within a chunk as a product of matrices, from other chunks by the states at its ends. Decays are
    multiplied as sums of logarithms, and no exponent is above zero. Sums are differences of those
    from the chunk's beginning: where log-decays add up to hundreds in a chunk, float32 keeps four
    or five digits of seven.

    Args:
      q, k: `[B, N, H, M]`.
      v: `[B, N, H, D]`.
      log_decay: `[B, N, H]`, at most zero; of token t it is what the state decays by before t is
        read or written.
      causal: over j <= i; otherwise over all j, by the decays of j + 1 to i, or of i to j - 1.
      valid: `[B, N]` bool; the others neither write to the state nor let it decay. None if all are.
      chunk: tokens handled together.

    Returns:
      `[B, N, H, D]` in the dtype of v. Time O(N (chunk + M) D), N / chunk steps one after another.
    """
    return _decay_scan(None, q, k, v, log_decay, causal, valid, chunk)[0].astype(v.dtype)


@functools.partial(jax.jit, static_argnames=("chunk",))
def decay_scan_from(
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    valid: Array | None = None,
    chunk: int = 64,
) -> tuple[Array, Array]:
    """`decay_scan`, causal, of tokens that follow `state` `[B, H, M, D]`; and the state after them.

    The output is in float32 or wider.
    """
    if v.shape[1] == 1:
        return recurrence_step(state, q, k, v, log_decay, valid=valid)
    out, last = _decay_scan(state, q, k, v, log_decay, True, valid, chunk)
    assert last is not None
    return out, last


def _decay_scan(
    state: Array | None,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    causal: bool,
    valid: Array | None,
    chunk: int,
) -> tuple[Array, Array | None]:
    """The output in float32 or wider; and, where there is a state before the tokens, that after."""
    dtype = wide(q, k, v, log_decay)
    length = v.shape[1]
    chunk = min(chunk, length)
    log_decay = log_decay[..., None]
    if valid is not None:
        mask = valid[:, :, None, None]
        k = jnp.where(mask, k, 0)
        log_decay = jnp.where(mask, log_decay, 0)
    qs = chunked(q.astype(dtype), chunk)  # [T, B, H, C, M]
    ks = chunked(k.astype(dtype), chunk)
    vs = chunked(v.astype(dtype), chunk)  # [T, B, H, C, D]
    decays = chunked(log_decay.astype(dtype), chunk)
    # Log-decays of the tokens of a chunk up to each token and before it, [T, B, H, C, 1], and of
    # the chunk, [T, B, H, 1, 1].
    # A product with a triangle of ones and not `cumsum`: it and its gradient are quicker on a CPU,
    # and summed with half the rounding error. Accelerators would round the factors by default.
    past = jnp.tril(jnp.ones((chunk, chunk), dtype))
    upto = jnp.einsum("ij,tbhjm->tbhim", past, decays, precision="highest")
    before = upto - decays
    full = upto[:, :, :, -1:]
    between = upto - upto.swapaxes(3, 4)
    if causal:
        between = jnp.where(past > 0, between, -jnp.inf)
    else:
        between = jnp.where(past > 0, between, before.swapaxes(3, 4) - before)
    within = jnp.einsum("tbhim,tbhjm->tbhij", qs, ks) * jnp.exp(between)
    out = jnp.einsum("tbhij,tbhjd->tbhid", within, vs)
    last = None
    if len(qs) > 1 or state is not None:
        # States before each chunk: a write decays to the end of its chunk, then whole chunks.
        decay = jnp.exp(full)
        writes = jnp.einsum("tbhjm,tbhjd->tbhmd", ks * jnp.exp(full - upto), vs)
        start = state
        if start is None:
            start = jnp.zeros_like(writes[0])
        states, last = carried(decay, writes, start)
        out = out + jnp.einsum("tbhim,tbhmd->tbhid", qs * jnp.exp(upto), states)
        if not causal:
            # The same from the right: states after each chunk.
            writes = jnp.einsum("tbhjm,tbhjd->tbhmd", ks * jnp.exp(before), vs)
            states = carry(jnp.exp(full)[::-1], writes[::-1])[::-1]
            reads = qs * jnp.exp(full - before)
            out = out + jnp.einsum("tbhim,tbhmd->tbhid", reads, states)
    return joined(out, length), last


def decay_scan_work(length: int, width: int, chunk: int = 64) -> tuple[float, float]:
    """FLOPs of one head both ways, and how many numbers it holds.

    M and D are `width`. Exponentials are not counted.
    """
    size = min(chunk, length)
    chunks = -(-length // size)
    several = chunks > 1  # with one chunk there are no states
    scores = chunks * size**2
    states = several * 2 * chunks * width**2
    flops = scores * (4 * width + 6)
    flops += states * (4 * size + 3)
    flops += chunks * size * (1 + 4 * width * several)
    return flops, 2 * scores + 2 * states + 3 * length * width
