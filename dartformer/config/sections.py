"""The sections of a config, typed: each field with its default and what it means.

A section checks itself when it is made. What cannot go together across sections stands in
`dartformer.config.compat`. Sections are built from a file and flags by `dartformer.config.load`."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

from dartformer import derivations
from dartformer.attention.base import Attention
from dartformer.cost.budget import Budget
from dartformer.derivations.base import Rule
from dartformer.errors import SEEDS, InputError, brief
from dartformer.fields import FieldError, at_least, at_most, between, check_types, one_of
from dartformer.models.sizes import TransformerConfig, TransformerOptions
from dartformer.models.supernet import PROJECTIONS
from dartformer.space.genotype import parse_candidates
from dartformer.space.search_space import ASPECTS, GRANULARITIES, Granularity, SearchSpace, shapes
from dartformer.strategies import StrategyOptions
from dartformer.tasks.base import Task
from dartformer.training import metric as metrics
from dartformer.training import trackers
from dartformer.training.devices import SMALLEST, MeshShape
from dartformer.training.optimizer import Optimizer

SELECT = ("best", "last")

PROGRAMS = ("auto", "own", "shared")

MOST_STEPS = 2**31 - 1
"""A search counts its steps in int32."""

MOST_SEEDS = 1000
"""Searches of one run."""

MOST_CANDIDATES = 256
"""Candidates of a space. A step of most strategies computes them all."""

LARGEST_SEED = SEEDS - 1
"""JAX's keys take 32 bits of a seed: larger ones would repeat the numbers of smaller ones."""

WEIGHTS = Optimizer()
"""The optimizer of the weights by default."""

ALPHAS = Optimizer(
    name="adam", learning_rate=0.1, schedule="constant", warmup=0.0, b1=0.5, weight_decay=0.0
)
"""The optimizer of the architecture weights by default."""

Built = TypeVar("Built")


