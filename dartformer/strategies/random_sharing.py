"""Random search with weight sharing (Li and Talwalkar 2019, arXiv 1902.07638), a baseline."""

from dataclasses import dataclass
from typing import ClassVar

from dartformer.strategies.base import Traits
from dartformer.strategies.spos import Spos


@dataclass(frozen=True)
class RandomSharing(Spos):
    """Trains one random path at each step, then keeps the best of a thousand random genotypes."""

    traits: ClassVar[Traits] = Traits(
        "arXiv 1902.07638", ("random_search", "evolution"), alphas=False, halves=False
    )
