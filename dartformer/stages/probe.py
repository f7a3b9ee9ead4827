"""Probe: what an attention can do, on small tasks that each need one ability.

The score is that of MAD (Poli et al. 2024, arXiv:2403.17844): the mean over the probes of the best
training. Each probe is trained by `retrain`, in a workdir of its own, and resumes as it does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dartformer import cost
from dartformer.attention import to_text
from dartformer.config import Config, from_dict, load_config, to_dict
from dartformer.errors import InputError, unknown
from dartformer.machine.record import Record
from dartformer.machine.workdir import write_json
from dartformer.models.mixers import require_all
from dartformer.models.sizes import TransformerConfig
from dartformer.results import Layers
from dartformer.space.genotype import Genotype
from dartformer.stages.layout import Workdir
from dartformer.stages.lengths import evaluate_at_lengths, require_any_length
from dartformer.stages.retrain import Model, best, retrain
from dartformer.stages.study import Study
from dartformer.statistics import mean

PROBES = (
    "context_recall",
    "noisy_recall",
    "fuzzy_recall",
    "selective_copying",
    "compression",
    "memorization",
    "recall",
    "updated_recall",
    "compositional_recall",
    "parity",
)
"""The probes of the suite: MAD's six, then Zoology's. All of them are scored by accuracy."""

SIZES = ("small", "published")

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
"""The search spaces of the package, which have the options of each size of a probe."""

FILE = "probes.json"
"""What the suite found, in its folder."""


@dataclass(frozen=True)
class ProbeScore(Record):
    """What a model scored on a probe.

    Attributes:
      probe: its task.
      length: of the examples that it was trained on.
      test: accuracy of the training that is best on valid.
      valid: of that training.
      rate: its learning rate.
      seed: its seed.
      per_training: the test accuracies of all trainings, by rate and then by seed.
      state_bytes: kept between tokens when decoding an example of that length.
      at_lengths: test accuracies of that training at more lengths; {} where none were named.
    """

    probe: str
    length: int
    test: float
    valid: float
    rate: float
    seed: int
    per_training: tuple[float, ...]
    state_bytes: float
    at_lengths: Mapping[str, float]


@dataclass(frozen=True)
class ProbedModel(Record):
    """A genotype on all probes.

    Attributes:
      name: in the report.
      genotype: its layers.
      score: mean of the test accuracies over the probes.
      state_bytes: kept between tokens when decoding, at the length of a probe, mean over them.
      parameters: mean over the probes, whose vocabularies differ.
      probes: what it scored on each.
    """

    name: str
    genotype: Layers
    score: float
    state_bytes: float
    parameters: float
    probes: tuple[ProbeScore, ...]


@dataclass(frozen=True)
class Probed(Record):
    """The suite's result.

    Attributes:
      size: "small" or "published".
      steps: of each training.
      seeds: of the trainings.
      rates: learning rates that were tried.
      models: the best first.
    """

    size: str
    steps: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    models: tuple[ProbedModel, ...]


def probe(
    config: Config,
    folder: str | Path,
    genotypes: Mapping[str, Genotype] | None = None,
    *,
    probes: Sequence[str] = PROBES,
    size: str = "small",
    rates: Sequence[float] = (),
    lengths: Sequence[int] = (),
) -> Probed:
    """Train genotypes on probes and score them; what is trained already is not trained again.

    Args:
      config: for the model's sizes, the candidates, and how to train.
      folder: of the suite; each probe and rate has a workdir in it.
      genotypes: by name; None for each candidate everywhere.
      probes: names of the suite.
      size: of the probes, "small" or "published".
      rates: learning rates to try; () for the config's.
      lengths: factors of the probe's length at which the best training is also tested.

    Raises:
      InputError: for an unknown probe or size, or what the config does not allow.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if not probes:
        raise InputError("there is no probe to train on. Name at least one.")
    for factor in lengths:
        if factor < 1:
            raise InputError(f"lengths are factors of at least 1, got {factor}.")
    rates = tuple(rates) or (config.retrain.optimizer.learning_rate,)
    if genotypes is None:
        genotypes = _homogeneous(config)
    # All configs before any training, so that what cannot be is said at once.
    configs = {}
    for name in probes:
        configs[name] = [config_of(config, name, size, rate) for rate in rates]
        for genotype in genotypes.values():
            _require_fit(configs[name][0].transformer, genotype, lengths)
    rows: dict[str, list[_Row]] = {name: [] for name in genotypes}
    for name, by_rate in configs.items():
        trained: dict[str, list[_Training]] = {model: [] for model in genotypes}
        for setting in by_rate:
            rate = setting.retrain.optimizer.learning_rate
            study = Study(setting)
            with Workdir(Path(folder) / name / f"rate{rate:g}", setting) as workdir:
                for model, genotype in genotypes.items():
                    trained[model] += _train(study, workdir, model, genotype)
        for model, trainings in trained.items():
            rows[model].append(_row(name, trainings, lengths))
    models = []
    for name, genotype in genotypes.items():
        models.append(_summary(name, genotype, rows[name]))
    models.sort(key=lambda model: -model.score)
    probed = Probed(size, config.retrain.steps, config.retrain.seeds, rates, tuple(models))
    write_json(Path(folder) / FILE, probed.to_dict())
    return probed


