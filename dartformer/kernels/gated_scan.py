"""Linear recurrence with a decay for each token and channel, in chunks.

Gated linear attention is of this form.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import carried, carry, chunk_of, chunked, joined
from dartformer.kernels.recurrence import recurrence_step
from dartformer.kernels.softmax import wide


# Under jit it is traced once, and is one program outside jit too.
@functools.partial(jax.jit, static_argnames=("causal", "chunk", "leaf"))
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
    """`recurrence` with a decay for each channel.

    y_i = sum_j sum_m q_im exp(decays of m between i and j) k_jm v_j, by chunks as in Yang et al.
    2024, arXiv:2312.06635, section 4.3.

    A product of matrices needs the decay between i and j as a factor of i and one of j, relative to
    a place between them: elsewhere one of the two overflows. So a chunk is halved again and again,
    and each half reads the other relative to the border. The leaves, a few tokens each, are summed
    term by term. No exponent is above zero.

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
    return _gated_scan(None, q, k, v, log_decay, causal, valid, chunk, leaf)[0].astype(v.dtype)


@functools.partial(jax.jit, static_argnames=("chunk", "leaf"))
def gated_scan_from(
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    valid: Array | None = None,
    chunk: int = 32,
    leaf: int = 8,
) -> tuple[Array, Array]:
    """`gated_scan`, causal, of tokens that follow `state` `[B, H, M, D]`; and the state after them.

    The output is in float32 or wider.
    """
    if v.shape[1] == 1:
        return recurrence_step(state, q, k, v, log_decay, valid=valid)
    out, last = _gated_scan(state, q, k, v, log_decay, True, valid, chunk, leaf)
    assert last is not None
    return out, last


def _gated_scan(
    state: Array | None,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    causal: bool,
    valid: Array | None,
    chunk: int,
    leaf: int,
) -> tuple[Array, Array | None]:
    """The output in float32 or wider; and, where there is a state before the tokens, that after."""
    dtype = wide(q, k, v, log_decay)
    length = v.shape[1]
    chunk = chunk_of(length, chunk, leaf)
    if valid is not None:
        mask = valid[:, :, None, None]
        k = jnp.where(mask, k, 0)
        log_decay = jnp.where(mask, log_decay, 0)
    qs = chunked(q.astype(dtype), chunk)  # [T, B, H, C, M]
    ks = chunked(k.astype(dtype), chunk)
    vs = chunked(v.astype(dtype), chunk)  # [T, B, H, C, D]
    decays = chunked(log_decay.astype(dtype), chunk)
    # Log-decays of the tokens of a chunk up to each token and before it, [T, B, H, C, M], and of
    # the chunk, [T, B, H, 1, M].
    upto = jnp.cumsum(decays, axis=3)
    before = upto - decays
    full = upto[:, :, :, -1:]
    out = _leaves(qs, ks, vs, upto, before, leaf, causal)
    half = leaf
    while half < chunk:
        out = out + _halves(qs, ks, vs, upto, before, half, causal)
        half *= 2
    after = None
    if len(qs) > 1 or state is not None:
        # States before each chunk: a write decays to the end of its chunk, then whole chunks.
        last = full[:, :, :, 0, :, None]  # [T, B, H, M, 1]
        decay = jnp.exp(last)
        writes = jnp.einsum("tbhjm,tbhjd->tbhmd", ks * jnp.exp(full - upto), vs)
        start = state
        if start is None:
            start = jnp.zeros_like(writes[0])
        states, after = carried(decay, writes, start)
        out = out + jnp.einsum("tbhim,tbhmd->tbhid", qs * jnp.exp(upto), states)
        if not causal:
            # The same from the right: states after each chunk.
            writes = jnp.einsum("tbhjm,tbhjd->tbhmd", ks * jnp.exp(before), vs)
            states = carry(jnp.exp(last)[::-1], writes[::-1])[::-1]
            reads = qs * jnp.exp(full - before)
            out = out + jnp.einsum("tbhim,tbhmd->tbhid", reads, states)
    return joined(out, length), after


def gated_scan_work(length: int, width: int, chunk: int = 32, leaf: int = 8) -> tuple[float, float]:
    """FLOPs of one head both ways, and how many numbers it holds.

    M and D are `width`. Exponentials are not counted.
    """
    chunk = chunk_of(length, chunk, leaf)
    chunks = -(-length // chunk)
    several = chunks > 1  # with one chunk there are no states
    levels = (chunk // leaf).bit_length() - 1
    tokens = chunks * chunk
    states = several * 2 * chunks * width**2
    flops = tokens * leaf * 12 * width
    flops += tokens * (chunk - leaf) * 4 * width
    flops += levels * tokens * 5 * width
    flops += states * (4 * chunk + 3)
    flops += tokens * width * (2 + 6 * several)
    numbers = tokens * (2 * leaf * width + levels * 5 * width + 2 * chunk)
    return flops, numbers + 2 * states


def _leaves(
    q: Array, k: Array, v: Array, upto: Array, before: Array, leaf: int, causal: bool
) -> Array:
    """What tokens of a leaf read of one another, `[T, B, H, C, D]`."""

    def cut(x: Array) -> Array:
        # Heads and leaves share an axis, [T, B, H C / leaf, leaf, M]: sums over arrays of seven
        # axes crash in some releases of jaxlib (xla_flags.py).
        return x.reshape(*x.shape[:2], -1, leaf, x.shape[-1])

    shape = v.shape
    q, k, v, upto, before = cut(q), cut(k), cut(v), cut(upto), cut(before)
    past = jnp.tril(jnp.ones((leaf, leaf), bool))[..., None]
    between = upto[..., :, None, :] - upto[..., None, :, :]  # [T, B, L, leaf, leaf, M]
    if causal:
        between = jnp.where(past, between, -jnp.inf)
    else:
        between = jnp.where(past, between, before[..., None, :, :] - before[..., :, None, :])
    products = q[..., :, None, :] * k[..., None, :, :]
    within = jnp.sum(products * jnp.exp(between), axis=-1)
    return jnp.einsum("tblij,tbljd->tblid", within, v).reshape(shape)


def _halves(
    q: Array, k: Array, v: Array, upto: Array, before: Array, half: int, causal: bool
) -> Array:
    """What each `half` tokens read of their neighbouring half, `[T, B, H, C, D]`.

    The second half of a pair reads the first, and unless causal the first reads the second.
    """

    def cut(x: Array) -> tuple[Array, Array]:
        """The first and the second half of each pair, `[T, B, H, C / (2 half), half, M]`."""
        pairs = x.reshape(*x.shape[:3], -1, 2, half, x.shape[-1])
        return pairs[..., 0, :, :], pairs[..., 1, :, :]

    def read(q: Array, k: Array, v: Array) -> Array:
        scores = jnp.einsum("tbhlim,tbhljm->tbhlij", q, k)
        return jnp.einsum("tbhlij,tbhljd->tbhlid", scores, v)

    q1, q2 = cut(q)
    k1, k2 = cut(k)
    v1, v2 = cut(v)
    upto1, upto2 = cut(upto)
    before1, before2 = cut(before)
    border = upto1[..., -1:, :]  # decays up to the end of the first half
    later = read(q2 * jnp.exp(upto2 - border), k1 * jnp.exp(border - upto1), v1)
    if causal:
        earlier = jnp.zeros_like(later)
    else:
        earlier = read(q1 * jnp.exp(border - before1), k2 * jnp.exp(before2 - border), v2)
    out = jnp.stack([earlier, later], axis=4)
    return out.reshape(*out.shape[:3], -1, out.shape[-1])
