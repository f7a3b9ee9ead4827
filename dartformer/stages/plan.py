"""Plan: what a run will train, in words and as work of which a part is done."""

from collections.abc import Sequence
from typing import NamedTuple

from dartformer import cost
from dartformer.machine.progress import Whole, Work
from dartformer.space.search_space import SearchSpace
from dartformer.stages.race import entrants
from dartformer.stages.study import BACKWARD, Study


class Plan(NamedTuple):
    """What a run will do: a sentence, and the work of its stages."""

    sentence: str
    whole: Whole


def plan(study: Study, stages: Sequence[str]) -> Plan:
    """What the stages of a run will train. The numbers of a race are those of a usual one."""
    config = study.config
    work: dict[str, Work] = {}
    sentences = []
    trainings = 0
    searches = "search" in stages and study.strategy.traits.supernet
    if searches:
        steps, seeds = config.search.steps, config.search.seeds
        work["search"] = Work(steps * seeds, _search_cost(study))
        sentences.append(f"search {steps:,} steps{_times(seeds)}")
        trainings += seeds
    if "race" in stages:
        entering = len(entrants(study, {}))
        neighbours = 0
        if study.strategy.traits.supernet:
            entering += 1  # what the search derived
            neighbours = min(config.race.neighbours, _neighbours(study.space))
        whole = config.retrain.steps
        count, seeds = entering + neighbours, len(config.retrain.seeds)
        # Beside the finalists of the last rung, the random genotype trains to the end.
        finalists = min(config.race.finalists + config.baselines.random, count)
        work["race"] = Work(_race_steps(study, count, finalists), _training_cost(study))
        trainings += count + finalists * (seeds - 1)
        more = ""
        if neighbours:
            more = f" and up to {neighbours} neighbours of the best"
        sentences.append(
            f"race {entering} models{more} for up to {whole:,} steps, the finalists{_times(seeds)}"
        )
    if not sentences:
        sentences.append(", ".join(stages))
    return Plan(f"plan: {', then '.join(sentences)}", Whole(stages, work, trainings))


def _times(seeds: int) -> str:
    if seeds == 1:
        return " with one seed"
    return f" with each of {seeds} seeds"


def _neighbours(space: SearchSpace) -> int:
    """Genotypes that differ from one in one place."""
    rows, columns, candidates = space.alphas_shape
    return rows * columns * (candidates - 1)


def _training_cost(study: Study) -> float:
    """FLOPs of a training step on one example, the mean over the homogeneous models."""
    genotypes = study.space.homogeneous()
    total = sum(cost.flops(study.model, genotype) for genotype in genotypes)
    return BACKWARD * total / len(genotypes)


def _search_cost(study: Study) -> float:
    """FLOPs of a search step on one example: every candidate, for weights and alphas."""
    levels = 1
    if study.strategy.traits.halves:
        levels = 2
    return levels * len(study.space.candidates) * _training_cost(study)


def _race_steps(study: Study, count: int, finalists: int) -> float:
    """Steps of all trainings of a race of `count` models."""
    config = study.config
    whole, steps, going = config.retrain.steps, 0.0, float(count)
    before = 0.0
    for rung in config.race.rungs:
        steps += going * (rung - before) * whole
        before = rung
        going = max(going * config.race.keep, finalists)
    # The last rung leaves the finalists, the first of whose seeds has run so far.
    seeds = len(config.retrain.seeds)
    return steps + finalists * whole * (1 - before) + finalists * whole * (seeds - 1)
