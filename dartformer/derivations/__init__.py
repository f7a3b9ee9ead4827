"""Derivations: from a trained supernet to a genotype. The table below is the whole list.

A derivation is written as an attention is: its name, and its options in brackets:
`evolution(generations=5)`."""

from dartformer import spec
from dartformer.derivations.argmax import Argmax
from dartformer.derivations.base import Derived, Rule, Trained
from dartformer.derivations.evolution import Evolution
from dartformer.derivations.grid import Grid
from dartformer.derivations.masked import BestFour, Masked, Prune
from dartformer.derivations.masked_drop import MaskedDrop
from dartformer.derivations.random_search import RandomSearch
from dartformer.derivations.sample import Sample
from dartformer.derivations.top_k import TopK

DERIVATIONS: dict[str, type[Rule]] = {
    "argmax": Argmax,
    "masked_drop": MaskedDrop,
    "masked": Masked,
    "prune": Prune,
    "best_four": BestFour,
    "sample": Sample,
    "evolution": Evolution,
    "random_search": RandomSearch,
    "top_k": TopK,
    "grid": Grid,
}

__all__ = ["DERIVATIONS", "Argmax", "Derived", "Rule", "Trained", "name_of", "parse"]


def parse(text: str) -> Rule:
    """The derivation that `text` spells; raises `InputError` for a name or an option that does not
    exist."""
    return spec.parse(text, DERIVATIONS, "derivation")


def name_of(derivation: Rule) -> str:
    """Its name in the table."""
    return next(name for name, cls in DERIVATIONS.items() if type(derivation) is cls)
