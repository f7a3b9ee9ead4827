"""Search: alphas and weights move together; what comes out is a mixture, for each seed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dartformer import diagnostics
from dartformer.attention import to_text
from dartformer.data.batches import batches, resized
from dartformer.errors import InputError
from dartformer.machine.workdir import read_json, write_json
from dartformer.models.transformer import Weights
from dartformer.space.search_space import SearchSpace
from dartformer.stages.narrow import Narrowing
from dartformer.stages.observe import observing, once
from dartformer.stages.study import Run
from dartformer.strategies import State, Strategy
from dartformer.training.checkpoint import Checkpoints
from dartformer.training.log import read_metrics
from dartformer.training.loop import Schedule, Stream, ZippedStream, fit
from dartformer.training.step import CompiledStep, Step, StepProgram


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
    history: list[dict[str, Any]] = field(repr=False)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
      run: what it was run with.
      seeds: one or more, in the order of the seeds.
      diagnostics: numbers and verdicts (see `dartformer.diagnostics`).
      seconds, compile_seconds: time spent training, and compiling.
    """

    run: Run = field(repr=False)
    seeds: tuple[Seed, ...]
    diagnostics: dict[str, Any]
    seconds: float
    compile_seconds: float

    @property
    def space(self) -> SearchSpace:
        """What was searched over."""
        return self.run.space

    @property
    def alphas(self) -> np.ndarray:
        """`[1 or L, 1 or H, K]` of the first seed."""
        return self.seeds[0].alphas

    @property
    def mixture(self) -> np.ndarray:
        """`[L, H, K]` of the first seed."""
        return self.seeds[0].mixture

    @property
    def history(self) -> list[dict[str, Any]]:
        """Lines of the first seed's `metrics.jsonl`."""
        return self.seeds[0].history

    @property
    def weights(self) -> Weights:
        """The supernet's, of the first seed, read from its last checkpoint."""
        return read_states(self.run)[0].weights


@dataclass(frozen=True)
class Group:
    """Seeds that are searched in one program, in one folder."""

    folder: Path
    seeds: tuple[int, ...]

    @property
    def together(self) -> bool:
        """Whether arrays lead with a seed axis."""
        return len(self.seeds) > 1


def groups(run: Run) -> list[Group]:
    """One program for all seeds where the strategy's mixtures are soft, else one after the other.

    Under `jax.vmap` a `lax.cond` computes both its sides, so a sampled strategy would pay for every
    candidate."""
    seeds = tuple(run.config.seed + i for i in range(run.config.search.seeds))
    if len(seeds) == 1 or run.strategy.vectorises:
        return [Group(run.file("search"), seeds)]
    return [Group(run.file(f"search/seed{seed}"), (seed,)) for seed in seeds]


# The state of seeds in one program: every leaf leads with them, save the step, which they share. It
# stays a scalar so that a `cond` on it, such as that of a warm-up, stays a `cond`.
AXES = State(*[0] * len(State._fields))._replace(step=None)  # type: ignore[arg-type]


def initial(run: Run, group: Group) -> State:
    """The state before the first step; everything in it follows from the seeds."""
    network, strategy = run.supernet.network, run.supernet.strategy

    def one(key: jax.Array) -> State:
        weights_key, key = jax.random.split(key)
        return strategy.init(key, network.init(weights_key))

    keys = [jax.random.key(seed) for seed in group.seeds]
    return jax.vmap(one, out_axes=AXES)(jnp.stack(keys)) if group.together else one(keys[0])


def separate(state: State, group: Group) -> list[State]:
    """The state of each seed."""
    if not group.together:
        return [state]
    return [
        State(
            *(
                field if axis is None else jax.tree.map(lambda leaf, i=i: leaf[i], field)
                for field, axis in zip(state, AXES, strict=True)
            )
        )
        for i in range(len(group.seeds))
    ]


class Feed:
    """A batch of each part for a step, of all seeds where they go together: then each array leads
    with them.

    Where batches have several lengths, those of a step are padded to the longest, so that no more
    pairs of lengths than there are lengths must be compiled."""

    def __init__(self, parts: list[list[Stream]], together: bool):
        self.streams, self.count, self.together = (
            ZippedStream(*(s for part in parts for s in part)),
            len(parts),
            together,
        )
        self.get_state, self.set_state = self.streams.get_state, self.streams.set_state

    def __next__(self) -> tuple[Any, ...]:
        found = next(self.streams)
        widths = [batch["valid"].shape[-1] for batch in found]
        if min(widths) < max(widths):
            found = tuple(resized(batch, max(widths)) for batch in found)
        if not self.together:
            return found
        each = len(found) // self.count
        return tuple(
            jax.tree.map(lambda *arrays: np.stack(arrays), *found[i : i + each])
            for i in range(0, len(found), each)
        )


def stream(run: Run, group: Group) -> Feed:
    """Batches of the two halves of train, in each seed's own order; of all of it where there is but
    one level."""
    data = run.config.data
    parts = ("weights", "alphas") if run.strategy.traits.halves else ("train",)
    return Feed(
        [
            [
                batches(
                    run.parts[part],
                    data.batch_size,
                    seed + offset,
                    data.buckets,
                    lengths_seed=run.config.seed,
                )
                for seed in group.seeds
            ]
            for offset, part in enumerate(parts)
        ],
        group.together,
    )


