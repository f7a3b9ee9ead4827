"""Search strategies: how alphas and weights move. The table below, and the entry points of other
packages."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dartformer import registry as plugins
from dartformer.errors import InputError, unknown
from dartformer.strategies import relax
from dartformer.strategies.base import (
    Constraint,
    Loss,
    Problem,
    State,
    Strategy,
    StrategyOptions,
    Traits,
    budget_refusal,
    refusal,
    remat_refusal,
)
from dartformer.strategies.darts import Darts
from dartformer.strategies.dirichlet import Dirichlet
from dartformer.strategies.extras.base import Extra
from dartformer.strategies.extras.beta_decay import BetaDecay
from dartformer.strategies.extras.drop import Drop
from dartformer.strategies.extras.early_stop import EarlyStop
from dartformer.strategies.extras.entropy import Entropy
from dartformer.strategies.extras.perturb import Adversarial, Smoothing
from dartformer.strategies.grid import Grid
from dartformer.strategies.gumbel import Gumbel
from dartformer.strategies.hypergradients import HYPERGRADIENTS
from dartformer.strategies.masked import Masked
from dartformer.strategies.proxyless import Proxyless
from dartformer.strategies.random_sharing import RandomSharing
from dartformer.strategies.sigmoid import Sigmoid
from dartformer.strategies.single_level import SingleLevel
from dartformer.strategies.spos import Spos

STRATEGIES: dict[str, type] = {
    "darts": Darts,
    "single_level": SingleLevel,
    "gumbel": Gumbel,
    "dirichlet": Dirichlet,
    "sigmoid": Sigmoid,
    "proxyless": Proxyless,
    "masked": Masked,
    "spos": Spos,
    "random_sharing": RandomSharing,
    "grid": Grid,
}
"""The strategies of this package. Other packages add theirs as entry points of the group
`dartformer.strategy`."""

EXTRAS: dict[str, type[Extra]] = {
    one.name: one for one in (BetaDecay, Entropy, Smoothing, Adversarial, Drop, EarlyStop)
}
"""What can be put on top of the strategies that learn alphas."""

__all__ = [
    "EXTRAS",
    "HYPERGRADIENTS",
    "STRATEGIES",
    "Constraint",
    "Darts",
    "Extra",
    "Gumbel",
    "Loss",
    "Problem",
    "State",
    "Strategy",
    "StrategyOptions",
    "Traits",
    "budget_refusal",
    "find",
    "make",
    "names",
    "refusal",
    "relax",
    "remat_refusal",
]


GROUP = "dartformer.strategy"


def names() -> list[str]:
    """Every strategy that `find` knows, this package's first."""
    return plugins.names(STRATEGIES, GROUP)


def find(name: str, field: str = "search.strategy.name") -> type:
    """The strategy type of that name; `InputError` where there is none, or another package's does
    not load."""

    def refusal(found: object) -> str:
        fits = isinstance(found, type) and dataclasses.is_dataclass(found)
        return (
            ""
            if fits and isinstance(getattr(found, "traits", None), Traits)
            else "is not a dataclass with `traits`"
        )

    return plugins.find(name, STRATEGIES, GROUP, "strategy", refusal, field)


def make(name: str, options: Mapping[str, Any]) -> StrategyOptions:
    """The strategy `name` with `options`; raises `InputError` for a name or an option that does not
    exist."""
    kind: Any = find(name)
    fields = [f.name for f in dataclasses.fields(kind)]
    for option in options:
        if option not in fields:
            raise unknown(f"option of the strategy {name}", option, fields)
    try:
        made: StrategyOptions = kind(**options)
        return made
    except TypeError as error:
        raise InputError(f"strategy {name}: {error}.") from None
