"""`decay_scan` on TPUs: a Pallas kernel that keeps the state in the chip's fast memory.

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
from jax.typing import DTypeLike

from dartformer.kernels.chunk_passes import (
    Blocks,
    Pass,
    Ref,
    Sizes,
    as_column,
    as_row,
    blocks,
    nn,
    nt,
    numbers,
    of_numbers,
    of_vectors,
    places,
    read,
    states_shape,
    summed,
    sums,
    tn,
    vectors,
)
from dartformer.kernels.decay_scan import decay_scan
from dartformer.kernels.fused import Function, fused
from dartformer.kernels.target import Target

CHUNK = 128
"""Tokens handled together."""


def decay_recurrence(
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
    interpret: bool = False,
) -> Array:
    """`decay_scan`, with its arguments and its result, by the kernel.

    The state goes from chunk to chunk without leaving the chip's fast memory. Both ways, one pass
    from the last chunk to the first leaves a state for each chunk, and one from the first to the
    last computes the output. A gradient is two such passes more.
    Derivatives after the first, and those of forward mode, are those of `decay_scan`, which `chunk`
    and `target` are for.

    Source: Dao & Gu 2024, arXiv:2405.21060, section 6, for the product within a chunk and the
    states between chunks; their gradients are derived here.

    Args:
      interpret: run in Pallas' interpreter, on any device.

    Returns:
      `[B, N, H, D]`. Sums and states are in float32; products have JAX's default precision, as
      those of `decay_scan`. Time O(N (C + M) D) with C = `CHUNK`, memory
      O(N (M + D)) and, both ways or for a gradient, a state for each chunk.
    """
    out = dtype or v.dtype
    common = jnp.result_type(q, k, v)
    log_decay = log_decay.astype(jnp.float32)
    if write is None:
        write = jnp.ones_like(log_decay)
    write = write.astype(jnp.float32) * scale
    if valid is not None:
        log_decay = jnp.where(valid[:, :, None], log_decay, 0)
        write = jnp.where(valid[:, :, None], write, 0)
    run = _differentiable(causal, jnp.dtype(out), chunk, target, interpret)
    return run(q.astype(common), k.astype(common), v.astype(common), log_decay, write)


# Kept, so that equal calls are the same function to JAX, which traces it only once.
@functools.cache
def _differentiable(
    causal: bool, dtype: jnp.dtype, chunk: int, target: Target | None, interpret: bool
) -> Function:
    """Of q, k, v, log-decays and factors of k."""

    def sizes_of(arrays: Sequence[Array]) -> Sizes:
        return Sizes.of(arrays[0], arrays[2], CHUNK, causal, interpret)

    @jax.custom_vjp
    def fast(*arrays: Array) -> Array:
        return forward(*arrays)[0]

    def forward(*arrays: Array) -> tuple[Array, tuple[Sequence[Array], Sequence[Array]]]:
        sizes = sizes_of(arrays)
        behind = _states(sizes, arrays)
        return _output(sizes, arrays, behind, dtype), (arrays, behind)

    def backward(
        kept: tuple[Sequence[Array], Sequence[Array]], cotangent: Array
    ) -> tuple[Array, ...]:
        arrays, behind = kept
        return _gradients(sizes_of(arrays), arrays, behind, cotangent)

    fast.defvjp(forward, backward)

    def definition(q: Array, k: Array, v: Array, log_decay: Array, write: Array) -> Array:
        return decay_scan(
            q,
            k,
            v,
            log_decay,
            causal=causal,
            write=write,
            dtype=dtype,
            chunk=chunk,
            target=target,
        )

    return fused(fast, definition, inputs=5)


# The passes. S is the state that the tokens before a chunk leave for it, R the one of those behind
# it, and P and T are the cotangents of what it leaves for S and R of other chunks.


# Under jit the forward pass is traced once: XLA merges two calls of a kernel, such as that of the
# output and that of its gradient, only where all is equal, down to the places in these lines.


@functools.partial(jax.jit, static_argnums=0)
def _states(sizes: Sizes, arrays: Sequence[Array]) -> list[Array]:
    """R of each chunk; nothing if causal, as no token behind a chunk matters."""
    if sizes.causal:
        return []
    back = blocks(sizes, reverse=True)
    _, *operands = zip(_operands(sizes, arrays), _kinds(back), strict=True)
    return Pass(
        "decay_states",
        _states_body,
        operands=operands,
        results=[(states_shape(sizes), back.states)],
        states=1,
        products=1,
        exponentials=1,
    ).run(sizes)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _output(
    sizes: Sizes, arrays: Sequence[Array], behind: Sequence[Array], dtype: jnp.dtype
) -> Array:
    forth = blocks(sizes, reverse=False)
    operands = [*zip(_operands(sizes, arrays), _kinds(forth), strict=True)]
    v = operands[2][0]
    (y,) = Pass(
        "decay_output",
        _output_body,
        operands=operands + [(state, forth.states) for state in behind],
        results=[(jax.ShapeDtypeStruct(v.shape, dtype), forth.depth)],
        states=1,
        products=4 + len(behind),
        exponentials=sizes.chunk,
    ).run(sizes)
    return of_vectors(sizes, y, sizes.depth)


def _gradients(
    sizes: Sizes, arrays: Sequence[Array], behind: Sequence[Array], cotangent: Array
) -> tuple[Array, ...]:
    """Of q, k, v, log-decays and factors."""
    inputs = _operands(sizes, arrays)
    dy = vectors(sizes, cotangent)
    back, forth = blocks(sizes, reverse=True), blocks(sizes, reverse=False)
    left = Pass(
        "decay_cotangents",
        _cotangents_body,
        operands=[(inputs[0], back.width), (inputs[3], back.numbers), (dy, back.depth)],
        results=[(states_shape(sizes), back.states)],
        states=1,
        products=1,
        exponentials=1,
    ).run(sizes)
    operands = [*zip([*inputs, dy], [*_kinds(forth), forth.depth], strict=True)]
    results = []
    for x, block in zip(inputs, _kinds(forth), strict=True):
        results.append((jax.ShapeDtypeStruct(x.shape, x.dtype), block))
    both = 2 - sizes.causal
    dq, dk, dv, ddecay, dwrite = Pass(
        "decay_gradients",
        _gradients_body,
        operands=operands + [(state, forth.states) for state in (*left, *behind)],
        results=results,
        states=both,
        products=5 + 4 * both,
        exponentials=sizes.chunk,
    ).run(sizes)
    return (
        of_vectors(sizes, dq, sizes.width),
        of_vectors(sizes, dk, sizes.width),
        of_vectors(sizes, dv, sizes.depth),
        of_numbers(sizes, ddecay),
        of_numbers(sizes, dwrite),
    )


def _operands(sizes: Sizes, arrays: Sequence[Array]) -> list[Array]:
    q, k, v, decay, write = arrays
    narrow = [numbers(sizes, x) for x in (decay, write)]
    return [vectors(sizes, q), vectors(sizes, k), vectors(sizes, v), *narrow]


def _kinds(found: Blocks) -> list[pl.BlockSpec]:
    """The blocks of q, k, v, log-decays and factors."""
    return [found.width, found.width, found.depth, found.numbers, found.numbers]


# What a pass computes of one chunk. States are transposed, `[D, M]` in a head.


def _states_body(sizes: Sizes, k: Ref, v: Ref, decay: Ref, write: Ref, out: Ref, r: Ref) -> None:
    """R of each chunk."""
    out[...] = r[...]
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        times = _Times.of(decay[head : head + 1], write[head : head + 1])
        kept = jnp.exp(times.full) * r[:, wide]
        r[:, wide] = kept + tn(read(v, deep), read(k, wide) * times.back.written)


def _output_body(sizes: Sizes, q: Ref, k: Ref, v: Ref, decay: Ref, write: Ref, *rest: Ref) -> None:
    *behind, out, s = rest
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        times = _Times.of(decay[head : head + 1], write[head : head + 1])
        queries, keys, values = read(q, wide), read(k, wide), read(v, deep)
        within = nt(queries, keys) * times.between(sizes.causal) * times.write
        y = nn(within, values) + nt(queries * times.forth.read, s[:, wide])
        for r in behind:
            y = y + nt(queries * times.back.read, r[:, wide])
        out[:, deep] = y.astype(out.dtype)
        s[:, wide] = jnp.exp(times.full) * s[:, wide] + tn(values, keys * times.forth.written)


def _cotangents_body(sizes: Sizes, q: Ref, decay: Ref, dy: Ref, out: Ref, p: Ref) -> None:
    """P of each chunk."""
    out[...] = p[...]
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        numbers = decay[head : head + 1]
        times = _Times.of(numbers, numbers)
        added = tn(read(dy, deep), read(q, wide) * times.forth.read)
        p[:, wide] = jnp.exp(times.full) * p[:, wide] + added


def _gradients_body(
    sizes: Sizes, q: Ref, k: Ref, v: Ref, decay: Ref, write: Ref, dy: Ref, *rest: Ref
) -> None:
    count = 2 - sizes.causal
    states, (dq, dk, dv, ddecay, dwrite), before = rest[:count], rest[count:-count], rest[-count:]
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        times = _Times.of(decay[head : head + 1], write[head : head + 1])
        chunk = _Chunk(read(q, wide), read(k, wide), read(v, deep), read(dy, deep))
        full = jnp.exp(times.full)
        s, p = before[0], states[0]
        found = _within(chunk, times, sizes.causal)
        found = found.plus(_across(chunk, times.forth, full, s[:, wide], p[:, wide]))
        s[:, wide] = full * s[:, wide] + tn(chunk.v, chunk.k * times.forth.written)
        if not sizes.causal:
            r, t = states[1], before[1]
            found = found.plus(_across(chunk, times.back, full, r[:, wide], t[:, wide]))
            t[:, wide] = full * t[:, wide] + tn(chunk.dy, chunk.q * times.back.read)
        dq[:, wide] = found.q.astype(dq.dtype)
        dk[:, wide] = found.k.astype(dk.dtype)
        dv[:, deep] = found.v.astype(dv.dtype)
        ddecay[head : head + 1] = found.decay
        dwrite[head : head + 1] = found.write


class _Way(NamedTuple):
    """Factors between a chunk and the states before it, or those behind it.

    Attributes:
      read: of q that reads such a state, `[C, 1]`.
      kept: what the chunk leaves of a write for such a state of others, `[C, 1]`.
      write: of k, `[C, 1]`.
      forth: the states before it.
    """

    read: Array
    kept: Array
    write: Array
    forth: bool

    @property
    def written(self) -> Array:
        return self.kept * self.write


class _Times(NamedTuple):
    """Decays of one head in one chunk.

    Attributes:
      write: factors of k, `[1, C]`.
      upto, before: log-decays of the chunk up to each token and before it, `[1, C]`.
      full: log-decay of the chunk, `[1, 1]`.
      forth, back: factors of the states before the chunk, and behind it.
    """

    write: Array
    upto: Array
    before: Array
    full: Array
    forth: _Way
    back: _Way

    @classmethod
    def of(cls, decay: Array, write: Array) -> "_Times":
        rows, columns = places(decay.shape[1])
        own = as_column(decay)
        upto, before = summed(own, rows <= columns), summed(own, rows < columns)
        upto_column, before_column, write_column = (
            as_column(upto),
            as_column(before),
            as_column(write),
        )
        full = sums(own, 0)
        forth = _Way(jnp.exp(upto_column), jnp.exp(full - upto_column), write_column, True)
        back = _Way(jnp.exp(full - before_column), jnp.exp(before_column), write_column, False)
        return cls(write, upto, before, full, forth, back)

    def between(self, causal: bool) -> Array:
        """Decays between tokens, `[C, C]`; where a query does not read a key they are zero."""
        rows, columns = places(self.write.shape[1])
        past = rows >= columns
        later = jnp.full(past.shape, -jnp.inf, jnp.float32)
        if not causal:
            later = self.before - as_column(self.before)
        return jnp.exp(jnp.where(past, as_column(self.upto) - self.upto, later))


class _Chunk(NamedTuple):
    """One head in one chunk, float32: q, k, v and the output's cotangent, `[C, M or D]`."""

    q: Array
    k: Array
    v: Array
    dy: Array


