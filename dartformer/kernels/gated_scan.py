"""Linear recurrence with a decay for each token and channel, in chunks.

Gated linear attention is of this form.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import (
    carried,
    chunk_of,
    chunked,
    group_of,
    grouped,
    joined,
)
from dartformer.kernels.recurrence import recurrence_step
from dartformer.kernels.softmax import wide
from dartformer.kernels.target import Target

GROUP = 128
"""Tokens in a group of `grouped`: half of what other scans take, for the terms of their leaves."""


# Under jit it is traced once, and is one program outside jit too.
@functools.partial(jax.jit, static_argnames=("causal", "scale", "chunk", "leaf", "target"))
def gated_scan(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    causal: bool = True,
    valid: Array | None = None,
    scale: float = 1.0,
    chunk: int = 32,
    leaf: int = 8,
    target: Target | None = None,
) -> Array:
    """`recurrence` with a decay for each channel.

    y_i = sum_j sum_m q_im exp(decays of m between i and j) k_jm v_j, by chunks as in Yang et al.
    2024, arXiv:2312.06635, section 4.3.

    A product of matrices needs the decay between i and j as a factor of i and one of j, relative to
    a place between them: elsewhere one of the two overflows. So a chunk is halved again and again,
    and each half reads the other relative to the border. The leaves, a few tokens each, are summed
    term by term. No exponent is above zero.

    Args:
      q, k: `[B, N, H, M]`. They and v enter in their own dtype, and are computed with in float32 or
        wider.
      v: `[B, N, H, D]`.
      log_decay: `[B, N, H, M]`, at most zero; of token t it is what the state decays by before t is
        read or written. Strong ones cost digits, as in `decay_scan`.
      causal: over j <= i; otherwise over all j, by the decays of j + 1 to i, or of i to j - 1.
      valid: `[B, N]` bool; the others neither write to the state nor let it decay. None if all are.
      scale: factor of q.
      chunk: tokens handled together; `leaf` times a power of two.
      leaf: tokens that are handled term by term.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]` in the dtype of v. Time O(N (chunk + M) D), and O(N (leaf + log chunk) M)
      exponentials; N / chunk steps one after another. Memory for a gradient O(N (M + D)) in the
      dtypes of the arguments, a state for each group of tokens, and the leaves of one group
      (`grouped`).
    """
    tokens = _Tokens(q, k, v, log_decay, valid)
    return _gated_scan(None, tokens, causal, scale, chunk, leaf, target)[1]


@functools.partial(jax.jit, static_argnames=("scale", "chunk", "leaf", "target"))
def gated_scan_from(
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    valid: Array | None = None,
    scale: float = 1.0,
    chunk: int = 32,
    leaf: int = 8,
    target: Target | None = None,
) -> tuple[Array, Array]:
    """`gated_scan`, causal, of tokens that follow `state` `[B, H, M, D]`; and the state after them.

    The output is in float32 or wider.
    """
    if v.shape[1] == 1:
        q = q.astype(wide(q, k, v, log_decay)) * scale
        return recurrence_step(state, q, k, v, log_decay, valid=valid)
    tokens = _Tokens(q, k, v, log_decay, valid)
    state, out = _gated_scan(state, tokens, True, scale, chunk, leaf, target)
    return out, state


class _Tokens(NamedTuple):
    """What `gated_scan` takes for each token, and what is added to its output."""

    q: Array
    k: Array
    v: Array
    log_decay: Array
    valid: Array | None
    add: Array | None = None


def _gated_scan(
    state: Array | None,
    tokens: _Tokens,
    causal: bool,
    scale: float,
    chunk: int,
    leaf: int,
    target: Target | None,
) -> tuple[Array, Array]:
    """The state after the tokens, and the output; it is in the dtype of v if there was no state."""
    batch, length, heads, width = tokens.k.shape
    chunk = chunk_of(length, chunk, leaf)
    out = dtype = wide(*tokens[:4])
    # One chunk with no state before it reads no state, and needs none behind it.
    alone = state is None and length <= chunk
    if state is None:
        state = jnp.zeros((batch, heads, width, tokens.v.shape[3]), dtype)
        out = tokens.v.dtype
    group = group_of(length, target, group=GROUP)
    if not (causal or alone):
        right = functools.partial(_from_the_right, scale=scale, chunk=chunk)
        _, add = grouped(right, state, tokens, chunk=chunk, group=group, reverse=True)
        tokens = tokens._replace(add=add)
    left = functools.partial(
        _from_the_left, causal=causal, alone=alone, scale=scale, out=out, chunk=chunk, leaf=leaf
    )
    return grouped(left, state, tokens, chunk=chunk, group=group)


class _Chunks(NamedTuple):
    """Tokens in chunks, in float32 or wider, `[T, B, H, C, M]` and of v `[T, B, H, C, D]`.

    Attributes:
      upto, before: log-decays of the tokens of a chunk up to each token, and before it.
      full: log-decays of the chunk, `[T, B, H, 1, M]`.
    """

    q: Array
    k: Array
    v: Array
    upto: Array
    before: Array
    full: Array


def _chunks(tokens: _Tokens, scale: float, chunk: int) -> _Chunks:
    dtype = wide(*tokens[:4])
    k, decay = tokens.k, tokens.log_decay
    if tokens.valid is not None:
        mask = tokens.valid[:, :, None, None]
        k = jnp.where(mask, k, 0)
        decay = jnp.where(mask, decay, 0)
    decays = chunked(decay.astype(dtype), chunk)
    upto = jnp.cumsum(decays, axis=3)
    return _Chunks(
        q=chunked(tokens.q.astype(dtype) * scale, chunk),
        k=chunked(k.astype(dtype), chunk),
        v=chunked(tokens.v.astype(dtype), chunk),
        upto=upto,
        before=upto - decays,
        full=upto[:, :, :, -1:],
    )


def _from_the_left(
    state: Array,
    tokens: _Tokens,
    *,
    causal: bool,
    alone: bool,
    scale: float,
    out: jnp.dtype,
    chunk: int,
    leaf: int,
) -> tuple[Array, Array]:
    """The state after a group, and what it reads of its chunks and of the chunks before them."""
    q, k, v, upto, before, full = _chunks(tokens, scale, chunk)
    y = _leaves(q, k, v, upto, before, leaf, causal)
    half = leaf
    while half < chunk:
        y = y + _halves(q, k, v, upto, before, half, causal)
        half *= 2
    if not alone:
        # States before each chunk: a write decays to the end of its chunk, then whole chunks.
        decay = jnp.exp(full[:, :, :, 0, :, None])  # [T, B, H, M, 1]
        writes = jnp.einsum("tbhjm,tbhjd->tbhmd", k * jnp.exp(full - upto), v)
        states, state = carried(decay, writes, state)
        y = y + jnp.einsum("tbhim,tbhmd->tbhid", q * jnp.exp(upto), states)
    y = joined(y, tokens.v.shape[1])
    if tokens.add is not None:
        y = y + tokens.add
    return state, y.astype(out)


def _from_the_right(
    state: Array, tokens: _Tokens, *, scale: float, chunk: int
) -> tuple[Array, Array]:
    """The state before a group, and what it reads of the chunks behind each of its chunks."""
    q, k, v, _, before, full = _chunks(tokens, scale, chunk)
    decay = jnp.exp(full[:, :, :, 0, :, None])
    writes = jnp.einsum("tbhjm,tbhjd->tbhmd", k * jnp.exp(before), v)
    states, state = carried(decay, writes, state, reverse=True)
    y = jnp.einsum("tbhim,tbhmd->tbhid", q * jnp.exp(full - before), states)
    return state, joined(y, tokens.v.shape[1])


def gated_scan_work(length: int, width: int, chunk: int = 32, leaf: int = 8) -> tuple[float, float]:
    """FLOPs of one head both ways, and how many numbers it holds.

    M and D are `width`. Exponentials are not counted. Held are the chunks of one group, and what
    each token reads of those behind it. (On a CPU short sequences are a single group.)
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
    return flops, min(1, GROUP / length) * (numbers + 2 * states) + length * width


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
