"""`gated_scan` on TPUs: a Pallas kernel that keeps the state in the chip's fast memory.

This project has not run it on a TPU. Its outputs and derivatives are tested in Pallas' interpreter
on a CPU, and the TPU's own compiler compiles it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from dartformer.kernels.chunk_passes import (
    ROW,
    Blocks,
    Pass,
    Ref,
    Sizes,
    as_column,
    blocks,
    levels,
    neighbours,
    nn,
    nt,
    of_vectors,
    places,
    read,
    states_shape,
    sums,
    tn,
    vectors,
)
from dartformer.kernels.chunk_passes import refusal as common_refusal
from dartformer.kernels.fused import Function, fused
from dartformer.kernels.gated_scan import gated_scan
from dartformer.kernels.target import Target

CHUNK = 128
"""Tokens handled together, a power of two."""


def refusal(dtype: DTypeLike, heads: int, width: int, depth: int, target: Target) -> str:
    """Why the kernel does not work on `target`, or "" where it does: see `chunk_passes.refusal`.

    Its rows are half as long as those of others, since it keeps the factors of all levels.
    """
    return common_refusal(dtype, heads, width, depth, target, row=ROW)


def gated_recurrence(
    q: Array,
    k: Array,
    v: Array,
    logits: Array,
    *,
    normaliser: float,
    causal: bool = True,
    valid: Array | None = None,
    scale: float = 1.0,
    target: Target | None = None,
    interpret: bool = False,
) -> Array:
    """`gated_scan` of gates, with its arguments and its result, by the kernel.

    The state goes from chunk to chunk without leaving the chip's fast memory, as in
    `decay_recurrence`. A chunk is halved down to single tokens, and the halves of each size read
    their neighbours in one product of C x C, of which their own places are taken. Derivatives after
    the first, and those of forward mode, are those of `gated_scan`, which `target` is for.

    Source: Yang et al. 2024, arXiv:2312.06635, section 4.3, for the chunks and the states between
    them; the halves within them, and all gradients, are derived here.

    Args:
      logits: of gates, `[B, N, H, M]`: the kernel computes the log-decays itself, and what is
        computed of their gradients reads one array in place of two.
      normaliser: the log-decays are log_sigmoid(logits) / normaliser.
      interpret: run in Pallas' interpreter, on any device.

    Returns:
      `[B, N, H, D]`. Sums and states are in float32; products have JAX's default precision, as
      those of `gated_scan`. Time O(N (C log C + M) D) with C = `CHUNK`, memory O(N (M + D)) and,
      both ways or for a gradient, a state for each chunk.
    """
    common = jnp.result_type(q, k, v)
    write = jnp.full(q.shape[:2], scale, jnp.float32)
    if valid is not None:
        write = jnp.where(valid, write, 0)
    run = _differentiable(CHUNK, float(normaliser), causal, jnp.dtype(v.dtype), target, interpret)
    arrays = (q.astype(common), k.astype(common), v.astype(common))
    return run(*arrays, logits.astype(jnp.float32), write)


# Kept, so that equal calls are the same function to JAX, which traces it only once.
@functools.cache
def _differentiable(
    chunk: int,
    normaliser: float,
    causal: bool,
    dtype: jnp.dtype,
    target: Target | None,
    interpret: bool,
) -> Function:
    """Of q, k, v, logits, and factors of k `[B, N]`, which have no derivative.

    Where a factor is zero, the token does not let the state decay.
    """

    def sizes_of(arrays: Sequence[Array]) -> Sizes:
        return Sizes.of(arrays[0], arrays[2], chunk, causal, interpret)

    @jax.custom_vjp
    def fast(*arrays: Array) -> Array:
        return forward(*arrays)[0]

    def forward(*arrays: Array) -> tuple[Array, tuple[Sequence[Array], Sequence[Array]]]:
        sizes = sizes_of(arrays)
        behind = _states(sizes, normaliser, arrays)
        return _output(sizes, normaliser, arrays, behind, dtype), (arrays, behind)

    def backward(
        kept: tuple[Sequence[Array], Sequence[Array]], cotangent: Array
    ) -> tuple[Array, ...]:
        arrays, behind = kept
        gradients = _gradients(sizes_of(arrays), normaliser, arrays, behind, cotangent)
        return *gradients, jnp.zeros_like(arrays[-1])

    fast.defvjp(forward, backward)

    def definition(q: Array, k: Array, v: Array, logits: Array, write: Array) -> Array:
        log_decay = jax.nn.log_sigmoid(logits) / normaliser
        k = k.astype(jnp.float32) * write[:, :, None, None]
        valid = write != 0
        out = gated_scan(q, k, v, log_decay, causal=causal, valid=valid, target=target)
        return out.astype(dtype)

    return fused(fast, definition, inputs=4)


# The passes. S is the state that the tokens before a chunk leave for it, R the one of those behind
# it, and P and T are the cotangents of what it leaves for S and R of other chunks. Under jit the
# forward pass is traced once: XLA merges two calls of a kernel, such as that of the output and that
# of its gradient, only where all is equal, down to the places in these lines.


@functools.partial(jax.jit, static_argnums=(0, 1))
def _states(sizes: Sizes, normaliser: float, arrays: Sequence[Array]) -> list[Array]:
    """R of each chunk; nothing if causal, as no token behind a chunk matters."""
    if sizes.causal:
        return []
    back = blocks(sizes, reverse=True)
    _, *operands = zip(_operands(sizes, arrays), _kinds(back), strict=True)
    return Pass(
        "gated_states",
        functools.partial(_states_body, normaliser),
        operands=operands,
        results=[(states_shape(sizes), back.states)],
        states=1,
        products=1,
        exponentials=2 * sizes.width,
    ).run(sizes)


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _output(
    sizes: Sizes,
    normaliser: float,
    arrays: Sequence[Array],
    behind: Sequence[Array],
    dtype: jnp.dtype,
) -> Array:
    forth = blocks(sizes, reverse=False)
    operands = [*zip(_operands(sizes, arrays), _kinds(forth), strict=True)]
    v = operands[2][0]
    (y,) = Pass(
        "gated_output",
        functools.partial(_output_body, normaliser),
        operands=operands + [(state, forth.states) for state in behind],
        results=[(jax.ShapeDtypeStruct(v.shape, dtype), forth.depth)],
        states=1,
        products=levels(sizes.chunk) + 3 + len(behind),
        exponentials=(levels(sizes.chunk) + 3) * sizes.width,
    ).run(sizes)
    return of_vectors(sizes, y, sizes.depth)


def _gradients(
    sizes: Sizes,
    normaliser: float,
    arrays: Sequence[Array],
    behind: Sequence[Array],
    cotangent: Array,
) -> tuple[Array, ...]:
    """Of q, k, v and logits."""
    inputs = _operands(sizes, arrays)
    dy = vectors(sizes, cotangent)
    back, forth = blocks(sizes, reverse=True), blocks(sizes, reverse=False)
    left = Pass(
        "gated_cotangents",
        functools.partial(_cotangents_body, normaliser),
        operands=[
            (inputs[0], back.width),
            *[(inputs[3], back.width), (inputs[4], back.shared)],
            (dy, back.depth),
        ],
        results=[(states_shape(sizes), back.states)],
        states=1,
        products=1,
        exponentials=3 * sizes.width,
    ).run(sizes)
    operands = [*zip([*inputs, dy], [*_kinds(forth), forth.depth], strict=True)]
    results = []
    for x, block in zip(inputs[:4], _kinds(forth)[:4], strict=True):
        results.append((jax.ShapeDtypeStruct(x.shape, x.dtype), block))
    both = 2 - sizes.causal
    dq, dk, dv, dlogits = Pass(
        "gated_gradients",
        functools.partial(_gradients_body, normaliser),
        operands=operands + [(state, forth.states) for state in (*left, *behind)],
        results=results,
        states=both,
        products=3 * levels(sizes.chunk) + 2 + 4 * both,
        exponentials=(levels(sizes.chunk) + 3) * sizes.width,
        scratch=[(levels(sizes.chunk) + 2, sizes.chunk, sizes.group * sizes.width)],
    ).run(sizes)
    return (
        of_vectors(sizes, dq, sizes.width),
        of_vectors(sizes, dk, sizes.width),
        of_vectors(sizes, dv, sizes.depth),
        of_vectors(sizes, dlogits, sizes.width),
    )


def _operands(sizes: Sizes, arrays: Sequence[Array]) -> list[Array]:
    q, k, v, logits, write = arrays
    short = sizes.chunks * sizes.chunk - sizes.length
    wide = [vectors(sizes, x) for x in (q, k, v, logits)]
    return [*wide, jnp.pad(write, ((0, 0), (0, short)))[:, None]]


def _kinds(found: Blocks) -> list[pl.BlockSpec]:
    """The blocks of q, k, v, logits and factors."""
    return [found.width, found.width, found.depth, found.width, found.shared]


# What a pass computes of one chunk. States are transposed, `[D, M]` in a head.


def _states_body(
    normaliser: float, sizes: Sizes, k: Ref, v: Ref, logits: Ref, write: Ref, out: Ref, r: Ref
) -> None:
    """R of each chunk."""
    out[...] = r[...]
    times = _Times.of(_decays(logits, write, normaliser))
    _leave(sizes, times, r, read(k) * as_column(write[...]) * times.first, v)


def _output_body(
    normaliser: float, sizes: Sizes, q: Ref, k: Ref, v: Ref, logits: Ref, write: Ref, *rest: Ref
) -> None:
    *behind, out, s = rest
    times = _Times.of(_decays(logits, write, normaliser))
    plain, keys = read(q), read(k) * as_column(write[...])
    queries = plain * times.own
    first, last = queries * times.first, queries * times.last
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        values = read(v, deep)
        scores = jnp.zeros((sizes.chunk, sizes.chunk), jnp.float32)
        for level, border in enumerate(times.borders):
            near = border[:, wide]
            products = nt(queries[:, wide] * near, keys[:, wide] * near)
            scores = jnp.where(_read(sizes, level), products, scores)
        # A token reads itself without a decay.
        y = sums(plain[:, wide] * keys[:, wide]) * values
        y = y + nn(scores, values) + nt(first[:, wide], s[:, wide])
        for r in behind:
            y = y + nt(last[:, wide], r[:, wide])
        out[:, deep] = y.astype(out.dtype)
    _leave(sizes, times, s, keys * times.last, v)


def _cotangents_body(
    normaliser: float, sizes: Sizes, q: Ref, logits: Ref, write: Ref, dy: Ref, out: Ref, p: Ref
) -> None:
    """P of each chunk."""
    out[...] = p[...]
    times = _Times.of(_decays(logits, write, normaliser))
    _leave(sizes, times, p, read(q) * times.own * times.first, dy)


def _gradients_body(
    normaliser: float,
    sizes: Sizes,
    q: Ref,
    k: Ref,
    v: Ref,
    logits: Ref,
    write: Ref,
    dy: Ref,
    *rest: Ref,
) -> None:
    both = 2 - sizes.causal
    states, (dq, dk, dv, dlogits) = rest[:both], rest[both : both + 4]
    *before, slopes = rest[both + 4 :]
    count = levels(sizes.chunk)
    times = _Times.of(_decays(logits, write, normaliser))
    factors = as_column(write[...])
    plain, keys = read(q), read(k) * factors
    queries = plain * times.own
    ways = [_Way(times.first, times.last, before[0], states[0], count, count + 1)]
    if not sizes.causal:
        ways.append(_Way(times.last, times.first, states[1], before[1], count + 1, count))
    slopes[count:] = jnp.zeros_like(slopes[count:])
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        chunk = _Chunk(queries[:, wide], keys[:, wide], read(v, deep), read(dy, deep))
        found = _within(sizes, chunk, times, slopes, wide)
        for way in ways:
            found = found.plus(_across(chunk, way, slopes, wide))
        # A token reads itself without a decay.
        itself = sums(chunk.dy * chunk.v)
        alone = plain[:, wide]
        dq[:, wide] = (found.q * times.own[:, wide] + itself * chunk.k).astype(dq.dtype)
        dk[:, wide] = ((found.k + itself * alone) * factors).astype(dk.dtype)
        dv[:, deep] = (found.v + sums(alone * chunk.k) * chunk.dy).astype(dv.dtype)
        dlogits[:, wide] = found.q * chunk.q
    total = dlogits[...] + _pulled_back(slopes, count)
    for way in ways:
        total = total + times.full * sums(way.state[...] * way.left[...], 0)
    # The derivative of log_sigmoid(x) is sigmoid(-x).
    slope = jax.nn.sigmoid(-logits[...]) / normaliser
    dlogits[...] = jnp.where(factors == 0, 0, total * slope)
    _leave(sizes, times, before[0], keys * times.last, v)
    if not sizes.causal:
        _leave(sizes, times, before[1], queries * times.last, dy)


def _decays(logits: Ref, write: Ref, normaliser: float) -> Array:
    """Log-decays, zero where the factor of k is."""
    x = logits[...]
    log_sigmoid = jnp.minimum(x, 0) - jnp.log1p(jnp.exp(-jnp.abs(x)))
    return jnp.where(as_column(write[...]) == 0, 0, log_sigmoid / normaliser)


def _leave(sizes: Sizes, times: "_Times", state: Ref, x: Array, y: Ref) -> None:
    """Decay a state by a chunk, and write x `[C, H/G M]` and y `[C, H/G D]` to it."""
    state[...] = times.full * state[...]
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        state[:, wide] += tn(read(y, deep), x[:, wide])


class _Times(NamedTuple):
    """Decays of a chunk in the channels of a group's heads, `[C, H/G M]`. None is above 1.

    Attributes:
      own: by each token.
      borders: for each level, from a token to the border with the half beside its own, itself left
        out. The second of two halves reads with it and `own`, and the first writes with it; both
        ways the first reads so as well, and the second writes.
      first, last: from the beginning of the chunk to each token, and from it to the end, both
        without it.
      full: of the chunk, `[1, H/G M]`.
    """

    own: Array
    borders: list[Array]
    first: Array
    last: Array
    full: Array

    @classmethod
    def of(cls, decay: Array) -> "_Times":
        """Of log-decays. Each sum is one of neighbours, and none a difference of two others."""
        total = decay
        before = after = jnp.zeros_like(decay)
        borders = []
        for level in range(levels(len(decay))):
            second = _second(decay.shape, level)
            borders.append(jnp.exp(jnp.where(second, before, after)))
            other = _other_half(total, level)
            before = before + jnp.where(second, other, 0)
            after = after + jnp.where(second, 0, other)
            total = total + other
        return cls(jnp.exp(decay), borders, jnp.exp(before), jnp.exp(after), jnp.exp(total[:1]))


def _pulled_back(slopes: Ref, count: int) -> Array:
    """The gradient of log-decays by the sums of `_Times`, whose steps it takes from the last one.

    Args:
      slopes: gradients of the exponents of each level, and then of `first` and `last`.
      count: of levels.
    """
    before, after = slopes[count], slopes[count + 1]
    total = jnp.zeros_like(before)
    for level in reversed(range(count)):
        second = _second(before.shape, level)
        other = jnp.where(second, before, after) + total
        total = total + _other_half(other, level)
        before = before + jnp.where(second, slopes[level], 0)
        after = after + jnp.where(second, 0, slopes[level])
    return total


def _second(shape: tuple[int, ...], level: int) -> Array:
    """Which tokens are in the second of two halves."""
    rows = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return (rows >> level) & 1 == 1


def _other_half(x: Array, level: int) -> Array:
    """For each token, the row of the one at its place in the half beside its own."""
    size, half = len(x), 1 << level
    return jnp.where(_second(x.shape, level), pltpu.roll(x, half, 0), pltpu.roll(x, size - half, 0))


def _read(sizes: Sizes, level: int) -> Array:
    """Where a query reads a key of the half beside its own, `[C, C]`."""
    found = neighbours(sizes.chunk, level)
    if sizes.causal:
        rows, columns = places(sizes.chunk)
        found = found & (rows > columns)
    return found


class _Chunk(NamedTuple):
    """One head in one chunk, float32: q after its own decay, k, v, and the output's cotangent."""

    q: Array
    k: Array
    v: Array
    dy: Array