class _Found(NamedTuple):
    """Gradients of one head in one chunk: of vectors `[C, M or D]`, of numbers `[1, C]`."""

    q: Array
    k: Array
    v: Array
    decay: Array
    write: Array

    def plus(self, other: "_Found") -> "_Found":
        return _Found(*(a + b for a, b in zip(self, other, strict=True)))


def _within(chunk: _Chunk, times: _Times, causal: bool) -> _Found:
    """By the chunk's own tokens."""
    scores, reads = nt(chunk.q, chunk.k), nt(chunk.dy, chunk.v)
    decays = times.between(causal)
    weights = decays * times.write
    products = decays * scores * reads
    write = jnp.sum(products, axis=0, keepdims=True)
    products = products * times.write
    # A decay between two tokens is that of the sum up to the later one, less that of the earlier.
    # Products of a token with itself have none: they would only cost digits.
    rows, columns = places(len(chunk.q))
    past = jnp.where(rows > columns, products, 0)
    decay = summed(sums(past) - as_column(sums(past, 0)), rows >= columns)
    if not causal:
        later = jnp.where(rows < columns, products, 0)
        decay = decay + summed(as_column(sums(later, 0)) - sums(later), rows > columns)
    return _Found(
        q=nn(reads * weights, chunk.k),
        k=tn(reads * weights, chunk.q),
        v=tn(scores * weights, chunk.dy),
        decay=decay,
        write=write,
    )


def _across(chunk: _Chunk, way: _Way, full: Array, state: Array, left: Array) -> _Found:
    """By the state that it reads, and by the cotangent `left` of what the chunk leaves for others."""
    dq = nn(chunk.dy, state) * way.read
    to_others = nn(chunk.v, left)
    written = way.written
    asked = sums(chunk.q * dq)
    kept = sums(chunk.k * to_others) * way.kept
    # A token's decay lies between the state and what is read at it and beyond it, and between
    # what is written on this side of it and the others.
    rows, columns = places(len(chunk.q))
    if way.forth:
        decay = summed(asked, rows >= columns) + summed(kept * way.write, rows < columns)
    else:
        decay = summed(asked, rows <= columns) + summed(kept * way.write, rows > columns)
    return _Found(
        q=dq,
        k=to_others * written,
        v=nt(chunk.k * written, left),
        decay=decay + full * sums(sums(state * left), 0),
        write=as_row(kept),
    )
