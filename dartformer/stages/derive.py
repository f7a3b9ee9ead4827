"""Derive: from what each seed of a search found to one genotype, with ties and a second opinion."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import optax

from dartformer import derivations
from dartformer.attention import to_text
from dartformer.cost.budget import Budget
from dartformer.data.batches import batches
from dartformer.data.splits import Split, Subset
from dartformer.derivations import Derived, Trained
from dartformer.models.transformer import Weights
from dartformer.results import (
    BudgetAnswer,
    Derivation,
    DerivedSeeds,
    GenotypeRecord,
    Layers,
    SecondOpinion,
    SeedScores,
)
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace, everywhere
from dartformer.stages import budget as resolve_stage
from dartformer.stages import programs
from dartformer.stages.bracket import ANSWER
from dartformer.stages.layout import Workdir
from dartformer.stages.programs import mixed_step
from dartformer.stages.search import SearchResult, read_states
from dartformer.stages.study import Study
from dartformer.statistics import mean, spread
from dartformer.training import optimizer
from dartformer.training.loop import Stream
from dartformer.training.metric import decimals
from dartformer.training.step import CompiledStep, TrainState


def derive(result: SearchResult, workdir: Workdir) -> Derived:
    """Apply the config's rule to every seed, choose, and ask for a second opinion.

    Of several seeds the genotype found most often is taken; of equally frequent ones the one with
    the lowest valid loss, with the weights it inherits. Everything is chosen on valid. Writes
    `genotype.json`.
    """
    study = result.study
    config = study.config.derive
    trained = trained_seeds(result, workdir)
    rule = derivations.parse(config.rule)
    choices, genotypes, scores = [], [], []
    for supernet in trained:
        choice = rule(supernet)
        choices.append(choice)
        genotypes.append(choice.genotype)
        scores.append(_inherited(supernet, choice.genotype))
    answers = {}
    for seed, seed_genotype in zip(result.seeds, genotypes, strict=True):
        answers[f"seed {seed.seed}"] = seed_genotype
    chosen = _most_frequent(genotypes, scores)
    genotype, ties = genotypes[chosen], list(choices[chosen].ties)
    derivation = Derivation(config.rule, choices[chosen].details)
    if len(choices) > 1:
        ties += disagreements(study.space, genotypes)
        derivation = replace(derivation, seeds=_seeds(result, genotypes, scores, chosen))
    if config.second_opinion:
        another = derivations.parse(config.second_opinion)(trained[chosen])
        answers[config.second_opinion] = another.genotype
        opinion = _second_opinion(genotype, another, config.second_opinion)
        ties += opinion.differences
        derivation = replace(derivation, second_opinion=opinion)
    # Last, because it may replace the genotype that everything above is about.
    if study.budget is not None:
        inherits = _mean_inherited(trained)
        genotype, answer = resolve_stage.enforce(study, workdir, trained, genotype, inherits)
        derivation = replace(derivation, budget=answer)
        if not answer.kept:
            # The rule's ties are about a genotype that is not taken.
            ties = list(answer.ties)
    record = GenotypeRecord.from_dict(genotype.to_dict())
    derivation = replace(derivation, answers=_answers(study, genotype, answers))
    workdir.record(genotype=record, ties=tuple(ties), derive=derivation)
    # Last, because the stages take this file to say that derive is finished.
    workdir.write_genotype(genotype)
    return Derived(genotype, ties, derivation.to_dict())


def _answers(
    study: Study, genotype: Genotype, answers: Mapping[str, Genotype]
) -> dict[str, Layers]:
    """The chosen genotype first, and those of the other seeds and rules that are within budget."""
    layers = {ANSWER: GenotypeRecord.from_dict(genotype.to_dict()).layers}
    for name, answer in answers.items():
        if answer != genotype and study.affordable(answer):
            layers[name] = GenotypeRecord.from_dict(answer.to_dict()).layers
    return layers


def derive_within(result: SearchResult, workdir: Workdir, budget: Budget) -> BudgetAnswer:
    """The best genotype of a finished search within another budget, and the front over cost.

    Writes `budget.json` and `pareto.json`, and `genotype.json` where nothing has been trained from
    it yet; the answer says so in `written`.
    """
    study = result.study
    trained = trained_seeds(result, workdir)
    inherits = _mean_inherited(trained)
    answer = resolve_stage.resolve(study, workdir, trained, budget, inherits)
    # A training belongs to the genotype that is written, and another budget must not orphan it.
    if workdir.has_training():
        return replace(answer, written=False)
    record = GenotypeRecord(1, answer.genotype)
    genotype = Genotype.from_dict(record.to_dict())
    derivation = Derivation(
        f"budget: {budget}",
        {},
        budget=replace(answer, front=None),
        answers={ANSWER: answer.genotype},
    )
    workdir.record(genotype=record, ties=answer.ties, derive=derivation)
    workdir.write_genotype(genotype)
    return replace(answer, written=True)


def _most_frequent(genotypes: Sequence[Genotype], scores: Sequence[Mapping[str, float]]) -> int:
    """The number of the seed whose genotype is taken."""
    counts = Counter(genotypes)

    def order(i: int) -> tuple[int, float]:
        return -counts[genotypes[i]], scores[i].get("loss", 0.0)

    return min(range(len(genotypes)), key=order)


def _seeds(
    result: SearchResult,
    genotypes: Sequence[Genotype],
    scores: Sequence[Mapping[str, float]],
    chosen: int,
) -> DerivedSeeds:
    """What the seeds chose, and a sentence about it."""
    share, count = result.study.metric.share, Counter(genotypes)[genotypes[chosen]]
    per_seed, numbers, layers = [], [], []
    for seed, genotype, score in zip(result.seeds, genotypes, scores, strict=True):
        per_seed.append(score[share])
        numbers.append(seed.seed)
        layers.append(GenotypeRecord.from_dict(genotype.to_dict()).layers)
    valid = SeedScores(mean(per_seed), spread(per_seed), tuple(per_seed))
    verdict = (
        f"{count} of {len(genotypes)} seeds of the search found this genotype; with the supernets' "
        f"weights, the seeds' genotypes score {decimals(valid.mean)} on valid, spread "
        f"{decimals(valid.spread)} "
        f"({share})"
    )
    return DerivedSeeds(
        share,
        verdict,
        tuple(numbers),
        numbers[chosen],
        tuple(layers),
        count / len(genotypes),
        valid,
    )


def _second_opinion(genotype: Genotype, another: Derived, rule: str) -> SecondOpinion:
    """What another rule would choose, and a line for each layer where it differs."""
    differences = []
    for layer, heads in enumerate(genotype.layers):
        if heads != another.genotype.layers[layer]:
            theirs = another.genotype.describe_layer(layer)
            ours = genotype.describe_layer(layer)
            differences.append(f"layer {layer}: {rule} would choose {theirs}, not {ours}")
    return SecondOpinion(
        rule,
        GenotypeRecord.from_dict(another.genotype.to_dict()).layers,
        not differences,
        tuple(differences),
        tuple(another.ties),
        another.details,
    )


# What a derivation sees.


def trained_seeds(result: SearchResult, workdir: Workdir) -> list[Trained]:
    """What the rule sees of each seed."""
    study = result.study
    # A search without a supernet has one seed, and nothing to inherit.
    weights: list[Weights | None] = [None]
    if study.strategy.traits.supernet:
        weights = [state.weights for state in read_states(study, workdir)]
    # One for all seeds, which share its compiled steps.
    tune = fine_tuner(study)
    trained = []
    for seed, seed_weights in zip(result.seeds, weights, strict=True):
        trained.append(
            Trained(
                study.space,
                seed.mixture,
                seed_weights,
                evaluator_of(study),
                tune,
                # Apart from the streams that start from the seed alone, such as initial weights.
                np.random.default_rng([seed.seed, 1]),
                study.config.derive.tie_margin,
            )
        )
    return trained


def evaluator_of(
    study: Study,
) -> Callable[[Weights, np.ndarray, int | None], Mapping[str, np.ndarray]]:
    """(weights, mixture, examples) -> scores on the first `examples` of valid."""
    valid = study.parts["valid"]

    def evaluate(
        weights: Weights, mixture: np.ndarray, examples: int | None
    ) -> Mapping[str, np.ndarray]:
        part: Split = valid
        if examples is not None and examples < len(valid):
            part = Subset(valid, np.arange(examples))
        return study.supernet.evaluator.per_example(weights, part, mixture)

    return evaluate


def fine_tuner(study: Study) -> Callable[[Weights, np.ndarray, int, int], Weights]:
    """(weights, mixture, steps, seed) -> weights, trained further at a fixed mixture.

    On the part that the search trained them on.
    """
    data = study.config.data

    def program(steps: int) -> tuple[optax.GradientTransformation, CompiledStep[TrainState]]:
        chain = optimizer.build(optimizer.fine_tuning(study.config.search.weights), steps)
        step = mixed_step(study.supernet.network, chain, study.metric, data.accumulate)
        return chain, CompiledStep(step)

    def stream(seed: int) -> Stream:
        part = "train"
        if study.strategy.traits.halves:
            part = "weights"
        return batches(study.parts[part], data.batch_size, seed, data.buckets)

    return programs.fine_tuner(program, stream)


def _mean_inherited(trained: Sequence[Trained]) -> Callable[[Genotype], Mapping[str, float]]:
    """genotype -> valid loss and the metric, with inherited weights, the mean over seeds."""

    def inherits(genotype: Genotype) -> Mapping[str, float]:
        scores = [_inherited(supernet, genotype) for supernet in trained]
        means = {}
        for name in scores[0]:
            values = [score[name] for score in scores]
            means[name] = mean(values)
        return means

    return inherits


def _inherited(trained: Trained, genotype: Genotype) -> Mapping[str, float]:
    """Scores on valid of a genotype with the supernet's weights; empty where there is none."""
    if trained.weights is None:
        return {}
    mixture = trained.space.mixture(genotype)
    means = {}
    for name, values in trained.evaluate(trained.weights, mixture, None).items():
        means[name] = float(np.mean(values))
    return means


