"""Softmax attention over a sliding window."""

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
    not_negative,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsKeys
from dartformer.kernels.block_sparse import band_layout
from dartformer.kernels.cached import Layout, Recent
from dartformer.kernels.flash import window_attention
from dartformer.kernels.softmax import dense_weights


@dataclass(frozen=True, repr=False)
class Local(KeepsKeys, Spelled):
    """Sliding window: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over |i - j| <= window.

    Paper: Parmar et al. 2018 (Image Transformer), arXiv:1802.05751, section 3; the sliding form as
      in Beltagy et al. 2020 (Longformer), arXiv:2004.05150, section 3.1.
    Own parameters: none.
    Cost: O(N w D) time, O(N w) memory; no N x N array.
    Masks: invalid keys are left out of the softmax; causal keeps i - w <= j <= i. A query that sees
      no key gives zero.
    Deviations: the window slides with each query, where the Image Transformer fixes one for each
      block of queries: no token has a neighbour it cannot see.

    Attributes:
      window: one-sided and inclusive, in tokens; 0 lets each token see itself only.
    """

    window: int = 16

    traits: ClassVar[Traits] = Traits(
        summary="softmax over a sliding window",
        paper="Parmar et al. 2018, arXiv:1802.05751",
        causal=True,
        decodes=True,
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        not_negative(self, window=self.window)

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
        out = window_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            window=self.window,
            kernel=inputs.kernel,
            causal=causal,
            valid=inputs.valid,
            slopes=inputs.slopes,
            dropout=inputs.rate(train),
            key=key,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores under a dense band mask, `[B, H, N, N]`."""
        position = jnp.arange(inputs.q.shape[1])
        pattern = abs(position[:, None] - position) <= self.window
        return dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )

    def kept(self) -> Layout:
        """The window, with the token itself."""
        return Recent(last=self.window + 1)

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array:
        """Keys of the window."""
        return key >= query - self.window

    def cost(self, shape: Shape) -> Cost:
        """As full attention, for the tiles that are computed.

        That is up to half as much again as the window needs.
        """
        tiles, block, span = band_layout(shape.length, self.window)
        scores = shape.batch * shape.heads * tiles * block * span
        # Keys and values of each tile with its neighbours.
        copies = shape.batch * shape.heads * tiles * span * shape.head_dim
        return Cost(
            # Two products; scale, mask, maximum, shift, exp and sum.
            flops=scores * (4 * shape.head_dim + 6),
            parameters=0,
            # Scores and their exponentials.
            activation_bytes=2 * scores * shape.wide_itemsize + 2 * copies * shape.itemsize,
            state_bytes=kv_cache_bytes(shape, self.kept().slots(shape.length)),
        )
