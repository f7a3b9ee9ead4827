"""Reformer as Long Range Arena's code has it, mistakes and all: evidence about a published number,
not an attention.

It stays in this experiment. Against Kitaev et al. 2020 (`reformer` of the package): the heads stand
on axis 0 and are flattened into tokens without being transposed, so that output row 0 of eight
heads holds head 0 of tokens 0 to 7; scores are multiplied by sqrt(D), not divided; queries, which
serve as keys, are not normalised; a token sees itself. Chunks see the chunk before, round the end.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.attention.base import (
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    positive,
    zero_invalid,
)
from dartformer.registry import register


@dataclass(frozen=True, repr=False)
class ReformerAsInLra(Spelled):
    """One round of hashing into `buckets`, chunks of `chunk` tokens; see the module."""

    spelling: ClassVar[str] = "reformer_as_in_lra"
    chunk: int = 10
    buckets: int = 10

    traits: ClassVar[Traits] = Traits(
        summary="Reformer with the mistakes of Long Range Arena's code",
        paper="none",
        causal=False,
        reads=frozenset("qv"),
        matrix=False,
        stochastic=True,
    )

    def __post_init__(self) -> None:
        positive(self, chunk=self.chunk, buckets=self.buckets)

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
        batch, length, heads, width = inputs.q.shape
        assert inputs.head_keys is not None
        padded = -(-length // self.chunk) * self.chunk
        extra = ((0, 0), (0, padded - length), (0, 0), (0, 0))
        q, v = (
            jnp.pad(zero_invalid(x, inputs.mask), extra).transpose(0, 2, 1, 3)
            for x in (inputs.q, inputs.v)
        )
        seen = jnp.pad(inputs.mask, extra[:2])[:, None]
        turn = jax.vmap(lambda k: jax.random.normal(k, (width, self.buckets // 2)))(
            inputs.head_keys
        ).astype(q.dtype)
        turned = jnp.einsum("bhnd,hdr->bhnr", q, turn)
        bucket = jnp.argmax(jnp.concatenate([turned, -turned], -1), -1)
        order = jnp.argsort(jax.lax.stop_gradient(bucket) * padded + jnp.arange(padded), -1)

        def chunked(x: Array) -> Array:
            x = jnp.take_along_axis(
                jnp.broadcast_to(x, (batch, heads, padded, x.shape[-1])), order[..., None], 2
            )
            return x.reshape(batch, heads, -1, self.chunk, x.shape[-1])

        def with_last(x: Array) -> Array:
            return jnp.concatenate([x, jnp.roll(x, 1, 2)], 3)

        q, v, seen = chunked(q), chunked(v), chunked(seen[..., None])
        scores = jnp.einsum("bhcqd,bhckd->bhcqk", q, with_last(q)) * jnp.sqrt(width).astype(q.dtype)
        scores = jnp.where(with_last(seen)[..., 0][..., None, :], scores, -1e9)
        y = jnp.einsum("bhcqk,bhckd->bhcqd", jax.nn.softmax(scores, -1), with_last(v))
        y = jnp.take_along_axis(
            y.reshape(batch, heads, padded, width), jnp.argsort(order, -1)[..., None], 2
        )
        # The mistake: [B, H, N, D] is read as [B, N, H D], so that rows are runs of tokens of one
        # head.
        y = y[:, :, :length].reshape(batch, length, heads, width)
        return zero_invalid(y, inputs.mask)

    def reference(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """There is nothing else that it should be."""
        return self(params, inputs, causal=causal)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array | None:
        """None: its heads are no matrices times v."""
        return None

    def cost(self, shape: Shape) -> Cost:
        """Two products for each token and key of its two chunks."""
        scores = shape.batch * shape.heads * shape.length * 2 * self.chunk
        return Cost(
            flops=scores * (4 * shape.head_dim + 5),
            parameters=0,
            activation_bytes=2 * scores * 4,
            state_bytes=0,
        )


register("attention", "reformer_as_in_lra", ReformerAsInLra)
