"""Argmax: in every place, the candidate with the largest weight.

DARTS, Liu et al. 2019, arXiv 1806.09055.
"""

from dataclasses import dataclass

import numpy as np

from dartformer.attention import to_text
from dartformer.derivations.base import Derived, Rule, Trained


@dataclass(frozen=True)
class Argmax(Rule):
    """Keeps the candidate with the largest weight in each place; of equals, the first."""

    def __call__(self, trained: Trained) -> Derived:
        """Ties are rows whose first two weights are closer than the tie margin."""
        space = trained.space
        rows, columns, _ = space.alphas_shape
        # [R, C, K]: of places that share alphas, all rows of the mixture are equal.
        free = space.free(np.asarray(trained.mixture, np.float64))
        ties = []
        for place in np.ndindex(rows, columns):
            row = free[place]
            # Stable, so that equals stay in the order of the candidates.
            first, second = np.argsort(-row, kind="stable")[:2]
            if row[first] - row[second] < trained.tie_margin:
                ties.append(
                    f"{space.place_name(place)}: {to_text(space.candidates[first])} and "
                    f"{to_text(space.candidates[second])} are tied "
                    f"({row[first]:.2f}, {row[second]:.2f})"
                )
        return Derived(space.genotype(free.argmax(-1)), ties, {})
