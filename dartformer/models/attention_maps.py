"""Attention maps: which tokens the heads of a trained model attend to, on examples."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from dartformer.models.mixers import GroupedHeads, head_keys, take_heads, values
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Transformer, Weights, graph
from dartformer.space.genotype import Genotype


class Maps(NamedTuple):
    """Logits of a batch and the attention weights behind them.

    Attributes:
      logits: of the model.
      weights: `[L, B, H, N, N]`, queries before keys, NaN for heads whose attention has no matrix
        (`Traits.matrix`). B counts documents, and N a CLS token that comes first.
    """

    logits: Array
    weights: Array


class _MappedHeads(GroupedHeads):
    """The same layer with the same parameters, which keeps its attention weights in `maps`."""

    maps: nnx.Intermediate[Array]

    def __call__(
        self,
        x: Array,
        valid: Array,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        layer: Array | None = None,
        first_token: bool = False,
    ) -> Array:
        """See `Mixer`."""
        inputs = self.projections[0].inputs(x, valid, head_keys(self.config, self.layer))
        b, n, h = inputs.q.shape[:3]
        # NaN for heads without a matrix, which plots leave blank.
        maps = jnp.full((b, h, n, n), jnp.nan, jnp.float32)
        for (attention, heads), parameters in zip(self.groups, self.own, strict=True):
            # Maps are of evaluation: no weight is dropped.
            group = dataclasses.replace(take_heads(inputs, heads), dropout=0.0)
            weights = attention.weights(values(parameters), group, causal=self.config.causal)
            if weights is not None:
                maps = maps.at[:, jnp.array(heads)].set(weights.astype(jnp.float32))
        self.maps = nnx.Intermediate(maps)
        return super().__call__(
            x, valid, mixture, train=train, key=key, layer=layer, first_token=first_token
        )


def mapper(
    config: TransformerConfig, genotype: Genotype
) -> Callable[[Weights, Array, Array], Maps]:
    """(weights of the model, tokens `[B, N]`, valid `[B, N]`) -> `Maps`.

    The weights follow from each attention's definition: O(N^2) for every head.
    """

    def mixer(layer: int, rngs: nnx.Rngs) -> _MappedHeads:
        return _MappedHeads(config, genotype, layer, rngs=rngs)

    structure = graph(config, mixer)

    def attention_maps(weights: Weights, tokens: Array, valid: Array) -> Maps:
        model: Transformer = nnx.merge(structure, weights)
        logits = model(tokens, valid)
        maps = []
        for block in model.blocks:
            assert isinstance(block.mixer, _MappedHeads)
            maps.append(block.mixer.maps[...])
        return Maps(logits, jnp.stack(maps))

    return attention_maps
