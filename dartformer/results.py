"""Every record that a run writes or shows: its keys, their types and what they mean."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from dartformer.accelerators import devices
from dartformer.errors import InputError
from dartformer.machine.record import Place, Plain, Record

SCHEMA, UNVERSIONED = 1, 0
"""Of `results.json`. A file without the key `schema` was written before there was one."""

Scores = Mapping[str, float]
"""`{"loss", "accuracy"}` (or "r2"; of language also "bits_per_character") of a model."""

Layers = tuple[tuple[str, ...], ...]
"""A genotype as texts: `layers[l][h]` is the attention of head h in layer l."""


@dataclass(frozen=True)
class GenotypeRecord(Record):
    """A genotype as texts, which a report can show even where a plug-in is not installed.

    Attributes:
      format: of the genotype, 1.
      layers: layers of heads of attentions.
    """

    format: int
    layers: Layers


@dataclass(frozen=True)
class SeedScores(Record):
    """A score over seeds.

    Attributes:
      mean: over the seeds.
      spread: sample standard deviation; null with one seed.
      per_seed: in the order of the seeds.
    """

    mean: float
    spread: float
    per_seed: tuple[float, ...]


@dataclass(frozen=True)
class TestScores(Record):
    """Scores of a trained model on test.

    Attributes:
      metric: the key of the score in the file: "accuracy", "r2" or "bits_per_character".
      mean: the score, mean over the seeds.
      spread: sample standard deviation over the seeds; null with one seed.
      per_seed: in the order of the seeds.
      loss: mean over the seeds.
      examples: size of the test part.
      scores: all scores by name, means over the seeds.
    """

    by_metric: ClassVar[Mapping[str, str]] = {"mean": "{}"}
    __test__: ClassVar[bool] = False  # pytest would take the name for a test

    metric: str
    mean: float
    spread: float
    per_seed: tuple[float, ...]
    loss: float
    examples: int
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class ValidScores(Record):
    """Scores of a trained model on valid.

    Attributes:
      metric: the key of the score in the file.
      mean: the score, mean over the seeds.
      per_seed: in the order of the seeds.
    """

    by_metric: ClassVar[Mapping[str, str]] = {"mean": "{}"}

    metric: str
    mean: float
    per_seed: tuple[float, ...]


@dataclass(frozen=True)
class RuleTest(Record):
    """The score on test of a rule that trains no model, such as the majority class.

    Attributes:
      metric: the key of the score in the file.
      mean: the score.
      scores: all scores by name.
    """

    by_metric: ClassVar[Mapping[str, str]] = {"mean": "{}"}

    metric: str
    mean: float
    scores: dict[str, float] | None = None


@dataclass(frozen=True)
class RuleScores(Record):
    """A baseline that trains no Transformer.

    Attributes:
      test: its score on test.
      words: what a rule is that was fitted, with what was chosen for it on valid.
      seconds: that fitting and choosing took.
    """

    test: RuleTest
    words: str | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class ModelScores(Record):
    """A genotype trained for every seed.

    Attributes:
      test: scores on test.
      valid: scores on valid, of the checkpoints that were kept.
      parameters: of the whole model.
      flops: of a forward pass on one example.
      steps: of each training.
      genotype: what was trained.
    """

    test: TestScores
    valid: ValidScores
    parameters: int
    flops: float
    steps: int
    genotype: GenotypeRecord


Baseline = ModelScores | RuleScores


@dataclass(frozen=True)
class Finding(Record):
    """One number about a search, compared with a threshold.

    Attributes:
      name: what was measured.
      value: the number; null where there is none.
      threshold: its limit; null where there is none.
      source: where the threshold comes from.
      fine: true, false for a warning, null where it cannot be judged.
      verdict: a sentence.
    """

    name: str
    value: float | None
    threshold: float | None
    source: str
    fine: bool | None
    verdict: str


@dataclass(frozen=True)
class SearchSeeds(Record):
    """How far the seeds of a search agree.

    Attributes:
      metric: the score that is compared.
      valid_discrete: scores on valid of each seed's supernet at its largest weights.
      agreement: share of the seeds that choose the most frequent candidate, in the worst layer or
        head; null with one seed.
    """

    by_metric: ClassVar[Mapping[str, str]] = {"valid_discrete": "valid_discrete_{}"}

    metric: str
    valid_discrete: SeedScores
    agreement: float | None


@dataclass(frozen=True, eq=False)
class Diagnostics(Record):
    """What a search says about itself.

    Attributes:
      findings: numbers with thresholds.
      verdicts: the sentences of the findings that warn, or one that says that none does.
      entropy: of each row of the mixture, as a share of the maximum, mean over the seeds.
      margin: between the two largest weights of each row, mean over the seeds.
      valid_soft: scores on valid of the supernet at its mixture.
      alone: scores on valid of the supernet with one candidate everywhere, by candidate.
      valid_discrete: scores on valid of the supernet at the largest weights.
      discretisation_gap: `valid_soft` minus `valid_discrete`.
      seeds: how far the seeds agree.
      branch_rms: root mean square of each branch's output, layers by candidates.
      branch_gradient: gradient norm of each branch's queries and keys, layers by candidates.
      curvature: dominant eigenvalue of the loss in the architecture weights.
    """

    findings: tuple[Finding, ...]
    verdicts: tuple[str, ...]
    entropy: np.ndarray | None = None
    margin: np.ndarray | None = None
    valid_soft: dict[str, float] | None = None
    alone: dict[str, dict[str, float]] | None = None
    valid_discrete: dict[str, float] | None = None
    discretisation_gap: float | None = None
    seeds: SearchSeeds | None = None
    branch_rms: np.ndarray | None = None
    branch_gradient: np.ndarray | None = None
    curvature: float | None = None


@dataclass(frozen=True)
class DerivedSeeds(Record):
    """What the seeds of a search chose.

    Attributes:
      metric: the score of `valid`.
      verdict: a sentence.
      seeds: their numbers.
      chosen: the seed whose genotype was taken.
      genotypes: of each seed, as layers.
      agreement: share of the seeds that found the chosen genotype.
      valid: scores of each seed's genotype with inherited weights.
    """

    by_metric: ClassVar[Mapping[str, str]] = {"valid": "valid_{}"}

    metric: str
    verdict: str
    seeds: tuple[int, ...]
    chosen: int
    genotypes: tuple[Layers, ...]
    agreement: float
    valid: SeedScores


@dataclass(frozen=True)
class SecondOpinion(Record):
    """What another rule would choose.

    Attributes:
      rule: the other rule.
      genotype: its choice, as layers.
      agrees: whether it is the same.
      differences: a line for each layer that differs.
      ties: of the other rule.
      details: what else the other rule reports.
    """

    open_field: ClassVar[str] = "details"

    rule: str
    genotype: Layers
    agrees: bool
    differences: tuple[str, ...]
    ties: tuple[str, ...]
    details: dict[str, Plain]


@dataclass(frozen=True)
class Limit(Record):
    """One limit of a budget.

    Attributes:
      quantity: such as "latency_ms" or "flops".
      limit: the budget.
      predicted: cost of the genotype by its prices.
      measured: cost of the model on this device; null where it is not measured.
      aimed: the limit the programme was solved for, tighter where the first model was above it.
      slack: what is left; negative above the limit.
      met: whether the genotype is within it.
    """

    quantity: str
    limit: float
    predicted: float
    measured: float | None
    aimed: float
    slack: float
    met: bool


@dataclass(frozen=True)
class FrontPoint(Record):
    """One genotype of the front of score over cost.

    Attributes:
      metric: the key of the score in the file.
      cost: in the first quantity of the budget.
      score: on valid, with inherited weights.
      loss: on valid, with inherited weights.
      genotype: as layers.
      text: the genotype in short.
      name: of a homogeneous genotype, its attention; otherwise null.
      chosen: whether it is the answer.
      front: whether no cheaper genotype scores as well.
    """

    by_metric: ClassVar[Mapping[str, str]] = {"score": "{}"}

    metric: str
    cost: float
    score: float
    loss: float
    genotype: Layers
    text: str
    name: str | None
    chosen: bool
    front: bool


@dataclass(frozen=True)
class Front(Record):
    """`pareto.json`: the front of score over cost.

    Attributes:
      device: that measured it.
      budget: the requested limits.
      quantity: of the costs.
      metric: of the scores.
      part: of the data: "valid".
      weights: where they come from.
      seeds: how many supernets the scores are the mean of.
      points: sorted by cost.
    """

    device: str
    budget: dict[str, Plain]
    quantity: str
    metric: str
    part: str
    weights: str
    seeds: int
    points: tuple[FrontPoint, ...]


@dataclass(frozen=True)
class BudgetAnswer(Record):
    """`budget.json`: the best genotype within a budget.

    Attributes:
      device: that measured it.
      budget: the requested limits.
      genotype: the answer, as layers.
      text: the answer in short.
      programme: what the integer programme chose, in short.
      limits: a row for each limit.
      ties: choices that are within their noise.
      scores: what the programme maximized.
      quantity: the first quantity of the budget.
      metric: the score of the front.
      front: the points of `pareto.json`.
      written: whether `genotype.json` was replaced.
      kept: whether the derivation's own genotype is within the budget.
      note: the same in words.
    """

    device: str
    budget: dict[str, Plain]
    genotype: Layers
    text: str
    programme: str
    limits: tuple[Limit, ...]
    ties: tuple[str, ...]
    scores: str
    quantity: str | None = None
    metric: str | None = None
    front: tuple[FrontPoint, ...] | None = None
    written: bool | None = None
    kept: bool | None = None
    note: str | None = None


@dataclass(frozen=True)
class Derivation(Record):
    """How the genotype was derived.

    Attributes:
      rule: that was applied.
      seeds: what each seed chose, where there are several.
      second_opinion: what another rule would choose.
      budget: the answer within the search's budget.
      answers: the genotypes of all rules and seeds by name, which enter a race.
      details: what else the rule reports.
    """

    open_field: ClassVar[str] = "details"

    rule: str
    details: dict[str, Plain]
    seeds: DerivedSeeds | None = None
    second_opinion: SecondOpinion | None = None
    budget: BudgetAnswer | None = None
    answers: dict[str, Layers] | None = None


@dataclass(frozen=True)
class Versus(Record):
    """How the found model compares with one baseline.

    Attributes:
      baseline: its name.
      outcome: "better", "worse", "undecided", or "same" where it is the same genotype.
      difference: of the mean scores on test.
      noise: the difference that the seeds (or the number of examples) explain; null where unknown.
      sentence: the same in words.
    """

    baseline: str
    outcome: str
    difference: float
    noise: float | None
    sentence: str


COMPILE, PROCESSOR = ".compile", ".processor"
"""End the names of seconds that are not those of training."""


@dataclass(frozen=True)
class Look(Record):
    """How an entrant of a race did after some steps of its training.

    Attributes:
      step: of the training.
      score: on valid; null where it is undefined.
      examples: scores of the valid examples, a text of 0 and 1, or numbers; of a metric that is no
        mean over examples, its scores of resamples of them; only in `race.json`.
      loss: on valid, which orders entrants with equal scores.
      diverged: the training did not come so far; such a look is the worst.
    """

    step: int
    score: float | None
    examples: str | tuple[float, ...] | None = None
    loss: float | None = None
    diverged: bool = False

    def array(self) -> np.ndarray:
        """`[n]`: the scores of the valid examples."""
        return np.array(list(map(float, self.examples or ())), np.float64)


@dataclass(frozen=True)
class Looks(Record):
    """`race.json`: every look at an entrant, so that a race goes on where it stopped.

    Attributes:
      identity: fingerprints of the task, the data, the model, the training and the metric.
      looks: by the fingerprint of a genotype, in the order in which they were taken.
    """

    identity: dict[str, str]
    looks: dict[str, tuple[Look, ...]]


@dataclass(frozen=True)
class EntrantRecord(Record):
    """One model of a race.

    Attributes:
      name: the first of its names: "derived", "homogeneous.full", "neighbour ...".
      names: its other names.
      genotype: that was trained.
      looks: its score on valid at each rung that it reached, with the first seed.
      valid: the last of these scores; of a finalist the mean over all seeds.
      finalist: whether it trained to the end over all seeds to be compared; test is read for these.
      stopped_at: the step where it stopped; null where it was trained to the end.
      outside_budget: whether it is above `search.budget`, and only compared with.
      test: of a finalist, the mean over all seeds; null for the others, whose test part is not read.
    """

    name: str
    names: tuple[str, ...]
    genotype: GenotypeRecord
    looks: tuple[Look, ...]
    valid: float | None
    finalist: bool
    stopped_at: int | None
    outside_budget: bool
    test: float | None


@dataclass(frozen=True)
class RaceRecord(Record):
    """What competed, which entrant stopped where, and what it cost.

    Attributes:
      metric: that entrants were compared by, on valid.
      rungs: the steps after which they were compared.
      steps: of a whole training.
      seeds: of the finalists.
      entrants: in the order in which they entered.
      winner: the name of the best finalist.
      ties: finalists that the seeds do not tell from the winner, in sentences.
      cuts: entrants that stopped within the noise of one that went on, in sentences.
      seconds: of all cores in all trainings, without compiling.
      share: of the seconds that training all entrants over all seeds would have taken.
      identity: fingerprints of the task, the data, the model, the training and the metric.
    """

    metric: str
    rungs: tuple[int, ...]
    steps: int
    seeds: tuple[int, ...]
    entrants: tuple[EntrantRecord, ...]
    winner: str
    ties: tuple[str, ...]
    cuts: tuple[str, ...]
    seconds: float
    share: float
    identity: dict[str, str]


@dataclass(frozen=True)
class ClassScores(Record):
    """How a model answers for one class.

    Attributes:
      name: of the class.
      precision: share of its answers that are right.
      recall: share of its labels that are answered.
      f1: their harmonic mean.
      labels: how many labels are of the class.
      answers: how many answers are.
    """

    name: str
    precision: float
    recall: float
    f1: float
    labels: int
    answers: int


@dataclass(frozen=True)
class Confused(Record):
    """Two classes that a model confuses.

    Attributes:
      label: the class that is right.
      answer: the class that is answered.
      count: how often.
    """

    label: str
    answer: str
    count: int


@dataclass(frozen=True)
class Mistake(Record):
    """A wrong answer of which a model was sure; of numbers, one that is far off.

    Attributes:
      text: the beginning of the example; where tokens are labelled, from the token on.
      label: what is right.
      answer: of the model.
      probability: that the model gives its answer; null for numbers.
    """

    text: str
    label: str
    answer: str
    probability: float | None


@dataclass(frozen=True, eq=False)
class AnswersRecord(Record):
    """What the found model answers on test, beyond its scores.

    Attributes:
      seed: of the model.
      mistakes: the wrong answers it is most sure of, or the numbers that are farthest off.
      classes: its scores for each class; missing where it answers numbers.
      confusion: labels by answers, where there are few classes.
      confused: the pairs of classes that are confused most.
    """

    seed: int
    mistakes: tuple[Mistake, ...]
    classes: tuple[ClassScores, ...] | None = None
    confusion: np.ndarray | None = None
    confused: tuple[Confused, ...] | None = None


@dataclass(frozen=True)
class Shape(Record):
    """One of the shapes of a search over shapes.

    Attributes:
      valid: scores of the retrained genotype.
      parameters: of the whole model.
      genotype: that was found for it.
    """

    valid: ValidScores
    parameters: int
    genotype: GenotypeRecord


@dataclass(frozen=True)
class Conclusion(Record):
    """What a run comes to: whether its models have learned, and which to take.

    Attributes:
      state: "nothing learned", "below a rule", "under-trained" or "trained".
      headline: a sentence.
      details: the sentences that follow it.
      ties: names of the models that tie with the best on valid, that one among them.
      take: name of the cheapest of them, "found" or that of a baseline; null where no model is
        recommended.
      flag: to try next; null where none is proposed.
      epochs: passes over train of each training of the found model; null where its logs are gone.
      search_epochs: passes of the search over its part of train; null without a supernet.
      late_fall: share by which the training loss fell from the middle fifth of the steps to the
        last fifth; 0 within the noise of the batches.
      best_is_last: whether most seeds were best on valid at their last evaluation.
    """

    state: str
    headline: str
    details: tuple[str, ...]
    ties: tuple[str, ...]
    take: str | None = None
    flag: str | None = None
    epochs: float | None = None
    search_epochs: float | None = None
    late_fall: float | None = None
    best_is_last: bool | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the page, the terminal and the model card say."""
        return (self.headline, *self.details)


