"""Each token alone: no attention at all, a baseline."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    POSITIONS,
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
from dartformer.attention.decoding import KeepsState, for_heads
from dartformer.kernels.softmax import wide


@dataclass(frozen=True, repr=False)
class Identity(KeepsState, Spelled):
    """No mixing of tokens: y_i = v_i.

    Paper: none; a baseline. It lets a search find that a head needs no attention.
    Own parameters: none.
    Cost: none beyond writing the output.
    Masks: rows of invalid tokens are zero; always causal. The distance to itself is 0, so ALiBi
      changes nothing.
    Deviations: none.
    """

    traits: ClassVar[Traits] = Traits(
        summary="each token alone, no attention (baseline)",
        paper="none",
        causal=True,
        reads=frozenset("v"),
        decodes=True,
        positions=POSITIONS,
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
        return zero_invalid(drop_values(inputs, train, key), inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The identity matrix, zero at invalid tokens, `[B, H, N, N]`."""
        batch, length, heads, _ = inputs.v.shape
        rows = jnp.eye(length, dtype=wide(inputs.v)) * inputs.mask[:, None, :, None]
        return jnp.broadcast_to(rows, (batch, heads, length, length))

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """Nothing is kept."""
        return {}

    def advance(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of tokens that follow, `[B, T, H, D]`, and the cache after them."""
        return for_heads(inputs.v, inputs), cache

    def cost(self, shape: Shape) -> Cost:
        """No arithmetic; the output is written once."""
        numbers = shape.batch * shape.length * shape.heads * shape.head_dim
        return Cost(flops=0, parameters=0, activation_bytes=numbers * shape.itemsize, state_bytes=0)
