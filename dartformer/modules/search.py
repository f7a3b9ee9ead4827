"""Search in a user's module: any strategy, on any loss, with a log and checkpoints."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dartformer import diagnostics, strategies
from dartformer.attention import to_text
from dartformer.config.presets import strategy_defaults
from dartformer.config.sections import ALPHAS, WEIGHTS
from dartformer.errors import InputError, brief, seed_problem
from dartformer.machine.frames import frame
from dartformer.machine.identity import Identity, fingerprint
from dartformer.machine.workdir import LockedFolder, write_checked_json
from dartformer.modules.data import Batches, Parts, form_of, parts_of
from dartformer.modules.functions import BATCHES, Evaluator, Functions, UserLoss
from dartformer.modules.places import require_order, space_of
from dartformer.modules.shown import Shown
from dartformer.results import Diagnostics, Finding, SearchRecord, SeedMixture
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import GRANULARITIES, Granularity, SearchSpace
from dartformer.strategies import Problem, State, Strategy, StrategyOptions
from dartformer.strategies.base import Weights
from dartformer.training import optimizer
from dartformer.training.callbacks import Callback, Stopped, calling
from dartformer.training.log import read_metrics
from dartformer.training.loop import Diverged, Fitted, Schedule, ZippedStream, fit
from dartformer.training.metric import LOSS
from dartformer.training.optimizer import Optimizer
from dartformer.training.step import CompiledStep, Step
from dartformer.training.trackers import check as check_trackers

Line = dict[str, Any]
"""A line of `metrics.jsonl`: its step, and numbers or lists of numbers by name."""

OptimizerOf: TypeAlias = Optimizer | optax.GradientTransformation
"""An optimizer of this package, with its schedule, or one of optax."""


@dataclass(frozen=True)
class Settings:
    """How a module is searched; what `df.search` takes beside module, loss and data.

    Attributes:
      strategy: how weights and architecture weights move.
      granularity: what has a choice of its own: "model", "layer", "kv_group" or "head".
      steps: of training.
      batch_size: of data that are arrays.
      seed: of architecture weights, noise and the order of arrays.
      weights, alphas: their optimizers.
      log_every, eval_every: in steps.
      trackers: names of trackers.
    """

    strategy: StrategyOptions
    granularity: Granularity
    steps: int
    batch_size: int
    seed: int
    weights: OptimizerOf
    alphas: OptimizerOf
    log_every: int
    eval_every: int
    trackers: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "eval_every", "seed"):
            value = getattr(self, name)
            least = int(name != "seed")
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise InputError(
                    f"{name} must be a whole number of at least {least}, got {brief(value)}."
                )
            # Of NumPy, too; the text of one is part of what a workdir was made with.
            object.__setattr__(self, name, int(value))
        problem = seed_problem(self.seed)
        if problem:
            raise InputError(f"seed {problem}")
        for name in ("weights", "alphas"):
            require_optimizer(f"{name}_optimizer", getattr(self, name))
        check_trackers(self.trackers, "trackers")
        if not self.strategy.traits.supernet:
            raise InputError(
                "the strategy 'race' trains no mixed layers. Use df.race on a module instead."
            )


@dataclass(frozen=True)
class ModuleSearch(Shown):
    """What a search in a module found.

    Attributes:
      space: what was searched over; layer l is the lth of `places`.
      places: where the mixed layers are, such as "blocks.0.attention".
      alphas: `[1 or L, 1 or H, K]`, after the last step.
      mixture: `[L, H, K]`, what they stand for.
      history: lines of `metrics.jsonl`.
      diagnosis: numbers and verdicts, by the loss on valid.
      seconds: spent training.
      compile_seconds: spent compiling.
      processor_seconds: of all cores in `seconds`.
      path: the workdir; None where nothing was kept.
    """

    space: SearchSpace
    places: tuple[str, ...]
    alphas: np.ndarray
    mixture: np.ndarray
    history: list[Line] = field(repr=False)
    diagnosis: Diagnostics = field(repr=False)
    seconds: float
    compile_seconds: float
    processor_seconds: float
    path: Path | None
    searched: "Searched" = field(repr=False, compare=False)

    @property
    def model(self) -> nnx.Module:
        """The module with the weights of the search, at its mixture, in evaluation mode."""
        return self._at(self.mixture)

    def at(self, genotype: Genotype) -> nnx.Module:
        """The module at the one-hot mixture of a genotype, in evaluation mode.

        `df.replace` of it has the same outputs.
        """
        return self._at(self.space.mixture(genotype))

    def _at(self, mixture: np.ndarray) -> nnx.Module:
        done = self.searched
        # Of batch norms: those of another mixture would say nothing.
        statistics = done.evaluator.statistics(done.weights, mixture)
        rows = jnp.asarray(mixture)
        return done.functions.module(done.weights, rows, statistics, train=False)

    def table(self) -> Any:
        """The mixture: a row for each layer and head, with the weight of each candidate.

        A DataFrame where pandas is installed, and a list of dictionaries elsewhere."""
        names = list(map(to_text, self.space.candidates))
        records: list[dict[str, object]] = []
        for layer, place in enumerate(self.places):
            for head, weights in enumerate(self.mixture[layer].tolist()):
                where = {"layer": layer, "place": place, "head": head}
                records.append({**where, **dict(zip(names, weights, strict=True))})
        return frame(records)

    @property
    def verdict(self) -> tuple[str, ...]:
        """What the diagnosis says, as sentences."""
        return self.diagnosis.verdicts


@dataclass(frozen=True)
class Searched:
    """What derivations and the race need of a search beside its numbers."""

    functions: Functions
    parts: Parts
    settings: Settings
    evaluator: Evaluator
    weights: Weights
    tie_margin: float


def search(
    model: nnx.Module,
    loss: UserLoss,
    data: Mapping[str, Batches],
    *,
    space: Granularity = "layer",
    strategy: str | Mapping[str, Any] | StrategyOptions = "darts",
    steps: int = 600,
    workdir: str | Path | None = None,
    batch_size: int = 32,
    seed: int = 0,
    weights_optimizer: OptimizerOf | None = None,
    alphas_optimizer: OptimizerOf | None = None,
    log_every: int = 20,
    eval_every: int = 100,
    tie_margin: float = 0.05,
    trackers: Sequence[str] = (),
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
) -> ModuleSearch:
    """Search in a module that holds `df.nn.MixedAttention` layers; it stays as it is.

    Args:
      model: the module, with its initial weights.
      loss: (module, batch, random streams) -> a scalar.
      data: "weights", "alphas" and "valid", or "train", which is divided, and "valid". Each is
        arrays (one, or a dict or tuple of them), or a list, a loader, or a function that returns an
        iterator, of batches.
      space: what has a choice of its own: "model", "layer", "kv_group" or "head".
      strategy: its name; or a dict with its name and options, such as `{"name": "darts",
        "extras": ["drop(keep=2)"]}`; or the options themselves.
      steps: of training.
      workdir: a folder for the log and the checkpoints, from which the same call continues. None
        keeps nothing.
      batch_size: of data that are arrays.
      seed: of architecture weights, noise and the order of arrays.
      weights_optimizer: of this package, with a schedule, or of optax.
      alphas_optimizer: the same for architecture weights.
      log_every: steps between lines of the log.
      eval_every: steps between evaluations on valid.
      tie_margin: candidates closer than this in the mixture count as tied.
      trackers: names of trackers, see `dartformer list trackers`.
      on_step: called with a `Moment` after every step; False stops, see
        `dartformer.training.callbacks`.
      on_evaluation: the same after every evaluation, when its checkpoint is written.

    Raises:
      InputError: for a module without mixed layers or with some that share parameters, a loss that
        is no scalar, data that end early, or options that do not work.
      Diverged: the loss is not finite.
    """
    if space not in GRANULARITIES:
        raise InputError(f"space must be one of {', '.join(GRANULARITIES)}, got {space!r}.")
    if isinstance(tie_margin, bool) or not isinstance(tie_margin, Real):
        raise InputError(f"tie_margin must be a number, got {brief(tie_margin)}.")
    if not callable(loss):
        raise InputError(f"loss must be a function of (model, batch, rngs), got {brief(loss)}.")
    options = strategy_of(strategy)
    settings = Settings(
        options,
        space,
        steps,
        batch_size,
        seed,
        weights_optimizer or WEIGHTS,
        alphas_optimizer or _alphas_optimizer(options),
        log_every,
        eval_every,
        tuple(trackers),
    )
    functions = Functions(model, loss)
    require_order(functions.places, options.order)
    parts = parts_of(data, batch_size, seed, options.traits.halves)
    run = _Search(functions, parts, settings, tie_margin)
    with _folder(workdir) as folder, calling(on_step, on_evaluation):
        return run.result(folder, workdir is not None)


def strategy_of(strategy: str | Mapping[str, Any] | StrategyOptions) -> StrategyOptions:
    """A strategy from its name, or its name with its options."""
    if isinstance(strategy, str):
        return strategies.make(strategy, {})
    if isinstance(strategy, Mapping):
        values = dict(strategy)
        return strategies.make(str(values.pop("name", "darts")), values)
    if not hasattr(strategy, "traits"):
        raise InputError(
            f"strategy must be a name, a dict with a name and options, or options, got "
            f"{brief(strategy)}."
        )
    return strategy


def _alphas_optimizer(options: StrategyOptions) -> Optimizer:
    for name, cls in strategies.STRATEGIES.items():
        if cls is type(options):
            return strategy_defaults(name).alphas
    return ALPHAS


@contextlib.contextmanager
def _folder(workdir: str | Path | None) -> Iterator[Path]:
    """The workdir, held; or a folder that is deleted in the end."""
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="dartformer-") as folder:
            try:
                yield Path(folder)
            except Stopped as stopped:
                raise Stopped(stopped.moment, saved=False) from None
        return
    path = Path(workdir)
    lock = LockedFolder(path)
    try:
        yield path
    finally:
        lock.close()


def require_optimizer(name: str, chosen: object) -> None:
    """Raise `InputError` for what is no optimizer of this package or of optax."""
    if not isinstance(chosen, (Optimizer, optax.GradientTransformation)):
        raise InputError(
            f"{name} must be an optimizer of optax, such as optax.adamw(1e-3), got {brief(chosen)}."
        )


def chain_of(chosen: OptimizerOf, steps: int) -> optax.GradientTransformation:
    """The optimizer as an optax chain."""
    if isinstance(chosen, Optimizer):
        return optimizer.build(chosen, steps)
    return chosen


class _Search:
    """One search; the methods are its phases, in their order."""

    def __init__(
        self, functions: Functions, parts: Parts, settings: Settings, tie_margin: float
    ) -> None:
        self.functions, self.parts, self.settings = functions, parts, settings
        self.tie_margin = tie_margin
        self.space = space_of(functions.places, settings.granularity)
        settings.strategy.check(len(self.space.candidates), settings.steps)
        self.strategy = self._strategy()
        self.mixture_of = jax.jit(self.strategy.mixture)
        count = 1
        if functions.statistics:
            count = BATCHES
        batches = parts.weights.head(count)
        self._require_scalar("weights", batches[0])
        self._require_scalar("alphas", parts.alphas.head(1)[0])
        self._require_scalar("valid", next(parts.valid.once()))
        self.evaluator = Evaluator(functions, batches)

    def _strategy(self) -> Strategy:
        settings = self.settings
        problem = Problem(
            loss=self.functions.loss,
            alphas_shape=self.space.alphas_shape,
            mixture_shape=self.space.mixture_shape,
            weights_optimizer=chain_of(settings.weights, settings.steps),
            alphas_optimizer=chain_of(settings.alphas, settings.steps),
            steps=settings.steps,
        )
        return settings.strategy(problem)

    def _require_scalar(self, part: str, batch: Any) -> None:
        """Raise what the loss raises on a part, before anything is compiled."""
        mixture = jnp.zeros(self.space.mixture_shape)
        key = jax.random.key(0)
        try:
            jax.eval_shape(self.functions.loss, self.functions.weights, mixture, batch, key)
        except Exception as error:
            # The user's own error stays as it is; parts may hold batches of other forms.
            error.add_note(f"Raised in the loss, on a batch of data[{part!r}] of {form_of(batch)}.")
            raise

    def result(self, folder: Path, kept: bool) -> ModuleSearch:
        """Train, diagnose, and write `search/alphas.json`."""
        try:
            fitted = self._fit(folder / "search")
        except Diverged as error:
            self._explain(error)
            raise
        state = fitted.state
        alphas, mixture = np.asarray(state.alphas), np.asarray(self.mixture_of(state))
        diagnosis = self._diagnose(state.weights, mixture)
        history = read_metrics(folder / "search" / "metrics.jsonl")
        path = None
        if kept:
            path = folder
            self._write(folder, fitted, alphas, mixture, diagnosis)
        names = tuple(place.name for place in self.functions.places)
        return ModuleSearch(
            self.space,
            names,
            alphas,
            mixture,
            history,
            diagnosis,
            fitted.seconds,
            fitted.compile_seconds,
            fitted.processor_seconds,
            path,
            Searched(
                self.functions,
                self.parts,
                self.settings,
                self.evaluator,
                state.weights,
                self.tie_margin,
            ),
        )

    def _explain(self, error: Diverged) -> None:
        """Raise `InputError` where a training's data have missing values."""
        for part in (self.parts.weights, self.parts.alphas):
            where = part.missing(self.settings.steps)
            if where:
                raise InputError(
                    f"{where}, and the loss is not finite. Fill them, or leave these examples out."
                ) from error

    def _fit(self, folder: Path) -> Fitted[State]:
        settings, parts = self.settings, self.parts
        rates: dict[str, optax.Schedule] = {}
        if isinstance(settings.weights, Optimizer):
            rates["weights_rate"] = optimizer.schedule(settings.weights, settings.steps)
        if isinstance(settings.alphas, Optimizer) and settings.strategy.traits.alphas:
            schedule = optimizer.schedule(settings.alphas, settings.steps)
            rates["alphas_rate"] = settings.strategy.alphas_rate(schedule, settings.steps)
        if settings.strategy.traits.halves:
            weights, alphas = parts.weights, parts.alphas
            stream = ZippedStream(weights.stream(settings.seed), alphas.stream(settings.seed + 1))
        else:
            stream = ZippedStream(parts.train(settings.seed))
        return fit(
            "search",
            CompiledStep(self._step()),
            self._initial(),
            stream,
            Schedule(
                settings.steps,
                settings.log_every,
                settings.eval_every,
                settings.eval_every,
                settings.trackers,
            ),
            folder,
            evaluate=self._evaluate,
            describe=self._describe,
            rates=rates,
            metric=LOSS,
            identity=self._identity(),
            kind="search",
        )

    def _step(self) -> Step[State]:
        return lambda state, pair: self.strategy.step(state, pair[0], pair[-1])

    def _initial(self) -> State:
        # Copied, because a step writes the new weights over the old ones.
        weights = jax.tree.map(jnp.copy, self.functions.weights)
        return self.strategy.init(jax.random.key(self.settings.seed), weights)

    def _identity(self) -> Identity:
        settings = self.settings
        shapes = jax.tree.map(lambda leaf: list(leaf.shape), self.functions.weights)
        space = [
            settings.granularity,
            list(self.space.mixture_shape),
            list(map(to_text, self.space.candidates)),
        ]
        chosen = [repr(settings.strategy), settings.steps, settings.seed, settings.batch_size]
        for chain in (settings.weights, settings.alphas):
            # Those of optax are functions, which have no text.
            if isinstance(chain, Optimizer):
                chosen.append(repr(chain))
        return {
            "model": fingerprint(jax.tree.leaves_with_path(shapes)),
            "space": fingerprint(space),
            "search": fingerprint(chosen),
        }

    def _evaluate(self, state: State) -> Line:
        """The loss on valid at the mixture and at its largest weights."""
        mixture = np.asarray(self.mixture_of(state))
        line: Line = {"loss": self.evaluator.mean(state.weights, mixture, self.parts.valid)}
        if self.settings.strategy.traits.alphas:
            discrete = self._discrete(mixture)
            hard = self.evaluator.mean(state.weights, discrete, self.parts.valid)
            line["discrete_loss"] = hard
        return line

    def _discrete(self, mixture: np.ndarray) -> np.ndarray:
        winners = diagnostics.rows(mixture, self.space).winner
        return self.space.mixture(self.space.genotype(winners))

    def _describe(self, state: State) -> Line:
        """Entropy and margin of the mixture's rows, and the mixture."""
        mixture = np.asarray(self.mixture_of(state))
        rows = diagnostics.rows(mixture, self.space, self.settings.strategy.traits.simplex)
        line: Line = {
            "entropy": float(rows.entropy.mean()),
            "margin": float(rows.margin.mean()),
            "mixture": mixture.tolist(),
        }
        if "stopped" in state.memory and bool(state.memory["stopped"]):
            line["alphas_rate"] = 0.0  # an extra stopped them, which their schedule cannot know
        return line

    def _diagnose(self, weights: Weights, mixture: np.ndarray) -> Diagnostics:
        """Findings about the mixture, and the loss of each candidate alone, on valid."""
        traits, space = self.settings.strategy.traits, self.space
        valid = self.parts.valid
        soft = {"loss": self.evaluator.mean(weights, mixture, valid)}
        alone = {}
        for genotype in space.homogeneous():
            value = self.evaluator.mean(weights, space.mixture(genotype), valid)
            alone[to_text(genotype.layers[0][0])] = {"loss": value}
        findings = diagnostics.of_mixtures(
            mixture[None], space, self.tie_margin, learned=traits.alphas, simplex=traits.simplex
        )
        if not traits.alphas:
            judged = diagnostics.verdicts(findings)
            return Diagnostics(tuple(findings), judged, valid_soft=soft, alone=alone)
        hard = {"loss": self.evaluator.mean(weights, self._discrete(mixture), valid)}
        findings.append(discretization(soft["loss"], hard["loss"]))
        rows = diagnostics.rows(mixture, space, traits.simplex)
        return Diagnostics(
            tuple(findings),
            diagnostics.verdicts(findings),
            entropy=rows.entropy,
            margin=rows.margin,
            valid_soft=soft,
            alone=alone,
            valid_discrete=hard,
            discretisation_gap=soft["loss"] - hard["loss"],
        )

    def _write(
        self,
        folder: Path,
        fitted: Fitted[State],
        alphas: np.ndarray,
        mixture: np.ndarray,
        diagnosis: Diagnostics,
    ) -> None:
        record = SearchRecord(
            tuple(map(to_text, self.space.candidates)),
            self.settings.granularity,
            alphas,
            mixture,
            (SeedMixture(self.settings.seed, alphas, mixture),),
            diagnosis,
            fitted.seconds,
            fitted.compile_seconds,
            dict(self._identity()),
        )
        write_checked_json(folder / "search" / "alphas.json", record.to_dict())


MOST_WORSE = 0.05
"""Share by which the loss may rise where the mixture becomes its largest weights."""


def discretization(soft: float, hard: float) -> Finding:
    """Whether the module keeps its loss on valid when each row becomes its largest weight."""
    source = "this package: a twentieth of the loss"
    rise = hard - soft
    share = rise / max(abs(soft), diagnostics.TINY)
    fine = share <= MOST_WORSE
    verdict = f"discretization takes the loss on valid from {soft:.4g} to {hard:.4g}"
    if not fine:
        verdict += ": what was trained is the mixture, not its winner"
    return Finding("discretisation", share, MOST_WORSE, source, fine, verdict)
