"""Models whose layers are alike: one compiled program for a layer, which all of them share.

A program of thirty layers takes thirty times as long to compile. A loop over stacked weights would
be compiled once, too, but on a CPU it copies the weights of each layer before it reads them.
"""

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jax import Array

from dartformer.models.mixers import GroupedHeads
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Block, Transformer, Weights, graph, pool
from dartformer.space.genotype import Genotype


def layer_kinds(config: TransformerConfig, genotype: Genotype) -> list[int]:
    """For each layer the number of the first that computes the same, with weights of its own."""
    first: dict[tuple[object, ...], int] = {}
    kinds = []
    for layer, row in enumerate(genotype.layers):
        kind: tuple[object, ...] = (row, layer in config.nope_layers)
        if any(attention.traits.stochastic for attention in row):
            kind = (*kind, layer)  # the random keys of its heads are its own
        kinds.append(first.setdefault(kind, layer))
    return kinds


def repeats_layers(config: TransformerConfig, genotype: Genotype) -> bool:
    """Whether most layers compute the same as an earlier one, so that it pays to share programs."""
    kinds = layer_kinds(config, genotype)
    return 2 * len(set(kinds)) < len(kinds)


def structure_of(config: TransformerConfig, genotype: Genotype) -> nnx.GraphDef[Transformer]:
    """The structure of a derived model, without its weights."""

    def mixer(layer: int, rngs: nnx.Rngs) -> GroupedHeads:
        return GroupedHeads(config, genotype, layer, rngs=rngs)

    return graph(config, mixer)


def ends_of(config: TransformerConfig, genotype: Genotype) -> nnx.GraphDef[Transformer]:
    """The structure of what comes before and after the layers, as a model of the first one."""
    alone = dataclasses.replace(config, layers=1, nope_layers=())
    return structure_of(alone, Genotype(genotype.layers[:1]))


def weights_of_ends(weights: Weights) -> Weights:
    """The weights of `ends_of`."""
    return {**weights, "blocks": {0: weights["blocks"][0]}}


def block_of(config: TransformerConfig, genotype: Genotype, layer: int) -> nnx.GraphDef[Block]:
    """The structure of a layer."""

    def make() -> Block:
        rngs = nnx.Rngs(params=jax.random.key(0))
        return Block(config, GroupedHeads(config, genotype, layer, rngs=rngs), rngs=rngs)

    structure, _ = nnx.split(nnx.eval_shape(make))
    return structure


def apply_by_layer(
    config: TransformerConfig, genotype: Genotype
) -> Callable[[Weights, Array, Array], Array]:
    """(weights, tokens, valid) -> logits, as `transformer(config, genotype).apply` of one document.

    It runs compiled programs, one for each kind of layer, and cannot be traced.
    """
    ends, kinds = ends_of(config, genotype), layer_kinds(config, genotype)

    @jax.jit
    def begin(weights: Weights, tokens: Array, valid: Array) -> tuple[Array, Array]:
        return nnx.merge(ends, weights).embedded(tokens, valid)

    @jax.jit
    def finish(weights: Weights, x: Array, valid: Array) -> Array:
        model = nnx.merge(ends, weights)
        if config.norm_place == "before":
            x = model.norm(x)
        return model.classified(pool(x, valid, config.pooling))

    def program(layer: int) -> Callable[[Weights, Array, Array], Array]:
        structure = block_of(config, genotype, layer)

        def run(weights: Weights, x: Array, valid: Array) -> Array:
            return nnx.merge(structure, weights)(x, valid, None, train=False, key=None)

        # Nothing reads the input of a layer after it.
        return jax.jit(run, donate_argnums=1)

    programs = {layer: program(layer) for layer in set(kinds)}

    def apply(weights: Weights, tokens: Array, valid: Array) -> Array:
        outside = weights_of_ends(weights)
        x, exists = begin(outside, tokens, valid)
        for layer, kind in enumerate(kinds):
            x = programs[kind](weights["blocks"][layer], x, exists)
        return finish(outside, x, exists)

    return apply
