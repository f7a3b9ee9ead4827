"""Normalised linear attention from positive features.

Two products of matrices, or a recurrence over chunks when causal.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import wide
from dartformer.kernels.target import Target, here


def ratio(numerator: Array, denominator: Array) -> Array:
    """`numerator / denominator` `[..., D]` by `[..., 1]`, zero where the denominator is.

    No epsilon is added: features may all be tiny, and an epsilon would then decide. Dividing both
    by the denominator's value first keeps gradients from squaring it, which underflows below 1e-19
    in float32.
    """
    denominator = jnp.where(denominator == 0, 1, denominator)
    size = jax.lax.stop_gradient(denominator)
    return (numerator / size) / (denominator / size)


def linear_attention(
    phi_q: Array,
    phi_k: Array,
    v: Array,
    *,
    causal: bool = False,
    valid: Array | None = None,
    chunk: int = 64,
    target: Target | None = None,
) -> Array:
    """sum_j (phi_q_i . phi_k_j) v_j / sum_j (phi_q_i . phi_k_j), over all j or over j <= i.

    Paper: Katharopoulos et al. 2020, arXiv:2006.16236, equations 5 and 9.

    Args:
      phi_q, phi_k: features, not negative, `[B, N, H, M]`.
      v: `[B, N, H, D]`.
      causal: over j <= i only, by a recurrence over chunks.
      valid: `[B, N]` bool, which keys exist; None if all do. The features of the others are set to
        zero, so that the state passes them unchanged wherever they stand.
      chunk: tokens handled together when causal.
      target: the device that the program is made for; None for that of this process.

    Returns:
      `[B, N, H, D]` in the dtype of v; zero where the denominator is zero. Time O(N M D), plus O(N
      chunk (M + D)) if causal; memory O(N (M + D) + M D), plus a state for each group of tokens if
      causal (`grouped`).
    """
    if causal:
        tokens = _Tokens(phi_q, phi_k, v, valid)

        def divided(parts: Parts) -> Array:
            return ratio(*parts).astype(v.dtype)

        return _recurrent(no_sums_of(phi_k, v), tokens, divided, chunk, target)[1]
    dtype = wide(phi_q, phi_k, v)
    if valid is not None:
        phi_k = jnp.where(valid[:, :, None, None], phi_k, 0)
    phi_q, phi_k, value = phi_q.swapaxes(1, 2), phi_k.swapaxes(1, 2), v.swapaxes(1, 2)
    out = two_products(phi_q, phi_k, value, dtype, target or here())
    return out.swapaxes(1, 2).astype(v.dtype)


def two_products(phi_q: Array, phi_k: Array, v: Array, dtype: jnp.dtype, target: Target) -> Array:
    """`linear_attention` over all j, in `dtype`, of `[B, H, N, M]` and `[B, H, N, D]`.

    Heads come first, and the state is `[D, M]`: on a CPU half the time of `bnhm,bnhd->bhmd`, which
    transposes each array on its own and multiplies into narrow rows. There the sum of features that
    are wider than the values is one more row of the state: that saves reading the features again.
    An accelerator would fill the row up to a whole tile.
    """
    state = functools.partial(jnp.einsum, "bhnd,bhnm->bhdm", preferred_element_type=dtype)
    read = functools.partial(jnp.einsum, "bhnm,bhdm->bhnd", preferred_element_type=dtype)
    if phi_k.shape[-1] > v.shape[-1] and not target.accelerated:
        with_ones = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
        joint = read(phi_q, state(with_ones, phi_k))
        return ratio(joint[..., :-1], joint[..., -1:])
    numerator = read(phi_q, state(v, phi_k))
    total = jnp.sum(phi_k, axis=2, dtype=dtype)
    denominator = jnp.einsum("bhnm,bhm->bhn", phi_q, total, preferred_element_type=dtype)
    return ratio(numerator, denominator[..., None])


def linear_weights(phi_q: Array, phi_k: Array, allowed: Array | None) -> Array:
    """The matrix of `linear_attention` by definition, `[B, H, N, N]`.

    Products of features, divided by their sum. `allowed` is as in `dense_allowed`.
    """
    dtype = wide(phi_q, phi_k)
    products = jnp.einsum("bnhm,bkhm->bhnk", phi_q, phi_k, preferred_element_type=dtype)
    if allowed is not None:
        products = jnp.where(allowed, products, 0)
    return ratio(products, products.sum(-1, keepdims=True))


def chunk_of(length: int, chunk: int, leaf: int = 1) -> int:
    """`chunk`, halved as long as `length` tokens fit into the half, to `leaf` at least."""
    while chunk > leaf and chunk // 2 >= length:
        chunk //= 2
    return chunk


def chunked(x: Array, chunk: int, fill: float = 0) -> Array:
    """`[B, N, H, F]` to `[T, B, H, chunk, F]`, the last chunk filled up with `fill`.

    One number for each token and head, `[B, N, H]`, becomes `[T, B, H, chunk]`. It has no last axis
    of 1: accelerators fill the last axis up to 128.
    """
    batch, length, heads, *width = x.shape
    padding = ((0, 0), (0, -length % chunk), *((0, 0),) * (x.ndim - 2))
    x = jnp.pad(x, padding, constant_values=fill)
    x = x.reshape(batch, -(-length // chunk), chunk, heads, *width)
    return x.swapaxes(0, 1).swapaxes(2, 3)


def joined(x: Array, length: int) -> Array:
    """`[T, B, H, chunk, F]` to `[B, N, H, F]`: the inverse of `chunked`."""
    chunks, batch, heads, chunk, *width = x.shape
    x = x.swapaxes(2, 3).swapaxes(0, 1)
    return x.reshape(batch, chunks * chunk, heads, *width)[:, :length]


GROUP = 256
"""Tokens of which a gradient keeps nothing but the state before them and what they are made of."""

ON_CPU = 2048
"""On a CPU tokens are cut into groups from so many on.

