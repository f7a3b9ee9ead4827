"""The supernet: the same Transformer, with a mixture of all candidates in each layer and head.

    y[:, :, h] = sum_k mixture[l, h, k] * norm(attention_k(q, k, v))[:, :, h]

The mixture is an input, never a state: one compiled supernet evaluates any architecture of the
space."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from dartformer.attention.base import Attention, Inputs, Params
from dartformer.attention.parallel import Parallel
from dartformer.errors import InputError, unknown
from dartformer.kernels.target import here
from dartformer.models.mixers import (
    HEADS,
    Context,
    Projections,
    attend,
    branch_norm,
    head_keys,
    own_parameters,
    require_all,
    take_heads,
    values,
    with_causal,
)
from dartformer.models.sizes import TransformerConfig
from dartformer.models.skipping import Branch, sum_of_active
from dartformer.models.stacks import BLOCKS, layer_of, layers_of, without_layers
from dartformer.models.transformer import Network, Weights, network
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

PROJECTIONS = ("shared", "separate")


class BranchParameters(NamedTuple):
    """What one candidate alone reads: its column of the mixture `[H]` and its parameters.

    `projections` is empty where all candidates share theirs."""

    column: Array
    params: Params
    projections: Weights


class Constants(NamedTuple):
    """What all candidates read and nothing differentiates."""

    valid: Array | None
    head_keys: Array | None
    slopes: Array | None
    key: Array | None
    query_valid: Array | None = None


class MixedHeads(nnx.Module):
    """All candidates of one layer, weighted per head by the mixture's row `[H, K]`.

    A candidate whose column is zero is not computed (`sum_of_active`), and the others are computed
    again in the backward pass. Without `remat` their outputs are kept instead, and all candidates
    are computed whatever their columns: they need not wait for one another, so several cores or a
    wide device are put to better use, at the sum of their memories.

    Candidates whose index is not in `kept` are not even compiled: a program over fewer candidates
    needs less memory. Their parameters stay where they are.

    With `partial` = p above 1, candidates are computed for one in p heads; the other heads hand on
    their values, as `identity` would (PC-DARTS, arXiv 1907.05737, with heads for channels). Which
    ones rotates from layer to layer."""

    # The candidates mix all tokens whatever is read of them.
    saves_by_first_token: ClassVar[bool] = False

    def __init__(
        self,
        config: TransformerConfig,
        candidates: tuple[Attention, ...],
        projections: str,
        layer: int,
        partial: int = 1,
        kept: Sequence[int] | None = None,
        remat: bool = True,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.candidates, self.layer, self.remat = config, candidates, layer, remat
        self.shared = projections == "shared"
        sets = 1
        if not self.shared:
            sets = len(candidates)
        self.projections = nnx.List([Projections(config, layer, rngs=rngs) for _ in range(sets)])
        parameters = []
        for candidate in candidates:
            parameters.append(own_parameters(candidate, config, config.heads, rngs))
        # "own" is a key of saved weights: the parameters that attentions have beside projections.
        self.own = nnx.data(parameters)
        # Rotated from layer to layer, so that no head is left out of all mixtures.
        self.mixed = tuple(range(layer % partial, config.heads, partial))
        if kept is None:
            kept = range(len(candidates))
        self.kept = tuple(kept)

    @property
    def partial(self) -> bool:
        """Whether some heads are not mixed."""
        return len(self.mixed) < self.config.heads

    def keys(self, layer: int | Array) -> Array | None:
        """`[H]` keys of fixed randomness, where a candidate has some."""
        if any(a.traits.stochastic for a in self.candidates):
            return head_keys(self.config, layer)
        return None

    def bypass(self, inputs: Inputs) -> Array:
        """`[B, N, H, D]`: the values of the heads that are not mixed, zero in the mixed ones."""
        unmixed = np.delete(np.arange(self.config.heads), self.mixed)
        # Padding gives zero, as it does in every attention.
        v = jnp.where(inputs.mask[..., None, None], inputs.v[:, :, unmixed], 0)
        if self.config.branch_norm:
            v = branch_norm(v)
        return jnp.zeros_like(inputs.v).at[:, :, unmixed].set(v)

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
        return self.mix(
            x, valid, mixture, train=train, key=key, layer=layer, first_token=first_token
        )

    def mix(
        self,
        x: Array,
        valid: Array | None,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        layer: Array | None = None,
        first_token: bool = False,
        context: Context | None = None,
        causal: bool | None = None,
    ) -> Array:
        """As `Mixer`, for any layer of heads.

        `valid` may be None, where all tokens exist. With a `context` keys and values are of that
        sequence. `causal` stands for the config's.
        """
        config = with_causal(self.config, causal)
        if mixture is None:
            raise ValueError("a supernet needs a mixture [L, H, K].")
        keys = self.keys(self.layer if layer is None else layer)
        all_heads = inputs = self.projections[0].inputs(x, valid, keys, context=context)
        if self.partial:
            inputs = take_heads(inputs, self.mixed)
            mixture = mixture[np.array(self.mixed)]
        read = {"x": x}
        if self.shared:
            read |= {"q": inputs.q, "k": inputs.k, "v": inputs.v}
        elif context is not None:
            read |= {"keys": context.keys, "values": context.values}
        constants = Constants(
            inputs.valid, inputs.head_keys, inputs.slopes, key, inputs.query_valid
        )
        branches, parameters = [], []
        for k in self.kept:
            branches.append(self.branch(k, inputs, train, config))
            parameters.append(self.branch_parameters(k, mixture[:, k]))
        if self.remat:
            active = jnp.any(mixture[:, np.array(self.kept)] != 0, axis=0)  # [kept candidates]
            total = sum_of_active(branches, active, read, parameters, constants)
        else:
            outputs = []
            for branch, params in zip(branches, parameters, strict=True):
                outputs.append(branch(read, params, constants))
            total = functools.reduce(jnp.add, outputs)
        if self.partial:
            total = self.bypass(all_heads).at[:, :, np.array(self.mixed)].set(total)
        total = named_heads(total)
        if self.shared:
            total = self.projections[0].output(total, x)
        if first_token:
            return total[:, :1]
        return total

    def branch_parameters(self, k: int, column: Array) -> BranchParameters:
        """What candidate number k alone reads, in the heads that are mixed."""
        params = values(self.own[k])
        if self.partial:
            params = jax.tree.map(lambda p: p[np.array(self.mixed)], params)
        projections = {}
        if not self.shared:
            projections = nnx.to_pure_dict(nnx.state(self.projections[k]))
        return BranchParameters(column, params, projections)

    def branch(self, k: int, template: Inputs, train: bool, config: TransformerConfig) -> Branch:
        """The weighted output of candidate number k, as a function of all that it reads.

        `template` gives what is not an array. With shared projections the output is
        `[B, N, H, D]`, else `[B, N, E]`.
        """
        structure = nnx.graphdef(self.projections[0])
        shared, attention = self.shared, self.candidates[k]

        def branch(
            read: Mapping[str, Array], parameters: BranchParameters, constants: Constants
        ) -> Array:
            key = constants.key
            if key is not None:
                key = jax.random.fold_in(key, k)
            if shared:
                inputs = dataclasses.replace(
                    template,
                    q=read["q"],
                    k=read["k"],
                    v=read["v"],
                    x=read["x"],
                    valid=constants.valid,
                    head_keys=constants.head_keys,
                    slopes=constants.slopes,
                    query_valid=constants.query_valid,
                )
            else:
                projections = nnx.merge(structure, parameters.projections)
                inputs = separate_inputs(projections, read, constants)
            y = attend(attention, parameters.params, inputs, config, train=train, key=key)
            y = y * parameters.column.astype(y.dtype)[:, None]
            if shared:
                return y  # summed over the candidates, and then projected once
            return projections.output(y, read["x"])

        return branch


def named_heads(total: Array) -> Array:
    """The sum of all candidates under the name by which `recomputed` keeps it."""
    # Heads and their width as one axis: a TPU fills up a narrow last axis to 128 numbers.
    flat = total.reshape(*total.shape[:2], -1)
    return checkpoint_name(flat, HEADS).reshape(total.shape)


def separate_inputs(
    projections: Projections, read: Mapping[str, Array], constants: Constants
) -> Inputs:
    """What a candidate with projections of its own reads."""
    if "keys" not in read:
        return projections.inputs(read["x"], constants.valid, constants.head_keys)
    context = Context(read["keys"], read["values"], constants.valid)
    return projections.inputs(
        read["x"], constants.query_valid, constants.head_keys, context=context
    )


def check_partial(heads: int, granularity: str, projections: str, partial: int) -> None:
    """Raise `InputError` where one in `partial` heads cannot stand for all of them."""
    if partial < 1 or heads % partial:
        raise InputError(f"search.partial must divide the {heads} heads of a layer, got {partial}.")
    if partial > 1 and granularity in ("head", "kv_group"):
        raise InputError(
            f"search.partial > 1 does not work with space.granularity={granularity!r} because heads "
            "that are not mixed would learn no alphas. Use 'layer' or 'model'."
        )
    if partial > 1 and projections == "separate":
        raise InputError(
            "search.partial > 1 does not work with search.projections='separate' because a head that "
            "is not mixed has no candidate whose values it could hand on. Use 'shared'."
        )


def supernet(
    config: TransformerConfig,
    space: SearchSpace,
    projections: str = "shared",
    partial: int = 1,
    kept: Sequence[Sequence[int]] | None = None,
    remat: bool = True,
    blocks: bool | None = None,
) -> Network:
    """A `Network` whose `apply` takes a mixture `[L, H, K]` over the candidates of `space`.

    Args:
      config: sizes.
      space: candidates, layers and heads.
      projections: "shared": all candidates of a layer read the same q, k, v and share W_o;
        "separate": each has its own four matrices.
      partial: candidates mix one in so many heads; 1 for all. Above 1, weights cut out for a
        derived model hold queries and keys that were not trained.
      kept: for each layer, the indices of the candidates that are computed; None for all. The
        others count as if the mixture had zero for them; the weights are those of the whole
        supernet.
      remat: compute candidates again in the backward pass (see `MixedHeads`).
      blocks: compute what stands around them again, too, layer by layer. None: with `remat`, on
        accelerators (see `recomputes_blocks`).
    """
    if projections not in PROJECTIONS:
        raise unknown("search.projections", projections, PROJECTIONS)
    require_all(space.candidates, config)
    check_partial(config.heads, space.granularity, projections, partial)
    # One loop over layers needs layers that compute the same.
    alike = partial == 1 and len(set(map(tuple, kept or ()))) <= 1 and not config.nope_layers
    scan = alike and 0 < config.scan <= config.layers

    def mixer(layer: int, rngs: nnx.Rngs) -> MixedHeads:
        return MixedHeads(
            config,
            space.candidates,
            projections,
            layer,
            partial,
            None if kept is None else kept[layer],
            remat,
            rngs=rngs,
        )

    if blocks is None:
        blocks = remat and recomputes_blocks(config)
    return network(config, mixer, scan, blocks)


def recomputes_blocks(config: TransformerConfig) -> bool:
    """Whether the backward pass of a supernet had better compute blocks again than keep them.

    On a CPU that takes a third more time, and there memory is plenty. In one layer alone there are
    no other layers for which anything is kept.
    """
    target = config.target or here()
    return target.accelerated and config.layers > 1


def inherit(weights: Weights, space: SearchSpace, genotype: Genotype) -> Weights:
    """Weights of the derived model of `genotype`, cut out of the supernet's `weights`.

    `transformer(config, genotype)` with them gives the logits of the supernet at the genotype's
    mixture (`space.mixture(genotype)`). They are cut along the head axis.

    Raises:
      InputError: the supernet lacks an attention of the genotype; or its projections are separate,
        and a derived layer, which has one set, would need several: for candidates in parallel, and
        for heads that share keys and values but not their attention.
    """
    space.mixture(genotype)  # raises for an attention that the supernet lacks
    blocks = {}
    for layer in layers_of(weights):
        block = layer_of(weights, layer)
        heads = inherit_heads(block["mixer"], space.candidates, genotype, layer)
        blocks[layer] = {**block, "mixer": heads}
    return {**without_layers(weights), BLOCKS: blocks}


def inherit_heads(
    weights: Weights, candidates: tuple[Attention, ...], genotype: Genotype, layer: int
) -> Weights:
    """The weights of `GroupedHeads` for a layer of a genotype, cut out of those of `MixedHeads`."""
    return _Cut(weights, candidates, genotype, layer).mixer()


def expand(weights: Weights, space: SearchSpace, genotype: Genotype, shapes: Weights) -> Weights:
    """The weights of a supernet, of these `shapes`, from which `inherit` cuts `weights`.

    What the genotype does not use is zero, so that it stays zero where the supernet trains at the
    genotype's mixture.
    """

    def cut(supernet: Weights) -> Weights:
        return inherit(supernet, space, genotype)

    # Cutting is linear, and its transpose puts each part back into its place among zeros.
    (wide,) = jax.linear_transpose(cut, shapes)(weights)
    return dict(wide)


HEAD_AXES = {
    "q": 1,
    "k": 1,
    "v": 1,
    "o": 0,
    "q_norm": 0,
    "k_norm": 0,
    "q_bias": 0,
    "k_bias": 0,
    "v_bias": 0,
    "q_conv": 1,
    "k_conv": 1,
    "v_conv": 1,
    "gate": 1,
}
"""The axis of the heads in each array of `Projections`."""

OF_KEYS = ("k", "v", "k_norm", "k_bias", "v_bias", "k_conv", "v_conv")
"""The arrays whose heads are those of keys and values."""


class _Cut:
    """One layer of a derived model, cut out of the supernet's."""

    def __init__(
        self,
        weights: Weights,
        candidates: tuple[Attention, ...],
        genotype: Genotype,
        layer: int,
    ) -> None:
        self.weights, self.candidates = weights, candidates
        self.genotype, self.layer = genotype, layer
        self.heads = genotype.layers[layer]
        self.sets = weights["projections"]
        if len(self.sets) > 1 and not set(self.heads) <= set(candidates):
            raise InputError(
                "candidates in parallel cannot inherit weights from a supernet with separate "
                "projections."
            )

    def mixer(self) -> Weights:
        """The weights of `GroupedHeads`."""
        projections = {name: self.projection(name) for name in self.sets[0]}
        mixer: Weights = {"projections": {0: projections}}
        by_group = {}
        for number, (attention, heads) in enumerate(self.genotype.groups(self.layer)):
            params = self.params(attention)
            if params:
                index = np.array(heads)
                # Parameters lead with all heads of the layer; the group keeps those of its heads.
                by_group[number] = jax.tree.map(lambda p, index=index: p[index], params)
        if by_group:
            mixer["own"] = by_group
        return mixer

    def projection(self, name: str) -> Array:
        """One array of the projections, each head's part from the set of its attention."""
        if len(self.sets) == 1:
            return jnp.asarray(self.sets[0][name])
        # How many heads share one row of this array.
        sharing = len(self.heads) // self.sets[0]["k"].shape[1]
        if name not in OF_KEYS:
            sharing = 1
        if self.sets[0][name].ndim == 1:  # a gain that all heads share
            return self.shared_gain(name)
        axis, parts = HEAD_AXES[name], []
        for row, first in enumerate(range(0, len(self.heads), sharing)):
            attentions = set(self.heads[first : first + sharing])
            if len(attentions) > 1:
                raise InputError(
                    f"each {sharing} heads that share keys and values must have one attention to "
                    f"inherit from separate projections; layer {self.layer} has "
                    f"{self.genotype.describe_layer(self.layer)}."
                )
            owner = self.sets[self.candidates.index(self.heads[first])]
            parts.append(jnp.take(owner[name], jnp.array([row]), axis))
        return jnp.concatenate(parts, axis)

    def shared_gain(self, name: str) -> Array:
        """The gain of q/k norm that all heads share, of the one attention of the layer."""
        attentions = set(self.heads)
        if len(attentions) > 1:
            raise InputError(
                f"heads that share the gain of their q/k norm must have one attention to inherit "
                f"from separate projections; layer {self.layer} has "
                f"{self.genotype.describe_layer(self.layer)}."
            )
        owner = self.sets[self.candidates.index(self.heads[0])]
        return jnp.asarray(owner[name])

    def params(self, attention: Attention) -> Params:
        """An attention's own parameters, of all heads; a parallel one's are those of its members."""
        if attention in self.candidates:
            number = self.candidates.index(attention)
            params: Params = self.weights.get("own", {}).get(number, {})
            return params
        assert isinstance(attention, Parallel)
        members = {}
        for m, member in enumerate(attention.members):
            params = self.params(member)
            if params:
                members[str(m)] = params
        return members
