"""What the Pallas kernels of recurrences share: arrays, blocks, and passes over chunks of tokens.

A pass is a program for each example and group of heads, which goes from chunk to chunk and carries
states in a TPU's fast memory.
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

from dartformer.kernels.linear_scan import folded
from dartformer.kernels.target import Target

Ref = Any
"""The part of an array that a program reads or writes, in the chip's fast memory."""

LANES = 128
"""Numbers in a row of a TPU's registers."""

WIDEST = 256
"""Head width up to which the blocks fit the fast memory."""

HEADS = 16
"""Heads of one program, at most."""

WHOLE_ROW = 1024
"""Numbers of a token that one program reads, at most."""

ROW = 512
"""Numbers of a token that one program reads, where registers can be filled by so few."""


def refusal(
    dtype: DTypeLike,
    heads: int,
    width: int,
    depth: int,
    target: Target,
    *,
    row: int = WHOLE_ROW,
) -> str:
    """Why a kernel does not work on `target`, or "" where it does.

    Args:
      dtype: of q, k, v together.
      heads, width, depth: H, M, D.
      target: the device that the program is made for.
      row: numbers of a token that one program of the kernel reads, at most.
    """
    if target.platform != "tpu":
        return f"it needs a TPU, and this is {target.kind}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"it needs bfloat16 or float32, got {jnp.dtype(dtype).name}"
    if max(width, depth) > WIDEST:
        return f"it needs a head width of at most {WIDEST}, got {max(width, depth)}"
    group = group_of_heads(heads, width, depth)
    if group > HEADS or group * max(width, depth) > row:
        return f"it needs a few heads that fill registers, and {heads} of width {width} do not"
    return ""


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


