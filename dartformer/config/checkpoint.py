"""The config of a placement: which layers or KV groups of a checkpoint keep full attention.

The choice needs no training, so it has few of the fields of `dartformer.config.sections`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dartformer.attention import parse
from dartformer.attention.base import Attention
from dartformer.attention.full import Full
from dartformer.config.sections import LARGEST_SEED
from dartformer.cost.budget import Budget
from dartformer.errors import InputError
from dartformer.fields import FieldError, at_least, between, check_types, one_of
from dartformer.pretrained.tune import Tuning

RULES = ("path", "swap", "restore", "frozen")
"""What scores places: the gradient along the path, one layer made cheap, one made full, or the share
of full attention that they learn while the weights are frozen."""

OF_LAYERS = ("swap", "restore")
"""The rules that score whole layers."""

GRANULARITIES = ("layer", "kv_group")

KV_BYTES = "kv_bytes"

ENCODER_QUANTITIES = ("flops", "latency_ms")
"""What the layers of an encoder differ in, which keeps no cache."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, and what its layers are scored with.

    Attributes:
      folder: of the checkpoint, as Hugging Face writes it.
      text: a file of text like that which the model is for. Its beginning scores the places, and
        the rest tests the choice. An encoder reads its lines as documents, or what blank lines set
        off.
      cheap: the attention of the places that do not keep full attention: a window, with or without
        sinks.
      rules: what scores the places. "path" takes gradients from the cheap attention everywhere to
        the checkpoint; "swap" makes one layer cheap at a time, and "restore" one full. "frozen"
        learns the mixture within the budget. The first decides, and others are compared with it.
      frozen_steps: of Adam on each sequence for the rule "frozen".
      points: gradients of each sequence along the path; more of them add up better.
      exchanges: how many neighbours of what the scores choose are measured on the sequences that
        score: each keeps one other place in exchange for one, and those that lose less are the
        answer. 0: the answer is what the scores choose.
      length: tokens of a sequence, which the scores hold for.
      sequences: of each kind (text, and a passage that comes again; an encoder has documents
        alone) that score the places.
      held_out: sequences of each kind that test the choice.
      keep: layers or KV groups that keep full attention, in place of search.budget. 0: as the
        budget says.
    """

    folder: str = ""
    text: str = ""
    cheap: str = "sink(window=32, sinks=4)"
    rules: tuple[str, ...] = ("path",)
    frozen_steps: int = 25
    points: int = 8
    exchanges: int = 0
    length: int = 256
    sequences: int = 4
    held_out: int = 8
    keep: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "points", "sequences", "frozen_steps")
        at_least(self, 2, "held_out")  # one has no interval
        at_least(self, 0, "keep", "exchanges")
        for name, value in (("folder", self.folder), ("text", self.text)):
            if not value:
                raise FieldError(name, "is empty. Name a folder or a file.")
        if not self.rules or len(set(self.rules)) < len(self.rules):
            raise FieldError("rules", f"must be different rules, got {list(self.rules)}.")
        for rule in self.rules:
            if rule not in RULES:
                choices = ", ".join(RULES)
                raise FieldError("rules", f"has no rule {rule!r:.60}. Choices: {choices}.")
        self.attention  # noqa: B018 - raises where the text spells no attention

    @cached_property
    def attention(self) -> Attention:
        """The cheap attention, read from its text."""
        return parse(self.cheap)


@dataclass(frozen=True)
class PlacementSpace:
    """What is kept.

    Attributes:
      granularity: what keeps full attention: each "layer", or each "kv_group" (the heads that share
        keys and values).
    """

    granularity: str = "kv_group"

    def __post_init__(self) -> None:
        check_types(self)
        if self.granularity == "head":
            raise FieldError(
                "granularity",
                "cannot be 'head', because a cache keeps the whole KV group of a head. Use "
                "'kv_group'.",
            )
        one_of(self, "granularity", GRANULARITIES)


@dataclass(frozen=True)
class PlacementBudget:
    """How large the cache may be.

    Attributes:
      budget: the most bytes of keys and values (kv_bytes) of a sequence of `length` tokens, or the
        most measured milliseconds (latency_ms, with phase=decode) of a token after so many; of an
        encoder, the most flops, or measured milliseconds, of a text of so many tokens.
    """

    budget: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        self.limits  # noqa: B018 - raises where the budget does not read

    @cached_property
    def limits(self) -> Budget | None:
        """The budget, read; None where there is none."""
        if not self.budget:
            return None
        budget = Budget.of(self.budget)
        # Whether the checkpoint is an encoder is not known here.
        if not set(budget.quantities) <= set(ENCODER_QUANTITIES):
            require_kv_bytes(budget, "search.budget")
        return budget


@dataclass(frozen=True)
class Tune(Tuning):
    """How the choice is trained to predict what the checkpoint predicts.

    Attributes:
      steps: of Adam, in which the whole model learns; 0: nothing is trained.
      align_steps: of Adam for each layer before that, in which its attention learns to give what
        the checkpoint's gives.
      attention: of the places that are not kept, from then on: one that must learn to replace full
        attention, such as window_linear(window=32) or gated_delta; empty: checkpoint.cheap.
      race: how many placements are tuned: the answer and its nearest rivals. After each third of
        the steps the half that predicts the calibration sequences better goes on.
      save_every: steps between checkpoints, from which a stopped run goes on. With all weights each
        takes 3 times the bytes of the model, and two are kept.
    """

    steps: int = 0
    align_steps: int = 0
    attention: str = ""
    race: int = 1
    save_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "align_steps")
        at_least(self, 1, "race", "save_every")
        between(self, 0, LARGEST_SEED, "seed")
        if self.attention and self.replacement == Full():
            raise FieldError("attention", "cannot be full, which is what the kept places have.")

    @cached_property
    def replacement(self) -> Attention | None:
        """The attention, read from its text; None where the cheap one stays."""
        if not self.attention:
            return None
        return parse(self.attention)


def require_kv_bytes(budget: Budget, where: str) -> None:
    """Raise `InputError` for a budget of anything but the cache of one sequence."""
    for quantity in budget.quantities:
        if quantity != KV_BYTES:
            raise InputError(
                f"{where}: {quantity} does not work with a decoder, whose placements differ in "
                f"cache and speed alone. Limit kv_bytes, or latency_ms with phase=decode."
            )
    if not budget.length:
        raise InputError(f"{where} needs a length, as in kv_bytes=40MB,length=8192.")
    if budget.batch != 1:
        raise InputError(f"{where}: kv_bytes is of one sequence. Leave out batch={budget.batch}.")


@dataclass(frozen=True)
class PlacementConfig:
    """The whole config of a placement.

    Attributes:
      seed: of the random placements that the choice is compared with.
      checkpoint: the checkpoint, and what its layers are scored with.
      space: what is kept.
      search: how large the cache may be.
      tune: how the choice is trained.
    """

    seed: int = 0
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    space: PlacementSpace = field(default_factory=PlacementSpace)
    search: PlacementBudget = field(default_factory=PlacementBudget)
    tune: Tune = field(default_factory=Tune)

    def __post_init__(self) -> None:
        check_types(self)
        between(self, 0, LARGEST_SEED, "seed")
        rule, granularity = self.checkpoint.rules[0], self.space.granularity
        if rule in OF_LAYERS and granularity != "layer":
            raise InputError(
                f"checkpoint.rules={rule!r} does not work with space.granularity={granularity!r}, "
                f"because it scores whole layers. Put 'path' or 'frozen' first, or use "
                f"space.granularity='layer'."
            )
        if bool(self.checkpoint.keep) == bool(self.search.budget):
            raise InputError(
                "a placement needs either search.budget, as in kv_bytes=40MB,length=8192, or "
                "checkpoint.keep, a number of layers or KV groups."
            )
