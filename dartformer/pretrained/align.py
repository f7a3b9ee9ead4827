"""Align: attentions in place of a checkpoint's, trained layer by layer to give the same outputs.

In a layer with another attention, W_q, W_k, W_v and W_o begin as the checkpoint has them, and are
trained together with the attention's own parameters on what the checkpoint's layer reads and gives,

    sum |A(x) W_o - a|^2 / sum |a - mean a|^2

over all tokens: 1 is as good as a constant. Layers do not depend on one another, because each reads
the checkpoint's own inputs (the first stage of RADLADS, arXiv:2505.03005, and of other conversions
to linear attention). Only the mixer of a layer is trained.

A checkpoint's attention has no norm behind it, so no candidate has `branch_norm`. Instead W_o
begins multiplied by the number for which the outputs come closest to the checkpoint's."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from dartformer.errors import InputError
from dartformer.models.layerwise import block_of, ends_of, layer_kinds, weights_of_ends
from dartformer.models.transformer import Block, Weights, transformer
from dartformer.pretrained.load import Pretrained, require_shape
from dartformer.space.genotype import Genotype


class Fit(NamedTuple):
    """How well a layer gives what the checkpoint's gives.

    Attributes:
      layer: its number.
      before, after: the loss on the sequences, before and after training.
      size: what W_o was multiplied by before training, so that outputs have the checkpoint's size.
    """

    layer: int
    before: float
    after: float
    size: float = 1.0


class Aligned(NamedTuple):
    """A checkpoint with other attentions.

    Attributes:
      model: with the genotype and its weights.
      fits: of the layers that differ from the checkpoint's.
    """

    model: Pretrained
    fits: tuple[Fit, ...]


@dataclasses.dataclass(frozen=True)
class Alignment:
    """How layers are aligned.

    Attributes:
      steps: of Adam for each layer.
      batch: sequences in a step.
      rate: the learning rate of the projections, which falls to 0 along a cosine.
      own_rate: that of the attentions' own parameters, which no checkpoint has trained, such as the
        feature maps of `window_linear`.
      seed: of the own parameters of attentions.
    """

    steps: int = 30
    batch: int = 4
    rate: float = 3e-3
    own_rate: float = 3e-2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("rate", "own_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}.")


def align(
    model: Pretrained, genotype: Genotype, tokens: np.ndarray, options: Alignment | None = None
) -> Aligned:
    """The checkpoint with the attentions of a genotype, aligned where they differ from its own.

    Args:
      model: the checkpoint.
      genotype: with attentions that work in the model.
      tokens: sequences `[S, N]` without padding. Those behind the last whole batch are left out.
      options: see `Alignment`.

    Raises:
      InputError: an attention does not work in the model, or the genotype is of another size.
    """
    require_shape(genotype, model.config)
    options = options or Alignment()
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
        raise InputError(f"tokens must be whole numbers [S, N], got {tokens.dtype} {tokens.shape}.")
    if not 0 <= tokens.min() <= tokens.max() < model.config.vocabulary:
        raise InputError(f"tokens must be from 0 to {model.config.vocabulary - 1}.")
    if tokens.shape[1] > model.config.length:
        raise InputError(f"the model takes at most {model.config.length} tokens.")
    work = _Work(model, genotype, options)
    # Whole batches alone, so that every step has one shape.
    batches = []
    size = min(options.batch, len(tokens))
    for start in range(0, len(tokens) - size + 1, size):
        batches.append(work.embed(jnp.asarray(tokens[start : start + size])))
    blocks, fits = dict(model.weights["blocks"]), []
    changed = []
    for layer in range(model.config.layers):
        if genotype.layers[layer] != model.genotype.layers[layer]:
            changed.append(layer)
    # Behind the last of them nobody reads the inputs.
    for layer in range(max(changed, default=-1) + 1):
        pairs = []
        for batch, x in enumerate(batches):
            inputs, output, batches[batch] = work.teach(layer, x)
            pairs.append((inputs, output))
        if layer in changed:
            blocks[layer], fit = work.fit(layer, pairs)
            fits.append(fit)
    weights = {**model.weights, "blocks": blocks}
    aligned = dataclasses.replace(model, genotype=genotype, weights=weights)
    return Aligned(aligned, tuple(fits))


def untrained(model: Pretrained, genotype: Genotype, seed: int = 0) -> Pretrained:
    """The checkpoint with the attentions of a genotype before `align`.

    Projections are the checkpoint's, and own parameters of attentions are as `align` draws them.
    """
    require_shape(genotype, model.config)
    blocks = dict(model.weights["blocks"])
    for layer, block in blocks.items():
        if genotype.layers[layer] != model.genotype.layers[layer]:
            blocks[layer] = {**block, "mixer": _new_mixer(model, genotype, layer, seed)}
    weights = {**model.weights, "blocks": blocks}
    return dataclasses.replace(model, genotype=genotype, weights=weights)


def _new_mixer(model: Pretrained, genotype: Genotype, layer: int, seed: int) -> Weights:
    """A layer's weights of the checkpoint, with new parameters of the attentions of a genotype."""
    one = dataclasses.replace(model.config, layers=1, nope_layers=())
    net = transformer(one, Genotype((genotype.layers[layer],)))
    key = jax.random.fold_in(jax.random.key(seed), layer)
    mixer = dict(model.weights["blocks"][layer]["mixer"])
    # The block is drawn as a whole, and thrown away but for these.
    own = net.init(key)["blocks"][0]["mixer"].get("own")
    if own is not None:
        mixer["own"] = own
    return mixer


