"""What a search costs beside what a user would do instead: train every candidate, and take the
best.

    python experiments/benchmarks/search_cost.py >
    experiments/benchmarks/results/search_cost_cpu2.jsonl python
    experiments/benchmarks/search_cost.py --only=compile    # how long 11 candidates in 6 layers
    take to compile,
                                                                   # the first time and through the
                                                                   compile cache

For K of eleven candidates, on one planted task: search + derive + retrain against training K
models, all with as many steps of one batch size, one seed, in one process: with the soft mixture
(`single_level`, every candidate in each step), the same while candidates are dropped, with branches
kept (`search.remat = False`), with both, and with sampled paths (`spos`, one candidate in each
place and step). Targets at K = 11: 0.35 of the grid's seconds for a soft one and 0.2 for a sampled
one, at an equal or better choice; temporaries of the soft supernet's step at most 1.5 times those
of the most expensive model's. Seconds are the wall's and, on a busy machine the steadier ones, the
processor's; compiling is apart (but for the processor's seconds where a step is compiled again
because candidates were dropped).

`--only=growth` times one step of the soft supernet and its temporaries (of one device) over length,
layers, heads, candidates and devices, fakes of one CPU where there is no other; `--plot=FILE` draws
them. JSON lines."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
import jax
import numpy as np
from lab import Lab
from measure import machine, say
from trial import trained

import dartformer
from dartformer.attention import to_text
from dartformer.cli.new import space_file
from dartformer.stages.narrow import Narrowing
from dartformer.stages.search import Group, compiled_step, initial, stream
from dartformer.stages.study import Study
from dartformer.training.step import CompiledStep

ELEVEN = (
    "local(window=4)",
    "full",
    "linear",
    "uniform",
    "strided(stride=8)",
    "linformer(rank=8)",
    "block(size=8)",
    "sparse(stride=8)",
    "longformer(window=4)",
    "performer(features=16)",
    "synthesizer(mode='factorised')",
)
"""The first four tell a user's favourites apart; `full` is the answer to recall."""

LAYERS, LENGTH = 2, 64

MIDDLE, REPEATS = {"task.length": 64, "model.layers": 2, "model.heads": 4}, 20
"""From where one size is changed at a time, with four candidates; and steps that are timed."""

WARMUP = {"search.strategy.warmup": 0.2}

SEARCHES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("soft", "single_level", WARMUP),
    (
        "soft, dropping",
        "single_level",
        {**WARMUP, "search.strategy.extras": ("drop(stages=1, recompile=False)",)},
    ),
    ("soft, kept", "single_level", {**WARMUP, "search.remat": False}),
    (
        "soft, kept, dropping",
        "single_level",
        {**WARMUP, "search.remat": False, "search.strategy.extras": ("drop(stages=1)",)},
    ),
    ("sampled", "spos", {}),
)
"""Kind, strategy and what else is set."""


def study_of(strategy: str, values: Mapping[str, Any]) -> Study:
    """A study on the planted task recall."""
    config = dartformer.load_config(
        space_file("planted", kind="recall"),
        {
            "search.strategy.name": strategy,
            "model.layers": LAYERS,
            "task.length": LENGTH,
            "space.granularity": "model",
            "search.observe": False,
            **values,
        },
    )
    return Study(config)


def temporaries(step: CompiledStep[Any] | Narrowing) -> float:
    """MiB of the hungriest program of a step, on one device."""
    return max(
        temporaries(one)
        if isinstance(one, CompiledStep)
        else one.memory_analysis().temp_size_in_bytes / 2**20
        for one in step.programs.values()
    )


def compiled(run: Study) -> tuple[CompiledStep[Any] | Narrowing, dict[str, Any]]:
    """The search's step, compiled, and what that took."""
    group, started = Group((0,)), time.perf_counter()
    state, batch = initial(run, group), next(stream(run, group))
    drawn, step = time.perf_counter() - started, compiled_step(run, group)
    step.prepare(state, batch)
    return step, {
        "draw_seconds": drawn,
        "compile_seconds": step.compile_seconds,
        "temp_mib": temporaries(step),
    }


def against_grid(k: int, steps: int) -> None:
    """Both searches and the grid of the first `k` candidates."""
    values = {
        "space.candidates": ELEVEN[:k],
        "search.steps": steps,
        "retrain.steps": steps,
        "retrain.seeds": (0,),
    }
    alone: dict[str, dict[str, Any]] = {}
    run = study_of("single_level", values)
    for genotype in run.space.homogeneous():
        alone[to_text(genotype.layers[0][0])], _ = trained(
            run, genotype, together=False, test_examples=2_000
        )
    grid = {
        what: sum(one[what] for one in alone.values())
        for what in ("seconds", "cpu_seconds", "compile_seconds")
    }
    best = max(alone, key=lambda name: alone[name]["valid"][0])
    dearest = max(one["temp_bytes"] for one in alone.values()) / 2**20
    say(
        name="grid",
        candidates=k,
        steps=steps,
        best=best,
        test=alone[best]["test"][0],
        dearest_temp_mib=dearest,
        **grid,
    )
    for kind, strategy, more_values in SEARCHES:
        run = study_of(strategy, {**values, **more_values})
        lab = Lab(run)
        lab.step, cost = compiled(run)
        cpu = time.process_time()
        found, seconds = lab.search(0)
        derived, more = lab.derive(found)
        cpu = time.process_time() - cpu
        cost.update(compile_seconds=lab.step.compile_seconds, temp_mib=temporaries(lab.step))
        chosen = to_text(derived.genotype.layers[0][0])
        after = alone[chosen]
        say(
            name="search",
            kind=kind,
            strategy=strategy,
            candidates=k,
            steps=steps,
            chosen=chosen,
            test=after["test"][0],
            points_below_best=100 * (alone[best]["test"][0] - after["test"][0]),
            seconds=seconds + more + after["seconds"],
            share=(seconds + more + after["seconds"]) / grid["seconds"],
            share_processor=(cpu + after["cpu_seconds"]) / grid["cpu_seconds"],
            temp_over_dearest=cost["temp_mib"] / dearest,
            **cost,
        )


