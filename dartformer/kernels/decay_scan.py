"""Linear recurrence with one decay for each token and head, in chunks.

Retention and the state space of Mamba-2 are of this form.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.kernels.linear_scan import (
    GROUP,
    ON_CPU,
    carried,
    chunked,
    group_of,
    grouped,
    joined,
    running,
)
from dartformer.kernels.recurrence import recurrence_step
from dartformer.kernels.softmax import wide
from dartformer.kernels.target import Target


# Under jit it is traced once, and is one program outside jit too.
@functools.partial(jax.jit, static_argnames=("causal", "scale", "dtype", "chunk", "target"))
def decay_scan(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    causal: bool = True,
    valid: Array | None = None,
    scale: float = 1.0,
    write: Array | None = None,
    dtype: DTypeLike | None = None,
    chunk: int = 64,
    target: Target | None = None,
) -> Array:
    """`recurrence` with a scalar decay: y_i = sum_j exp(decays between i and j) (q_i . k_j) v_j.

    Within a chunk as a product of matrices, from other chunks by the states at its ends. Decays are
    multiplied as sums of logarithms, and no exponent is above zero. Sums are differences of those
    from the chunk's beginning: where log-decays add up to hundreds in a chunk, float32 keeps four
    or five digits of seven.

    Args:
      q, k: `[B, N, H, M]`. They and v enter in their own dtype, and are computed with in float32 or
        wider.
      v: `[B, N, H, D]`.
      log_decay: `[B, N, H]`, at most zero; of token t it is what the state decays by before t is
        read or written.
      causal: over j <= i; otherwise over all j, by the decays of j + 1 to i, or of i to j - 1.
      valid: `[B, N]` bool; the others neither write to the state nor let it decay. None if all are.
      scale: factor of q.
      write: factors of k, `[B, N, H]`; None for 1.
      dtype: of the output; None for that of v.
      chunk: tokens handled together.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]`. Time O(N (chunk + M) D), N / chunk steps one after another. Memory for a
      gradient O(N (M + D)) in the dtypes of the arguments, a state for each group of tokens, and
      the chunks of one group (`grouped`).
    """
    tokens = _Tokens(q, k, v, log_decay, valid, write)
    return _decay_scan(None, tokens, causal, scale, dtype or v.dtype, chunk, target)[1]


@functools.partial(jax.jit, static_argnames=("scale", "chunk", "target"))
def decay_scan_from(
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    *,
    valid: Array | None = None,
    scale: float = 1.0,
    write: Array | None = None,
    chunk: int = 64,
    target: Target | None = None,
) -> tuple[Array, Array]:
    """`decay_scan`, causal, of tokens that follow `state` `[B, H, M, D]`; and the state after them.

    The output is in float32 or wider.
    """
    dtype = wide(q, k, v, log_decay)
    if v.shape[1] == 1:
        q = q.astype(dtype) * scale
        if write is not None:
            k = k * write[..., None]
        return recurrence_step(state, q, k, v, log_decay, valid=valid)
    tokens = _Tokens(q, k, v, log_decay, valid, write)
    state, out = _decay_scan(state, tokens, True, scale, dtype, chunk, target)
    return out, state


class _Tokens(NamedTuple):
    """What `decay_scan` takes for each token, and what is added to its output."""

    q: Array
    k: Array
    v: Array
    log_decay: Array
    valid: Array | None
    write: Array | None
    add: Array | None = None


def _decay_scan(
    state: Array | None,
    tokens: _Tokens,
    causal: bool,
    scale: float,
    out: DTypeLike,
    chunk: int,
    target: Target | None,
) -> tuple[Array, Array]:
    """The state after the tokens, and the output in the dtype `out`."""
    length = tokens.v.shape[1]
    chunk = min(chunk, length)
    # One chunk with no state before it reads no state, and needs none behind it.
    alone = state is None and length == chunk
    if state is None:
        batch, _, heads, width = tokens.k.shape
        state = jnp.zeros((batch, heads, width, tokens.v.shape[3]), wide(*tokens[:4]))
    # Little is computed for a token: on a CPU doing so twice pays for long sequences alone.
    group = group_of(length, target, on_cpu=4 * ON_CPU)
    if not (causal or alone):
        right = functools.partial(_from_the_right, scale=scale, chunk=chunk)
        _, add = grouped(right, state, tokens, chunk=chunk, group=group, reverse=True)
        tokens = tokens._replace(add=add)
    left = functools.partial(
        _from_the_left, causal=causal, alone=alone, scale=scale, out=out, chunk=chunk
    )
    return grouped(left, state, tokens, chunk=chunk, group=group)


class _Chunks(NamedTuple):
    """Tokens in chunks, in float32 or wider: q, k, v `[T, B, H, C, M or D]`, others `[T, B, H, C]`.

    Attributes:
      upto, before: log-decays of the tokens of a chunk up to each token, and before it.
      full: log-decays of the chunk, `[T, B, H, 1]`.
    """

    q: Array
    k: Array
    v: Array
    upto: Array
    before: Array
    full: Array


def _chunks(tokens: _Tokens, scale: float, chunk: int) -> _Chunks:
    dtype = wide(*tokens[:4])
    k = tokens.k.astype(dtype)
    decay = tokens.log_decay.astype(dtype)
    if tokens.write is not None:
        k = k * tokens.write[..., None]
    if tokens.valid is not None:
        k = jnp.where(tokens.valid[:, :, None, None], k, 0)
        decay = jnp.where(tokens.valid[:, :, None], decay, 0)
    upto, before = running(chunked(decay, chunk))
    return _Chunks(
        q=chunked(tokens.q.astype(dtype) * scale, chunk),
        k=chunked(k, chunk),
        v=chunked(tokens.v.astype(dtype), chunk),
        upto=upto,
        before=before,
        full=upto[..., -1:],
    )


def _from_the_left(
    state: Array,
    tokens: _Tokens,
    *,
    causal: bool,
    alone: bool,
    scale: float,
    out: DTypeLike,
    chunk: int,
) -> tuple[Array, Array]:
    """What a group reads of its chunks and of the chunks before them, and the state after it."""
    q, k, v, upto, before, full = _chunks(tokens, scale, chunk)
    past = jnp.tril(jnp.ones((chunk, chunk), bool))
    between = upto[..., :, None] - upto[..., None, :]
    if causal:
        between = jnp.where(past, between, -jnp.inf)
    else:
        between = jnp.where(past, between, before[..., None, :] - before[..., :, None])
    within = jnp.einsum("tbhim,tbhjm->tbhij", q, k) * jnp.exp(between)
    y = jnp.einsum("tbhij,tbhjd->tbhid", within, v)
    if not alone:
        # States before each chunk: a write decays to the end of its chunk, then whole chunks.
        writes = jnp.einsum("tbhjm,tbhjd->tbhmd", k * jnp.exp(full - upto)[..., None], v)
        states, state = carried(jnp.exp(full)[..., None], writes, state)
        y = y + jnp.einsum("tbhim,tbhmd->tbhid", q * jnp.exp(upto)[..., None], states)
    y = joined(y, tokens.v.shape[1])
    if tokens.add is not None:
        y = y + tokens.add
    return state, y.astype(out)


def _from_the_right(
    state: Array, tokens: _Tokens, *, scale: float, chunk: int
) -> tuple[Array, Array]:
    """What a group reads of the chunks behind each of its chunks, and the state before it."""
    q, k, v, _, before, full = _chunks(tokens, scale, chunk)
    writes = jnp.einsum("tbhjm,tbhjd->tbhmd", k * jnp.exp(before)[..., None], v)
    states, state = carried(jnp.exp(full)[..., None], writes, state, reverse=True)
    y = jnp.einsum("tbhim,tbhmd->tbhid", q * jnp.exp(full - before)[..., None], states)
    return state, joined(y, tokens.v.shape[1])


def decay_scan_work(length: int, width: int, chunk: int = 64) -> tuple[float, float]:
    """FLOPs of one head both ways, and how many numbers it holds.

    M and D are `width`. Exponentials are not counted. Held are the chunks of one group, and what
    each token reads of those behind it. (On a CPU short sequences are a single group.)
    """
    size = min(chunk, length)
    chunks = -(-length // size)
    several = chunks > 1  # with one chunk there are no states
    scores = chunks * size**2
    states = several * 2 * chunks * width**2
    flops = scores * (4 * width + 6)
    flops += states * (4 * size + 3)
    flops += chunks * size * (1 + 4 * width * several)
    numbers = 2 * scores + 2 * states + 3 * length * width
    return flops, min(1, GROUP / length) * numbers + length * width
