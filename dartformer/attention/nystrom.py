"""Nystrom attention: the matrix of full attention approximated from a few landmarks."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from dartformer.attention.base import (
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    drop_values,
    positive,
    zero_invalid,
)
from dartformer.kernels.low_rank import (
    low_rank_attention,
    pseudo_inverse,
    segments,
    slot_attention,
    slot_scores,
)
from dartformer.kernels.softmax import key_mask, masked_softmax, zero_queries

ITERATIONS = 6
"""Steps of the pseudo-inverse, as in the paper."""


@dataclass(frozen=True, repr=False)
class Nystrom(Spelled):
    """Landmarks: y = softmax(q k~^T / s) softmax(q~ k~^T / s)^+ softmax(q~ k^T / s) v, s = sqrt(D).

    q~ and k~ are the means of q and k over `landmarks` runs of tokens, with lengths that differ by
    one at most; ^+ is the pseudo-inverse by six steps of a third-order Newton iteration (equation
    14).

    Paper: Xiong et al. 2021 (Nystromformer), arXiv:2102.03902, equations 13 and 14.
    Own parameters: none.
    Cost: O(N m D + m^3) time, O(N m) memory, with m landmarks.
    Masks: runs are of valid tokens, as if padding were cut out, and invalid keys are left out of
      the last softmax, so padding changes nothing. An example of no more than m valid tokens gets
      full attention, exactly. Not causal: every landmark is a mean over tokens on both sides.
    Deviations: no convolution of v is added (`conv` is a candidate of its own, and `parallel`
      adds). The iteration starts from the largest sums of each matrix, where the paper's code takes
      those of the whole batch.

    Attributes:
      landmarks: m.
    """

    landmarks: int = 32

    traits: ClassVar[Traits] = Traits(
        summary="softmax approximated from the means of runs of tokens",
        paper="Xiong et al. 2021, arXiv:2102.03902",
        causal=False,
        dropout="values",
    )

    def __post_init__(self) -> None:
        positive(self, landmarks=self.landmarks)

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
        q, k, v = inputs.q, inputs.k, drop_values(inputs, train, key)
        (q_mean, k_mean, v_mean), filled = segments((q, k, v), self.landmarks, inputs.valid)
        middle = self._middle(q_mean, k_mean, filled)
        # From the right, so that no array is N x N: [m, m] times [m, D].
        slots = middle @ slot_attention(q_mean, k, v, key_mask(inputs.valid), target=inputs.target)
        if q.shape[1] <= self.landmarks or inputs.valid is not None:
            slots = jnp.where(self._few(inputs), v_mean, slots)
        out = low_rank_attention(q, k_mean, slots, key_mask(filled), target=inputs.target)
        return zero_invalid(out.astype(v.dtype), inputs.mask)

    def _few(self, inputs: Inputs) -> Array:
        """Whether an example has no more valid tokens than landmarks, `[B, 1, 1, 1]`.

        Then each landmark is one token, and the output is that of full attention.
        """
        return (inputs.mask.sum(1) <= self.landmarks)[:, None, None, None]

    def _middle(self, q_mean: Array, k_mean: Array, filled: Array | None) -> Array:
        """The pseudo-inverse `[B, H, m, m]`, of the landmarks that hold a token.

        `filled` is None where all do.
        """
        scores = jnp.einsum("bhmd,bhnd->bhmn", q_mean, k_mean) * q_mean.shape[-1] ** -0.5
        rows = masked_softmax(scores, key_mask(filled))
        return pseudo_inverse(zero_queries(rows, filled), ITERATIONS)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The product of the three matrices, `[B, H, N, N]`.

        Rows need not sum to one, and entries may be negative.
        """
        accept(self, inputs, causal=causal)
        keep = inputs.mask
        # The rank of a token among the valid ones decides its run: padding does not count.
        rank = jnp.cumsum(keep, axis=1) - 1
        count = jnp.maximum(keep.sum(1, keepdims=True), 1)
        run = rank * self.landmarks // count
        member = (run[:, None] == jnp.arange(self.landmarks)[:, None]) & keep[:, None]  # [B, m, N]
        filled = member.any(-1)
        mean = member / jnp.maximum(member.sum(-1, keepdims=True), 1)
        q_mean = jnp.einsum("bmn,bnhd->bhmd", mean, inputs.q)
        k_mean = jnp.einsum("bmn,bnhd->bhmd", mean, inputs.k)
        first = masked_softmax(slot_scores(inputs.q, k_mean), filled[:, None, None, :])
        scores = jnp.einsum("bhmd,bnhd->bhmn", q_mean, inputs.k) * q_mean.shape[-1] ** -0.5
        last = masked_softmax(scores, keep[:, None, None, :])
        products = self._middle(q_mean, k_mean, filled) @ last  # [B, H, m, N]
        last = jnp.where(self._few(inputs), mean[:, None], products)
        return first @ last * keep[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """Four products of N x m x D, two softmaxes of N m, and the pseudo-inverse; no mask.

        The pseudo-inverse has four products of m x m in each step.
        """
        heads, m = shape.batch * shape.heads, self.landmarks
        scores = 2 * shape.length * m
        flops = scores * (4 * shape.head_dim + 6)
        flops += 2 * shape.length * shape.head_dim  # the means
        flops += m**2 * (4 * shape.head_dim + ITERATIONS * (8 * m + 7))
        return Cost(
            flops=heads * flops,
            parameters=0,
            activation_bytes=heads * (2 * scores + 4 * m**2) * shape.wide_itemsize,
            state_bytes=0,  # landmarks mix all tokens: there is no decoding
        )
