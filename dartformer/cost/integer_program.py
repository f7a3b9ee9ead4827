"""The best genotype within a budget, as an integer program, solved by SciPy's milp.

    max  sum_{r,c,k} score[r, c, k] x[r, c, k]
    with sum_k x[r, c, k] = 1                                  one candidate in each place
         sum_n z[r, k, n] = 1, sum_n n z[r, k, n] = sum_c x[r, c, k]
                                                               n places of candidate k in layer r
         rest + sum_{r,k,n} price[k, n] z[r, k, n] <= limit    for every limit

Prices are of groups of heads and need not be linear in their number, hence z. Scores add up over
places, as in Puzzle (Bercovich et al. 2024, arXiv:2411.19146): interactions of places are not
seen."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from dartformer.attention import to_text
from dartformer.cost.budget import Price, number
from dartformer.errors import InputError
from dartformer.space.search_space import SearchSpace

SECONDS = 20.0
"""The longest that a program may take; after that, the best solution so far is used."""

Limits = Sequence[tuple[Price, float]]
"""Prices, and the most that each may come to."""

Term = tuple[int, float]
"""A variable and its factor in a sum."""


def solve(space: SearchSpace, scores: np.ndarray, limits: Limits) -> np.ndarray:
    """Choices `[R, C]` with the highest sum of scores among those within all limits.

    Args:
      space: that was searched.
      scores: `[R, C, K]`, higher is better, finite.
      limits: prices and what they may come to.

    Raises:
      InputError: no genotype is within all limits at once.
    """
    program = _Program(space, scores.shape)
    program.choose_one()
    if not program.tied:
        program.count_places()
    for price, limit in limits:
        program.limit(price, limit)
    choice = program.maximise(scores)
    if choice is None:
        phrases = []
        for price, limit in limits:
            phrases.append(f"{price.quantity} = {number(limit)}")
        raise InputError(f"no genotype of the space is within {', '.join(phrases)} at once.")
    return choice


class _Program:
    """Variables 0 or 1 and constraints least <= sum of terms <= most.

    `x` `[R, C, K]` and `z` `[R, K, C + 1]` hold the numbers of the variables; tied heads need no
    z."""

    def __init__(self, space: SearchSpace, shape: tuple[int, ...]):
        rows, columns, candidates = shape
        sizes = columns + 1
        self.together = space.heads // columns  # heads of a place
        self.tied = columns == 1
        self.layers_per_row = space.layers // rows
        self.x = np.arange(rows * columns * candidates).reshape(shape)
        z = self.x.size + np.arange(rows * candidates * sizes)
        self.z = z.reshape(rows, candidates, sizes)
        self.variables = self.x.size
        if not self.tied:
            self.variables += self.z.size
        self.entries: list[tuple[int, int, float]] = []  # constraint, variable, factor
        self.least: list[float] = []
        self.most: list[float] = []

    def add(self, terms: list[Term], least: float, most: float) -> None:
        """Add a constraint."""
        constraint = len(self.least)
        for variable, factor in terms:
            self.entries.append((constraint, variable, factor))
        self.least.append(least)
        self.most.append(most)

    def choose_one(self) -> None:
        """One candidate in each place."""
        for place in self.x.reshape(-1, self.x.shape[-1]):
            self.add(_weighted(place, 1.0), 1, 1)

    def count_places(self) -> None:
        """z is 1 for the number of places of a candidate that x gives a row."""
        rows, candidates, _ = self.z.shape
        for r, k in np.ndindex(rows, candidates):
            sizes = self.z[r, k]  # variables of 0, 1, ..., C places, of which one is 1
            self.add(_weighted(sizes, 1.0), 1, 1)
            counts = list(zip(sizes, map(float, range(len(sizes))), strict=True))
            self.add(counts + _weighted(self.x[r, :, k], -1.0), 0, 0)

    def limit(self, price: Price, limit: float) -> None:
        """The attentions cost at most `limit` less the rest of the model."""
        most = limit - price.rest
        total: list[Term] = []
        for r in range(len(self.x)):
            terms = self._cost_of_layer(r, price)
            if price.largest:
                # The largest layer is within the limit where every layer is.
                self.add(terms, -np.inf, most)
                continue
            for variable, factor in terms:
                total.append((variable, self.layers_per_row * factor))
        if not price.largest:
            self.add(total, -np.inf, most)

    def _cost_of_layer(self, row: int, price: Price) -> list[Term]:
        """The terms of the cost of a layer of a row."""
        if self.tied:
            variables, factors = self.x[row, 0], price.groups[:, -1]
        else:
            groups = price.groups[:, :: self.together]
            variables, factors = self.z[row].ravel(), groups.ravel()
        return list(zip(variables.tolist(), factors.tolist(), strict=True))

    def maximise(self, scores: np.ndarray) -> np.ndarray | None:
        """Choices `[R, C]` with the highest sum of scores; None where there is no solution."""
        # Sparse: a constraint has a few of the variables, and there are thousands of both.
        constraints, variables, factors = zip(*self.entries, strict=True)
        shape = (len(self.least), self.variables)
        sums = coo_array((factors, (constraints, variables)), shape=shape)
        cost = np.zeros(self.variables)
        cost[: self.x.size] = -scores.ravel()  # milp minimises
        solution = milp(
            cost,
            integrality=np.ones(self.variables),
            bounds=Bounds(0, 1),  # whole numbers from 0 to 1
            options={"time_limit": SECONDS},
            constraints=LinearConstraint(sums.tocsr(), self.least, self.most),
        )
        if solution.x is None:
            return None
        return solution.x[: self.x.size].reshape(self.x.shape).argmax(-1)


def _weighted(variables: np.ndarray, factor: float) -> list[Term]:
    """Terms with the same factor."""
    return [(variable, factor) for variable in variables]


def within(space: SearchSpace, choice: np.ndarray, limits: Limits) -> bool:
    """Whether the genotype of choices `[R, C]` is within all limits."""
    genotype = space.genotype(choice)
    # The program's own tolerance may exceed a limit by rounding.
    slack = 1 + 1e-9
    return all(price.of(genotype, space) <= limit * slack for price, limit in limits)


def near_ties(
    space: SearchSpace, mixture: np.ndarray, choice: np.ndarray, limits: Limits, margin: float
) -> list[str]:
    """A line for each place where a second candidate has nearly the weight of the chosen one.

    Args:
      space: that was searched.
      mixture: `[R, C, K]`.
      choice: `[R, C]`.
      limits: that the genotype with the second candidate must be within, too.
      margin: the largest difference of weights that is reported.
    """
    lines = []
    for row, column in np.ndindex(*choice.shape):
        weights, chosen = mixture[row, column], choice[row, column]
        for k in np.argsort(-weights):
            if k == chosen or abs(weights[k] - weights[chosen]) >= margin:
                continue
            alternative = choice.copy()
            alternative[row, column] = k
            if within(space, alternative, limits):
                place = space.place_name((row, column))
                first, second = space.candidates[chosen], space.candidates[k]
                lines.append(
                    f"{place}: {to_text(first)} ({weights[chosen]:.3f}) and {to_text(second)} "
                    f"({weights[k]:.3f}) are within {margin:g}, and both within the budget"
                )
                break
    return lines
