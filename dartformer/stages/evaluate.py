"""Evaluate: the only stage that reads the test part, after everything is chosen.

It writes `results.json`, `test_scores.json` and `attention.json`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from dartformer import cost, diagnostics
from dartformer.attention import to_text
from dartformer.data.answers import Answers, labels_of
from dartformer.errors import InputError
from dartformer.machine.identity import Identity
from dartformer.machine.progress import say
from dartformer.results import (
    SCHEMA,
    Baseline,
    Diagnostics,
    EntrantRecord,
    Finding,
    GenotypeRecord,
    ModelScores,
    RaceRecord,
    Results,
    RuleScores,
    RuleTest,
    TestScores,
    ValidScores,
    Versus,
)
from dartformer.space.genotype import Genotype
from dartformer.stages import answered, maps, scores
from dartformer.stages.bracket import ANSWER, HOMOGENEOUS, RANDOM, UNIFORM
from dartformer.stages.conclude import conclude
from dartformer.stages.layout import Workdir
from dartformer.stages.race import Outcome
from dartformer.stages.retrain import Model, best
from dartformer.stages.study import Study
from dartformer.statistics import mean, spread
from dartformer.tasks.base import Learns, Ruled, majority
from dartformer.training.metric import ACCURACY, Metric

BASELINES = (HOMOGENEOUS, RANDOM, UNIFORM)
"""Begin the names of baselines, which are kept where the found model is one of them."""

OURS = "the found model"


class Tested(NamedTuple):
    """A genotype's scores, and for each seed those of every test example.

    `answers` of each seed, where they are kept.
    """

    scores: ModelScores
    examples: Sequence[Mapping[str, np.ndarray]]
    answers: Sequence[Answers]


def evaluate(study: Study, workdir: Workdir, outcome: Outcome) -> Results:
    """Score the finalists of a race on test, and put everything into `results.json`."""
    models = _models_of(outcome)
    trained = _baselines(outcome)
    tested = _test_all(study, {"found": models, **trained})
    ours = tested["found"].scores
    compared: dict[str, Baseline] = dict(_rules(study))
    for name in trained:
        compared[name] = tested[name].scores
    workdir.record(race=_with_test(outcome.record, tested))
    identity = evaluation_identity(study, models[0].genotype)
    facts: Mapping[str, Any] = {}
    if isinstance(study.task, Learns):
        facts = study.task.facts(study.data_dir)
        workdir.record(data=dict(facts))
    per_example = {name: model.examples for name, model in tested.items()}
    workdir.write(workdir.test_scores, scores.record(study, per_example, identity))
    workdir.write(workdir.attention, maps.maps(study, best(models)))
    report = workdir.read_results().diagnostics
    if report is not None:
        # A label for each word leaves no choice of tokens.
        of_words = getattr(study.task, "kind", "") == "labelling"
        report = _with_unknown_tokens(report, facts, of_words)
        workdir.record(diagnostics=_with_ranking(study, report, outcome.record))
    comparisons = versus(ours, compared, study.metric)
    answers = None
    if tested["found"].answers:
        position = [model.seed for model in models].index(best(models).seed)
        answers = answered.record(study, tested["found"].answers[position], models[position].seed)
    evaluated = replace(
        workdir.read_results(),
        schema=SCHEMA,
        test=ours.test,
        valid=ours.valid,
        parameters=ours.parameters,
        flops=ours.flops,
        steps=ours.steps,
        genotype=ours.genotype,
        metric=study.metric.name,
        seeds=tuple(study.config.retrain.seeds),
        baselines=compared,
        versus=comparisons,
        verdict=tuple(comparison.sentence for comparison in comparisons),
        answers=answers,
        identity=dict(identity),
        limits=study.limits or None,
    )
    # Last and at once: scores without the comparisons would pass for a finished evaluation.
    results = replace(evaluated, conclusion=conclude(study, workdir, evaluated))
    workdir.write(workdir.results, results)
    return results


def _models_of(outcome: Outcome) -> Sequence[Model]:
    """The models of the genotype that is evaluated."""
    for models in outcome.models.values():
        if models[0].genotype == outcome.genotype:
            return models
    raise InputError(f"{outcome.genotype} is no finalist of the race.")


def _baselines(outcome: Outcome) -> dict[str, Sequence[Model]]:
    """The finalists by name, without what is only another name of the found model."""
    baselines = {}
    for name, models in outcome.models.items():
        if models[0].genotype != outcome.genotype or name.startswith(BASELINES):
            baselines[name] = models
    return baselines


def _with_test(record: RaceRecord, tested: Mapping[str, Tested]) -> RaceRecord:
    """The record of a race with the scores of its finalists on test."""
    means = {}
    for model in tested.values():
        means[model.scores.genotype] = model.scores.test.mean
    entrants = []
    for entrant in record.entrants:
        entrants.append(replace(entrant, test=means.get(entrant.genotype)))
    return replace(record, entrants=tuple(entrants))


def _test_all(study: Study, trained: Mapping[str, Sequence[Model]]) -> dict[str, Tested]:
    """Scores by name; of names that share a genotype, which was trained once, it is tested once."""
    tested = {}
    by_genotype: dict[Genotype, Tested] = {}
    for name, models in trained.items():
        genotype = models[0].genotype
        if genotype not in by_genotype:
            by_genotype[genotype] = _test(study, models)
        tested[name] = by_genotype[genotype]
    return tested


def evaluation_identity(study: Study, genotype: Genotype) -> Identity:
    """What an evaluation of `genotype` belongs to."""
    # The search's identity leaves test out, because a search must not read it.
    test = scores.fingerprint(study.parts["test"])
    return {**study.training_identity(genotype), "test": test}


def _rules(study: Study) -> dict[str, RuleScores]:
    """Baselines that train no Transformer."""
    rules = {}
    for name, value in rule_scores(study).items():
        rules[name] = RuleScores(RuleTest(study.metric.name, value))
    rules.update(_fitted_rules(study))
    return rules


def rule_scores(study: Study) -> dict[str, float]:
    """Test scores of simple rules that are counted on train."""
    train, test = study.baseline_train, study.parts["test"]
    if study.metric.name != study.task.traits.metric:
        # The rules of a task are scored by its own metric; the fitted rules are by any.
        return _constant_rule(study)
    values = {}
    if study.metric.name == "accuracy":
        values["majority"] = majority(train, test)
    # A task's own baseline may replace the majority class.
    values.update(study.task.baselines(train, test))
    return values


def _constant_rule(study: Study) -> dict[str, float]:
    """The test score, by the metric that decides, of one answer for all examples."""
    metric = study.metric
    if not metric.of_all:
        return {}
    labels, test = labels_of(study.baseline_train).values, labels_of(study.parts["test"])
    count = len(test.values)
    if metric.numbers:
        means = np.full(count, labels.mean(dtype=np.float64))
        return {"mean": metric.of_answers(Answers(means, test))}
    outputs = np.zeros((count, len(study.task.labels)))
    outputs[:, np.bincount(labels).argmax()] = 1
    return {"majority": metric.of_answers(Answers(outputs, test))}


def _fitted_rules(study: Study) -> dict[str, RuleScores]:
    """Test scores of the rules that a task fits on train and chooses on valid."""
    task, metric = study.fitted, study.metric
    if not isinstance(task, Ruled):
        return {}
    say("fitting plain rules, to compare with")

    def merit(answers: Answers) -> float:
        return metric.objective({metric.name: metric.of_answers(answers)})

    rules = {}
    for rule in task.plain_rules(study.baseline_train, study.parts["valid"], merit):
        values = answered.all_scores(study, rule.answers(study.parts["test"]))
        test = RuleTest(metric.name, values[metric.name], values)
        rules[rule.name] = RuleScores(test, rule.words, rule.seconds)
    return rules


def _test(study: Study, models: Sequence[Model]) -> Tested:
    """Scores of a genotype trained for each seed."""
    metric, genotype = study.metric.name, models[0].genotype
    evaluator, part = study.program(genotype).evaluator, study.parts["test"]
    per_seed, losses, valid, examples, answers = [], [], [], [], []
    for model in models:
        evaluation = evaluator.evaluate(model.weights, part)
        per_seed.append(evaluation.scores[metric])
        losses.append(evaluation.scores["loss"])
        valid.append(model.valid[metric])
        examples.append(evaluation.examples)
        if evaluation.answers is not None:
            answers.append(evaluation.answers)
    test = TestScores(
        metric,
        mean(per_seed),
        spread(per_seed),
        tuple(per_seed),
        mean(losses),
        len(part),
        _mean_scores(study, answers),
    )
    scored = ModelScores(
        test,
        ValidScores(metric, mean(valid), tuple(valid)),
        cost.parameters(models[0].weights),
        cost.flops(study.model, genotype),
        study.config.retrain.steps,
        GenotypeRecord.from_dict(genotype.to_dict()),
    )
    return Tested(scored, examples, answers)


def _mean_scores(study: Study, answers: Sequence[Answers]) -> dict[str, float] | None:
    """All scores, means over the seeds; None where no answers are kept."""
    if not answers:
        return None
    by_name: dict[str, list[float]] = {}
    for of_seed in answers:
        for name, value in answered.all_scores(study, of_seed).items():
            by_name.setdefault(name, []).append(value)
    return {name: mean(values) for name, values in by_name.items()}


def _with_ranking(study: Study, report: Diagnostics, race: RaceRecord) -> Diagnostics:
    """The search's diagnostics with the agreement of its ranking and that of training alone."""
    # The search's own scores are of the task's metric.
    if report.alone is None or race.metric != study.metric.name:
        return report
    entrants = {}
    for entrant in race.entrants:
        for name in (entrant.name, *entrant.names):
            entrants[name] = entrant
    # In the order of the space, so that of equal candidates always the same one is named.
    supernet, looks = {}, {}
    for genotype in study.space.homogeneous():
        name = to_text(genotype.layers[0][0])
        supernet[name] = report.alone[name][study.metric.share]
        # A ranking of some of the candidates would say little about the choice among all.
        if HOMOGENEOUS + name not in entrants:
            return report
        looks[name] = entrants[HOMOGENEOUS + name]
    # All of them were looked at after the first rung, if there is one.
    step = None
    if race.rungs:
        step = race.rungs[0]
    trained = {}
    for name, entrant in looks.items():
        # Valid on both sides: the question is how the supernet ranks, and test ranks nothing.
        score = _valid_after(entrant, step)
        if score is None:
            return report
        trained[name] = [study.metric.objective({study.metric.name: score})]
    return _with(report, diagnostics.ranking(supernet, trained, step))


