"""Branches: how loud each candidate of a supernet is, and how much its queries and keys learn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.attention.base import Attention
from dartformer.models.supernet import MixedAttention
from dartformer.models.transformer import (
    TransformerConfig,
    Weights,
    attend,
    head_keys,
    network,
    values,
)
from dartformer.space.search_space import SearchSpace


class Branches(NamedTuple):
    """What was seen of every branch, each `[L, K, H]`.

    rms: root mean square of its outputs at valid tokens, before any norm. gradient: norm of the
    loss's gradient with respect to the queries and keys it reads, for each unit of its weight
      in the mixture; 0 where it reads neither, NaN where it has no weight.
    """

    rms: Array
    gradient: Array


@jax.custom_vjp
def gauge(x: Array, needle: Array) -> Array:
    """x `[B, N, H, D]` as it is; the "gradient" of `needle` `[H]` is the squared norm of the
    gradient of x, by head."""
    return x


def _forward(x: Array, needle: Array) -> tuple[Array, None]:
    return x, None


def _backward(_: None, gradient: Array) -> tuple[Array, Array]:
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    return gradient, jnp.sum(wide * wide, (0, 1, 3))


gauge.defvjp(_forward, _backward)


class _Sight:
    """What the mixers of one trace read and write: `needles` `[L, K, H]`, and the RMS of each layer
    `[K, H]`."""

    needles: Array
    rms: dict[int, Array]


class _Observed(MixedAttention):
    """The same layer with the same parameters, of which every branch is computed and looked at."""

    sight: _Sight

    def __call__(
        self,
        x: Array,
        valid: Array,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        layer: Array | None = None,
    ) -> Array:
        assert mixture is not None
        assert layer is None  # what is seen leaves by the side, which a scan cannot
        config, shared = self.config, len(self.projections) == 1
        keys = (
            head_keys(config, self.layer)
            if any(a.traits.stochastic for a in self.candidates)
            else None
        )
        bare = dataclasses.replace(config, branch_norm=False)
        total, seen = jnp.zeros((), x.dtype), []
        if len(self.mixed) < config.heads:
            total = self.projections[0].output(
                self.bypass(self.projections[0].inputs(x, valid, keys))
            )
            mixture = mixture * jnp.zeros((config.heads, 1), mixture.dtype).at[
                jnp.array(self.mixed)
            ].set(1)
        for k, attention in enumerate(self.candidates):
            projections = self.projections[0 if shared else k]

            def branch(
                column: Array,
                needle: Array,
                own: Any,
                attention: Attention = attention,
                projections: Any = projections,
            ) -> tuple[Array, Array]:
                given = projections.inputs(x, valid, keys)
                given = dataclasses.replace(
                    given, q=gauge(given.q, needle), k=gauge(given.k, needle)
                )
                y = attend(attention, own, given, config, train=False, key=None)
                raw = jax.lax.stop_gradient(
                    attend(attention, own, given, bare, train=False, key=None)
                )
                square = jnp.where(valid[..., None, None], raw.astype(column.dtype) ** 2, 0).sum(
                    (0, 1, 3)
                )
                rms = jnp.sqrt(square / (jnp.maximum(valid.sum(), 1) * raw.shape[-1]))
                return projections.output(y * column.astype(y.dtype)[:, None]), rms

            # Rematerialised, as in the supernet: looking must not need more memory than searching.
            y, rms = jax.checkpoint(branch)(
                mixture[:, k], self.sight.needles[self.layer, k], values(self.own[k])
            )
            total = total + y
            seen.append(rms)
        self.sight.rms[self.layer] = jnp.stack(seen)
        return total


def observer(
    config: TransformerConfig,
    space: SearchSpace,
    projections: str,
    loss: Callable[[Array, Any], Array],
    partial: int = 1,
) -> Callable[[Weights, Array, Mapping[str, Array]], Branches]:
    """(weights of the supernet, mixture `[L, H, K]`, batch) -> `Branches`; one forward and backward
    pass.

    Args:
      config, space, projections, partial: of the supernet.
      loss: (logits, labels) -> scalar.
    """
    sight = _Sight()

    def mixer(layer: int, rngs: Any) -> _Observed:
        made = _Observed(config, space.candidates, projections, layer, partial, rngs=rngs)
        made.sight = sight
        return made

    net = network(config, mixer)
    mixed = jnp.arange(config.heads) % partial == jnp.arange(config.layers)[:, None] % partial

    def observe(weights: Weights, mixture: Array, batch: Mapping[str, Array]) -> Branches:
        columns = jnp.swapaxes(mixture, 1, 2)

        def total(needles: Array) -> tuple[Array, Array]:
            sight.needles, sight.rms = needles, {}
            logits = net.apply(weights, batch["tokens"], batch["valid"], mixture)
            return loss(logits, batch["label"]), jnp.stack(
                [sight.rms[l] for l in range(config.layers)]
            )

        squared, rms = jax.grad(total, has_aux=True)(jnp.zeros_like(columns))
        weighs = (columns > 0) & mixed[:, None]
        return Branches(
            rms, jnp.where(weighs, jnp.sqrt(squared) / jnp.where(weighs, columns, 1), jnp.nan)
        )

    return observe
