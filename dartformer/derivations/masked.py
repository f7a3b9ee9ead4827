"""The rules of the DARTFormer paper (Brown et al. 2022, arXiv 2210.00641, section 3.1): mask a
candidate everywhere.

    s_j = A - A(-j)      the validation accuracy lost when candidate j is masked out of the uniform
    mixture

`Masked` takes the best candidate for every place. `BestFour` ("one-shot") keeps the best four,
`Prune` removes the worst one by one and fine-tunes in between; their derived models have the same
set in every layer, spread over heads."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dartformer.derivations.base import (
    Derived,
    Rule,
    Trained,
    as_good,
    at_least,
    check_metric,
    difference,
    merit,
    names,
    without,
)
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

EVERYWHERE = slice(None), slice(None)


def drops(
    trained: Trained, weights: Any, mixture: np.ndarray, metric: str, renormalise: bool
) -> dict[int, np.ndarray]:
    """s_j `[S]` of every candidate j that is still in the mixture."""
    present = merit(trained.evaluate(weights, mixture, None), metric)
    lost = {}
    for k in np.flatnonzero(mixture.any((0, 1))).tolist():
        absent = trained.evaluate(weights, without(mixture, EVERYWHERE, k, renormalise), None)
        lost[k] = present - merit(absent, metric)
    return lost


def means(trained: Trained, lost: dict[int, np.ndarray]) -> dict[str, float]:
    """Mean drops by name."""
    return {names(trained.space, [k]): float(values.mean()) for k, values in lost.items()}


def spread_over_heads(space: SearchSpace, kept: list[int]) -> Genotype:
    """Head h of every layer gets the kept candidate number h modulo their number; the best come
    first."""
    return space.genotype(np.array([[kept[h % len(kept)] for h in range(space.heads)]]))


def require_room(rule: str, keep: int, space: SearchSpace) -> None:
    """Raise `InputError` where `keep` candidates cannot be chosen, or do not fit into a layer's
    heads."""
    if keep > min(space.heads, len(space.candidates)):
        raise InputError(
            f"{rule}: keep={keep} attentions, but the space has {len(space.candidates)} candidates and "
            f"{space.heads} heads in a layer."
        )


@dataclass(frozen=True)
class Masked(Rule):
    """The homogeneous choice: the candidate whose masking costs most, in every layer and head.

    Attributes:
      metric: "accuracy", as published, or "loss".
      renormalise: scale the others up when one is masked (the paper does not say; plain masking is
        the default).
    """

    metric: str = "accuracy"
    renormalise: bool = False

    def __post_init__(self) -> None:
        check_metric("masked", self.metric)

    def __call__(self, trained: Trained) -> Derived:
        """A choice whose own drop is within noise of none is reported, too: low scores are
        unreliable."""
        space = trained.space
        lost = drops(trained, trained.weights, trained.mixture, self.metric, self.renormalise)
        best = max(lost, key=lambda k: lost[k].mean())
        equal = as_good(lost, best)
        ties = (
            [
                f"everywhere: {names(space, (best, *equal))} are tied (masking them costs "
                f"{', '.join(f'{lost[k].mean():.4f}' for k in (best, *equal))} of {self.metric})"
            ]
            if equal
            else []
        )
        size, noise = difference(lost[best], np.zeros_like(lost[best]))
        if size <= noise:
            ties.append(
                f"masking {names(space, [best])} costs no more {self.metric} than noise: no candidate is "
                f"missed"
            )
        return Derived(
            space.genotype(np.array([[best]])),
            ties,
            {"metric": self.metric, "drops": means(trained, lost)},
        )


@dataclass(frozen=True)
class BestFour(Rule):
    """The heterogeneous one-shot way: the `keep` candidates with the largest drops, in one pass.

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
        """A tie is a candidate left out whose drop is within noise of the last one's that was
        kept."""
        space = trained.space
        lost = drops(trained, trained.weights, trained.mixture, self.metric, self.renormalise)
        order = sorted(lost, key=lambda k: -lost[k].mean())
        kept, rest = order[: self.keep], order[self.keep :]
        ties = _tie(space, lost, kept[-1], rest, "kept", "left out")
        return Derived(
            spread_over_heads(space, kept),
            ties,
            {
                "metric": self.metric,
                "drops": means(trained, lost),
                "kept": [names(space, [k]) for k in kept],
            },
        )


@dataclass(frozen=True)
class Prune(Rule):
    """The dearer heterogeneous way: remove the candidate with the smallest drop, fine-tune, until
    `keep` are left.

    Attributes:
      keep: how many to end with.
      fine_tune: steps of the weights after each removal (the paper does not say how many).
      metric, renormalise: as in `Masked`. After a removal those left share the mixture evenly again
        in any case.
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
        """A tie is a removal whose drop is within noise of that of one that stayed."""
        space = trained.space
        mixture, weights = np.asarray(trained.mixture, np.float32), trained.weights
        ties, removed = [], []
        lost = drops(trained, weights, mixture, self.metric, self.renormalise)
        while len(lost) > self.keep:
            worst = min(lost, key=lambda k: lost[k].mean())
            ties += _tie(space, lost, worst, [k for k in lost if k != worst], "removed", "kept")
            removed.append({"removed": names(space, [worst]), "drops": means(trained, lost)})
            mixture = without(mixture, EVERYWHERE, worst, renormalise=True)
            if self.fine_tune:
                weights = trained.fine_tune(
                    weights, mixture, self.fine_tune, int(trained.rng.integers(2**31))
                )
            lost = drops(trained, weights, mixture, self.metric, self.renormalise)
        kept = sorted(lost, key=lambda k: -lost[k].mean())
        return Derived(
            spread_over_heads(space, kept),
            ties,
            {
                "metric": self.metric,
                "drops": means(trained, lost),
                "removed": removed,
                "kept": [names(space, [k]) for k in kept],
            },
        )


def _tie(
    space: SearchSpace,
    lost: dict[int, np.ndarray],
    one: int,
    others: list[int],
    verb: str,
    other_verb: str,
) -> list[str]:
    """The line that says that `others` were as good as `one`; none if they were not."""
    equal = as_good({k: lost[k] for k in (one, *others)}, one)
    return (
        [f"{names(space, [one])}, {verb}, and {names(space, equal)}, {other_verb}, are tied"]
        if equal
        else []
    )
