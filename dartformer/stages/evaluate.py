"""Evaluate: the only stage that reads the test part, after everything is chosen.

It writes `results.json`, `test_scores.json` and `attention.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dartformer import cost, diagnostics
from dartformer.attention import to_text
from dartformer.machine.identity import Identity
from dartformer.results import (
    Baseline,
    Diagnostics,
    GenotypeRecord,
    ModelScores,
    Results,
    RuleScores,
    RuleTest,
    TestScores,
    ValidScores,
    Versus,
)
from dartformer.space.genotype import Genotype
from dartformer.stages import maps, scores
from dartformer.stages.layout import Workdir
from dartformer.stages.retrain import Model, best
from dartformer.stages.study import Study
from dartformer.statistics import mean, spread
from dartformer.tasks.base import Learns, majority
from dartformer.training.metric import ACCURACY, Metric

HOMOGENEOUS = "homogeneous."
"""Begins the name of a baseline of one attention everywhere."""

OURS = "the found model"


class Tested(NamedTuple):
    """A genotype's scores, and for each seed those of every test example."""

    scores: ModelScores
    examples: Sequence[Mapping[str, np.ndarray]]


def evaluate(
    study: Study,
    workdir: Workdir,
    models: Sequence[Model],
    baselines: Mapping[str, Sequence[Model]] | None = None,
) -> Results:
    """Score models and baselines on test, and put everything into `results.json`."""
    tested = {}
    by_genotype: dict[Genotype, Tested] = {}
    for name, trained in {"found": models, **(baselines or {})}.items():
        genotype = trained[0].genotype
        if genotype not in by_genotype:
            by_genotype[genotype] = _test(study, trained)
        tested[name] = by_genotype[genotype]
    ours = tested["found"].scores
    compared: dict[str, Baseline] = dict(_rules(study))
    for name in baselines or {}:
        compared[name] = tested[name].scores
    identity = evaluation_identity(study, models[0].genotype)
    if isinstance(study.task, Learns):
        workdir.record(data=study.task.facts(study.data_dir))
    per_example = {name: model.examples for name, model in tested.items()}
    workdir.write(workdir.test_scores, scores.record(study, per_example, identity))
    workdir.write(workdir.attention, maps.maps(study, best(models)))
    results = workdir.read_results()
    if results.diagnostics is not None:
        results = workdir.record(diagnostics=_with_ranking(study, results.diagnostics, compared))
    comparisons = versus(ours, compared, study.metric)
    return workdir.record(
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
        identity=dict(identity),
    )


def evaluation_identity(study: Study, genotype: Genotype) -> Identity:
    """What an evaluation of `genotype` belongs to."""
    test = scores.fingerprint(study.parts["test"])
    return {**study.training_identity(genotype), "test": test}


def _rules(study: Study) -> dict[str, RuleScores]:
    """Baselines that train no model."""
    train, test = study.parts["train"], study.parts["test"]
    values = {}
    if study.metric.name == "accuracy":
        values["majority"] = majority(train, test)
    values.update(study.task.baselines(train, test))
    return {name: RuleScores(RuleTest(study.metric.name, v)) for name, v in values.items()}


def _test(study: Study, models: Sequence[Model]) -> Tested:
    """Scores of a genotype trained for each seed."""
    metric, genotype = study.metric.name, models[0].genotype
    evaluator, part = study.program(genotype).evaluator, study.parts["test"]
    totals, examples = [], []
    for model in models:
        total, per_example = evaluator.evaluate(model.weights, part)
        totals.append(total)
        examples.append(per_example)
    per_seed = tuple(total[metric] for total in totals)
    valid = tuple(model.valid[metric] for model in models)
    loss = mean([total["loss"] for total in totals])
    return Tested(
        ModelScores(
            TestScores(metric, mean(per_seed), spread(per_seed), per_seed, loss, len(part)),
            ValidScores(metric, mean(valid), valid),
            cost.parameters(models[0].weights),
            cost.flops(study.model, genotype),
            study.config.retrain.steps,
            GenotypeRecord.from_dict(genotype.to_dict()),
        ),
        examples,
    )


def _with_ranking(
    study: Study, report: Diagnostics, baselines: Mapping[str, Baseline]
) -> Diagnostics:
    """The search's diagnostics with the agreement of its ranking and that of training alone."""
    # In the order of the space, so that of equal candidates always the same one is named.
    names = [to_text(genotype.layers[0][0]) for genotype in study.space.homogeneous()]
    sign = 1 if study.metric.higher else -1
    trained = {}
    for name in names:
        model = baselines.get(HOMOGENEOUS + name)
        if isinstance(model, ModelScores):
            trained[name] = [sign * value for value in model.valid.per_seed]
    if report.alone is None or len(trained) < len(names):
        return report
    supernet = {name: report.alone[name][study.metric.share] for name in names}
    finding = diagnostics.ranking(supernet, trained)
    earlier = [previous for previous in report.findings if previous.name != finding.name]
    findings = (*earlier, finding)
    return replace(report, findings=findings, verdicts=diagnostics.verdicts(findings))


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
        ("random", "a random genotype"),
        ("uniform_mixing", "all candidates mixed uniformly"),
    ):
        model = baselines.get(name)
        if isinstance(model, ModelScores):
            comparisons.append(_against(ours, OURS, name, words, model, metric))
    rule = _best_rule(baselines, metric)
    if rule is not None:
        comparisons.append(_against_rule(ours, rule, baselines[rule].test.mean, metric))
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
        sentence = f"{OURS} is the best homogeneous model ({attention} everywhere)"
        return Versus(name, "same", 0.0, None, sentence)
    subject, attentions = OURS, {head for heads in ours.genotype.layers for head in heads}
    if len(attentions) == 1:
        subject = f"{OURS}, which is homogeneous itself,"
    words = f"the best homogeneous model ({attention} everywhere)"
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


def _against_rule(ours: ModelScores, name: str, value: float, metric: Metric) -> Versus:
    """A rule has no seeds, and the gap to it is only reported."""
    difference = mean(ours.test.per_seed) - value
    where = "above" if difference >= 0 else "below"
    sentence = (
        f"{OURS} is {metric.gap(abs(difference))} {where} the rule {name!r} ({metric.text(value)})"
    )
    outcome = "better" if (difference > 0) == metric.higher else "worse"
    return Versus(name, outcome, difference, None, sentence)
