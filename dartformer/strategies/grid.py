"""Grid: no supernet. The derivation of that name trains every homogeneous model alone."""

from dataclasses import dataclass
from typing import ClassVar

from dartformer.strategies.base import Options, Problem, Strategy, Traits


@dataclass(frozen=True)
class Grid(Options):
    """Trains every homogeneous model from scratch: expensive, used as ground truth."""

    traits: ClassVar[Traits] = Traits("", ("grid",), alphas=False, supernet=False)

    def __call__(self, problem: Problem) -> Strategy:
        """Raises ValueError, always: stages check `traits.supernet` first."""
        raise ValueError("grid trains no supernet.")
