"""Search: architecture weights and weights train together; each seed ends in a mixture."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dartformer import diagnostics
from dartformer.attention import to_text
from dartformer.config import Config
from dartformer.cost.budget import Price
from dartformer.cost.prices import device_of_latencies
from dartformer.data.batches import batches, resized
from dartformer.data.splits import share_groups
from dartformer.errors import InputError
from dartformer.machine.identity import require_same
from dartformer.machine.progress import say
from dartformer.machine.record import Plain, Record
from dartformer.models.stacks import by_layer
from dartformer.models.transformer import Weights
from dartformer.results import COMPILE, Diagnostics, Finding, SearchRecord, SeedMixture
from dartformer.space.search_space import SearchSpace
from dartformer.stages.layout import Layout, Workdir
from dartformer.stages.narrow import Narrowing, Remaining
from dartformer.stages.observe import Observation, first_order_only, mean_over_seeds, observing
from dartformer.stages.study import Study
from dartformer.strategies import State, Strategy
from dartformer.training.checkpoint import Checkpoints
from dartformer.training.devices import MeshLayout, gather
from dartformer.training.log import read_metrics
from dartformer.training.loop import Fitted, Stream, ZippedStream, fit
from dartformer.training.step import CompiledStep, Step, StepProgram

Line = dict[str, Any]
"""A line of `metrics.jsonl`: its step, and numbers or lists of numbers by name."""


@dataclass(frozen=True)
class Seed:
    """What the search found with one seed.

    Attributes:
      seed: of the initial weights and alphas, of the order of the examples, and of the noise.
      alphas: `[1 or L, 1 or H, K]`, after the last step.
      mixture: `[L, H, K]`, what they stand for.
      history: lines of `metrics.jsonl`.
    """

    seed: int
    alphas: np.ndarray
    mixture: np.ndarray
    history: list[Line] = field(repr=False)


@dataclass(frozen=True)
class SearchResult:
    """What a search found: plain arrays, which survive pickling.

    Attributes:
      config: of the search.
      path: its workdir.
      space: what was searched over.
      seeds: one or more, in the order of the seeds.
      diagnostics: numbers and verdicts (see `dartformer.diagnostics`).
      seconds: spent training.
      compile_seconds: spent compiling.
      prepared: the study, with its data and compiled programs; left out of a pickle.
    """

    config: Config = field(repr=False)
    path: Path
    space: SearchSpace = field(repr=False)
    seeds: tuple[Seed, ...]
    diagnostics: Diagnostics
    seconds: float
    compile_seconds: float
    prepared: Study | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled programs and open data sets do not survive pickling.
        return {**self.__dict__, "prepared": None}

    @property
    def study(self) -> Study:
        """The study of the search."""
        if self.prepared is not None:
            return self.prepared
        return Study(self.config)

    @property
    def alphas(self) -> np.ndarray:
        """`[1 or L, 1 or H, K]` of the first seed."""
        return self.seeds[0].alphas

    @property
    def mixture(self) -> np.ndarray:
        """`[L, H, K]` of the first seed."""
        return self.seeds[0].mixture

    @property
    def history(self) -> list[Line]:
        """Lines of the first seed's `metrics.jsonl`."""
        return self.seeds[0].history

    @property
    def weights(self) -> Weights:
        """The supernet's, layer by layer, of the first seed, read from its last checkpoint."""
        return by_layer(read_states(self.study, Layout(self.path))[0].weights)


# Seeds.


@dataclass(frozen=True)
class Group:
    """Seeds that are searched in one program."""

    seeds: tuple[int, ...]
    only: bool = True
    """Whether it is the only group, which has the search's folder to itself."""

    @property
    def together(self) -> bool:
        """Whether arrays lead with a seed axis."""
        return len(self.seeds) > 1

    def folder(self, layout: Layout) -> Path:
        """Where it is searched."""
        return layout.search_of(self.seeds, self.only)

    @property
    def title(self) -> str:
        """For the progress bar."""
        if self.only:
            return "search"
        return f"search seed {self.seeds[0]}"


