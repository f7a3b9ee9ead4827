"""Softmax attention over every so many tokens."""

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
    positive,
    zero_invalid,
)
from dartformer.kernels.softmax import (
    dense_allowed,
    dense_scores,
    masked_softmax,
    softmax_attention,
)


@dataclass(frozen=True, repr=False)
class Strided(Spelled):
    """Softmax attention over j = i modulo the stride: y_i = sum_{(i-j) mod s = 0} softmax_j(q_i .
    k_j / sqrt(D)) v_j.

    Paper: Child et al. 2019 (Sparse Transformer), arXiv:1904.10509, section 4.2: the second head of
    the strided pattern, alone. It is also attention down the columns of a picture of s columns (Ho
    et al. 2019, Axial Attention, arXiv:1912.12180). Own parameters: none. Cost: O(N^2 D / s) time,
    O(N^2 / s) memory. Masks: invalid keys are left out of the softmax; causal leaves out j > i. A
    query that sees no key gives zero. Deviations: both ways unless causal, where the paper is
    causal only.

    Attributes:
      stride: in tokens; 1 is full attention.
    """

    stride: int = 8

    traits: ClassVar[Traits] = Traits(
        summary="softmax over every so many tokens",
        paper="Child et al. 2019, arXiv:1904.10509",
        causal=True,
        growth=2.0,
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        positive(self, stride=self.stride)

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
        batch, length, *rest = inputs.v.shape
        s = min(self.stride, length)
        rows = -(-length // s)

        def columns(x: Array) -> Array:
            """`[B, N, ...]` to `[B s, N / s, ...]`: tokens that see one another become a sequence
            of their own."""
            x = jnp.pad(x, ((0, 0), (0, rows * s - length)) + ((0, 0),) * (x.ndim - 2))
            return (
                x.reshape(batch, rows, s, *x.shape[2:])
                .swapaxes(1, 2)
                .reshape(batch * s, rows, *x.shape[2:])
            )

        out = softmax_attention(
            columns(inputs.q),
            columns(inputs.k),
            columns(inputs.v),
            causal=causal,
            valid=columns(inputs.mask),
            dropout=inputs.rate(train),
            key=key,
            slopes=None if inputs.slopes is None else s * inputs.slopes,
        )  # a row is s tokens away
        out = (
            out.reshape(batch, s, rows, *rest)
            .swapaxes(1, 2)
            .reshape(batch, rows * s, *rest)[:, :length]
        )
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores under a dense mask, `[B, H, N, N]`."""
        position = jnp.arange(inputs.q.shape[1])
        allowed = (position[:, None] - position) % self.stride == 0
        rest = dense_allowed(len(position), causal=causal, valid=inputs.valid)
        scores = dense_scores(inputs.q, inputs.k, inputs.slopes)
        rows = masked_softmax(scores, allowed if rest is None else allowed & rest)
        return rows * inputs.mask[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """As full attention on `stride` sequences of N / stride tokens."""
        s = min(self.stride, shape.length)
        scores = shape.batch * shape.heads * s * (-(-shape.length // s)) ** 2
        return Cost(
            flops=scores * (4 * shape.head_dim + 5),
            parameters=0,
            activation_bytes=2 * scores * max(4, shape.itemsize),
            state_bytes=2
            * shape.batch
            * shape.length
            * shape.kept_heads
            * shape.head_dim
            * shape.itemsize,
        )
