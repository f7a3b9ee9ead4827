"""Linear recurrence with one decay for each token and head, in chunks: retention, and the state
space of Mamba-2."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import carry, chunked, joined
from dartformer.kernels.softmax import wide


@functools.partial(
    jax.jit, static_argnames=("causal", "chunk")
)  # traced once, and one program outside jit too
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
    """As `recurrence.recurrence` with a scalar decay: y_i = sum_j exp(decays between i and j) (q_i
    . k_j) v_j.

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
    dtype = wide(q, k, v, log_decay)
    length, chunk = v.shape[1], min(chunk, v.shape[1])
    log_decay = log_decay[..., None]
    if valid is not None:
        k, log_decay = (jnp.where(valid[:, :, None, None], x, 0) for x in (k, log_decay))
    qs, ks, vs, decays = (chunked(x.astype(dtype), chunk) for x in (q, k, v, log_decay))
    upto = jnp.cumsum(decays, axis=3)  # of all tokens of the chunk up to this one, [T, B, H, C, 1]
    before, whole = upto - decays, upto[:, :, :, -1:]
    past = jnp.tril(jnp.ones((chunk, chunk), bool))
    between = upto - upto.swapaxes(3, 4)
    if causal:
        between = jnp.where(past, between, -jnp.inf)
    else:
        between = jnp.where(past, between, before.swapaxes(3, 4) - before)
    within = jnp.einsum("tbhim,tbhjm->tbhij", qs, ks) * jnp.exp(between)
    out = jnp.einsum("tbhij,tbhjd->tbhid", within, vs)
    if len(qs) > 1:
        states = carry(
            jnp.exp(whole), jnp.einsum("tbhjm,tbhjd->tbhmd", ks * jnp.exp(whole - upto), vs)
        )
        out = out + jnp.einsum("tbhim,tbhmd->tbhid", qs * jnp.exp(upto), states)
        if not causal:
            writes = jnp.einsum("tbhjm,tbhjd->tbhmd", ks * jnp.exp(before), vs)
            states = carry(jnp.exp(whole)[::-1], writes[::-1])[::-1]
            out = out + jnp.einsum("tbhim,tbhmd->tbhid", qs * jnp.exp(whole - before), states)
    return joined(out, length).astype(v.dtype)


def decay_scan_work(length: int, width: int, chunk: int = 64) -> tuple[float, float]:
    """FLOPs of one head both ways, exponentials not counted, and how many numbers it holds; M and D
    are `width`."""
    size = min(chunk, length)
    chunks = -(-length // size)
    scores, states = chunks * size**2, (chunks > 1) * 2 * chunks * width**2
    flops = (
        scores * (4 * width + 6)
        + states * (4 * size + 3)
        + chunks * size * (1 + 4 * width * (chunks > 1))
    )
    return flops, 2 * scores + 2 * states + 3 * length * width
