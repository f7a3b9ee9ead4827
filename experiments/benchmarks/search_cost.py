"""What a search costs beside what a user would do instead: train every candidate, and take the best.

    python experiments/benchmarks/search_cost.py > experiments/benchmarks/results/search_cost_cpu2.jsonl
    python experiments/benchmarks/search_cost.py --only=compile    # how long 11 candidates in 6 layers take to compile

For K of eleven candidates, on one planted task: search + derive + retrain against training K models, all with as many
steps of one batch size, one seed, in one process: with the soft mixture (`single_level`, every candidate in each step),
the same while candidates are dropped, the same with branches kept (`search.remat = False`), and with sampled paths
(`spos`, one candidate in each place and step). Targets at K = 11: 0.35 of the grid's seconds for a soft one and 0.2 for
a sampled one, at an equal or better choice; temporaries of the soft supernet's step at most 1.5 times those of the
dearest model's. Seconds are the wall's and, on a busy machine the steadier ones, the processor's; compiling is apart.

`--only=growth` times one step of the soft supernet and its temporaries over length, layers, heads and candidates;
`--plot=FILE` draws them. JSON lines.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
import jax
import numpy as np
from lab import Lab
from measure import machine, say
from trial import trained

import dartformer
from dartformer import config as configs
from dartformer import starter
from dartformer.attention import format as spec
from dartformer.stages.base import Run
from dartformer.stages.search import Group, initial, step_of, stream

ELEVEN = ("local(window=4)", "full", "linear", "uniform", "strided(stride=8)", "linformer(rank=8)", "block(size=8)",
          "sparse(stride=8)", "longformer(window=4)", "performer(features=16)", "synthesizer(mode='factorised')")
"""The first four tell a user's favourites apart; `full` is the answer to recall."""

LAYERS, LENGTH = 2, 64

WARMUP = {"search.strategy.warmup": 0.2}

SEARCHES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("soft", "single_level", WARMUP),
    ("soft, dropping", "single_level", {**WARMUP, "search.strategy.extras": ("drop(stages=1, recompile=False)",)}),
    ("soft, kept", "single_level", {**WARMUP, "search.remat": False}),
    ("sampled", "spos", {}))
"""Kind, strategy and what else is set."""


@contextmanager
def opened(strategy: str, values: Mapping[str, Any]) -> Iterator[Run]:
    """A run on the planted task recall whose workdir is thrown away."""
    config = dartformer.defaults("planted", strategy)
    configs.override(config, {**starter.planted("recall"), "model.layers": LAYERS, "task.length": LENGTH,
                              "space.granularity": "model", "search.observe": False, **values})
    with tempfile.TemporaryDirectory() as folder, Run(config, Path(folder) / "run") as run:
        yield run


def compiled(lab: Lab) -> dict[str, Any]:
    """Compile the search's step, and say what that took."""
    run = lab.run
    group = Group(run.file("search"), (0,))
    times = [time.perf_counter()]
    state, batch = initial(run, group), next(stream(run, group))
    times.append(time.perf_counter())
    lowered = jax.jit(step_of(run, group), donate_argnums=0).lower(state, batch)
    times.append(time.perf_counter())
    lab._step = lowered.compile()
    times.append(time.perf_counter())
    drawn, traced, built = np.diff(times).tolist()
    return {"draw_seconds": drawn, "trace_seconds": traced, "compile_seconds": built,
            "temp_mib": lab._step.memory_analysis().temp_size_in_bytes / 2**20}


