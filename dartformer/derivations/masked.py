"""The rules of the DARTFormer paper: mask a candidate everywhere, and see what is lost.

    s_j = A - A(-j)      the validation accuracy lost when candidate j is masked out of the uniform
                         mixture

`Masked` keeps the best candidate for every place. `BestFour` ("one-shot") keeps the best four.
`Prune` removes the worst one by one and fine-tunes in between. The derived models of the last two
have the same set in every layer, spread over heads.

Brown et al. 2022, arXiv 2210.00641, section 3.1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dartformer.derivations.base import (
    Derived,
    Rule,
    Trained,
    at_least,
    check_metric,
    difference,
    largest,
    listed_means,
    mean_by_name,
    merit,
    names,
    ranked,
    texts,
    tied_with,
    without,
)
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.strategies.base import Weights

EVERYWHERE = slice(None), slice(None)


def drops(
    trained: Trained, weights: Weights, mixture: np.ndarray, metric: str, renormalise: bool
) -> dict[int, np.ndarray]:
    """s_j `[S]` of every candidate j that is still in the mixture."""
    present = merit(trained.evaluate(weights, mixture, None), metric)
    lost = {}
    # Candidates without weight anywhere (dropped in the search) cannot be masked.
    for k in np.flatnonzero(mixture.any((0, 1))).tolist():
        absent = trained.evaluate(weights, without(mixture, EVERYWHERE, k, renormalise), None)
        lost[k] = present - merit(absent, metric)
    return lost


def spread_over_heads(space: SearchSpace, kept: list[int]) -> Genotype:
    """Head h of every layer gets the kept candidate number h modulo their number, best first."""
    heads = [kept[h % len(kept)] for h in range(space.heads)]
    return space.genotype(np.array([heads]))


def require_room(rule: str, keep: int, space: SearchSpace) -> None:
    """Raise `InputError` where `keep` exceeds the candidates, or the heads of a layer."""
    if keep > min(space.heads, len(space.candidates)):
        raise InputError(
            f"{rule}: keep={keep} attentions, but the space has {len(space.candidates)} candidates "
            f"and {space.heads} heads in a layer."
        )


@dataclass(frozen=True)
class Masked(Rule):
    """Keeps the candidate whose removal everywhere lowers the metric most, in all layers and heads.

    Attributes:
      metric: "accuracy", as published, or "loss".
      renormalise: scale the other weights up when one is masked (the paper does not say; plain
        masking is the default).
    """

    metric: str = "accuracy"
    renormalise: bool = False

    def __post_init__(self) -> None:
        check_metric("masked", self.metric)

    def __call__(self, trained: Trained) -> Derived:
        """A choice whose own drop is within noise of zero is reported as well: the scores of a
        candidate that the supernet does not need say nothing."""
        space = trained.space
        lost = drops(trained, trained.weights, trained.mixture, self.metric, self.renormalise)
        best = largest(lost)
        tied = tied_with(best, lost)
        ties = []
        if tied:
            candidates = best, *tied
            costs = listed_means(lost, candidates)
            ties.append(
                f"everywhere: {names(space, candidates)} are tied "
                f"(masking them costs {costs} of {self.metric})"
            )
        # Against zero: even the candidate that matters most may not matter.
        size, noise = difference(lost[best], np.zeros_like(lost[best]))
        if size <= noise:
            ties.append(
                f"masking {names(space, [best])} costs no more {self.metric} than noise: "
                f"no candidate is missed"
            )
        details = {"metric": self.metric, "drops": mean_by_name(space, lost)}
        return Derived(space.genotype(np.array([[best]])), ties, details)


@dataclass(frozen=True)
class BestFour(Rule):
    """Keeps the `keep` candidates with the largest drops, in one pass (heterogeneous one-shot).

    Attributes:
      keep: how many.
      metric, renormalise: as in `Masked`.
    """

    keep: int = 4
    metric: str = "accuracy"
    renormalise: bool = False

    def __post_init__(self) -> None:
        check_metric("best_four", self.metric)
        at_least("best_four", 1, keep=self.keep)

    def check(self, space: SearchSpace) -> None:
        """See `Rule`."""
        require_room("best_four", self.keep, space)

    def __call__(self, trained: Trained) -> Derived:
        """A tie is a candidate left out whose drop is within noise of the last one kept."""
        space = trained.space
        lost = drops(trained, trained.weights, trained.mixture, self.metric, self.renormalise)
        order = ranked(lost)
        kept = order[: self.keep]
        # Only the last one kept could change places with one left out.
        contenders = {k: lost[k] for k in order[self.keep - 1 :]}
        ties = []
        if tied := tied_with(kept[-1], contenders):
            ties.append(_tie(space, kept[-1], "kept", tied, "left out"))
        details = {
            "metric": self.metric,
            "drops": mean_by_name(space, lost),
            "kept": texts(space, kept),
        }
        return Derived(spread_over_heads(space, kept), ties, details)


@dataclass(frozen=True)
class Prune(Rule):
    """Removes the candidate with the smallest drop and fine-tunes, until `keep` are left.

    Attributes:
      keep: how many to end with.
      fine_tune: steps of the weights after each removal (the paper does not say how many).
      metric, renormalise: as in `Masked`. After a removal the remaining candidates always share the
        mixture evenly again.
    """

    keep: int = 4
    fine_tune: int = 50
    metric: str = "accuracy"
    renormalise: bool = False

    def __post_init__(self) -> None:
        check_metric("prune", self.metric)
        at_least("prune", 1, keep=self.keep)
        at_least("prune", 0, fine_tune=self.fine_tune)

    def check(self, space: SearchSpace) -> None:
        """See `Rule`."""
        require_room("prune", self.keep, space)

    def __call__(self, trained: Trained) -> Derived:
        """A tie is a removal whose drop is within noise of that of a candidate that stayed."""
        space = trained.space
        mixture, weights = np.asarray(trained.mixture, np.float32), trained.weights
        ties: list[str] = []
        removed: list[dict[str, Any]] = []
        lost = drops(trained, weights, mixture, self.metric, self.renormalise)
        while len(lost) > self.keep:
            worst = min(lost, key=lambda k: lost[k].mean())
            if tied := tied_with(worst, lost):
                ties.append(_tie(space, worst, "removed", tied, "kept"))
            removed.append({"removed": names(space, [worst]), "drops": mean_by_name(space, lost)})
            # What remains shares the mixture evenly, as the supernet was trained.
            mixture = without(mixture, EVERYWHERE, worst, renormalise=True)
            if self.fine_tune:
                # A seed of its own, or each round would train on the same batches.
                seed = int(trained.rng.integers(2**31))
                weights = trained.fine_tune(weights, mixture, self.fine_tune, seed)
            lost = drops(trained, weights, mixture, self.metric, self.renormalise)
        kept = ranked(lost)
        details = {
            "metric": self.metric,
            "drops": mean_by_name(space, lost),
            "removed": removed,
            "kept": texts(space, kept),
        }
        return Derived(spread_over_heads(space, kept), ties, details)


def _tie(space: SearchSpace, k: int, verb: str, tied: list[int], tied_verb: str) -> str:
    """The line that says that the candidates `tied` were as good as k."""
    return f"{names(space, [k])}, {verb}, and {names(space, tied)}, {tied_verb}, are tied"
