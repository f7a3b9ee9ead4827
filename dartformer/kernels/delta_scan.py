"""The gated delta rule in chunks.

A recurrence that corrects what its state holds at a key, where others add to it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.linear_scan import (
    GROUP,
    chunk_of,
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
@functools.partial(jax.jit, static_argnames=("causal", "unit", "chunk", "target"))
def delta_scan(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    causal: bool = True,
    valid: Array | None = None,
    unit: bool = False,
    chunk: int = 32,
    target: Target | None = None,
) -> Array:
    """`recurrence` with `beta`: S_t = a_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T.

    The output is y_t = S_t^T q_t. Within a chunk the corrections u of all tokens solve a triangular
    system (Yang et al. 2024, arXiv:2406.06484, section 3; with decays arXiv:2412.06464, section 3):
    u_i + beta_i sum_{j<i} exp(decays between) (k_i . k_j) u_j = beta_i (v_i - exp(decays up to i)
    S^T k_i), where S is the state before the chunk. Its inverse does not need the state, and is
    computed for all chunks of a group at once.

    Args:
      q, k: `[B, N, H, M]`; the norm of k at most 1, or the state may grow without bound. They and v
        enter in their own dtype, and are computed with in float32 or wider.
      v: `[B, N, H, D]`.
      log_decay: `[B, N, H]`, at most zero; of token t it is what the state decays by before t is
        read or written. Strong ones cost digits, as in `decay_scan`.
      beta: `[B, N, H]`, 0 to 1 (or 2).
      causal: one scan; otherwise a second from the right, in which token t is read before it is
        written.
      valid: `[B, N]` bool; the others neither write to the state nor let it decay. None if all are.
      unit: read and write `unit_vector(q)` / sqrt(M) and `unit_vector(k)` in place of q and k.
      chunk: tokens handled together, a power of two.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]` in the dtype of v. Time O(N (chunk^2 + chunk (M + D) + M D)), N / chunk steps
      one after another. Memory for a gradient O(N (M + D)) in the dtypes of the arguments, a state
      for each group of tokens, and the chunks of one group (`grouped`).
    """
    tokens = _Tokens(q, k, v, log_decay, beta, valid)
    return _delta_scan(None, tokens, causal, unit, chunk, target)[1].astype(v.dtype)


@functools.partial(jax.jit, static_argnames=("unit", "chunk", "target"))
def delta_scan_from(
    state: Array,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    valid: Array | None = None,
    unit: bool = False,
    chunk: int = 32,
    target: Target | None = None,
) -> tuple[Array, Array]:
    """`delta_scan`, causal, of tokens that follow `state` `[B, H, M, D]`; and the state after them.

    The output is in float32 or wider.
    """
    if v.shape[1] == 1:
        if unit:
            q, k = _unit_pair(q, k)
        return recurrence_step(state, q, k, v, log_decay, beta=beta, valid=valid)
    tokens = _Tokens(q, k, v, log_decay, beta, valid)
    state, out = _delta_scan(state, tokens, True, unit, chunk, target)
    return out, state


def unit_vector(x: Array) -> Array:
    """x / sqrt(|x|^2 + 1e-6) over the last axis, in float32 or wider."""
    x = x.astype(wide(x))
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _unit_pair(q: Array, k: Array) -> tuple[Array, Array]:
    return unit_vector(q) * q.shape[-1] ** -0.5, unit_vector(k)


class _Tokens(NamedTuple):
    """What `delta_scan` takes for each token, and what is added to its output."""

    q: Array
    k: Array
    v: Array
    log_decay: Array
    beta: Array
    valid: Array | None
    add: Array | None = None


def _delta_scan(
    state: Array | None,
    tokens: _Tokens,
    causal: bool,
    unit: bool,
    chunk: int,
    target: Target | None,
) -> tuple[Array, Array]:
    """The state after the tokens, and the output; it is in the dtype of v if there was no state."""
    batch, length, heads, width = tokens.k.shape
    chunk = chunk_of(length, chunk)
    dtype = wide(*tokens[:4])
    out = dtype
    # One chunk with no state before it reads no state, and needs none behind it.
    alone = state is None and length <= chunk
    if state is None:
        state = jnp.zeros((batch, heads, width, tokens.v.shape[3]), dtype)
        out = tokens.v.dtype
    run = functools.partial(_group, alone=alone, unit=unit, chunk=chunk)
    group = group_of(length, target)
    if not causal:
        right = functools.partial(run, right=True, out=dtype)
        _, add = grouped(right, state, tokens, chunk=chunk, group=group, reverse=True)
        tokens = tokens._replace(add=add)
    left = functools.partial(run, right=False, out=out)
    return grouped(left, state, tokens, chunk=chunk, group=group)


def delta_scan_work(length: int, width: int, chunk: int = 32) -> tuple[float, float]:
    """FLOPs of one head both ways, and how many numbers it holds.

    M and D are `width`. Exponentials are not counted. Held are the chunks of one group, and what
    each token reads of those behind it. (On a CPU short sequences are a single group.)
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
    # One direction after the other.
    numbers = 2 * scores + states + 3 * length * width
    return flops, min(1, GROUP / length) * numbers + length * width


class _Chunks(NamedTuple):
    """Tokens in chunks, in float32 or wider: q, k, v `[T, B, H, C, M or D]`, others `[T, B, H, C]`.

    Attributes:
      log_decay: what the state decays by before the token.
    """

    q: Array
    k: Array
    v: Array
    log_decay: Array
    beta: Array


def _chunks(tokens: _Tokens, unit: bool, chunk: int) -> _Chunks:
    q, k = tokens.q, tokens.k
    if unit:
        q, k = _unit_pair(q, k)
    decay, beta = tokens.log_decay, tokens.beta
    if tokens.valid is not None:
        # Invalid tokens do nothing to a state.
        k = jnp.where(tokens.valid[:, :, None, None], k, 0)
        decay = jnp.where(tokens.valid[:, :, None], decay, 0)
        beta = jnp.where(tokens.valid[:, :, None], beta, 0)
    dtype = wide(*tokens[:4])
    parts = []
    for x in (q, k, tokens.v, decay, beta):
        parts.append(chunked(x.astype(dtype), chunk))
    return _Chunks(*parts)


def _group(
    state: Array,
    tokens: _Tokens,
    *,
    right: bool,
    alone: bool,
    unit: bool,
    out: jnp.dtype,
    chunk: int,
) -> tuple[Array, Array]:
    """The state after a group of tokens, and what they read.

    From the right each token reads the later ones, without itself. If `alone` the group is one
    chunk, and there is no state.
    """
    q, k, v, decays, beta = _chunks(tokens, unit, chunk)
    upto, before = running(decays)
    full = upto[..., -1:]
    earlier = jnp.tril(jnp.ones((chunk, chunk), bool), -1)  # j < i
    if right:
        # Decays from the end of the chunk to a token, and from a token to the beginning.
        reach, rest = full - before, before
        between = before[..., None, :] - before[..., :, None]
        reads = writes = earlier.T
    else:
        reach, rest = upto, full - upto
        between = upto[..., :, None] - upto[..., None, :]
        writes, reads = earlier, jnp.tril(jnp.ones((chunk, chunk), bool))
    # Masked before exp: a decay from the future is above 1, and may overflow.
    decay = jnp.exp(jnp.where(reads, between, -jnp.inf))  # [T, B, H, C, C]
    # The system (I + L) u = beta (v - ...), L strictly triangular.
    products = beta[..., None] * jnp.einsum("tbhim,tbhjm->tbhij", k, k) * decay
    system = jnp.where(writes, products, 0)
    if right:
        inverse = unit_triangular_inverse(system.swapaxes(3, 4)).swapaxes(3, 4)
    else:
        inverse = unit_triangular_inverse(system)
    u = jnp.einsum("tbhij,tbhjd->tbhid", inverse, beta[..., None] * v)
    within = jnp.einsum("tbhim,tbhjm->tbhij", q, k) * decay
    far = jnp.zeros((), v.dtype)
    if not alone:
        # What the state before the chunk takes from u; the scan brings the state.
        weighted = (beta * jnp.exp(reach))[..., None] * k
        forgets = jnp.einsum("tbhij,tbhjm->tbhim", inverse, weighted)
        parts = (u, forgets, k * jnp.exp(rest)[..., None], jnp.exp(full)[..., None])
        state, (states, u) = jax.lax.scan(_next_chunk, state, parts, reverse=right)
        far = jnp.einsum("tbhim,tbhmd->tbhid", q * jnp.exp(reach)[..., None], states)
    near = jnp.einsum("tbhij,tbhjd->tbhid", within, u)
    y = joined(near + far, tokens.v.shape[1])
    if tokens.add is not None:
        y = y + tokens.add
    return state, y.astype(out)


def _next_chunk(
    state: Array, parts: tuple[Array, Array, Array, Array]
) -> tuple[Array, tuple[Array, Array]]:
    """The state after a chunk; and that before it, with the corrections that it leaves."""
    u, forgets, writes, decay = parts
    u = u - jnp.einsum("bhim,bhmd->bhid", forgets, state)
    update = jnp.einsum("bhjm,bhjd->bhmd", writes, u)
    return decay * state + update, (state, u)


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