def _valid_after(entrant: EntrantRecord, step: int | None) -> float | None:
    """An entrant's score on valid after a step; None for the step: at the end, over all seeds."""
    if step is None:
        return entrant.valid
    for look in entrant.looks:
        if look.step == step:
            return look.score
    return None


def _with_unknown_tokens(
    report: Diagnostics, facts: Mapping[str, Any], of_words: bool
) -> Diagnostics:
    """The search's diagnostics with the tokens that the model cannot read, where it has such."""
    shares = {}
    for part, counts in facts.items():
        if isinstance(counts, Mapping) and "unknown share" in counts:
            shares[part] = float(counts["unknown share"])
    if not shares:
        return report
    return _with(report, diagnostics.unknown_tokens(shares, of_words))


def _with(report: Diagnostics, finding: Finding) -> Diagnostics:
    """Diagnostics with another finding."""
    # An evaluation that is repeated replaces its finding.
    findings = []
    for previous in report.findings:
        if previous.name != finding.name:
            findings.append(previous)
    findings.append(finding)
    return replace(report, findings=tuple(findings), verdicts=diagnostics.verdicts(findings))


# How the found model compares.


def versus(
    ours: ModelScores, baselines: Mapping[str, Baseline], metric: Metric = ACCURACY
) -> tuple[Versus, ...]:
    """The found model against each kind of baseline."""
    comparisons = []
    homogeneous = _best_homogeneous(ours, baselines, metric)
    if homogeneous is not None:
        comparisons.append(_against_homogeneous(ours, homogeneous, baselines, metric))
    for name, words in (
        (ANSWER, "what the search derived"),
        ("random", "a random genotype"),
        ("uniform_mixing", "all candidates mixed uniformly"),
    ):
        model = baselines.get(name)
        if isinstance(model, ModelScores) and model.genotype != ours.genotype:
            comparisons.append(_against(ours, OURS, name, words, model, metric))
    rule = _best_rule(baselines, metric)
    if rule is not None:
        scored = baselines[rule]
        assert isinstance(scored, RuleScores)
        comparisons.append(_against_rule(ours, rule, scored, metric))
    return tuple(comparisons)


