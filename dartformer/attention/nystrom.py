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
from dartformer.kernels.softmax import masked_softmax

ITERATIONS = 6
"""Of the pseudo-inverse, as in the paper."""


@dataclass(frozen=True, repr=False)
class Nystrom(Spelled):
    """Landmarks: y = softmax(q k~^T / s) softmax(q~ k~^T / s)^+ softmax(q~ k^T / s) v, s = sqrt(D).

    q~ and k~ are the means of q and k over `landmarks` runs of tokens, as equal in length as can
    be; ^+ is the pseudo-inverse by six steps of a third-order Newton iteration (equation 14).

    Paper: Xiong et al. 2021 (Nystromformer), arXiv:2102.03902, equations 13 and 14. Own parameters:
    none. Cost: O(N m D + m^3) time, O(N m) memory, with m landmarks. Masks: runs are of valid
    tokens, as if the others were cut out, and invalid keys are left out of the last softmax, so
    padding changes nothing. An example of no more than m valid tokens gets full attention, exactly.
    Not causal: every landmark is a mean over tokens on both sides. Deviations: no convolution of v
    is added (`conv` is a candidate of its own, and `parallel` adds). The iteration starts from the
    largest sums of each matrix, where the paper's code takes those of the whole batch.

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
        (q_mean, k_mean, v_mean), held = segments((q, k, v), self.landmarks, inputs.valid)
        middle = self._middle(q_mean, k_mean, held)
        keys = None if inputs.valid is None else inputs.valid[:, None, None, :]
        slots = middle @ slot_attention(q_mean, k, v, keys)
        if q.shape[1] <= self.landmarks or inputs.valid is not None:
            slots = jnp.where(self._few(inputs), v_mean, slots)
        some = None if held is None else held[:, None, None, :]
        return zero_invalid(low_rank_attention(q, k_mean, slots, some).astype(v.dtype), inputs.mask)

    def _few(self, inputs: Inputs) -> Array:
        """Whether an example has no more valid tokens than landmarks, so that each is one: `[B, 1,
        1, 1]`."""
        return (inputs.mask.sum(1) <= self.landmarks)[:, None, None, None]

    def _middle(self, q_mean: Array, k_mean: Array, held: Array | None) -> Array:
        """The pseudo-inverse `[B, H, m, m]`, of the landmarks that hold a token; where all do,
        `held` is None."""
        scores = jnp.einsum("bhmd,bhnd->bhmn", q_mean, k_mean) * q_mean.shape[-1] ** -0.5
        rows = masked_softmax(scores, None if held is None else held[:, None, None, :])
        return pseudo_inverse(rows if held is None else rows * held[:, None, :, None], ITERATIONS)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The product of the three matrices, `[B, H, N, N]`; rows need not sum to one, nor entries
        be positive."""
        accept(self, inputs, causal=causal)
        keep = inputs.mask
        rank, count = jnp.cumsum(keep, axis=1) - 1, keep.sum(1, keepdims=True)
        run = rank * self.landmarks // jnp.maximum(count, 1)
        member = (run[:, None] == jnp.arange(self.landmarks)[:, None]) & keep[:, None]  # [B, m, N]
        held = member.any(-1)
        mean = member / jnp.maximum(member.sum(-1, keepdims=True), 1)
        q_mean, k_mean = (jnp.einsum("bmn,bnhd->bhmd", mean, x) for x in (inputs.q, inputs.k))
        first = masked_softmax(slot_scores(inputs.q, k_mean), held[:, None, None, :])
        last = masked_softmax(
            jnp.einsum("bhmd,bnhd->bhmn", q_mean, inputs.k) * q_mean.shape[-1] ** -0.5,
            keep[:, None, None, :],
        )
        last = jnp.where(
            self._few(inputs), mean[:, None], self._middle(q_mean, k_mean, held) @ last
        )
        return first @ last * keep[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """Four products of N x m x D, two softmaxes of N m, and four products of m x m for each
        step; no mask."""
        heads, m = shape.batch * shape.heads, self.landmarks
        scores = 2 * shape.length * m
        return Cost(
            flops=heads
            * (
                scores * (4 * shape.head_dim + 6)
                + 2 * shape.length * shape.head_dim
                + m**2 * (4 * shape.head_dim + ITERATIONS * (8 * m + 7))
            ),
            parameters=0,
            activation_bytes=heads * (2 * scores + 4 * m**2) * max(4, shape.itemsize),
            state_bytes=0,
        )
