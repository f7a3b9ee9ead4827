"""Sample: genotypes drawn from the mixture, the best of them with the weights they inherit.

The supernet is trained at a mixture. The genotype that scores best in it need not have the largest
weight everywhere.
"""

from dataclasses import dataclass

import numpy as np

from dartformer.derivations.base import (
    Derived,
    Rule,
    Trained,
    as_choice,
    at_least,
    best_of,
    check_metric,
    merit_of,
)


@dataclass(frozen=True)
class Sample(Rule):
    """Draws genotypes from the mixture and keeps the best on valid with inherited weights.

    Attributes:
      count: how many are drawn; the argmax is always among those scored.
      metric: what they are compared by, on all of valid: "accuracy" or "loss".
    """

    count: int = 16
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        check_metric("sample", self.metric)
        at_least("sample", 1, count=self.count)

    def __call__(self, trained: Trained) -> Derived:
        """See `Rule`."""
        rows, columns, _ = trained.space.alphas_shape
        free = trained.space.free(np.asarray(trained.mixture, np.float64))  # [R, C, K]
        # Inverse transform sampling: a choice is the number of edges at or below a uniform number.
        # Rounding may leave the sum of a row off one, so rows are scaled first.
        edges = np.cumsum(free / free.sum(-1, keepdims=True), -1)[..., :-1]
        # The argmax first: of equals the first is kept.
        drawn = [as_choice(free.argmax(-1))]
        for _ in range(self.count):
            uniform = trained.rng.random((rows, columns, 1))
            drawn.append(as_choice((uniform >= edges).sum(-1)))
        # In the order of the draws, each once: a peaked mixture repeats itself.
        merits = {}
        for choice in dict.fromkeys(drawn):
            merits[choice] = merit_of(trained, choice, self.metric)
        derived = best_of(trained, merits, self.metric)
        return derived._replace(details={"drawn": self.count} | derived.details)
