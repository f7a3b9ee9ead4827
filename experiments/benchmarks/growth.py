"""A large search on 8 to 256 chips, on paper: what each chip holds, exchanges and computes.

    pip install 'dartformer[aot]'
    python experiments/benchmarks/growth.py --chips 8 16 64 256 > growth.jsonl
    python experiments/benchmarks/growth.py --table growth.jsonl

The search step of twelve candidates in each of 24 layers of width 1,024, at 4,096 tokens, compiled
for slices of TPU v5e that are not here. Each chip holds one example, and all of them divide the
state (`mesh.fsdp`). Nothing runs: bytes and exchanges are those of the compiled program, and
milliseconds are the longest of three rooflines: FLOPs, bytes of memory, and bytes between chips.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from measure import say

from dartformer.accelerators.compile import environment
from dartformer.accelerators.devices import TPU_V5E, described, require_compiler
from dartformer.accelerators.program import Program
from dartformer.config import build, defaults, override
from dartformer.stages import study as studies
from dartformer.stages.predict import searching
from dartformer.stages.study import Study
from dartformer.training.devices import MeshLayout, MeshShape

TOPOLOGIES = {
    8: "v5e:2x4",
    16: "v5e:4x4",
    32: "v5e:4x8",
    64: "v5e:8x8",
    128: "v5e:8x16",
    256: "v5e:16x16",
}

BETWEEN = 200e9
"""Bytes/s that leave a chip: 1,600 Gbit/s (https://cloud.google.com/tpu/docs/v5e)."""

CANDIDATES = (
    "full",
    "local(window=128)",
    "sink",
    "linear",
    "performer",
    "retention",
    "gated_linear",
    "gated_delta",
    "ssd",
    "differential",
    "conv",
    "identity",
)

SEARCH = {
    "model.layers": 24,
    "model.heads": 16,
    "model.head_dim": 64,
    "model.model_dim": 1024,
    "model.mlp_dim": 4096,
    "model.dtype": "bfloat16",
    "space.candidates": CANDIDATES,
    "search.observe": False,
}

TOKENS_OF_RUN = 10e9
"""Tokens that a search reads, for the hours."""


class NoTask:
    """No task is one of these, whose data would have to be here."""


class Slice(MeshLayout):
    """A layout over chips that are not here."""

    @property
    def mesh(self) -> Mesh:
        """See `MeshLayout`."""
        return self.chips

    chips: Mesh


def measure(chips: int, layers: int, length: int) -> None:
    """Print what the compiler says of the step on so many chips."""
    from jax.experimental import topologies

    config = defaults("language", granularity="layer")
    override(
        config,
        {**SEARCH, "model.layers": layers, "task.length": length, "data.batch_size": chips},
    )
    studies.Checks = NoTask  # type: ignore[misc,assignment]
    study = Study(build(config), TPU_V5E.target)
    function, (state, batch) = searching(study, chips)
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chips])
    devices = np.array(topology.devices).reshape(1, chips)
    Slice.chips = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    layout = Slice(MeshShape(1, chips, 1))
    divided = layout.state(state)
    jitted = jax.jit(
        function,
        donate_argnums=0,
        in_shardings=(divided, layout.batch),
        out_shardings=(divided, layout.replicated),
    )
    started = time.process_time()
    with described(TPU_V5E.target), jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
        lowered = jitted.lower(state, batch)
    row: dict[str, Any] = {"name": "growth", "chips": chips, "layers": layers, "length": length}
    try:
        compiled = lowered.compile(compiler_options={**TPU_V5E.options})
    except jax.errors.JaxRuntimeError as error:
        say(**row, error=str(error)[:400], compile_s=time.process_time() - started)
        return
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    facts, exchanges = program.facts(), program.exchanges()
    between = sum(exchange.bytes for exchange in exchanges.values())
    milliseconds = {
        "flops": 1e3 * facts.flops / TPU_V5E.flops,
        "memory": 1e3 * facts.moved / TPU_V5E.bandwidth,
        "exchange": 1e3 * between / BETWEEN,
    }
    bound = max(milliseconds, key=milliseconds.__getitem__)
    steps = TOKENS_OF_RUN / (chips * length)
    say(
        **row,
        state_gb=memory.argument_size_in_bytes / 1e9,
        temp_gb=memory.temp_size_in_bytes / 1e9,
        peak_gb=memory.peak_memory_in_bytes / 1e9,
        fits=memory.peak_memory_in_bytes <= TPU_V5E.memory,
        exchanges={name: list(exchange) for name, exchange in exchanges.items()},
        milliseconds=milliseconds,
        bound=bound,
        hours=steps * milliseconds[bound] / 3.6e6,
        compile_s=time.process_time() - started,
    )


def table(file: str) -> None:
    """Print a table of Markdown."""
    print(
        "| chips | state, GB | peak, GB | exchanges | GB | ms: FLOPs | memory | exchange | hours |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for line in Path(file).read_text().splitlines():
        row = json.loads(line)
        if row.get("name") != "growth" or "error" in row:
            continue
        times = sum(times for times, _ in row["exchanges"].values())
        between = sum(size for _, size in row["exchanges"].values()) / 1e9
        ms = row["milliseconds"]
        print(
            f"| {row['chips']} | {row['state_gb']:.3g} | {row['peak_gb']:.3g} | "
            f"{times} | {between:.3g} | {ms['flops']:.0f} | "
            f"{ms['memory']:.0f} | {ms['exchange']:.0f} | {row['hours']:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chips", type=int, nargs="+", default=sorted(TOPOLOGIES))
    parser.add_argument("--layers", type=int, default=SEARCH["model.layers"])
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--table", metavar="FILE", help="print the table of a file")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.table)
        return
    require_compiler(TPU_V5E)
    for chips in arguments.chips:
        if arguments.inside:
            measure(chips, arguments.layers, arguments.length)
            continue
        # A compiler that runs out of memory takes its process with it.
        options = [
            f"--chips={chips}",
            f"--layers={arguments.layers}",
            f"--length={arguments.length}",
        ]
        subprocess.run(
            [sys.executable, __file__, *options, "--inside"], env=environment(TPU_V5E), check=False
        )


if __name__ == "__main__":
    main()