def groups(study: Study) -> list[Group]:
    """One program for all seeds where the strategy's mixtures are soft; otherwise one after another.

    Under `jax.vmap` a `lax.cond` computes both its sides, so a sampled strategy would pay for every
    candidate.
    """
    first = study.config.seed
    seeds = tuple(range(first, first + study.config.search.seeds))
    if len(seeds) == 1 or study.strategy.vectorises:
        return [Group(seeds)]
    return [Group((seed,), only=False) for seed in seeds]


# The state of seeds in one program: every leaf leads with them, save the step, which they share. It
# stays a scalar so that a `cond` on it, such as that of a warm-up, stays a `cond`.
AXES = State(*[0] * len(State._fields))._replace(step=None)  # type: ignore[arg-type]


def initial(study: Study, group: Group, layout: MeshLayout | None = None) -> State:
    """The state before the first step, where it lies; its values follow from the seeds alone."""
    network, strategy = study.supernet.network, study.supernet.strategy

    def of_seed(key: jax.Array) -> State:
        weights_key, key = jax.random.split(key)
        return strategy.init(key, network.init(weights_key))

    init, key = of_seed, jax.random.key(group.seeds[0])
    if group.together:
        init = jax.vmap(of_seed, out_axes=AXES)
        key = jnp.stack([jax.random.key(seed) for seed in group.seeds])
    if layout is None:
        return init(key)
    return layout.make(init, key)


def separate(state: State, group: Group) -> list[State]:
    """The state of each seed."""
    if not group.together:
        return [state]
    return [_of_seed(state, i) for i in range(len(group.seeds))]


def _of_seed(state: State, i: int) -> State:
    fields = []
    for value, axis in zip(state, AXES, strict=True):
        if axis is not None:
            value = jax.tree.map(lambda leaf: leaf[i], value)
        fields.append(value)
    return State(*fields)


# Batches.


class Feed:
    """A batch of each part for a step; of several seeds, with arrays that lead with them.

    Where batches have several lengths, those of a step are padded to the longest, so that no more
    pairs of lengths than there are lengths must be compiled.
    """

    def __init__(self, parts: list[list[Stream]], together: bool):
        # By part, then by seed: `__next__` takes them apart in this order.
        streams = list(itertools.chain.from_iterable(parts))
        self.streams = ZippedStream(*streams)
        self.count, self.together = len(parts), together
        self.get_state, self.set_state = self.streams.get_state, self.streams.set_state

    def __next__(self) -> tuple[Any, ...]:
        drawn = next(self.streams)
        widths = [batch["valid"].shape[-1] for batch in drawn]
        longest = max(widths)
        if min(widths) < longest:
            drawn = tuple(resized(batch, longest) for batch in drawn)
        if not self.together:
            return drawn
        # The seeds of each part become one batch.
        seeds = len(drawn) // self.count
        stacked = []
        for start in range(0, len(drawn), seeds):
            of_part = drawn[start : start + seeds]
            stacked.append(jax.tree.map(lambda *arrays: np.stack(arrays), *of_part))
        return tuple(stacked)


def stream(study: Study, group: Group) -> Feed:
    """Batches of the two halves of train, in each seed's own order.

    Of all of train where the strategy has but one level.
    """
    data, seed = study.config.data, study.config.seed
    names: tuple[str, ...] = ("train",)
    if study.strategy.traits.halves:
        names = ("weights", "alphas")
    parts = []
    for offset, name in enumerate(names):
        part, streams = study.parts[name], []
        for number in group.seeds:
            # The halves are drawn in different orders. Lengths follow the config's seed, so that
            # seeds in one program get batches of the same length.
            order = number + offset
            drawn = batches(
                part,
                data.batch_size,
                order,
                data.buckets,
                lengths_seed=seed,
                rows=study.rows(group.together),
            )
            streams.append(drawn)
        parts.append(streams)
    return Feed(parts, group.together)


# The step.


