"""Race: all that competes trains step by step, and what falls behind stops early.

Every entrant trains on its full-length schedule with the first seed. After each rung, a share of
the steps, the entrants are compared on valid: the better share stays at the first rungs, and the
best with those within its noise at the last. Finalists train to the end over all seeds. Successive
halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), with one learning-rate schedule for all
rungs: a schedule for each rung would end the slow learners before they start.
"""

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from dartformer import diagnostics
from dartformer.attention import parse, to_text
from dartformer.errors import InputError, unknown
from dartformer.machine.identity import Identity, different, fingerprint, require_same
from dartformer.machine.progress import say
from dartformer.models.transformer import Weights
from dartformer.results import (
    PROCESSOR,
    EntrantRecord,
    GenotypeRecord,
    Look,
    Looks,
    ModelScores,
    RaceRecord,
    Results,
)
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages import scores
from dartformer.stages.bracket import HOMOGENEOUS, MIX, RANDOM, UNIFORM, Bracket, Entrant
from dartformer.stages.layout import Layout, Workdir, genotype_key, training_folder
from dartformer.stages.retrain import (
    Model,
    is_trained,
    read_trained,
    retrain,
    seconds_spent,
    train,
    train_until,
)
from dartformer.stages.study import Study
from dartformer.statistics import mean, paired, paired_resamples
from dartformer.strategies import Race
from dartformer.training.loop import Diverged
from dartformer.training.metric import LOSS, Metric


@dataclass(frozen=True)
class Outcome:
    """The end of a race.

    Attributes:
      record: what `results.json` holds of it.
      genotype: the winner.
      models: of each finalist, over all seeds, by every name that it has.
    """

    record: RaceRecord
    genotype: Genotype
    models: Mapping[str, Sequence[Model]]


@dataclass(frozen=True)
class Leg:
    """A training of an entrant with one seed up to a step, which another process can take.

    Attributes:
      name: of the entrant.
      genotype: that is trained.
      seed: of the weights and of the order of examples.
      step: where it pauses; its folder then holds a look at it, if the seed is the first.
    """

    name: str
    genotype: Genotype
    seed: int
    step: int


class Trainer(Protocol):
    """Trains entrants elsewhere, side by side.

    Attributes:
      where: for the note of the stage.
    """

    where: str

    def train(self, workdir: Workdir, legs: Sequence[Leg]) -> Mapping[Leg, str]:
        """Train all; returns why, for each that diverged. Raises what stops the race."""
        ...


def race(
    study: Study,
    workdir: Workdir,
    answers: Mapping[str, Genotype],
    mixture: np.ndarray | None = None,
    *,
    decides: bool = True,
    trainer: Trainer | None = None,
) -> Outcome:
    """Race the answers of a search against what `baselines` names and the answers' neighbours.

    Args:
      study: of the config.
      workdir: keeps the trainings, and every look at them in `race.json`.
      answers: what the search derived, by name; the first is the one to improve on.
      mixture: `[L, H, K]` of the search, which says which neighbours are closest; None: the order
        of the space.
      decides: whether another entrant than the first answer may win, and neighbours enter.
      trainer: trains the entrants; None: this process, one after another.

    An entrant whose training diverges is last. Raises what `fit` raises, `Diverged` only where the
    winner did. A race goes on where it stopped.
    """
    config, trainings = study.config, _Trainings(study, workdir, trainer)
    bracket = Bracket(
        study.space, config.race, config.retrain.steps, trainings, mixture, decides=decides
    )
    for entrant in entrants(study, answers):
        bracket.enter(entrant)
    finals = bracket.run()
    # The best of those that could win: all others diverged, too.
    trainings.require_finite(finals.winner)
    outcome = _Report(bracket, trainings, finals.winner).outcome()
    workdir.record(race=outcome.record)
    return outcome


def read(study: Study, workdir: Workdir, genotype: Genotype) -> Outcome | None:
    """The finished race of this study in which `genotype` is a finalist; None where there is none.

    Its models are read from their trainings.
    """
    record = workdir.read_results().race
    if record is None or different(record.identity, race_identity(study)):
        return None
    models: dict[str, Sequence[Model]] = {}
    is_finalist = False
    for entrant in record.entrants:
        if not entrant.finalist:
            continue
        finalist = Genotype.from_dict(entrant.genotype.to_dict())
        is_finalist = is_finalist or finalist == genotype
        trained = retrain(study, workdir, finalist, entrant.name)
        for name in (entrant.name, *entrant.names):
            models[name] = trained
    if not is_finalist:
        return None
    return Outcome(record, genotype, models)


