"""The race of a user's modules, in one process: who competes, who stops, who wins."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from dartformer import diagnostics
from dartformer.attention import to_text
from dartformer.config.sections import Race as RaceOptions
from dartformer.errors import InputError
from dartformer.machine.frames import frame
from dartformer.machine.progress import say
from dartformer.machine.workdir import write_checked_json
from dartformer.modules.data import Batch, Source
from dartformer.modules.derive import derive
from dartformer.modules.functions import Evaluator, Functions, Statistics
from dartformer.modules.places import replace, row_for
from dartformer.modules.search import ModuleSearch, OptimizerOf, chain_of, require_optimizer
from dartformer.modules.shown import Shown
from dartformer.nn import MixedAttention
from dartformer.results import EntrantRecord, GenotypeRecord, Look, RaceRecord
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.bracket import ANSWER, HOMOGENEOUS, RANDOM, Bracket, Entrant
from dartformer.stages.race import random_genotype
from dartformer.statistics import mean, paired
from dartformer.strategies.base import Weights
from dartformer.training.metric import LOSS, SCORE

MakeModel = Callable[[Genotype, int], nnx.Module]
"""(genotype, seed) -> the module, untrained; or with mixed layers, which the genotype replaces."""

Evaluate = Callable[[Any, Iterable[Batch]], float]
"""(module in evaluation mode, batches) -> a score, where more is better."""


@dataclass(frozen=True)
class ModuleRace(Shown):
    """The end of a race of modules.

    Attributes:
      genotype: of the winner.
      model: the winner, trained with the first seed, in evaluation mode.
      record: entrants, looks, and where each stopped.
      scores: of each finalist, one for each seed, on test where there is one and else on valid.
      verdict: the winner beside the other finalists, in sentences.
      search: that came before.
    """

    genotype: Genotype
    model: nnx.Module = field(repr=False)
    record: RaceRecord = field(repr=False)
    scores: Mapping[str, Sequence[float]]
    verdict: tuple[str, ...]
    search: ModuleSearch = field(repr=False)

    def table(self) -> Any:
        """A row for each entrant: its scores, and the step at which it stopped.

        A DataFrame where pandas is installed, and a list of dictionaries elsewhere."""
        records: list[dict[str, object]] = []
        for entrant in self.record.entrants:
            records.append(
                {
                    "name": entrant.name,
                    "genotype": str(Genotype.from_dict(entrant.genotype.to_dict())),
                    "metric": self.record.metric,
                    "valid": entrant.valid,
                    "test": entrant.test,
                    "finalist": entrant.finalist,
                    "stopped_at": entrant.stopped_at,
                    "winner": entrant.name == self.record.winner,
                }
            )
        return frame(records)


def race(
    result: ModuleSearch,
    make_model: MakeModel,
    *,
    genotype: Genotype | None = None,
    steps: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    optimizer: OptimizerOf | None = None,
    evaluate: Evaluate | None = None,
    rungs: Sequence[float] = (1 / 9, 4 / 9),
    neighbours: int = 16,
    finalists: int = 4,
) -> ModuleRace:
    """Train what a search derived beside its rivals, stop the weak ones early, and judge the winner.

    The derived genotype, its neighbours, every homogeneous genotype and a random one compete as in
    `docs/race.md`. Where `make_model` gives mixed layers, one compiled program trains all of them.

    Args:
      result: of the search; the race takes its loss and its data.
      make_model: (genotype, seed) -> the module, untrained.
      genotype: what the search derived; None to derive it by the default rule.
      steps: of each training; None for those of the search.
      seeds: of the finalists' trainings.
      optimizer: None for that of the weights in the search.
      evaluate: (module, batches) -> a score, where more is better; None for the loss.
      rungs: shares of the steps after which the weak ones stop.
      neighbours: genotypes that differ from the derived one in one place; at most so many compete.
      finalists: trained to the end with all seeds; at most so many.
    """
    if genotype is None:
        genotype = derive(result).genotype
    settings = result.searched.settings
    options = RaceOptions(tuple(rungs), neighbours=neighbours, finalists=finalists)
    steps = steps or settings.steps
    if not seeds:
        raise InputError("a race needs at least one seed.")
    if optimizer is not None:
        require_optimizer("optimizer", optimizer)
    track = _Trainings(
        result, make_model, optimizer or settings.weights, steps, tuple(seeds), evaluate
    )
    bracket = Bracket(result.space, options, steps, track, result.mixture)
    for entrant in _entrants(result.space, genotype, settings.seed):
        bracket.enter(entrant)
    finals = bracket.run()
    return _Report(bracket, track, finals.winner, finals.finalists).outcome(result)


def _entrants(space: SearchSpace, genotype: Genotype, seed: int) -> list[Entrant]:
    entrants = [Entrant(ANSWER, genotype, straight=True)]
    for homogeneous in space.homogeneous():
        entrants.append(Entrant(HOMOGENEOUS + to_text(homogeneous.layers[0][0]), homogeneous))
    taken = {genotype, *space.homogeneous()}
    drawn = random_genotype(seed, space, taken)
    if drawn not in taken:
        entrants.append(Entrant(RANDOM, drawn, reference=True))
    return entrants


# Trainings as what a race runs on.


class _Program:
    """A step and an evaluation, compiled for all trainings that share a structure."""

    def __init__(
        self, functions: Functions, evaluator: Evaluator, chain: optax.GradientTransformation
    ):
        self.functions, self.evaluator, self.chain = functions, evaluator, chain
        self.step = jax.jit(self._step, donate_argnums=(0, 1, 2))

    def _step(
        self,
        weights: Weights,
        moments: optax.OptState,
        statistics: Statistics,
        mixture: Array | None,
        batch: Batch,
        key: Array,
    ) -> tuple[Weights, optax.OptState, Statistics]:
        def loss(weights: Weights) -> tuple[Array, Statistics]:
            return self.functions.loss_and_statistics(weights, mixture, statistics, batch, key)

        gradient, statistics = jax.grad(loss, has_aux=True)(weights)
        updates, moments = self.chain.update(gradient, moments, weights)
        return optax.apply_updates(weights, updates), moments, statistics


class _Training:
    """One module with one seed, trained as far as it has come."""

    def __init__(
        self, program: _Program, functions: Functions, mixture: Array | None, stream: Any, seed: int
    ):
        self.program, self.mixture, self.stream, self.seed = program, mixture, stream, seed
        self.weights = jax.tree.map(jnp.copy, functions.weights)
        self.statistics = jax.tree.map(jnp.copy, functions.statistics)
        self.moments = program.chain.init(self.weights)
        self.done = 0

    def advance(self, step: int) -> None:
        """Train until after `step` steps."""
        while self.done < step:
            key = jax.random.fold_in(jax.random.key(self.seed), self.done)
            self.weights, self.moments, self.statistics = self.program.step(
                self.weights, self.moments, self.statistics, self.mixture, next(self.stream), key
            )
            self.done += 1

    def losses(self, part: Source) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each batch of a part, and its size."""
        evaluator = self.program.evaluator
        return evaluator.losses(self.weights, self.mixture, part, None, self.statistics)

    def module(self, genotype: Genotype) -> nnx.Module:
        """The trained module in evaluation mode, with plain layers."""
        functions = self.program.functions
        model = functions.module(self.weights, self.mixture, self.statistics, train=False)
        if functions.places:
            model = replace(model, genotype)
        return model


