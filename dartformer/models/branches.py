"""Branches: how large the outputs of each candidate are, and how much its queries and keys learn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from dartformer.attention.base import Attention, Params
from dartformer.models.mixers import Projections, attend, values
from dartformer.models.sizes import TransformerConfig
from dartformer.models.stacks import by_layer
from dartformer.models.supernet import MixedHeads
from dartformer.models.transformer import Block, OfLabels, Transformer, Weights, graph
from dartformer.space.search_space import SearchSpace


class Branches(NamedTuple):
    """What is measured of every branch, each `[L, K, H]`.

    Attributes:
      rms: root mean square of its outputs at valid tokens, before any norm.
      gradient: norm of the loss's gradient with respect to the queries and keys it reads, for each
        unit of its weight in the mixture; 0 where it reads neither, NaN where it has no weight.
    """

    rms: Array
    gradient: Array


class Offsets(NamedTuple):
    """Zeros that are added to the queries and keys of one branch, `[B, N, H, D]`.

    The gradient with respect to them is that of the queries and keys.
    """

    q: Array
    k: Array


class _ObservedMixture(MixedHeads):
    """The same layer with the same parameters, every branch of which is computed and measured.

    It adds `offsets`, one for each branch, and keeps the `rms` of the branches `[K, H]`.
    """

    offsets: nnx.Perturbation[list[Offsets]]
    rms: nnx.Intermediate[Array]

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
        """See `Mixer`; it stands for no other layer, since a scan cannot hand out `rms`."""
        assert mixture is not None
        assert layer is None
        assert not first_token
        config = self.config
        keys = self.keys(self.layer)
        unnormed = dataclasses.replace(config, branch_norm=False)
        total = jnp.zeros((), x.dtype)
        if self.partial:
            bypass = self.bypass(self.projections[0].inputs(x, valid, keys))
            total = self.projections[0].output(bypass, x)
            # Heads that are not mixed have no column: their values are in `total` already.
            is_mixed = jnp.zeros((config.heads, 1), mixture.dtype).at[jnp.array(self.mixed)].set(1)
            mixture = mixture * is_mixed

        def branch(
            attention: Attention,
            projections: Projections,
            column: Array,
            offsets: Offsets,
            params: Params,
        ) -> tuple[Array, Array]:
            inputs = projections.inputs(x, valid, keys)
            # The offsets are zero; their gradients are those of this branch's own q and k.
            inputs = dataclasses.replace(inputs, q=inputs.q + offsets.q, k=inputs.k + offsets.k)
            y = attend(attention, params, inputs, config, train=False, key=None)
            raw = attend(attention, params, inputs, unnormed, train=False, key=None)
            # Measured before the norm, which would make all branches equally large.
            rms = valid_rms(jax.lax.stop_gradient(raw).astype(column.dtype), valid)
            return projections.output(y * column.astype(y.dtype)[:, None], x), rms

        measured = []
        for k, attention in enumerate(self.candidates):
            projections = self.projections[0]
            if not self.shared:
                projections = self.projections[k]
            params = values(self.own[k])
            # Rematerialized, as in the supernet: observing must not need more memory than searching.
            run = jax.checkpoint(branch, static_argnums=(0, 1))
            y, rms = run(attention, projections, mixture[:, k], self.offsets[k], params)
            total = total + y
            measured.append(rms)
        self.rms = nnx.Intermediate(jnp.stack(measured))
        return total


def mixer_of(block: Block) -> _ObservedMixture:
    """The mixer of a block of the observed supernet."""
    assert isinstance(block.mixer, _ObservedMixture)
    return block.mixer


def valid_rms(y: Array, valid: Array) -> Array:
    """`[H]`: root mean square of y `[B, N, H, D]` over valid tokens and D."""
    squares = jnp.where(valid[..., None, None], y**2, 0).sum((0, 1, 3))
    return jnp.sqrt(squares / (jnp.maximum(valid.sum(), 1) * y.shape[-1]))


def squared_norm(gradient: Array) -> Array:
    """`[H]`: squared norm of a gradient `[B, N, H, D]` by head, in float32 or wider."""
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    return jnp.sum(wide * wide, (0, 1, 3))


def observer(
    config: TransformerConfig,
    space: SearchSpace,
    projections: str,
    losses: OfLabels,
    mean: Callable[[Any, Any], Array],
    partial: int = 1,
) -> Callable[[Weights, Array, Mapping[str, Array]], Branches]:
    """(weights of the supernet, mixture `[L, H, K]`, batch) -> `Branches`.

    It costs one forward and one backward pass.

    Args:
      config, space, projections, partial: of the supernet.
      losses: (logits, labels) -> the losses of the labels.
      mean: (these losses, labels) -> scalar.
    """

    def mixer(layer: int, rngs: nnx.Rngs) -> _ObservedMixture:
        return _ObservedMixture(config, space.candidates, projections, layer, partial, rngs=rngs)

    structure = graph(config, mixer)
    # Row l says which heads are mixed in layer l, as in `MixedHeads`.
    mixed = jnp.arange(config.heads) % partial == jnp.arange(config.layers)[:, None] % partial

    def zeros(batch: Mapping[str, Array]) -> list[list[Offsets]]:
        """For each layer, for each branch."""
        documents = len(batch["tokens"]) * config.inputs
        tokens = batch["valid"].shape[-1] + (config.pooling == "cls")
        zero = jnp.zeros((documents, tokens, config.heads, config.head_dim), config.dtype)
        branches = [Offsets(zero, zero)] * len(space.candidates)
        return [branches] * config.layers

    def observe(weights: Weights, mixture: Array, batch: Mapping[str, Array]) -> Branches:
        def total(offsets: list[list[Offsets]]) -> tuple[Array, Array]:
            model: Transformer = nnx.merge(structure, by_layer(weights))
            mixers = list(map(mixer_of, model.blocks))
            for mixer, of_layer in zip(mixers, offsets, strict=True):
                mixer.offsets = nnx.Perturbation(of_layer)
            tokens, valid = jnp.asarray(batch["tokens"]), jnp.asarray(batch["valid"])
            labels = jnp.asarray(batch["label"])
            found = model.of_labels(losses, tokens, valid, labels, mixture)
            rms = jnp.stack([mixer.rms[...] for mixer in mixers])
            return mean(found, labels), rms

        gradients, rms = jax.grad(total, has_aux=True)(zeros(batch))
        squares = []
        for of_layer in gradients:
            norms = []
            for offsets in of_layer:
                norms.append(squared_norm(offsets.q) + squared_norm(offsets.k))
            squares.append(jnp.stack(norms))  # [K, H]
        columns = jnp.swapaxes(mixture, 1, 2)  # [L, K, H]
        weighted = (columns > 0) & mixed[:, None]
        per_unit = jnp.sqrt(jnp.stack(squares)) / jnp.where(weighted, columns, 1)
        return Branches(rms, jnp.where(weighted, per_unit, jnp.nan))

    return observe
