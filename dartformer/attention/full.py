"""Softmax attention over all tokens."""

from dataclasses import dataclass
from typing import ClassVar

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
    zero_invalid,
)
from dartformer.attention.decoding import KeepsKeys
from dartformer.kernels.chunked import TILE
from dartformer.kernels.flash import full_attention, portable
from dartformer.kernels.softmax import (
    dense_allowed,
    dense_scores,
    masked_softmax,
    softmax_attention,
)


@dataclass(frozen=True, repr=False)
class Full(KeepsKeys, Spelled):
    """The attention of the Transformer: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j.

    Paper: Vaswani et al. 2017, arXiv:1706.03762, equation 1.
    Own parameters: none.
    Cost: O(N^2 D) time, O(N) memory beyond a tile's length (`Inputs.kernel`).
    Masks: invalid keys are left out of the softmax; causal leaves out j > i. A query that sees no
      key gives zero.
    Deviations: none.
    """

    traits: ClassVar[Traits] = Traits(
        summary="softmax over all tokens",
        paper="Vaswani et al. 2017, arXiv:1706.03762",
        causal=True,
        growth=2.0,
        decodes=True,
        cross=True,
        positions=POSITIONS,
        dropout="weights",
    )

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
        kernel = inputs.kernel
        if inputs.query_valid is not None:
            # cuDNN's form takes one mask for queries and keys.
            kernel = portable("auto", inputs.q.shape[1])
        out = full_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            kernel=kernel,
            causal=causal,
            valid=inputs.valid,
            slopes=inputs.slopes,
            dropout=inputs.rate(train),
            key=key,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.query_mask)

    def first(self, inputs: Inputs, *, train: bool = False, key: Array | None = None) -> Array:
        """Row 0 of the output, `[B, 1, H, D]`, which needs one query; both ways."""
        out = softmax_attention(
            inputs.q[:, :1],
            inputs.k,
            inputs.v,
            valid=inputs.valid,
            slopes=inputs.slopes,
            dropout=inputs.rate(train),
            key=key,
        )
        return zero_invalid(out, inputs.mask[:, :1])

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax itself, `[B, H, N, N]`."""
        allowed = dense_allowed(inputs.q.shape[1], causal=causal, valid=inputs.valid)
        rows = masked_softmax(dense_scores(inputs.q, inputs.k, inputs.slopes), allowed)
        return rows * inputs.query_mask[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """Two products of N x N x D, and about 5 operations for each score.

        They are scale, maximum, shift, exp and sum.
        """
        scores = shape.batch * shape.heads * shape.length**2
        # The chunked kernel holds the scores of one tile of queries at a time.
        tile_scores = scores / shape.length * min(shape.length, TILE)
        return Cost(
            flops=scores * (4 * shape.head_dim + 5),
            parameters=0,
            activation_bytes=2 * tile_scores * shape.wide_itemsize,
            state_bytes=kv_cache_bytes(shape, shape.length),
        )