def against_grid(k: int, steps: int) -> None:
    """Both searches and the grid of the first `k` candidates."""
    values = {"space.candidates": ELEVEN[:k], "search.steps": steps, "retrain.steps": steps, "retrain.seeds": (0,)}
    alone: dict[str, dict[str, Any]] = {}
    with opened("single_level", values) as run:
        for genotype in run.space.homogeneous():
            alone[spec(genotype.layers[0][0])], _ = trained(run, genotype, together=False, test_examples=2_000)
    grid = {what: sum(one[what] for one in alone.values()) for what in ("seconds", "cpu_seconds", "compile_seconds")}
    best = max(alone, key=lambda name: alone[name]["valid"][0])
    dearest = max(one["temp_bytes"] for one in alone.values()) / 2**20
    say(name="grid", candidates=k, steps=steps, best=best, test=alone[best]["test"][0], dearest_temp_mib=dearest,
        **grid)
    for kind, strategy, more_values in SEARCHES:
        with opened(strategy, {**values, **more_values}) as run:
            lab = Lab(run)
            cost = compiled(lab)
            cpu = time.process_time()
            found, seconds = lab.search(0)
            derived, more = lab.derive(found)
            cpu = time.process_time() - cpu
            chosen = spec(derived.genotype.layers[0][0])
        after = alone[chosen]
        say(name="search", kind=kind, strategy=strategy, candidates=k, steps=steps, chosen=chosen,
            test=after["test"][0], points_below_best=100 * (alone[best]["test"][0] - after["test"][0]),
            seconds=seconds + more + after["seconds"], share=(seconds + more + after["seconds"]) / grid["seconds"],
            share_processor=(cpu + after["cpu_seconds"]) / grid["cpu_seconds"],
            temp_over_dearest=cost["temp_mib"] / dearest, **cost)


def growth(repeats: int) -> list[dict[str, Any]]:
    """A step of the soft supernet, one size changed at a time."""
    middle = {"task.length": 64, "model.layers": 2, "model.heads": 4, "candidates": 4}
    rows = []
    for name, values in (("task.length", (32, 64, 128, 256)), ("model.layers", (1, 2, 4, 8)),
                         ("model.heads", (2, 4, 8, 16)), ("candidates", (2, 4, 8, 11))):
        for value in values:
            sizes = {**middle, name: value}
            k = sizes.pop("candidates")
            with opened("single_level", {**sizes, "space.candidates": ELEVEN[:k]}) as run:
                lab = Lab(run)
                cost = compiled(lab)
                group = Group(run.file("search"), (0,))
                state, given, spent = initial(run, group), stream(run, group), []
                for _ in range(repeats + 1):
                    started = time.process_time()
                    state, _ = lab._step(state, next(given))
                    jax.block_until_ready(state)
                    spent.append(time.process_time() - started)
            rows.append(say(name="growth", over=name, value=value, processor_ms=1e3 * float(np.median(spent[1:])),
                            **cost))
    return rows


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Time and temporaries of a step over each size, on logarithmic axes."""
    from matplotlib.figure import Figure
    names = list(dict.fromkeys(row["over"] for row in rows))
    figure = Figure(figsize=(3 * len(names), 5), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        of = [row for row in rows if row["over"] == name]
        for row, what in enumerate(("processor_ms", "temp_mib")):
            at = axes[row, column]
            at.loglog([one["value"] for one in of], [one[what] for one in of], marker="o", base=2)
            at.set(title=name if row == 0 else "", ylabel=what if column == 0 else "")
            at.grid(alpha=0.3, which="both")
    figure.savefig(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("grid", "compile", "growth"), default="")
    parser.add_argument("--candidates", default="2,4,8,11")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--plot", type=Path, help="where to draw the growth")
    arguments = parser.parse_args()
    machine()
    if arguments.only in ("", "grid"):
        for k in map(int, arguments.candidates.split(",")):
            against_grid(k, arguments.steps)
    if arguments.only in ("", "compile"):
        for strategy in ("single_level", "darts"):
            with opened(strategy, {"space.candidates": ELEVEN, "model.layers": 6}) as run:
                say(name="compile", strategy=strategy, candidates=11, layers=6, **compiled(Lab(run)))
    if arguments.only in ("", "growth"):
        rows = growth(5)
        if arguments.plot:
            plot(rows, arguments.plot)
