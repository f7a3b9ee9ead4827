"""The Sparse Transformer's attention: what is near, and some of what is far."""

from dataclasses import dataclass
from typing import ClassVar, Literal

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
from dartformer.errors import InputError
from dartformer.kernels.factorized import fixed_attention, strided_attention
from dartformer.kernels.softmax import dense_weights


@dataclass(frozen=True, repr=False)
class Sparse(Spelled):
    """Factorised attention: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over j in A1_i or A2_i,
    one softmax.

    Paper: Child et al. 2019 (Sparse Transformer), arXiv:1904.10509, section 4.3. With stride l and
    summary c, pattern "fixed": A1_i = {j: floor(j / l) = floor(i / l)}, A2_i = {j: j mod l >= l -
    c}; pattern "strided": A1_i = {j: |i - j| <= l}, A2_i = {j: (i - j) mod l = 0}. Own parameters:
    none. Cost: time O(N (l + c N / l) D) and "strided" O(N (l + N / l) D), memory without the D.
    That is N sqrt(N) where l is near sqrt(N). The stride does not follow the length by itself,
    since outputs would then depend on how far a batch is padded; so for ever longer inputs the
    growth is quadratic, with a factor c / l. Masks: invalid keys are left out of the softmax;
    causal leaves out j > i. A query that sees no key gives zero. Deviations: both sets in every
    head (the paper's "merged" head, its second way to combine them). Both ways unless causal, where
    the paper is causal only.

    Attributes:
      stride: l, in tokens; near the square root of the length is cheapest.
      summary: c, how many places at the end of each block all tokens see, 1 to stride; None: stride
        / 16 rounded down, and at least 1 (the paper's 8 of 128). Only in "fixed".
      pattern: "fixed" or "strided" (which suits data with a period, such as rows of a picture).
    """

    stride: int = 32
    summary: int | None = None
    pattern: Literal["fixed", "strided"] = "fixed"

    traits: ClassVar[Traits] = Traits(
        summary="softmax over a block and summaries, or a window and columns",
        paper="Child et al. 2019, arXiv:1904.10509",
        causal=True,
        growth=2.0,
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        positive(self, stride=self.stride)
        if self.pattern not in ("fixed", "strided"):
            raise InputError(f"sparse: pattern must be 'fixed' or 'strided', got {self.pattern!r}.")
        if self.summary is None:
            return
        if self.pattern == "strided":
            raise InputError(
                f"sparse: pattern 'strided' has no summary, got summary={self.summary!r}: leave it out."
            )
        positive(self, summary=self.summary)
        if self.summary > self.stride:
            raise InputError(
                f"sparse: summary must be at most the stride, {self.stride}, got {self.summary}."
            )

    @property
    def columns(self) -> int:
        """The number of summary places of a block that is in force."""
        return max(1, self.stride // 16) if self.summary is None else self.summary

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
        qkv = inputs.q, inputs.k, inputs.v
        if self.pattern == "fixed":
            out = fixed_attention(
                *qkv,
                block=self.stride,
                summary=self.columns,
                causal=causal,
                valid=inputs.valid,
                slopes=inputs.slopes,
                dropout=inputs.rate(train),
                key=key,
            )
        else:
            out = strided_attention(
                *qkv,
                stride=self.stride,
                causal=causal,
                valid=inputs.valid,
                slopes=inputs.slopes,
                dropout=inputs.rate(train),
                key=key,
            )
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores under a dense mask, `[B, H, N, N]`."""
        j = jnp.arange(inputs.q.shape[1])
        i, l = j[:, None], self.stride
        if self.pattern == "fixed":
            pattern = (i // l == j // l) | (j % l >= l - self.columns)
        else:
            pattern = (abs(i - j) <= l) | ((i - j) % l == 0)
        return dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )

    def cost(self, shape: Shape) -> Cost:
        """As full attention, for the tiles and columns that are computed."""
        size = min(self.stride, shape.length)
        tiles = -(-shape.length // size)
        if tiles == 1:
            seen = size
        elif self.pattern == "fixed":
            seen = size + tiles * self.columns
        else:
            seen = 3 * size - 2 + tiles
        scores = shape.batch * shape.heads * tiles * size * seen
        return Cost(
            flops=scores * (4 * shape.head_dim + 6),
            parameters=0,
            activation_bytes=2 * scores * max(4, shape.itemsize),
            state_bytes=2
            * shape.batch
            * self._kept(shape.length)
            * shape.kept_heads
            * shape.head_dim
            * shape.itemsize,
        )

    def _kept(self, length: int) -> int:
        """Tokens that a decoder keeps: in "strided" all may be seen again."""
        if self.pattern == "strided":
            return length
        return min(length, self.stride + length // self.stride * self.columns)
