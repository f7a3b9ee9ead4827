"""The models of a run: what each scored on test and what it costs."""

from collections.abc import Mapping
from typing import NamedTuple

from dartformer.report.reading import FOUND, Reading
from dartformer.results import Layers, ModelProfile, ModelScores, Results


class Score(NamedTuple):
    """The score of a model on test.

    Attributes:
      model: its name.
      mean: over the seeds.
      per_seed: for each seed its score; empty for a rule that trains nothing.
    """

    model: str
    mean: float
    per_seed: Mapping[int, float]


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
    for name, model in results.models.items():
        per_seed: dict[int, float] = {}
        if isinstance(model, ModelScores):
            per_seed = dict(zip(results.seeds or (), model.test.per_seed, strict=False))
        listed.append(Score(name, model.test.mean, per_seed))
    return listed


def priced(reading: Reading) -> list[Priced]:
    """Every trained model with its costs, as far as they are known.

    A baseline that is the found genotype is not repeated: it gives the found model its name.
    """
    trained = _trained(reading.results)
    profiles = _profiles(reading)
    same = []
    for name, model in trained.items():
        if name != FOUND and _same(model, trained[FOUND]):
            same.append(name)
    listed = []
    for name, model in trained.items():
        if name in same:  # two points at one place
            continue
        title = name
        if name == FOUND and same:
            title = f"{FOUND}, which is {same[0]}"
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