For fewer computing again costs more time than is saved by arrays that fit into the cache.
"""


def group_of(
    length: int, target: Target | None = None, on_cpu: int = ON_CPU, group: int = GROUP
) -> int:
    """Tokens in a group of `grouped`, at most: `group`, but all of fewer than `on_cpu` on a CPU."""
    if length < on_cpu and not (target or here()).accelerated:
        return length
    return group


State = TypeVar("State")
Tokens = TypeVar("Tokens")
Outputs = TypeVar("Outputs")


def grouped(
    body: Callable[[State, Tokens], tuple[State, Outputs]],
    state: State,
    tokens: Tokens,
    *,
    chunk: int,
    reverse: bool = False,
    group: int,
) -> tuple[State, Outputs]:
    """`body` of one group of tokens after another, each computed again in the backward pass.

    Memory for a gradient: `tokens`, the outputs, a state for each group, and everything `body`
    computes for one group; what it computes for the others is not held. So arrays of a narrow dtype
    belong into `tokens` as they are, and `body` makes them wider.

    Args:
      body: from a state, and from the arrays of `tokens` for n tokens, `[B, n, ...]`, to the next
        state, and arrays `[B, n, H, F]`. Tokens that fill the last group up are zero (False) in all
        arrays of `tokens`, and must leave the state as it is.
      state: before the first token.
      tokens: a tree of arrays `[B, N, ...]`, the first of them `[B, N, H, F]`; None stays None.
      chunk: groups are a multiple of it.
      reverse: from the last group to the first.
      group: tokens in a group, at most. No more tokens than that are one call of `body`, without a
        loop.

    Returns:
      The state after all tokens, and the outputs `[B, N, H, F]`.
    """
    batch, length, heads = jax.tree.leaves(tokens)[0].shape[:3]
    groups = -(-length // max(group, chunk))
    if groups == 1:
        return body(state, tokens)
    # Equally large, so that little of the last one is filled up.
    size = chunk * -(-length // (chunk * groups))

    def cut(x: Array) -> Array:
        """`[B, N, ...]` to `[groups, B, n, ...]`."""
        x = jnp.pad(x, ((0, 0), (0, groups * size - length), *((0, 0),) * (x.ndim - 2)))
        x = folded(x)
        return x.reshape(batch, groups, size, *x.shape[2:]).swapaxes(0, 1)

    def whole(x: Array) -> Array:
        """Outputs `[groups, B, n, H F]` to `[B, N, H, F]`."""
        x = x.swapaxes(0, 1)
        return x.reshape(batch, groups * size, heads, x.shape[-1] // heads)[:, :length]

    def step(state: State, parts: Tokens) -> tuple[State, Outputs]:
        def unfolded(part: Array, x: Array) -> Array:
            return part.reshape(*part.shape[:2], *x.shape[2:])

        state, outputs = body(state, jax.tree.map(unfolded, parts, tokens))
        return state, jax.tree.map(folded, outputs)

    # Inside a loop nothing can be merged with what the checkpoint computes again.
    step = jax.checkpoint(step, prevent_cse=False)
    state, outputs = jax.lax.scan(step, state, jax.tree.map(cut, tokens), reverse=reverse)
    return state, jax.tree.map(whole, outputs)


def folded(x: Array) -> Array:
    """`[B, N, H, F]` to `[B, N, H F]`: accelerators fill a last axis that is narrow up to 128."""
    if x.ndim < 4:
        return x
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3])


def running(x: Array) -> tuple[Array, Array]:
    """Sums of x `[..., C]` up to each place, with it and without it: log-decays within a chunk.

    Products with triangles of ones and not `cumsum`: they and their gradients are quicker on a CPU,
    and summed with half the rounding error. Accelerators would round the factors by default. Nor is
    the second the first less x: XLA's fusions would read x for each pair of tokens.
    """
    ones = jnp.ones((x.shape[-1], x.shape[-1]), x.dtype)
    sums = functools.partial(jnp.einsum, "ij,...j->...i", precision="highest")
    return sums(jnp.tril(ones), x), sums(jnp.tril(ones, -1), x)


def carried(
    decay: Array | None, update: Array, start: Array, reverse: bool = False
) -> tuple[Array, Array]:
    """States before each chunk, `[T, B, H, M, D]`, and the one after the last, `[B, H, M, D]`.

    S_0 = start, S_{t+1} = decay_t S_t + update_t. The expensive parts, the updates and what is read
    from the states, are computed for all chunks at once. Only this runs from chunk to chunk.

    Args:
      decay: factors, broadcastable to `update`; None for 1.
      update: `[T, B, H, M, D]`.
      start: `[B, H, M, D]`.
      reverse: from the last chunk to the first: the states after each chunk, and the one before
        the first.
    """

    def step(state: Array, chunk: tuple[Array | None, Array]) -> tuple[Array, Array]:
        factor, new = chunk
        kept = state
        if factor is not None:
            kept = factor * state
        return kept + new, state

    if len(update) == 1:  # one chunk: no loop
        factor = decay
        if factor is not None:
            factor = factor[0]
        last, _ = step(start, (factor, update[0]))
        return start[None], last
    last, states = jax.lax.scan(step, start, (decay, update), reverse=reverse)
    return states, last


class Sums(NamedTuple):
    """What the tokens so far leave for later ones.

    Attributes:
      state: sum_j phi_k_j v_j^T, `[B, H, M, D]`.
      total: sum_j phi_k_j, `[B, H, M, 1]`.
    """

    state: Array
    total: Array


def linear_attention_from(
    sums: Sums,
    phi_q: Array,
    phi_k: Array,
    v: Array,
    *,
    valid: Array | None = None,
    chunk: int = 64,
    target: Target | None = None,
) -> tuple[Array, Sums]:
    """`linear_attention`, causal, of tokens that follow those in `sums`; and the sums after them.

    The output is in float32 or wider.
    """
    parts, sums = linear_parts_from(sums, phi_q, phi_k, v, valid=valid, chunk=chunk, target=target)
    return ratio(*parts), sums


class Parts(NamedTuple):
    """A weighted mean that is not divided yet.

    Attributes:
      numerator: the weighted sum of the values, `[..., D]`.
      denominator: the sum of the weights, `[..., 1]`.
    """

    numerator: Array
    denominator: Array


def linear_parts_from(
    sums: Sums,
    phi_q: Array,
    phi_k: Array,
    v: Array,
    *,
    valid: Array | None = None,
    chunk: int = 64,
    target: Target | None = None,
) -> tuple[Parts, Sums]:
    """`linear_attention_from` before it is divided, `[B, N, H, ...]`; and the sums after it."""
    if v.shape[1] > 1:
        tokens = _Tokens(phi_q, phi_k, v, valid)
        sums, parts = _recurrent(sums, tokens, lambda parts: parts, chunk, target)
        return parts, sums
    dtype = wide(phi_q, phi_k, v)
    if valid is not None:
        phi_k = jnp.where(valid[:, :, None, None], phi_k, 0)
    # One token: no chunks, and no products of matrices.
    q = phi_q[:, 0].astype(dtype)  # [B, H, M]
    k = phi_k[:, 0].astype(dtype)[..., None]  # [B, H, M, 1]
    value = v[:, 0].astype(dtype)[:, :, None]  # [B, H, 1, D]
    sums = Sums(sums.state + k * value, sums.total + k)
    numerator = jnp.einsum("bhm,bhmd->bhd", q, sums.state)
    denominator = jnp.einsum("bhm,bhmd->bhd", q, sums.total)
    return Parts(numerator[:, None], denominator[:, None]), sums


def no_sums_of(phi_k: Array, v: Array) -> Sums:
    """The sums before the first token, for features `[B, N, H, M]` and values `[B, N, H, D]`."""
    batch, _, heads, width = phi_k.shape
    state = jnp.zeros((batch, heads, width, v.shape[-1]), wide(phi_k, v))
    return Sums(state, state[..., :1])


class _Tokens(NamedTuple):
    """What `linear_attention` takes for each token."""

    phi_q: Array
    phi_k: Array
    v: Array
    valid: Array | None


def _recurrent(
    sums: Sums,
    tokens: _Tokens,
    output: Callable[[Parts], Outputs],
    chunk: int,
    target: Target | None,
) -> tuple[Sums, Outputs]:
    """The causal sums after the tokens, and `output` of what each token reads."""
    length = tokens.v.shape[1]
    chunk = min(chunk, length)
    dtype = wide(*tokens[:3])

    def body(sums: Sums, tokens: _Tokens) -> tuple[Sums, Outputs]:
        sums, parts = _group(sums, tokens, dtype, chunk)
        return sums, output(parts)

    sums = Sums(*(part.astype(dtype) for part in sums))
    # Little is computed for a token: on a CPU doing so twice pays for long sequences alone.
    group = group_of(length, target, on_cpu=4 * ON_CPU)
    return grouped(body, sums, tokens, chunk=chunk, group=group)


def _group(sums: Sums, tokens: _Tokens, dtype: jnp.dtype, chunk: int) -> tuple[Sums, Parts]:
    """Within a chunk by a masked product, from earlier ones by the sums phi_k v^T and phi_k."""
    phi_k = tokens.phi_k
    if tokens.valid is not None:
        phi_k = jnp.where(tokens.valid[:, :, None, None], phi_k, 0)
    q = chunked(tokens.phi_q.astype(dtype), chunk)  # [T, B, H, C, M]
    k = chunked(phi_k.astype(dtype), chunk)
    value = chunked(tokens.v.astype(dtype), chunk)
    past = jnp.tril(jnp.ones((chunk, chunk), bool))  # j <= i
    within = jnp.where(past, jnp.einsum("tbhim,tbhjm->tbhij", q, k), 0)
    state, last = carried(None, jnp.einsum("tbhjm,tbhjd->tbhmd", k, value), sums.state)
    total, last_total = carried(None, jnp.sum(k, axis=3)[..., None], sums.total)  # [T, B, H, M, 1]
    parts = read_chunks(within, value, q, state, total)
    length = tokens.v.shape[1]
    joint = Parts(joined(parts.numerator, length), joined(parts.denominator, length))
    return Sums(last, last_total), joint


def read_chunks(within: Array, value: Array, read: Array, state: Array, total: Array) -> Parts:
    """What each token reads of its own chunk and of the chunks before it.

    Args:
      within: weights of tokens of the same chunk, `[T, B, H, C, C]`.
      value: `[T, B, H, C, D]`.
      read: what the states are multiplied by, `[T, B, H, C, M]`.
      state, total: sums over earlier chunks with and without values, `[T, B, H, M, D]` and
        `[T, B, H, M, 1]`.

    Returns:
      Numerators `[T, B, H, C, D]` and denominators.
    """
    near = jnp.einsum("tbhij,tbhjd->tbhid", within, value)
    far = jnp.einsum("tbhim,tbhmd->tbhid", read, state)
    numerator = near + far
    near = jnp.sum(within, axis=-1, keepdims=True)
    far = jnp.einsum("tbhim,tbhmd->tbhid", read, total)
    denominator = near + far
    return Parts(numerator, denominator)
