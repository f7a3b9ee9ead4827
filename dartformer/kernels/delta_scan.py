"""The gated delta rule in chunks.

A recurrence that corrects what its state holds at a key, where others add to it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import chunk_of, chunked, joined
from dartformer.kernels.recurrence import recurrence_step
from dartformer.kernels.softmax import wide


# Under jit it is traced once, and is one program outside jit too.
@functools.partial(jax.jit, static_argnames=("causal", "chunk"))
def delta_scan(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    causal: bool = True,
    valid: Array | None = None,
    chunk: int = 32,
) -> Array:
    """`recurrence` with `beta`: S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T.

    The output is y_t = S_t^T q_t. Within a chunk the corrections u of all tokens solve a triangular
    system (Yang et al. 2024, arXiv:2406.06484, section 3; with decays arXiv:2412.06464, section 3):
    u_i + beta_i sum_{j<i} exp(decays between) (k_i . k_j) u_j = beta_i (v_i - exp(decays up to i)
    S^T k_i), where S is the state before the chunk. Its inverse does not need the state, and is
    computed for all chunks at once.

    Args:
      q, k: `[B, N, H, M]`; the norm of k at most 1, or the state may grow without bound.
      v: `[B, N, H, D]`.
      log_decay: `[B, N, H]`, at most zero; of token t it is what the state decays by before t is
        read or written. Strong ones cost digits, as in `decay_scan`.
      beta: `[B, N, H]`, 0 to 1 (or 2).
      causal: one scan; otherwise a second from the right, in which token t is read before it is
        written.
      valid: `[B, N]` bool; the others neither write to the state nor let it decay. None if all are.
      chunk: tokens handled together, a power of two.

    Returns:
      `[B, N, H, D]` in the dtype of v. Time O(N (chunk^2 + chunk (M + D) + M D)), N / chunk steps
      one after another.
    """
    dtype = wide(q, k, v, log_decay)
    batch, length = v.shape[:2]
    k, log_decay, beta = _masked(k, log_decay, beta, valid)
    chunk = chunk_of(length, chunk)
    reads = jnp.tril(jnp.ones((chunk, chunk), bool))
    if not causal:  # both directions as one batch, of which the second reads before it writes
        reads = jnp.stack([reads, jnp.tril(reads, -1)])
        reads = jnp.repeat(reads, batch, axis=0)[:, None]  # [2 B, 1, C, C]
    parts = []
    for x in (q, k, v, log_decay, beta):
        x = x.astype(dtype)  # a state sums over many tokens
        if not causal:
            x = jnp.concatenate([x, jnp.flip(x, 1)])
        parts.append(chunked(x, chunk))
    qs, ks, vs, decays, betas = parts
    out = joined(_chunks(None, qs, ks, vs, decays, betas, reads)[0], length)
    if not causal:
        out = out[:batch] + jnp.flip(out[batch:], 1)
    return out.astype(v.dtype)


@functools.partial(jax.jit, static_argnames=("chunk",))
def delta_scan_from(
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    valid: Array | None = None,
    chunk: int = 32,
) -> tuple[Array, Array]:
    """`delta_scan`, causal, of tokens that follow `state` `[B, H, M, D]`; and the state after them.

    The output is in float32 or wider.
    """
    if v.shape[1] == 1:
        return recurrence_step(state, q, k, v, log_decay, beta=beta, valid=valid)
    dtype = wide(q, k, v, log_decay)
    length = v.shape[1]
    k, log_decay, beta = _masked(k, log_decay, beta, valid)
    chunk = chunk_of(length, chunk)
    parts = []
    for x in (q, k, v, log_decay, beta):
        parts.append(chunked(x.astype(dtype), chunk))
    reads = jnp.tril(jnp.ones((chunk, chunk), bool))
    qs, ks, vs, decays, betas = parts
    out, last = _chunks(state, qs, ks, vs, decays, betas, reads)
    assert last is not None
    return joined(out, length), last


def _masked(
    k: Array, log_decay: Array, beta: Array, valid: Array | None
) -> tuple[Array, Array, Array]:
    """k, decays and shares `[B, N, H, M or 1]`, so that invalid tokens do nothing to a state."""
    log_decay, beta = log_decay[..., None], beta[..., None]
    if valid is None:
        return k, log_decay, beta
    mask = valid[:, :, None, None]
    return jnp.where(mask, k, 0), jnp.where(mask, log_decay, 0), jnp.where(mask, beta, 0)


def delta_scan_work(length: int, width: int, chunk: int = 32) -> tuple[float, float]:
    """FLOPs of one head both ways, and how many numbers it holds.

    M and D are `width`. Exponentials are not counted.
    """
    chunk = chunk_of(length, chunk)
    chunks = -(-length // chunk)
    several = chunks > 1  # with one chunk there are no states
    scores = 2 * chunks * chunk**2
    states = several * 2 * chunks * width**2
    flops: float = scores * (8 * width + 8)
    flops += scores * (2 * chunk + 40) / 3
    flops += scores * 2 * width * several
    flops += states * (6 * chunk + 2)
    flops += 2 * chunks * chunk * width * (2 + 4 * several)
    return flops, 4 * scores + 2 * states + 6 * length * width


def _chunks(
    start: Array | None,
    q: Array,
    k: Array,
    v: Array,
    decays: Array,
    beta: Array,
    reads: Array,
) -> tuple[Array, Array | None]:
    """The output in chunks, `[T, B, H, C, D]`, and the state after the last.

    `reads`, `[C, C]` or `[B, 1, C, C]`, says which tokens' writes each query reads. Without a state
    `start` before them, that of a single chunk is not computed, and None.
    """
    chunk = q.shape[3]
    # Log-decays of the tokens of a chunk up to each token, [T, B, H, C, 1], and of the chunk.
    upto = jnp.cumsum(decays, axis=3)
    full = upto[:, :, :, -1:]
    past = jnp.tril(jnp.ones((chunk, chunk), bool))
    # Masked before exp: a decay from the future is above 1, and may overflow.
    decay = jnp.exp(jnp.where(past, upto - upto.swapaxes(3, 4), -jnp.inf))  # [T, B, H, C, C]
    # The system (I + L) u = beta (v - ...), L strictly lower triangular.
    products = beta * jnp.einsum("tbhim,tbhjm->tbhij", k, k) * decay
    inverse = unit_triangular_inverse(jnp.where(jnp.tril(past, -1), products, 0))
    u = jnp.einsum("tbhij,tbhjd->tbhid", inverse, beta * v)
    within = jnp.where(reads, jnp.einsum("tbhim,tbhjm->tbhij", q, k) * decay, 0)
    if len(q) == 1 and start is None:  # one chunk: its state is zero
        return jnp.einsum("tbhij,tbhjd->tbhid", within, u), None
    # What the state before the chunk takes from u; the scan below brings the state.
    forgets = jnp.einsum("tbhij,tbhjm->tbhim", inverse, beta * jnp.exp(upto) * k)
    writes = k * jnp.exp(full - upto)

    def step(state: Array, parts: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        u, forgets, writes, full = parts
        u = u - jnp.einsum("bhim,bhmd->bhid", forgets, state)
        update = jnp.einsum("bhjm,bhjd->bhmd", writes, u)
        return jnp.exp(full) * state + update, (state, u)

    if start is None:
        start = jnp.zeros((*k.shape[1:3], k.shape[-1], v.shape[-1]), v.dtype)
    last, (states, u) = jax.lax.scan(step, start, (u, forgets, writes, full))
    near = jnp.einsum("tbhij,tbhjd->tbhid", within, u)
    far = jnp.einsum("tbhim,tbhmd->tbhid", q * jnp.exp(upto), states)
    return near + far, last


def unit_triangular_inverse(lower: Array, leaf: int = 8) -> Array:
    """(I + lower)^-1 `[..., C, C]` of a strictly lower triangle, C a power of two.

    Blocks of `leaf` on the diagonal are inverted by (I - L)(I + L^2)(I + L^4)..., which ends, and
    is kept short since its terms grow. From the inverses A, B of two neighbours follows that of
    both, [[A, 0], [-B L A, B]]. These are products only: they run as batches on any device, and can
    be differentiated any number of times.
    """
    size = lower.shape[-1]
    half = min(leaf, size)
    everything = slice(None)
    blocks = _diagonal(lower, size // half, everything, everything)
    power, reach = blocks, 2
    blocks = jnp.eye(half, dtype=lower.dtype) - blocks
    while reach < half:
        power = power @ power
        blocks = blocks + blocks @ power
        reach = 2 * reach
    while half < size:
        below = _diagonal(lower, size // (2 * half), slice(half, None), slice(half))
        first = blocks[..., 0::2, :, :]
        second = blocks[..., 1::2, :, :]
        corner = -second @ (below @ first)
        upper = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        bottom = jnp.concatenate([corner, second], axis=-1)
        blocks = jnp.concatenate([upper, bottom], axis=-2)
        half *= 2
    return blocks[..., 0, :, :]


def _diagonal(x: Array, count: int, rows: slice, columns: slice) -> Array:
    """A part of each of `count` blocks on the diagonal of x `[..., C, C]`.

    Returns `[..., count, rows, columns]`.
    """
    size = x.shape[-1] // count
    parts = []
    for start in range(0, count * size, size):
        inside = slice(start, start + size)
        block = x[..., inside, inside]
        parts.append(block[..., rows, columns])
    return jnp.stack(parts, axis=-3)
