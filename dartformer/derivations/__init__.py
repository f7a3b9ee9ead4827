"""Derivations: from a trained supernet to a genotype.

A derivation is written as an attention is, by its name with its options in brackets:
`evolution(generations=5)`. To add one here, write a file and a line in `BUILT_IN`. To add one from
outside, call `dartformer.register("derivation", name, cls)` or offer an entry point of the group
`dartformer.derivation`.
"""

from dartformer import spec
from dartformer.derivations.argmax import Argmax
from dartformer.derivations.base import Derived, Rule, Trained
from dartformer.derivations.evolution import Evolution
from dartformer.derivations.masked import BestFour, Masked, Prune
from dartformer.derivations.masked_drop import MaskedDrop
from dartformer.derivations.race import Race
from dartformer.derivations.random_search import RandomSearch
from dartformer.derivations.sample import Sample
from dartformer.derivations.top_k import TopK
from dartformer.registry import Registry, is_dataclass_type
from dartformer.strategies import base as strategies
from dartformer.strategies.base import Traits

__all__ = [
    "DERIVATIONS",
    "Argmax",
    "Derived",
    "Rule",
    "Trained",
    "name_of",
    "parse",
    "refusal",
]

BUILT_IN: dict[str, type[Rule]] = {
    "argmax": Argmax,
    "masked_drop": MaskedDrop,
    "masked": Masked,
    "prune": Prune,
    "best_four": BestFour,
    "sample": Sample,
    "evolution": Evolution,
    "random_search": RandomSearch,
    "top_k": TopK,
    "race": Race,
}


def _is_rule(cls: type) -> bool:
    return is_dataclass_type(cls) and issubclass(cls, Rule)


DERIVATIONS: Registry[type[Rule]] = Registry(
    "derivation",
    BUILT_IN,
    group="dartformer.derivation",
    requirement="a dataclass derived from `Rule`",
    fits=_is_rule,
)
"""Every derivation by name: the built-in ones, and those of other packages."""


def parse(text: str) -> Rule:
    """The derivation that `text` spells; `InputError` for an unknown name or option."""
    return spec.parse(text, DERIVATIONS, "derivation")


def refusal(derivation: Rule, traits: Traits) -> str | None:
    """Why a derivation does not work after a strategy with these traits; None if it does."""
    if derivation.follows(traits):
        return None
    return strategies.refusal(traits, name_of(derivation))


def name_of(derivation: Rule) -> str:
    """Its name in the table."""
    return next(name for name, cls in DERIVATIONS.items() if type(derivation) is cls)