def step_of(study: Study, group: Group, strategy: Strategy | None = None) -> Step[State]:
    """The strategy's step on a pair of batches (or one batch twice); of several seeds, vmapped."""
    strategy = strategy or study.supernet.strategy
    if not group.together:
        return lambda state, pair: strategy.step(state, pair[0], pair[-1])

    def of_all(state: State, pair: Any) -> tuple[State, dict[str, jax.Array]]:
        # On a mesh the seeds are divided along its axis of that name.
        step = jax.vmap(strategy.step, (AXES, 0, 0), (AXES, 0), spmd_axis_name=study.seeds_axis)
        state, metrics = step(state, pair[0], pair[-1])
        # One seed that diverged stops all, because they share a program and its checkpoints.
        finite = jnp.all(metrics.pop("finite"))
        means = {name: jnp.mean(values) for name, values in metrics.items()}
        return state, {**means, "finite": finite}

    return of_all


def compiled_step(study: Study, group: Group) -> CompiledStep[State] | Narrowing:
    """The step of a group; compiled again as candidates are dropped, where the strategy drops some."""
    falls = study.strategy.drop_steps(len(study.space.candidates), study.config.search.steps)
    divided = study.layout(group.together)
    if not falls:
        return CompiledStep(step_of(study, group), divided)

    def over(remaining: Remaining) -> Step[State]:
        return step_of(study, group, study.strategy_of(remaining))

    return Narrowing(over, study.space.mixture_shape, falls, divided)


# What is logged on the way.


@dataclass(frozen=True)
class Watch:
    """What is measured of the states of a group while it is searched."""

    study: Study
    group: Group
    mixture_of: Callable[[State], jax.Array]
    observation_of: Callable[[State], Observation] | None

    def evaluate(self, state: State) -> Line:
        """Scores on valid, means over the seeds."""
        scores = []
        for seed_state in separate(state, self.group):
            mixture = self._mixture(seed_state)
            scores.append(self._scores(seed_state.weights, mixture))
        means: Line = _means(scores)
        if self.group.together:
            share = self.study.metric.share
            means["per_seed"] = [score[share] for score in scores]
        return means

    def _scores(self, weights: Weights, mixture: np.ndarray) -> dict[str, float]:
        """Valid loss and accuracy (or r2) at the mixture and at its argmax, and the gap between."""
        study = self.study
        evaluator, valid, share = study.supernet.evaluator, study.parts["valid"], study.metric.share
        soft = evaluator(weights, valid, mixture)
        # Without alphas the mixture is uniform, and its argmax would be an arbitrary candidate.
        if not study.strategy.traits.alphas:
            return soft
        winners = diagnostics.rows(mixture, study.space).winner
        discrete = study.space.mixture(study.space.genotype(winners))
        hard = evaluator(weights, valid, discrete)[share]
        gap = soft[share] - hard
        return {**soft, f"discrete_{share}": hard, "discretisation_gap": gap}

    def describe(self, state: State) -> Line:
        """Entropy and margin of the mixture's rows, means over the seeds, and the mixtures."""
        space, simplex = self.study.space, self.study.strategy.traits.simplex
        mixtures, entropies, margins = [], [], []
        for seed_state in separate(state, self.group):
            mixture = self._mixture(seed_state)
            rows = diagnostics.rows(mixture, space, simplex)
            mixtures.append(mixture)
            entropies.append(rows.entropy)
            margins.append(rows.margin)
        entropy, margin = np.mean(entropies, 0), np.mean(margins, 0)
        line: Line = {
            "entropy": float(entropy.mean()),
            "margin": float(margin.mean()),
            "entropy_rows": entropy,
            "margin_rows": margin,
        }
        if "stopped" in state.memory and np.all(gather(state.memory["stopped"])):
            line["alphas_rate"] = 0.0  # an extra stopped them, which their schedule cannot know
        # Numbers stand before the mixtures, so that a reader of curves can leave these unparsed.
        if self.group.together:
            line["mixtures"] = np.array(mixtures).tolist()
        else:
            line["mixture"] = mixtures[0].tolist()
        return line

    def observe(self, state: State) -> Line:
        """What the branches and the curvature are like, means over the seeds."""
        assert self.observation_of is not None
        observations = []
        for seed_state in separate(state, self.group):
            observations.append(self.observation_of(seed_state))
        return mean_over_seeds(observations).line()

    def _mixture(self, state: State) -> np.ndarray:
        mixture: np.ndarray = gather(self.mixture_of(state))
        return mixture


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {}
    for name in scores[0]:
        values = [score[name] for score in scores]
        means[name] = float(np.mean(values))
    return means


