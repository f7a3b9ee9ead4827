"""How much faster one wide layer answers than a deep model, at the published size (Wide Attention,
arXiv 2210.00640).

    python experiments/benchmarks/wide_latency.py >
    experiments/benchmarks/results/wide_latency_cpu2.jsonl

Width 512, heads of 64, feed-forward 2,048, 1,000 bytes of IMDb, two classes; 6 x 8 (layers x heads)
against 3 x 16, 2 x 24 and 1 x 48, full attention, untrained weights, batch 1 and 8, the models
taking turns. Published: 3.1 times, on a CPU.

Both go through what this package runs: the last layer of a model that reads its answer off CLS
computes no other token further than keys and values. `--whole` adds the same models with a last
layer of which every token is computed (mean pooling in place of CLS), so that one sees what that
accounts for. Seconds of the wall and of the processor: on a busy machine the second is the steadier
one. Memory is XLA's own count of temporaries, for inference and a training step. The last line has
`speedup`, of the wall's median at batch 1, 1 x 48 against 6 x 8."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import machine, say

from dartformer import attention, cost
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.training.step import begin, plain_step

SHAPES = ((6, 8), (3, 16), (2, 24), (1, 48))


def config(shape: tuple[int, int], length: int, pooling: str) -> TransformerConfig:
    """The published model of IMDb bytes at a shape."""
    return TransformerConfig(
        vocabulary=257,
        classes=2,
        length=length,
        layers=shape[0],
        heads=shape[1],
        head_dim=64,
        model_dim=512,
        mlp_dim=2048,
        positions="sinusoidal",
        pooling=pooling,
        classifier="mlp",
        branch_norm=False,
    )


class Answer:
    """A compiled forward pass, with the seconds of its calls."""

    def __init__(self, shape: tuple[int, int], length: int, batch: int, pooling: str):
        sized = config(shape, length, pooling)
        net = transformer(sized, Genotype.homogeneous(attention.parse("full"), *shape))
        weights = net.init(jax.random.key(0))
        self.parameters = cost.parameters(weights)
        tokens = jax.random.randint(jax.random.key(1), (batch, length), 1, 257)
        valid = jnp.ones((batch, length), bool)
        compiled = jax.jit(net.apply).lower(weights, tokens, valid).compile()
        self.bytes = int(compiled.memory_analysis().temp_size_in_bytes)
        self.call: Callable[[], Any] = lambda: jax.block_until_ready(
            compiled(weights, tokens, valid)
        )
        self.wall: list[float] = []
        self.processor: list[float] = []

    def once(self) -> None:
        """One timed call."""
        wall, processor = time.perf_counter(), time.process_time()
        self.call()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


def training_bytes(shape: tuple[int, int], length: int, batch: int) -> int:
    """Temporaries of a training step, by XLA; nothing is run."""
    net = transformer(
        config(shape, length, "cls"), Genotype.homogeneous(attention.parse("full"), *shape)
    )
    chain = optax.adamw(1e-3)
    state = jax.eval_shape(lambda: begin(net, chain, 0))
    given = {
        "tokens": jax.ShapeDtypeStruct((batch, length), jnp.int32),
        "valid": jax.ShapeDtypeStruct((batch, length), jnp.bool_),
        "label": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    compiled = jax.jit(plain_step(net, chain), donate_argnums=0).lower(state, given).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def measure(length: int, batch: int, pooling: str, rounds: int) -> float:
    """Print a line for each shape; returns the speed-up of the widest."""
    models = {shape: Answer(shape, length, batch, pooling) for shape in SHAPES}
    for model in models.values():
        model.call()
    for _ in range(rounds):
        for model in models.values():
            model.once()
    deep, wide = models[SHAPES[0]], models[SHAPES[-1]]
    for shape, model in models.items():
        say(
            name="latency",
            shape=f"{shape[0]}x{shape[1]}",
            batch=batch,
            length=length,
            pooling=pooling,
            rounds=rounds,
            parameters=model.parameters,
            wall_ms=1e3 * float(np.median(model.wall)),
            wall_ms_best=1e3 * min(model.wall),
            processor_ms=1e3 * float(np.median(model.processor)),
            inference_mib=model.bytes / 2**20,
        )
    speedup = float(np.median(np.array(deep.wall) / np.array(wide.wall)))
    say(
        name="wide over deep",
        batch=batch,
        pooling=pooling,
        speedup=speedup,
        speedup_processor=float(np.median(deep.processor) / np.median(wide.processor)),
        speedup_best=min(deep.wall) / min(wide.wall),
    )
    return speedup


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument(
        "--whole", action="store_true", help="also with a last layer that computes every token"
    )
    parser.add_argument(
        "--memory", action="store_true", help="also memory of a training step of batch 8"
    )
    arguments = parser.parse_args()
    machine()
    if arguments.whole:
        for batch in (1, 8):
            measure(arguments.length, batch, "mean", arguments.rounds)
    if arguments.memory:
        for shape in SHAPES:
            say(
                name="training memory",
                shape=f"{shape[0]}x{shape[1]}",
                batch=8,
                length=arguments.length,
                training_mib=training_bytes(shape, arguments.length, 8) / 2**20,
            )
    found = {batch: measure(arguments.length, batch, "cls", arguments.rounds) for batch in (8, 1)}
    say(name="result", speedup=found[1], speedup_batch_8=found[8], published=3.1)