@dataclass(frozen=True)
class Named(Generic[Built]):
    """A task or a strategy, chosen by name, with options of its own.

    An option reads as a field does: `config.task.length`.

    Attributes:
      name: as in `dartformer list tasks` or `dartformer list strategies`.
      options: the values as the config writes them.
      built: what the name and the options stand for.
    """

    name: str
    options: Mapping[str, object]
    built: Built

    def __getattr__(self, option: str) -> Any:
        # While a copy or a pickle is being restored there are no options yet.
        options = self.__dict__.get("options", {})
        if option not in options:
            raise AttributeError(f"{self.__dict__.get('name')} has no option {option!r}.")
        return options[option]

    def to_dict(self) -> dict[str, object]:
        """The name and the options, as a config writes them."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True)
class Data:
    """How examples are read and batched.

    Attributes:
      dir: the folder for prepared data sets; empty for TensorFlow Datasets' own.
      batch_size: examples in a training step.
      accumulate: parts that a batch is computed in, one after the other, their gradients added up; a
        step needs the memory of one part. Their number must divide `batch_size`.
      eval_batch_size: examples in a step of evaluation.
      class_weights: "balanced" weighs each class in the loss of the search and of every training by
        the inverse of its share of train, so that rare classes count as much as frequent ones;
        empty for equal weights.
      buckets: groups of similar length that batches are drawn from; 1 pads every batch to the
        longest example.
      valid_limit: rows of valid that models are evaluated and chosen on, drawn by `seed`; 0 for all.
      baseline_limit: rows of train that plain rules are fitted on, drawn by `seed`; 0 for all. They
        are scored on all of test.
    """

    dir: str = ""
    batch_size: int = 32
    accumulate: int = 1
    eval_batch_size: int = 250
    class_weights: str = ""
    buckets: int = 1
    valid_limit: int = 0
    baseline_limit: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "batch_size", "accumulate", "eval_batch_size", "buckets")
        at_least(self, 0, "valid_limit", "baseline_limit")
        if self.batch_size % self.accumulate:
            reason = f"must divide data.batch_size = {self.batch_size}, got {self.accumulate}."
            raise FieldError("accumulate", reason)
        if self.class_weights not in ("", "balanced"):
            reason = f"must be 'balanced', or empty for none, got {brief(self.class_weights)}."
            raise FieldError("class_weights", reason)

    @property
    def part_size(self) -> int:
        """Examples of a training step that are in memory at once."""
        return self.batch_size // self.accumulate


@dataclass(frozen=True)
class Mesh:
    """How the devices of a run share its work. Another mesh may continue a run.

    Attributes:
      data: devices that share a batch, each with a copy of the weights; 0 for all that `fsdp` and
        `seeds` leave. One process uses fewer where more would not divide the batch.
      fsdp: devices that share a batch and divide weights, gradients and optimizer among themselves;
        0 for all.
      seeds: devices among which the seeds of one search program are divided; must divide
        `search.seeds`.
      smallest: numbers of the smallest array that `fsdp` divides; smaller ones are copied.
    """

    data: int = 0
    fsdp: int = 1
    seeds: int = 1
    smallest: int = SMALLEST

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 0, "data", "fsdp")
        at_least(self, 1, "seeds", "smallest")

    @property
    def shape(self) -> MeshShape:
        """Devices along each axis, where 0 stands for what is left."""
        return MeshShape(self.data, self.fsdp, self.seeds)


@dataclass(frozen=True)
class Space:
    """What is searched over.

    Attributes:
      candidates: the attentions to choose from (see `dartformer list attentions`).
      granularity: what chooses: "model" (one attention everywhere), each "layer",
        each "kv_group" (the heads that share keys and values), or each "head".
      aspect: "given" searches the model's own shape; "constant_heads" also every shape with fewer
        layers and as many heads in all.
    """

    candidates: tuple[str, ...] = ("full", "local(window=4)", "linear", "uniform")
    granularity: Granularity = "layer"
    aspect: str = "given"

    def __post_init__(self) -> None:
        check_types(self)
        one_of(self, "granularity", GRANULARITIES)
        one_of(self, "aspect", ASPECTS)
        if len(self.candidates) > MOST_CANDIDATES:
            reason = f"takes at most {MOST_CANDIDATES} attentions, got {len(self.candidates)}."
            raise FieldError("candidates", reason)
        self.attentions  # noqa: B018 - raises where a text spells no attention

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The candidates, read from their texts."""
        return parse_candidates(self.candidates)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search for architecture weights.

    Attributes:
      strategy: how weights and architecture weights move (see `dartformer list strategies`).
      projections: queries, keys and values of a layer's candidates: "shared" or "separate".
      partial: candidates are computed for one in so many heads; 1 computes them for all.
      remat: recompute candidates in the backward pass, and on a GPU or TPU the blocks around them,
        which saves memory.
      budget: limits on the cost of the genotype: latency_ms, parameters, flops, memory_bytes or
        kv_bytes, measured at batch, length and phase; empty for none.
      steps: training steps of the supernet.
      seeds: searches with different seeds, beginning at `seed`.
      observe: record the branches' outputs and gradients and the loss's curvature.
      weights: the optimizer of the supernet's weights.
      alphas: the optimizer of the architecture weights.
    """

    strategy: Named[StrategyOptions]
    projections: str = "shared"
    partial: int = 1
    remat: bool = True
    budget: Mapping[str, object] = field(default_factory=dict)
    steps: int = 600
    seeds: int = 1
    observe: bool = True
    weights: Optimizer = WEIGHTS
    alphas: Optimizer = ALPHAS

    def __post_init__(self) -> None:
        check_types(self)
        one_of(self, "projections", PROJECTIONS)
        at_least(self, 1, "steps", "seeds")
        at_most(self, MOST_STEPS, "steps")
        at_most(self, MOST_SEEDS, "seeds")
        self.limits  # noqa: B018 - raises where the budget does not read

    @cached_property
    def limits(self) -> Budget | None:
        """The budget, read; None where nothing is limited."""
        if not self.budget:
            return None
        return Budget.of(self.budget)


@dataclass(frozen=True)
class Derive:
    """From a finished search to one genotype.

    Attributes:
      rule: the derivation, with its options in parentheses.
      tie_margin: candidates whose mixture weights differ by less are tied.
      second_opinion: another derivation, reported beside the choice; empty for none.
    """

    rule: str = "argmax"
    tie_margin: float = 0.05
    second_opinion: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.tie_margin < 1:  # at 1 everything would be tied
            reason = f"must be at least 0 and below 1, got {self.tie_margin}."
            raise FieldError("tie_margin", reason)
        self.derivation, self.opinion  # noqa: B018 - raise where a text spells no derivation

    @cached_property
    def derivation(self) -> Rule:
        """The rule, read from its text."""
        return derivations.parse(self.rule)

    @cached_property
    def opinion(self) -> Rule | None:
        """The second opinion, read from its text."""
        if not self.second_opinion:
            return None
        return derivations.parse(self.second_opinion)


@dataclass(frozen=True)
class Retrain:
    """Training from scratch, of the genotype and of the baselines.

    Attributes:
      steps: training steps of each model.
      seeds: one model is trained for each.
      select: the weights to keep: the "best" on valid, or the "last".
      patience: end a training after so many evaluations on valid without a better one; 0: train all
        steps.
      program: "own" compiles each model, "shared" compiles one program that trains every model of
        the space, at 1.2 times the seconds of a step; "auto" shares where trainings are short.
      frozen: keep the weights that `start` gives as they are, and train what else the model has, such
        as its classifier.
      optimizer: the optimizer of the weights.
    """

    steps: int = 600
    seeds: tuple[int, ...] = (0, 1, 2)
    select: str = "best"
    patience: int = 0
    program: str = "auto"
    frozen: bool = False
    optimizer: Optimizer = WEIGHTS

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "steps")
        at_most(self, MOST_STEPS, "steps")
        one_of(self, "select", SELECT)
        at_least(self, 0, "patience")
        one_of(self, "program", PROGRAMS)
        # Equal seeds would train into the same folder.
        distinct = set(self.seeds)
        if not distinct or len(distinct) < len(self.seeds) or min(distinct) < 0:
            seeds = brief(list(self.seeds))
            reason = f"must be different whole numbers of at least 0, got {seeds}."
            raise FieldError("seeds", reason)
        if max(distinct) > LARGEST_SEED:
            raise FieldError("seeds", f"must be at most {LARGEST_SEED}, got {max(distinct)}.")
        if len(distinct) > MOST_SEEDS:
            raise FieldError("seeds", f"takes at most {MOST_SEEDS} seeds, got {len(distinct)}.")


@dataclass(frozen=True)
class Race:
    """How the models that compete are compared on the way, so that the weak ones stop early.

    Attributes:
      rungs: shares of a training after which models are compared; empty to train all to the end.
      keep: share of the models that goes on at each rung before the last.
      finalists: most models that go on at the last rung.
      neighbours: most genotypes that enter because they differ from the best one in one place; 0 for none.
      metric: what they are compared by on valid: "loss", or empty for the task's metric.
    """

    rungs: tuple[float, ...] = (1 / 9, 4 / 9)
    keep: float = 0.5
    finalists: int = 4
    neighbours: int = 16
    metric: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        ends = (0.0, *self.rungs, 1.0)
        if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
            reason = f"must be shares between 0 and 1, the smallest first, got {list(self.rungs)}."
            raise FieldError("rungs", reason)
        if not 0 < self.keep <= 1:
            raise FieldError("keep", f"must be above 0 and at most 1, got {self.keep}.")
        at_least(self, 1, "finalists")
        at_least(self, 0, "neighbours")
        if self.metric not in ("", "loss"):
            reason = f"must be 'loss', or empty for the task's metric, got {brief(self.metric)}."
            raise FieldError("metric", reason)


@dataclass(frozen=True)
class Baselines:
    """What enters the race beside what the search derived.

    Attributes:
      homogeneous: one model for each candidate, with that candidate everywhere.
      random: a genotype drawn at random, trained to the end.
      uniform: all candidates mixed evenly in every layer, trained to the end. Its step costs as much
        as those of all candidates.
    """

    homogeneous: bool = True
    random: bool = True
    uniform: bool = False

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class Log:
    """How often a training reports and saves.

    Attributes:
      every: steps between lines of metrics.
      eval_every: steps between evaluations on valid.
      checkpoint_every: steps between checkpoints.
      trackers: services beside TensorBoard: "wandb", "mlflow".
    """

    every: int = 20
    eval_every: int = 100
    checkpoint_every: int = 100
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "every", "eval_every", "checkpoint_every")
        trackers.check(self.trackers)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole config. What it stands for is built once and kept with it.

    Attributes:
      seed: of the first search: initial weights, order of the examples, noise.
      start: a folder with a checkpoint, whose weights every training and the search begin with; empty
        for random ones. The model has the checkpoint's sizes, and the task its tokens.
      metric: what decides, in the search, the race and the verdict: accuracy, macro_f1,
        balanced_accuracy, auc, mcc, entity_f1 or loss; of numbers r2, mae, rmse, spearman or loss;
        of language bits_per_character, accuracy or loss. Empty for the task's own.
      task: what is learned.
      data: how examples are read and batched.
      mesh: how devices share the work.
      model: sizes and choices of the Transformer.
      space: what is searched over.
      search: how it is searched.
      derive: how one genotype is chosen.
      retrain: how models are trained from scratch.
      race: how the models that compete are compared on the way.
      baselines: what the genotype is compared with.
      log: how often a training reports and saves.
    """

    seed: int = 0
    start: str = ""
    metric: str = ""
    task: Named[Task]
    data: Data = field(default_factory=Data)
    mesh: Mesh = field(default_factory=Mesh)
    model: TransformerOptions = field(default_factory=TransformerOptions)
    space: Space = field(default_factory=Space)
    search: Search
    derive: Derive = field(default_factory=Derive)
    retrain: Retrain = field(default_factory=Retrain)
    race: Race = field(default_factory=Race)
    baselines: Baselines = field(default_factory=Baselines)
    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        check_types(self)
        between(self, 0, LARGEST_SEED - self.search.seeds + 1, "seed")
        task = self.task.built
        metrics.require_of_task(task, self.metric)
        if self.data.class_weights and task.traits.metric != metrics.ACCURACY.name:
            raise InputError(
                f"data.class_weights={self.data.class_weights!r} does not work with the task "
                f"{self.task.name}, because its labels are no classes. Use data.class_weights=''."
            )

    @cached_property
    def transformer(self) -> TransformerConfig:
        """The model's sizes for the task: a task that says nothing else reads one text of ids."""
        task = self.task.built
        return TransformerConfig(
            vocabulary=task.vocabulary,
            classes=task.classes,
            length=task.length,
            causal=task.traits.causal,
            seed=self.seed,
            inputs=getattr(task, "inputs", 1),
            features=getattr(task, "features", 0),
            **vars(self.model),
        )

    @cached_property
    def search_space(self) -> SearchSpace:
        """The candidates over the model's layers and heads."""
        model = self.model
        return SearchSpace(
            self.space.attentions,
            model.layers,
            model.heads,
            self.space.granularity,
            model.kv_heads,
        )

    @cached_property
    def shapes(self) -> dict[str, "Config"]:
        """The config of each shape of the space by name, such as "6x8"; the deepest first."""
        configs = {}
        # The config of one shape must not lead to all shapes again.
        space = dataclasses.replace(self.space, aspect="given")
        for layers, heads in shapes(self.model.layers, self.model.heads, self.space.aspect):
            model = dataclasses.replace(self.model, layers=layers, heads=heads)
            configs[f"{layers}x{heads}"] = dataclasses.replace(self, model=model, space=space)
        return configs
