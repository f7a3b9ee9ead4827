"""DARTS (Liu et al. 2019, arXiv 1806.09055): alphas learn on their own half of the data."""

from dataclasses import dataclass
from typing import ClassVar

from dartformer.strategies.alternate import Bilevel
from dartformer.strategies.base import Traits
from dartformer.strategies.relax import SOFTMAX, Relaxation


@dataclass(frozen=True)
class Darts(Bilevel):
    """Alternates gradient steps of the alphas and of the weights, at a softmax of the alphas.

    Attributes:
      hypergradient: how the gradient of the alphas accounts for the weights' response, see
        `Bilevel`.
      warmup, spread, extras: see `Alternating`.
    """

    traits: ClassVar[Traits] = Traits(
        "arXiv 1806.09055", ("argmax", "masked_drop", "sample", "top_k")
    )

    def relaxation(self) -> Relaxation:
        """Softmax, without samples."""
        return SOFTMAX
