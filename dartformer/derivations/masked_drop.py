"""Masked drop: in every place, the candidate whose removal hurts most.

The size of an alpha says how much a candidate is used, not what it is worth: candidates that can
replace each other share their weight. What the supernet loses without a candidate measures its worth
directly.

DARTS-PT, Wang et al. 2021, arXiv 2108.04392.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dartformer.derivations.base import (
    Derived,
    Rule,
    Trained,
    at_least,
    check_metric,
    largest,
    listed_means,
    mean_by_name,
    merit,
    names,
    tied_with,
    without,
)
from dartformer.errors import unknown
from dartformer.strategies.base import Weights

ORDERS = ("random", "given")
EQUALS = ("loss", "weight")


@dataclass(frozen=True)
class MaskedDrop(Rule):
    """Keeps, place by place, the candidate whose removal costs most, and fine-tunes in between.

    Attributes:
      metric: what is lost: "loss" (its rise) or "accuracy", which is coarser.
      order: of the places: "random" as published, or "given", from the first layer to the last.
      fine_tune: steps of the weights after each decision (the paper: 5 epochs).
      equals: which of several candidates is kept when their drops are equal within the noise: the
        one with the largest "loss" (as published), or with the largest "weight" in the mixture, so
        that noise alone does not overrule the alphas.
      renormalise: scale the other weights up to fill the gap; the authors' code leaves them as they
        are.
    """

    metric: str = "loss"
    order: str = "random"
    fine_tune: int = 20
    equals: str = "loss"
    renormalise: bool = False

    def __post_init__(self) -> None:
        check_metric("masked_drop", self.metric)
        at_least("masked_drop", 0, fine_tune=self.fine_tune)
        if self.order not in ORDERS:
            raise unknown("masked_drop: order", self.order, ORDERS)
        if self.equals not in EQUALS:
            raise unknown("masked_drop: equals", self.equals, EQUALS)

    def __call__(self, trained: Trained) -> Derived:
        """Ties are places where another candidate's drop is equal within the noise of valid."""
        space, rng = trained.space, trained.rng
        rows, columns, _ = space.alphas_shape
        places = list(np.ndindex(rows, columns))
        if self.order == "random":
            places = [places[i] for i in rng.permutation(len(places))]
        # A copy: decided places are written into it.
        mixture, weights = np.asarray(trained.mixture, np.float32).copy(), trained.weights
        choice = np.zeros((rows, columns), int)
        decisions: dict[tuple[int, int], Decision] = {}
        for place in places:
            decision = self.decide(trained, weights, mixture, place)
            decisions[place] = decision
            choice[place] = decision.best
            # The decided place is one-hot from now on, for all decisions that follow.
            mixture[space.cells(place)] = np.eye(mixture.shape[-1], dtype=np.float32)[decision.best]
            if self.fine_tune and place != places[-1]:
                seed = int(rng.integers(2**31))
                weights = trained.fine_tune(weights, mixture, self.fine_tune, seed)
        ties, drops = [], {}
        for place in sorted(decisions):
            decision = decisions[place]
            drops[space.place_name(place)] = mean_by_name(space, decision.drops)
            if decision.tie:
                ties.append(decision.tie)
        return Derived(space.genotype(choice), ties, {"metric": self.metric, "drops": drops})

    def decide(
        self, trained: Trained, weights: Weights, mixture: np.ndarray, place: tuple[int, int]
    ) -> "Decision":
        """The candidate to keep in a place of the alphas, at a mixture `[L, H, K]`."""
        where = trained.space.cells(place)
        row = mixture[place]
        present = merit(trained.evaluate(weights, mixture, None), self.metric)
        drops = {}
        # A candidate without weight (dropped in the search) cannot be missed.
        for k in np.flatnonzero(row).tolist():
            masked = without(mixture, where, k, self.renormalise)
            drops[k] = present - merit(trained.evaluate(weights, masked, None), self.metric)
        best = largest(drops)
        tied = tied_with(best, drops)
        if not tied:
            return Decision(best, drops, "")
        equals = best, *tied
        costs = listed_means(drops, equals)
        preference = f"{names(trained.space, equals)} are tied"
        if len(equals) == len(drops) > 2:
            preference = "no significant preference"
        tie = (
            f"{trained.space.place_name(place)}: {preference} "
            f"(removing them costs {costs} of {self.metric})"
        )
        if self.equals == "weight":
            # The metric does not tell them apart, so the alphas decide.
            best = max(equals, key=lambda k: row[k])
        return Decision(best, drops, tie)


class Decision(NamedTuple):
    """The choice for a place: the candidate, the drops `[S]` of all, and a line if it is a tie."""

    best: int
    drops: dict[int, np.ndarray]
    tie: str