def _merit(metric: Metric, value: float) -> float:
    return metric.objective({metric.name: value})


def _best_homogeneous(
    ours: ModelScores, baselines: Mapping[str, Baseline], metric: Metric
) -> str | None:
    """The best homogeneous model on valid, as everything is chosen there; of equals the found one."""
    candidates = {}
    for name, model in baselines.items():
        if name.startswith(HOMOGENEOUS) and isinstance(model, ModelScores):
            same = model.genotype == ours.genotype
            candidates[name] = (_merit(metric, model.valid.mean), same)
    if not candidates:
        return None
    return max(candidates, key=candidates.__getitem__)


def _best_rule(baselines: Mapping[str, Baseline], metric: Metric) -> str | None:
    merits = {}
    for name, baseline in baselines.items():
        if isinstance(baseline, RuleScores):
            merits[name] = _merit(metric, baseline.test.mean)
    if not merits:
        return None
    return max(merits, key=merits.__getitem__)


def _against_homogeneous(
    ours: ModelScores, name: str, baselines: Mapping[str, Baseline], metric: Metric
) -> Versus:
    model = baselines[name]
    assert isinstance(model, ModelScores)
    attention = name.removeprefix(HOMOGENEOUS)
    if model.genotype == ours.genotype:
        sentence = f"{OURS} is the best homogeneous model on valid ({attention} everywhere)"
        return Versus(name, "same", 0.0, None, sentence)
    # The best is chosen on valid, so another may be ahead of it on test.
    subject, best, attentions = OURS, "best", set(itertools.chain(*ours.genotype.layers))
    if len(attentions) == 1:
        subject = f"{OURS}, which is homogeneous itself,"
        best = "best other"
    words = f"the {best} homogeneous model on valid ({attention} everywhere)"
    return _against(ours, subject, name, words, model, metric)