class _Trainings:
    """Trains entrants and looks at them: the `Track` of the bracket."""

    def __init__(
        self,
        result: ModuleSearch,
        make_model: MakeModel,
        optimizer: OptimizerOf,
        steps: int,
        seeds: tuple[int, ...],
        evaluate: Evaluate | None,
    ):
        self.result, self.make_model, self.steps, self.seeds = result, make_model, steps, seeds
        self.chain, self.evaluate = chain_of(optimizer, steps), evaluate
        self.parts, self.loss_of = result.searched.parts, result.searched.functions.loss_of
        self.metric = LOSS
        if evaluate is not None:
            self.metric = SCORE
        self.programs: dict[Genotype | None, _Program] = {}
        self.trainings: dict[tuple[Genotype, int], _Training] = {}
        self.looks: dict[tuple[Genotype, int], Look] = {}
        self.seconds = 0.0

    def training(self, genotype: Genotype, seed: int) -> _Training:
        """The training of a genotype with a seed, begun where it has not been."""
        key = genotype, seed
        if key not in self.trainings:
            self.trainings[key] = self._begun(genotype, seed)
        return self.trainings[key]

    def _begun(self, genotype: Genotype, seed: int) -> _Training:
        model = self.make_model(genotype, seed)
        mixed = any(isinstance(node, MixedAttention) for _, node in nnx.iter_graph(model))
        functions = Functions(model, self.loss_of, mixed)
        mixture, owner = None, None
        if mixed:
            self._require_fitting(functions)
            mixture = jnp.asarray(self.result.space.mixture(genotype))
        else:
            owner = genotype
        if owner not in self.programs:
            self.programs[owner] = self._program(functions)
        return _Training(self.programs[owner], functions, mixture, self.parts.train(seed), seed)

    def _program(self, functions: Functions) -> _Program:
        done = self.result.searched
        if functions.structure == done.functions.structure:
            # What the search evaluated with is compiled already.
            return _Program(done.functions, done.evaluator, self.chain)
        return _Program(functions, Evaluator(functions, ()), self.chain)

    def _require_fitting(self, functions: Functions) -> None:
        """Raise `InputError` where the mixed layers are not those of the search."""
        names = tuple(place.name for place in functions.places)
        if names != self.result.places:
            raise InputError(
                f"make_model gives mixed layers at {', '.join(names)}, and the search had them at "
                f"{', '.join(self.result.places)}."
            )
        for place in functions.places:
            row_for(place, self.result.space.homogeneous()[0].layers[0])

    def prepare(self, entrants: Sequence[Entrant], step: int | None = None) -> None:
        """See `Track`; models in memory train when they are looked at."""

    def look(self, entrant: Entrant, step: int) -> Look:
        """See `Track`; the bracket asks several times for a look, and a training goes on once."""
        key = entrant.genotype, step
        if key not in self.looks:
            self.looks[key] = self._look(entrant, step)
        return self.looks[key]

    def _look(self, entrant: Entrant, step: int) -> Look:
        training = self.training(entrant.genotype, self.seeds[0])
        started = time.process_time()
        training.advance(step)
        self.seconds += time.process_time() - started
        score, examples, loss = self.score(training, entrant.genotype, self.parts.valid)
        say(f"race: {entrant.name} after {step} steps: {self.metric.name} {score:.4g}")
        if not math.isfinite(score):
            return Look(step, None, examples, None)
        return Look(step, score, examples, loss)

    def score(
        self, training: _Training, genotype: Genotype, part: Source
    ) -> tuple[float, tuple[float, ...], float]:
        """The score of a training, minus the loss of each batch, and the loss."""
        values, sizes = training.losses(part)
        loss = float(np.average(values, weights=sizes))
        score = loss
        if self.evaluate is not None:
            score = float(self.evaluate(training.module(genotype), part.once()))
        return score, tuple((-values).tolist()), loss

    def merit(self, look: Look) -> float:
        """See `Track`; an undefined score is the worst."""
        if look.score is None:
            return -math.inf
        return self.metric.objective({self.metric.name: look.score})

    def tied(self, ours: Look, theirs: Look) -> bool:
        """See `Track`; the batches are paired by their losses."""
        if self.evaluate is not None:
            return ours.score == theirs.score
        gap, noise = paired(ours.array(), theirs.array())
        return abs(gap) <= noise

    def finals(self, genotype: Genotype, part: Source) -> list[float]:
        """The scores of all seeds after the whole training."""
        scores = []
        for seed in self.seeds:
            training = self.training(genotype, seed)
            training.advance(self.steps)
            scores.append(self.score(training, genotype, part)[0])
        return scores

    def final_merit(self, entrant: Entrant) -> float:
        """See `Track`."""
        started = time.process_time()
        scores = self.finals(entrant.genotype, self.parts.valid)
        self.seconds += time.process_time() - started
        return mean([self.metric.objective({self.metric.name: score}) for score in scores])

    def affordable(self, genotype: Genotype) -> bool:
        """See `Track`: there is no budget."""
        return True