def growth() -> list[dict[str, Any]]:
    """A step of the soft supernet, one size changed at a time."""
    rows = []
    for name, values in (
        ("task.length", (32, 64, 128, 256)),
        ("model.layers", (1, 2, 4, 8)),
        ("model.heads", (2, 4, 8, 16)),
        ("candidates", (2, 4, 8, 11)),
    ):
        for value in values:
            sizes = {**MIDDLE, "candidates": 4, name: value}
            k = sizes.pop("candidates")
            cost = one_step({**sizes, "space.candidates": ELEVEN[:k]})
            rows.append(say(name="growth", over=name, value=value, **cost))
    for devices in (1, 2, 4):
        row = apart(
            "--devices", str(devices), XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}"
        )
        rows.append(say(**row))
    return rows


def one_step(values: Mapping[str, Any]) -> dict[str, Any]:
    """Median milliseconds of a step of the soft supernet, the wall's and the processor's, and what
    it took to make."""
    run = study_of("single_level", values)
    step, cost = compiled(run)
    group = Group((0,))
    state, given, spent = initial(run, group), stream(run, group), []
    for _ in range(REPEATS + 1):
        started = time.perf_counter(), time.process_time()
        state, _ = step(state, next(given))
        jax.block_until_ready(state)
        spent.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    wall, processor = 1e3 * np.median(spent[1:], 0)
    return {"wall_ms": float(wall), "processor_ms": float(processor), **cost}


def apart(*options: str, **environment: str) -> dict[str, Any]:
    """The last line of this script with these options, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *options],
        env={**os.environ, **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Time and temporaries of a step over each size, on logarithmic axes that the panels of a row
    share."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    names = list(dict.fromkeys(row["over"] for row in rows))
    figure = Figure(figsize=(2.6 * len(names), 5), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row")
    for column, name in enumerate(names):
        of = [row for row in rows if row["over"] == name]
        sizes = [one["value"] for one in of]
        for row, what in enumerate(("wall_ms", "temp_mib")):
            at = axes[row, column]
            at.loglog(sizes, [one[what] for one in of], marker="o", base=2)
            at.set_xticks(sizes, labels=[str(size) for size in sizes])
            at.yaxis.set_major_formatter(ScalarFormatter())
            at.xaxis.set_minor_formatter(NullFormatter())
            at.grid(alpha=0.3)
        axes[1, column].set_xlabel(name)
    axes[0, 0].set_ylabel("a step, ms of the wall")
    axes[1, 0].set_ylabel("temporaries of a device, MiB")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("grid", "compile", "growth"), default="")
    parser.add_argument("--candidates", default="2,4,8,11")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--plot", type=Path, help="where to draw the growth")
    parser.add_argument(
        "--strategy", default="", help="compile for this one alone, in this process"
    )
    parser.add_argument(
        "--devices", type=int, default=0, help="time one step on so many devices, in this process"
    )
    arguments = parser.parse_args()
    if arguments.strategy:
        run = study_of(arguments.strategy, {"space.candidates": ELEVEN, "model.layers": 6})
        say(
            name="compile",
            strategy=arguments.strategy,
            candidates=11,
            layers=6,
            **compiled(run)[1],
        )
        sys.exit()
    if arguments.devices:
        say(
            name="growth",
            over="devices",
            value=arguments.devices,
            **one_step({**MIDDLE, "space.candidates": ELEVEN[:4], "mesh.data": arguments.devices}),
        )
        sys.exit()
    machine()
    if arguments.only in ("", "grid"):
        for k in map(int, arguments.candidates.split(",")):
            against_grid(k, arguments.steps)
    if arguments.only in ("", "compile"):
        for strategy in ("single_level", "darts", "spos"):
            with tempfile.TemporaryDirectory() as cache:
                for again in (False, True):
                    started = time.perf_counter()
                    found = apart("--strategy", strategy, XDG_CACHE_HOME=cache)
                    say(**found, from_cache=again, process_seconds=time.perf_counter() - started)
    if arguments.only in ("", "growth"):
        rows = growth()
        if arguments.plot:
            plot(rows, arguments.plot)
