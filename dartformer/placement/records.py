"""What a placement in a checkpoint leaves in its workdir."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from dartformer.machine.record import Record
from dartformer.pretrained.passages import AGAIN, TEXT
from dartformer.results import GenotypeRecord

SCHEMA = 1


@dataclass(frozen=True)
class FileMark(Record):
    """A file of a checkpoint, as it was when its places were scored.

    Attributes:
      name: in the folder.
      bytes: its size.
      modified: nanoseconds, as the system tells them.
      crc32: of its content.
    """

    name: str
    bytes: int
    modified: int
    crc32: int


@dataclass(frozen=True)
class Teacher(Record):
    """`teacher.json`: the checkpoint that is placed in.

    Attributes:
      folder: of the checkpoint.
      family: its `model_type`.
      layers: of the model.
      heads: of queries in each layer.
      kv_groups: of each layer.
      parameters: numbers that are trained.
      files: of the folder.
      seconds: of loading.
    """

    folder: str
    family: str
    layers: int
    heads: int
    kv_groups: int
    parameters: int
    files: tuple[FileMark, ...]
    seconds: float


@dataclass(frozen=True)
class Scores(Record):
    """What each place is worth to some sequences by one rule.

    Attributes:
      rule: that scored them.
      kind: "text" or "again".
      scores: `[B, L, C]` of each sequence, in nats of KL divergence, or in cosine distance of an
        encoder. Of the rule "frozen" they are the total, shared out as the learned shares of full
        attention.
      totals: `[B]`, the divergence of each sequence with the cheap attention everywhere.
      seconds: of all sequences.
      processor_seconds: of all cores together.
    """

    rule: str
    kind: str
    scores: np.ndarray
    totals: np.ndarray
    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class ScoreFile(Record):
    """`scores.json`: all scores so far.

    Attributes:
      identity: fingerprints of the checkpoint, the text and the settings.
      scores: of each rule and kind.
    """

    identity: dict[str, str]
    scores: tuple[Scores, ...] = ()

    def of(self, rule: str, kind: str) -> Scores | None:
        """The scores of a rule on a kind of sequences; None before the first sequence."""
        for scores in self.scores:
            if (scores.rule, scores.kind) == (rule, kind):
                return scores
        return None


@dataclass(frozen=True)
class MeasuredPlaces(Record):
    """A placement that was measured on calibration sequences.

    Attributes:
      kept: `[L, C]` of 0 and 1.
      losses: the divergence from the checkpoint of each sequence so far, by kind.
    """

    kept: np.ndarray
    losses: dict[str, np.ndarray]

    def __len__(self) -> int:
        """The sequences of each kind."""
        return min((len(losses) for losses in self.losses.values()), default=0)

    def with_sequence(self, losses: Mapping[str, float]) -> "MeasuredPlaces":
        """The same with one more sequence of each kind."""
        longer = {}
        for kind, loss in losses.items():
            longer[kind] = np.append(self.losses.get(kind, np.zeros(0)), loss)
        return replace(self, losses=longer)


@dataclass(frozen=True)
class ExchangeFile(Record):
    """`exchange.json`: the local search from what the scores choose.

    Losses are the divergences of both kinds of calibration sequences, each as a share of what the
    cheap attention everywhere loses, added up.

    Attributes:
      identity: fingerprints of the checkpoint, the text, the settings and where it began.
      measured: the placements so far, that of the scores first.
      seconds: of measuring.
      processor_seconds: of all cores together.
      kept: `[L, C]` of 0 and 1 of the best placement; None before the search has ended.
      neighbours: how many were measured.
      before, after: losses of the choice of the scores and of the best placement.
    """

    identity: dict[str, str]
    measured: tuple[MeasuredPlaces, ...] = ()
    seconds: float = 0.0
    processor_seconds: float = 0.0
    kept: np.ndarray | None = None
    neighbours: int = 0
    before: float = 0.0
    after: float = 0.0


@dataclass(frozen=True)
class Measured(Record):
    """How good a placement is on the held-out sequences of one kind, `[B]` each.

    Attributes:
      nll: mean negative log-likelihood of the scored tokens, in nats; None for an encoder.
      kl: mean KL divergence from the checkpoint's predictions, in nats; None for an encoder.
      distance: of an encoder's embeddings from the checkpoint's, 1 - cosine; None for a decoder.
    """

    nll: np.ndarray | None = None
    kl: np.ndarray | None = None
    distance: np.ndarray | None = None

    @property
    def loss(self) -> np.ndarray:
        """What placements are compared by, in the unit of their results."""
        if self.distance is not None:
            return self.distance
        assert self.nll is not None
        return self.nll

    @property
    def divergence(self) -> np.ndarray:
        """How far the outputs are from the checkpoint's: what the scores add up to."""
        if self.distance is not None:
            return self.distance
        assert self.kl is not None
        return self.kl

    @property
    def mean_nll(self) -> float:
        """Of all sequences."""
        return float(np.mean(self.loss))

    @property
    def mean_kl(self) -> float:
        """Of all sequences."""
        return float(np.mean(self.divergence))


