"""Random search with shared weights (Li and Talwalkar 2019, arXiv 1902.07638), a baseline."""

from dataclasses import dataclass

import numpy as np

from dartformer.derivations.base import (
    Choice,
    Derived,
    Rule,
    Trained,
    at_least,
    best_of,
    check_metric,
    draw,
    merit_of,
    ranked,
)


@dataclass(frozen=True)
class RandomSearch(Rule):
    """Scores many random genotypes on one batch of valid, then the best few on all of it.

    Attributes:
      count: how many are drawn (the authors: 1000); those drawn twice are scored once.
      batch: examples of valid in the first round.
      top: how many reach the second round (the authors: 10).
      metric: "accuracy" or "loss", in both rounds.
    """

    count: int = 1000
    batch: int = 250
    top: int = 10
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        check_metric("random_search", self.metric)
        at_least("random_search", 1, count=self.count, batch=self.batch, top=self.top)

    def __call__(self, trained: Trained) -> Derived:
        """See `Rule`."""
        # Keys of a dict, not a set: in the order of the draws, so that ties fall the same way.
        drawn = dict.fromkeys(draw(trained.space, trained.rng) for _ in range(self.count))
        first: dict[Choice, np.ndarray] = {}
        for choice in drawn:
            first[choice] = merit_of(trained, choice, self.metric, self.batch)
        finalists = ranked(first)[: self.top]
        merits = {}
        for choice in finalists:
            merits[choice] = merit_of(trained, choice, self.metric)
        derived = best_of(trained, merits, self.metric)
        counts = {"drawn": self.count, "distinct": len(first)}
        return derived._replace(details=counts | derived.details)
