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
    positive,
    zero_invalid,
)
from dartformer.errors import InputError
from dartformer.kernels.block_sparse import block_sparse_attention
from dartformer.kernels.softmax import dense_weights, softmax_attention


@dataclass(frozen=True, repr=False)
class BigBird(Spelled):
    """Softmax over chosen blocks: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over j in the
    blocks of i's set.

    Of the blocks 0 .. n-1 of an example, block t sees: t-1, t, t+1; the first and the last
    `globals`, which see all blocks themselves; and `randoms` more, drawn without repetition from
    those not yet named. Where fewer than that are left it sees them all, so that few blocks are
    full attention, exactly.

    Paper: Zaheer et al. 2020, arXiv:2007.14062, section 2 and appendix D (BigBird-ITC). Own
    parameters: none. Cost: O(N b (3 + randoms + 4 globals) D) time, memory without the D; no N x N
    array. Randomness: the graph of a head depends on its key in `Inputs.head_keys`, the number of
    the block and n, and on nothing else: it is the same in training, evaluation, after a restart,
    and in a derived model. Masks: invalid keys are left out of the softmax. n counts blocks up to
    that of the last valid token of each example, so that the last blocks are not padding, and
    padding a batch further changes nothing. A query that sees no key gives zero. Deviations:
    causal, which is not published, is what remains sound of it: t-1, t up to the query, the first
    `globals` blocks, and `randoms` drawn from the blocks in between; no last blocks, and nothing
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
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        positive(self, block=self.block, randoms=self.randoms, globals=self.globals)

    def init(self, key: Array, shape: Shape) -> Params:
        """No parameters."""
        return {}

    def sees_all(self, length: int, *, causal: bool = False) -> bool:
        """Whether `length` tokens are so few blocks that each is seen: then this is full attention,
        and computed so."""
        return -(-length // self.block) - 2 - self.globals * (1 if causal else 2) <= self.randoms

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
        qkv = inputs.q, inputs.k, inputs.v
        if self.sees_all(inputs.q.shape[1], causal=causal):
            out = softmax_attention(
                *qkv,
                causal=causal,
                valid=inputs.valid,
                slopes=inputs.slopes,
                dropout=inputs.rate(train),
                key=key,
            )
        else:
            everywhere, drawn = self.graph(inputs, causal=causal)
            near = np.arange(drawn.shape[2])[:, None] + np.arange(-1, 1 if causal else 2)
            ids = jnp.concatenate(
                [jnp.broadcast_to(near, (*drawn.shape[:3], near.shape[1])), drawn], axis=-1
            )
            out = block_sparse_attention(
                *qkv,
                ids,
                block=self.block,
                everywhere=everywhere,
                both_ways=not causal,
                allowed=(lambda i, j: j <= i) if causal else None,
                valid=inputs.valid,
                slopes=inputs.slopes,
                dropout=inputs.rate(train),
                key=key,
            )
        return zero_invalid(out, inputs.mask)

    def graph(self, inputs: Inputs, *, causal: bool = False) -> tuple[np.ndarray | Array, Array]:
        """The global blocks `[B or 1, G]`, and the random ones of each block `[B or 1, H, T,
        randoms]`; -1: none.

        Raises:
          InputError: `inputs.head_keys` is None.
        """
        if inputs.head_keys is None:
            raise InputError(
                f"{self!r} draws its graph from inputs.head_keys, which is None: give it [H] keys."
            )
        length = inputs.q.shape[1]
        blocks = -(-length // self.block)
        edge = np.arange(self.globals)[None]
        if causal:  # before the window, and after the global blocks
            drawn = random_blocks(
                inputs.head_keys, blocks, self.globals, np.arange(blocks)[None] - 1, self.randoms
            )
            return edge, drawn
        count: np.ndarray | Array = np.array([blocks])
        if inputs.valid is not None:
            count = -(-jnp.max(inputs.valid * jnp.arange(1, length + 1), axis=1) // self.block)
        last = count[:, None] - self.globals
        everywhere = (np if inputs.valid is None else jnp).concatenate(
            [edge + 0 * last, last + edge], axis=1
        )
        return everywhere, random_blocks(inputs.head_keys, blocks, self.globals, last, self.randoms)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores under a dense mask, `[B, H, N, N]`."""
        everywhere, drawn = self.graph(inputs, causal=causal)
        block = jnp.arange(drawn.shape[2])
        apart = block - block[:, None]
        through = (block == everywhere[..., None]).any(axis=1)[:, None]  # [B or 1, 1, T]
        seen = (abs(apart) <= 1) | through[:, :, None] | (block == drawn[..., None]).any(axis=-2)
        if not causal:
            seen = seen | through[..., None]
        number = jnp.arange(inputs.q.shape[1]) // self.block
        pattern = seen[:, :, number][..., number]
        return dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )

    def cost(self, shape: Shape) -> Cost:
        """As full attention, for the blocks that are computed."""
        if self.sees_all(shape.length):
            scores, kept = shape.length**2, shape.length
        else:
            blocks = -(-shape.length // self.block)
            scores = blocks * self.block**2 * (3 + self.randoms + 4 * self.globals)
            kept = shape.length
        scores *= shape.batch * shape.heads
        return Cost(
            flops=scores * (4 * shape.head_dim + 6),
            parameters=0,
            activation_bytes=2 * scores * max(4, shape.itemsize),
            state_bytes=2 * shape.batch * kept * shape.kept_heads * shape.head_dim * shape.itemsize,
        )


def random_blocks(
    keys: Array, blocks: int, start: int, stop: np.ndarray | Array, count: int
) -> Array:
    """For each head and block t, `count` different blocks of [start, stop) that are not t-1, t or
    t+1.

    Args:
      keys: `[H]`; with t, all that the randomness comes from, so that no row changes when blocks
        are added.
      blocks: T.
      start, stop: whence they are drawn; stop is `[B or 1, T or 1]`.
      count: how many; where there are fewer, all are taken.

    Returns:
      `[B or 1, H, T, count]` block numbers, every subset equally likely; -1 where there are no
      more.
    """
    t = jnp.arange(blocks, dtype=jnp.int32)
    stop = jnp.maximum(jnp.asarray(stop, jnp.int32), start)
    near, far = (
        jnp.clip(t - 1, start, stop),
        jnp.clip(t + 2, start, stop),
    )  # the window is not drawn from
    left = (stop - start - (far - near))[:, None]  # [B or 1, 1, T]
    bits = jax.vmap(
        lambda key: jax.vmap(
            lambda row: jax.random.bits(jax.random.fold_in(key, row), (count,), "uint32")
        )(t)
    )(keys)  # [H, T, count]
    ranks: list[Array] = []  # among what may be drawn, ascending
    drawn = []
    for i in range(count):
        rank = (bits[..., i] % jnp.maximum(left - i, 1).astype(jnp.uint32)).astype(jnp.int32)
        for earlier in ranks:  # the rank-th of those not drawn yet
            rank = rank + (rank >= earlier)
        ranks = list(jnp.sort(jnp.stack([*ranks, rank]), axis=0))
        block = start + rank
        block = block + jnp.where(block >= near[:, None], (far - near)[:, None], 0)
        drawn.append(jnp.where(i < left, block, -1))
    return jnp.stack(drawn, axis=-1)
