"""Grid: no supernet at all. Every homogeneous model is trained alone, by the derivation of that
name."""

from dataclasses import dataclass
from typing import ClassVar

from dartformer.strategies.base import Options, Problem, Strategy, Traits


@dataclass(frozen=True)
class Grid(Options):
    """Trains every homogeneous model alone and takes the best on valid: dear, and the ground truth
    for the others."""

    traits: ClassVar[Traits] = Traits("", ("grid",), alphas=False, supernet=False)

    def __call__(self, problem: Problem) -> Strategy:
        """There is no such thing: raises ValueError. Stages ask `traits.supernet` first."""
        raise ValueError("grid trains no supernet.")