def finish(
    study: Study, workdir: Workdir, names: Sequence[str], trainer: Trainer | None = None
) -> RaceRecord:
    """Train entrants that stopped to the end over all seeds, and score them on valid.

    Args:
      study, workdir, trainer: of the race.
      names: of entrants, as `results.json` has them; an attention alone, such as "linear", stands
        for its homogeneous model.

    Raises `InputError` where there is no race, or no entrant of a name.
    """
    record = workdir.read_results().race
    if record is None:
        raise InputError(f"there is no race in {workdir.path}: run `dartformer race` first.")
    remedy = "Run `dartformer race` with this config first."
    require_same(record.identity, race_identity(study), f"the race in {workdir.path}", remedy)
    by_name = {}
    for entrant in record.entrants:
        for name in (entrant.name, *entrant.names):
            by_name[name] = entrant
    selected = set()
    for name in names:
        entrant_name = _homogeneous_name(name, by_name)
        if entrant_name not in by_name:
            raise unknown("entrant", name, by_name)
        selected.add(by_name[entrant_name].name)
    stopped = {}
    for entrant in record.entrants:
        if entrant.name in selected and entrant.stopped_at is not None:
            genotype = Genotype.from_dict(entrant.genotype.to_dict())
            stopped[entrant.name] = Entrant(entrant.name, genotype)
    trainings = _Trainings(study, workdir, trainer)
    trainings.prepare(list(stopped.values()))
    finished = []
    for entrant in record.entrants:
        if entrant.name in stopped:
            models = trainings.trained(stopped[entrant.name])
            valid = mean([model.valid[record.metric] for model in models])
            entrant = replace(entrant, valid=valid, stopped_at=None)
        finished.append(entrant)
    record = replace(record, entrants=tuple(finished))
    workdir.record(race=record)
    return record


def with_entrant(results: Results, name: str) -> Results:
    """The results with a finalist in the place of the winner, for its model card.

    Raises `InputError` where there is no finalist of that name.
    """
    finalists: dict[str, ModelScores] = {}
    for finalist, model in results.models.items():
        if isinstance(model, ModelScores):
            finalists[finalist] = model
    spelled = _homogeneous_name(name, finalists)
    if spelled not in finalists:
        raise unknown("finalist", name, finalists)
    scores = finalists[spelled]
    return replace(
        results,
        test=scores.test,
        valid=scores.valid,
        parameters=scores.parameters,
        flops=scores.flops,
        steps=scores.steps,
        genotype=scores.genotype,
        # Its sentences are about the winner.
        verdict=(),
    )


def _homogeneous_name(name: str, names: Container[str]) -> str:
    """The name of a homogeneous entrant where an attention is spelt; else the name itself."""
    if name in names:
        return name
    try:
        return HOMOGENEOUS + to_text(parse(name.removeprefix(HOMOGENEOUS)))
    except InputError:
        return name


def entrants(study: Study, answers: Mapping[str, Genotype]) -> list[Entrant]:
    """The answers, and the baselines that the config selects."""
    config, space = study.config.baselines, study.space
    entered = []
    for name, genotype in answers.items():
        entered.append(Entrant(name, genotype, straight=True))
    count, is_whole = 0, False
    if isinstance(study.strategy, Race):
        count = study.strategy.random
        is_whole = space.granularity == "model" or space.size <= count
    if config.homogeneous or is_whole or not (answers or count):
        for genotype in space.homogeneous():
            name = HOMOGENEOUS + to_text(genotype.layers[0][0])
            entered.append(Entrant(name, genotype))
    if is_whole and space.granularity != "model":
        for genotype in _mixes(space):
            entered.append(Entrant(f"{MIX}{genotype}", genotype))
    elif not is_whole:
        for number, genotype in enumerate(_drawn(space, count, study.config.seed), 1):
            entered.append(Entrant(f"{RANDOM} {number}", genotype))
    # Where all of a space races anyway, a random genotype says nothing.
    if config.random and not is_whole:
        genotype = random_genotype(study.config.seed, space, set(answers.values()))
        entered.append(Entrant(RANDOM, genotype, reference=True))
    if config.uniform:
        # Its step costs as much as those of all candidates, so it is no default.
        entered.append(Entrant(UNIFORM, space.mixed(), reference=True, competes=False))
    return entered


