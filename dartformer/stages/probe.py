"""Probe: what an attention can do, on small tasks that each need one ability.

The score is that of MAD (Poli et al. 2024, arXiv:2403.17844): the mean over the probes of the best
training. Each probe is trained by `retrain`, in a workdir of its own, and resumes as it does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from dartformer.stages.evaluate import rule_scores
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
class ProbeTask(Record):
    """What a probe asks, and what scores without a model.

    Attributes:
      probe: its task.
      length: of the examples that models are trained on.
      labels: number of different answers.
      chance: accuracy of answers drawn evenly from the labels.
      rules: test accuracies of simple rules, such as always the most frequent label.
    """

    probe: str
    length: int
    labels: int
    chance: float
    rules: Mapping[str, float]

    @property
    def best_rule(self) -> str:
        """The rule with the highest accuracy."""
        return max(self.rules, key=lambda rule: self.rules[rule])


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
      tasks: the probes.
      models: the best first.
    """

    size: str
    steps: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    tasks: tuple[ProbeTask, ...]
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
        if factor != int(factor) or factor < 1:
            raise InputError(f"lengths are whole factors of at least 1, got {factor}.")
    # A rate that is named twice is one training.
    rates = tuple(dict.fromkeys(map(float, rates))) or (config.retrain.optimizer.learning_rate,)
    if genotypes is None:
        genotypes = _homogeneous(config)
    if not genotypes:
        raise InputError("there is no genotype to train. Name at least one.")
    # All configs before any training, so that what cannot be is said at once.
    configs = {}
    for name in probes:
        configs[name] = [config_of(config, name, size, rate) for rate in rates]
        for genotype in genotypes.values():
            _require_fit(configs[name][0].transformer, genotype, lengths)
    programs = Programs(size)
    tasks: list[ProbeTask] = []
    rows: dict[str, list[_Row]] = {name: [] for name in genotypes}
    for name, by_rate in configs.items():
        trained: dict[str, list[_Training]] = {model: [] for model in genotypes}
        for setting in by_rate:
            study = programs.study(setting)
            rate = setting.retrain.optimizer.learning_rate
            with Workdir(Path(folder) / name / _folder_of(rate), setting) as workdir:
                for model, genotype in genotypes.items():
                    trained[model] += _train(study, workdir, model, genotype)
        tasks.append(_task(name, study))
        for model, trainings in trained.items():
            rows[model].append(_row(name, trainings, lengths))
        # After each probe: a suite that is stopped leaves the probes before.
        probed = _probed(size, config, rates, tasks, genotypes, rows)
        write_json(Path(folder) / FILE, probed.to_dict())
    return probed


def _probed(
    size: str,
    config: Config,
    rates: tuple[float, ...],
    tasks: Sequence[ProbeTask],
    genotypes: Mapping[str, Genotype],
    rows: Mapping[str, Sequence["_Row"]],
) -> Probed:
    """The result of the probes that are done."""
    models = []
    for name, genotype in genotypes.items():
        models.append(_summary(name, genotype, rows[name]))
    models.sort(key=lambda model: -model.score)
    steps, seeds = config.retrain.steps, config.retrain.seeds
    return Probed(size, steps, seeds, rates, tuple(tasks), tuple(models))


class Programs:
    """Compiled programs that all probes with examples of a length share.

    Compiling takes longer than training a small model on CPUs. At size "small" all probes therefore
    have as many tokens and labels as the one with the most; no example has the added ones.
    """

    def __init__(self, size: str) -> None:
        self.studies: dict[tuple[TransformerConfig, float], Study] = {}
        self.vocabulary = self.classes = 0
        if size == "small":
            # Of the whole suite, so that another choice of probes resumes the same trainings.
            for name in PROBES:
                shape = load_config(CONFIGS / f"{name}_{size}.py").transformer
                self.vocabulary = max(self.vocabulary, shape.vocabulary)
                self.classes = max(self.classes, shape.classes)

    def study(self, config: Config) -> Study:
        """A study whose programs are those of an earlier one where the models are alike."""
        study = Study(config)
        vocabulary = max(self.vocabulary, study.model.vocabulary)
        classes = max(self.classes, study.model.classes)
        study.model = replace(study.model, vocabulary=vocabulary, classes=classes)
        rate = config.retrain.optimizer.learning_rate
        twin = self.studies.setdefault((study.model, rate), study)
        study.share_programs(twin)
        return study


def _task(name: str, study: Study) -> ProbeTask:
    """A probe with the scores of its rules."""
    labels = study.task.classes
    return ProbeTask(name, study.task.length, labels, 1 / labels, rule_scores(study))


def _folder_of(rate: float) -> str:
    """With all digits: two rates never share a folder."""
    return f"rate{rate!r}"


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
