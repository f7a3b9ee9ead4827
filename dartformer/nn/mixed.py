"""A layer of several candidates, whose mixture is set from outside."""

from collections.abc import Sequence
from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array

from dartformer.attention.base import Attention as AttentionType
from dartformer.errors import InputError, unknown
from dartformer.models.supernet import PROJECTIONS, MixedHeads, inherit_heads
from dartformer.nn.attention import Attention, Spec, parsed, row_of
from dartformer.nn.layer import Call, HeadsNumber, Layer, Options, layer_config, options_of
from dartformer.space.genotype import Genotype


class Mixture(nnx.Variable[Array]):
    """The weight of each candidate in each head, `[H, K]`. An optimizer of `nnx.Param` leaves it."""


class MixedAttention(Layer):
    """Several candidates in one layer: y = sum_k mixture[:, k] attention_k(q, k, v), head by head.

    A candidate whose column of the mixture is zero is not computed, forward or backward.

    Attributes:
      mixture: `[H, K]`, at first uniform. A search sets it, and so may you.

    Args:
      candidates: attentions or their texts; at least two.
      model_dim: width E of inputs and outputs.
      heads: of queries.
      projections: "shared": all candidates read the same queries, keys and values; "separate":
        each has its own.
      remat: compute candidates again in the backward pass, for the memory of one. Without it all are
        computed, whatever their weight.
      rngs: parameters are drawn from `params`, noise from `dropout`.
      options: see `Options`. `branch_norm` is on by default: without it the mixture measures how
        large outputs are, not how useful.

    Raises:
      InputError: for an unknown attention or option, or options that do not work together.
    """

    heads: MixedHeads

    def __init__(
        self,
        candidates: Sequence[Spec],
        model_dim: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        projections: str = "shared",
        remat: bool = True,
        **options: Unpack[Options],
    ) -> None:
        choices = candidates_of(candidates)
        if projections not in PROJECTIONS:
            raise unknown("projections", projections, PROJECTIONS)
        options.setdefault("branch_norm", True)
        config = layer_config(choices, model_dim, heads, options)
        super().__init__(config, choices, options.get("dtype"), rngs)
        self.heads = MixedHeads(config, choices, projections, 0, remat=remat, rngs=rngs)
        self.mixture = Mixture(jnp.full((heads, len(choices)), 1 / len(choices)))

    @property
    def candidates(self) -> tuple[AttentionType, ...]:
        """The attentions to choose among, in the order of the mixture's columns."""
        return self.heads.candidates

    def _mix(self, call: Call) -> Array:
        return self.heads.mix(
            call.x,
            call.valid,
            self.mixture[...],
            train=call.train,
            key=call.key,
            layer=self._number(),
            context=call.context,
            causal=call.causal,
        )

    def plain(self, spec: Spec | Sequence[Spec]) -> Attention:
        """The layer of one candidate for each head, with weights cut out of this one.

        Its outputs are those of this layer at the one-hot mixture.

        Args:
          spec: as in `Attention`; each a candidate.

        Raises:
          InputError: for an attention that is no candidate, or whose projections are separate where
            one set is needed.
        """
        config = self.config
        row = row_of(spec, config.heads)
        weights = nnx.to_pure_dict(nnx.state(self.heads))
        cut = inherit_heads(weights, self.candidates, Genotype((row,)), 0)
        options = options_of(config)
        options["dtype"] = self.dtype
        layer = Attention(row, config.model_dim, config.heads, rngs=nnx.Rngs(0), **options)
        nnx.update(layer.heads, cut)
        layer.deterministic, layer.rngs = self.deterministic, nnx.clone(self.rngs)
        if self.number is not None:
            layer.number = HeadsNumber(self.number[...])
        if config.out_bias:
            layer.out_bias[...] = self.out_bias[...]
        return layer


def candidates_of(specs: Sequence[Spec]) -> tuple[AttentionType, ...]:
    """Candidates from attentions or texts; raises `InputError` for one alone, or for duplicates."""
    if isinstance(specs, str):
        raise InputError(f"candidates must be a list of attentions, got the text {specs!r}.")
    candidates = tuple(map(parsed, specs))
    if len(candidates) < 2:
        raise InputError(f"a mixed layer needs at least two candidates, got {list(candidates)}.")
    for candidate in candidates:
        if candidates.count(candidate) > 1:
            raise InputError(f"candidates hold {candidate!r} twice.")
    return candidates
