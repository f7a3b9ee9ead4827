"""The gated delta rule in chunks: a recurrence that corrects what its state holds at a key, and
does not add to it."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import chunked, joined
from dartformer.kernels.softmax import wide


@functools.partial(
    jax.jit, static_argnames=("causal", "chunk")
)  # traced once, and one program outside jit too
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
    """As `recurrence.recurrence` with `beta`: S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t
    v_t^T, y_t = S_t^T q_t.

    Within a chunk the corrections u of all tokens solve a triangular system (Yang et al. 2024,
    arXiv:2406.06484, section 3; with decays arXiv:2412.06464, section 3): u_i + beta_i sum_{j<i}
    exp(decays between) (k_i . k_j) u_j = beta_i (v_i - exp(decays up to i) S^T k_i), where S is the
    state before the chunk. Its inverse does not need the state, and is had for all chunks at once.

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
    log_decay, beta = log_decay[..., None], beta[..., None]
    if valid is not None:
        k, log_decay, beta = (
            jnp.where(valid[:, :, None, None], x, 0) for x in (k, log_decay, beta)
        )
    while chunk // 2 >= length:
        chunk //= 2
    tokens = [x.astype(dtype) for x in (q, k, v, log_decay, beta)]
    reads = jnp.tril(jnp.ones((chunk, chunk), bool))
    if not causal:  # both directions as one batch, of which the second reads before it writes
        tokens = [jnp.concatenate([x, jnp.flip(x, 1)]) for x in tokens]
        reads = jnp.repeat(jnp.stack([reads, jnp.tril(reads, -1)]), batch, axis=0)[:, None]
    qs, ks, vs, decays, betas = (chunked(x, chunk) for x in tokens)
    out = joined(_chunks(qs, ks, vs, decays, betas, reads), length)
    if not causal:
        out = out[:batch] + jnp.flip(out[batch:], 1)
    return out.astype(v.dtype)


def delta_scan_work(length: int, width: int, chunk: int = 32) -> tuple[float, float]:
    """FLOPs of one head both ways, exponentials not counted, and how many numbers it holds; M and D
    are `width`."""
    while chunk // 2 >= length:
        chunk //= 2
    chunks = -(-length // chunk)
    scores, states = 2 * chunks * chunk**2, (chunks > 1) * 2 * chunks * width**2
    flops = (
        scores * (8 * width + 8)
        + scores * (2 * chunk + 40) / 3
        + scores * 2 * width * (chunks > 1)
        + states * (6 * chunk + 2)
        + 2 * chunks * chunk * width * (2 + 4 * (chunks > 1))
    )
    return flops, 4 * scores + 2 * states + 6 * length * width


def _chunks(q: Array, k: Array, v: Array, decays: Array, beta: Array, reads: Array) -> Array:
    """`[T, B, H, C, D]`; `reads`: which tokens' writes each query sees, `[C, C]` or `[B, 1, C,
    C]`."""
    chunk = q.shape[3]
    upto = jnp.cumsum(decays, axis=3)
    whole = upto[:, :, :, -1:]
    past = jnp.tril(jnp.ones((chunk, chunk), bool))
    decay = jnp.exp(jnp.where(past, upto - upto.swapaxes(3, 4), -jnp.inf))
    system = jnp.where(jnp.tril(past, -1), beta * jnp.einsum("tbhim,tbhjm->tbhij", k, k) * decay, 0)
    inverse = unit_triangular_inverse(system)
    u = jnp.einsum("tbhij,tbhjd->tbhid", inverse, beta * v)
    within = jnp.where(reads, jnp.einsum("tbhim,tbhjm->tbhij", q, k) * decay, 0)
    if len(q) == 1:
        return jnp.einsum("tbhij,tbhjd->tbhid", within, u)
    forgets = jnp.einsum("tbhij,tbhjm->tbhim", inverse, beta * jnp.exp(upto) * k)
    writes = k * jnp.exp(whole - upto)

    def step(state: Array, part: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        u, forgets, writes, whole = part
        u = u - jnp.einsum("bhim,bhmd->bhid", forgets, state)
        return jnp.exp(whole) * state + jnp.einsum("bhjm,bhjd->bhmd", writes, u), (state, u)

    start = jnp.zeros((*k.shape[1:3], k.shape[-1], v.shape[-1]), v.dtype)
    states, u = jax.lax.scan(step, start, (u, forgets, writes, whole))[1]
    return jnp.einsum("tbhij,tbhjd->tbhid", within, u) + jnp.einsum(
        "tbhim,tbhmd->tbhid", q * jnp.exp(upto), states
    )


def unit_triangular_inverse(lower: Array, leaf: int = 8) -> Array:
    """(I + lower)^-1 `[..., C, C]` of a strictly lower triangle, C a power of two.

    Of blocks of `leaf` on the diagonal by (I - L)(I + L^2)(I + L^4)..., which ends, and is kept
    short since its terms grow; from the inverses A, B of two neighbours that of both, [[A, 0], [-B
    L A, B]]. Products only, so it runs as batches on any device and can be differentiated as often
    as one likes."""
    size, half = lower.shape[-1], min(leaf, lower.shape[-1])
    blocks = _diagonal(lower, size // half, (slice(None), slice(None)))
    power, reach = blocks, 2
    blocks = jnp.eye(half, dtype=lower.dtype) - blocks
    while reach < half:
        power = power @ power
        blocks, reach = blocks + blocks @ power, 2 * reach
    while half < size:
        below = _diagonal(lower, size // (2 * half), (slice(half, None), slice(half)))
        first, second = blocks[..., 0::2, :, :], blocks[..., 1::2, :, :]
        corner = -second @ (below @ first)
        blocks = jnp.concatenate(
            [
                jnp.concatenate([first, jnp.zeros_like(first)], axis=-1),
                jnp.concatenate([corner, second], axis=-1),
            ],
            axis=-2,
        )
        half *= 2
    return blocks[..., 0, :, :]


def _diagonal(x: Array, count: int, part: tuple[slice, slice]) -> Array:
    """A part of each of `count` blocks on the diagonal of x `[..., C, C]`: `[..., count, rows,
    columns]`."""
    size = x.shape[-1] // count
    blocks = [x[..., c * size : (c + 1) * size, c * size : (c + 1) * size] for c in range(count)]
    return jnp.stack([block[..., part[0], part[1]] for block in blocks], axis=-3)
