"""Attention maps: which tokens a trained model's heads take from, on given examples."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from dartformer.models.transformer import (
    GroupedHeads,
    TransformerConfig,
    Weights,
    head_keys,
    network,
    take_heads,
    values,
)
from dartformer.space.genotype import Genotype


class Maps(NamedTuple):
    """What was seen of a batch.

    logits: of the model. weights: `[L, B, H, N, N]`, queries before keys, NaN for heads whose
    attention has no matrix (`Traits.matrix`); B
      counts documents, and N a CLS token that comes first.
    """

    logits: Array
    weights: Array


class _Seen(GroupedHeads):
    """The same layer with the same parameters, which notes its weights."""

    notes: list[Array]

    def __call__(
        self,
        x: Array,
        valid: Array,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        first: bool = False,
    ) -> Array:
        inputs = self.projections[0].inputs(x, valid, head_keys(self.config, self.layer))
        b, n, h = inputs.q.shape[:3]
        seen = jnp.full((b, h, n, n), jnp.nan, jnp.float32)
        for (attention, heads), own in zip(self.groups, self.own, strict=True):
            given = dataclasses.replace(take_heads(inputs, heads), dropout=0.0)
            found = attention.weights(values(own), given, causal=self.config.causal)
            if found is not None:
                seen = seen.at[:, jnp.array(heads)].set(found.astype(jnp.float32))
        self.notes.append(seen)
        return super().__call__(x, valid, mixture, train=train, key=key, first=first)


def mapper(config: TransformerConfig, genotype: Genotype) -> Callable[[Weights, Any, Any], Maps]:
    """(weights of the model, tokens `[B, N]`, valid `[B, N]`) -> `Maps`, by definition: O(N^2) for
    every head."""
    notes: list[Array] = []

    def mixer(layer: int, rngs: Any) -> _Seen:
        made = _Seen(config, genotype, layer, rngs=rngs)
        made.notes = notes
        return made

    net = network(config, mixer)

    def look(weights: Weights, tokens: Array, valid: Array) -> Maps:
        notes.clear()
        logits = net.apply(weights, tokens, valid)
        return Maps(logits, jnp.stack(notes))

    return look
