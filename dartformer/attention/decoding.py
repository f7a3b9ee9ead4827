"""Token by token: what causal attentions share that keep keys and values, or a state.

A token's position is the number of valid tokens before it in its row. Padding takes no place, is
not written, and its outputs are zero: prompts of different lengths decode as each alone.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    Attention,
    Cache,
    Inputs,
    Params,
    Shape,
    accept,
    zero_invalid,
)
from dartformer.errors import InputError
from dartformer.kernels.cached import (
    Held,
    Layout,
    New,
    Recent,
    cached_attention,
    held_sets,
    restricted,
    write,
)
from dartformer.kernels.softmax import wide

EVERYTHING = Recent()
"""The layout that keeps all tokens."""


class Tokens(NamedTuple):
    """New tokens in order: those of a row that exist come first.

    Attributes:
      inputs: in that order, with `valid` None.
      new: where they are.
      order: what was moved where, `[B, T]`; None where nothing was.
    """

    inputs: Inputs
    new: New
    order: Array | None


def starts(inputs: Inputs) -> Array:
    """`[B]`: how many tokens of each row come before these."""
    if inputs.start is None:
        return jnp.zeros(inputs.v.shape[0], jnp.int32)
    return inputs.start


def positions(inputs: Inputs) -> Array:
    """`[B, T]`: how many valid tokens of its row come before each token."""
    start = starts(inputs)[:, None]
    if inputs.valid is None:
        return start + jnp.arange(inputs.v.shape[1], dtype=jnp.int32)
    before = jnp.cumsum(inputs.valid, axis=1, dtype=jnp.int32) - inputs.valid
    return start + before


def in_order(inputs: Inputs) -> Tokens:
    """`inputs` with the valid tokens of each row first, in their order."""
    start = starts(inputs)
    offset = jnp.arange(inputs.v.shape[1], dtype=jnp.int32)
    position = start[:, None] + offset
    if inputs.valid is None:
        exists = jnp.ones(position.shape, bool)
        return Tokens(inputs, New(position, exists, start, start + len(offset)), None)
    count = inputs.valid.sum(1, dtype=jnp.int32)
    exists = offset < count[:, None]
    new = New(position, exists, start, start + count)
    plain = dataclasses.replace(inputs, valid=None)
    if len(offset) == 1:
        return Tokens(plain, new, None)
    # Stable, so that valid tokens keep their order.
    order = jnp.argsort(~inputs.valid, axis=1, stable=True)

    def moved(x: Array | None) -> Array | None:
        if x is None:
            return None
        index = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)

    arrays: dict[str, Any] = {name: moved(getattr(inputs, name)) for name in "qkvx"}
    return Tokens(dataclasses.replace(plain, **arrays), new, order)


def in_place(out: Array, tokens: Tokens, inputs: Inputs) -> Array:
    """Outputs `[B, T, H, D]` of `tokens` in the places of `inputs` and in the dtype of its v."""
    out = out.astype(inputs.v.dtype)
    if tokens.order is not None:
        back = jnp.argsort(tokens.order, axis=1)[:, :, None, None]
        out = jnp.take_along_axis(out, back, axis=1)
    return zero_invalid(out, inputs.mask)


def repeated(inputs: Inputs) -> Inputs:
    """`inputs` with keys and values for every head of q, where heads share them."""
    k, v = for_heads(inputs.k, inputs), for_heads(inputs.v, inputs)
    return dataclasses.replace(inputs, k=k, v=v, groups=())


def for_heads(x: Array, inputs: Inputs) -> Array:
    """x `[B, N, G, D]`, of the heads of keys and values, for every head of q, `[B, N, H, D]`."""
    heads, kept = inputs.q.shape[2], x.shape[2]
    if inputs.groups:
        return x[:, :, jnp.array(inputs.groups)]
    if kept == heads:
        return x
    return jnp.repeat(x, heads // kept, axis=2)


def kept_shape(inputs: Inputs, length: int) -> Shape:
    """The shape of a cache for rows like those of `inputs`, of at most `length` tokens."""
    batch, _, heads, width = inputs.q.shape
    model_dim = heads * width
    if inputs.x is not None:
        model_dim = inputs.x.shape[-1]
    return Shape(length, heads, width, model_dim, batch, kv_heads=inputs.v.shape[2])


def accept_cache(attention: Attention, cache: Cache, expected: Cache) -> None:
    """Raise `InputError` for a cache that was made for something else.

    Args:
      attention: whose cache it is.
      cache: any.
      expected: arrays or shapes; an axis of -1 may have any size.
    """
    found = jax.tree.map(jnp.shape, cache)
    for name in sorted({*found, *expected}):
        shape = found.get(name)
        want = expected.get(name)
        if shape is None or want is None or not _alike(shape, want):
            raise InputError(
                f"{attention!r}: the cache does not fit the inputs: {name!r} is {_sizes(shape)}, "
                f"and the inputs need {_sizes(want)}. Make one with init_cache for their shape."
            )


def _alike(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    return all(b == -1 or a == b for a, b in zip(shape, expected, strict=True))


def _sizes(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "missing"
    axes = []
    for size in shape:
        axes.append(str(size).replace("-1", "any"))
    return f"[{', '.join(axes)}]"


def accept_prefill(attention: Attention, inputs: Inputs) -> None:
    """Raise `InputError` for a prompt that `prefill` does not take."""
    accept(attention, inputs, causal=True)
    if inputs.start is not None:
        raise InputError(
            f"{attention!r}: prefill fills an empty cache, but inputs.start is an array. Use step "
            f"for tokens that follow others."
        )


def accept_room(attention: Attention, inputs: Inputs, slots: int) -> None:
    """Raise `InputError` for more tokens at once than a cache that keeps all has room for."""
    if inputs.v.shape[1] > slots:
        raise InputError(
            f"{attention!r}: the cache holds {slots} tokens, got {inputs.v.shape[1]}. Make a "
            f"longer one."
        )


class _KeyValueType(Attention, Protocol):
    """What `KeepsKeys` needs of the class that inherits it."""

    def kept(self) -> Layout: ...
    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array | None: ...
    def read(self, params: Params, tokens: Tokens, sets: list[Held]) -> Array: ...


class KeepsKeys:
    """Decoding for a softmax over keys: the cache holds keys and values, one for each head of them.

    A type says which tokens are kept, in `kept`, and which of them a query sees, in `sees`.
    """

    def kept(self) -> Layout:
        """Which tokens the cache keeps: all."""
        return EVERYTHING

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array | None:
        """Which keys that are no later a query sees, bool; None for all.

        Positions are `[B, 1, T, 1]` of the queries, `[B, 1, 1, S]` of the keys.
        """
        return None

    def read(self, params: Params, tokens: Tokens, sets: list[Held]) -> Array:
        """The output of the new tokens, `[B, T, H, D]`."""
        inputs = tokens.inputs
        return cached_attention(
            inputs.q, sets, tokens.new, slopes=inputs.slopes, groups=inputs.groups
        )

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """Keys and values, `[B, heads of them, slots, D]` each."""
        slots = self.kept().slots(shape.length)
        size = (shape.batch, shape.kept_heads, slots, shape.head_dim)
        return {"k": jnp.zeros(size, dtype), "v": jnp.zeros(size, dtype)}

    def prefill(
        self: _KeyValueType, params: Params, inputs: Inputs, cache: Cache
    ) -> tuple[Array, Cache]:
        """See `base.Decoder`."""
        accept_prefill(self, inputs)
        accept_keys(self, inputs, cache)
        tokens = in_order(inputs)
        out = self(params, repeated(tokens.inputs), causal=True)
        return in_place(out, tokens, inputs), written(cache, tokens, self.kept())

    def step(
        self: _KeyValueType, params: Params, inputs: Inputs, cache: Cache
    ) -> tuple[Array, Cache]:
        """See `base.Decoder`."""
        accept(self, inputs, causal=True)
        accept_keys(self, inputs, cache)
        tokens = in_order(inputs)
        after = written(cache, tokens, self.kept())
        sets = seen_sets(self, tokens, cache, after)
        return in_place(self.read(params, tokens, sets), tokens, inputs), after


def accept_keys(attention: _KeyValueType, inputs: Inputs, cache: Cache) -> None:
    """Raise `InputError` for cached keys and values that do not fit the new tokens."""
    batch, _, kept, width = inputs.k.shape
    size = (batch, kept, -1, width)
    accept_cache(attention, {"k": cache.get("k"), "v": cache.get("v")}, {"k": size, "v": size})
    if not attention.kept().forgets:
        accept_room(attention, inputs, cache["k"].shape[2])


def written(cache: Cache, tokens: Tokens, layout: Layout) -> Cache:
    """The cached keys and values with those of the new tokens."""
    inputs, new = tokens.inputs, tokens.new
    k = write(cache["k"], inputs.k, new, layout)
    v = write(cache["v"], inputs.v, new, layout)
    return {**cache, "k": k, "v": v}


def seen_sets(attention: _KeyValueType, tokens: Tokens, cache: Cache, after: Cache) -> list[Held]:
    """What the new tokens see of the caches without them and with them."""
    inputs, new, layout = tokens.inputs, tokens.new, attention.kept()
    pairs = ((cache["k"], cache["v"]), (after["k"], after["v"]))
    sets = []
    for held in held_sets(inputs.k, inputs.v, *pairs, new, layout):
        query = new.position[:, None, :, None]
        sees = attention.sees(inputs, query, held.position[:, None, None])
        sets.append(restricted(held, sees))
    return sets


class _StateType(Attention, Protocol):
    """What `KeepsState` needs of the class that inherits it."""

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = ..., head_keys: Array | None = ...
    ) -> Cache: ...
    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]: ...
    def step(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]: ...


class KeepsState:
    """Decoding for a recurrence: the cache holds a state, whatever the number of tokens.

    A type makes the state in `init_cache`, and takes it further in `advance`, by tokens in parallel.
    """

    def prefill(
        self: _StateType, params: Params, inputs: Inputs, cache: Cache
    ) -> tuple[Array, Cache]:
        """See `base.Decoder`."""
        accept_prefill(self, inputs)
        return self.step(params, inputs, cache)

    def step(self: _StateType, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `base.Decoder`."""
        accept(self, inputs, causal=True)
        shape = kept_shape(inputs, 1)
        expected = jax.eval_shape(lambda: self.init_cache(shape, inputs.v.dtype, inputs.head_keys))
        accept_cache(self, cache, jax.tree.map(jnp.shape, expected))
        out, cache = self.advance(params, inputs, cache)
        return zero_invalid(out.astype(inputs.v.dtype), inputs.mask), cache


def state_array(shape: Shape, rows: int, columns: int, dtype: DTypeLike) -> Array:
    """A state of zeros, `[B, H, rows, columns]`, in float32 or wider: it sums over many tokens."""
    return jnp.zeros((shape.batch, shape.heads, rows, columns), wide(jnp.zeros((), dtype)))
