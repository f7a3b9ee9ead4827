"""The DARTFormer paper's search (Brown et al. 2022, arXiv 2210.00641): no alphas, but an average.

    o = (1/K) sum_k o_k          trained to convergence on the training loss

Each candidate is a block with its own projections. `dartformer.derivations.masked` then chooses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jax import Array

from dartformer.strategies.base import Traits
from dartformer.strategies.one_level import WeightsOnly
from dartformer.strategies.relax import softmax


@dataclass(frozen=True)
class Masked(WeightsOnly):
    """Keeps the candidate whose removal lowers validation accuracy most (the DARTFormer paper's)."""

    traits: ClassVar[Traits] = Traits(
        "arXiv 2210.00641",
        ("masked", "best_four", "prune", "masked_drop", "evolution", "random_search"),
        alphas=False,
        halves=False,
        projections="separate",
    )
    draws: ClassVar[bool] = False

    def rows(self) -> Callable[[Array, Array], Array]:
        """The uniform mixture."""
        return lambda alphas, key: softmax(alphas)