@dataclass(frozen=True)
class TunedQuality(Record):
    """How the tuned placement predicts the held-out sequences.

    Attributes:
      identity: fingerprints of what it was tuned from and with.
      quality: by kind of sequences.
      seconds: of both kinds.
      processor_seconds: of all cores together.
    """

    identity: dict[str, str]
    quality: dict[str, Measured]
    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Evaluation(Record):
    """`evaluation.json`: exact qualities of placements on the held-out sequences.

    Attributes:
      identity: fingerprints of the checkpoint, the text, the settings and the placements.
      qualities: by kind of sequences, then by placement.
      seconds: of all of them.
      processor_seconds: of all cores together.
      tuned: the tuned placement; absent where nothing is tuned.
    """

    identity: dict[str, str]
    qualities: dict[str, dict[str, Measured]]
    seconds: float
    processor_seconds: float
    tuned: TunedQuality | None = None


@dataclass(frozen=True)
class AlignedLayer(Record):
    """A layer that was trained alone to give what the checkpoint's gives.

    Attributes:
      layer: its number.
      before: the loss with the weights of the checkpoint; 1 is as good as a constant.
      after: the loss after training.
    """

    layer: int
    before: float
    after: float


@dataclass(frozen=True)
class Rung(Record):
    """How an entrant of the race predicted the calibration sequences at one time.

    Attributes:
      step: of the tuning.
      kl: mean KL divergence from the checkpoint, by kind of sequences.
    """

    step: int
    kl: dict[str, float]

    @property
    def total(self) -> float:
        """Of all kinds; the lower the better."""
        return sum(self.kl.values())


@dataclass(frozen=True)
class Entrant(Record):
    """A placement that is tuned.

    Attributes:
      name, title: as in `Placed`.
      kept: `[L, C]` of 0 and 1.
      parameters: how many numbers are trained; 0 before they are.
      layers: that were aligned.
      losses: KL divergence of each step so far, on its batch.
      rungs: where the entrants were compared.
      seconds: of its training.
      processor_seconds: of all cores together.
    """

    name: str
    title: str
    kept: np.ndarray
    parameters: int
    layers: tuple[AlignedLayer, ...]
    losses: np.ndarray
    rungs: tuple[Rung, ...]
    seconds: float
    processor_seconds: float

    def at(self, step: int) -> Rung:
        """How it was at a step where the entrants were compared."""
        for rung in self.rungs:
            if rung.step == step:
                return rung
        raise KeyError(step)


@dataclass(frozen=True)
class TuneFile(Record):
    """`tuning.json`: the placements that are tuned, and the one that is in `tuned/`.

    Attributes:
      identity: fingerprints of the checkpoint, the text, the settings and the placements.
      entrants: the answer first.
      winner: name of the entrant in `tuned/`; empty before it is written.
    """

    identity: dict[str, str]
    entrants: tuple[Entrant, ...]
    winner: str = ""

    @property
    def best(self) -> Entrant | None:
        """The entrant in `tuned/`; None before it is written."""
        for entrant in self.entrants:
            if entrant.name == self.winner:
                return entrant
        return None

    @property
    def seconds(self) -> float:
        """Of all entrants."""
        return sum(entrant.seconds for entrant in self.entrants)

    @property
    def processor_seconds(self) -> float:
        """Of all entrants and cores together."""
        return sum(entrant.processor_seconds for entrant in self.entrants)


