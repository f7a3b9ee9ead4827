"""What a step costs: the loop against bare JAX, second against first order, the supernet against
its candidates alone.

    python experiments/benchmarks/steps.py [--seconds=4]
    [--only=loop,order,supernet,one_hot,sampled,drop]

Prints one JSON line for each measurement. The things compared take turns within one process, in
short rounds, and each ratio is the median of the rounds' ratios, so that a machine whose speed
drifts changes both sides alike. Compiling is not counted."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import machine, median_ratio, ratios, say

from dartformer import strategies
from dartformer.attention import parse
from dartformer.data.batches import batches
from dartformer.data.splits import ArraySplit
from dartformer.models.sizes import TransformerConfig
from dartformer.models.supernet import supernet
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.training import optimizer
from dartformer.training.loop import Schedule, fit
from dartformer.training.step import CompiledStep, begin, plain_step, training_loss

SIX = ("full", "local(window=16)", "linear", "linformer(rank=32)", "uniform", "identity")


def random_batch(config: TransformerConfig, size: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        "tokens": jnp.asarray(rng.integers(1, config.vocabulary, (size, config.length)), jnp.int32),
        "valid": jnp.ones((size, config.length), bool),
        "label": jnp.asarray(rng.integers(config.classes, size=size), jnp.int32),
    }


def compile_step(step: Any, state: Any, *arguments: Any) -> Any:
    return jax.jit(step, donate_argnums=0).lower(state, *arguments).compile()


def mebibytes(compiled: Any) -> float:
    """Temporary memory that XLA plans for a program."""
    return float(compiled.memory_analysis().temp_size_in_bytes) / 2**20


def stepper(compiled: Any, state: Any, *arguments: Any, steps: int = 1) -> Callable[[], None]:
    """So many steps each time it is called, on a state that moves on."""
    held = [jax.tree.map(jnp.copy, state)]

    def once() -> None:
        for _ in range(steps):
            held[0], _ = compiled(held[0], *arguments)
        jax.block_until_ready(held[0])

    return once


def runner(step: Any, state: Any, *arguments: Any) -> Callable[[], None]:
    """One step each time it is called, compiled, on a state that moves on."""
    return stepper(compile_step(step, state, *arguments), state, *arguments)


def loop(seconds: float) -> None:
    """`train.fit`, with its log, its guard against NaN and its checkpoints, against a bare loop
    over the same compiled step: one that is fed from the same stream of batches, and one that
    repeats a batch already on the device."""
    config = TransformerConfig(vocabulary=16, classes=10, length=26)
    net = transformer(config, Genotype.homogeneous(parse("full"), config.layers, config.heads))
    chain = optimizer.build(optimizer.Optimizer(), 600)
    rng = np.random.default_rng(0)
    split = ArraySplit(
        rng.integers(1, 16, (10_000, 26)).astype(np.uint8),
        np.full(10_000, 26, np.int32),
        rng.integers(10, size=10_000).astype(np.int32),
    )
    step, short, long = CompiledStep(plain_step(net, chain)), 300, 900
    fixed = {k: jnp.asarray(v) for k, v in split.take(np.arange(32)).items()}
    step.prepare(begin(net, chain, 0), fixed)

    def bare() -> None:
        state = begin(net, chain, 0)
        for _ in range(short):
            state, _ = step(state, fixed)
        jax.block_until_ready(state)

    def fed(steps: int) -> Callable[[], None]:
        def run() -> None:
            state, stream = begin(net, chain, 0), batches(split, 32, 0)
            for _ in range(steps):
                state, _ = step(state, next(stream))
            jax.block_until_ready(state)

        return run

    def whole(steps: int, **every: int) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                fit(
                    "loop",
                    step,
                    begin(net, chain, 0),
                    batches(split, 32, 0),
                    Schedule(
                        steps,
                        **{
                            "log_every": 20,
                            "eval_every": 10**9,
                            "checkpoint_every": 10**9,
                            **every,
                        },
                    ),
                    Path(folder),
                    rates={"rate": optimizer.schedule(optimizer.Optimizer(), 900)},
                )

        return run

    os.environ["CI"] = "true"
    times = ratios(
        {
            "bare": bare,
            "fed": fed(short),
            "fed_long": fed(long),
            "fit": whole(short),
            "fit_long": whole(long),
            "fit_checkpoints": whole(short, checkpoint_every=100),
        },
        seconds,
    )
    took = {name: np.array(of) for name, of in times.items()}
    # What each further step costs, and what is paid once for each run: a line through the two
    # lengths.
    further = float(np.median((took["fit_long"] - took["fit"]) / (took["fed_long"] - took["fed"])))
    say(
        name="loop",
        steps=short,
        bare_ms=1e3 * float(np.median(took["bare"])) / short,
        fed_over_bare=median_ratio(times, "fed", "bare"),
        fit_over_fed=median_ratio(times, "fit", "fed"),
        fit_over_bare=median_ratio(times, "fit", "bare"),
        long=long,
        fit_over_fed_long=median_ratio(times, "fit_long", "fed_long"),
        each_further_step=further,
        once_seconds=float(np.median(took["fit"] - further * took["fed"])),
        fit_with_checkpoints_every_100_over_fed=median_ratio(times, "fit_checkpoints", "fed"),
        target="fit_over_fed <= 1.05",
    )


def problem(
    config: TransformerConfig, space: SearchSpace, left: Sequence[Sequence[int]] | None = None
) -> tuple[Any, strategies.Problem]:
    net = supernet(config, space, kept=left)
    return net, strategies.Problem(
        training_loss(net),
        space.alphas_shape,
        space.mixture_shape,
        optimizer.build(optimizer.Optimizer(), 100),
        optimizer.build(optimizer.Optimizer(name="adam", warmup=0.0), 100),
        100,
    )


def order(seconds: float) -> None:
    """A search step with exact second-order, and with finite-difference gradients, against first
    order; and memory."""
    config = TransformerConfig(vocabulary=16, classes=10, length=128)
    net, given = problem(config, SearchSpace(tuple(map(parse, SIX)), config.layers, config.heads))
    batch, parts, compiling, memory = random_batch(config, 32), {}, {}, {}
    for name in ("first", "second", "finite"):
        strategy = strategies.make("darts", {"hypergradient": name, "warmup": 0.0})(given)
        state = strategy.init(jax.random.key(0), net.init(jax.random.key(1)))
        started = time.perf_counter()
        compiled = compile_step(strategy.step, state, batch, batch)
        compiling[name], memory[name] = time.perf_counter() - started, mebibytes(compiled)
        parts[name] = stepper(compiled, state, batch, batch)
    times = ratios(parts, seconds)
    say(
        name="order",
        length=128,
        batch=32,
        candidates=6,
        first_ms=1e3 * float(np.median(times["first"])),
        second_ratio=median_ratio(times, "second", "first"),
        finite_ratio=median_ratio(times, "finite", "first"),
        **{f"{k}_compile_seconds": v for k, v in compiling.items()},
        **{f"{k}_temp_mib": v for k, v in memory.items()},
        target="second_ratio <= 3",
    )


def mixtures(seconds: float, one_hot: bool) -> None:
    """A weight step of the six-way supernet: against the six models alone; with one-hot mixtures,
    against both."""
    config = TransformerConfig(vocabulary=16, classes=10, length=128)
    space = SearchSpace(tuple(map(parse, SIX)), config.layers, config.heads, "model")
    net, given = problem(config, space)
    batch, key = random_batch(config, 32), jax.random.key(0)

    def step(state: Any, mixture: Any) -> Any:
        weights, moments = state
        gradient, _ = jax.grad(given.loss, has_aux=True)(weights, mixture, batch, key)
        updates, moments = given.weights_optimizer.update(gradient, moments, weights)
        return (jax.tree.map(jnp.add, weights, updates), moments), None

    weights = net.init(key)
    state = weights, given.weights_optimizer.init(weights)
    uniform = jnp.full(space.mixture_shape, 1 / len(SIX), jnp.float32)
    parts = {"supernet": runner(step, state, uniform)}
    chain = optimizer.build(optimizer.Optimizer(), 100)
    for spec, genotype in zip(SIX, space.homogeneous(), strict=True):
        single = transformer(config, genotype)
        parts[spec] = runner(plain_step(single, chain), begin(single, chain, 0), batch)
        if one_hot:
            parts[f"one_hot {spec}"] = runner(step, state, jnp.asarray(space.mixture(genotype)))
    times = ratios(parts, seconds)
    if one_hot:
        milliseconds = {f"{spec}_ms": 1e3 * float(np.median(times[spec])) for spec in SIX}
        say(
            name="one_hot_over_mixture",
            length=128,
            batch=32,
            mixture_ms=1e3 * float(np.median(times["supernet"])),
            **{spec: median_ratio(times, f"one_hot {spec}", "supernet") for spec in SIX},
            target="each <= 0.5",
        )
        say(
            name="one_hot_over_alone",
            length=128,
            batch=32,
            **milliseconds,
            **{spec: median_ratio(times, f"one_hot {spec}", spec) for spec in SIX},
            target="each <= 1.3",
        )
        say(
            name="alone_over_mixture",
            length=128,
            batch=32,
            **{spec: median_ratio(times, spec, "supernet") for spec in SIX},
        )
        return
    total = np.sum([times[spec] for spec in SIX], 0)
    say(
        name="supernet",
        length=128,
        batch=32,
        supernet_ms=1e3 * float(np.median(times["supernet"])),
        **{f"{spec}_ms": 1e3 * float(np.median(times[spec])) for spec in SIX},
        supernet_over_sum=float(np.median(np.array(times["supernet"]) / total)),
        target="supernet_over_sum <= 0.6",
    )


PATHS = {"spos": 1, "random_sharing": 1, "gumbel": 2, "proxyless": 3}
"""Forward and backward passes of one path that a step takes: of the weights; of weights and alphas;
of weights and two paths for the alphas."""


def sampled(seconds: float) -> None:
    """A step of the strategies that sample paths, against the models of the space alone, all
    equally often."""
    config = TransformerConfig(vocabulary=16, classes=10, length=128)
    space = SearchSpace(tuple(map(parse, SIX)), config.layers, config.heads, "layer")
    net, given = problem(config, space)
    batch, chain, parts = random_batch(config, 32), optimizer.build(optimizer.Optimizer(), 100), {}
    for spec, genotype in zip(SIX, space.homogeneous(), strict=True):
        single = transformer(config, genotype)
        parts[spec] = runner(plain_step(single, chain), begin(single, chain, 0), batch)
    for name in PATHS:
        strategy = strategies.make(name, {"warmup": 0.0} if PATHS[name] > 1 else {})(given)
        state = strategy.init(jax.random.key(0), net.init(jax.random.key(1)))
        parts[name] = stepper(
            compile_step(strategy.step, state, batch, batch), state, batch, batch, steps=len(SIX)
        )
    times = ratios(parts, seconds)
    alone = np.sum([times[spec] for spec in SIX], 0)
    over = {name: float(np.median(np.array(times[name]) / alone)) for name in PATHS}
    say(
        name="sampled",
        length=128,
        batch=32,
        candidates=6,
        alone_ms=1e3 * float(np.median(alone)) / len(SIX),
        step_over_alone=over,
        for_each_path={name: over[name] / n for name, n in PATHS.items()},
        target="for_each_path <= 1.3",
    )


def drop(seconds: float) -> None:
    """A DARTS step compiled over fewer and fewer candidates, as `drop` leaves them."""
    config = TransformerConfig(vocabulary=16, classes=10, length=512, layers=2, heads=4)
    space = SearchSpace(tuple(map(parse, SIX)), config.layers, config.heads)
    batch, parts, memory = random_batch(config, 16), {}, {}
    options = strategies.make("darts", {"warmup": 0.0, "extras": (strategies.EXTRAS["drop"](),)})
    for left in (
        SIX,
        ("local(window=16)",),
        ("full", "linear", "uniform"),
        ("linear", "uniform"),
        ("uniform",),
    ):
        net, given = problem(config, space, [[SIX.index(spec) for spec in left]] * config.layers)
        strategy, key = options(given), ", ".join(left)
        state = strategy.init(jax.random.key(0), net.init(jax.random.key(1)))
        alive = jnp.broadcast_to(jnp.array([spec in left for spec in SIX]), space.alphas_shape)
        state = state._replace(memory={"alive": alive})
        compiled = compile_step(strategy.step, state, batch, batch)
        memory[key], parts[key] = mebibytes(compiled), stepper(compiled, state, batch, batch)
    times = ratios(parts, seconds)
    say(
        name="drop",
        length=512,
        batch=16,
        layers=2,
        heads=4,
        temp_mib=memory,
        ms={k: 1e3 * float(np.median(v)) for k, v in times.items()},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="for each thing compared")
    parser.add_argument("--only", default="loop,order,supernet,one_hot,sampled,drop")
    arguments = parser.parse_args()
    machine()
    for one in arguments.only.split(","):
        {
            "loop": loop,
            "order": order,
            "supernet": lambda s: mixtures(s, False),
            "one_hot": lambda s: mixtures(s, True),
            "sampled": sampled,
            "drop": drop,
        }[one](arguments.seconds)
