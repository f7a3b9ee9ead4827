"""Softmax attention over keys and values that are kept while a sequence grows.

Every row of a batch has positions of its own: a token's is the number of tokens before it in its
row. A `Layout` says at which slot of the cache a position is kept, and for how long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from dartformer.kernels.softmax import both_masks, joint_exponentials, wide


class Layout(Protocol):
    """Which tokens a cache keeps, and where."""

    @property
    def forgets(self) -> bool:
        """Whether a slot is used again, so that an early token is lost."""
        ...

    def slots(self, length: int) -> int:
        """How many slots sequences of at most `length` tokens need."""
        ...

    def slot(self, position: Array) -> Array:
        """Where the token at `position` is kept."""
        ...

    def held(self, count: Array, slots: int) -> Array:
        """The position that each slot holds after `count` `[B]` tokens, `[B, slots]`; -1: none."""
        ...


@dataclass(frozen=True)
class Recent:
    """The first tokens, and the last ones in a ring.

    Attributes:
      first: tokens that are kept for good.
      last: the most recent others, or None for all.
    """

    first: int = 0
    last: int | None = None

    @property
    def forgets(self) -> bool:
        """See `Layout`."""
        return self.last is not None

    def slots(self, length: int) -> int:
        """See `Layout`."""
        if self.last is None:
            return length
        return min(length, self.first + self.last)

    def slot(self, position: Array) -> Array:
        """See `Layout`."""
        if self.last is None:
            return position
        in_ring = self.first + (position - self.first) % self.last
        return jnp.where(position < self.first, position, in_ring)

    def held(self, count: Array, slots: int) -> Array:
        """See `Layout`."""
        slot = jnp.arange(slots)
        position = jnp.broadcast_to(slot, (count.shape[0], slots))
        if self.last is not None:
            # How often the ring has come around to each slot.
            turns = jnp.maximum((count[:, None] - 1 - slot) // self.last, 0)
            position = jnp.where(slot < self.first, slot, slot + turns * self.last)
        return jnp.where(slot < count[:, None], position, -1)


@dataclass(frozen=True)
class Summaries:
    """The current block, and the last places of every block.

    Attributes:
      block: tokens in a block.
      summary: places at its end, 1 to block, that are kept for good.
    """

    block: int
    summary: int

    @property
    def forgets(self) -> bool:
        """See `Layout`."""
        return self.summary < self.block

    @property
    def _passing(self) -> int:
        """Places of a block that the next block writes over."""
        return self.block - self.summary

    def slots(self, length: int) -> int:
        """See `Layout`."""
        blocks, rest = divmod(length, self.block)
        summaries = blocks * self.summary + max(0, rest - self._passing)
        return min(self._passing, length) + summaries

    def slot(self, position: Array) -> Array:
        """See `Layout`."""
        place = position % self.block
        # The summaries of earlier blocks lie between the passing places and this one.
        kept = place + position // self.block * self.summary
        return jnp.where(place < self._passing, place, kept)

    def held(self, count: Array, slots: int) -> Array:
        """See `Layout`."""
        slot = jnp.arange(slots)
        turns = jnp.maximum((count[:, None] - 1 - slot) // self.block, 0)
        passing = slot + turns * self.block
        number = slot - self._passing
        kept = number // self.summary * self.block + self._passing + number % self.summary
        position = jnp.where(slot < self._passing, passing, kept)
        return jnp.where(position < count[:, None], position, -1)


class Held(NamedTuple):
    """One set of keys that queries may see.

    Attributes:
      k, v: `[B, G, S, D]`, G of the heads of keys and values.
      position: of each key, `[B, S]`.
      allowed: which key each query sees, bool, broadcastable to `[B, H, T, S]`.
    """

    k: Array
    v: Array
    position: Array
    allowed: Array


class New(NamedTuple):
    """Tokens that follow those in a cache: in each row the first ones exist, the others do not.

    Attributes:
      position: of each, if it exists, `[B, T]`.
      exists: `[B, T]` bool.
      start, stop: tokens of each row without them and with them, `[B]`.
    """

    position: Array
    exists: Array
    start: Array
    stop: Array


def write(cache: Array, x: Array, new: New, layout: Layout) -> Array:
    """`cache` `[B, G, S, D]` with the new tokens `x` `[B, T, G, D]` at their slots."""
    slots = cache.shape[2]
    x = x.astype(cache.dtype)
    if x.shape[1] == 1:
        # Out of bounds where no token exists, or no slot is left: such a write is dropped.
        slot = jnp.where(new.exists[:, 0], layout.slot(new.position[:, 0]), slots)
        row = jnp.arange(cache.shape[0])[:, None]
        head = jnp.arange(cache.shape[1])
        return cache.at[row, head, slot[:, None]].set(x[:, 0], mode="drop")
    # By slot and not by token: of several tokens for one slot the last is kept.
    index = layout.held(new.stop, slots) - new.start[:, None]  # [B, S], below 0 for older tokens
    source = jnp.clip(index, 0)[:, None, :, None]
    fresh = jnp.take_along_axis(x.swapaxes(1, 2), source, axis=2, mode="clip")  # [B, G, S, D]
    return jnp.where((index >= 0)[:, None, :, None], fresh, cache)


def visible(new: New, position: Array, exists: Array) -> Array:
    """Which keys at `position` `[B, S]` are no later than each new query, `[B, 1, T, S]` bool."""
    past = position[:, None] <= new.position[:, :, None]
    return (past & exists[:, None])[:, None]


def grouped_scores(q: Array, k: Array, groups: tuple[int, ...]) -> Array:
    """Scaled dot products `[B, H, T, S]` of q `[B, T, H, D]` and k `[B, G, S, D]`.

    In float32 or wider. `groups` has the head of k for each head of q; empty: H / G neighbouring
    heads share one.
    """
    dtype = wide(q, k)
    scale = q.shape[-1] ** -0.5
    if groups:
        k = k[:, jnp.array(groups)]
    batch, queries, heads, width = q.shape
    kept = k.shape[1]
    # Keys are read once for all queries of their group, [B, G, H / G T, D], and where they lie: with
    # the axes of q in any other order XLA copies them on a CPU.
    grouped = q.swapaxes(1, 2).reshape(batch, kept, heads // kept * queries, width)
    scores = jnp.einsum("bgnd,bgsd->bgns", grouped, k, preferred_element_type=dtype) * scale
    return scores.reshape(batch, heads, queries, k.shape[2])


def grouped_values(weights: Array, v: Array, groups: tuple[int, ...]) -> Array:
    """Weights `[B, H, T, S]` times v `[B, G, S, D]`: `[B, T, H, D]` in float32 or wider."""
    dtype = wide(weights, v)
    if groups:
        v = v[:, jnp.array(groups)]
    batch, heads, queries, slots = weights.shape
    kept = v.shape[1]
    grouped = weights.reshape(batch, kept, heads // kept * queries, slots)
    out = jnp.einsum("bgns,bgsd->bgnd", grouped, v, preferred_element_type=dtype)
    return out.reshape(batch, heads, queries, v.shape[3]).swapaxes(1, 2)


def cached_attention(
    q: Array,
    sets: Sequence[Held],
    new: New,
    *,
    slopes: Array | None = None,
    groups: tuple[int, ...] = (),
) -> Array:
    """One softmax over the union of `sets`: sum_j softmax_j(q_i . k_j / sqrt(D) - slope |i - j|) v_j.

    Args:
      q: `[B, T, H, D]`, of the new tokens.
      sets: the keys; they must not overlap.
      new: the positions of the queries.
      slopes: `[H]`, of ALiBi; None without.
      groups: as in `grouped_scores`.

    Returns:
      `[B, T, H, D]` in float32 or wider; zero for a query that sees no key.
    """
    scores = []
    masks: list[Array | None] = []
    for held in sets:
        dots = grouped_scores(q, held.k, groups)
        distance = held.position[:, None, None] - new.position[:, None, :, None]  # [B, 1, T, S]
        scores.append(row_bias(dots, slopes, distance))
        masks.append(held.allowed)
    numerators, total = joint_exponentials(scores, masks)
    out = jnp.zeros((), total.dtype)
    for numerator, held in zip(numerators, sets, strict=True):
        out = out + grouped_values(numerator, held.v, groups)
    return out / total.swapaxes(1, 2)  # [B, T, H, 1]


def row_bias(scores: Array, slopes: Array | None, distance: Array) -> Array:
    """`distance_bias` with distances of each row: `[B, 1, T, S]` for scores `[B, H, T, S]`."""
    if slopes is None:
        return scores
    slope = slopes.astype(scores.dtype)[:, None, None]  # [H, 1, 1]
    return scores - slope * abs(distance).astype(scores.dtype)


def held_sets(
    k: Array,
    v: Array,
    before: tuple[Array, Array],
    after: tuple[Array, Array],
    new: New,
    layout: Layout,
) -> list[Held]:
    """What the new queries may see, as far as time goes.

    Args:
      k, v: of the new tokens, `[B, T, G, D]`.
      before, after: the cached keys and values without them and with them.
      new: where they are.
      layout: of the cache.
    """
    slots = after[0].shape[2]
    if new.position.shape[1] == 1 or not layout.forgets:
        position = layout.held(new.stop, slots)
        return [Held(*after, position, visible(new, position, position >= 0))]
    # Several tokens at once may push out what the first of them still sees.
    position = layout.held(new.start, slots)
    old = Held(*before, position, visible(new, position, position >= 0))
    fresh = visible(new, new.position, new.exists)
    return [old, Held(k.swapaxes(1, 2), v.swapaxes(1, 2), new.position, fresh)]


def restricted(held: Held, sees: Array | None) -> Held:
    """`held` without the keys that `sees` leaves out."""
    allowed = both_masks(held.allowed, sees)
    assert allowed is not None
    return held._replace(allowed=allowed)
