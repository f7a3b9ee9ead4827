"""The supernet: the same Transformer, with a mixture of all candidates in each layer and head.

    y[:, :, h] = sum_k mixture[l, h, k] * norm(attention_k(q, k, v))[:, :, h]

The mixture is an input, never a state: one compiled supernet evaluates any architecture of the
space."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dartformer.attention.base import Attention, Inputs
from dartformer.attention.parallel import Parallel
from dartformer.errors import InputError, unknown
from dartformer.models.skipping import Branch, sum_of_active
from dartformer.models.transformer import (
    Network,
    Projections,
    TransformerConfig,
    Weights,
    attend,
    branch_norm,
    head_keys,
    network,
    own_parameters,
    require_all,
    take_heads,
    values,
)
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

PROJECTIONS = ("shared", "separate")


class MixedAttention(nnx.Module):
    """All candidates of one layer, weighted per head by the mixture's row `[H, K]`.

    A candidate whose column is zero is not computed (`sum_of_active`), and what one computes is
    computed again in the backward pass. Without `remat` it is kept instead, and all candidates are
    computed whatever their columns: one needs not wait for another, so that several cores or a wide
    device are put to better use, at the sum of their memories.

    Those whose index is not in `left` are not even compiled: a program over fewer candidates needs
    less memory. Their parameters stay where they are.

    With `partial` = p above 1, candidates are computed for one in p heads alone; the others hand on
    their values, as `identity` would (PC-DARTS, arXiv 1907.05737, with heads for channels). Which
    ones rotates from layer to layer."""

    def __init__(
        self,
        config: TransformerConfig,
        candidates: tuple[Attention, ...],
        projections: str,
        layer: int,
        partial: int = 1,
        left: Sequence[int] | None = None,
        remat: bool = True,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.candidates, self.layer, self.remat = config, candidates, layer, remat
        owners = 1 if projections == "shared" else len(candidates)
        self.projections = nnx.List([Projections(config, rngs=rngs) for _ in range(owners)])
        self.own = nnx.data([own_parameters(a, config, config.heads, rngs) for a in candidates])
        self.mixed = tuple(range(layer % partial, config.heads, partial))
        self.left = tuple(range(len(candidates)) if left is None else left)

    def bypass(self, inputs: Inputs) -> Array:
        """`[B, N, H, D]`: the values of the heads that are not mixed, zero in the others."""
        rest = np.delete(np.arange(self.config.heads), self.mixed)
        v = jnp.where(inputs.mask[..., None, None], inputs.v[:, :, rest], 0)
        return (
            jnp.zeros_like(inputs.v)
            .at[:, :, rest]
            .set(branch_norm(v) if self.config.branch_norm else v)
        )

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
        if mixture is None:
            raise ValueError("a supernet needs a mixture [L, H, K].")
        number = self.layer if layer is None else layer
        keys = (
            head_keys(self.config, number)
            if any(a.traits.stochastic for a in self.candidates)
            else None
        )
        shared = len(self.projections) == 1
        inputs = self.projections[0].inputs(x, valid, keys)
        some = len(self.mixed) < self.config.heads
        every = inputs
        if some:
            inputs = take_heads(inputs, self.mixed)
            mixture = mixture[np.array(self.mixed)]
        structure = nnx.graphdef(self.projections[0])

        def branch_of(k: int) -> Branch:
            def branch(given: Any, own: Any, fixed: Any) -> Array:
                column, params, state = own
                noise = None if fixed["noise"] is None else jax.random.fold_in(fixed["noise"], k)
                if shared:
                    known = dataclasses.replace(
                        inputs,
                        **given,
                        valid=fixed["valid"],
                        head_keys=fixed["keys"],
                        slopes=fixed["slopes"],
                    )
                else:
                    projections = nnx.merge(structure, state)
                    known = projections.inputs(given["x"], fixed["valid"], fixed["keys"])
                y = attend(self.candidates[k], params, known, self.config, train=train, key=noise)
                y = y * column.astype(y.dtype)[:, None]
                return y if shared else projections.output(y)

            return branch

        owned = []
        for k in self.left:
            params = values(self.own[k])
            params = jax.tree.map(lambda p: p[np.array(self.mixed)], params) if some else params
            state = {} if shared else nnx.to_pure_dict(nnx.state(self.projections[k]))
            owned.append((mixture[:, k], params, state))
        given = {"q": inputs.q, "k": inputs.k, "v": inputs.v, "x": x} if shared else {"x": x}
        fixed = {"valid": valid, "keys": inputs.head_keys, "slopes": inputs.slopes, "noise": key}
        branches = [branch_of(k) for k in self.left]
        if self.remat:
            active = jnp.any(mixture[:, np.array(self.left)] != 0, axis=0)
            total = sum_of_active(branches, active, given, owned, fixed)
        else:
            total = functools.reduce(
                jnp.add,
                [branch(given, own, fixed) for branch, own in zip(branches, owned, strict=True)],
            )
        if some:
            total = self.bypass(every).at[:, :, np.array(self.mixed)].set(total)
        return self.projections[0].output(total) if shared else total


def check_partial(heads: int, granularity: str, projections: str, partial: int) -> None:
    """Raise `InputError` where one in `partial` heads cannot stand for all of them."""
    if partial < 1 or heads % partial:
        raise InputError(f"search.partial must divide the {heads} heads of a layer, got {partial}.")
    if partial > 1 and granularity == "head":
        raise InputError(
            "search.partial above 1 cannot be taken with space.granularity = 'head': heads that are not "
            "mixed would learn no alphas."
        )
    if partial > 1 and projections == "separate":
        raise InputError(
            "search.partial above 1 cannot be taken with search.projections = 'separate': a head that is "
            "not mixed has no candidate whose values it could hand on."
        )


def supernet(
    config: TransformerConfig,
    space: SearchSpace,
    projections: str = "shared",
    partial: int = 1,
    left: Sequence[Sequence[int]] | None = None,
    remat: bool = True,
) -> Network:
    """A `Network` whose `apply` takes a mixture `[L, H, K]` over the candidates of `space`.

    Args:
      config: sizes.
      space: candidates, layers and heads.
      projections: "shared": all candidates of a layer read the same q, k, v and share W_o;
        "separate": each has its own four matrices.
      partial: candidates mix one in so many heads; 1 for all. Above 1, weights cut out for a
        derived model hold queries and keys that were not trained.
      left: for each layer, the indices of the candidates that are computed; all if None. The others
        count as if the mixture had zero for them; the weights are those of the whole supernet.
      remat: compute candidates again in the backward pass (see `MixedAttention`).
    """
    if projections not in PROJECTIONS:
        raise unknown("search.projections", projections, PROJECTIONS)
    require_all(space.candidates, config)
    check_partial(config.heads, space.granularity, projections, partial)
    alike = partial == 1 and len(set(map(tuple, left or ()))) <= 1
    return network(
        config,
        lambda l, rngs: MixedAttention(
            config,
            space.candidates,
            projections,
            l,
            partial,
            None if left is None else left[l],
            remat,
            rngs=rngs,
        ),
        scan=alike and 0 < config.scan <= config.layers,
    )


def inherit(weights: Weights, space: SearchSpace, genotype: Genotype) -> Weights:
    """Weights of the derived model of `genotype`, cut out of the supernet's `weights` along the
    head axis.

    `transformer(config, genotype)` with them gives the logits of the supernet at the genotype's
    mixture (`space.mixture(genotype)`). Raises `InputError` where candidates in parallel have
    separate projections: the derived layer has one set."""
    space.mixture(genotype)  # raises for an attention that the supernet lacks
    blocks = {
        l: {**block, "mixer": _inherit_layer(block["mixer"], genotype, l, space)}
        for l, block in weights["blocks"].items()
    }
    return {**weights, "blocks": blocks}


def _inherit_layer(
    mixer: dict[str, Any], genotype: Genotype, layer: int, space: SearchSpace
) -> dict[str, Any]:
    owners, heads_of = mixer["projections"], genotype.layers[layer]
    if len(owners) > 1 and not set(heads_of) <= set(space.candidates):
        raise InputError(
            "candidates in parallel cannot inherit weights from a supernet with separate projections."
        )
    head_axis = {"q": 1, "k": 1, "v": 1, "o": 0, "q_norm": 0, "k_norm": 0}
    sharing = len(heads_of) // owners[0]["k"].shape[1]

    def gather(name: str) -> Array:
        if len(owners) == 1:
            return owners[0][name]
        step = sharing if name in ("k", "v", "k_norm") else 1
        if any(set(heads_of[h : h + step]) != {heads_of[h]} for h in range(0, len(heads_of), step)):
            raise InputError(
                f"each {sharing} heads that share keys and values must have one attention to inherit from "
                f"separate projections; layer {layer} has {genotype.describe_layer(layer)}."
            )
        heads = [
            jnp.take(owners[space.candidates.index(a)][name], jnp.array([h]), head_axis[name])
            for h, a in enumerate(heads_of[::step])
        ]
        return jnp.concatenate(heads, head_axis[name])

    def own_of(attention: Attention) -> Any:
        if attention in space.candidates:
            return mixer.get("own", {}).get(space.candidates.index(attention), {})
        assert isinstance(attention, Parallel)
        members = {str(m): own_of(one) for m, one in enumerate(attention.members)}
        return {m: params for m, params in members.items() if params}

    own = {}
    for g, (attention, heads) in enumerate(genotype.groups(layer)):
        if params := own_of(attention):
            own[g] = jax.tree.map(lambda p, heads=heads: p[np.array(heads)], params)
    new: dict[str, Any] = {"projections": {0: {name: gather(name) for name in owners[0]}}}
    return {**new, "own": own} if own else new
