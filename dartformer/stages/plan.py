"""Plan: what a run will train, in words and as work of which a part is done."""

from collections.abc import Sequence
from typing import NamedTuple

from dartformer import cost
from dartformer.machine.progress import Whole, Work
from dartformer.stages import pace
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
        amount, whole = pace.work(study), config.retrain.steps
        seeds = len(config.retrain.seeds)
        work["race"] = Work(amount.trainings * whole, _training_cost(study))
        trainings += amount.entrants + amount.neighbours + amount.finalists * (seeds - 1)
        entering, neighbours = amount.entrants, amount.neighbours
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
