"""The best genotype within a budget, as an integer programme: a choice in every place, solved by
SciPy's milp.

    max  sum_{r,c,k} score[r, c, k] x[r, c, k]
    with sum_k x[r, c, k] = 1                                          one candidate in each place
         sum_n z[r, k, n] = 1,   sum_n n z[r, k, n] = sum_c x[r, c, k] n heads of candidate k in
         layer r rest + sum_{r,k,n} price[k, n] z[r, k, n] <= limit            for every limit

Prices are of groups of heads and need not be linear in their number. Scores add up over places, as
in Puzzle (Bercovich et al. 2024, arXiv:2411.19146): what places do to one another is not seen."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from dartformer.attention import to_text
from dartformer.cost.budget import Price
from dartformer.errors import InputError
from dartformer.space.search_space import SearchSpace

SECONDS = 20.0
"""Longest that one programme may take; then the best so far is taken."""


def solve(
    space: SearchSpace, scores: np.ndarray, limits: Sequence[tuple[Price, float]]
) -> np.ndarray:
    """Choices `[1 or L, 1 or H]` with the highest sum of scores among those within all limits.

    Args:
      space: what was searched over.
      scores: `[1 or L, 1 or H, K]`, higher is better, finite.
      limits: prices and what they may come to.

    Raises:
      InputError: no genotype is within all limits at once.
    """
    rows, columns, candidates = scores.shape
    tied = columns == 1
    times = space.layers // rows  # layers that a row of choices stands for
    sizes = space.heads + 1
    chosen = np.arange(rows * columns * candidates).reshape(scores.shape)
    counted = chosen.size + np.arange(rows * candidates * sizes).reshape(rows, candidates, sizes)
    total = chosen.size + (0 if tied else counted.size)
    matrix: list[tuple[int, int, float]] = []
    low: list[float] = []
    high: list[float] = []

    def add(terms: Sequence[tuple[int, float]], least: float, most: float) -> None:
        matrix.extend((len(low), variable, factor) for variable, factor in terms)
        low.append(least)
        high.append(most)

    for r, c in np.ndindex(rows, columns):
        add([(v, 1.0) for v in chosen[r, c]], 1, 1)
    if not tied:
        for r, k in np.ndindex(rows, candidates):
            add([(v, 1.0) for v in counted[r, k]], 1, 1)
            add(
                [
                    *((v, float(n)) for n, v in enumerate(counted[r, k])),
                    *((v, -1.0) for v in chosen[r, :, k]),
                ],
                0,
                0,
            )
    for price, limit in limits:

        def of_row(r: int, price: Price = price) -> list[tuple[int, float]]:
            if tied:
                return [
                    (int(chosen[r, 0, k]), float(price.groups[k, -1])) for k in range(candidates)
                ]
            return [
                (int(counted[r, k, n]), float(price.groups[k, n]))
                for k, n in np.ndindex(candidates, sizes)
            ]

        if price.largest:
            for r in range(rows):
                add(of_row(r), -np.inf, limit - price.rest)
        else:
            add(
                [(v, times * factor) for r in range(rows) for v, factor in of_row(r)],
                -np.inf,
                limit - price.rest,
            )
    numbers, variables, factors = (np.array(part) for part in zip(*matrix, strict=True))
    cost = np.zeros(total)
    cost[: chosen.size] = -scores.ravel()
    sums = coo_array((factors, (numbers, variables)), shape=(len(low), total))
    found = milp(
        cost,
        integrality=np.ones(total),
        bounds=Bounds(0, 1),
        options={"time_limit": SECONDS},
        constraints=LinearConstraint(sums.tocsr(), low, high),
    )
    if found.x is None:
        raise InputError(
            f"no genotype of the space is within all of "
            f"{', '.join(f'{price.quantity} = {limit:.6g}' for price, limit in limits)} at once."
        )
    return found.x[: chosen.size].reshape(scores.shape).argmax(-1)


def within(space: SearchSpace, choice: np.ndarray, limits: Sequence[tuple[Price, float]]) -> bool:
    """Whether the genotype of choices `[1 or L, 1 or H]` is within all limits."""
    genotype = space.genotype(choice)
    return all(price.of(genotype, space) <= limit * (1 + 1e-9) for price, limit in limits)


def near_ties(
    space: SearchSpace,
    mixture: np.ndarray,
    choice: np.ndarray,
    limits: Sequence[tuple[Price, float]],
    margin: float,
) -> list[str]:
    """A line for each place where another candidate has a weight within `margin` of the chosen one,
    within the budget.

    Args:
      mixture: `[1 or L, 1 or H, K]`.
      choice: `[1 or L, 1 or H]`.
    """
    lines = []
    for place in np.ndindex(*choice.shape):
        row, taken = mixture[place], choice[place]
        for k in np.argsort(-row):
            other = choice.copy()
            other[place] = k
            if k != taken and abs(row[k] - row[taken]) < margin and within(space, other, limits):
                lines.append(
                    f"{space.place_name((int(place[0]), int(place[1])))}: {to_text(space.candidates[taken])} "
                    f"({row[taken]:.3f}) and {to_text(space.candidates[k])} ({row[k]:.3f}) are within "
                    f"{margin:g}, and both within the budget"
                )
                break
    return lines
