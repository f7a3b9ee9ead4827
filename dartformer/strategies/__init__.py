"""Search strategies: how alphas and weights move. The table below is the whole list."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dartformer.errors import InputError, unknown
from dartformer.strategies.base import Loss, Problem, State, Strategy, StrategyOptions, Traits, refusal
from dartformer.strategies.darts import Darts

STRATEGIES: dict[str, type] = {
    "darts": Darts,
}

__all__ = ["STRATEGIES", "Darts", "Loss", "Problem", "State", "Strategy", "StrategyOptions", "Traits", "make",
           "refusal"]


def make(name: str, options: Mapping[str, Any]) -> StrategyOptions:
    """The strategy `name` with `options`; raises `InputError` for a name or an option that does not exist."""
    if name not in STRATEGIES:
        raise unknown("search.strategy.name", name, STRATEGIES)
    fields = [f.name for f in dataclasses.fields(STRATEGIES[name])]
    for option in options:
        if option not in fields:
            raise unknown(f"option of the strategy {name}", option, fields)
    try:
        return STRATEGIES[name](**options)
    except TypeError as error:
        raise InputError(f"strategy {name}: {error}.") from None
