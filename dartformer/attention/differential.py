"""Differential attention: the difference of two softmaxes, so that noise common to both cancels."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    accept_width,
    kv_cache_bytes,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsKeys, Tokens
from dartformer.errors import InputError
from dartformer.kernels.cached import Held, grouped_scores, grouped_values, row_bias
from dartformer.kernels.chunked import TILE, chunked_attention
from dartformer.kernels.flash import portable
from dartformer.kernels.softmax import dense_allowed, dense_scores, drop, masked_softmax, wide

NAMES = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


@dataclass(frozen=True, repr=False)
class Differential(KeepsKeys, Spelled):
    """Difference of softmaxes: y_i = sum_j (softmax_j(S1_ij) - l softmax_j(S2_ij)) v_j.

    S1_ij = q1_i . k1_j / s and S2_ij = q2_i . k2_j / s, where q1, q2 are the two halves of q, k1,
    k2 those of k, s = sqrt(D / 2), and
    l = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init.

    Paper: Ye et al. 2024, arXiv:2410.05258, equations 1 and 2.
    Own parameters: lambda_q1, lambda_k1, lambda_q2, lambda_k2, `[H, D / 2]` each.
    Cost: O(N^2 D) time, O(N) memory beyond a tile's length, as two of full attention.
    Masks: invalid keys are left out of both softmaxes; causal leaves out j > i. A query that sees
      no key gives zero.
    Deviations: a head is as wide as others, and q1, k1, q2, k2 half as wide, where the paper
      doubles the values; l is of each head, where the paper shares it. The norm of each head's
      output and the factor 1 - lambda_init behind it are left to the layer (`model.branch_norm`).
      Rotary positions are refused: which numbers they turn together is the layer's affair, and the
      halves would tear pairs apart. ALiBi is added to both sets of scores.

    Attributes:
      lambda_init: at least 0 and below 1; the paper has 0.8 - 0.6 exp(-0.3 l) in layer l = 0, 1,
        ..., and 0.8 as good.
    """

    lambda_init: float = 0.8

    traits: ClassVar[Traits] = Traits(
        summary="difference of two softmaxes",
        paper="Ye et al. 2024, arXiv:2410.05258",
        causal=True,
        growth=2.0,
        decodes=True,
        cross=True,
        positions=frozenset({"alibi"}),
        dropout="weights",
        head_dim_multiple=2,  # halves of queries and keys
    )

    def __post_init__(self) -> None:
        if type(self.lambda_init) not in (int, float) or not 0 <= self.lambda_init < 1:
            raise InputError(
                f"differential: lambda_init must be a number of at least 0 and below 1, "
                f"got {self.lambda_init!r}."
            )

    def init(self, key: Array, shape: Shape) -> Params:
        """The four lambdas, `[H, D / 2]`, of standard deviation 0.1 as in the paper's code."""
        accept_width(self, shape.head_dim)
        size = (shape.heads, shape.head_dim // 2)
        params = {}
        for name, k in zip(NAMES, jax.random.split(key, 4), strict=True):
            params[name] = 0.1 * jax.random.normal(k, size)
        return params

    def _weights(self, params: Params, inputs: Inputs, causal: bool) -> Array:
        """`[B, H, N, N]`, before dropout; not zero at invalid queries."""
        accept(self, inputs, causal=causal)
        half = inputs.q.shape[-1] // 2
        allowed = dense_allowed(inputs.q.shape[1], causal=causal, valid=inputs.valid)
        q1, q2 = inputs.q[..., :half], inputs.q[..., half:]
        k1, k2 = inputs.k[..., :half], inputs.k[..., half:]
        first = masked_softmax(dense_scores(q1, k1, inputs.slopes), allowed)
        second = masked_softmax(dense_scores(q2, k2, inputs.slopes), allowed)
        return first - self._share(params, first.dtype) * second

    def _share(self, params: Params, dtype: DTypeLike) -> Array:
        """l of each head, `[H, 1, 1]`."""
        # l = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init, equation 2.
        lambdas = []
        for name in NAMES:
            lambdas.append(params[name].astype(jnp.promote_types(params[name].dtype, dtype)))
        lambda_q1, lambda_k1, lambda_q2, lambda_k2 = lambdas
        plus = jnp.exp((lambda_q1 * lambda_k1).sum(-1))
        minus = jnp.exp((lambda_q2 * lambda_k2).sum(-1))
        # Not bound to [0, 1]: the paper learns it freely, from `lambda_init` on.
        share = plus - minus + self.lambda_init  # [H]
        return share[:, None, None]

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        *,
        causal: bool = False,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """See `Attention`; raises `InputError` for an odd head width."""
        if portable("auto", inputs.q.shape[1]) == "chunked":
            return self._chunked(params, inputs, causal, inputs.rate(train), key)
        # Dropped once, after the difference: both softmaxes lose the same keys.
        rows = drop(self._weights(params, inputs, causal), inputs.rate(train), key)
        dtype = wide(rows, inputs.v)
        out = jnp.einsum("bhnk,bkhd->bnhd", rows, inputs.v, preferred_element_type=dtype)
        return zero_invalid(out.astype(inputs.v.dtype), inputs.query_mask)

    def _chunked(
        self, params: Params, inputs: Inputs, causal: bool, dropout: float, key: Array | None
    ) -> Array:
        """The output as the difference of two of full attention, in O(N) memory."""
        accept(self, inputs, causal=causal)
        q, k, v = inputs.q, inputs.k, inputs.v
        half = q.shape[-1] // 2
        dtype = wide(q, k, v)  # of the difference: both terms are larger than it
        parts = []
        for part in (slice(None, half), slice(half, None)):
            out = chunked_attention(
                q[..., part],
                k[..., part],
                v,
                causal=causal,
                valid=inputs.valid,
                slopes=inputs.slopes,
                dropout=dropout,
                key=key,  # of both: they lose the same keys
                dtype=dtype,
                target=inputs.target,
            )
            parts.append(out)
        first, second = parts
        share = self._share(params, dtype).swapaxes(0, 1)  # [1, H, 1]
        out = first - share * second
        return zero_invalid(out.astype(v.dtype), inputs.query_mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The difference of the two, `[B, H, N, N]`.

        Entries may be negative, and rows sum to 1 - l.
        """
        return self._weights(params, inputs, causal) * inputs.query_mask[:, None, :, None]

    def read(self, params: Params, tokens: Tokens, sets: list[Held]) -> Array:
        """The difference of the two over the cached keys, `[B, T, H, D]`."""
        inputs = tokens.inputs
        (held,) = sets  # all keys are kept, as one set
        half = inputs.q.shape[-1] // 2
        position = tokens.new.position[:, None, :, None]
        distance = held.position[:, None, None] - position
        rows = []
        for part in (slice(None, half), slice(half, None)):
            scores = grouped_scores(inputs.q[..., part], held.k[..., part], inputs.groups)
            scores = row_bias(scores, inputs.slopes, distance)
            rows.append(masked_softmax(scores, held.allowed))
        first, second = rows
        weights = first - self._share(params, first.dtype) * second
        return grouped_values(weights, held.v, inputs.groups)

    def cost(self, shape: Shape) -> Cost:
        """Two products, two softmaxes, and three operations for their difference."""
        scores = shape.batch * shape.heads * shape.length**2
        if portable("auto", shape.length) == "chunked":
            # Scores of half the width and values, twice: 6 D. Scores of one tile at a time.
            flops = scores * (6 * shape.head_dim + 10)
            numbers = 2 * scores / shape.length * TILE
        else:
            # Scores of half the width twice, and values once: 4 D; 14 for softmaxes and difference.
            flops = scores * (4 * shape.head_dim + 14)
            numbers = 3 * scores  # both softmaxes, and their difference
        return Cost(
            flops=flops,
            parameters=4 * shape.heads * (shape.head_dim // 2),
            activation_bytes=numbers * shape.wide_itemsize,
            state_bytes=kv_cache_bytes(shape, shape.length),
        )