def _mixes(space: SearchSpace) -> Iterator[Genotype]:
    """All genotypes but the homogeneous ones."""
    homogeneous = set(space.homogeneous())
    rows, columns, candidates = space.alphas_shape
    for choice in itertools.product(range(candidates), repeat=rows * columns):
        genotype = space.genotype(np.reshape(choice, (rows, columns)))
        if genotype not in homogeneous:
            yield genotype


def _drawn(space: SearchSpace, count: int, seed: int) -> Iterator[Genotype]:
    """Different genotypes drawn at random."""
    rng = np.random.default_rng(seed)
    drawn: set[Genotype] = set()
    while len(drawn) < count:
        genotype = space.random(rng)
        if genotype not in drawn:
            drawn.add(genotype)
            yield genotype


DRAWS = 100
"""How often a random genotype is drawn until it is a new one."""


def random_genotype(seed: int, space: SearchSpace, taken: Iterable[Genotype]) -> Genotype:
    """A genotype drawn by the seed: one that is not `taken`, where the space has another."""
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        genotype = space.random(rng)
        if genotype not in taken:
            break
    return genotype


# Trainings as what a race runs on.


class _Trainings:
    """Trains entrants and looks at them; a race that goes on trains and looks at none twice.

    Attributes:
      metric: what entrants are compared by.
      models: of each genotype that trained to the end over all seeds.
      errors: of each genotype whose training diverged, why.
    """

    def __init__(self, study: Study, workdir: Workdir, trainer: Trainer | None = None):
        self.study, self.workdir, self.trainer = study, workdir, trainer
        self.metric = metric_of(study)
        self.seed = study.config.retrain.seeds[0]
        self.models: dict[Genotype, Sequence[Model]] = {}
        self.errors: dict[Genotype, str] = {}
        identity = race_identity(study)
        saved = workdir.read(Looks, workdir.race)
        # Looks at models of other data, sizes or schedules say nothing of these.
        if saved is None or different(saved.identity, identity):
            saved = Looks(dict(identity), {})
        self.saved = saved

    def prepare(self, entrants: Sequence[Entrant], step: int | None = None) -> None:
        """See `Track`; without a trainer they train when they are looked at."""
        if self.trainer is None:
            return
        config = self.study.config.retrain
        seeds = tuple(config.seeds)
        if step is not None:
            seeds = (self.seed,)
        legs = []
        for entrant in entrants:
            for seed in seeds:
                leg = Leg(entrant.name, entrant.genotype, seed, step or config.steps)
                if not (self.has_diverged(entrant) or self._is_done(leg, step is None)):
                    self.workdir.name_training(entrant.genotype, entrant.name)
                    legs.append(leg)
        if legs:
            for leg, why in self.trainer.train(self.workdir, legs).items():
                self.errors[leg.genotype] = why

    def _is_done(self, leg: Leg, whole: bool) -> bool:
        """Whether a leg is behind its training, to the end or with a look."""
        if whole:
            return is_trained(self.study, self.workdir, leg.genotype, leg.seed)
        if self._saved_look(leg.genotype, leg.step) is not None:
            return True
        return read_look(self.study, self.workdir, leg.genotype, leg.step) is not None

    def look(self, entrant: Entrant, step: int) -> Look:
        """See `Track`; every look is kept in `race.json`."""
        look = self._saved_look(entrant.genotype, step)
        if look is not None:
            return look
        look = self._taken(entrant, step)
        key = genotype_key(entrant.genotype)
        looks = dict(self.saved.looks)
        looks[key] = (*looks.get(key, ()), look)
        self.saved = replace(self.saved, looks=looks)
        self.workdir.write(self.workdir.race, self.saved)
        return look

    def _saved_look(self, genotype: Genotype, step: int) -> Look | None:
        for look in self.saved.looks.get(genotype_key(genotype), ()):
            if look.step == step:
                return look
        return None

    def has_diverged(self, entrant: Entrant) -> bool:
        """Whether the training of an entrant came to a number that is not finite."""
        looks = self.saved.looks.get(genotype_key(entrant.genotype), ())
        return entrant.genotype in self.errors or any(look.diverged for look in looks)

    def _note(self, entrant: Entrant, error: Diverged) -> None:
        self.errors[entrant.genotype] = str(error)
        say(f"race: {entrant.name} is last: {error}")

    def require_finite(self, entrant: Entrant) -> None:
        """Raise `Diverged` where the training of an entrant did."""
        if self.has_diverged(entrant):
            why = f"the training of {entrant.name} diverged."
            raise Diverged(self.errors.get(entrant.genotype, why))

    def _taken(self, entrant: Entrant, step: int) -> Look:
        """A look that is not saved yet; a training that diverged does not go on."""
        if not self.has_diverged(entrant):
            try:
                return self._look(entrant, step)
            except Diverged as error:
                self._note(entrant, error)
        return Look(step, None, diverged=True)

    def _look(self, entrant: Entrant, step: int) -> Look:
        study, genotype = self.study, entrant.genotype
        if self.trainer is not None:
            self.prepare([entrant], step)
            look = read_look(study, self.workdir, genotype, step)
            if genotype in self.errors:
                raise Diverged(self.errors[genotype])
            if look is None:
                raise InputError(
                    f"there is no look at {entrant.name} after {step} steps in "
                    f"{self.workdir.looks_of(genotype, self.seed)}. Run the same command again."
                )
            self.workdir.record_seconds(seconds_spent(self.workdir, genotype, self.seed))
            return look
        arguments = study, self.workdir, genotype, entrant.name, self.seed
        if step < study.config.retrain.steps:
            # Of a training that has ended before, the last weights as well.
            weights = train_until(*arguments, step)
        else:
            weights = train(*arguments).weights
        return look_at(study, genotype, weights, step)

    def merit(self, look: Look) -> float:
        """See `Track`; an undefined score is the worst."""
        if look.score is None:
            return -math.inf
        return self.metric.objective({self.metric.name: look.score})

    def tied(self, ours: Look, theirs: Look) -> bool:
        """See `Track`; the examples are paired."""
        if ours.diverged or theirs.diverged:
            return False
        if self.metric.of_all:
            noise = paired_resamples(ours.array(), theirs.array())
            return abs(self.merit(ours) - self.merit(theirs)) <= noise
        gap, noise = paired(ours.array(), theirs.array())
        return abs(gap) <= noise

    def final_merit(self, entrant: Entrant) -> float:
        """See `Track`."""
        if self.has_diverged(entrant):
            return -math.inf
        try:
            models = self.trained(entrant)
        except Diverged as error:
            self._note(entrant, error)
            return -math.inf
        self.models[entrant.genotype] = models
        return mean([self.metric.objective(model.valid) for model in models])

    def trained(self, entrant: Entrant) -> list[Model]:
        """The models of all seeds; raises `Diverged` where one diverged."""
        genotype = entrant.genotype
        self.require_finite(entrant)
        if self.trainer is None:
            return retrain(self.study, self.workdir, genotype, entrant.name)
        models = []
        for seed in self.study.config.retrain.seeds:
            models.append(read_trained(self.study, self.workdir, genotype, seed))
            self.workdir.record_seconds(seconds_spent(self.workdir, genotype, seed))
        return models

    def affordable(self, genotype: Genotype) -> bool:
        """See `Track`."""
        return self.study.affordable(genotype)


