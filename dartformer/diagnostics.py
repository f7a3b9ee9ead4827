"""Whether to believe a result: numbers about a search or a comparison, each with a verdict in plain words."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from dartformer.search_space import SearchSpace

LOW_ENTROPY, HIGH_ENTROPY = 0.5, 0.95
"""Shares of ln K: below the first a row of the mixture has decided, above the second it has hardly moved."""

WIDE_GAP = 0.05
"""A loss of accuracy by discretisation above this (5 points) means that the mixture, not its winner, was trained
(the 'discretisation gap' of Zela et al., arXiv 1909.09656, and Wang et al., arXiv 2108.04392)."""


def rows(mixture: np.ndarray, space: SearchSpace) -> dict[str, np.ndarray]:
    """For each free row of the alphas `[1 or L, 1 or H]`: the winner, entropy / ln K, and margin to the second."""
    free = np.asarray(mixture, np.float64)[:space.alphas_shape[0], :space.alphas_shape[1]]
    entropy = -(free * np.log(np.maximum(free, 1e-30))).sum(-1) / np.log(free.shape[-1])
    order = np.sort(free, -1)
    return {"winner": free.argmax(-1), "entropy": entropy, "margin": order[..., -1] - order[..., -2]}


def of_search(mixture: np.ndarray, space: SearchSpace, evaluate: Callable[[np.ndarray], dict[str, float]],
              tie_margin: float) -> dict[str, Any]:
    """Entropy, margin and discretisation gap of a finished search, with verdicts.

    Args:
      mixture: `[L, H, K]` after the last step.
      space: the search space.
      evaluate: valid loss and accuracy of the supernet at a mixture.
      tie_margin: candidates closer than this in the mixture count as tied.
    """
    found = rows(mixture, space)
    soft = evaluate(mixture.astype(np.float32))
    hard = evaluate(space.mixture(space.genotype(found["winner"])))
    gap = soft["accuracy"] - hard["accuracy"]
    verdicts = []
    if found["entropy"].mean() > HIGH_ENTROPY:
        verdicts.append(f"the alphas hardly moved (entropy {found['entropy'].mean():.2f} of the maximum): "
                        f"the choice is close to a coin toss")
    tied = int((found["margin"] < tie_margin).sum())
    if tied:
        verdicts.append(f"{tied} of {found['margin'].size} choices are within the tie margin {tie_margin:g}: "
                        f"treat the first two candidates there as tied")
    if gap > WIDE_GAP:
        verdicts.append(f"the discretised supernet loses {100 * gap:.1f} points on valid against the mixture: "
                        f"alphas and one-hot performance may disagree")
    return {"entropy": found["entropy"].tolist(), "margin": found["margin"].tolist(),
            "valid_soft": soft, "valid_discrete": hard, "discretisation_gap": gap,
            "verdicts": verdicts or ["no warning: the alphas have decided and the supernet keeps its accuracy"]}


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; NaN for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def welch(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Half-width of Welch's 95% interval for the difference of two means, each over at least two seeds."""
    parts = np.array([spread(ours) ** 2 / len(ours), spread(theirs) ** 2 / len(theirs)])
    if parts.sum() == 0:
        return 0.0
    degrees = parts.sum() ** 2 / (parts[0] ** 2 / (len(ours) - 1) + parts[1] ** 2 / (len(theirs) - 1))
    return float(stdtrit(degrees, 0.975) * np.sqrt(parts.sum()))


def compare(name: str, ours: Sequence[float], other_name: str, theirs: Sequence[float], *, better: str = "beats",
            rows_counted: int | None = None) -> str:
    """One sentence: does `ours` differ from `theirs` by more than seeds (and finite test data) explain?

    The difference of means is held against Welch's 95% interval from the spread over seeds; with one seed, against
    twice the binomial error of an accuracy over `rows_counted` examples.
    """
    a, b = float(np.mean(ours)), float(np.mean(theirs))
    if len(ours) > 1 and len(theirs) > 1:
        error = welch(ours, theirs)
        source = f"over {len(ours)} seeds"
    elif rows_counted:
        error = 2 * np.sqrt((a * (1 - a) + b * (1 - b)) / rows_counted)
        source = f"for one seed and {rows_counted} examples"
    else:
        return f"{name} ({100 * a:.1f}%) and {other_name} ({100 * b:.1f}%): too few seeds to compare"
    difference = f"{100 * (a - b):+.1f} points, noise {100 * error:.1f} {source}"
    if abs(a - b) <= error:
        return f"{name} ties with {other_name} ({difference})"
    return f"{name} {better} {other_name} ({difference})" if a > b else \
        f"{name} loses to {other_name} ({difference})"
