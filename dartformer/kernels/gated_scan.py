"""Linear recurrence with a decay for each token and channel, in chunks: gated linear attention."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import carry, chunked, joined
from dartformer.kernels.softmax import wide


@functools.partial(
    jax.jit, static_argnames=("causal", "chunk", "leaf")
)  # traced once, and one program outside jit too
def gated_scan(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    causal: bool = True,
    valid: Array | None = None,
    chunk: int = 32,
    leaf: int = 8,
) -> Array:
    """As `recurrence.recurrence` with a decay for each channel: y_i = sum_j sum_m q_im exp(decays
    between) k_jm v_j.

    A product of matrices needs the decay between i and j as a factor of i and one of j, relative to
    a place between them: elsewhere one of the two overflows. So a chunk is halved again and again:
    each half reads the other relative to the border. What is left in the end, a few tokens each, is
    summed term by term. No exponent is above zero.

    Args:
      q, k: `[B, N, H, M]`.
      v: `[B, N, H, D]`.
      log_decay: `[B, N, H, M]`, at most zero; of token t it is what the state decays by before t is
        read or written. Strong ones cost digits, as in `decay_scan`.
      causal: over j <= i; otherwise over all j, by the decays of j + 1 to i, or of i to j - 1.
      valid: `[B, N]` bool; the others neither write to the state nor let it decay. None if all are.
      chunk: tokens handled together; `leaf` times a power of two.
      leaf: tokens that are handled term by term.

    Returns:
      `[B, N, H, D]` in the dtype of v. Time O(N (chunk + M) D), and O(N (leaf + log chunk) M)
      exponentials; N / chunk steps one after another.
    """
    dtype = wide(q, k, v, log_decay)
    length = v.shape[1]
    chunk = chunk_of(length, chunk, leaf)
    if valid is not None:
        k, log_decay = (jnp.where(valid[:, :, None, None], x, 0) for x in (k, log_decay))
    qs, ks, vs, decays = (chunked(x.astype(dtype), chunk) for x in (q, k, v, log_decay))
    upto = jnp.cumsum(decays, axis=3)  # of all tokens of the chunk up to this one, [T, B, H, C, M]
    before, whole = upto - decays, upto[:, :, :, -1:]
    out = _leaves(qs, ks, vs, upto, before, leaf, causal)
    half = leaf
    while half < chunk:
        out = out + _halves(qs, ks, vs, upto, before, half, causal)
        half *= 2
    if len(qs) > 1:
        last = whole[:, :, :, 0, :, None]
        states = carry(
            jnp.exp(last), jnp.einsum("tbhjm,tbhjd->tbhmd", ks * jnp.exp(whole - upto), vs)
        )
        out = out + jnp.einsum("tbhim,tbhmd->tbhid", qs * jnp.exp(upto), states)
        if not causal:
            writes = jnp.einsum("tbhjm,tbhjd->tbhmd", ks * jnp.exp(before), vs)
            states = carry(jnp.exp(last)[::-1], writes[::-1])[::-1]
            out = out + jnp.einsum("tbhim,tbhmd->tbhid", qs * jnp.exp(whole - before), states)
    return joined(out, length).astype(v.dtype)


def gated_scan_work(length: int, width: int, chunk: int = 32, leaf: int = 8) -> tuple[float, float]:
    """FLOPs of one head both ways, exponentials not counted, and how many numbers it holds; M and D
    are `width`."""
    chunk = chunk_of(length, chunk, leaf)
    chunks, levels = -(-length // chunk), (chunk // leaf).bit_length() - 1
    tokens, states = chunks * chunk, (chunks > 1) * 2 * chunks * width**2
    flops = (
        tokens * leaf * 12 * width
        + tokens * (chunk - leaf) * 4 * width
        + levels * tokens * 5 * width
        + states * (4 * chunk + 3)
        + tokens * width * (2 + 6 * (chunks > 1))
    )
    return flops, tokens * (2 * leaf * width + levels * 5 * width + 2 * chunk) + 2 * states


def chunk_of(length: int, chunk: int, leaf: int) -> int:
    """The smallest that holds all of `length` tokens, and at most `chunk`."""
    while chunk > leaf and chunk // 2 >= length:
        chunk //= 2
    return chunk


def _leaves(
    q: Array, k: Array, v: Array, upto: Array, before: Array, leaf: int, causal: bool
) -> Array:
    """What tokens of a leaf read of one another, `[T, B, H, C, D]`."""
    # Heads and leaves share an axis: sums over arrays of seven axes crash in some releases of
    # jaxlib (xla_flags.py).
    shape = v.shape
    q, k, v, upto, before = (
        x.reshape(*x.shape[:2], -1, leaf, x.shape[-1]) for x in (q, k, v, upto, before)
    )
    past = jnp.tril(jnp.ones((leaf, leaf), bool))[..., None]
    between = upto[..., :, None, :] - upto[..., None, :, :]
    if causal:
        between = jnp.where(past, between, -jnp.inf)
    else:
        between = jnp.where(past, between, before[..., None, :, :] - before[..., :, None, :])
    within = jnp.sum(q[..., :, None, :] * k[..., None, :, :] * jnp.exp(between), axis=-1)
    return jnp.einsum("tblij,tbljd->tblid", within, v).reshape(shape)


def _halves(
    q: Array, k: Array, v: Array, upto: Array, before: Array, half: int, causal: bool
) -> Array:
    """What each `half` tokens read of the `half` before them, and unless causal after them, `[T, B,
    H, C, D]`."""
    q, k, v, upto, before = (
        x.reshape(*x.shape[:3], -1, 2, half, x.shape[-1]) for x in (q, k, v, upto, before)
    )
    first, second = (tuple(x[..., side, :, :] for x in (q, k, v, upto, before)) for side in (0, 1))

    def read(q: Array, k: Array, v: Array) -> Array:
        return jnp.einsum("tbhlij,tbhljd->tbhlid", jnp.einsum("tbhlim,tbhljm->tbhlij", q, k), v)

    border = first[3][..., -1:, :]
    later = read(
        second[0] * jnp.exp(second[3] - border), first[1] * jnp.exp(border - first[3]), first[2]
    )
    earlier = (
        jnp.zeros_like(later)
        if causal
        else read(
            first[0] * jnp.exp(border - first[4]),
            second[1] * jnp.exp(second[4] - border),
            second[2],
        )
    )
    out = jnp.stack([earlier, later], axis=4)
    return out.reshape(*out.shape[:3], -1, out.shape[-1])