def look_at(study: Study, genotype: Genotype, weights: Weights, step: int) -> Look:
    """How the weights of an entrant do on valid after `step` steps."""
    metric = metric_of(study)
    evaluation = study.program(genotype).evaluator.evaluate(weights, study.parts["valid"])
    examples = evaluation.examples["loss"]
    if metric.percent:
        examples = evaluation.examples["accuracy"]
    elif evaluation.answers is not None and metric.of_all:
        examples = scores.resampled(metric, evaluation.answers)
    score = evaluation.scores[metric.name]
    return Look(step, score, scores.pack(examples), evaluation.scores["loss"])


def read_look(study: Study, layout: Layout, genotype: Genotype, step: int) -> Look | None:
    """The look that the process of an entrant took after `step` steps; None where there is none."""
    seed = study.config.retrain.seeds[0]
    saved = layout.read(Looks, layout.looks_of(genotype, seed))
    if saved is None or different(saved.identity, race_identity(study)):
        return None
    for look in saved.looks.get(genotype_key(genotype), ()):
        if look.step == step:
            return look
    return None


def metric_of(study: Study) -> Metric:
    """What entrants are compared by."""
    if study.config.race.metric == "loss":
        return LOSS
    return study.metric


def race_identity(study: Study) -> Identity:
    """What the looks of a race belong to: the trainings, their seed, and the metric."""
    config = study.config
    settings = [metric_of(study).name, config.retrain.seeds[0]]
    return {**study.trainings_identity, "race": fingerprint(settings)}