def step_of(run: Run, group: Group, strategy: Strategy | None = None) -> Step[State]:
    """The strategy's step on a pair of batches (or one batch twice); for several seeds, with the
    means of metrics."""
    strategy = strategy or run.supernet.strategy
    if not group.together:
        return lambda state, pair: strategy.step(state, pair[0], pair[-1])

    def step(state: State, pair: Any) -> tuple[State, dict[str, jax.Array]]:
        state, metrics = jax.vmap(strategy.step, (AXES, 0, 0), (AXES, 0))(state, pair[0], pair[-1])
        return state, {k: jnp.all(v) if k == "finite" else jnp.mean(v) for k, v in metrics.items()}

    return step


def compiled_step(run: Run, group: Group) -> CompiledStep[State] | Narrowing:
    """The step of a group; one that is compiled again as candidates fall, where the strategy drops
    some."""
    falls = run.strategy.drop_steps(len(run.space.candidates), run.config.search.steps)
    among = run.shared(axis=1 if group.together else 0)
    if not falls:
        return CompiledStep(step_of(run, group), among)
    return Narrowing(
        lambda left: step_of(run, group, run.strategy_of(left)),
        run.space.mixture_shape,
        falls,
        among,
    )


def search(run: Run) -> SearchResult:
    """Run (or continue) the search of a run, and write `search/alphas.json`."""
    if not run.strategy.traits.supernet:
        return _without_supernet(run)
    config, space = run.config, run.space
    _, strategy, evaluator, rates = run.supernet
    mixture_of = jax.jit(strategy.mixture)
    seeds: list[Seed] = []
    states: list[State] = []
    seconds = compile_seconds = 0.0
    step: StepProgram[State] | None = None
    share = run.metric.share

    def scores(weights: Weights, mixture: np.ndarray) -> dict[str, float]:
        """Valid loss and accuracy (or r2) at the mixture; the same at its argmax, and the gap
        between them."""
        soft = evaluator(weights, run.parts["valid"], mixture)
        if not run.strategy.traits.alphas:
            return soft
        choice = space.genotype(diagnostics.rows(mixture, space)["winner"])
        hard = evaluator(weights, run.parts["valid"], space.mixture(choice))[share]
        return {**soft, f"discrete_{share}": hard, "discretisation_gap": soft[share] - hard}

    observer = observing(run) if config.search.observe else None
    observer_compile_seconds = 0.0
    if observer:  # compiled before any clock runs that counts training
        started = time.perf_counter()
        observer(separate(initial(run, groups(run)[0]), groups(run)[0])[0])
        observer_compile_seconds = time.perf_counter() - started
    for group in groups(run):

        def evaluate(state: State, group: Group = group) -> dict[str, Any]:
            found = [
                scores(one.weights, np.asarray(mixture_of(one))) for one in separate(state, group)
            ]
            means = {k: float(np.mean([f[k] for f in found])) for k in found[0]}
            return {**means, "per_seed": [f[share] for f in found]} if group.together else means

        def describe(state: State, group: Group = group) -> dict[str, Any]:
            mixtures = np.array([mixture_of(one) for one in separate(state, group)])
            rows = [diagnostics.rows(m, space, run.strategy.traits.simplex) for m in mixtures]
            means = {k: np.mean([r[k] for r in rows], 0) for k in ("entropy", "margin")}
            return {
                **{k: float(v.mean()) for k, v in means.items()},
                **{f"{k}_rows": v for k, v in means.items()},
                **(
                    {"mixtures": mixtures.tolist()}
                    if group.together
                    else {"mixture": mixtures[0].tolist()}
                ),
            }

        def observe(state: State, group: Group = group) -> dict[str, Any]:
            return means_of([observer(one) for one in separate(state, group)]) if observer else {}

        step = step or compiled_step(run, group)  # groups of one seed share it
        name = "search" if len(groups(run)) == 1 else f"search seed {group.seeds[0]}"
        fitted = fit(
            name,
            step,
            initial(run, group),
            stream(run, group),
            Schedule(
                config.search.steps,
                config.log.every,
                config.log.eval_every,
                config.log.checkpoint_every,
                config.log.trackers,
            ),
            group.folder,
            evaluate=evaluate,
            describe=describe,
            observe=observe if observer else None,
            rates=rates,
            metric=run.metric,
        )
        seconds, compile_seconds = (
            seconds + fitted.seconds,
            max(compile_seconds, fitted.compile_seconds),
        )
        for one, number, history in zip(
            separate(fitted.state, group), group.seeds, histories(group), strict=True
        ):
            states.append(one)
            seeds.append(Seed(number, np.asarray(one.alphas), np.asarray(mixture_of(one)), history))
    seen = means_of([observer(state) for state in states]) if observer else {}
    report = diagnostics.of_search(
        np.array([seed.mixture for seed in seeds]),
        space,
        lambda i, mixture: evaluator(states[i].weights, run.parts["valid"], mixture),
        config.derive.tie_margin,
        learned=run.strategy.traits.alphas,
        simplex=run.strategy.traits.simplex,
        observed=_judge(run, seen, seeds),
        share=share,
    )
    return _write(
        run, seeds, {**report, **seen}, seconds, compile_seconds + observer_compile_seconds
    )


