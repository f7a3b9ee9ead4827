"""Starting from a checkpoint: its weights are those that a model begins its training with."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dartformer.errors import InputError
from dartformer.machine.workdir import crc32
from dartformer.models.sizes import TransformerConfig, TransformerOptions
from dartformer.models.stacks import BLOCKS, STACKED, leads_with_layers
from dartformer.models.transformer import Network, OfLabels, Weights, label_scores
from dartformer.pretrained.base import Described
from dartformer.pretrained.load import Pretrained
from dartformer.training.checkpoint import named_leaves

FREE = ("pooling", "classifier", "pair", "dropout", "attention_dropout", "kernel", "scan", "dtype")
"""Options of a model that say nothing of the shapes or the meaning of a checkpoint's weights."""

HEAD = ("head_bias", "tie_embeddings", "logits_chunk")
"""Options of the layer behind the last block, which a task has its own of."""


class Start(NamedTuple):
    """The weights of a checkpoint.

    Attributes:
      folder: of the checkpoint.
      weights: by name.
    """

    folder: Path
    weights: dict[str, Array]

    def weights_of(self, initial: Weights) -> Weights:
        """Initial weights with those of the checkpoint in place of what it has."""

        def of_checkpoint(path: Any, leaf: Array) -> Array:
            names = _names(path, leaf)
            if not self._has(names):
                return jnp.array(leaf)
            values = [self.weights[name] for name in names]
            if leads_with_layers(path):
                return jnp.stack(values).astype(leaf.dtype)
            # A model of shorter texts has fewer positions. A copy, because steps are given their
            # weights to write over.
            return jnp.array(values[0][: leaf.shape[0]], leaf.dtype)

        return jax.tree_util.tree_map_with_path(of_checkpoint, initial)

    def mask(self, weights: Weights) -> Weights:
        """True for each array that the checkpoint does not have."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: not self._has(_names(path, leaf)), weights
        )

    def _has(self, names: Sequence[str]) -> bool:
        return all(name in self.weights for name in names)

    def network(self, network: Network, frozen: bool) -> Network:
        """A network that begins with these weights, and keeps them where they are `frozen`."""

        def init(key: Array) -> Weights:
            return self.weights_of(network.init(key))

        if not frozen:
            return network._replace(init=init)

        def fixed(weights: Weights) -> Weights:
            # What no gradient passes through is not computed in the backward pass.
            return jax.tree.map(_held, weights, self.mask(weights))

        def apply(weights: Weights, *arrays: Any, **options: Any) -> Array:
            return network.apply(fixed(weights), *arrays, **options)

        def of_labels(function: OfLabels, weights: Weights, *arrays: Any, **options: Any) -> Any:
            return label_scores(network, function, fixed(weights), *arrays, **options)

        return network._replace(init=init, apply=apply, of_labels=of_labels)

    def optimizer(
        self, chain: optax.GradientTransformation, weights: Weights
    ) -> optax.GradientTransformation:
        """An optimizer that leaves the checkpoint's weights as they are."""
        labels = jax.tree.map(lambda trains: ("frozen", "trained")[trains], self.mask(weights))
        return optax.multi_transform({"trained": chain, "frozen": optax.set_to_zero()}, labels)


def _held(leaf: Array, trains: bool) -> Array:
    if trains:
        return leaf
    return jax.lax.stop_gradient(leaf)


def _names(path: Any, leaf: Array) -> list[str]:
    """The names of the checkpoint's arrays that an array of weights holds, one for each layer."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not leads_with_layers(path):
        return [name]
    return [name.replace(STACKED, f"{BLOCKS}/{layer}") for layer in range(leaf.shape[0])]


def options_of(config: TransformerConfig) -> dict[str, object]:
    """The options of a model that can start from a checkpoint, but those with their default."""
    options: dict[str, object] = {}
    for field in dataclasses.fields(TransformerOptions):
        value = getattr(config, field.name)
        if field.name not in (*FREE, *HEAD) and value != field.default:
            options[field.name] = value
    return options


def start(model: Pretrained, sizes: TransformerConfig) -> Start:
    """The weights of a checkpoint, for a model of these sizes."""
    head = "head/"
    weights = {}
    for name, leaf in named_leaves(model.weights):
        # A model of the same language goes on with its own head.
        if not name.startswith(head) or sizes.classes == model.config.classes:
            weights[name] = leaf
    return Start(model.folder, weights)


def contents(folder: str | Path) -> list[tuple[str, int]]:
    """Names and checksums of the files that a checkpoint's model is read from."""
    files = [Path(folder) / "config.json", *sorted(Path(folder).glob("*.safetensors"))]
    return [(file.name, crc32(file)) for file in files]


def require_sizes(checkpoint: Described, sizes: TransformerConfig) -> None:
    """Raise `InputError` for a model that cannot hold the weights of a checkpoint."""
    folder, theirs = checkpoint.folder, checkpoint.config
    for field in dataclasses.fields(TransformerOptions):
        name = field.name
        ours, checkpoint = getattr(sizes, name), getattr(theirs, name)
        if name == "kv_heads":
            ours, checkpoint = ours or sizes.heads, checkpoint or theirs.heads
        if name not in (*FREE, *HEAD) and ours != checkpoint:
            raise InputError(
                f"start={str(folder)!r} does not work with model.{name}={ours!r}, because the "
                f"checkpoint has {checkpoint!r}. Use that."
            )
    if sizes.features or sizes.vocabulary != theirs.vocabulary:
        raise InputError(
            f"start={str(folder)!r} does not work with this task, which has {sizes.vocabulary} "
            f"tokens, because the checkpoint has {theirs.vocabulary}. Use task.tokens='checkpoint', "
            f"task.checkpoint={str(folder)!r} and task.vocabulary_size={theirs.vocabulary}."
        )
    if sizes.length > theirs.length:
        raise InputError(
            f"start={str(folder)!r} does not work with task.length={sizes.length}, because the "
            f"checkpoint reads at most {theirs.length} tokens."
        )
    if sizes.pooling == "cls":
        raise InputError(
            f"start={str(folder)!r} does not work with model.pooling='cls', which puts a token in "
            f"front that the checkpoint does not know. Use 'mean'."
        )
    if sizes.causal != theirs.causal:
        kinds = {True: "from left to right", False: "in both directions"}
        raise InputError(
            f"start={str(folder)!r} does not work with this task, whose model reads "
            f"{kinds[sizes.causal]}, because the checkpoint reads {kinds[theirs.causal]}."
        )
