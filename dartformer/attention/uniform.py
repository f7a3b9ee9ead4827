"""The mean of all tokens: attention without choice, a baseline."""

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
    zero_invalid,
)
from dartformer.kernels.softmax import wide


@dataclass(frozen=True, repr=False)
class Uniform(Spelled):
    """Every token weighs the same: y_i = mean_j v_j; causal: the running mean over j <= i.

    Paper: none; a baseline. It is full attention with q = 0, and tells whether mixing tokens is
    enough. Own parameters: none. Cost: O(N D) time and memory. Masks: the mean is over valid
    tokens. A query that sees no key gives zero. Deviations: none."""

    traits: ClassVar[Traits] = Traits(
        summary="the mean of all tokens (baseline)",
        paper="none",
        causal=True,
        reads=frozenset("v"),
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
        v, dtype = drop_values(inputs, train, key), wide(inputs.v)
        if inputs.valid is not None:
            v = zero_invalid(v, inputs.valid)
        if causal:
            count, total = jnp.cumsum(inputs.mask, axis=1), jnp.cumsum(v, axis=1, dtype=dtype)
        else:
            count, total = inputs.mask.sum(1, keepdims=True), v.sum(1, keepdims=True, dtype=dtype)
        mean = (total / jnp.maximum(count, 1).astype(dtype)[:, :, None, None]).astype(v.dtype)
        return zero_invalid(jnp.broadcast_to(mean, v.shape), inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """1 / (number of keys seen) at each of them, `[B, H, N, N]`."""
        batch, length, heads, _ = inputs.v.shape
        keys = inputs.mask[:, None, None, :]
        seen = keys & jnp.tril(jnp.ones((length, length), bool)) if causal else keys
        seen = jnp.broadcast_to(seen, (batch, heads, length, length)).astype(wide(inputs.v))
        return seen / jnp.maximum(seen.sum(-1, keepdims=True), 1) * inputs.mask[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """One addition for each number of v."""
        numbers = shape.batch * shape.length * shape.heads * shape.head_dim
        state = shape.batch * (shape.heads * shape.head_dim + 1)
        return Cost(
            flops=numbers,
            parameters=0,
            activation_bytes=numbers * shape.itemsize,
            state_bytes=state * max(4, shape.itemsize),
        )
