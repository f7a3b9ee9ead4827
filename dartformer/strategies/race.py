"""Race: no supernet and no search. Models are trained alone, and the weak ones stop early."""

from dataclasses import dataclass
from typing import ClassVar

from dartformer.errors import InputError
from dartformer.strategies.base import Options, Problem, Strategy, Traits


@dataclass(frozen=True)
class Race(Options):
    """Races models that are trained alone; the stage `race` does the work.

    For one attention everywhere this costs about a third of training all. For choices by layer or
    head it is the random search to beat.

    Attributes:
      random: random genotypes that enter beside the homogeneous models; the whole space where it
        has no more.
    """

    traits: ClassVar[Traits] = Traits("arXiv 1502.07943", ("race",), alphas=False, supernet=False)

    random: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.random <= MOST:
            raise InputError(f"random must be a number from 0 to {MOST}, got {self.random}.")

    def __call__(self, problem: Problem) -> Strategy:
        """Raises ValueError, always: stages check `traits.supernet` first."""
        raise ValueError("race trains no supernet.")


MOST = 10_000
"""Random genotypes; each is a training."""