LIMITS = {
    "data.valid_limit": "Models are chosen on {rows:,} of {of:,} rows of valid",
    "data.baseline_limit": "Plain rules are fitted on {rows:,} of {of:,} rows of train",
}
"""What each field that limits rows means."""


@dataclass(frozen=True)
class RowLimit(Record):
    """A part of which a field of the config lets only some rows be read.

    Attributes:
      field: its name.
      rows: that are read.
      of: rows of the part.
    """

    field: str
    rows: int
    of: int

    @property
    def sentence(self) -> str:
        """What is read of the part."""
        words = LIMITS.get(self.field, "{rows:,} of {of:,} rows are read")
        return f"{words.format(rows=self.rows, of=self.of)} ({self.field})."


@dataclass(frozen=True, eq=False)
class Results(Record):
    """`results.json`: everything that the stages of a run have found so far.

    Attributes:
      task: its name.
      schema: version of this record.
      identity: fingerprints of the task, the data, the model and the genotype.
      data: what preparing the data reports.
      limits: parts of which some rows are read.
      diagnostics: of the search.
      genotype: that was derived.
      ties: choices of the derivation that are within their noise.
      derive: how the genotype was derived.
      race: what it was raced against.
      test: scores of the found model on test.
      valid: scores of the found model on valid.
      parameters: of the found model.
      flops: of a forward pass of the found model on one example.
      steps: of each training.
      metric: that is compared.
      seeds: of the trainings.
      baselines: by name.
      versus: how the found model compares with the baselines.
      verdict: the same in sentences.
      answers: what the found model answers on test.
      conclusion: whether the models have learned, and which to take.
      shape: that was chosen, in a search over shapes.
      shapes: all of them, by name.
      shapes_left_out: why, by name.
      seconds: spent training, compiling (".compile"), and on all cores in training
        (".processor"), by stage and training.
    """

    task: str
    schema: int = SCHEMA
    identity: dict[str, str] | None = None
    data: dict[str, Plain] | None = None
    limits: tuple[RowLimit, ...] | None = None
    diagnostics: Diagnostics | None = None
    genotype: GenotypeRecord | None = None
    ties: tuple[str, ...] | None = None
    derive: Derivation | None = None
    race: RaceRecord | None = None
    test: TestScores | None = None
    valid: ValidScores | None = None
    parameters: int | None = None
    flops: float | None = None
    steps: int | None = None
    metric: str | None = None
    seeds: tuple[int, ...] | None = None
    baselines: dict[str, Baseline] | None = None
    versus: tuple[Versus, ...] | None = None
    verdict: tuple[str, ...] | None = None
    answers: AnswersRecord | None = None
    conclusion: Conclusion | None = None
    shape: str | None = None
    shapes: dict[str, Shape] | None = None
    shapes_left_out: dict[str, str] | None = None
    seconds: dict[str, float] | None = None

    @classmethod
    def decode(cls, data: object, place: Place) -> Self:
        """See `Record.decode`; refuses files of a newer version."""
        if isinstance(data, dict):
            # Before the keys are read: those of a newer version may mean something else.
            schema = data.get("schema")
            if isinstance(schema, int) and schema > SCHEMA:
                raise InputError(
                    f"{place.file} has schema {schema}, and this dartformer reads {SCHEMA}. "
                    f"Use the version that wrote it, or a newer one."
                )
            data = {"schema": UNVERSIONED, **data}
        return super().decode(data, place)

    @property
    def found(self) -> ModelScores | None:
        """Scores of the found model; None before it is evaluated."""
        # A stage that was stopped leaves some of them out, and a part of a model is none.
        required = (self.test, self.valid, self.parameters, self.flops, self.steps, self.genotype)
        if None in required:
            return None
        return ModelScores(
            self.test,  # type: ignore[arg-type]
            self.valid,  # type: ignore[arg-type]
            self.parameters,  # type: ignore[arg-type]
            self.flops,  # type: ignore[arg-type]
            self.steps,  # type: ignore[arg-type]
            self.genotype,  # type: ignore[arg-type]
        )

    @property
    def models(self) -> dict[str, Baseline]:
        """The found model as "found", and the baselines; empty before evaluation."""
        if self.found is None or self.baselines is None:
            return {}
        return {"found": self.found, **self.baselines}

    @property
    def measure(self) -> str:
        """Name of the metric; files without one are of accuracy."""
        return self.metric or "accuracy"

    @property
    def training_seconds(self) -> float:
        """Spent training, compiling left out."""
        spent = self.seconds or {}
        total = 0.0
        for name, value in spent.items():
            if not name.endswith((COMPILE, PROCESSOR)):
                total += value
        return total

    @property
    def compile_seconds(self) -> float:
        """Spent compiling."""
        spent = self.seconds or {}
        total = 0.0
        for name, value in spent.items():
            if name.endswith(COMPILE):
                total += value
        return total


