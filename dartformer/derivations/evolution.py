"""Evolution over the genotypes of a supernet.

SPOS, Guo et al. 2019, arXiv 1904.00420, algorithm 1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dartformer.derivations.base import (
    Choice,
    Derived,
    Rule,
    Trained,
    as_choice,
    at_least,
    best_of,
    check_metric,
    draw,
    merit_of,
    ranked,
    score,
)
from dartformer.errors import InputError

TRIES = 10
"""Draws for each child before a generation stays smaller: small spaces run out of new genotypes."""


@dataclass(frozen=True)
class Evolution(Rule):
    """Breeds genotypes by mutation and crossover, scored with inherited weights.

    Attributes:
      population: genotypes in each generation (SPOS: 50).
      top: how many of all that were scored are parents (10).
      mutations, crossovers: children of each kind in a generation (25 and 25); random genotypes
        make up the rest.
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
        population = Population(trained, self)
        population.fill(population.random, self.population)
        population.score_children()
        best = [population.best()]
        for _ in range(self.generations):
            population.choose_parents()
            population.fill(population.mutant, self.mutations)
            population.fill(population.crossover, self.crossovers)
            population.fill(population.random, self.population - len(population.children))
            if not population.children:
                break
            population.score_children()
            best.append(population.best())
        derived = best_of(trained, population.merits, self.metric)
        return derived._replace(details=derived.details | {"best_by_generation": best})


@dataclass
class Population:
    """The genotypes of an evolution.

    Attributes:
      merits: of every genotype scored so far.
      parents: the best of them.
      children: the genotypes of a generation, before they are scored.
    """

    trained: Trained
    rule: Evolution
    merits: dict[Choice, np.ndarray] = field(default_factory=dict)
    parents: list[Choice] = field(default_factory=list)
    children: list[Choice] = field(default_factory=list)

    def fill(self, breed: Callable[[], Choice], count: int) -> None:
        """Add `count` new children, or fewer where `TRIES` draws for each do not find them."""
        size = len(self.children) + count
        for _ in range(TRIES * count):
            child = breed()
            new = child not in self.merits and child not in self.children
            if new and len(self.children) < size:
                self.children.append(child)

    def score_children(self) -> None:
        """Score the children with inherited weights; the next generation begins empty."""
        for child in self.children:
            self.merits[child] = merit_of(self.trained, child, self.rule.metric)
        self.children = []

    def choose_parents(self) -> None:
        """The best genotypes so far become the parents."""
        # Of all generations: the best genotypes stay parents until better ones are found.
        self.parents = ranked(self.merits)[: self.rule.top]

    def best(self) -> float:
        """The metric of the best genotype so far."""
        highest = max(self.merits.values(), key=lambda values: float(values.mean()))
        return score(highest, self.rule.metric)

    def random(self) -> Choice:
        """A genotype drawn uniformly."""
        return draw(self.trained.space, self.trained.rng)

    def parent(self) -> np.ndarray:
        """One of the parents."""
        return np.array(self.parents[self.trained.rng.integers(len(self.parents))])

    def mutant(self) -> Choice:
        """A parent with new draws for some places."""
        rows, columns, candidates = self.trained.space.alphas_shape
        rng, parent = self.trained.rng, self.parent()
        mutated = rng.random((rows, columns)) < self.rule.probability
        random = rng.integers(candidates, size=(rows, columns))
        return as_choice(np.where(mutated, random, parent))

    def crossover(self) -> Choice:
        """Each place from one of two parents."""
        rows, columns, _ = self.trained.space.alphas_shape
        # Uniform crossover: places are independent of one another, so none need stay together.
        first = self.trained.rng.random((rows, columns)) < 0.5
        return as_choice(np.where(first, self.parent(), self.parent()))
