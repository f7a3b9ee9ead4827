"""Grid: trains every homogeneous model alone; expensive, and the ground truth for other rules."""

from dataclasses import dataclass

import numpy as np

from dartformer.derivations.base import (
    Derived,
    Rule,
    Trained,
    largest,
    merit,
    names,
    score,
    texts,
    tied_with,
)


@dataclass(frozen=True)
class Grid(Rule):
    """Trains every homogeneous model from scratch, as the baselines are; needs no supernet."""

    def __call__(self, trained: Trained) -> Derived:
        """Ties are models within the noise of the seeds they were trained with."""
        space = trained.space
        # Each is trained and scored here, one after the other.
        scores = list(map(trained.standalone, space.homogeneous()))
        metric = "accuracy"
        if metric not in scores[0]:
            metric = "loss"  # a task that predicts numbers has no accuracy
        merits = {}
        for k, values in enumerate(scores):
            merits[k] = merit(values, metric)
        best = largest(merits)
        tied = tied_with(best, merits)
        ties = []
        if tied:
            models = best, *tied
            listed = ", ".join(f"{score(merits[k], metric):.3f}" for k in models)
            ties.append(f"everywhere: {names(space, models)} are tied (valid {metric} {listed})")
        by_name = {}
        for name, seeds in zip(texts(space, merits), merits.values(), strict=True):
            by_name[name] = score(seeds, metric)
        return Derived(space.genotype(np.array([[best]])), ties, {f"valid_{metric}": by_name})
