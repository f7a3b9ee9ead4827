"""Softmax attention over a sliding window and the first tokens."""

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
from dartformer.attention.slices import by_heads
from dartformer.kernels.block_sparse import band_scores
from dartformer.kernels.cached import Layout, Recent
from dartformer.kernels.flash import window_attention, window_by_splash
from dartformer.kernels.softmax import dense_weights


@dataclass(frozen=True, repr=False)
class Sink(KeepsKeys, Spelled):
    """Window and sinks: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j.

    That is over |i - j| <= window or j < sinks.

    Paper: Xiao et al. 2024 (StreamingLLM), arXiv:2309.17453, section 3.2: a window alone takes from
      the softmax the first tokens, on which models have learned to put the weight that they have no
      other use for.
    Own parameters: none.
    Cost: O(N (window + sinks) D) time, O(N (window + sinks)) memory; no N x N array.
    Masks: invalid keys are left out of the softmax, and a sink that is padding is no sink; causal
      leaves out j > i. A query that sees no key gives zero.
    Deviations: positions are those in the text, where the paper counts them within its cache. Both
      ways unless causal, where the paper is causal only. The sinks are tokens of the input, in
      training too; the paper's learned sink token is a CLS token in front (`model.pooling =
      'cls'`).

    Attributes:
      window: one-sided and inclusive, in tokens, at least 1.
      sinks: number of first tokens that every query sees, at least 1; with none it is `local`.
    """

    window: int = 16
    sinks: int = 4

    traits: ClassVar[Traits] = Traits(
        summary="softmax over a sliding window and the first tokens",
        paper="Xiao et al. 2024, arXiv:2309.17453",
        causal=True,
        decodes=True,
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        positive(self, window=self.window, sinks=self.sinks)

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

        def some(params: Params, inputs: Inputs, key: Array | None) -> Array:
            return self._attend(params, inputs, causal, inputs.rate(train), key)

        if window_by_splash(
            inputs.q,
            inputs.k,
            inputs.v,
            kernel=inputs.kernel,
            slopes=inputs.slopes,
            dropout=inputs.rate(train),
            target=inputs.target,
        ):
            return some(params, inputs, key)
        return by_heads(some, params, inputs, key)

    def _attend(
        self, params: Params, inputs: Inputs, causal: bool, dropout: float, key: Array | None
    ) -> Array:
        """The output of all heads of `inputs` at once."""
        out = window_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            window=self.window,
            prefix=self.sinks,
            kernel=inputs.kernel,
            causal=causal,
            valid=inputs.valid,
            slopes=inputs.slopes,
            dropout=dropout,
            key=key,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores under a dense mask, `[B, H, N, N]`."""
        position = jnp.arange(inputs.q.shape[1])
        pattern = (abs(position[:, None] - position) <= self.window) | (position < self.sinks)
        return dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )

    def kept(self) -> Layout:
        """The sinks for good, and the window with the token itself."""
        return Recent(self.sinks, self.window + 1)

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array:
        """Sinks, and keys of the window."""
        return (key >= query - self.window) | (key < self.sinks)

    def cost(self, shape: Shape) -> Cost:
        """As full attention, for the tiles and sinks that are computed."""
        scores = shape.batch * shape.heads * band_scores(shape.length, self.window, self.sinks)
        return Cost(
            # Two products; scale, mask, maximum, shift, exp and sum.
            flops=scores * (4 * shape.head_dim + 6),
            parameters=0,
            # Scores and their exponentials.
            activation_bytes=2 * scores * shape.wide_itemsize,
            state_bytes=kv_cache_bytes(shape, self.kept().slots(shape.length)),
        )
