"""What a derivation is: from a trained supernet to a genotype. It sees scores, never a network.

Weights go in and come out as an argument, so that a derivation is a pure function: the same
supernet and the same random numbers give the same genotype."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from dartformer.attention import to_text
from dartformer.errors import InputError, unknown
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

Scores = Mapping[str, Any]
"""`{"loss", "accuracy"}` of a supernet on valid: each `[S]`, one number for each example, or a
scalar."""

METRICS = ("loss", "accuracy")


@dataclass(frozen=True)
class Trained:
    """A trained supernet, as a derivation sees it.

    Attributes:
      space: what was searched over.
      mixture: `[L, H, K]`, where the search ended.
      weights: of the supernet; only handed on to the functions below.
      evaluate: (weights, mixture `[L, H, K]`, examples) -> `Scores` on the first `examples` of
        valid (None: on all).
      fine_tune: (weights, mixture, steps, seed) -> weights, trained for `steps` more at that
        mixture.
      standalone: genotype -> `Scores` on valid of the genotype trained alone, a number for each
        seed.
      rng: where random choices come from.
      tie_margin: weights of a mixture closer than this are called tied.
    """

    space: SearchSpace
    mixture: np.ndarray
    weights: Any
    evaluate: Callable[[Any, np.ndarray, int | None], Scores]
    fine_tune: Callable[[Any, np.ndarray, int, int], Any]
    standalone: Callable[[Genotype], Scores]
    rng: np.random.Generator
    tie_margin: float = 0.05


class Derived(NamedTuple):
    """What a derivation found.

    Attributes:
      genotype: the choice.
      ties: a line for each decision that is within its noise.
      details: the numbers behind it, plain data for `results.json`.
    """

    genotype: Genotype
    ties: list[str]
    details: dict[str, Any]


class Rule(ABC):
    """A derivation: a frozen dataclass of its options, written `masked_drop(fine_tune=20)` in
    configs."""

    def check(self, space: SearchSpace) -> None:  # noqa: B027 - most fit every space
        """Raise `InputError` where the options do not fit the space; called before anything is
        trained."""

    @abstractmethod
    def __call__(self, trained: Trained) -> Derived:
        """The genotype of a trained supernet."""


def merit(scores: Scores, metric: str) -> np.ndarray:
    """`[S]`, higher is better: accuracy, or minus the loss."""
    values = np.atleast_1d(np.asarray(scores[metric], np.float64))
    return -values if metric == "loss" else values


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Mean of `ours - theirs`, paired by example `[S]`, and the half-width of its 95% interval
    (Student's t).

    With one number there is nothing to tell noise from: the half-width is 0.
    """
    gaps = ours - theirs
    if len(gaps) < 2:
        return float(gaps.mean()), 0.0
    return float(gaps.mean()), float(
        stdtrit(len(gaps) - 1, 0.975) * gaps.std(ddof=1) / np.sqrt(len(gaps))
    )


def as_good(merits: Mapping[Any, np.ndarray], best: Any) -> list[Any]:
    """Which others than `best` are within the noise of their difference to it."""
    found = {
        name: difference(merits[best], values) for name, values in merits.items() if name != best
    }
    return [name for name, (gap, noise) in found.items() if abs(gap) <= noise]


def cells(space: SearchSpace, place: tuple[int, int]) -> tuple[slice, slice]:
    """The part of a mixture `[L, H, K]` that one place `[1 or L, 1 or H]` of the alphas stands
    for."""
    rows, columns, _ = space.alphas_shape
    return (
        slice(None) if rows == 1 else slice(place[0], place[0] + 1),
        slice(None) if columns == 1 else slice(place[1], place[1] + 1),
    )


def without(
    mixture: np.ndarray, where: tuple[slice, slice], k: int, renormalise: bool
) -> np.ndarray:
    """`mixture` without candidate k in the cells `where`; the others as they are, or scaled to the
    same sum."""
    new = mixture.copy()
    new[(*where, k)] = 0
    if renormalise:
        total = new[where].sum(-1, keepdims=True)
        new[where] *= np.divide(
            mixture[where].sum(-1, keepdims=True), total, out=np.ones_like(total), where=total > 0
        )
    return new


def names(space: SearchSpace, candidates: Iterable[int]) -> str:
    """Candidates as a phrase: "full, linear and uniform"."""
    texts = [to_text(space.candidates[k]) for k in candidates]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def one_hot(space: SearchSpace, choice: np.ndarray) -> np.ndarray:
    """The mixture `[L, H, K]` of integer choices `[1 or L, 1 or H]`, float32."""
    grid = np.broadcast_to(choice, space.mixture_shape[:2])
    return np.eye(len(space.candidates), dtype=np.float32)[grid]


def pick(
    trained: Trained,
    choices: Iterable[tuple[tuple[int, ...], ...]],
    metric: str,
    known: Mapping[Any, np.ndarray] | None = None,
) -> Derived:
    """The best of some genotypes on all of valid, each with the weights it inherits from the
    supernet.

    Args:
      trained: the supernet.
      choices: integer choices `[1 or L, 1 or H]` as nested tuples; of equals the first wins.
      metric: "loss" or "accuracy".
      known: merits `[S]` of choices that are already scored on all of valid.
    """
    space, known = trained.space, known or {}
    merits = {
        c: known[c]
        if c in known
        else merit(trained.evaluate(trained.weights, one_hot(space, np.array(c)), None), metric)
        for c in choices
    }
    best = max(merits, key=lambda c: merits[c].mean())
    equal = as_good(merits, best)
    sign = -1 if metric == "loss" else 1
    ties = (
        []
        if not equal
        else [
            f"{len(equal)} of the other {len(merits) - 1} genotypes are within noise of the best on valid, the next: "
            f"{space.genotype(np.array(max(equal, key=lambda c: merits[c].mean())))}"
        ]
    )
    return Derived(
        space.genotype(np.array(best)),
        ties,
        {
            "metric": metric,
            "scored": len(merits),
            "within_noise": len(equal),
            f"valid_{metric}": float(sign * merits[best].mean()),
        },
    )


def frozen(choice: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Choices `[1 or L, 1 or H]` as something that can be counted and compared."""
    return tuple(tuple(int(k) for k in row) for row in choice)


def draw(space: SearchSpace, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    """Choices drawn uniformly."""
    rows, columns, candidates = space.alphas_shape
    return frozen(rng.integers(candidates, size=(rows, columns)))


def check_metric(rule: str, metric: str) -> None:
    """Raise `InputError` for a metric that there is not."""
    if metric not in METRICS:
        raise unknown(f"{rule}: metric", metric, METRICS)


def at_least(rule: str, least: int, **fields: int) -> None:
    """Raise `InputError` for the first of `fields` below `least`."""
    for name, value in fields.items():
        if value < least:
            raise InputError(f"{rule}: {name} must be at least {least}, got {value}.")
