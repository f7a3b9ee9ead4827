"""What a derivation is: from a trained supernet to a genotype. It sees scores, never a network.

Weights go in and come out as an argument, so a derivation is a pure function: the same supernet and
the same random numbers give the same genotype.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from dartformer.attention import to_text
from dartformer.errors import InputError, unknown
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace, everywhere
from dartformer.strategies.base import Traits, Weights

Scores = Mapping[str, np.ndarray | float]
"""`{"loss", "accuracy"}` of a supernet on valid: each `[S]`, one number for each example, or a
scalar."""

Choice = tuple[tuple[int, ...], ...]
"""Candidates by number, `[1 or L, 1 or H]`, as nested tuples that can be keys."""

Key = TypeVar("Key", bound=Hashable)

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
      rng: where random choices come from.
      tie_margin: weights of a mixture closer than this are called tied.
    """

    space: SearchSpace
    mixture: np.ndarray
    weights: Weights
    evaluate: Callable[[Weights, np.ndarray, int | None], Scores]
    fine_tune: Callable[[Weights, np.ndarray, int, int], Weights]
    rng: np.random.Generator
    tie_margin: float = 0.05


class Derived(NamedTuple):
    """The result of a derivation.

    Attributes:
      genotype: the choice.
      ties: a line for each decision that is within its noise.
      details: the numbers behind it, plain data for `results.json`.
    """

    genotype: Genotype
    ties: list[str]
    details: dict[str, Any]


class Rule(ABC):
    """A derivation: a frozen dataclass of its options, such as `masked_drop(fine_tune=20)`."""

    def check(self, space: SearchSpace) -> None:  # noqa: B027 - most fit every space
        """Raise `InputError` where the options do not fit the space, before anything is trained."""

    def follows(self, traits: Traits) -> bool:
        """Whether it can follow a strategy whose traits do not name it.

        The built-in strategies name the built-in derivations; one of another package says here
        which strategies it can follow."""
        return False

    @abstractmethod
    def __call__(self, trained: Trained) -> Derived:
        """The genotype of a trained supernet."""


def merit(scores: Scores, metric: str) -> np.ndarray:
    """`[S]`, higher is better: accuracy, or minus the loss; minus infinity for an undefined one."""
    # In float64: differences of accuracies are a few parts in ten thousand.
    values = np.atleast_1d(np.asarray(scores[metric], np.float64))
    if metric == "loss":
        values = -values
    # NaN compares with nothing, so that `max` would keep it where it comes first.
    return np.where(np.isfinite(values), values, -np.inf)


def score(merits: np.ndarray, metric: str) -> float:
    """The mean of merits `[S]` as a value of the metric again."""
    mean = float(merits.mean())
    if metric == "loss":
        return -mean
    return mean


def largest(merits: Mapping[Key, np.ndarray]) -> Key:
    """The key with the largest mean merit; of equals, the first."""
    # `max` keeps the first of equals, so that a tie does not depend on hashes.
    return max(merits, key=lambda key: merits[key].mean())


def ranked(merits: Mapping[Key, np.ndarray]) -> list[Key]:
    """Keys by mean merit, the largest first; equals keep their order."""
    return sorted(merits, key=lambda key: -merits[key].mean())


def difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Mean of `first - second`, paired by example `[S]`, and the half-width of its 95% interval.

    The interval is Student's. One number alone has no noise to measure: its half-width is 0.
    """
    # Paired: both models see the same examples, whose difficulty cancels in the difference.
    with np.errstate(invalid="ignore"):  # two infinities: both merits are undefined
        gaps = first - second
    if len(gaps) < 2 or not np.isfinite(gaps).all():
        return float(gaps.mean()), 0.0
    # Both sides together leave 5%.
    quantile = stdtrit(len(gaps) - 1, 0.975)
    standard_error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    return float(gaps.mean()), float(quantile * standard_error)


def tied_with(best: Key, merits: Mapping[Key, np.ndarray]) -> list[Key]:
    """The keys whose difference to `best` is within its noise."""
    tied = []
    for key, values in merits.items():
        gap, noise = difference(merits[best], values)
        if key != best and abs(gap) <= noise:
            tied.append(key)
    return tied


def without(
    mixture: np.ndarray, where: tuple[slice, slice], k: int, renormalise: bool
) -> np.ndarray:
    """`mixture` without candidate k in the cells `where`.

    The other candidates keep their weights, or are scaled to the same sum with `renormalise`."""
    masked = mixture.copy()  # the caller masks other candidates in the same mixture
    masked[(*where, k)] = 0
    if renormalise:
        before = mixture[where].sum(-1, keepdims=True)
        after = masked[where].sum(-1, keepdims=True)
        # Where k was the only candidate, nothing is left to scale.
        masked[where] *= np.divide(before, after, out=np.ones_like(after), where=after > 0)
    return masked


def texts(space: SearchSpace, candidates: Iterable[int]) -> list[str]:
    """Candidates by number as their texts."""
    return [to_text(space.candidates[k]) for k in candidates]


def names(space: SearchSpace, candidates: Iterable[int]) -> str:
    """Candidates as a phrase: "full, linear and uniform"."""
    *first, last = texts(space, candidates)
    if not first:
        return last
    return f"{', '.join(first)} and {last}"


def mean_by_name(space: SearchSpace, merits: Mapping[int, np.ndarray]) -> dict[str, float]:
    """The mean of each candidate's merits, by its text."""
    means = [float(values.mean()) for values in merits.values()]
    return dict(zip(texts(space, merits), means, strict=True))


def listed_means(merits: Mapping[int, np.ndarray], candidates: Iterable[int]) -> str:
    """The means of the merits of some candidates: "0.0120, 0.0115"."""
    return ", ".join(f"{merits[k].mean():.4f}" for k in candidates)


def one_hot(space: SearchSpace, choice: ArrayLike) -> np.ndarray:
    """The mixture `[L, H, K]` of integer choices `[1 or L, 1 or H]`, float32."""
    grid = everywhere(np.asarray(choice), space.mixture_shape[:2])
    return np.eye(len(space.candidates), dtype=np.float32)[grid]


def merit_of(
    trained: Trained, choice: Choice, metric: str, examples: int | None = None
) -> np.ndarray:
    """Merits `[S]` of a genotype with the weights that it inherits from the supernet."""
    mixture = one_hot(trained.space, choice)
    return merit(trained.evaluate(trained.weights, mixture, examples), metric)


def best_of(trained: Trained, merits: Mapping[Choice, np.ndarray], metric: str) -> Derived:
    """The best of some genotypes, by their merits `[S]` on all of valid; of equals, the first."""
    space = trained.space
    best = largest(merits)
    tied = tied_with(best, merits)
    ties = []
    if tied:
        contenders = {choice: merits[choice] for choice in tied}
        second = largest(contenders)
        ties.append(
            f"{len(tied)} of the other {len(merits) - 1} genotypes are within noise of the best on "
            f"valid. The next: {space.genotype(np.array(second))}"
        )
    details = {
        "metric": metric,
        "scored": len(merits),
        "within_noise": len(tied),
        f"valid_{metric}": score(merits[best], metric),
    }
    return Derived(space.genotype(np.array(best)), ties, details)


def as_choice(numbers: np.ndarray) -> Choice:
    """Candidates by number `[1 or L, 1 or H]` as a `Choice`."""
    return tuple(map(tuple, numbers.tolist()))


def draw(space: SearchSpace, rng: np.random.Generator) -> Choice:
    """A choice drawn uniformly."""
    rows, columns, candidates = space.alphas_shape
    return as_choice(rng.integers(candidates, size=(rows, columns)))


def check_metric(rule: str, metric: str) -> None:
    """Raise `InputError` for an unknown metric."""
    if metric not in METRICS:
        raise unknown(f"{rule}: metric", metric, METRICS)


MOST = 1_000_000
"""The largest number of genotypes, rounds or steps that a rule takes: each is scored or trained."""


def at_least(rule: str, least: int, **fields: int) -> None:
    """Raise `InputError` for the first of `fields` below `least`, or above `MOST`."""
    for name, value in fields.items():
        if value < least:
            raise InputError(f"{rule}: {name} must be at least {least}, got {value}.")
        if value > MOST:
            raise InputError(f"{rule}: {name} must be at most {MOST:,}, got {value}.")