# The stage.


def search(study: Study, workdir: Workdir) -> SearchResult:
    """Run (or continue) the search of a study, and write `search/alphas.json`."""
    if not study.strategy.traits.supernet:
        return _without_supernet(study, workdir)
    warning = short(study.config)
    if warning:
        say(warning)
    if study.strategy.traits.halves and share_groups(study.parts["weights"], study.parts["alphas"]):
        say(
            "search: both halves of train have rows of the same groups, because the groups are too "
            "few or too unequal for two halves"
        )
    # Before the strategy is built, whose constraint reads the prices.
    keep_prices(study, workdir)
    mixture_of = jax.jit(study.supernet.strategy.mixture)
    observation_of, observe_seconds = _prepared_observation(study)
    step: StepProgram[State] | None = None
    seeds: list[Seed] = []
    states: list[State] = []
    seconds = compile_seconds = 0.0
    for group in groups(study):
        step = step or compiled_step(study, group)  # groups of one seed share it
        fitted = _fit(study, workdir, step, Watch(study, group, mixture_of, observation_of))
        seconds += fitted.seconds
        # A later group finds the program compiled, so a sum would count it again.
        compile_seconds = max(compile_seconds, fitted.compile_seconds)
        seed_states, lines = separate(fitted.state, group), histories(group, workdir)
        for number, state, history in zip(group.seeds, seed_states, lines, strict=True):
            alphas, mixture = gather((state.alphas, mixture_of(state)))
            seeds.append(Seed(number, alphas, mixture, history))
            states.append(state)
    say("search: diagnosing, with every candidate alone")
    report = _diagnose(study, seeds, states, observation_of)
    return _write(study, workdir, seeds, report, seconds, compile_seconds + observe_seconds)


def short(config: Config) -> str | None:
    """A warning where a search for a mix is shorter than a training; None otherwise.

    A candidate that learns late is judged before it has learned."""
    steps, training = config.search.steps, config.retrain.steps
    if config.space.granularity == "model" or steps >= training:
        return None
    return (
        f"warning: search.steps={steps} is less than retrain.steps={training}. A search that is "
        f"shorter than a training favors candidates that learn quickly. Set search.steps={training} "
        f"or more."
    )


def _prepared_observation(study: Study) -> tuple[Callable[[State], Observation] | None, float]:
    """The observation of a state, compiled before any clock runs that counts training."""
    if not study.config.search.observe:
        return None, 0.0
    observation_of = observing(study)
    first = groups(study)[0]
    states = separate(initial(study, first, study.layout(first.together)), first)
    say("search: compiling what is observed of the branches")
    started = time.perf_counter()
    observation_of(states[0])
    return observation_of, time.perf_counter() - started


def _fit(study: Study, workdir: Workdir, step: StepProgram[State], watch: Watch) -> Fitted[State]:
    group = watch.group
    observe = None
    if watch.observation_of is not None:
        observe = watch.observe
    return fit(
        group.title,
        step,
        initial(study, group, study.layout(group.together)),
        stream(study, group),
        study.schedule(study.config.search.steps),
        group.folder(workdir),
        evaluate=watch.evaluate,
        describe=watch.describe,
        observe=observe,
        rates=study.supernet.rates,
        metric=study.metric,
        identity=study.search_identity,
        kind="search",
    )


