"""Bracket: who is compared with whom, who stops, and who trains to the end.

The rules of a race, apart from what runs it: trainings (`dartformer.stages.race`), or a table of
trainings that are finished (`dartformer.tables`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from dartformer.config.sections import Race as RaceOptions
from dartformer.errors import InputError
from dartformer.results import Look
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

HOMOGENEOUS = "homogeneous."
"""Begins the name of an entrant with one attention everywhere."""

ANSWER = "derived"
"""What the derivation chose."""

RANDOM = "random"
UNIFORM = "uniform_mixing"

MIX = "mix "
"""Begins the name of an entrant of a space that races whole."""

NEIGHBOUR = "neighbour "
"""Begins the name of an entrant that differs from a leader in one place."""


@dataclass(frozen=True)
class Entrant:
    """One model of a race.

    Attributes:
      name: the first of its names, which results and tables use.
      genotype: that is trained.
      straight: it goes to the last rung without being compared before: slow learners that a search
        found stand badly at first.
      reference: it is trained to the end in any case, to be compared with.
      competes: it can win; otherwise it is not bound to the budget, and runs no rungs.
    """

    name: str
    genotype: Genotype
    straight: bool = False
    reference: bool = False
    competes: bool = True


class Track(Protocol):
    """What a race runs on."""

    def prepare(self, entrants: Sequence[Entrant], step: int | None = None) -> None:
        """Train entrants that far, side by side where that can be, before they are looked at.

        None: to the end over all seeds."""
        ...

    def look(self, entrant: Entrant, step: int) -> Look:
        """How an entrant does on valid after `step` steps; it is trained that far."""
        ...

    def merit(self, look: Look) -> float:
        """The score of a look, with the sign that makes larger better."""
        ...

    def tied(self, ours: Look, theirs: Look) -> bool:
        """Whether two looks differ by no more than the noise of their examples."""
        ...

    def final_merit(self, entrant: Entrant) -> float:
        """The mean over all seeds after the whole training; all are trained."""
        ...

    def affordable(self, genotype: Genotype) -> bool:
        """Whether a genotype is within the budget, so that it can win."""
        ...


def rung_steps(rungs: Sequence[float], steps: int) -> list[int]:
    """The steps after which entrants are compared; none where `rungs` is empty.

    Each is at least one step, and two rungs of a short training may fall together.
    """
    distinct = {max(1, round(rung * steps)) for rung in rungs}
    return sorted(step for step in distinct if step < steps)


def neighbours(
    space: SearchSpace, genotype: Genotype, mixture: np.ndarray | None, most: int
) -> list[Genotype]:
    """At most `most` genotypes that differ from `genotype` in one place of the search space.

    Those come first that cost the search's mixture the least probability.
    """
    choice = space.choice(genotype)
    rows, columns, candidates = space.alphas_shape
    distances: list[tuple[float, int, Genotype]] = []
    for row, column, k in np.ndindex(rows, columns, candidates):
        cells = space.cells((row, column))
        current = choice[cells][0, 0]
        if k == current:
            continue
        distance = 0.0
        if mixture is not None:
            weights = np.log(np.maximum(mixture[cells][0, 0], np.finfo(np.float32).tiny))
            distance = float(weights[current] - weights[k])
        changed = choice.copy()
        changed[cells] = k
        distances.append((distance, len(distances), space.genotype(changed)))
    # The number keeps the order of the space among equals, and genotypes have no order.
    distances.sort(key=lambda entry: entry[:2])
    return [neighbour for _, _, neighbour in distances[:most]]


# The race.


class Finals(NamedTuple):
    """The end of a bracket: the best entrant, and all that trained to the end over all seeds."""

    winner: Entrant
    finalists: Sequence[Entrant]


class Bracket:
    """One race; the methods are its phases, in their order.

    Attributes:
      rungs: the steps after which entrants are compared.
      entrants: by genotype, in the order in which they entered.
      names: all names of each entrant.
      seen: the looks at each entrant.
      cuts: entrants that stopped within the noise of one that went on, in sentences.

    Args:
      space: of the genotypes.
      options: the config's.
      steps: of a whole training.
      track: what trains and scores.
      mixture: `[L, H, K]` of the search, which says which neighbours are closest; None: the order
        of the space.
      decides: whether another entrant than the first answer may win, and neighbours enter.
    """

    def __init__(
        self,
        space: SearchSpace,
        options: RaceOptions,
        steps: int,
        track: Track,
        mixture: np.ndarray | None = None,
        *,
        decides: bool = True,
    ):
        self.space, self.options, self.steps, self.track = space, options, steps, track
        self.mixture, self.decides = mixture, decides
        self.rungs = rung_steps(options.rungs, steps)
        self.entrants: dict[Genotype, Entrant] = {}
        self.names: dict[Genotype, list[str]] = {}
        self.seen: dict[Genotype, list[Look]] = {}
        self.cuts: list[str] = []
        self.answer: Genotype | None = None

    def enter(self, entrant: Entrant) -> None:
        """Add an entrant; one whose genotype has entered already gains a name."""
        genotype = entrant.genotype
        if genotype in self.entrants:
            self.names[genotype].append(entrant.name)
            if entrant.reference:
                self.entrants[genotype] = replace(self.entrants[genotype], reference=True)
            return
        self.entrants[genotype] = entrant
        self.names[genotype] = [entrant.name]
        self.seen[genotype] = []
        # The first answer is the one to improve on, or to judge.
        if self.answer is None and entrant.straight:
            self.answer = genotype

    def run(self) -> Finals:
        """All rungs, the neighbours, and the finals."""
        runners = list(self.entrants.values())
        if self.decides and not any(map(self.eligible, runners)):
            raise InputError(
                "no model that would race is within search.budget. Raise its limits, or leave it out."
            )
        if self.rungs:
            # Apart, because models above the budget must not stop those that can win.
            self.heat([entrant for entrant in runners if self.eligible(entrant)])
            self.heat([entrant for entrant in runners if self.only_compared(entrant)])
            if self.decides:
                self.climb()
            runners = self.survivors()
        finalists = self.finalists(runners)
        return Finals(self.winner(finalists), finalists)

    def winner(self, finalists: Sequence[Entrant]) -> Entrant:
        """The finalist with the best mean over the seeds, or the answer that is judged."""
        # All of them train, whether they can win or not.
        self.track.prepare(finalists)
        merits = {entrant: self.track.final_merit(entrant) for entrant in finalists}
        if not self.decides:
            assert self.answer is not None
            return self.entrants[self.answer]
        eligible = [entrant for entrant in finalists if self.eligible(entrant)]
        return max(eligible, key=merits.__getitem__)

    def look(self, entrant: Entrant, step: int) -> Look:
        """The look at an entrant after `step` steps."""
        look = self.track.look(entrant, step)
        if look not in self.seen[entrant.genotype]:
            self.seen[entrant.genotype].append(look)
        return look

    def merit_at(self, step: int) -> Callable[[Entrant], tuple[float, float]]:
        """entrant -> how good it is after `step` steps."""

        def merit(entrant: Entrant) -> tuple[float, float]:
            look = self.look(entrant, step)
            loss = look.loss
            if loss is None or math.isnan(loss):
                loss = math.inf
            # Early on, a score such as the F1 of entities is 0 for all, and the loss tells more.
            return self.track.merit(look), -loss

        return merit

    def heat(self, runners: Sequence[Entrant]) -> None:
        """Take entrants through the rungs up to the last one, stopping the worse share at each."""
        for step in self.rungs[:-1]:
            self.track.prepare(runners, step)
            straight, compared = [], []
            for entrant in runners:
                if entrant.straight:
                    # Not to stop it here, but for the picture.
                    self.look(entrant, step)
                    straight.append(entrant)
                else:
                    compared.append(entrant)
            ranked = sorted(compared, key=self.merit_at(step), reverse=True)
            kept = math.ceil(self.options.keep * len(ranked))
            self.note_cut(ranked, kept, step)
            runners = [*straight, *ranked[:kept]]
        self.track.prepare(runners, self.rungs[-1])
        for entrant in runners:
            self.look(entrant, self.rungs[-1])

    def note_cut(self, ranked: Sequence[Entrant], kept: int, step: int) -> None:
        """Name the entrants that stop within the noise of the last one that stays."""
        if not 0 < kept < len(ranked):
            return
        last = ranked[kept - 1]
        for entrant in ranked[kept:]:
            if entrant.reference:
                continue  # it trains to the end in any case
            if self.track.tied(self.look(entrant, step), self.look(last, step)):
                self.cuts.append(
                    f"{entrant.name} stopped after {step} steps within the noise of {last.name}, "
                    f"which went on"
                )

    def eligible(self, entrant: Entrant) -> bool:
        """Whether an entrant can win."""
        return entrant.competes and self.track.affordable(entrant.genotype)

    def only_compared(self, entrant: Entrant) -> bool:
        """Whether an entrant is above the budget: it races those alike, as a reference."""
        return entrant.competes and not self.track.affordable(entrant.genotype)

    def at_last_rung(self) -> list[Entrant]:
        """The entrants that reached the last rung and can win, the best first."""
        step = self.rungs[-1]
        reached = []
        for genotype, looks in self.seen.items():
            entrant = self.entrants[genotype]
            if self.eligible(entrant) and any(look.step >= step for look in looks):
                reached.append(entrant)
        return sorted(reached, key=self.merit_at(step), reverse=True)

    def climb(self) -> None:
        """Let the neighbours of the answers enter, then those of each new leader."""
        most = self.options.neighbours
        if most == 0 or self.space.granularity == "model":
            return  # there every genotype has entered
        # Of every answer: where they differ, each may be the only one near the best.
        centers = [entrant.genotype for entrant in self.entrants.values() if entrant.straight]
        if not centers:
            centers = [self.at_last_rung()[0].genotype]
        climbed: set[Genotype] = set()
        while not climbed.issuperset(centers):
            entered = []
            for center in centers:
                climbed.add(center)
                for genotype in neighbours(self.space, center, self.mixture, most):
                    if genotype not in self.entrants and self.track.affordable(genotype):
                        entrant = Entrant(f"{NEIGHBOUR}{genotype}", genotype)
                        self.enter(entrant)
                        entered.append(entrant)
            self.heat(entered)
            centers = [self.at_last_rung()[0].genotype]

    def survivors(self) -> list[Entrant]:
        """The answer, and the best of the last rung with those within its noise."""
        step = self.rungs[-1]
        ranked = self.at_last_rung()
        close = []
        for entrant in ranked:
            leader = self.look(ranked[0], step)
            if entrant == ranked[0] or self.track.tied(self.look(entrant, step), leader):
                close.append(entrant)
        most = self.options.finalists
        for entrant in close[most:]:
            if entrant.genotype == self.answer:
                continue  # it goes on in any case
            self.cuts.append(
                f"{entrant.name} stopped after {step} steps within the noise of {ranked[0].name}: "
                f"race.finalists={most}"
            )
        survivors = close[:most]
        # A search looks further than a rung: what it chose may only start slowly.
        if self.answer is not None and self.entrants[self.answer] not in survivors:
            survivors.append(self.entrants[self.answer])
        return survivors

    def finalists(self, runners: Sequence[Entrant]) -> list[Entrant]:
        """Those that train to the end over all seeds.

        The best with those within its noise after the whole training, and the references.
        """
        if not self.rungs:
            return list(runners)
        self.track.prepare(runners, self.steps)
        ranked = sorted(runners, key=self.merit_at(self.steps), reverse=True)
        leader = self.look(ranked[0], self.steps)
        finalists = []
        for entrant in ranked:
            tied = self.track.tied(self.look(entrant, self.steps), leader)
            if entrant == ranked[0] or tied:
                finalists.append(entrant)
        for entrant in self.references():
            if entrant not in finalists:
                finalists.append(entrant)
        return finalists

    def references(self) -> list[Entrant]:
        """What the winner is compared with in any case.

        The best homogeneous model, the entrants that the config names for it, and an answer that
        is to be judged.
        """
        homogeneous, references = [], []
        for genotype, entrant in self.entrants.items():
            if any(name.startswith(HOMOGENEOUS) for name in self.names[genotype]):
                homogeneous.append(entrant)
            judged = genotype == self.answer and not self.decides
            if entrant.reference or judged:
                references.append(entrant)
        # Those within the budget and those above it have raced apart.
        groups = [
            [entrant for entrant in homogeneous if self.eligible(entrant)],
            [entrant for entrant in homogeneous if not self.eligible(entrant)],
        ]
        best = [max(group, key=self.progress) for group in groups if group]
        if best:
            # At the last rung that all of them ran.
            common = min(self.progress(entrant)[0] for entrant in best)
            references.append(max(best, key=self.merit_at(common)))
        return references

    def progress(self, entrant: Entrant) -> tuple[int, float]:
        """How far an entrant came, and how good it was there."""
        look = max(self.seen[entrant.genotype], key=lambda look: look.step)
        return look.step, self.track.merit(look)