@dataclass(frozen=True)
class TrainingRecord(Record):
    """`trainings/*/training.json`: what is trained in a folder.

    Attributes:
      name: of the model when it was trained first: "found", or that of a baseline.
      genotype: that is trained.
    """

    name: str
    genotype: GenotypeRecord


@dataclass(frozen=True, eq=False)
class SeedMixture(Record):
    """Where one seed of a search ended.

    Attributes:
      seed: its number.
      alphas: architecture weights.
      mixture: layers by heads by candidates.
    """

    seed: int
    alphas: np.ndarray
    mixture: np.ndarray


@dataclass(frozen=True, eq=False)
class SearchRecord(Record):
    """`search/alphas.json`: a finished search.

    Attributes:
      candidates: as texts, every option spelled out.
      granularity: "model", "layer", "kv_group" or "head".
      alphas: of the first seed.
      mixture: of the first seed.
      seeds: all of them.
      diagnostics: what the search says about itself.
      seconds: spent training.
      compile_seconds: spent compiling.
      identity: fingerprints of the task, the data and the model.
    """

    candidates: tuple[str, ...]
    granularity: str
    alphas: np.ndarray
    mixture: np.ndarray
    seeds: tuple[SeedMixture, ...]
    diagnostics: Diagnostics
    seconds: float
    compile_seconds: float
    identity: dict[str, str] | None = None