class _Report:
    """What is kept of a race that is over."""

    def __init__(
        self, bracket: Bracket, track: _Trainings, winner: Entrant, finalists: Sequence[Entrant]
    ):
        self.bracket, self.track = bracket, track
        self.winner, self.finalists = winner, finalists

    def outcome(self, result: ModuleSearch) -> ModuleRace:
        """The record, the winner's model, and the verdict."""
        track, part = self.track, self.track.parts.valid
        on_test = track.parts.test is not None
        if track.parts.test is not None:
            part = track.parts.test  # read here for the first time, and for finalists alone
        scores = {}
        for entrant in self.finalists:
            scores[entrant.name] = track.finals(entrant.genotype, part)
        record = self.record(scores, on_test)
        winner = self.winner.genotype
        outcome = ModuleRace(
            winner,
            track.training(winner, track.seeds[0]).module(winner),
            record,
            scores,
            self.verdict(scores, on_test),
            result,
        )
        if result.path is not None:
            write_checked_json(result.path / "race.json", record.to_dict())
        return outcome

    def verdict(self, scores: Mapping[str, Sequence[float]], on_test: bool) -> tuple[str, ...]:
        """The winner beside every other finalist, in sentences."""
        where = "valid, which chose the winner"
        if on_test:
            where = "test"
        name, metric = self.winner.name, self.track.metric
        sentences = [
            f"{name} wins the race: {self.winner.genotype}, {metric.name} "
            f"{mean(list(scores[name])):.4g} on {where}"
        ]
        for rival, theirs in scores.items():
            if rival != name:
                _, sentence = diagnostics.compare(name, scores[name], rival, theirs, metric=metric)
                sentences.append(sentence)
        return (*sentences, *self.bracket.cuts)

    def record(self, scores: Mapping[str, Sequence[float]], on_test: bool) -> RaceRecord:
        """What competed, and where each stopped."""
        track, records = self.track, []
        trained = 0
        for genotype, entrant in self.bracket.entrants.items():
            looks = sorted(self.bracket.seen[genotype], key=lambda look: look.step)
            finalist = entrant.name in scores
            valid = test = stopped = None
            if finalist:
                valid = mean(track.finals(genotype, track.parts.valid))
            else:
                # The last look is where it stopped.
                valid, stopped = looks[-1].score, looks[-1].step
            if finalist and on_test:
                test = mean(list(scores[entrant.name]))
            records.append(
                EntrantRecord(
                    entrant.name,
                    tuple(self.bracket.names[genotype][1:]),
                    GenotypeRecord.from_dict(genotype.to_dict()),
                    tuple(Look(look.step, look.score) for look in looks),
                    valid,
                    finalist,
                    stopped,
                    False,
                    test,
                )
            )
        for training in track.trainings.values():
            trained += training.done
        whole = len(records) * len(track.seeds) * track.steps
        return RaceRecord(
            track.metric.name,
            tuple(self.bracket.rungs),
            track.steps,
            track.seeds,
            tuple(records),
            self.winner.name,
            (),
            tuple(self.bracket.cuts),
            track.seconds,
            trained / whole,
            {},
        )
