"""The models of a run: what each scored on test and what it costs."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from dartformer.report.reading import FOUND, SEARCH, Curve, Reading
from dartformer.results import Baseline, Layers, ModelProfile, ModelScores, Results, TestScores
from dartformer.stages.bracket import ANSWER, HOMOGENEOUS, RANDOM, UNIFORM
from dartformer.stages.conclude import rule_title, short_name
from dartformer.statistics import binomial, welch
from dartformer.training import metric

TITLES = {
    ANSWER: "derived by the search",
    UNIFORM: "all candidates mixed evenly",
    "majority": "most frequent class",
    "mean": "mean of train",
}
"""Models and rules whose names in `results.json` do not say what they are."""


def title_of(name: str) -> str:
    """The name of a model in words: "linear everywhere" for "homogeneous.linear"."""
    if name.startswith(HOMOGENEOUS):
        return f"{name.removeprefix(HOMOGENEOUS)} everywhere"
    if re.fullmatch(rf"{RANDOM}( \d+)?", name):
        return name.replace(RANDOM, "random genotype")
    return TITLES.get(name, name)


def titles(results: Results) -> dict[str, str]:
    """The titles of all models and rules, by name; of the found one with its genotype."""
    named = {}
    for name, model in results.models.items():
        title = title_of(name)
        if not isinstance(model, ModelScores) and title == name:
            title = rule_title(name)
        named[name] = title
    if results.found is not None:
        named[FOUND] = f"{FOUND}: {short_name(results.found.genotype.layers)}"
    return named


def trained_curves(reading: Reading) -> list[Curve]:
    """The curves of the trainings, by the titles of their models."""
    listed = []
    for curve in reading.curves:
        if curve.model != SEARCH:
            listed.append(replace(curve, model=title_of(curve.model)))
    return listed


def search_curves(reading: Reading) -> list[Curve]:
    """The curves of the search."""
    return [curve for curve in reading.curves if curve.model == SEARCH]


class Score(NamedTuple):
    """The score of a model on test.

    Attributes:
      model: its title.
      mean: over the seeds.
      per_seed: for each seed its score; empty for a rule that trains nothing.
      error: half of the 95% interval of the mean; None where it is unknown.
      rule: whether it is a rule.
    """

    model: str
    mean: float
    per_seed: Mapping[int, float]
    error: float | None = None
    rule: bool = False


class Priced(NamedTuple):
    """A model with its score and what it costs.

    Attributes:
      model: its name.
      score: on test.
      costs: by what is counted; None where it is unknown.
    """

    model: str
    score: float
    costs: Mapping[str, float | None]


def scores(results: Results) -> list[Score]:
    """The scores of all models, the found one first; empty before evaluation."""
    listed = []
    named = titles(results)
    percent = metric.find(results.measure).percent
    for name, model in distinct(results).items():
        if isinstance(model, ModelScores):
            per_seed = dict(zip(results.seeds or (), model.test.per_seed, strict=False))
            error = error_of(model.test, percent)
            listed.append(Score(named[name], model.test.mean, per_seed, error))
        else:
            listed.append(Score(named[name], model.test.mean, {}, rule=True))
    return listed


def distinct(results: Results) -> dict[str, Baseline]:
    """All models and rules by name, the found one first, without other names of the found one."""
    listed = {}
    found = results.found
    for name, model in results.models.items():
        is_found = isinstance(model, ModelScores) and found is not None and _same(model, found)
        if name == FOUND or not is_found:
            listed[name] = model
    return listed


def error_of(test: TestScores, percent: bool) -> float | None:
    """Half of the 95% interval of a mean score over the seeds.

    Of one seed, and a score that is a share of right answers, over the examples.
    """
    error = math.nan
    if len(test.per_seed) > 1:
        # Against a number without noise, the interval of a difference is that of the mean.
        error = welch(test.per_seed, [test.mean] * 2)
    elif percent:
        error = binomial(test.mean, 0.0, test.examples)
    if not math.isfinite(error):
        return None
    return error


def priced(reading: Reading) -> list[Priced]:
    """Every trained model with its costs, as far as they are known.

    A baseline that is the found genotype is not repeated.
    """
    trained, named = _trained(reading.results), titles(reading.results)
    profiles = _profiles(reading)
    same = []
    for name, model in trained.items():
        if name != FOUND and _same(model, trained[FOUND]):
            same.append(name)
    listed = []
    for name, model in trained.items():
        if name in same:  # two points at one place
            continue
        title = named[name]
        costs = _costs(model, profiles.get(model.genotype.layers))
        listed.append(Priced(title, model.test.mean, costs))
    return listed


def _trained(results: Results) -> dict[str, ModelScores]:
    """The models that were trained, by name."""
    trained = {}
    for name, model in results.models.items():
        # The majority class is a rule, with neither a genotype nor a cost.
        if isinstance(model, ModelScores):
            trained[name] = model
    return trained


def _same(a: ModelScores, b: ModelScores) -> bool:
    return a.genotype.layers == b.genotype.layers


def _profiles(reading: Reading) -> dict[Layers, ModelProfile]:
    """What was measured of the models of a run, by genotype."""
    if reading.profile is None:
        return {}
    return {model.genotype: model for model in reading.profile.models}


def _costs(model: ModelScores, profile: ModelProfile | None) -> dict[str, float | None]:
    """The costs of a model, in the words of the axis that shows them."""
    latency = memory = None  # which are known of models that were profiled
    if profile is not None:
        memory = profile.attention_activation_bytes
        if profile.latency_seconds is not None:
            latency = 1e3 * profile.latency_seconds.median
    return {
        "FLOPs of a forward pass": model.flops,
        "parameters": model.parameters,
        "latency, ms": latency,
        "bytes of the attentions' activations": memory,
    }