@dataclass(frozen=True)
class Latency(Record):
    """Seconds of a call.

    Attributes:
      median: of the calls.
      p90: 90th percentile.
      min: the fastest.
    """

    median: float
    p90: float
    min: float


@dataclass(frozen=True)
class LayerPrice(Record):
    """Cost of the attentions of one layer, by formula.

    Attributes:
      flops: of a forward pass.
      activation_bytes: of intermediate arrays.
      state_bytes: kept between tokens when decoding.
    """

    flops: float
    activation_bytes: float
    state_bytes: float


@dataclass(frozen=True)
class ModelProfile(Record):
    """Cost of a whole model.

    Attributes:
      name: "found", "given", "exported", or the homogeneous genotype in short.
      genotype: as layers.
      batch: examples at once.
      length: tokens of an example.
      parameters: of the whole model.
      flops: executed; null where a model cannot be decoded.
      attention_activation_bytes: of intermediate arrays, of the layer with most.
      attention_training_bytes: kept for the backward pass.
      state_bytes: kept between tokens when decoding.
      layers: the formulas of each layer.
      latency_seconds: measured; null where nothing is.
      throughput: examples in a second; tokens when decoding.
      useful_flops: without what masks and padding waste.
      decodes: whether the model can generate token by token.
      xla_temp_bytes: XLA's intermediate arrays.
      xla_flops: XLA's count.
      decode_bytes: measured when decoding: weights, caches and intermediate arrays.
    """

    name: str
    genotype: Layers
    batch: int
    length: int
    parameters: int
    flops: float | None
    attention_activation_bytes: float
    attention_training_bytes: float
    state_bytes: float
    layers: tuple[LayerPrice, ...]
    latency_seconds: Latency | None
    throughput: float | None
    useful_flops: float | None = None
    decodes: bool | None = None
    xla_temp_bytes: int | None = None
    xla_flops: float | None = None
    decode_bytes: int | None = None


