"""Sample: genotypes drawn from the mixture, the best of them on valid with the weights they
inherit.

The supernet is trained at a mixture; the genotype that scores best in it need not have the largest
weight everywhere."""

from dataclasses import dataclass

import numpy as np

from dartformer.derivations.base import Derived, Rule, Trained, at_least, check_metric, frozen, pick


@dataclass(frozen=True)
class Sample(Rule):
    """Draws each place from its row of the mixture, `count` times, and scores the distinct
    genotypes.

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
        free = np.asarray(trained.mixture, np.float64)[:rows, :columns]
        edges = np.cumsum(free / free.sum(-1, keepdims=True), -1)[..., :-1]
        drawn = [frozen(free.argmax(-1))]
        for _ in range(self.count):
            drawn.append(frozen((trained.rng.random((rows, columns, 1)) >= edges).sum(-1)))
        found = pick(trained, dict.fromkeys(drawn), self.metric)
        return found._replace(details={"drawn": self.count, **found.details})
