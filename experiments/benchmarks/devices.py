"""A training step on one device and on several: processor seconds, and what devices exchange.

    python experiments/benchmarks/devices.py > experiments/benchmarks/results/devices_cpu2.jsonl

The devices are parts of this machine's CPU. Processor seconds, and not those of a clock, show
whether the devices share the work or repeat it.
"""

import contextlib
import os
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
from measure import machine, say

from dartformer.attention import parse
from dartformer.data.splits import Batch
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.training.devices import MeshLayout, MeshShape
from dartformer.training.step import CompiledStep, TrainState, begin, plain_step

DEVICES, BATCH, LENGTH, STEPS = 4, 8, 1024, 5
TYPES = ("full", "fourier", "gated_delta")
EXCHANGES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")


class ByXla(CompiledStep):
    """A step that XLA divides by its own rules, without a mesh for attention."""

    def _mesh(self):
        return contextlib.nullcontext()


def seconds_of(program: CompiledStep[TrainState], state: TrainState, batch: Batch) -> float:
    """Processor seconds of a step, on all devices together."""
    state, _ = program(state, batch)
    jax.block_until_ready(state)
    started = time.process_time()
    for _ in range(STEPS):
        state, _ = program(state, batch)
    jax.block_until_ready(state)
    return (time.process_time() - started) / STEPS


def measure(name: str) -> None:
    """Print a line for one type: ratios of processor seconds to those of one device."""
    config = TransformerConfig(
        vocabulary=256, classes=2, length=LENGTH, layers=2, heads=4, head_dim=64, model_dim=256
    )
    net = transformer(config, Genotype(((parse(name),) * 4,) * 2))
    chain = optax.adam(1e-3)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 256, (BATCH, LENGTH)).astype(np.int32),
        "valid": np.ones((BATCH, LENGTH), bool),
        "label": rng.integers(0, 2, BATCH).astype(np.int32),
    }
    line: dict[str, object] = {
        "attention": name,
        "devices": DEVICES,
        "batch": BATCH,
        "length": LENGTH,
    }
    parallel = MeshLayout(MeshShape(DEVICES, 1, 1))
    step = plain_step(net, chain)
    one_device = 0.0
    for form, program in (
        ("one", CompiledStep(step)),
        ("by_xla", ByXla(step, parallel)),
        ("by_examples", CompiledStep(step, parallel)),
    ):
        try:
            seconds = seconds_of(program, begin(net, chain, 0), batch)
        except jax.errors.JaxRuntimeError as error:
            line[form] = {"raises": str(error).splitlines()[0][:100]}
            continue
        if form == "one":
            one_device = seconds
        (compiled,) = program.programs.values()
        text = compiled.as_text()
        exchanged = {}
        for operation in EXCHANGES:
            exchanged[operation] = text.count(f" {operation}(")
        line[form] = {
            "processor_s": round(seconds, 3),
            "ratio": round(seconds / one_device, 2),
            **exchanged,
        }
    say(**line)


if __name__ == "__main__":
    machine()
    for attention in TYPES:
        measure(attention)
