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
    kv_cache_bytes,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsKeys
from dartformer.kernels.softmax import dense_weights, softmax_attention


@dataclass(frozen=True, repr=False)
class Strided(KeepsKeys, Spelled):
    """Columns: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over (i - j) mod stride = 0.

    Paper: Child et al. 2019 (Sparse Transformer), arXiv:1904.10509, section 4.2: the second head of
      the strided pattern, alone. It is also attention down the columns of a picture of s columns
      (Ho et al. 2019, Axial Attention, arXiv:1912.12180).
    Own parameters: none.
    Cost: O(N^2 D / s) time, O(N^2 / s) memory.
    Masks: invalid keys are left out of the softmax; causal leaves out j > i. A query that sees no
      key gives zero.
    Deviations: both ways unless causal, where the paper is causal only.

    Attributes:
      stride: in tokens; 1 is full attention.
    """

    stride: int = 8

    traits: ClassVar[Traits] = Traits(
        summary="softmax over every so many tokens",
        paper="Child et al. 2019, arXiv:1904.10509",
        causal=True,
        growth=2.0,
        decodes=True,
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
        length = inputs.v.shape[1]
        stride = min(self.stride, length)
        slopes = inputs.slopes
        if slopes is not None:
            slopes = stride * slopes  # the next token of a column is `stride` tokens away
        out = softmax_attention(
            _columns(inputs.q, stride),
            _columns(inputs.k, stride),
            _columns(inputs.v, stride),
            causal=causal,
            valid=_columns(inputs.mask, stride),  # the filling of short columns is padding
            slopes=slopes,
            dropout=inputs.rate(train),
            key=key,
        )
        return zero_invalid(_tokens(out, stride)[:, :length], inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores under a dense mask, `[B, H, N, N]`."""
        position = jnp.arange(inputs.q.shape[1])
        pattern = (position[:, None] - position) % self.stride == 0
        return dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array:
        """Keys of the same column."""
        return (query - key) % self.stride == 0

    def cost(self, shape: Shape) -> Cost:
        """As full attention on `stride` sequences of N / stride tokens."""
        stride = min(self.stride, shape.length)
        rows = -(-shape.length // stride)
        scores = shape.batch * shape.heads * stride * rows**2
        return Cost(
            flops=scores * (4 * shape.head_dim + 5),
            parameters=0,
            # Scores and their exponentials.
            activation_bytes=2 * scores * shape.wide_itemsize,
            state_bytes=kv_cache_bytes(shape, shape.length),
        )


def _columns(x: Array, stride: int) -> Array:
    """`[B, N, ...]` to `[B stride, N / stride, ...]`.

    Tokens that see one another become a sequence of their own.
    """
    batch, length, *trailing = x.shape
    padding = ((0, 0), (0, -length % stride)) + ((0, 0),) * len(trailing)
    rows = jnp.pad(x, padding).reshape(batch, -1, stride, *trailing)  # [B, N / stride, stride, ...]
    return rows.swapaxes(1, 2).reshape(batch * stride, -1, *trailing)


def _tokens(x: Array, stride: int) -> Array:
    """Inverse of `_columns`, with the padding."""
    batch_columns, rows, *trailing = x.shape
    columns = x.reshape(batch_columns // stride, stride, rows, *trailing)
    return columns.swapaxes(1, 2).reshape(batch_columns // stride, rows * stride, *trailing)