def _against(
    ours: ModelScores, subject: str, name: str, words: str, theirs: ModelScores, metric: Metric
) -> Versus:
    result, sentence = diagnostics.compare(
        subject,
        ours.test.per_seed,
        words,
        theirs.test.per_seed,
        examples=ours.test.examples,
        metric=metric,
    )
    return Versus(name, result.outcome, result.difference, result.noise, sentence)


def _against_rule(ours: ModelScores, name: str, rule: RuleScores, metric: Metric) -> Versus:
    """A rule has no seeds, and the gap to it is only reported."""
    value = rule.test.mean
    difference = mean(ours.test.per_seed) - value
    score = metric.text(value)
    if rule.words is not None and rule.seconds is not None:
        score += f": {rule.words}, {rule.seconds:.0f} s"
    if not math.isfinite(difference):
        sentence = (
            f"{OURS} and the rule {name!r} cannot be compared, because the {metric.title} is "
            f"undefined on test: it has a single row, or all its numbers are the same"
        )
        return Versus(name, "undecided", difference, None, sentence)
    if difference == 0:
        sentence = f"{OURS} scores the same as the rule {name!r} ({score})"
        return Versus(name, "undecided", difference, None, sentence)
    where, outcome = "below", "worse"
    if difference > 0:
        where = "above"
    if (difference > 0) == metric.higher:
        outcome = "better"
    sentence = f"{OURS} is {metric.gap(abs(difference))} {where} the rule {name!r} ({score})"
    return Versus(name, outcome, difference, None, sentence)
