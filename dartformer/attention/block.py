"""Softmax attention within blocks."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
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
    kv_cache_bytes,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsKeys
from dartformer.kernels.cached import Layout, Recent
from dartformer.kernels.factorized import fixed_attention
from dartformer.kernels.softmax import dense_weights


@dataclass(frozen=True, repr=False)
class Block(KeepsKeys, Spelled):
    """Block-local attention: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j, j in the block of i.

    That is over j with floor(j / b) = floor(i / b).

    Paper: the "local attention" of Tay et al. 2021 (Long Range Arena), arXiv:2011.04006; blocks of
      queries as in Parmar et al. 2018 (Image Transformer), arXiv:1802.05751, which let a block see
      what surrounds it too.
    Own parameters: none.
    Cost: O(N b D) time, O(N b) memory; no N x N array, and no gather.
    Masks: invalid keys are left out of the softmax; causal leaves out j > i. A query that sees no
      key gives zero.
    Deviations: blocks are contiguous; in the code of Long Range Arena they are every so many
      tokens, which is a mistake there. The last block may be shorter than the others.

    Attributes:
      size: b, tokens in a block; a token at its edge does not see its neighbour across it (`local`
        does).
    """

    size: int = 32

    traits: ClassVar[Traits] = Traits(
        summary="softmax within blocks",
        paper="Tay et al. 2021, arXiv:2011.04006",
        causal=True,
        decodes=True,
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        positive(self, size=self.size)

    def init(self, key: Array, shape: Shape) -> Params:
        """No parameters."""
        return {}

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
        out = fixed_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            block=self.size,
            causal=causal,
            valid=inputs.valid,
            slopes=inputs.slopes,
            dropout=inputs.rate(train),
            key=key,
        )
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores under a dense mask, `[B, H, N, N]`."""
        block = jnp.arange(inputs.q.shape[1]) // self.size
        pattern = block[:, None] == block
        return dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )

    def kept(self) -> Layout:
        """Its own block."""
        return Recent(last=self.size)

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array:
        """Keys of the same block."""
        return key // self.size == query // self.size

    def cost(self, shape: Shape) -> Cost:
        """As full attention, for each block; the last one is computed whole."""
        size = min(self.size, shape.length)
        blocks = -(-shape.length // size)
        scores = shape.batch * shape.heads * blocks * size**2
        return Cost(
            # Two products; scale, mask, maximum, shift, exp and sum.
            flops=scores * (4 * shape.head_dim + 6),
            parameters=0,
            # Scores and their exponentials.
            activation_bytes=2 * scores * shape.wide_itemsize,
            state_bytes=kv_cache_bytes(shape, self.kept().slots(shape.length)),
        )
