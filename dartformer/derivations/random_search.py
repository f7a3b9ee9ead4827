"""Random search with shared weights (Li and Talwalkar 2019, arXiv 1902.07638): a baseline to
beat."""

from dataclasses import dataclass

import numpy as np

from dartformer.derivations.base import (
    Derived,
    Rule,
    Trained,
    at_least,
    check_metric,
    draw,
    merit,
    one_hot,
    pick,
)


@dataclass(frozen=True)
class RandomSearch(Rule):
    """Many random genotypes on one batch of valid, the best few of them on all of it.

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
        space = trained.space
        drawn = dict.fromkeys(draw(space, trained.rng) for _ in range(self.count))
        first = {
            c: merit(
                trained.evaluate(trained.weights, one_hot(space, np.array(c)), self.batch),
                self.metric,
            ).mean()
            for c in drawn
        }
        found = pick(trained, sorted(first, key=lambda c: -first[c])[: self.top], self.metric)
        return found._replace(
            details={"drawn": self.count, "distinct": len(drawn), **found.details}
        )