@dataclass(frozen=True)
class AttentionProfile(Record):
    """Cost of one attention on a group of heads, without projections.

    Attributes:
      attention: as text.
      heads: how many share it.
      parameters: of its own.
      flops: of a forward pass.
      activation_bytes: of intermediate arrays.
      state_bytes: kept between tokens when decoding.
      training_bytes: kept for the backward pass.
      decodes: whether it can generate token by token.
      useful_flops: without what masks and padding waste.
      latency_seconds: measured.
      throughput: examples in a second.
      xla_temp_bytes: XLA's intermediate arrays.
      xla_flops: XLA's count.
    """

    attention: str
    heads: int
    parameters: int
    flops: float
    activation_bytes: float
    state_bytes: float
    training_bytes: float
    decodes: bool
    useful_flops: float | None = None
    latency_seconds: Latency | None = None
    throughput: float | None = None
    xla_temp_bytes: int | None = None
    xla_flops: float | None = None


@dataclass(frozen=True)
class LayerProfile(Record):
    """Cost of one layer, its whole block.

    Attributes:
      layer: its number.
      attentions: of its heads, in short.
      attention_parameters: of its attentions.
      attention_flops: of its attentions.
      attention_activation_bytes: of its attentions.
      state_bytes: kept between tokens when decoding.
      latency_seconds: measured.
      throughput: examples in a second.
      xla_temp_bytes: XLA's intermediate arrays.
      xla_flops: XLA's count.
    """

    layer: int
    attentions: str
    attention_parameters: int
    attention_flops: float
    attention_activation_bytes: float
    state_bytes: float
    latency_seconds: Latency | None = None
    throughput: float | None = None
    xla_temp_bytes: int | None = None
    xla_flops: float | None = None


