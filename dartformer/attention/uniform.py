"""The mean of all tokens: attention without choice, a baseline."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    Cache,
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    drop_values,
    zero_invalid,
)
from dartformer.attention.decoding import KeepsState, for_heads, positions
from dartformer.kernels.softmax import wide


@dataclass(frozen=True, repr=False)
class Uniform(KeepsState, Spelled):
    """Every token weighs the same: y_i = mean_j v_j; causal: the running mean over j <= i.

    Paper: none; a baseline. It is full attention with q = 0, and tells whether mixing tokens is
      enough.
    Own parameters: none.
    Cost: O(N D) time and memory.
    Masks: the mean is over valid tokens. A query that sees no key gives zero.
    Deviations: none.
    """

    traits: ClassVar[Traits] = Traits(
        summary="the mean of all tokens (baseline)",
        paper="none",
        causal=True,
        reads=frozenset("v"),
        decodes=True,
        cross=True,
        dropout="values",
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
        v = drop_values(inputs, train, key)
        dtype = wide(v)
        # Zeroed rather than masked: sums over the tokens are then those of the valid ones.
        if inputs.valid is not None:
            v = zero_invalid(v, inputs.valid)
        if causal:
            count = jnp.cumsum(inputs.mask, axis=1)
            total = jnp.cumsum(v, axis=1, dtype=dtype)
        else:
            count = inputs.mask.sum(1, keepdims=True)
            total = v.sum(1, keepdims=True, dtype=dtype)
        # At least 1: where no token is valid, the mean is 0 and not 0 / 0.
        divisor = jnp.maximum(count, 1).astype(dtype)[:, :, None, None]  # [B, N or 1, 1, 1]
        mean = (total / divisor).astype(v.dtype)
        return zero_invalid(jnp.broadcast_to(mean, inputs.q.shape), inputs.query_mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """1 / (number of visible keys) at each of them, `[B, H, N, N]`."""
        batch, length, heads, _ = inputs.q.shape
        keys = inputs.v.shape[1]
        visible = inputs.mask[:, None, None, :]
        if causal:
            visible = visible & jnp.tril(jnp.ones((length, keys), bool))
        visible = jnp.broadcast_to(visible, (batch, heads, length, keys)).astype(wide(inputs.v))
        count = jnp.maximum(visible.sum(-1, keepdims=True), 1)
        return visible / count * inputs.query_mask[:, None, :, None]

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The sum of the values, `[B, heads of them, D]`."""
        dtype = wide(jnp.zeros((), dtype))
        return {"total": jnp.zeros((shape.batch, shape.kept_heads, shape.head_dim), dtype)}

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        v = inputs.v.astype(cache["total"].dtype)
        if inputs.valid is not None:
            v = zero_invalid(v, inputs.valid)
        totals = cache["total"][:, None] + jnp.cumsum(v, axis=1)  # [B, T, G, D]
        count = (positions(inputs) + 1).astype(v.dtype)
        mean = for_heads(totals / count[:, :, None, None], inputs)
        return mean, {"total": totals[:, -1]}

    def cost(self, shape: Shape) -> Cost:
        """One addition for each number of v."""
        numbers = shape.batch * shape.length * shape.heads * shape.head_dim
        # Decoding keeps the sum of v; the number of tokens is that of the row.
        state = shape.batch * shape.kept_heads * shape.head_dim
        return Cost(
            flops=numbers,
            parameters=0,
            activation_bytes=numbers * shape.itemsize,
            state_bytes=state * shape.wide_itemsize,
        )
