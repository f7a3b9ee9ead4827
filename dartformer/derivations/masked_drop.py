"""Masked drop: in every place, the candidate whose removal hurts most (DARTS-PT, Wang et al. 2021,
arXiv 2108.04392).

The size of an alpha says how much a candidate is used, not what it is worth: candidates that can
stand in for one another share their weight. What the supernet loses without a candidate says that
directly."""

from dataclasses import dataclass

import numpy as np

from dartformer.derivations.base import (
    Derived,
    Rule,
    Trained,
    as_good,
    at_least,
    cells,
    check_metric,
    merit,
    names,
    without,
)
from dartformer.errors import unknown

ORDERS = ("random", "given")
EQUALS = ("loss", "weight")


@dataclass(frozen=True)
class MaskedDrop(Rule):
    """Place by place: mask each candidate there, keep the one that is missed most, fine-tune, go
    on.

    Attributes:
      metric: what is lost: "loss" (its rise) or "accuracy", which is coarser.
      order: of the places: "random" as published, or "given", from the first layer to the last.
      fine_tune: steps of the weights after each decision (the paper: 5 epochs).
      equals: which of the candidates that are missed as much, within the noise, is kept: the one
        with the largest "loss" (as published), or with the largest "weight" in the mixture, so that
        noise alone overrules no alphas.
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
        """Ties are places where another candidate is missed as much, within the noise of the
        examples of valid."""
        space, rng = trained.space, trained.rng
        rows, columns, _ = space.alphas_shape
        places = list(np.ndindex(rows, columns))
        if self.order == "random":
            places = [places[i] for i in rng.permutation(len(places))]
        mixture, weights = np.asarray(trained.mixture, np.float32).copy(), trained.weights
        choice = np.zeros((rows, columns), int)
        ties, drops = {}, {}
        for place in places:
            where, name = cells(space, place), space.place_name(place)
            present = merit(trained.evaluate(weights, mixture, None), self.metric)
            alive = np.flatnonzero(mixture[:rows, :columns][place]).tolist()
            lost = {
                k: present
                - merit(
                    trained.evaluate(weights, without(mixture, where, k, self.renormalise), None),
                    self.metric,
                )
                for k in alive
            }
            best = max(lost, key=lambda k: lost[k].mean())
            if equal := as_good(lost, best):
                shown = ", ".join(f"{lost[k].mean():.4f}" for k in (best, *equal))
                ties[place] = (
                    f"{name}: no significant preference"
                    if len(equal) + 1 == len(lost) > 2
                    else f"{name}: {names(space, (best, *equal))} are tied"
                ) + f" (removing them costs {shown} of {self.metric})"
                if self.equals == "weight":
                    row = mixture[:rows, :columns][place]
                    best = max((best, *equal), key=lambda k: row[k])
            drops[place] = {names(space, [k]): float(values.mean()) for k, values in lost.items()}
            choice[place] = best
            mixture[where] = np.eye(mixture.shape[-1], dtype=np.float32)[best]
            if self.fine_tune and place != places[-1]:
                weights = trained.fine_tune(
                    weights, mixture, self.fine_tune, int(rng.integers(2**31))
                )
        return Derived(
            space.genotype(choice),
            [ties[p] for p in sorted(ties)],
            {
                "metric": self.metric,
                "drops": {space.place_name(p): drops[p] for p in sorted(drops)},
            },
        )
