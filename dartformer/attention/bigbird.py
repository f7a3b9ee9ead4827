"""BigBird: a window of blocks, blocks that see and are seen by all, and blocks drawn at random."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.attention.base import (
    POSITIONS,
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    head_keys,
    kv_cache_bytes,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsKeys
from dartformer.attention.slices import by_heads
from dartformer.kernels.block_sparse import block_sparse_attention
from dartformer.kernels.softmax import dense_weights, softmax_attention


@dataclass(frozen=True, repr=False)
class BigBird(KeepsKeys, Spelled):
    """Softmax over chosen blocks: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j, j in i's set.

    Of the blocks 0 .. n-1 of an example, block t sees: t-1, t, t+1; the first and the last
    `globals`, which see all blocks themselves; and `randoms` more, drawn without repetition from
    the remaining ones. Where fewer than that remain it sees them all: few blocks are full
    attention, exactly.

    Paper: Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D (BigBird-ITC).
    Own parameters: none.
    Cost: O(N b (3 + randoms + 4 globals) D) time, memory without the D; no N x N array.
    Randomness: the graph of a head depends on its key in `Inputs.head_keys`, the number of the
      block and n, and on nothing else: it is the same in training, evaluation, after a restart, and
      in a derived model.
    Masks: invalid keys are left out of the softmax. n counts blocks up to that of the last valid
      token of each example: the last blocks are not padding, and padding a batch further changes
      nothing. A query that sees no key gives zero.
    Deviations: the paper has no causal form. Here it is t-1, t up to the query, the first `globals`
      blocks, and `randoms` drawn from the blocks in between; there are no last blocks, and nothing
      depends on n.

    Attributes:
      block: b, tokens in a block.
      randoms: random blocks for each block of queries, at least 1.
      globals: global blocks at each end, at least 1.
    """

    block: int = 8
    randoms: int = 2
    globals: int = 1

    traits: ClassVar[Traits] = Traits(
        summary="softmax over a window, global and random blocks",
        paper="Zaheer et al. 2020, arXiv:2007.14062",
        causal=True,
        stochastic=True,
        decodes=True,
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        positive(self, block=self.block, randoms=self.randoms, globals=self.globals)

    def init(self, key: Array, shape: Shape) -> Params:
        """No parameters."""
        return {}

    def sees_all(self, length: int, *, causal: bool = False) -> bool:
        """Whether `length` tokens are so few blocks that all are seen, as in full attention."""
        blocks = -(-length // self.block)
        ends = 2
        if causal:
            ends = 1
        # Beside the window of two blocks at an end, the smallest there is, and the global blocks.
        return blocks - 2 - self.globals * ends <= self.randoms

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        *,
        causal: bool = False,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """See `Attention`."""
        accept(self, inputs, causal=causal)

        def some(params: Params, inputs: Inputs, key: Array | None) -> Array:
            return self._attend(params, inputs, causal, inputs.rate(train), key)

        return by_heads(some, params, inputs, key)

    def _attend(
        self, params: Params, inputs: Inputs, causal: bool, dropout: float, key: Array | None
    ) -> Array:
        """The output of all heads of `inputs` at once."""
        if self.sees_all(inputs.q.shape[1], causal=causal):
            out = softmax_attention(
                inputs.q,
                inputs.k,
                inputs.v,
                causal=causal,
                valid=inputs.valid,
                slopes=inputs.slopes,
                dropout=dropout,
                key=key,
            )
            return zero_invalid(out, inputs.mask)

        everywhere, drawn = self.graph(inputs, causal=causal)
        window = np.arange(-1, 2)
        allowed = None
        if causal:
            window = np.arange(-1, 1)
            allowed = _not_later
        # Beyond both ends these are no blocks; `block_sparse_attention` leaves them empty.
        number = np.arange(drawn.shape[2])[:, None]
        near = jnp.broadcast_to(number + window, (*drawn.shape[:3], len(window)))
        out = block_sparse_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            jnp.concatenate([near, drawn], axis=-1),
            block=self.block,
            everywhere=everywhere,
            both_ways=not causal,
            allowed=allowed,
            valid=inputs.valid,
            slopes=inputs.slopes,
            dropout=dropout,
            key=key,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.mask)

    def graph(self, inputs: Inputs, *, causal: bool = False) -> tuple[np.ndarray | Array, Array]:
        """The global blocks `[B or 1, G]`, and the random ones of each block.

        The random ones are `[B or 1, H, T, randoms]`, with -1 for none.

        Raises:
          InputError: `inputs.head_keys` is None.
        """
        keys = head_keys(self, inputs)
        length = inputs.q.shape[1]
        blocks = -(-length // self.block)
        edge = np.arange(self.globals)[None]
        if causal:  # before the window, and after the global blocks
            stop = np.arange(blocks)[None] - 1
            return edge, random_blocks(keys, blocks, self.globals, stop, self.randoms)
        if inputs.valid is None:
            last = np.array([[blocks - self.globals]])
            edges = np.concatenate([edge, last + edge], axis=1)
            return edges, random_blocks(keys, blocks, self.globals, last, self.randoms)
        # Blocks up to that of the last valid token of each example.
        tokens = jnp.max(inputs.valid * jnp.arange(1, length + 1), axis=1)
        count = -(-tokens // self.block)
        start = count[:, None] - self.globals
        # [B, 2 globals]: the first blocks are the same in each example, the last are not.
        everywhere = jnp.concatenate([edge + 0 * start, start + edge], axis=1)
        return everywhere, random_blocks(keys, blocks, self.globals, start, self.randoms)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores under a dense mask, `[B, H, N, N]`."""
        everywhere, drawn = self.graph(inputs, causal=causal)
        block = jnp.arange(drawn.shape[2])
        apart = block - block[:, None]
        through = (block == everywhere[..., None]).any(axis=1)[:, None]  # [B or 1, 1, T]
        random = (block == drawn[..., None]).any(axis=-2)  # [B or 1, H, T, T]
        blocks = (abs(apart) <= 1) | through[:, :, None] | random
        if not causal:  # global blocks see all
            blocks = blocks | through[..., None]
        number = jnp.arange(inputs.q.shape[1]) // self.block
        pattern = blocks[:, :, number][..., number]  # [B or 1, H, N, N]
        return dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array:
        """Keys of the window, of global blocks, and of those drawn for the query's block."""
        block = query // self.block  # [B, 1, T, 1]
        key_block = key // self.block
        batch, _, queries, _ = block.shape
        t = block.reshape(-1)
        drawn = drawn_blocks(head_keys(self, inputs), t, self.globals, t[None] - 1, self.randoms)
        drawn = drawn.reshape(-1, batch, queries, self.randoms).swapaxes(0, 1)  # [B, H, T, randoms]
        seen = (key_block >= block - 1) | (key_block < self.globals)
        for i in range(self.randoms):
            seen = seen | (key_block == drawn[..., i, None])
        return seen

    def cost(self, shape: Shape) -> Cost:
        """As full attention, for the blocks that are computed."""
        scores = shape.length**2
        if not self.sees_all(shape.length):
            blocks = -(-shape.length // self.block)
            # The window, the random blocks, and the global ones at both ends as keys and queries.
            scores = blocks * self.block**2 * (3 + self.randoms + 4 * self.globals)
        scores *= shape.batch * shape.heads
        return Cost(
            # Two products; scale, mask, maximum, shift, exp and sum.
            flops=scores * (4 * shape.head_dim + 6),
            parameters=0,
            # Scores and their exponentials.
            activation_bytes=2 * scores * shape.wide_itemsize,
            state_bytes=kv_cache_bytes(shape, shape.length),
        )


def _not_later(query: Array, key: Array) -> Array:
    """Whether a key at position `key` is no later than the query."""
    return key <= query


def random_blocks(
    keys: Array, blocks: int, start: int, stop: np.ndarray | Array, count: int
) -> Array:
    """For each head and block t, `count` different blocks of [start, stop), without t-1, t, t+1.

    Args:
      keys: `[H]`. The randomness comes from them and t alone: no row changes when blocks are added.
      blocks: T.
      start, stop: the range to draw from; stop is `[B or 1, T or 1]`.
      count: how many; where there are fewer, all are taken.

    Returns:
      `[B or 1, H, T, count]` block numbers, every subset equally likely; -1 where there are no
      more.
    """
    return drawn_blocks(keys, jnp.arange(blocks, dtype=jnp.int32), start, stop, count)


def drawn_blocks(keys: Array, t: Array, start: int, stop: np.ndarray | Array, count: int) -> Array:
    """`random_blocks` of the blocks `t` `[T]` alone."""
    stop = jnp.maximum(jnp.asarray(stop, jnp.int32), start)
    # The window [near, far) is not drawn from.
    near = jnp.clip(t - 1, start, stop)
    far = jnp.clip(t + 2, start, stop)
    window = far - near
    remaining = (stop - start - window)[:, None]  # [B or 1, 1, T]

    def row_bits(key: Array, row: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(key, row), (count,), "uint32")

    over_rows = jax.vmap(row_bits, (None, 0))
    bits = jax.vmap(over_rows, (0, None))(keys, t)  # [H, T, count]
    ranks: list[Array] = []  # among the blocks that may be drawn, ascending
    drawn = []
    for i in range(count):
        choices = jnp.maximum(remaining - i, 1).astype(jnp.uint32)
        rank = (bits[..., i] % choices).astype(jnp.int32)
        for earlier in ranks:  # the rank-th of those not drawn yet
            rank = rank + (rank >= earlier)
        ranks = list(jnp.sort(jnp.stack([*ranks, rank]), axis=0))
        block = start + rank
        block = block + jnp.where(block >= near[:, None], window[:, None], 0)
        drawn.append(jnp.where(i < remaining, block, -1))
    return jnp.stack(drawn, axis=-1)