@dataclasses.dataclass(frozen=True)
class _Work:
    """The programs of an alignment: one for each kind of layer."""

    model: Pretrained
    genotype: Genotype
    options: Alignment

    @cached_property
    def embed(self) -> Callable[[Array], Array]:
        """The input of the first layer, of tokens."""
        ends = ends_of(self.model.config, self.model.genotype)
        outside = weights_of_ends(self.model.weights)

        @jax.jit
        def embedded(weights: Weights, tokens: Array) -> Array:
            x, _ = nnx.merge(ends, weights).embedded(tokens, jnp.ones(tokens.shape, bool))
            return x

        return lambda tokens: embedded(outside, tokens)

    def teach(self, layer: int, x: Array) -> tuple[Array, Array, Array]:
        """What the checkpoint's mixer reads and gives in a layer, and the input of the next one."""
        kind = layer_kinds(self.model.config, self.model.genotype)[layer]
        return self._teachers(kind)(self.model.weights["blocks"][layer], x)

    def fit(self, layer: int, pairs: list[tuple[Array, Array]]) -> tuple[Weights, Fit]:
        """The weights of a layer with the mixer of the genotype, trained."""
        kind = layer_kinds(self.model.config, self.genotype)[layer]
        loss, moments, step, optimizer = self._students(kind)
        block = self.model.weights["blocks"][layer]
        mixer = _new_mixer(self.model, self.genotype, layer, self.options.seed)

        def mean_loss(mixer: Weights) -> float:
            losses = []
            for inputs, output in pairs:
                losses.append(float(loss(mixer, block, inputs, output)))
            return float(np.mean(losses))

        before = mean_loss(mixer)
        size = _size([moments(mixer, block, *pair) for pair in pairs])
        mixer = _scaled(mixer, size)
        state = optimizer.init(mixer)
        for number in range(self.options.steps):
            inputs, output = pairs[number % len(pairs)]
            mixer, state = step(mixer, state, block, inputs, output)
        return {**block, "mixer": mixer}, Fit(layer, before, mean_loss(mixer), size)

    @cached_property
    def _programs(self) -> dict[tuple[str, int], Any]:
        return {}

    def _teachers(self, kind: int) -> Any:
        if ("teacher", kind) not in self._programs:
            structure = block_of(self.model.config, self.model.genotype, kind)

            @jax.jit
            def run(weights: Weights, x: Array) -> tuple[Array, Array, Array]:
                block: Block = nnx.merge(structure, weights)
                inputs, output = block.read(x), _mixed(block, x)
                return inputs, output, block.added(x, output, False, [None] * 3)

            self._programs["teacher", kind] = run
        return self._programs["teacher", kind]

    def _students(self, kind: int) -> Any:
        """Loss, moments, step and optimizer of a kind of layer."""
        if ("student", kind) not in self._programs:
            structure = block_of(self.model.config, self.genotype, kind)
            optimizer = _optimizer(self.options)

            def run(mixer: Weights, block: Weights, inputs: Array) -> Array:
                student: Block = nnx.merge(structure, {**block, "mixer": mixer})
                valid = jnp.ones(inputs.shape[:2], bool)
                return student.mixer(inputs, valid, None, train=False, key=None)

            def loss(mixer: Weights, block: Weights, inputs: Array, output: Array) -> Array:
                output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
                spread = jnp.sum((output - output.mean((0, 1))) ** 2)
                return jnp.sum((run(mixer, block, inputs) - output) ** 2) / spread

            @jax.jit
            def moments(
                mixer: Weights, block: Weights, inputs: Array, output: Array
            ) -> tuple[Array, Array]:
                # The output is W_o u + b.
                biased = run(mixer, block, inputs).astype(jnp.float32)
                bias = run(_scaled(mixer, 0.0), block, inputs).astype(jnp.float32)
                unbiased = biased - bias
                return jnp.sum(unbiased * (output - bias)), jnp.sum(unbiased**2)

            @jax.jit
            def step(
                mixer: Weights, state: Any, block: Weights, inputs: Array, output: Array
            ) -> tuple[Weights, Any]:
                slope = jax.grad(loss)(mixer, block, inputs, output)
                change, state = optimizer.update(slope, state)
                moved: Any = optax.apply_updates(mixer, change)
                return moved, state

            self._programs["student", kind] = jax.jit(loss), moments, step, optimizer
        return self._programs["student", kind]


SMALLEST = 0.1
"""The least factor of W_o: the best one of an output that says nothing yet would be 0."""


def _size(moments: list[tuple[Array, Array]]) -> float:
    """The factor c of least squares |c u - a|^2, from u . a and u . u of each batch."""
    products = sum(float(product) for product, _ in moments)
    squares = sum(float(square) for _, square in moments)
    if squares == 0:
        return 1.0
    return max(products / squares, SMALLEST)


def _scaled(mixer: Weights, size: float) -> Weights:
    """The weights of a mixer with W_o multiplied by `size`."""
    projections = mixer["projections"][0]
    scaled = {**projections, "o": size * projections["o"]}
    return {**mixer, "projections": {0: scaled}}


def _optimizer(options: Alignment) -> optax.GradientTransformation:
    """Adam with a rate for the own parameters of attentions and one for everything else."""

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(rate, options.steps))

    def labels(mixer: Weights) -> dict[str, str]:
        groups = dict.fromkeys(mixer, "projections")
        if "own" in mixer:
            groups["own"] = "own"
        return groups

    rates = {"projections": adam(options.rate), "own": adam(options.own_rate)}
    return optax.multi_transform(rates, labels)


def _mixed(block: Block, x: Array) -> Array:
    """The output of a block's mixer."""
    valid = jnp.ones(x.shape[:2], bool)
    return block.mixer(block.read(x), valid, None, train=False, key=None)