def _homogeneous(config: Config) -> dict[str, Genotype]:
    """Each candidate everywhere, by its text."""
    genotypes = {}
    for genotype in config.search_space.homogeneous():
        genotypes[to_text(genotype.layers[0][0])] = genotype
    return genotypes


def _require_fit(shape: TransformerConfig, genotype: Genotype, factors: Sequence[int]) -> None:
    """Raise `InputError` for a genotype that does not work in a model, or not at more lengths."""
    if (len(genotype.layers), genotype.heads) != (shape.layers, shape.heads):
        raise InputError(
            f"the genotype has {len(genotype.layers)} layers of {genotype.heads} heads, and the "
            f"model has {shape.layers} of {shape.heads}. Set model.layers and model.heads."
        )
    for heads in genotype.layers:
        require_all(heads, shape)
    if set(factors) - {1}:
        require_any_length(shape, genotype)


def config_of(config: Config, name: str, size: str, rate: float) -> Config:
    """The config of one probe: its task and the answers that it needs, and all else as it is."""
    if name not in PROBES:
        raise unknown("probe", name, PROBES)
    published = load_config(CONFIGS / f"{name}_{size}.py")
    data = to_dict(config)
    data["task"] = published.task.to_dict()
    # Compression is read from one vector; the others have an answer for every token.
    data["model"]["pooling"] = published.model.pooling
    data["model"]["classifier"] = published.model.classifier
    data["retrain"]["optimizer"]["learning_rate"] = rate
    return from_dict(data)


class _Training(NamedTuple):
    """One training of a model, with its accuracy on test."""

    model: Model
    rate: float
    test: float


class _Row(NamedTuple):
    """A model on one probe: its scores, and its parameters there."""

    score: ProbeScore
    parameters: int


def _train(study: Study, workdir: Workdir, name: str, genotype: Genotype) -> list[_Training]:
    """A training for each seed."""
    evaluator, part = study.program(genotype).evaluator, study.parts["test"]
    rate = study.config.retrain.optimizer.learning_rate
    trainings = []
    for model in retrain(study, workdir, genotype, f"{study.config.task.name} {name}"):
        accuracy = evaluator(model.weights, part)["accuracy"]
        trainings.append(_Training(model, rate, accuracy))
    return trainings


def _row(name: str, trainings: Sequence[_Training], factors: Sequence[int]) -> _Row:
    # Chosen on valid: the best on test would grow with the number of trainings alone.
    model = best([training.model for training in trainings])
    chosen = next(training for training in trainings if training.model is model)
    at_lengths = {}
    for factor in factors:
        length, accuracy = factor * model.shape.length, chosen.test
        if factor > 1:
            accuracy = evaluate_at_lengths(model, [length])[length]["accuracy"]
        at_lengths[str(length)] = accuracy
    score = ProbeScore(
        name,
        model.shape.length,
        chosen.test,
        model.valid["accuracy"],
        chosen.rate,
        model.seed,
        tuple(training.test for training in trainings),
        state_bytes(model),
        at_lengths,
    )
    return _Row(score, cost.parameters(model.weights))


def state_bytes(model: Model) -> float:
    """Bytes that a model keeps between tokens when it decodes one example of its full length."""
    total = 0.0
    for layer in range(model.shape.layers):
        total += cost.attention_cost(model.shape, model.genotype, layer).state_bytes
    return total


def _summary(name: str, genotype: Genotype, rows: Sequence[_Row]) -> ProbedModel:
    layers = tuple(tuple(heads) for heads in genotype.texts())
    return ProbedModel(
        name,
        layers,
        mean([row.score.test for row in rows]),
        mean([row.score.state_bytes for row in rows]),
        mean([row.parameters for row in rows]),
        tuple(row.score for row in rows),
    )