@dataclass(frozen=True)
class Placed(Record):
    """A placement and its quality.

    Attributes:
      name: of the placement, such as "path".
      title: in words.
      role: "answer", "derived", "baseline", "end" (full or cheap everywhere), or "front" for one
        with another budget.
      kept: `[L, C]` of 0 and 1: layers, or KV groups of layers.
      kv_bytes: of its caches; 0 for an encoder, which has none.
      quality: by kind of sequences.
      cost: in the quantity of the results; None where that is `kv_bytes`.
    """

    name: str
    title: str
    role: str
    kept: np.ndarray
    kv_bytes: int
    quality: dict[str, Measured]
    cost: float | None = None

    @property
    def count(self) -> int:
        """How many places are kept."""
        return int(self.kept.sum())

    @property
    def price(self) -> float:
        """What it takes of what the budget limits."""
        if self.cost is not None:
            return self.cost
        return self.kv_bytes

    def loss(self, kind: str) -> float:
        """Mean loss on the held-out sequences of a kind: a decoder's NLL, or an encoder's distance."""
        return float(np.mean(self.quality[kind].loss))

    def divergence(self, kind: str) -> float:
        """Mean divergence from the checkpoint on the held-out sequences of a kind."""
        return float(np.mean(self.quality[kind].divergence))


@dataclass(frozen=True)
class Gap(Record):
    """The answer against another placement with the same budget, paired by sequence.

    Attributes:
      baseline: the other's name.
      kind: of the sequences.
      difference: of the mean losses; below 0 the answer is better.
      noise: half the width of the 95% interval; null where it is unknown.
      outcome: "better", "worse" or "undecided"; "same" where the places are the same.
    """

    baseline: str
    kind: str
    difference: float
    noise: float
    outcome: str


@dataclass(frozen=True)
class Additivity(Record):
    """Whether the scores of the path add up to what the cheap attention loses.

    Attributes:
      kind: of the sequences.
      sum: of the scores of all places.
      total: the exact divergence with the cheap attention everywhere.
    """

    kind: str
    sum: float
    total: float

    @property
    def error(self) -> float:
        """How far off the sum is, as a share of the total."""
        return abs(self.sum - self.total) / max(abs(self.total), 1e-9)


@dataclass(frozen=True)
class Agreement(Record):
    """Places that two halves of the calibration sequences choose.

    Attributes:
      common: how many both keep.
      kept: how many each keeps, the larger one.
    """

    common: int
    kept: int


@dataclass(frozen=True)
class ExchangeResults(Record):
    """What measuring neighbours of the scores' choice changed, on the calibration sequences.

    Attributes:
      neighbours: how many were measured.
      exchanged: places that the answer keeps and the choice of the scores does not.
      before, after: losses of that choice and of the answer: the divergences of both kinds, each as
        a share of what the cheap attention everywhere loses, added up.
    """

    neighbours: int
    exchanged: int
    before: float
    after: float


@dataclass(frozen=True)
class TuningResults(Record):
    """What tuning changed, on the held-out sequences.

    Attributes:
      placement: name of the placement that was tuned.
      attention: of the places that are not kept.
      genotype: of the tuned model.
      kv_bytes: of its caches.
      steps: of Adam on the whole model.
      align_steps: of each layer before that.
      adapters: their rank; 0 where all weights were trained.
      parameters: how many numbers were trained.
      before: quality of the placement with the weights of the checkpoint, by kind of sequences.
      after: its quality with the tuned weights.
      gaps: the tuned weights against those of the checkpoint, paired by sequence.
      entrants: all placements that were tuned.
    """

    placement: str
    attention: str
    genotype: GenotypeRecord
    kv_bytes: int
    steps: int
    align_steps: int
    adapters: int
    parameters: int
    before: dict[str, Measured]
    after: dict[str, Measured]
    gaps: tuple[Gap, ...]
    entrants: tuple[Entrant, ...]


