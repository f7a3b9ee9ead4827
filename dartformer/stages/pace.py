"""Pace: how long a run takes on this machine, from steps that are timed."""

import math
from collections.abc import Callable
from typing import NamedTuple

from dartformer.cost.analytic import flops
from dartformer.cost.measure import WARM_UPS, clock, model
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.race import entrants
from dartformer.stages.study import Study

OVERHEAD = 1.3
"""A training's seconds over those of its gradients: the optimizer, batches, metrics."""

SHARED_STEP = 1.21
SHARED_COMPILE = 1.6
"""What one program for all models costs, in steps and compilations of a model's own
(experiments/benchmarks/programs.py)."""

FORWARD = 1 / 3
"""A forward pass, in training steps."""

MIXTURE = 0.45
"""A step of the supernet, in training steps of all candidates."""

LEVELS = 1.67
"""Steps of the supernet that a step of weights and alphas takes, the warm-up included."""

REPEATS = 5
"""How often a step is timed."""


class Work(NamedTuple):
    """What a run trains.

    Attributes:
      search: steps of the supernet over those of a training; 0 without a supernet.
      entrants: models that race.
      neighbours: genotypes that enter because they differ from an answer in one place, at most.
      finalists: models that train to the end over all seeds, at most.
      trainings: steps of all models over those of one training.
      evaluations: of models on valid, beside those of each training.
    """

    search: float
    entrants: int
    neighbours: int
    finalists: int
    trainings: float
    evaluations: float


class Pace(NamedTuple):
    """Seconds on this machine.

    Attributes:
      step: of a training.
      compile: of one model's program.
    """

    step: float
    compile: float


def work(study: Study) -> Work:
    """What a run of a study trains.

    How many models tie is not known before: a race is counted with the most finalists.
    """
    config, space = study.config, study.space
    searches = study.strategy.traits.supernet
    entered = entrants(study, {})
    compared, answers, neighbours = len(entered), 0, 0
    search = 0.0
    if searches:
        # The second opinion often agrees with the rule.
        answers = 1
        search = config.search.steps / config.retrain.steps
        if space.granularity != "model":
            neighbours = min(config.race.neighbours, _neighbours(space))
    trainings, looks, before = 0.0, 0, 0.0
    racing = compared + neighbours
    for rung in config.race.rungs:
        trainings += (racing + answers) * (rung - before)
        looks += racing + answers
        # What the search derived goes on in any case.
        racing, before = math.ceil(config.race.keep * racing), rung
    count = compared + answers + neighbours
    finalists = count
    if config.race.rungs:
        references = sum(entrant.reference for entrant in entered)
        finalists = min(count, config.race.finalists + references)
    trainings += finalists * (len(config.retrain.seeds) - before)
    return Work(search, compared + answers, neighbours, finalists, trainings, looks)


def _neighbours(space: SearchSpace) -> int:
    """Genotypes that differ from one in one place."""
    rows, columns, candidates = space.alphas_shape
    return rows * columns * (candidates - 1)


def measure(study: Study) -> Pace:
    """Time a gradient of the homogeneous models with the fewest and with the most operations."""
    genotypes = study.space.homogeneous()

    def operations(genotype: Genotype) -> float:
        return flops(study.model, genotype)

    seconds, compile_seconds = 0.0, 0.0
    for genotype in (min(genotypes, key=operations), max(genotypes, key=operations)):
        started = clock()
        measured = model(
            study.model,
            genotype,
            batch=study.config.data.batch_size,
            phase="train",
            repeats=REPEATS,
        )
        step = measured.seconds.median
        compile_seconds += clock() - started - (REPEATS + WARM_UPS) * step
        seconds += step
    return Pace(OVERHEAD * seconds / 2, compile_seconds / 2)


def seconds_of(study: Study, pace: Pace, valid: int) -> Callable[[int], float]:
    """steps -> seconds of a run of the study with so many steps a training.

    Args:
      study: a config with any number of steps.
      pace: of its models.
      valid: examples of valid.
    """
    config, amount = study.config, work(study)
    step, compile_seconds = pace.step, pace.compile * (amount.entrants + amount.neighbours)
    if study.shares_program:
        step, compile_seconds = SHARED_STEP * pace.step, SHARED_COMPILE * pace.compile
    supernet = LEVELS * MIXTURE * len(study.space.candidates) * pace.step
    if amount.search:
        compile_seconds += SHARED_COMPILE * pace.compile * LEVELS
    scored = valid / config.data.batch_size * FORWARD * step
    # Those of a training come at fixed shares of its steps.
    each = config.retrain.steps / config.log.eval_every
    evaluations = amount.evaluations + each * amount.trainings

    def seconds(steps: int) -> float:
        trained = steps * (amount.trainings * step + amount.search * supernet)
        return compile_seconds + trained + evaluations * scored

    return seconds