def means_of(seen: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Means over seeds and heads of what was observed: `[L, K]` for branches (NaN without any
    weight), and a number."""
    rms, gradient = (np.stack([one[k] for one in seen]) for k in ("rms", "gradient"))
    alive = np.isfinite(gradient)
    count = alive.sum((0, -1))
    learnt = np.where(alive, gradient, 0).sum((0, -1)) / np.where(count, count, np.nan)
    return {
        "branch_rms": np.sqrt(np.mean(rms**2, (0, -1))),
        "branch_gradient": learnt,
        **(
            {"curvature": float(np.mean([one["curvature"] for one in seen]))}
            if "curvature" in seen[0]
            else {}
        ),
    }


def _judge(run: Run, seen: dict[str, Any], seeds: list[Seed]) -> list[diagnostics.Finding]:
    """What was observed, judged; the curvature by its course."""
    if not seen:
        return []
    found = [
        diagnostics.loudness(seen["branch_rms"], run.space, run.model.branch_norm),
        diagnostics.learning(seen["branch_gradient"], run.space),
    ]
    if "curvature" in seen:
        courses = [
            [line["curvature"] for line in seed.history if line.get("curvature") is not None]
            for seed in seeds
        ]
        found.append(
            diagnostics.curvature(
                np.mean([c[-min(map(len, courses)) :] for c in courses], 0).tolist()
            )
        )
    elif run.strategy.traits.alphas:
        found.append(
            diagnostics.Finding(
                "curvature",
                None,
                None,
                "",
                None,
                "the curvature is unknown: these can be "
                f"differentiated only once: {', '.join(once(run))}",
            )
        )
    return found


def _without_supernet(run: Run) -> SearchResult:
    """What is written where no supernet is trained: a mixture that says nothing."""
    alphas = np.zeros(run.space.alphas_shape, np.float32)
    mixture = np.full(run.space.mixture_shape, 1 / alphas.shape[-1], np.float32)
    run.file("search").mkdir(exist_ok=True)
    seed = Seed(run.config.seed, alphas, mixture, [])
    name = run.config.search.strategy.name
    nothing = {"findings": [], "verdicts": [f"{name} trains no supernet: nothing to judge"]}
    return _write(run, [seed], nothing, 0.0, 0.0)


def _write(
    run: Run, seeds: list[Seed], report: dict[str, Any], seconds: float, compile_seconds: float
) -> SearchResult:
    run.record(
        diagnostics=report,
        seconds={
            **run.results().get("seconds", {}),
            "search": seconds,
            "search.compile": compile_seconds,
        },
    )
    # Last, because it says that the search is finished.
    write_json(
        run.file("search/alphas.json"),
        {
            "candidates": [to_text(a) for a in run.space.candidates],
            "granularity": run.space.granularity,
            "alphas": seeds[0].alphas,
            "mixture": seeds[0].mixture,
            "seeds": [{"seed": s.seed, "alphas": s.alphas, "mixture": s.mixture} for s in seeds],
            "diagnostics": report,
            "seconds": seconds,
            "compile_seconds": compile_seconds,
        },
    )
    return SearchResult(run, tuple(seeds), report, seconds, compile_seconds)


def histories(group: Group) -> Iterator[list[dict[str, Any]]]:
    """The lines of `metrics.jsonl` as each seed's: with its own mixture, everything else being the
    mean."""
    lines = read_metrics(group.folder / "metrics.jsonl")
    for i in range(len(group.seeds)):
        yield [
            {**{k: v for k, v in line.items() if k != "mixtures"}, "mixture": line["mixtures"][i]}
            if "mixtures" in line
            else line
            for line in lines
        ]


def read(run: Run) -> SearchResult | None:
    """The finished search of a workdir; None if it is not finished."""
    file = run.file("search/alphas.json")
    if not file.exists():
        return None
    data = read_json(file)
    lines = [history for group in groups(run) for history in histories(group)]
    seeds = tuple(
        Seed(
            one["seed"],
            np.array(one["alphas"], np.float32),
            np.array(one["mixture"], np.float32),
            history,
        )
        for one, history in zip(data["seeds"], lines, strict=False)
    )
    return SearchResult(run, seeds, data["diagnostics"], data["seconds"], data["compile_seconds"])


def read_states(run: Run) -> list[State]:
    """The last state of every seed of a finished search, from its checkpoints; raises `InputError`
    if one is gone."""
    states = []
    for group in groups(run):
        with Checkpoints(group.folder / "checkpoints") as checkpoints:
            found = checkpoints.latest(initial(run, group))
        if found is None or found.step < run.config.search.steps:
            raise InputError(
                f"the last checkpoint of the search is gone from {group.folder}: run `dartformer search` "
                f"again, in a new workdir."
            )
        states += separate(found.state, group)
    return states
