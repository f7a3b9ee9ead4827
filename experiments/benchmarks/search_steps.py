"""Steps of published configs by the compilers for a TPU v5e and an H100; neither is needed.

    pip install 'dartformer[aot]'
    python experiments/benchmarks/search_steps.py listops_published --steps search second > steps.jsonl
    python experiments/benchmarks/search_steps.py image_published --steps bigbird --device=h100
    python experiments/benchmarks/search_steps.py recall_mixes --device=cpu
    python experiments/benchmarks/search_steps.py --table before.jsonl after.jsonl

A step is that of a search, by the order of its hypergradient, or of training one attention in all
heads. These are facts of compilers: whether a step fits, its memory, its FLOPs, bytes that it moves,
and processor seconds to compile it. "cpu" is this process's own compiler.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from measure import say

from dartformer import config as configs
from dartformer.accelerators.compile import GaveUp, TooLarge, environment, estimate
from dartformer.accelerators.devices import DEVICES, device_of, require_compiler
from dartformer.attention import parse
from dartformer.machine import compile_cache
from dartformer.space.genotype import Genotype
from dartformer.stages import study as studies
from dartformer.stages.predict import Step, searching, training
from dartformer.stages.study import Study

SPACES = Path(__file__).parents[2] / "search_spaces"

HYPERGRADIENTS = {
    "search": "first",
    "second": "second",
    "finite": "finite",
    "neumann": "neumann",
    "conjugate_gradient": "conjugate_gradient",
}
"""The hypergradient of each step of a search."""


class NoTask:
    """No task is one of these, whose data would have to be here."""


def study_of(config: str, step: str, changes: dict[str, str], device: str) -> Study:
    """The study of a config, without its data."""
    if step in HYPERGRADIENTS:
        changes = {"search.strategy.hypergradient": HYPERGRADIENTS[step], **changes}
    target = None
    if device != "cpu":
        target = device_of(device).target
    studies.Checks = NoTask  # type: ignore[misc,assignment]
    return Study(configs.load_config(SPACES / f"{config}.py", changes), target)


def step_of(study: Study, step: str) -> Step:
    """A step of a search, or one that trains an attention in every head of every layer."""
    size, model = study.config.data.batch_size, study.model
    if step in HYPERGRADIENTS:
        return searching(study, size)
    genotype = Genotype(((parse(step),) * model.heads,) * model.layers)
    return training(study, genotype, size)


def measure(config: str, step: str, changes: dict[str, str], device: str) -> None:
    """Print one line: what the compiler says of a step."""
    study = study_of(config, step, changes, device)
    function, shapes = step_of(study, step)
    data = study.config.data
    row = {
        "config": config,
        "step": step,
        "device": device,
        "batch": data.batch_size,
        "accumulate": data.accumulate,
        "changes": changes,
    }
    if device == "cpu":
        say(**row, **here(function, shapes))
        return
    try:
        found = estimate(device_of(device), function, *shapes, donate=(0,))
    except TooLarge as error:
        say(**row, fits=False, needed_gb=error.needed / 1e9)
        return
    except GaveUp as error:
        say(**row, fits=False, error=str(error)[:300])
        return
    say(
        **row,
        fits=True,
        temp_gb=found.temp_bytes / 1e9,
        peak_gb=found.peak_bytes / 1e9,
        gflop=found.flops / 1e9,
        moved_gb=found.moved_bytes / 1e9,
        roofline_ms=found.roofline_ms,
        largest_gb=found.largest_bytes / 1e9,
        largest=found.largest_array,
        conditionals=found.operations["conditional"],
        compile_s=found.compile_seconds,
    )


def here(function: Callable[..., Any], shapes: tuple[Any, ...]) -> dict[str, float]:
    """What this process's compiler says of a step."""
    started = time.process_time()
    lowered = jax.jit(function, donate_argnums=0).lower(*shapes)
    traced = time.process_time()
    compiled = lowered.compile()
    done = time.process_time()
    memory = compiled.memory_analysis()
    return {
        "temp_gb": memory.temp_size_in_bytes / 1e9,
        "trace_s": traced - started,
        "compile_s": done - traced,
    }


def environment_of(device: str) -> dict[str, str]:
    """Of a process that compiles for a device."""
    if device == "cpu":
        return {**os.environ, "JAX_PLATFORMS": "cpu", compile_cache.VARIABLE: "off"}
    return environment(device_of(device))


COLUMNS = {"temp_gb": "temporaries, GB", "peak_gb": "peak, GB", "compile_s": "compile, s"}


def table(files: list[str]) -> None:
    """Print a table of Markdown: the first file before, the last one after."""
    found: list[dict[tuple[Any, ...], dict[str, Any]]] = []
    for file in files:
        rows = map(json.loads, Path(file).read_text().splitlines())
        found.append({(r["device"], r["config"], r["step"]): r for r in rows})
    before, after = found[0], found[-1]
    print(
        "| device | config | step | batch (parts) | fits | " + " | ".join(COLUMNS.values()) + " |"
    )
    print("|---" * (5 + len(COLUMNS)) + "|")
    for key, row in after.items():
        old = before.get(key, {})
        cells = [*key, f"{row['batch']} ({row['accumulate']})"]
        cells.append(f"{fits(old)} → {fits(row)}" if old else fits(row))
        for column in COLUMNS:
            cells.append(
                f"{number(old, column)} → {number(row, column)}" if old else number(row, column)
            )
        print("| " + " | ".join(cells) + " |")


def fits(row: dict[str, Any]) -> str:
    """Of a row: whether it fits, or how much it needs."""
    if row.get("fits", True):
        return "yes"
    return f"no, {row.get('needed_gb', 0):.1f} GB"


def number(row: dict[str, Any], column: str) -> str:
    """A cell."""
    if column not in row:
        return "-"
    return f"{row[column]:,.1f}" if row[column] < 100 else f"{row[column]:,.0f}"


def main() -> None:
    """Measure each step in a process of its own, or print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", help="names of search_spaces/")
    parser.add_argument("--steps", nargs="+", default=["search"])
    parser.add_argument("--device", choices=[*DEVICES, "cpu"], default="tpu-v5e")
    parser.add_argument(
        "--set", action="append", default=[], help="a change of the config, as key=value"
    )
    parser.add_argument("--table", nargs="+", metavar="FILE")
    parser.add_argument("--alone", action="store_true", help="measure in this process")
    args = parser.parse_args()
    if args.table:
        table(args.table)
        return
    changes = dict(one.split("=", 1) for one in args.set)
    if args.alone:
        measure(args.configs[0], args.steps[0], changes, args.device)
        return
    if args.device != "cpu":
        require_compiler(device_of(args.device))
    for config in args.configs:
        for step in args.steps:
            command = [sys.executable, __file__, config, "--steps", step, "--alone"]
            command += [f"--device={args.device}", *(f"--set={one}" for one in args.set)]
            subprocess.run(command, env=environment_of(args.device), check=True)


if __name__ == "__main__":
    main()