@dataclass(frozen=True)
class Profile(Record):
    """`profile.json`: what models cost on one device.

    Attributes:
      device: that measured it.
      jax: its version.
      batch: examples at once.
      length: tokens of an example.
      phase: "forward", "train" or "decode".
      dtype: of the computation.
      models: whole models.
      attentions: each on its group of heads.
      note: what the numbers leave out.
      layers: of the found model.
      sweep: whole models at several lengths.
      identity: fingerprints of the model and the genotype.
    """

    device: str
    jax: str
    batch: int
    length: int
    phase: str
    dtype: str
    models: tuple[ModelProfile, ...]
    attentions: tuple[AttentionProfile, ...]
    note: str | None = None
    layers: tuple[LayerProfile, ...] | None = None
    sweep: tuple[ModelProfile, ...] | None = None
    identity: dict[str, str] | None = None


@dataclass(frozen=True)
class StepPrediction(Record):
    """What the compiler for a device says of a step of training.

    Attributes:
      name: "search", "found", "given", or the homogeneous genotype in short.
      batch: examples of a step.
      fits: it fits the memory of the device.
      peak_bytes: in memory at once; null where the compiler does not say.
      temp_bytes: of temporaries among them.
      flops: of products, with loops multiplied by their turns.
      moved_bytes: read from main memory and written to it, likewise.
      roofline_ms: the least time at the FLOP/s and the bandwidth of the device.
      bound: which of both it is, "flops" or "bytes".
      compile_seconds: of processors.
      largest_batch: the largest power of two times `batch` that fits; null where none does.
      refusal: why the compiler gave up.
    """

    name: str
    batch: int
    fits: bool
    peak_bytes: int | None = None
    temp_bytes: int | None = None
    flops: float | None = None
    moved_bytes: float | None = None
    roofline_ms: float | None = None
    bound: str | None = None
    compile_seconds: float | None = None
    largest_batch: int | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Prediction(Record):
    """What `dartformer profile --on` shows: steps of training on a device that is not here.

    Attributes:
      device: a name that `--on` knows.
      kind: the device's own name.
      memory_bytes: that programs can fill.
      flops_per_second, bytes_per_second: dense bfloat16 FLOP/s, and bandwidth of main memory.
      jax: its version.
      dtype: of activations.
      length: tokens of an example.
      steps: the search first.
    """

    device: str
    kind: str
    memory_bytes: int
    flops_per_second: float
    bytes_per_second: float
    jax: str
    dtype: str
    length: int
    steps: tuple[StepPrediction, ...]

    @property
    def label(self) -> str:
        """What the numbers are, in words."""
        return devices.label(self.device)


