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

import numpy as np

from dartformer import diagnostics
from dartformer.attention import parse, to_text
from dartformer.errors import InputError, unknown
from dartformer.machine.identity import Identity, different, fingerprint, require_same
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
from dartformer.stages.layout import Workdir, genotype_key, training_folder
from dartformer.stages.retrain import Model, retrain, train, train_until
from dartformer.stages.study import Study
from dartformer.statistics import mean, paired, paired_resamples
from dartformer.strategies import Race
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


def race(
    study: Study,
    workdir: Workdir,
    answers: Mapping[str, Genotype],
    mixture: np.ndarray | None = None,
    *,
    decides: bool = True,
) -> Outcome:
    """Race the answers of a search against what `baselines` names and the answers' neighbours.

    Args:
      study: of the config.
      workdir: keeps the trainings, and every look at them in `race.json`.
      answers: what the search derived, by name; the first is the one to improve on.
      mixture: `[L, H, K]` of the search, which says which neighbours are closest; None: the order
        of the space.
      decides: whether another entrant than the first answer may win, and neighbours enter.

    Raises what `fit` raises; a race goes on where it stopped.
    """
    config, trainings = study.config, _Trainings(study, workdir)
    bracket = Bracket(
        study.space, config.race, config.retrain.steps, trainings, mixture, decides=decides
    )
    for entrant in entrants(study, answers):
        bracket.enter(entrant)
    finals = bracket.run()
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


def finish(study: Study, workdir: Workdir, names: Sequence[str]) -> RaceRecord:
    """Train entrants that stopped to the end over all seeds, and score them on valid.

    Args:
      study, workdir: of the race.
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
    finished = []
    for entrant in record.entrants:
        if entrant.name in selected and entrant.stopped_at is not None:
            genotype = Genotype.from_dict(entrant.genotype.to_dict())
            models = retrain(study, workdir, genotype, entrant.name)
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
    """

    def __init__(self, study: Study, workdir: Workdir):
        self.study, self.workdir = study, workdir
        self.metric = metric_of(study)
        self.seed = study.config.retrain.seeds[0]
        self.models: dict[Genotype, Sequence[Model]] = {}
        identity = race_identity(study)
        saved = workdir.read(Looks, workdir.race)
        # Looks at models of other data, sizes or schedules say nothing of these.
        if saved is None or different(saved.identity, identity):
            saved = Looks(dict(identity), {})
        self.saved = saved

    def look(self, entrant: Entrant, step: int) -> Look:
        """See `Track`; every look is kept in `race.json`."""
        key = genotype_key(entrant.genotype)
        for look in self.saved.looks.get(key, ()):
            if look.step == step:
                return look
        look = self._look(entrant, step)
        looks = dict(self.saved.looks)
        looks[key] = (*looks.get(key, ()), look)
        self.saved = replace(self.saved, looks=looks)
        self.workdir.write(self.workdir.race, self.saved)
        return look

    def _look(self, entrant: Entrant, step: int) -> Look:
        study, genotype = self.study, entrant.genotype
        arguments = study, self.workdir, genotype, entrant.name, self.seed
        if step < study.config.retrain.steps:
            # Of a training that has ended before, the last weights as well.
            weights = train_until(*arguments, step)
        else:
            weights = train(*arguments).weights
        evaluation = study.program(genotype).evaluator.evaluate(weights, study.parts["valid"])
        examples = evaluation.examples["loss"]
        if self.metric.percent:
            examples = evaluation.examples["accuracy"]
        elif evaluation.answers is not None and self.metric.of_all:
            examples = scores.resampled(self.metric, evaluation.answers)
        score = evaluation.scores[self.metric.name]
        return Look(step, score, scores.pack(examples), evaluation.scores["loss"])

    def merit(self, look: Look) -> float:
        """See `Track`; an undefined score is the worst."""
        if look.score is None:
            return -math.inf
        return self.metric.objective({self.metric.name: look.score})

    def tied(self, ours: Look, theirs: Look) -> bool:
        """See `Track`; the examples are paired."""
        if self.metric.of_all:
            noise = paired_resamples(ours.array(), theirs.array())
            return abs(self.merit(ours) - self.merit(theirs)) <= noise
        gap, noise = paired(ours.array(), theirs.array())
        return abs(gap) <= noise

    def final_merit(self, entrant: Entrant) -> float:
        """See `Track`."""
        models = retrain(self.study, self.workdir, entrant.genotype, entrant.name)
        self.models[entrant.genotype] = models
        return mean([self.metric.objective(model.valid) for model in models])

    def affordable(self, genotype: Genotype) -> bool:
        """See `Track`."""
        return self.study.affordable(genotype)


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
                taken = max(look.step for look in self.bracket.seen[genotype])
            seconds += trained
            whole += trained * steps / taken
        if not whole:
            return seconds, 1.0
        return seconds, seconds / whole
