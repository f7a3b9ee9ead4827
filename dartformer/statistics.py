"""Statistics: rank correlation, intervals over seeds, and the paired bootstrap over examples.

What too few numbers leave undefined is NaN, which files hold as null, or None where a type says so.
Nothing undefined is significant."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

CONFIDENCE = 0.95
"""Of every interval here."""


def mean(values: Sequence[float]) -> float:
    """The mean as a plain number; NaN of no values."""
    if not len(values):
        return float("nan")
    return float(np.mean(values))


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for fewer than two values."""
    if len(values) < 2:
        return float("nan")
    scale = _scale(values)
    return float(np.std(np.asarray(values) / scale, ddof=1) * scale)


def _scale(values: Sequence[float]) -> float:
    """A power of two near the largest of the values.

    Divided by it they lose no digit, and their squares neither overflow nor vanish."""
    _, exponent = np.frexp(np.abs(values).max())
    return float(np.ldexp(1.0, int(exponent) - 1))


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """tau-b of two lists, with Kendall's correction for ties; NaN where one is all ties."""
    i, j = np.triu_indices(len(a), 1)  # each pair once
    x = np.sign(np.take(a, i) - np.take(a, j))
    y = np.sign(np.take(b, i) - np.take(b, j))
    untied = np.sqrt(np.count_nonzero(x)) * np.sqrt(np.count_nonzero(y))
    if not untied:
        return float("nan")
    return float((x * y).sum() / untied)


def critical_tau(n: int) -> float | None:
    """The smallest tau of n untied items that at most 5% of their orders reach.

    None where n items have too few orders.
    """
    # counts[i] is the number of orders with i inversions (Kendall 1938).
    counts = np.ones(1)
    for i in range(2, n + 1):
        # As shares of all orders, whose number is beyond a float for 171 items.
        counts = np.convolve(counts, np.ones(i) / i)
    # Each inversion lowers tau by 4 / (n (n - 1)), so the orders with the fewest inversions are
    # those with the largest tau.
    tail = np.cumsum(counts)
    allowed = np.flatnonzero(tail <= 0.05)
    if not len(allowed):
        return None
    return float(1 - 4 * allowed[-1] / (n * (n - 1)))