def _diagnose(
    study: Study,
    seeds: Sequence[Seed],
    states: Sequence[State],
    observation_of: Callable[[State], Observation] | None,
) -> Diagnostics:
    # On valid, as the whole choice is: test stays unread until everything is chosen.
    evaluator, valid = study.supernet.evaluator, study.parts["valid"]
    observed = None
    if observation_of is not None:
        observed = mean_over_seeds([observation_of(state) for state in states])

    def scores_of(i: int, mixture: np.ndarray) -> dict[str, float]:
        return evaluator(states[i].weights, valid, mixture)

    return diagnostics.of_search(
        np.array([seed.mixture for seed in seeds]),
        study.space,
        scores_of,
        study.config.derive.tie_margin,
        learned=study.strategy.traits.alphas,
        simplex=study.strategy.traits.simplex,
        findings=_judge(study, observed, seeds),
        observed=observed,
        share=study.metric.share,
    )


def _judge(study: Study, observed: Observation | None, seeds: Sequence[Seed]) -> list[Finding]:
    """Findings about what was observed; the curvature is judged by its course."""
    if observed is None:
        return []
    findings = [
        diagnostics.loudness(
            observed.rms, study.space, study.model.branch_norm, study.config.start
        ),
        diagnostics.learning(observed.gradient, study.space),
    ]
    if observed.curvature is not None:
        findings.append(diagnostics.curvature(_curvatures(seeds)))
    elif study.strategy.traits.alphas:
        names = ", ".join(first_order_only(study))
        verdict = f"the curvature is unknown, because these have no second derivative: {names}"
        findings.append(Finding("curvature", None, None, "", None, verdict))
    return findings


def _curvatures(seeds: Sequence[Seed]) -> list[float]:
    """The curvature at each evaluation, mean over the seeds."""
    courses = []
    for seed in seeds:
        course = []
        for line in seed.history:
            value = line.get("curvature")
            if value is not None:
                course.append(value)
        courses.append(course)
    # All courses end at the last step, so a shorter one lacks its beginning.
    shortest = min(map(len, courses))
    return np.mean([course[-shortest:] for course in courses], 0).tolist()


def _without_supernet(study: Study, workdir: Workdir) -> SearchResult:
    """What is written where no supernet is trained: a mixture that says nothing."""
    # Even, as before any search, so that every stage after this one finds a search to read.
    alphas = np.zeros(study.space.alphas_shape, np.float32)
    mixture = np.full(study.space.mixture_shape, 1 / alphas.shape[-1], np.float32)
    workdir.search.mkdir(exist_ok=True)
    # For a race on an engine, whose process may see other devices.
    keep_prices(study, workdir)
    seed = Seed(study.config.seed, alphas, mixture, [])
    verdict = f"{study.config.search.strategy.name} trains no supernet: nothing to judge"
    return _write(study, workdir, [seed], Diagnostics((), (verdict,)), 0.0, 0.0)


def _write(
    study: Study,
    workdir: Workdir,
    seeds: Sequence[Seed],
    report: Diagnostics,
    seconds: float,
    compile_seconds: float,
) -> SearchResult:
    mixtures = []
    for seed in seeds:
        mixtures.append(SeedMixture(seed.seed, seed.alphas, seed.mixture))
    record = SearchRecord(
        tuple(map(to_text, study.space.candidates)),
        study.space.granularity,
        seeds[0].alphas,
        seeds[0].mixture,
        tuple(mixtures),
        report,
        seconds,
        compile_seconds,
        dict(study.search_identity),
    )
    record_results(workdir, record)
    # Last, because it says that the search is finished.
    workdir.write(workdir.alphas, record)
    return SearchResult(
        study.config,
        workdir.path,
        study.space,
        tuple(seeds),
        report,
        seconds,
        compile_seconds,
        study,
    )


def record_results(workdir: Workdir, record: SearchRecord) -> None:
    """Put what a search found into `results.json`."""
    workdir.record(diagnostics=record.diagnostics)
    seconds = {"search": record.seconds, "search" + COMPILE: record.compile_seconds}
    workdir.record_seconds(seconds)


# Reading a finished search.


