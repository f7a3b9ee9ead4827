"""Search strategies: how alphas and weights move.

To add one here, write a file and a line in `BUILT_IN`. To add one from outside, call
`dartformer.register("strategy", name, cls)` or offer an entry point of the group
`dartformer.strategy`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dartformer import spec
from dartformer.errors import InputError, unknown
from dartformer.registry import Registry, is_dataclass_type
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
from dartformer.strategies.extras import EXTRAS, Extra
from dartformer.strategies.gumbel import Gumbel
from dartformer.strategies.hypergradients import HYPERGRADIENTS
from dartformer.strategies.masked import Masked
from dartformer.strategies.proxyless import Proxyless
from dartformer.strategies.race import Race
from dartformer.strategies.random_sharing import RandomSharing
from dartformer.strategies.sigmoid import Sigmoid
from dartformer.strategies.single_level import SingleLevel
from dartformer.strategies.spos import Spos

__all__ = [
    "BUILT_IN",
    "EXTRAS",
    "HYPERGRADIENTS",
    "STRATEGIES",
    "Constraint",
    "Darts",
    "Extra",
    "Gumbel",
    "Loss",
    "Problem",
    "Race",
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

BUILT_IN: dict[str, type] = {
    "darts": Darts,
    "single_level": SingleLevel,
    "gumbel": Gumbel,
    "dirichlet": Dirichlet,
    "sigmoid": Sigmoid,
    "proxyless": Proxyless,
    "masked": Masked,
    "spos": Spos,
    "random_sharing": RandomSharing,
    "race": Race,
}


def _is_strategy(cls: type) -> bool:
    return is_dataclass_type(cls) and isinstance(getattr(cls, "traits", None), Traits)


STRATEGIES: Registry[type] = Registry(
    "strategy",
    BUILT_IN,
    group="dartformer.strategy",
    requirement="a dataclass with `traits`",
    fits=_is_strategy,
)
"""Every strategy by name: the built-in ones, and those of other packages."""


def names() -> list[str]:
    """Every known strategy: built in, registered, and offered by entry points."""
    return STRATEGIES.names()


def find(name: str, field: str = "search.strategy.name") -> type:
    """The strategy type of that name; `InputError` if it is unknown or does not load."""
    return STRATEGIES.find(name, field)


def make(name: str, options: Mapping[str, Any]) -> StrategyOptions:
    """The strategy `name` with `options`.

    Args:
      name: of a strategy.
      options: values of its fields; the rest have their defaults. Extras may be texts, such as
        "drop(keep=2)".

    Raises:
      InputError: for an unknown name or option, or a value that the strategy refuses.
    """
    cls: Any = find(name)
    fields = [field.name for field in dataclasses.fields(cls)]
    for option in options:
        if option not in fields:
            raise unknown(f"option of the strategy {name}", option, fields)
    values = dict(options)
    if "extras" in values:
        values["extras"] = tuple(map(_extra, values["extras"]))
    try:
        strategy: StrategyOptions = cls(**values)
    except TypeError as error:
        raise InputError(f"strategy {name}: {error}.") from None
    return strategy


def _extra(extra: str | Extra) -> Extra:
    """An extra, read from its text if it is one."""
    if isinstance(extra, Extra):
        return extra
    parsed: Extra = spec.parse(extra, EXTRAS, "extra")
    return parsed