@dataclass(frozen=True)
class ExampleScores(Record):
    """`test_scores.json`: how each model answered each test example.

    Attributes:
      score: "accuracy" or "loss".
      higher: whether more is better.
      examples: size of the test part.
      fingerprint: of the test examples in their order.
      seeds: of the trainings.
      models: by name, for each seed a text of 0 and 1, or numbers.
      identity: fingerprints of the task, the data, the model and the genotype.
    """

    score: str
    higher: bool
    examples: int
    fingerprint: str
    seeds: tuple[int, ...]
    models: dict[str, tuple[str | tuple[float, ...], ...]]
    identity: dict[str, str] | None = None

    @classmethod
    def decode(cls, data: object, place: Place) -> Self:
        """See `Record.decode`; every model needs a score for each seed and example."""
        record = super().decode(data, place)
        for name, seeds in record.models.items():
            if len(seeds) != len(record.seeds):
                raise place.at(f"models.{name}").wrong(
                    f"has scores of {len(seeds)} seeds instead of {len(record.seeds)}"
                )
            for packed in seeds:
                if len(packed) != record.examples:
                    raise place.at(f"models.{name}").wrong(
                        f"has scores of {len(packed)} examples instead of {record.examples}"
                    )
        return record

    def array(self, name: str) -> np.ndarray:
        """`[S, n]`: scores of a model by seed and example."""
        rows = []
        for packed in self.models[name]:
            # Right and wrong answers are packed as a text, "0110", which is shorter than a list.
            rows.append(list(map(float, packed)))
        return np.array(rows, np.float64)