def histories(group: Group, layout: Layout) -> Iterator[list[Line]]:
    """The lines of `metrics.jsonl` as each seed's: with its own mixture, all else being the mean."""
    lines = read_metrics(group.folder(layout) / "metrics.jsonl")
    for i in range(len(group.seeds)):
        yield [_line_of(line, i) for line in lines]


def _line_of(line: Line, i: int) -> Line:
    if "mixtures" not in line:
        return line
    of_seed = dict(line)
    mixtures = of_seed.pop("mixtures")
    of_seed["mixture"] = mixtures[i]
    return of_seed


def read(study: Study, workdir: Workdir) -> SearchResult | None:
    """The finished search of a workdir; None if it is not finished.

    Raises `InputError` where the search was on other data or in another space.
    """
    # This file is written last, so a search that has one is finished.
    record = workdir.read_search()
    if record is None:
        return None
    require_of_study(study, workdir, record)
    lines: list[list[Line]] = []
    for group in groups(study):
        lines += histories(group, workdir)
    seeds = []
    for seed, history in zip(record.seeds, lines, strict=False):
        alphas, mixture = seed.alphas.astype(np.float32), seed.mixture.astype(np.float32)
        seeds.append(Seed(seed.seed, alphas, mixture, history))
    return SearchResult(
        study.config,
        workdir.path,
        study.space,
        tuple(seeds),
        record.diagnostics,
        record.seconds,
        record.compile_seconds,
        study,
    )


def require_of_study(study: Study, workdir: Workdir, record: SearchRecord) -> None:
    """Raise `InputError` where a finished search was on other data or in another space."""
    remedy = "Use a new workdir, or restore what the search was made with."
    name = f"the search in {workdir.path}"
    require_same(record.identity or {}, study.search_identity, name, remedy)


def read_states(study: Study, layout: Layout) -> list[State]:
    """The last state of every seed of a finished search, from its checkpoints.

    Raises `InputError` if one is gone.
    """
    states: list[State] = []
    for group in groups(study):
        folder = group.folder(layout)
        with Checkpoints(folder / "checkpoints") as checkpoints:
            like = initial(study, group, study.layout(group.together))
            restored = checkpoints.latest(like)
        # Alphas are kept in `alphas.json`; weights only here, and earlier ones do not fit them.
        if restored is None or restored.step < study.config.search.steps:
            raise InputError(
                f"the last checkpoint of the search is gone from {folder}. Run `dartformer search` "
                f"again, which continues from the checkpoint before."
            )
        states += separate(restored.state, group)
    return states


@dataclass(frozen=True)
class SearchPrices(Record):
    """`search/prices.json`: what the search under a budget takes each quantity to cost.

    Attributes:
      device: that measured them.
      budget: the requested limits.
      candidates: as texts, in the order of the prices' rows.
      prices: of each quantity.
    """

    device: str
    budget: dict[str, Plain]
    candidates: tuple[str, ...]
    prices: tuple[Price, ...]


def require_prices(study: Study, workdir: Workdir) -> None:
    """Read the prices of the search's budget; raises `InputError` where the search kept none."""
    if study.budget is None:
        return
    if workdir.read(SearchPrices, workdir.prices) is None:
        raise InputError(
            f"there are no prices of search.budget in {workdir.path}, which the search measures on "
            f"its device: run `dartformer search` first."
        )
    keep_prices(study, workdir)


def keep_prices(study: Study, workdir: Workdir) -> None:
    """Read the prices of the search's budget, or write them the first time.

    A search that is resumed on a busier machine goes on with the prices it began with.
    """
    if study.budget is None:
        return
    saved = workdir.read(SearchPrices, workdir.prices)
    if saved is not None:
        study.prices = {price.quantity: price for price in saved.prices}
        return
    record = SearchPrices(
        device_of_latencies(study.budget),
        study.budget.to_dict(),
        tuple(map(to_text, study.space.candidates)),
        tuple(study.prices.values()),
    )
    workdir.write(workdir.prices, record)