def welch(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Half-width of Welch's 95% interval for the difference of two means; NaN for a single seed."""
    if min(len(ours), len(theirs)) < 2:
        return float("nan")
    # Squared standard errors of the two means.
    scale = _scale([*ours, *theirs])
    error_ours = (spread(ours) / scale) ** 2 / len(ours)
    error_theirs = (spread(theirs) / scale) ** 2 / len(theirs)
    errors = np.array([error_ours, error_theirs])
    total = errors.sum()
    if total == 0:
        return 0.0  # all seeds score the same, and the degrees of freedom would be 0/0
    # Welch-Satterthwaite degrees of freedom; the spreads of two models need not be equal.
    counts = np.array([len(ours), len(theirs)])
    weights = errors**2 / (counts - 1)
    degrees = total**2 / weights.sum()
    # stdtrit is Student's t. scipy.stats has it too, and takes half a second to import.
    quantile = stdtrit(degrees, (1 + CONFIDENCE) / 2)
    return float(quantile * np.sqrt(total) * scale)


def binomial(a: float, b: float, examples: int) -> float:
    """Twice the binomial error of the difference of two accuracies; NaN for no `examples`."""
    # An answer is right or wrong, so the variance of a single one is a (1 - a).
    variance = a * (1 - a) + b * (1 - b)
    if not examples or variance < 0:
        return float("nan")
    return float(2 * np.sqrt(variance / examples))


def paired(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Mean of `ours - theirs`, paired by example `[S]`, and the half-width of its 95% interval.

    By Student's t. The noise of fewer than two examples is unknown: its half-width is NaN.
    """
    gaps = ours - theirs
    if len(gaps) < 2:
        return mean(gaps.tolist()), float("nan")
    quantile = stdtrit(len(gaps) - 1, (1 + CONFIDENCE) / 2)
    error = gaps.std(ddof=1) / np.sqrt(len(gaps))
    return float(gaps.mean()), float(quantile * error)


RESAMPLES = 200
"""Of the examples, for the noise of a score that is no mean over them."""


def resampled(score: Callable[[np.ndarray], float], n: int) -> np.ndarray:
    """`[RESAMPLES]` the score of resamples of `n` examples.

    `score` takes how often each example counts, `[n]`. The resamples are the same at every call, so
    that two models' can be paired."""
    rng = np.random.default_rng(0)
    scores = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        scores[i] = score(np.bincount(rng.integers(n, size=n), minlength=n))
    return scores


def paired_resamples(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The half-width of the 95% interval for the difference of two scores that were `resampled`.

    NaN where the score of too few resamples is defined."""
    gaps = ours - theirs
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) < RESAMPLES // 2:
        return float("nan")
    # The normal quantile times the spread: two quantiles of 200 resamples would be noisier.
    return float(ndtri((1 + CONFIDENCE) / 2) * gaps.std(ddof=1))


class Bootstrap(NamedTuple):
    """The difference of two models' mean scores, its 95% interval and its p.

    `p` is two-sided: twice the smaller share of resamples on either side of 0. A resample at 0
    counts on both. Of fewer than two examples, or scores that are not finite, the interval is NaN
    and `p` 1.
    """

    difference: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    ours: np.ndarray, theirs: np.ndarray, samples: int = 2000, seed: int = 0
) -> Bootstrap:
    """Whether `ours` `[S, n]` differs from `theirs` `[T, n]`, scores of seeds on the same examples.

    Examples are resampled with replacement, the same for both (Koehn 2004, Statistical
    Significance Tests for Machine Translation Evaluation), and so are each side's seeds.
    """
    rng = np.random.default_rng(seed)
    n = ours.shape[1]
    difference = mean(ours.ravel().tolist()) - mean(theirs.ravel().tolist())
    # Resamples of one example are all the same, which would pass for certainty.
    if n < 2 or not np.isfinite(difference):
        return Bootstrap(difference, float("nan"), float("nan"), 1.0)
    differences = np.empty(samples)
    # One resample at a time: all of them at once would hold samples x n numbers.
    for i in range(samples):
        # How often each example was drawn. A product with it is the mean of the resample.
        counts = np.bincount(rng.integers(n, size=n), minlength=n) / n  # [n]
        means = []
        for scores in (ours, theirs):
            seeds = rng.integers(len(scores), size=len(scores))
            means.append((scores[seeds] @ counts).mean())
        differences[i] = means[0] - means[1]
    low, high = np.quantile(differences, (0.025, 0.975))
    below = float((differences <= 0).mean())
    above = float((differences >= 0).mean())
    p = min(1.0, 2 * min(below, above))
    # No resample on one side says only that p is below one sample's share.
    p = max(p, 1 / samples)
    return Bootstrap(difference, float(low), float(high), p)


Outcome = Literal["better", "worse", "undecided"]


class Comparison(NamedTuple):
    """Two models compared over their seeds.

    Attributes:
      ours, theirs: mean scores.
      noise: the difference that chance explains at 95%; None where it cannot be estimated.
      source: what the noise was estimated from, in words.
      outcome: of `ours`; "undecided" within the noise, or where it is unknown.
    """

    ours: float
    theirs: float
    noise: float | None
    source: str
    outcome: Outcome

    @property
    def difference(self) -> float:
        """Of the mean scores."""
        return self.ours - self.theirs


def compare(
    ours: Sequence[float], theirs: Sequence[float], *, higher: bool = True, examples: int = 0
) -> Comparison:
    """Whether the scores of two models differ by more than their seeds explain.

    Args:
      ours, theirs: scores of each seed.
      higher: whether more is better.
      examples: of an accuracy, how many were tested. With one seed the binomial error over them
        takes the place of Welch's interval over the seeds; 0 for scores that have no such error.
    """
    a, b = mean(ours), mean(theirs)
    if not np.isfinite(a - b):
        return Comparison(a, b, None, "the score is undefined", "undecided")
    if len(ours) > 1 and len(theirs) > 1:
        noise, source = welch(ours, theirs), f"over {len(ours)} seeds"
    elif examples:
        noise, source = binomial(a, b, examples), f"for one seed and {examples} examples"
    else:
        return Comparison(a, b, None, "too few seeds to compare", "undecided")
    if not abs(a - b) > noise:
        return Comparison(a, b, noise, source, "undecided")
    outcome: Outcome = "worse"
    if (a > b) == higher:
        outcome = "better"
    return Comparison(a, b, noise, source, outcome)
