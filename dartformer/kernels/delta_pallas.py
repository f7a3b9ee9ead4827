"""`delta_scan` on TPUs: a Pallas kernel that keeps the state in the chip's fast memory.

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
    ROW,
    Blocks,
    Pass,
    Ref,
    Sizes,
    as_column,
    as_row,
    blocks,
    levels,
    neighbours,
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
from dartformer.kernels.chunk_passes import refusal as common_refusal
from dartformer.kernels.delta_scan import delta_scan
from dartformer.kernels.fused import Function, fused
from dartformer.kernels.target import Target

CHUNK = 128
"""Tokens that are read together."""

PARTS = 2
"""Parts of them, of which each is one triangular system; its size is a power of two."""


def refusal(dtype: DTypeLike, heads: int, width: int, depth: int, target: Target) -> str:
    """Why the kernel does not work on `target`, or "" where it does: see `chunk_passes.refusal`.

    Its rows are half as long as those of others, since gradients of both ways meet in it.
    """
    return common_refusal(dtype, heads, width, depth, target, row=ROW)


def delta_recurrence(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    beta: Array,
    *,
    causal: bool = True,
    valid: Array | None = None,
    target: Target | None = None,
    interpret: bool = False,
) -> Array:
    """`delta_scan` of unit vectors, with its arguments and its result, by the kernel.

    The state goes from part to part without leaving the chip's fast memory. A pass from the first
    chunk to the last computes what each token reads of itself and those before it, and both ways
    another one, from the last to the first, what it reads of those behind it. A gradient is a pass
    more for each of them, in the other direction, from the state that each chunk was left.
    Derivatives after the first, and those of forward mode, are those of `delta_scan`, which
    `target` is for.

    Source: Yang et al. 2024, arXiv:2406.06484, section 3, and arXiv:2412.06464, section 3, for the
    triangular system of a chunk; the gradients are derived here.

    Args:
      interpret: run in Pallas' interpreter, on any device.

    Returns:
      `[B, N, H, D]`. Sums and states are in float32; products have JAX's default precision, as
      those of `delta_scan`. Time O(N (C log C + M) D) with C = `CHUNK` / `PARTS`, memory
      O(N (M + D)) and, for a gradient, a state for each chunk.
    """
    common = jnp.result_type(q, k, v)
    log_decay, beta = log_decay.astype(jnp.float32), beta.astype(jnp.float32)
    if valid is not None:
        log_decay = jnp.where(valid[:, :, None], log_decay, 0)
        beta = jnp.where(valid[:, :, None], beta, 0)
    run = _differentiable(CHUNK, causal, jnp.dtype(v.dtype), target, interpret)
    return run(q.astype(common), k.astype(common), v.astype(common), log_decay, beta)


# Kept, so that equal calls are the same function to JAX, which traces it only once.
@functools.cache
def _differentiable(
    chunk: int, causal: bool, dtype: jnp.dtype, target: Target | None, interpret: bool
) -> Function:
    """Of q, k, v, log-decays and shares."""

    def sizes_of(arrays: Sequence[Array]) -> Sizes:
        return Sizes.of(arrays[0], arrays[2], chunk, causal, interpret)

    @jax.custom_vjp
    def fast(*arrays: Array) -> Array:
        return _output(sizes_of(arrays), arrays, dtype, False)[0]

    def forward(*arrays: Array) -> tuple[Array, tuple[Sequence[Array], Sequence[Array]]]:
        out, states = _output(sizes_of(arrays), arrays, dtype, True)
        return out, (arrays, states)

    def backward(
        kept: tuple[Sequence[Array], Sequence[Array]], cotangent: Array
    ) -> tuple[Array, ...]:
        arrays, states = kept
        return _gradients(sizes_of(arrays), arrays, states, cotangent)

    fast.defvjp(forward, backward)

    def definition(q: Array, k: Array, v: Array, log_decay: Array, beta: Array) -> Array:
        out = delta_scan(q, k, v, log_decay, beta, causal=causal, unit=True, target=target)
        return out.astype(dtype)

    return fused(fast, definition, inputs=5)


# The passes: the one from the right, which is left out if causal, and then the one from the left,
# which adds the results of the first to its own.


# Under jit it is traced once: XLA merges two calls of a kernel, such as that of the output and that
# of its gradient, only where all is equal, down to the places in these lines.
@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _output(
    sizes: Sizes, arrays: Sequence[Array], dtype: jnp.dtype, kept: bool
) -> tuple[Array, list[Array]]:
    """The output; and the states before each chunk, of every way, if they are `kept`."""
    inputs = _operands(sizes, arrays)
    y: list[Array] = []
    states = []
    for right in _ways(sizes):
        found = blocks(sizes, reverse=right)
        shape = jax.ShapeDtypeStruct(inputs[2].shape, jnp.float32 if right else dtype)
        results = [(shape, found.depth)] + [(states_shape(sizes), found.states)] * kept
        out, *state = Pass(
            f"delta_output_{_name(right)}",
            functools.partial(_output_body, right),
            operands=[*zip(inputs, _kinds(found), strict=True), *((x, found.depth) for x in y)],
            results=results,
            states=1,
            products=_products(sizes, 7),
            exponentials=sizes.chunk // PARTS + 3,
        ).run(sizes)
        y = [out]
        states += state
    return of_vectors(sizes, y[0], sizes.depth), states


def _gradients(
    sizes: Sizes, arrays: Sequence[Array], states: Sequence[Array], cotangent: Array
) -> tuple[Array, ...]:
    """Of q, k, v, log-decays and shares."""
    inputs = _operands(sizes, arrays)
    dy = vectors(sizes, cotangent)
    gradients: list[Array] = []
    for right, state in zip(_ways(sizes), states, strict=True):
        found = blocks(sizes, reverse=not right)
        kinds = _kinds(found)
        results = []
        for x, kind in zip(inputs, kinds, strict=True):
            dtype = jnp.float32 if right else x.dtype
            results.append((jax.ShapeDtypeStruct(x.shape, dtype), kind))
        gradients = Pass(
            f"delta_gradients_{_name(right)}",
            functools.partial(_gradients_body, right),
            operands=[
                *zip(inputs, kinds, strict=True),
                (dy, found.depth),
                (state, found.states),
                *zip(gradients, kinds, strict=False),
            ],
            results=results,
            states=1,
            products=_products(sizes, 20),
            exponentials=sizes.chunk // PARTS + 3,
        ).run(sizes)
    dq, dk, dv, ddecay, dbeta = gradients
    return (
        of_vectors(sizes, dq, sizes.width),
        of_vectors(sizes, dk, sizes.width),
        of_vectors(sizes, dv, sizes.depth),
        of_numbers(sizes, ddecay),
        of_numbers(sizes, dbeta),
    )


def _ways(sizes: Sizes) -> list[bool]:
    """Whether a pass is from the right, of each one, in the order in which they run."""
    if sizes.causal:
        return [False]
    return [True, False]


def _name(right: bool) -> str:
    return "right" if right else "left"


def _products(sizes: Sizes, count: int) -> int:
    """For the estimate: `count` products of a part and those of its inverse, in those of a chunk."""
    return (count + 2 * (levels(sizes.chunk // PARTS) - 1)) // PARTS


def _operands(sizes: Sizes, arrays: Sequence[Array]) -> list[Array]:
    q, k, v, decay, beta = arrays
    narrow = [numbers(sizes, x) for x in (decay, beta)]
    return [vectors(sizes, q), vectors(sizes, k), vectors(sizes, v), *narrow]


def _kinds(found: Blocks) -> list[pl.BlockSpec]:
    """The blocks of q, k, v, log-decays and shares."""
    return [found.width, found.width, found.depth, found.numbers, found.numbers]


# What a pass computes of one chunk. States are transposed, `[D, M]` in a head.


def _output_body(right: bool, sizes: Sizes, *refs: Ref) -> None:
    """`refs` are q, k, v, log-decays, shares, the other way's output, and the results.

    The other way's is there in the second pass both ways, and the states where they are kept.
    """
    q, k, v, decay, beta, *rest, s = refs
    added, (out, *states) = _split(rest, 1 * (not right and not sizes.causal))
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        state = s[:, wide]
        for ref in states:
            ref[:, wide] = state
        heads = _Head.of(q, k, v, decay, beta, head, wide, deep)
        for tokens in _parts(sizes, right):
            part = _Part.of(heads, tokens, right)
            u = part.corrections(part.missing(state))
            y = nn(part.scores, u) + nt(part.q * part.reach, state)
            for ref in added:
                y = y + ref[tokens, deep]
            out[tokens, deep] = y.astype(out.dtype)
            state = part.after(state, u)
        s[:, wide] = state


def _gradients_body(right: bool, sizes: Sizes, *refs: Ref) -> None:
    """`refs` are q, k, v, log-decays, shares, the output's cotangent, the states before each chunk,
    the other way's gradients, and the results.

    The first pass both ways leaves those of unit vectors, which the second takes to q and k.
    """
    q, k, v, decay, beta, dy, states, *rest, p = refs
    added, results = _split(rest, 5 * (not right and not sizes.causal))
    for head in range(sizes.group):
        wide, deep = sizes.slices(head)
        vector = _Head.of(q, k, v, decay, beta, head, wide, deep)
        state, left = states[:, wide], p[:, wide]
        kept = []
        for tokens in _parts(sizes, right):
            part = _Part.of(vector, tokens, right)
            missing = part.missing(state)
            u = part.corrections(missing)
            kept.append((tokens, part, state, missing, u))
            state = part.after(state, u)
        for tokens, part, state, missing, u in reversed(kept):
            found, left = _part_gradients(
                part, _Known(state, left, missing, u, read(dy, deep)[tokens]), right
            )
            places = [(tokens, wide), (tokens, wide), (tokens, deep)]
            places += [(slice(head, head + 1), tokens)] * 2
            sums_of = [*found]
            for i, ref in enumerate(added):
                sums_of[i] = sums_of[i] + ref[places[i]]
            if not right:
                sums_of[0] = vector.q.pulled_back(sums_of[0], tokens)
                sums_of[1] = vector.k.pulled_back(sums_of[1], tokens)
            for ref, place, x in zip(results, places, sums_of, strict=True):
                ref[place] = x.astype(ref.dtype)
        p[:, wide] = left


def _split(refs: Sequence[Ref], count: int) -> tuple[Sequence[Ref], Sequence[Ref]]:
    return refs[:count], refs[count:]


def _parts(sizes: Sizes, right: bool) -> list[slice]:
    """The tokens of each part, in the order in which a state passes them."""
    size = sizes.chunk // PARTS
    parts = [slice(start, start + size) for start in range(0, sizes.chunk, size)]
    if right:
        parts.reverse()
    return parts


class _Unit(NamedTuple):
    """Unit vectors `unit` times `scale`, of what has the inverse norms `inverse` `[C, 1]`."""

    unit: Array
    inverse: Array
    scale: float

    @classmethod
    def of(cls, x: Array, scale: float = 1.0) -> "_Unit":
        inverse = jax.lax.rsqrt(sums(x * x) + 1e-6)  # as in `unit_vector`
        return cls(x * inverse, inverse, scale)

    def pulled_back(self, gradient: Array, tokens: slice) -> Array:
        """The gradient of x of some tokens from that of their unit vectors times the scale."""
        unit, gradient = self.unit[tokens], self.scale * gradient
        return self.inverse[tokens] * (gradient - unit * sums(unit * gradient))


class _Head(NamedTuple):
    """One head in one chunk, float32: vectors `[C, M or D]`, log-decays and shares `[1, C]`."""

    q: _Unit
    k: _Unit
    v: Array
    decay: Array
    beta: Array

    @classmethod
    def of(
        cls, q: Ref, k: Ref, v: Ref, decay: Ref, beta: Ref, head: int, wide: slice, deep: slice
    ) -> "_Head":
        queries = read(q, wide)
        row = slice(head, head + 1)
        return cls(
            _Unit.of(queries, queries.shape[1] ** -0.5),
            _Unit.of(read(k, wide)),
            read(v, deep),
            decay[row],
            beta[row],
        )


class _Part(NamedTuple):
    """One head in one part of C tokens, which has one triangular system.

    "Before" is where the state comes from: at the left, or at the right.

    Attributes:
      q, k, v: unit vectors, and values.
      beta: shares, `[C, 1]`.
      reach: decay of the state before the part until a token reads it, `[C, 1]`.
      rest: decay of what a token writes until the part's end, `[C, 1]`.
      full: decay of the part, `[1, 1]`.
      decays: between tokens, `[C, C]`, zero where one does not read the other.
      products: of keys, `[C, C]`.
      system: L, `[C, C]`: beta_i times decays and products, where j is written before i.
      inverse: (I + L)^-1.
      scores: decays times products of queries and keys.
    """

    q: Array
    k: Array
    v: Array
    beta: Array
    reach: Array
    rest: Array
    full: Array
    decays: Array
    products: Array
    system: Array
    inverse: Array
    scores: Array

    @classmethod
    def of(cls, head: _Head, tokens: slice, right: bool) -> "_Part":
        q, k = head.q.scale * head.q.unit[tokens], head.k.unit[tokens]
        decay, beta = head.decay[:, tokens], as_column(head.beta[:, tokens])
        past, written = _before(len(k), right)
        reach = sums(jnp.where(past, decay, 0))
        # Where nothing is read it is masked before exp: a decay from the future may overflow.
        read = written if right else past
        decays = jnp.exp(jnp.where(read, reach - as_row(reach), -jnp.inf))
        products = nt(k, k)
        system = jnp.where(written, beta * products * decays, 0)
        return cls(
            *(q, k, head.v[tokens], beta, jnp.exp(reach)),
            rest=jnp.exp(sums(jnp.where(past, 0, decay))),
            full=jnp.exp(sums(decay)),
            decays=decays,
            products=products,
            system=system,
            inverse=_inverse(system),
            scores=nt(q, k) * decays,
        )

    def missing(self, state: Array) -> Array:
        """v less what the state before the part answers to k, `[C, D]`."""
        return self.v - nt(self.k * self.reach, state)

    def corrections(self, missing: Array) -> Array:
        """What the tokens write, `[C, D]`."""
        return nn(self.inverse, self.beta * missing)

    def after(self, state: Array, u: Array) -> Array:
        """The state after the part, `[D, M]`."""
        return self.full * state + tn(u, self.k * self.rest)


def _before(size: int, right: bool) -> tuple[Array, Array]:
    """For a token of each row, which columns the state has passed when it reads: with and without
    the token itself."""
    rows, columns = places(size)
    if right:
        return columns >= rows, columns > rows
    return columns <= rows, columns < rows


def _inverse(system: Array) -> Array:
    """(I + L)^-1 of a strict triangle L `[C, C]`, lower or upper.

    From the inverses of two neighbours on the diagonal follows that of both, as in
    `unit_triangular_inverse`, here of all pairs in one product: X - X L X with L of the pairs.
    """
    size = len(system)
    rows, columns = places(size)
    found = jnp.where(rows == columns, 1, -jnp.where(neighbours(size, 0), system, 0))
    for level in range(1, levels(size)):
        between = jnp.where(neighbours(size, level), system, 0)
        found = found - nn(found, nn(between, found))
    return found


class _Known(NamedTuple):
    """What the gradient of a part needs beside it.

    Attributes:
      state: before it, `[D, M]`.
      left: the cotangent of the state after it.
      missing, u: `_Part.missing` and `_Part.corrections`.
      dy: the output's cotangent, `[C, D]`.
    """

    state: Array
    left: Array
    missing: Array
    u: Array
    dy: Array


class _Found(NamedTuple):
    """Gradients of a part: of unit vectors times their scale and of v `[C, M or D]`, others `[1, C]`."""

    q: Array
    k: Array
    v: Array
    decay: Array
    beta: Array


def _part_gradients(part: _Part, known: _Known, right: bool) -> tuple[_Found, Array]:
    """The gradients, and the cotangent of the state before the part."""
    state, left, missing, u, dy = known
    written = part.k * part.rest
    to_u = tn(part.scores, dy) + nt(written, left)
    to_v = tn(part.inverse, to_u)  # of beta * missing
    to_held = -part.beta * to_v  # of what the state answers
    # Pairs of tokens: by what is read, and by the system, whose inverse is A: d A^-1 = -A^-1 dA A^-1.
    past, before = _before(len(u), right)
    to_scores = nt(dy, u)
    to_system = jnp.where(before, -nt(to_v, u), 0)
    to_products = part.beta * part.decays * to_system
    within = part.decays * to_scores
    # Tokens and states.
    asked = nn(dy, state) * part.reach
    held = nn(to_held, state) * part.reach
    kept = nn(u, left) * part.rest
    found = _Found(
        q=nn(within, part.k) + asked,
        k=tn(within, part.q) + nn(to_products, part.k) + tn(to_products, part.k) + held + kept,
        v=-to_held,
        decay=_decay_gradient(
            past,
            # A token with itself has no decay: it would only cost digits.
            jnp.where(before, to_scores * part.scores, 0) + to_system * part.system,
            sums(part.q * asked + part.k * held),
            sums(part.k * kept),
        )
        + part.full * sums(sums(state * left), 0),
        beta=as_row(sums(to_system * part.products * part.decays) + sums(to_v * missing)),
    )
    cotangent = part.full * left + tn(dy, part.q * part.reach) + tn(to_held, part.k * part.reach)
    return found, cotangent


def _decay_gradient(past: Array, pairs: Array, reach: Array, rest: Array) -> Array:
    """Of log-decays `[1, C]`, from those of decays between tokens and of `reach` and `rest`."""
    # Between two tokens it is the sum up to the one that reads, less that up to the one that writes.
    between = sums(pairs) - as_column(sums(pairs, 0))
    return summed(reach + between, past) + summed(rest, ~past)
