"""DARTFormer's own search (Brown et al. 2022, arXiv 2210.00641): no alphas; the candidates are
averaged.

    o = (1/K) sum_k o_k          trained to convergence on the training loss; then see
    `dartformer.derivations.masked`

Each candidate is a block with its own projections.
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
    """The DARTFormer paper's: weights at the uniform mixture; what is missed most when it is masked
    out is chosen."""

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