@dataclass(frozen=True, eq=False)
class MapData(Record):
    """Attention maps of one example.

    Attributes:
      scale: layers by heads, the largest absolute weight; 0 where an attention has no matrix.
      data: base64 of signed bytes `[L, H, n, n]`, queries before keys, in 1/127 of the scale.
    """

    scale: np.ndarray
    data: str


@dataclass(frozen=True)
class MapExample(Record):
    """One example that the model was looked at with.

    Attributes:
      text: its beginning.
      tokens: the name of each row of a map; "12-15" where rows are averages.
      maps: its attention maps.
      label: in words; missing where every token has one.
      answer: of the model, in words.
    """

    text: str
    tokens: tuple[str, ...]
    maps: MapData
    label: str | None = None
    answer: str | None = None


@dataclass(frozen=True)
class AttentionMaps(Record):
    """`attention.json`: what the final model attends to, on some test examples.

    Attributes:
      seed: of the model.
      step: of its checkpoint.
      part: of the data: "test".
      layers: the numbers of those shown.
      heads: the numbers of those shown.
      examples: short ones first.
    """

    seed: int
    step: int
    part: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    examples: tuple[MapExample, ...]


@dataclass(frozen=True)
class Invocation(Record):
    """One run of a stage.

    Attributes:
      verb: the stage.
      command: that was typed.
      started: UTC.
      device: number and kind.
      versions: of this package, Python and the packages that numbers depend on.
      state: "running", "done" or "stopped".
      why: it stopped.
      seconds: it took.
      processes: that shared it.
    """

    verb: str
    command: str
    started: str
    device: str
    versions: dict[str, str]
    state: str
    why: str | None = None
    seconds: float | None = None
    processes: int = 1


@dataclass(frozen=True)
class Provenance(Record):
    """`provenance.json`: which commands made a workdir.

    Attributes:
      runs: the oldest first.
    """

    runs: tuple[Invocation, ...]


def finite(value: float | None) -> bool:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)
