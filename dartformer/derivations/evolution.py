"""Evolution over the genotypes of a supernet (SPOS, Guo et al. 2019, arXiv 1904.00420, algorithm
1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dartformer.derivations.base import (
    Derived,
    Rule,
    Trained,
    at_least,
    check_metric,
    draw,
    frozen,
    merit,
    one_hot,
    pick,
)
from dartformer.errors import InputError

TRIES = 10
"""Draws for each child that is wanted, before a generation is taken as it is: small spaces run out
of new ones."""


@dataclass(frozen=True)
class Evolution(Rule):
    """A population of genotypes, scored with inherited weights; the best breed by mutation and
    crossover.

    Attributes:
      population: genotypes in each generation (SPOS: 50).
      top: how many of all that were scored are parents (10).
      mutations, crossovers: children of each kind in a generation (25 and 25); random genotypes
        fill it up.
      generations: how many after the first (20).
      probability: of each place to mutate (0.1).
      metric: "accuracy" on all of valid, or "loss".
    """

    population: int = 50
    top: int = 10
    mutations: int = 25
    crossovers: int = 25
    generations: int = 20
    probability: float = 0.1
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        check_metric("evolution", self.metric)
        at_least("evolution", 1, population=self.population, top=self.top)
        at_least(
            "evolution",
            0,
            mutations=self.mutations,
            crossovers=self.crossovers,
            generations=self.generations,
        )
        if self.mutations + self.crossovers > self.population:
            raise InputError(
                f"evolution: mutations={self.mutations} and crossovers={self.crossovers} are more than "
                f"population={self.population}."
            )
        if not 0 < self.probability <= 1:
            raise InputError(
                f"evolution: probability must be above 0 and at most 1, got {self.probability}."
            )

    def __call__(self, trained: Trained) -> Derived:
        """See `Rule`. No genotype is scored twice; it ends early when the space has no new ones."""
        space, rng = trained.space, trained.rng
        shape, candidates = space.alphas_shape[:2], space.alphas_shape[2]
        scored: dict[tuple[tuple[int, ...], ...], np.ndarray] = {}

        def score(children: list[tuple[tuple[int, ...], ...]]) -> None:
            for child in children:
                mixture = one_hot(space, np.array(child))
                scored[child] = merit(trained.evaluate(trained.weights, mixture, None), self.metric)

        def parent() -> np.ndarray:
            return np.array(parents[rng.integers(len(parents))])

        def mutant() -> np.ndarray:
            one = parent()
            return np.where(
                rng.random(shape) < self.probability, rng.integers(candidates, size=shape), one
            )

        def crossed() -> np.ndarray:
            return np.where(rng.random(shape) < 0.5, parent(), parent())

        def new(
            make: Callable[[], Any], count: int, children: list[tuple[tuple[int, ...], ...]]
        ) -> None:
            wanted = len(children) + count
            for _ in range(TRIES * count):
                child = frozen(np.array(make()))
                if len(children) < wanted and child not in scored and child not in children:
                    children.append(child)

        children: list[tuple[tuple[int, ...], ...]] = []
        new(lambda: draw(space, rng), self.population, children)
        score(children)
        best = [max(float(m.mean()) for m in scored.values())]
        for _ in range(self.generations):
            parents = sorted(scored, key=lambda c: -scored[c].mean())[: self.top]
            children = []
            new(mutant, self.mutations, children)
            new(crossed, self.crossovers, children)
            new(lambda: draw(space, rng), self.population - len(children), children)
            if not children:
                break
            score(children)
            best.append(max(float(m.mean()) for m in scored.values()))
        found = pick(trained, scored, self.metric, known=scored)
        sign = -1 if self.metric == "loss" else 1
        return found._replace(
            details={**found.details, "best_by_generation": [sign * b for b in best]}
        )