@dataclass(frozen=True)
class PlacementResults(Record):
    """`results.json`: which places of a checkpoint keep full attention, and how well.

    Attributes:
      checkpoint: name of the folder.
      family: its `model_type`.
      cheap: the attention of the places that are not kept.
      granularity: "layer" or "kv_group".
      kv_bytes: that the caches may take; 0 where the budget limits something else.
      length: of the sequence whose caches are meant, or of the text that is encoded.
      calibration: sequences of each kind that scored the places.
      held_out: sequences of each kind that tested the choice.
      tokens: of a sequence.
      genotype: of the answer, or of the tuned placement.
      places: how many places there are.
      scores: `[L, C]` of the answer's rule, by kind of sequences.
      placements: the answer, what else was derived, and the baselines.
      gaps: the answer against the others.
      additivity: by kind; empty where the path was not scored.
      agreement: of the halves; None for a single calibration sequence.
      tuning: what tuning changed; absent where nothing is tuned.
      exchange: what measuring neighbours changed; absent where none were measured.
      quantity: what the budget limits, such as "latency_ms"; None for `kv_bytes`.
      limit: on that quantity; None for `kv_bytes`.
      verdict: in sentences.
      warnings: in sentences.
      seconds: by stage.
      processor_seconds: by stage, of all cores together.
      schema: version of this record.
    """

    checkpoint: str
    family: str
    cheap: str
    granularity: str
    kv_bytes: int
    length: int
    calibration: int
    held_out: int
    tokens: int
    genotype: GenotypeRecord
    places: int
    scores: dict[str, np.ndarray]
    placements: tuple[Placed, ...]
    gaps: tuple[Gap, ...]
    additivity: tuple[Additivity, ...]
    verdict: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    processor_seconds: dict[str, float]
    agreement: Agreement | None = None
    tuning: TuningResults | None = None
    exchange: ExchangeResults | None = None
    quantity: str | None = None
    limit: float | None = None
    schema: int = SCHEMA

    @property
    def encodes(self) -> bool:
        """Whether the checkpoint is an encoder."""
        # It is scored on documents alone, because no passage of them is predicted.
        return AGAIN not in self.scores

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of sequences, that of the larger differences first."""
        return tuple(kind for kind in (AGAIN, TEXT) if kind in self.scores)

    @property
    def named(self) -> Mapping[str, Placed]:
        """The placements by name."""
        return {placed.name: placed for placed in self.placements}

    @property
    def answer(self) -> Placed:
        """The placement that the first rule chose, or the best neighbour of it."""
        for placed in self.placements:
            if placed.role == "answer":
                return placed
        raise KeyError("answer")

    @property
    def recommended(self) -> Placed:
        """The tuned placement, or where nothing is tuned the answer."""
        if self.tuning is None:
            return self.answer
        return self.named[self.tuning.placement]


@dataclass(frozen=True)
class PlacementBudgetAnswer(Record):
    """`budget.json`: which places to keep within another budget, from the stored scores.

    Attributes:
      limit: the bytes that the caches may take, or the limit on another quantity.
      length: of the sequence whose caches are meant, or of the text that is encoded.
      granularity: "layer" or "kv_group".
      cheap: the attention of the other places.
      kept: `[L, C]` of 0 and 1.
      kv_bytes: of the caches; 0 for an encoder.
      full_bytes: with full attention everywhere; 0 for an encoder.
      share: of what the cheap attention everywhere loses, what the scores of the kept places
        recover, by kind of sequences.
      genotype: the answer.
      quantity, cost, full_cost: what is limited, what the answer costs, and what full attention
        everywhere does; None where that is `kv_bytes`.
    """

    limit: float
    length: int
    granularity: str
    cheap: str
    kept: np.ndarray
    kv_bytes: int
    full_bytes: int
    share: dict[str, float]
    genotype: GenotypeRecord
    quantity: str | None = None
    cost: float | None = None
    full_cost: float | None = None
