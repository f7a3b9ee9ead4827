"""Several attentions side by side in the same heads, their outputs added with fixed shares."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.attention.base import Attention, Cost, Inputs, Params, Shape, Spelled, Traits
from dartformer.attention.full import Full
from dartformer.attention.linear import Linear
from dartformer.errors import InputError


@dataclass(frozen=True, repr=False)
class Parallel(Spelled):
    """A hybrid: y_i = sum_m s_m member_m(q, k, v)_i, with shares s that sum to one.

    Paper: the branches of a mixed operation that is kept instead of being cut to one, DARTS (Liu et
    al. 2019, arXiv:1806.09055, equation 2); attention beside a recurrence in one layer as in Hymba
    (Dong et al. 2024, arXiv:2411.13676). Own parameters: those of each member, under its number.
    Cost: the sum of the members'. Masks: as the members. Where the model normalises branches, each
    member is normalised before it is weighted, so that a hybrid is the supernet's layer with all
    but its members left out.

    Attributes:
      members: at least two different attentions, none of them parallel itself.
      shares: relative, divided by their sum; empty for equal ones.
    """

    members: tuple[Attention, ...] = (Full(), Linear())
    shares: tuple[float, ...] = ()

    traits: ClassVar[Traits] = Traits(
        summary="several attentions side by side, weighted",
        paper="Liu et al. 2019, arXiv:1806.09055",
        causal=True,
    )

    def __post_init__(self) -> None:
        if (
            len(self.members) < 2
            or len(set(self.members)) < len(self.members)
            or not all(isinstance(m, Attention) for m in self.members)
            or any(isinstance(m, Parallel) for m in self.members)
        ):
            raise InputError(
                f"parallel: members must be at least two different attentions, none of them parallel; "
                f"got {self.members!r}."
            )
        if self.shares and (
            len(self.shares) != len(self.members)
            or not all(type(s) in (int, float) and 0 < s < float("inf") for s in self.shares)
        ):
            raise InputError(
                f"parallel: shares must be a positive number for each of the {len(self.members)} members, "
                f"or none at all; got {self.shares!r}."
            )
        object.__setattr__(self, "traits", self._traits())

    def _traits(self) -> Traits:
        """What all members can honour together; where they drop different things, the first one's
        is named."""
        each = [m.traits for m in self.members]
        rotary = all("rotary" in t.positions or not t.reads & {"q", "k"} for t in each)
        alibi = all("alibi" in t.positions for t in each)
        return dataclasses.replace(
            type(self).traits,
            causal=all(t.causal for t in each),
            bidirectional=all(t.bidirectional for t in each),
            reads=frozenset().union(*(t.reads for t in each)),
            fixed_length=any(t.fixed_length for t in each),
            stochastic=any(t.stochastic for t in each),
            growth=max(t.growth for t in each),
            order=min(t.order for t in each),
            positions=frozenset(["rotary"] * rotary + ["alibi"] * alibi),
            dropout=each[0].dropout if all(t.dropout for t in each) else "",
        )

    @property
    def weighted(self) -> tuple[tuple[Attention, float], ...]:
        """Members with shares that sum to one."""
        shares = self.shares or (1.0,) * len(self.members)
        return tuple((m, s / sum(shares)) for m, s in zip(self.members, shares, strict=True))

    def member_key(self, key: Array | None, m: int) -> Array | None:
        """The key of member number m."""
        return None if key is None else jax.random.fold_in(key, m)

    def init(self, key: Array, shape: Shape) -> Params:
        """Parameters of the members, under their numbers; members without any are left out."""
        params = {
            str(m): one.init(jax.random.fold_in(key, m), shape)
            for m, one in enumerate(self.members)
        }
        return {m: own for m, own in params.items() if own}

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
        total: Any = 0
        for m, (one, share) in enumerate(self.weighted):
            y = one(
                params.get(str(m), {}),
                inputs,
                causal=causal,
                train=train,
                key=self.member_key(key, m),
            )
            total = total + share * y.astype(jnp.promote_types(y.dtype, jnp.float32))
        return total.astype(inputs.v.dtype)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array | None:
        """The members' weights, added with their shares; None if one has none."""
        total: Any = 0
        for m, (one, share) in enumerate(self.weighted):
            rows = one.weights(params.get(str(m), {}), inputs, causal=causal)
            if rows is None:
                return None
            total = total + share * rows
        return total

    def cost(self, shape: Shape) -> Cost:
        """The sum over the members."""
        total = Cost(0, 0, 0, 0)
        for one in self.members:
            total = total + one.cost(shape)
        return total
