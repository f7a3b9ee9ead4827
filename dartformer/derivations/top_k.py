"""Top k: the candidates with the k largest weights of each row run in parallel."""

from dataclasses import dataclass

import numpy as np

from dartformer.attention import Attention
from dartformer.attention.parallel import Parallel
from dartformer.derivations.base import Derived, Rule, Trained, at_least, names
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace, everywhere

DIGITS = 4
"""Decimals of a weight, to keep genotypes readable; the model has exactly the weights written."""


@dataclass(frozen=True)
class TopK(Rule):
    """Keeps the k largest weights of each row, as `parallel(...)` attentions with fixed shares.

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
        mixture = space.free(np.asarray(trained.mixture, np.float64))  # [R, C, K]
        ties: list[str] = []
        attentions: dict[tuple[int, ...], Attention] = {}
        for place in np.ndindex(rows, columns):
            row = mixture[place]
            order = np.argsort(-row, kind="stable")
            # In the order of the candidates, so that equal sets give equal attentions.
            attentions[place] = truncated(space, row, sorted(order[: self.k]))
            if self.k == len(order):
                continue  # nothing is left out
            last, following = order[self.k - 1], order[self.k]
            if row[last] - row[following] < trained.tie_margin:
                ties.append(
                    f"{space.place_name(place)}: {names(space, [last])}, kept, and "
                    f"{names(space, [following])}, left out, are tied "
                    f"({row[last]:.2f}, {row[following]:.2f})"
                )
        # The number of the place of each layer and head.
        numbers = np.arange(rows * columns).reshape(rows, columns)
        places = list(attentions)
        layers = []
        for row in everywhere(numbers, (space.layers, space.heads)):
            layers.append(tuple(attentions[places[number]] for number in row))
        return Derived(Genotype(tuple(layers)), ties, {})


def truncated(space: SearchSpace, row: np.ndarray, kept: list[int]) -> Attention:
    """The attention of a row `[K]` cut to the candidates `kept`, scaled to sum to one."""
    shares = np.round(row[kept] / row[kept].sum(), DIGITS).tolist()
    members, positive = [], []
    for k, share in zip(kept, shares, strict=True):
        # Dropped candidates, and shares that round to zero, which would be computed for nothing.
        if share > 0:
            members.append(space.candidates[k])
            positive.append(share)
    if len(members) == 1:
        return members[0]
    return Parallel(tuple(members), tuple(positive))