class Sizes(NamedTuple):
    """What the programs of a kernel depend on.

    Attributes:
      batch, length, heads, width, depth: B, N, H, M, D.
      chunk: C, tokens handled together.
      causal: no token reads a later one.
      interpret: run in Pallas' interpreter.
    """

    batch: int
    length: int
    heads: int
    width: int
    depth: int
    chunk: int
    causal: bool
    interpret: bool

    @classmethod
    def of(cls, q: Array, v: Array, chunk: int, causal: bool, interpret: bool) -> "Sizes":
        batch, length, heads, width = q.shape
        return cls(batch, length, heads, width, v.shape[3], chunk, causal, interpret)

    @property
    def chunks(self) -> int:
        return -(-self.length // self.chunk)

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


def vectors(sizes: Sizes, x: Array) -> Array:
    """`[B, N, H, F]` to `[B, T C, H F]`."""
    return jnp.pad(folded(x), ((0, 0), (0, sizes.chunks * sizes.chunk - sizes.length), (0, 0)))


def numbers(sizes: Sizes, x: Array) -> Array:
    """`[B, N, H]` to `[B, G, H/G, T C]`."""
    x = jnp.pad(x, ((0, 0), (0, sizes.chunks * sizes.chunk - sizes.length), (0, 0)))
    groups = sizes.heads // sizes.group
    return x.swapaxes(1, 2).reshape(sizes.batch, groups, sizes.group, -1)


def of_vectors(sizes: Sizes, x: Array, width: int) -> Array:
    """The inverse of `vectors`."""
    return x[:, : sizes.length].reshape(sizes.batch, sizes.length, sizes.heads, width)


def of_numbers(sizes: Sizes, x: Array) -> Array:
    """The inverse of `numbers`."""
    return x.reshape(sizes.batch, sizes.heads, -1).swapaxes(1, 2)[:, : sizes.length]


class Blocks(NamedTuple):
    """Blocks of a pass: vectors of width M and D, numbers, numbers that all heads share, `[B, 1, T
    C]`, and a chunk's states."""

    width: pl.BlockSpec
    depth: pl.BlockSpec
    numbers: pl.BlockSpec
    shared: pl.BlockSpec
    states: pl.BlockSpec


def blocks(sizes: Sizes, reverse: bool) -> Blocks:
    """The blocks of a pass from the first chunk to the last, or from the last to the first."""

    def turn(t: Array) -> Array:
        if reverse:
            return sizes.chunks - 1 - t
        return t

    def tokens(width: int) -> pl.BlockSpec:
        return pl.BlockSpec(
            (None, sizes.chunk, sizes.group * width), lambda b, g, t: (b, turn(t), g)
        )

    numbers = (None, None, sizes.group, sizes.chunk)
    states = (None, None, None, *state_of(sizes))
    return Blocks(
        width=tokens(sizes.width),
        depth=tokens(sizes.depth),
        numbers=pl.BlockSpec(numbers, lambda b, g, t: (b, g, 0, turn(t))),
        shared=pl.BlockSpec((None, 1, sizes.chunk), lambda b, g, t: (b, 0, turn(t))),
        states=pl.BlockSpec(states, lambda b, g, t: (b, g, turn(t), 0, 0)),
    )


def state_of(sizes: Sizes) -> tuple[int, int]:
    """The shape of a group's states, `[D, H/G M]`: those of its heads, transposed, side by side.

    Decays of their rows are then numbers of a row of registers.
    """
    return sizes.depth, sizes.group * sizes.width


def states_shape(sizes: Sizes) -> jax.ShapeDtypeStruct:
    """States for each chunk, `[B, G, T, D, H/G M]`."""
    groups = sizes.heads // sizes.group
    shape = (sizes.batch, groups, sizes.chunks, *state_of(sizes))
    return jax.ShapeDtypeStruct(shape, jnp.float32)


class Pass(NamedTuple):
    """A pass over the chunks of every example and group of heads.

    Attributes:
      name: of the kernel.
      body: of one chunk, from `Sizes`, and from references to its operands, results, states and
        scratch, in this order.
      operands: arrays, and their blocks.
      results: shapes, and their blocks.
      states: how many it carries from chunk to chunk, `state_of` in float32, at first zero.
      products: of a chunk, of C x C x M or C x M x D, for the estimate of its cost.
      exponentials: of a token and head, for it.
      scratch: shapes in float32 that it needs beside them.
    """

    name: str
    body: Callable[..., None]
    operands: Sequence[tuple[Array, pl.BlockSpec]]
    results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]]
    states: int
    products: int
    exponentials: int
    scratch: Sequence[tuple[int, ...]] = ()

    def run(self, sizes: Sizes) -> list[Array]:
        """Its results."""
        arrays = [x for x, _ in self.operands]
        shapes = [shape for shape, _ in self.results]
        moved = sum(x.size * x.dtype.itemsize for x in arrays)
        moved += sum(x.size * x.dtype.itemsize for x in shapes)
        tokens = sizes.batch * sizes.heads * sizes.chunks * sizes.chunk
        flops = 2 * self.products * tokens * sizes.chunk * max(sizes.width, sizes.depth)
        scratch = [state_of(sizes)] * self.states + list(self.scratch)
        call = pl.pallas_call(
            functools.partial(self._started, sizes),
            name=self.name,
            grid=(sizes.batch, sizes.heads // sizes.group, sizes.chunks),
            in_specs=[block for _, block in self.operands],
            out_specs=[block for _, block in self.results],
            out_shape=shapes,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(
                flops=flops,
                bytes_accessed=moved,
                transcendentals=tokens * self.exponentials,
            ),
            interpret=sizes.interpret,
        )
        return list(call(*arrays))

    def _started(self, sizes: Sizes, *refs: Ref) -> None:
        """The body, with its states zero at the first chunk."""
        first = len(self.operands) + len(self.results)

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            for ref in refs[first : first + self.states]:
                ref[...] = jnp.zeros_like(ref)

        self.body(sizes, *refs)


# Within a head numbers of tokens are a row `[1, C]` or a column `[C, 1]`, and turned by a mask: sums
# of one number and zeros are exact.


def places(size: int) -> tuple[Array, Array]:
    """The row and the column of each place of `[size, size]`."""
    shape = (size, size)
    return (
        jax.lax.broadcasted_iota(jnp.int32, shape, 0),
        jax.lax.broadcasted_iota(jnp.int32, shape, 1),
    )


def levels(tokens: int) -> int:
    """How often so many tokens can be halved: the halves have 1, 2, 4, ... of them."""
    return tokens.bit_length() - 1


def neighbours(tokens: int, level: int) -> Array:
    """Which pairs are of a half of 2^level tokens and of the half beside it, `[C, C]`."""
    rows, columns = places(tokens)
    return (rows ^ columns) >> level == 1


def as_column(row: Array) -> Array:
    """`[1, C]` to `[C, 1]`."""
    rows, columns = places(row.shape[1])
    return sums(jnp.where(rows == columns, row, 0))


def as_row(column: Array) -> Array:
    """`[C, 1]` to `[1, C]`."""
    rows, columns = places(column.shape[0])
    return summed(column, rows == columns)


def summed(column: Array, taken: Array) -> Array:
    """For each column of `taken` the sum of the rows that it takes, `[C, 1]` to `[1, C]`."""
    return sums(jnp.where(taken, column, 0), 0)


def sums(x: Array, axis: int = 1) -> Array:
    """Sums over an axis, which stays."""
    return jnp.sum(x, axis=axis, keepdims=True)


def read(ref: Ref, lanes: slice = slice(None)) -> Array:
    """Numbers of all tokens in float32."""
    x: Array = ref[:, lanes]
    return x.astype(jnp.float32)


def _product(axes: tuple[int, int], a: Array, b: Array) -> Array:
    numbers = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


nn = functools.partial(_product, (1, 0))
"""a b"""

nt = functools.partial(_product, (1, 1))
"""a b^T"""

tn = functools.partial(_product, (0, 0))
"""a^T b"""