# What is written.


class _Report:
    """What is kept of a race that is over."""

    def __init__(self, bracket: Bracket, trainings: _Trainings, winner: Entrant):
        self.bracket, self.trainings, self.winner = bracket, trainings, winner
        self.study, self.models = trainings.study, trainings.models
        self.metric = trainings.metric

    def outcome(self) -> Outcome:
        """The record, and the models by name."""
        bracket, config = self.bracket, self.study.config
        named: dict[str, Sequence[Model]] = {}
        for genotype, trained in self.models.items():
            for name in bracket.names[genotype]:
                named[name] = trained
        records = [self.entrant(entrant) for entrant in bracket.entrants.values()]
        seconds, share = self.cost()
        record = RaceRecord(
            metric=self.metric.name,
            rungs=tuple(bracket.rungs),
            steps=config.retrain.steps,
            seeds=tuple(config.retrain.seeds),
            entrants=tuple(records),
            winner=self.winner.name,
            ties=tuple(self.ties()),
            cuts=tuple(bracket.cuts),
            seconds=seconds,
            share=share,
            identity=dict(race_identity(self.study)),
        )
        return Outcome(record, self.winner.genotype, named)

    def entrant(self, entrant: Entrant) -> EntrantRecord:
        """The record of one entrant."""
        genotype = entrant.genotype
        looks = []
        for look in sorted(self.bracket.seen[genotype], key=lambda look: look.step):
            looks.append(replace(look, examples=None))
        if self.trainings.has_diverged(entrant) and not any(look.diverged for look in looks):
            # With another seed than the one that is looked at.
            looks.append(Look(self.study.config.retrain.steps, None, diverged=True))
        stopped_at = valid = None
        if genotype in self.models:
            valid = mean(self.scores(genotype))
        else:
            valid, stopped_at = looks[-1].score, looks[-1].step
        return EntrantRecord(
            name=entrant.name,
            names=tuple(self.bracket.names[genotype][1:]),
            genotype=GenotypeRecord.from_dict(genotype.to_dict()),
            looks=tuple(looks),
            valid=valid,
            finalist=genotype in self.models,
            stopped_at=stopped_at,
            outside_budget=not self.study.affordable(genotype),
            test=None,
        )

    def scores(self, genotype: Genotype) -> list[float]:
        """A finalist's valid scores, by seed."""
        return [model.valid[self.metric.name] for model in self.models[genotype]]

    def ties(self) -> list[str]:
        """A sentence for each finalist that is not told from the winner on valid."""
        if len(self.study.config.retrain.seeds) == 1:
            return self.ties_of_examples()
        winner = self.winner.genotype
        sentences = []
        for genotype in self.models:
            if genotype == winner:
                continue
            comparison, sentence = diagnostics.compare(
                str(winner),
                self.scores(winner),
                str(genotype),
                self.scores(genotype),
                examples=len(self.study.parts["valid"]),
                metric=self.metric,
            )
            if comparison.outcome == "undecided":
                sentences.append(sentence)
        return sentences

    def ties_of_examples(self) -> list[str]:
        """The ties where one seed has no spread: by the noise of the examples, which are paired."""
        steps = self.study.config.retrain.steps
        best = self.trainings.look(self.winner, steps)
        sentences = []
        for genotype in self.models:
            entrant = self.bracket.entrants[genotype]
            if genotype == self.winner.genotype:
                continue
            if self.trainings.tied(self.trainings.look(entrant, steps), best):
                sentences.append(
                    f"{self.winner.genotype} and {genotype} are within the noise of the examples"
                )
        return sentences

    def cost(self) -> tuple[float, float]:
        """Processor seconds of training, and their share of training all over all seeds.

        Programs are compiled apart: they are the same for a step and for a whole training.
        """
        spent = self.trainings.workdir.read_results().seconds or {}
        config = self.study.config.retrain
        seconds, whole = 0.0, 0.0
        for genotype in self.bracket.entrants:
            folder = training_folder(genotype)
            trained = 0.0
            for seed in config.seeds:
                trained += spent.get(f"{folder}/seed{seed}{PROCESSOR}", 0.0)
            steps = config.steps * len(config.seeds)
            taken = steps
            if genotype not in self.models:
                taken = max((look.step for look in self.bracket.seen[genotype]), default=steps)
            seconds += trained
            whole += trained * steps / taken
        if not whole:
            return seconds, 1.0
        return seconds, seconds / whole