# Seeds that disagree.


def disagreements(space: SearchSpace, genotypes: Sequence[Genotype]) -> list[str]:
    """A line for each place where the seeds chose differently.

    For example "layer 1: the seeds chose full (2), linear (1)".
    """
    grids = [_texts(genotype) for genotype in genotypes]
    follows = [_follows(space, grid) for grid in grids]
    spread_out = not all(follows)
    if not spread_out:
        # Otherwise a rule chose in more places than were searched.
        grids = [space.free(grid) for grid in grids]
    lines = []
    for layer, head in np.ndindex(grids[0].shape):
        counts: Counter[str] = Counter()
        for grid in grids:
            counts[str(grid[layer, head])] += 1
        if len(counts) < 2:
            continue
        name = space.place_name((layer, head))
        if spread_out:
            name = f"layer {layer}, head {head}"
        choices = [f"{text} ({count})" for text, count in counts.most_common()]
        lines.append(f"{name}: the seeds chose {', '.join(choices)}")
    return lines


def _texts(genotype: Genotype) -> np.ndarray:
    """`[L, H]` texts of a genotype's attentions."""
    rows = []
    for heads in genotype.layers:
        rows.append(list(map(to_text, heads)))
    return np.array(rows)


def _follows(space: SearchSpace, grid: np.ndarray) -> bool:
    """Whether all layers and heads that share a row of the alphas have the same text."""
    return bool((everywhere(space.free(grid), grid.shape) == grid).all())
