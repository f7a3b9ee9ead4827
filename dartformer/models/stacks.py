"""The weights of layers that one loop runs: each array once, with the layers as its first axis.

A loop reads the weights of its layer from arrays `[L, ...]`. A state that keeps them so has no second
copy of them in its step; where devices divide the weights, that copy would be as large as a device's
share. Everything that works by layers reads `weights["blocks"][layer]`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Weights = dict[str, Any]
"""Network parameters: a nested dict of arrays."""

BLOCKS, STACKED = "blocks", "stacked_blocks"
"""The keys of the layers' weights: a dict by number, and one layer's with a first axis of layers."""


def is_stacked(weights: Weights) -> bool:
    """Whether the layers are an axis of the weights."""
    return STACKED in weights


def stacked(weights: Weights) -> Weights:
    """Weights whose layers are an axis; their layers must be alike."""
    if is_stacked(weights):
        return weights
    layers = [layer_of(weights, layer) for layer in layers_of(weights)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    return {**without_layers(weights), STACKED: stack}


def by_layer(weights: Weights) -> Weights:
    """Weights whose layers are a dict by number."""
    if not is_stacked(weights):
        return weights
    blocks = {layer: layer_of(weights, layer) for layer in layers_of(weights)}
    return {**without_layers(weights), BLOCKS: blocks}


def without_layers(weights: Weights) -> Weights:
    """The weights that belong to no layer."""
    return {name: value for name, value in weights.items() if name not in (BLOCKS, STACKED)}


def layers_of(weights: Weights) -> range:
    """The numbers of the layers."""
    if is_stacked(weights):
        return range(len(jax.tree.leaves(weights[STACKED])[0]))
    return range(len(weights[BLOCKS]))


def layer_of(weights: Weights, layer: int) -> Weights:
    """The weights of one layer."""
    if is_stacked(weights):
        of_layer: Weights = jax.tree.map(lambda leaf: leaf[layer], weights[STACKED])
        return of_layer
    of_layer = weights[BLOCKS][layer]
    return of_layer


def leads_with_layers(path: Sequence[Any]) -> bool:
    """Whether the array at a path of a pytree, such as a state, has an axis of layers."""
    return any(getattr(key, "key", None) == STACKED for key in path)
