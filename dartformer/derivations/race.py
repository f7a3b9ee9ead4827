"""Race: the rule of a strategy that trains no supernet, where the race decides."""

from dataclasses import dataclass

from dartformer.derivations.base import Derived, Rule, Trained
from dartformer.errors import InputError


@dataclass(frozen=True)
class Race(Rule):
    """Derives nothing: the race decides among models that are trained alone."""

    def __call__(self, trained: Trained) -> Derived:
        """Raises `InputError`, always."""
        raise InputError(
            "the strategy race derives no genotype. Run `dartformer race`, which decides."
        )
