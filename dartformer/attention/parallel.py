"""Several attentions side by side in the same heads, their outputs added with fixed shares."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    Attention,
    Cache,
    Cost,
    Decoder,
    FieldTraits,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    require_decoding,
)
from dartformer.attention.full import Full
from dartformer.attention.linear import Linear
from dartformer.errors import InputError
from dartformer.kernels.softmax import dropout_key, wide


def _joined(first: Traits, second: Traits) -> Traits:
    """What two attentions can do side by side."""
    positions = first.positions & second.positions
    if _takes_rotary(first) and _takes_rotary(second):
        positions |= {"rotary"}
    dropout = ""
    if second.dropout:
        dropout = first.dropout
    return dataclasses.replace(
        first,
        causal=first.causal and second.causal,
        bidirectional=first.bidirectional and second.bidirectional,
        reads=first.reads | second.reads,
        fixed_length=first.fixed_length or second.fixed_length,
        stochastic=first.stochastic or second.stochastic,
        growth=max(first.growth, second.growth),
        order=min(first.order, second.order),
        positions=positions,
        dropout=dropout,
        head_dim_multiple=math.lcm(first.head_dim_multiple, second.head_dim_multiple),
        decodes=first.decodes and second.decodes,
        cross=first.cross and second.cross,
    )


def _takes_rotary(traits: Traits) -> bool:
    # An attention that reads neither q nor k takes rotary positions as they are.
    return "rotary" in traits.positions or not traits.reads & {"q", "k"}


def _decoder(member: Attention) -> Decoder:
    """The member; raises `InputError` if it cannot be run token by token."""
    require_decoding([member])
    assert isinstance(member, Decoder)
    return member


def _is_single(member: object) -> bool:
    """Whether it is an attention, and not parallel itself."""
    return isinstance(member, Attention) and not isinstance(member, Parallel)


def _is_share(value: float) -> bool:
    """Whether it is a finite number above 0, and no bool."""
    return type(value) in (int, float) and 0 < value < float("inf")


@dataclass(frozen=True, repr=False)
class Parallel(Spelled):
    """A hybrid: y_i = sum_m s_m member_m(q, k, v)_i, with shares s that sum to one.

    Paper: the branches of a mixed operation that is kept instead of being cut to one, DARTS (Liu et
      al. 2019, arXiv:1806.09055, equation 2); attention beside a recurrence in one layer as in
      Hymba (Dong et al. 2024, arXiv:2411.13676).
    Own parameters: those of each member, under its number.
    Cost: the sum of the members'.
    Masks: as the members. Where the model normalises branches, each member is normalised before it
      is weighted: a hybrid is the supernet's layer with all but its members left out.

    Attributes:
      members: at least two different attentions, none of them parallel itself.
      shares: relative, divided by their sum; empty for equal ones.
    """

    members: tuple[Attention, ...] = (Full(), Linear())
    shares: tuple[float, ...] = ()

    traits: ClassVar[FieldTraits] = FieldTraits(
        Traits(
            summary="several attentions side by side, weighted",
            paper="Liu et al. 2019, arXiv:1806.09055",
            causal=True,
            decodes=True,
            cross=True,
        ),
        lambda parallel: parallel.joint_traits(),
    )

    def __post_init__(self) -> None:
        different = len(set(self.members)) == len(self.members)
        if len(self.members) < 2 or not different or not all(map(_is_single, self.members)):
            raise InputError(
                f"parallel: members must be at least two different attentions, none of them "
                f"parallel; got {self.members!r}."
            )
        if not self.shares:
            return
        if len(self.shares) != len(self.members) or not all(map(_is_share, self.shares)):
            raise InputError(
                f"parallel: shares must be a positive number for each of the {len(self.members)} "
                f"members, or empty; got {self.shares!r}."
            )

    def joint_traits(self) -> Traits:
        """What all members can do together.

        Where they drop different things in attention dropout, the first member's is named.
        """
        traits = [member.traits for member in self.members]
        joint = functools.reduce(_joined, traits)
        general = type(self).traits
        # The definition is given here, for all members: `weights` adds theirs.
        return dataclasses.replace(
            joint, summary=general.summary, paper=general.paper, matrix=general.matrix
        )

    @property
    def weighted(self) -> tuple[tuple[Attention, float], ...]:
        """Members with shares that sum to one."""
        shares = self.shares or (1.0,) * len(self.members)
        total = sum(shares)
        weighted = []
        for member, share in zip(self.members, shares, strict=True):
            weighted.append((member, share / total))
        return tuple(weighted)

    def member_key(self, key: Array | None, m: int) -> Array | None:
        """The key of member number m."""
        return dropout_key(key, m)

    def init(self, key: Array, shape: Shape) -> Params:
        """Parameters of the members, under their numbers; members without any are left out."""
        params = {}
        for m, member in enumerate(self.members):
            # Every member has a key of its own, with parameters or without.
            parameters = member.init(jax.random.fold_in(key, m), shape)
            if parameters:
                params[str(m)] = parameters
        return params

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        *,
        causal: bool = False,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """See `Attention`."""
        total: Any = 0  # summed in float32 or wider
        for m, (member, share) in enumerate(self.weighted):
            y = member(
                params.get(str(m), {}),
                inputs,
                causal=causal,
                train=train,
                key=self.member_key(key, m),
            )
            total = total + share * y.astype(wide(y))
        return total.astype(inputs.v.dtype)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array | None:
        """The members' weights, added with their shares; None if one has none."""
        total: Any = 0
        for m, (member, share) in enumerate(self.weighted):
            rows = member.weights(params.get(str(m), {}), inputs, causal=causal)
            if rows is None:
                return None
            total = total + share * rows
        return total

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """The caches of the members, under their numbers."""
        caches = {}
        for m, member in enumerate(self.members):
            caches[str(m)] = _decoder(member).init_cache(shape, dtype, head_keys)
        return caches

    def prefill(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        return self._continued(params, inputs, cache, "prefill")

    def step(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        return self._continued(params, inputs, cache, "step")

    def _continued(
        self, params: Params, inputs: Inputs, cache: Cache, method: str
    ) -> tuple[Array, Cache]:
        """The members' outputs, added with their shares, and their caches."""
        total: Any = 0
        caches = {}
        for m, (member, share) in enumerate(self.weighted):
            name = str(m)
            if name not in cache:
                raise InputError(f"{self!r}: the cache has nothing for member {name}.")
            proceed = getattr(_decoder(member), method)
            y, caches[name] = proceed(params.get(name, {}), inputs, cache[name])
            total = total + share * y.astype(wide(y))
        return total.astype(inputs.v.dtype), caches

    def cost(self, shape: Shape) -> Cost:
        """The sum over the members."""
        total = Cost(0, 0, 0, 0)
        for member in self.members:
            total = total + member.cost(shape)
        return total