class _Found(NamedTuple):
    """Gradients of one head in one chunk, `[C, M or D]`."""

    q: Array
    k: Array
    v: Array

    def plus(self, other: "_Found") -> "_Found":
        return _Found(*(a + b for a, b in zip(self, other, strict=True)))


class _Way(NamedTuple):
    """Between a chunk and the states before it, or those behind it.

    Attributes:
      read, write: factors of q and k, `[C, H/G M]`.
      state: that the chunk reads.
      left: the cotangent of what it leaves for others.
      reads, writes: where the gradients of both exponents are in `_pulled_back`'s slopes.
    """

    read: Array
    write: Array
    state: Ref
    left: Ref
    reads: int
    writes: int


def _within(sizes: Sizes, chunk: _Chunk, times: _Times, slopes: Ref, wide: slice) -> _Found:
    """By the chunk's own tokens."""
    found = _Found(jnp.zeros_like(chunk.q), jnp.zeros_like(chunk.k), jnp.zeros_like(chunk.v))
    reads = nt(chunk.dy, chunk.v)
    scores = jnp.zeros_like(reads)
    for level, border in enumerate(times.borders):
        place, near = _read(sizes, level), border[:, wide]
        queries, keys = chunk.q * near, chunk.k * near
        scores = jnp.where(place, nt(queries, keys), scores)
        taken = jnp.where(place, reads, 0)
        to_queries, to_keys = nn(taken, keys), tn(taken, queries)
        slopes[level, :, wide] = to_queries * queries + to_keys * keys
        found = found._replace(q=found.q + to_queries * near, k=found.k + to_keys * near)
    return found._replace(v=tn(scores, chunk.dy))


def _across(chunk: _Chunk, way: _Way, slopes: Ref, wide: slice) -> _Found:
    """By the state that it reads, and by the cotangent of what it leaves for others."""
    state, left = way.state[:, wide], way.left[:, wide]
    read, write = way.read[:, wide], way.write[:, wide]
    to_queries, to_keys = nn(chunk.dy, state) * read, nn(chunk.v, left) * write
    slopes[way.reads, :, wide] += to_queries * chunk.q
    slopes[way.writes, :, wide] += to_keys * chunk.k
    return _Found(to_queries, to_keys, nt(chunk.k * write, left))
