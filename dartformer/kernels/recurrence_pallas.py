"""`decay_scan` on TPUs: a Pallas kernel that keeps the state in the chip's fast memory.

This project has not run it on a TPU. Its outputs and derivatives are tested in Pallas' interpreter
on a CPU, and the TPU's own compiler compiles it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from dartformer.kernels.decay_scan import decay_scan
from dartformer.kernels.fused import Function, fused
from dartformer.kernels.linear_scan import folded
from dartformer.kernels.target import Target

Ref = Any
"""The part of an array that a program reads or writes, in the chip's fast memory."""

LANES = 128
"""Numbers in a row of a TPU's registers."""

CHUNK = 128
"""Tokens handled together."""

WIDEST = 256
"""Head width up to which the blocks fit the fast memory."""

HEADS = 16
"""Heads of one program, at most."""

WHOLE_ROW = 1024
"""Numbers of a token that one program reads, at most."""

ROW = 512
"""Numbers of a token that one program reads, where registers can be filled by so few."""


def refusal(dtype: DTypeLike, heads: int, width: int, depth: int, target: Target) -> str:
    """Why the kernel does not work on `target`, or "" where it does.

    Args:
      dtype: of q, k, v together.
      heads, width, depth: H, M, D.
      target: the device that the program is made for.
    """
    if target.platform != "tpu":
        return f"it needs a TPU, and this is {target.kind}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"it needs bfloat16 or float32, got {jnp.dtype(dtype).name}"
    if max(width, depth) > WIDEST:
        return f"it needs a head width of at most {WIDEST}, got {max(width, depth)}"
    group = group_of_heads(heads, width, depth)
    if group > HEADS or group * max(width, depth) > WHOLE_ROW:
        return f"it needs a few heads that fill registers, and {heads} of width {width} do not"
    return ""


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
    last computes the output. A gradient is two such passes more, which compute the states again.
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

    @jax.custom_vjp
    def fast(*arrays: Array) -> Array:
        return _output(_Sizes.of(arrays, causal, interpret), arrays, dtype)

    def forward(*arrays: Array) -> tuple[Array, Sequence[Array]]:
        return fast(*arrays), arrays

    def backward(arrays: Sequence[Array], cotangent: Array) -> tuple[Array, ...]:
        return _gradients(_Sizes.of(arrays, causal, interpret), arrays, cotangent)

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


