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
    kv_cache_bytes,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import EVERYTHING, KeepsKeys
from dartformer.errors import InputError
from dartformer.kernels.cached import Layout, Summaries
from dartformer.kernels.factorized import fixed_attention, strided_attention
from dartformer.kernels.softmax import dense_weights


@dataclass(frozen=True, repr=False)
class Sparse(KeepsKeys, Spelled):
    """Factorised attention: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j, j in A1_i or A2_i.

    Both sets come under one softmax.

    Paper: Child et al. 2019 (Sparse Transformer), arXiv:1904.10509, section 4.3. With stride l and
      summary c, pattern "fixed": A1_i = {j: floor(j / l) = floor(i / l)}, A2_i = {j: j mod l >= l -
      c}; pattern "strided": A1_i = {j: |i - j| <= l}, A2_i = {j: (i - j) mod l = 0}.
    Own parameters: none.
    Cost: time O(N (l + c N / l) D) and "strided" O(N (l + N / l) D), memory without the D. That is
      N sqrt(N) where l is near sqrt(N). The stride does not follow the length, since outputs would
      then depend on how far a batch is padded: for ever longer inputs the growth is quadratic, with
      a factor c / l.
    Masks: invalid keys are left out of the softmax; causal leaves out j > i. A query that sees no
      key gives zero.
    Deviations: both sets in every head (the paper's "merged" head, its second way to combine them).
      Both ways unless causal, where the paper is causal only.

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
        decodes=True,
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
                f"sparse: summary does not work with pattern 'strided', which has none; "
                f"got summary={self.summary!r}. Leave it out."
            )
        positive(self, summary=self.summary)
        if self.summary > self.stride:
            raise InputError(
                f"sparse: summary must be at most the stride, {self.stride}, got {self.summary}."
            )

    @property
    def columns(self) -> int:
        """The number of summary places of a block in force."""
        if self.summary is not None:
            return self.summary
        return max(1, self.stride // 16)

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
        if self.pattern == "fixed":
            out = fixed_attention(
                inputs.q,
                inputs.k,
                inputs.v,
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
                inputs.q,
                inputs.k,
                inputs.v,
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
        i = j[:, None]
        stride = self.stride
        if self.pattern == "fixed":
            near = i // stride == j // stride
            far = j % stride >= stride - self.columns
        else:
            near = abs(i - j) <= stride
            far = (i - j) % stride == 0
        pattern = near | far
        return dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )

    def kept(self) -> Layout:
        """The block and all summaries; in "strided" all may be seen again."""
        if self.pattern == "strided":
            return EVERYTHING
        return Summaries(self.stride, self.columns)

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array:
        """Keys of either set."""
        stride = self.stride
        if self.pattern == "strided":
            return (query - key <= stride) | ((query - key) % stride == 0)
        return (query // stride == key // stride) | (key % stride >= stride - self.columns)

    def cost(self, shape: Shape) -> Cost:
        """As full attention, for the tiles and columns that are computed."""
        size = min(self.stride, shape.length)
        tiles = -(-shape.length // size)
        if tiles == 1:
            keys = size
        elif self.pattern == "fixed":
            keys = size + tiles * self.columns  # the block, and all summaries
        else:
            keys = 3 * size - 2 + tiles  # the band, with its neighbours, and a column
        scores = shape.batch * shape.heads * tiles * size * keys
        return Cost(
            # Two products; scale, mask, maximum, shift, exp and sum.
            flops=scores * (4 * shape.head_dim + 6),
            parameters=0,
            # Scores and their exponentials.
            activation_bytes=2 * scores * shape.wide_itemsize,
            state_bytes=kv_cache_bytes(shape, self.kept().slots(shape.length)),
        )
