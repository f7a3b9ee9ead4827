"""Top k: the k largest weights of each row are kept, and their candidates run in parallel in the
derived model."""

from dataclasses import dataclass

import numpy as np

from dartformer.attention.parallel import Parallel
from dartformer.derivations.base import Derived, Rule, Trained, at_least, names
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

DIGITS = 4
"""Decimals kept of a weight, so that a genotype can be read; the model is what is written, to the
last digit."""


@dataclass(frozen=True)
class TopK(Rule):
    """The truncated mixture, scaled to sum to one, as `parallel(...)` attentions with fixed shares.

    Attributes:
      k: how many of each row; 2 or more (1 is `argmax`).
    """

    k: int = 2

    def __post_init__(self) -> None:
        at_least("top_k", 2, k=self.k)

    def check(self, space: SearchSpace) -> None:
        """See `Rule`."""
        if self.k > len(space.candidates):
            raise InputError(
                f"top_k: k={self.k}, but the space has {len(space.candidates)} candidates."
            )

    def __call__(self, trained: Trained) -> Derived:
        """A tie is a weight left out that is closer to the last one kept than the tie margin."""
        space = trained.space
        rows, columns, _ = space.alphas_shape
        ties, places = [], {}
        for place in np.ndindex(rows, columns):
            row = np.asarray(trained.mixture, np.float64)[place]
            order = np.argsort(-row, kind="stable")
            kept = sorted(order[: self.k])
            shares = np.round(row[kept] / row[kept].sum(), DIGITS)
            alive = [
                (space.candidates[k], float(share))
                for k, share in zip(kept, shares, strict=True)
                if share > 0
            ]
            places[place] = alive[0][0] if len(alive) == 1 else Parallel(*zip(*alive, strict=True))
            for last, left in zip(
                order[self.k - 1 : self.k], order[self.k : self.k + 1], strict=False
            ):
                if row[last] - row[left] < trained.tie_margin:
                    ties.append(
                        f"{space.place_name(place)}: {names(space, [last])}, kept, and {names(space, [left])}, "
                        f"left out, are tied ({row[last]:.2f}, {row[left]:.2f})"
                    )
        grid = tuple(
            tuple(places[l % rows, h % columns] for h in range(space.heads))
            for l in range(space.layers)
        )
        return Derived(Genotype(grid), ties, {})