def group_of_heads(heads: int, width: int, depth: int) -> int:
    """Heads of one program: their rows fill whole registers, or are those of all heads."""
    found = 0
    for count in range(1, heads + 1):
        whole = count * width % LANES == 0 and count * depth % LANES == 0
        if heads % count or not (whole or count == heads):
            continue
        # More heads are fewer programs to begin and to end, but fill the memory and the compiler's
        # time: a program has the code of each head.
        if not found or (count <= HEADS // 2 and count * max(width, depth) <= ROW):
            found = count
    return found


class _Sizes(NamedTuple):
    """What the kernels' programs depend on.

    Attributes:
      batch, length, heads, width, depth: B, N, H, M, D.
      causal: no token reads a later one.
      interpret: run in Pallas' interpreter.
    """

    batch: int
    length: int
    heads: int
    width: int
    depth: int
    causal: bool
    interpret: bool

    @classmethod
    def of(cls, arrays: Sequence[Array], causal: bool, interpret: bool) -> "_Sizes":
        batch, length, heads, width = arrays[0].shape
        return cls(batch, length, heads, width, arrays[2].shape[3], causal, interpret)

    @property
    def chunks(self) -> int:
        return -(-self.length // CHUNK)

    @property
    def group(self) -> int:
        return group_of_heads(self.heads, self.width, self.depth)

    def slices(self, head: int) -> tuple[slice, slice]:
        """Where a head's numbers of width M and D are in a row of its group."""
        return (
            slice(head * self.width, (head + 1) * self.width),
            slice(head * self.depth, (head + 1) * self.depth),
        )


# Arrays and blocks. Tokens with a vector for each head are `[B, N, H F]`, with a number `[B, G, H/G,
# N]`: G groups of heads, one of which is a program's. Nothing has a narrow last axis.


def _vectors(sizes: _Sizes, x: Array) -> Array:
    """`[B, N, H, F]` to `[B, T C, H F]`."""
    return jnp.pad(folded(x), ((0, 0), (0, sizes.chunks * CHUNK - sizes.length), (0, 0)))


def _numbers(sizes: _Sizes, x: Array) -> Array:
    """`[B, N, H]` to `[B, G, H/G, T C]`."""
    x = jnp.pad(x, ((0, 0), (0, sizes.chunks * CHUNK - sizes.length), (0, 0)))
    groups = sizes.heads // sizes.group
    return x.swapaxes(1, 2).reshape(sizes.batch, groups, sizes.group, -1)


def _of_vectors(sizes: _Sizes, x: Array, width: int) -> Array:
    """The inverse of `_vectors`."""
    return x[:, : sizes.length].reshape(sizes.batch, sizes.length, sizes.heads, width)


def _of_numbers(sizes: _Sizes, x: Array) -> Array:
    """The inverse of `_numbers`."""
    return x.reshape(sizes.batch, sizes.heads, -1).swapaxes(1, 2)[:, : sizes.length]


class _Blocks(NamedTuple):
    """Blocks of a pass: vectors of width M and D, numbers, and a chunk's states."""

    width: pl.BlockSpec
    depth: pl.BlockSpec
    numbers: pl.BlockSpec
    states: pl.BlockSpec


def _blocks(sizes: _Sizes, reverse: bool) -> _Blocks:
    def turn(t: Array) -> Array:
        if reverse:
            return sizes.chunks - 1 - t
        return t

    def vectors(width: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, CHUNK, sizes.group * width), lambda b, g, t: (b, turn(t), g))

    numbers = (None, None, sizes.group, CHUNK)
    states = (None, None, None, sizes.width, sizes.group * sizes.depth)
    return _Blocks(
        width=vectors(sizes.width),
        depth=vectors(sizes.depth),
        numbers=pl.BlockSpec(numbers, lambda b, g, t: (b, g, 0, turn(t))),
        states=pl.BlockSpec(states, lambda b, g, t: (b, g, turn(t), 0, 0)),
    )


def _states_shape(sizes: _Sizes) -> jax.ShapeDtypeStruct:
    """A state for each chunk, `[B, G, T, M, H/G D]`."""
    groups = sizes.heads // sizes.group
    shape = (sizes.batch, groups, sizes.chunks, sizes.width, sizes.group * sizes.depth)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _pass(
    sizes: _Sizes,
    name: str,
    body: Callable[..., None],
    operands: Sequence[Array],
    blocks: Sequence[pl.BlockSpec],
    results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    states: int,
    products: int,
) -> list[Array]:
    """`body` of one chunk after another, for each example and group of heads.

    Args:
      states: how many it carries from chunk to chunk, `[M, H/G D]` float32, at first zero.
      products: of chunks, of C x C x M or C x M x D, for the estimate of its cost.
    """
    moved = 0
    for x in operands:
        moved += x.size * x.dtype.itemsize
    for shape, _ in results:
        moved += shape.size * shape.dtype.itemsize
    tokens = sizes.batch * sizes.heads * sizes.chunks * CHUNK
    state = pltpu.VMEM((sizes.width, sizes.group * sizes.depth), jnp.float32)
    call = pl.pallas_call(
        functools.partial(_started, body, states, sizes),
        name=name,
        grid=(sizes.batch, sizes.heads // sizes.group, sizes.chunks),
        in_specs=list(blocks),
        out_specs=[block for _, block in results],
        out_shape=[shape for shape, _ in results],
        scratch_shapes=[state] * states,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * tokens * CHUNK * max(sizes.width, sizes.depth),
            bytes_accessed=moved,
            transcendentals=tokens * CHUNK,
        ),
        interpret=sizes.interpret,
    )
    return list(call(*operands))


def _started(body: Callable[..., None], states: int, sizes: _Sizes, *refs: Ref) -> None:
    """`body`, with its last arrays zero at the first chunk."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        for ref in refs[len(refs) - states :]:
            ref[...] = jnp.zeros_like(ref)

    body(sizes, *refs)


# The passes. S is the state that the tokens before a chunk leave for it, R the one of those behind
# it, and P and T are the cotangents of what it leaves for S and R of other chunks.


def _output(sizes: _Sizes, arrays: Sequence[Array], dtype: jnp.dtype) -> Array:
    q, k, v, decay, write = _operands(sizes, arrays)
    blocks = _blocks(sizes, reverse=False)
    behind: list[Array] = []
    if not sizes.causal:
        back = _blocks(sizes, reverse=True)
        behind = _pass(
            sizes,
            "decay_states",
            _states_body,
            [k, v, decay, write],
            [back.width, back.depth, back.numbers, back.numbers],
            [(_states_shape(sizes), back.states)],
            states=1,
            products=1,
        )
    out = jax.ShapeDtypeStruct(v.shape, dtype)
    (y,) = _pass(
        sizes,
        "decay_output",
        _output_body,
        [q, k, v, decay, write, *behind],
        [blocks.width, blocks.width, blocks.depth, blocks.numbers, blocks.numbers]
        + [blocks.states] * len(behind),
        [(out, blocks.depth)],
        states=1,
        products=4 + len(behind),
    )
    return _of_vectors(sizes, y, sizes.depth)


def _gradients(sizes: _Sizes, arrays: Sequence[Array], cotangent: Array) -> tuple[Array, ...]:
    """Of q, k, v, log-decays and factors."""
    operands = _operands(sizes, arrays)
    dy = _vectors(sizes, cotangent)
    back, blocks = _blocks(sizes, reverse=True), _blocks(sizes, reverse=False)
    state = _states_shape(sizes)
    both = 2 - sizes.causal
    # Causal, no token behind a chunk matters: R and T are left out.
    behind = _pass(
        sizes,
        "decay_cotangents",
        _cotangents_body,
        [*operands, dy],
        [back.width, back.width, back.depth, back.numbers, back.numbers, back.depth],
        [(state, back.states)] * both,
        states=both,
        products=both,
    )
    vectors = [blocks.width, blocks.width, blocks.depth]
    numbers = [blocks.numbers] * 2
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
    dq, dk, dv, ddecay, dwrite = _pass(
        sizes,
        "decay_gradients",
        _gradients_body,
        [*operands, dy, *behind],
        [*vectors, *numbers, blocks.depth, *[blocks.states] * both],
        list(zip(results, [*vectors, *numbers], strict=True)),
        states=both,
        products=5 + 4 * both,
    )
    return (
        _of_vectors(sizes, dq, sizes.width),
        _of_vectors(sizes, dk, sizes.width),
        _of_vectors(sizes, dv, sizes.depth),
        _of_numbers(sizes, ddecay),
        _of_numbers(sizes, dwrite),
    )


def _operands(sizes: _Sizes, arrays: Sequence[Array]) -> list[Array]:
    q, k, v, decay, write = arrays
    vectors = [_vectors(sizes, x) for x in (q, k, v)]
    return [*vectors, _numbers(sizes, decay), _numbers(sizes, write)]


# What a pass computes of one chunk. Within a head numbers of tokens are a row `[1, C]` or a column
# `[C, 1]`, and turned by a mask: sums of one number and zeros are exact.


def _states_body(sizes: _Sizes, k: Ref, v: Ref, decay: Ref, write: Ref, out: Ref, r: Ref) -> None:
    """R of each chunk."""
    out[...] = r[...]
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        times = _Times.of(decay[head : head + 1], write[head : head + 1])
        kept = jnp.exp(times.full) * r[:, deep]
        r[:, deep] = kept + _tn(_float(k, wide) * times.back.written, _float(v, deep))


def _output_body(sizes: _Sizes, q: Ref, k: Ref, v: Ref, decay: Ref, write: Ref, *rest: Ref) -> None:
    *behind, out, s = rest
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        times = _Times.of(decay[head : head + 1], write[head : head + 1])
        queries, keys, values = _float(q, wide), _float(k, wide), _float(v, deep)
        within = _nt(queries, keys) * times.between(sizes.causal) * times.write
        y = _nn(within, values) + _nn(queries * times.forth.read, s[:, deep])
        for r in behind:
            y = y + _nn(queries * times.back.read, r[:, deep])
        out[:, deep] = y.astype(out.dtype)
        s[:, deep] = jnp.exp(times.full) * s[:, deep] + _tn(keys * times.forth.written, values)


def _cotangents_body(
    sizes: _Sizes, q: Ref, k: Ref, v: Ref, decay: Ref, write: Ref, dy: Ref, *rest: Ref
) -> None:
    """P of each chunk, and R."""
    count = 2 - sizes.causal
    outs, states = rest[:count], rest[count:]
    for out, state in zip(outs, states, strict=True):
        out[...] = state[...]
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        times = _Times.of(decay[head : head + 1], write[head : head + 1])
        full = jnp.exp(times.full)
        p = states[0]
        p[:, deep] = full * p[:, deep] + _tn(_float(q, wide) * times.forth.read, _float(dy, deep))
        for r in states[1:]:
            added = _tn(_float(k, wide) * times.back.written, _float(v, deep))
            r[:, deep] = full * r[:, deep] + added


def _gradients_body(
    sizes: _Sizes, q: Ref, k: Ref, v: Ref, decay: Ref, write: Ref, dy: Ref, *rest: Ref
) -> None:
    count = 2 - sizes.causal
    behind, (dq, dk, dv, ddecay, dwrite), before = rest[:count], rest[count:-count], rest[-count:]
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        times = _Times.of(decay[head : head + 1], write[head : head + 1])
        chunk = _Chunk(_float(q, wide), _float(k, wide), _float(v, deep), _float(dy, deep))
        full = jnp.exp(times.full)
        s, p = before[0], behind[0]
        found = _within(chunk, times, sizes.causal)
        found = found.plus(_across(chunk, times.forth, full, s[:, deep], p[:, deep]))
        s[:, deep] = full * s[:, deep] + _tn(chunk.k * times.forth.written, chunk.v)
        if not sizes.causal:
            r, t = behind[1], before[1]
            found = found.plus(_across(chunk, times.back, full, r[:, deep], t[:, deep]))
            t[:, deep] = full * t[:, deep] + _tn(chunk.q * times.back.read, chunk.dy)
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
        rows, columns = _places()
        column = _column(decay)
        upto, before = _summed(column, rows <= columns), _summed(column, rows < columns)
        upto_column, before_column, write_column = _column(upto), _column(before), _column(write)
        full = jnp.sum(column, axis=0, keepdims=True)
        forth = _Way(jnp.exp(upto_column), jnp.exp(full - upto_column), write_column, True)
        back = _Way(jnp.exp(full - before_column), jnp.exp(before_column), write_column, False)
        return cls(write, upto, before, full, forth, back)

    def between(self, causal: bool) -> Array:
        """Decays between tokens, `[C, C]`; where a query does not read a key they are zero."""
        rows, columns = _places()
        past = rows >= columns
        later = jnp.full((CHUNK, CHUNK), -jnp.inf, jnp.float32)
        if not causal:
            later = self.before - _column(self.before)
        return jnp.exp(jnp.where(past, _column(self.upto) - self.upto, later))


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
    scores, reads = _nt(chunk.q, chunk.k), _nt(chunk.dy, chunk.v)
    decays = times.between(causal)
    weights = decays * times.write
    products = decays * scores * reads
    write = jnp.sum(products, axis=0, keepdims=True)
    products = products * times.write
    # A decay between two tokens is that of the sum up to the later one, less that of the earlier.
    # Products of a token with itself have none: they would only cost digits.
    rows, columns = _places()
    past = jnp.where(rows > columns, products, 0)
    decay = _summed(_sums(past) - _column(_sums(past, 0)), rows >= columns)
    if not causal:
        later = jnp.where(rows < columns, products, 0)
        decay = decay + _summed(_column(_sums(later, 0)) - _sums(later), rows > columns)
    return _Found(
        q=_nn(reads * weights, chunk.k),
        k=_tn(reads * weights, chunk.q),
        v=_tn(scores * weights, chunk.dy),
        decay=decay,
        write=write,
    )


def _across(chunk: _Chunk, way: _Way, full: Array, read: Array, left: Array) -> _Found:
    """By the state `read`, and by the cotangent `left` of what the chunk leaves for others."""
    dq = _nt(chunk.dy, read) * way.read
    to_others = _nt(chunk.v, left)
    written = way.written
    asked = _sums(chunk.q * dq)
    kept = _sums(chunk.k * to_others) * way.kept
    # A token's decay lies between the state and what is read at it and beyond it, and between
    # what is written on this side of it and the others.
    rows, columns = _places()
    if way.forth:
        decay = _summed(asked, rows >= columns) + _summed(kept * way.write, rows < columns)
    else:
        decay = _summed(asked, rows <= columns) + _summed(kept * way.write, rows > columns)
    return _Found(
        q=dq,
        k=to_others * written,
        v=_nn(chunk.k * written, left),
        decay=decay + full * _sums(_sums(read * left), 0),
        write=_row(kept),
    )


def _places() -> tuple[Array, Array]:
    """The row and the column of each place of `[C, C]`."""
    shape = (CHUNK, CHUNK)
    return (
        jax.lax.broadcasted_iota(jnp.int32, shape, 0),
        jax.lax.broadcasted_iota(jnp.int32, shape, 1),
    )


def _column(row: Array) -> Array:
    """`[1, C]` to `[C, 1]`."""
    rows, columns = _places()
    return _sums(jnp.where(rows == columns, row, 0))


def _row(column: Array) -> Array:
    """`[C, 1]` to `[1, C]`."""
    rows, columns = _places()
    return _summed(column, rows == columns)


def _summed(column: Array, taken: Array) -> Array:
    """For each column of `taken` the sum of the rows that it takes, `[C, 1]` to `[1, C]`."""
    return _sums(jnp.where(taken, column, 0), 0)


def _sums(x: Array, axis: int = 1) -> Array:
    return jnp.sum(x, axis=axis, keepdims=True)


def _float(ref: Ref, lanes: slice) -> Array:
    x: Array = ref[:, lanes]
    return x.astype(jnp.float32)


def _product(axes: tuple[int, int], a: Array, b: Array) -> Array:
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


_nn = functools.partial(_product, (1, 0))
"""a b"""

_nt = functools.partial(_product, (1, 1))
"""a b^T"""

_tn = functools.partial(_product, (0, 0))
"""a^T b"""
