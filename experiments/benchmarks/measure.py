"""What the benchmarks share: JSON lines, things compared that take turns, one attention
compiled."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dartformer
from dartformer.attention import Attention, Inputs, Shape
from dartformer.attention.conformance.case import arrays
from dartformer.machine.allocator import keep_freed_memory
from dartformer.machine.xla_flags import split_temporaries


def say(**numbers: Any) -> dict[str, Any]:
    """Print one JSON line, and give it back; floating-point numbers to five digits."""
    row = _rounded(numbers)
    print(json.dumps(row), flush=True)
    return row


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """Print what the figures were measured on, after keeping freed memory as the command line
    does."""
    split_temporaries()
    return say(
        name="machine",
        cores=os.cpu_count(),
        system=platform.machine(),
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
        dartformer=dartformer.__version__,
        memory_kept=keep_freed_memory(),
    )


def ratios(
    parts: Mapping[str, Callable[[], Any]], seconds: float, least: int = 5
) -> dict[str, list[float]]:
    """Seconds of every part in each of several rounds; the parts take turns.

    Args:
      parts: by name; one that gives a number has measured itself, as what runs in another process
        must.
      seconds: for each of the parts.
      least: rounds, however long they take.
    """
    for part in parts.values():
        part()
    times: dict[str, list[float]] = {name: [] for name in parts}
    until = time.perf_counter() + seconds * len(parts)
    while time.perf_counter() < until or len(next(iter(times.values()))) < least:
        for name, part in parts.items():
            started = time.perf_counter()
            measured = part()
            spent = time.perf_counter() - started
            times[name].append(measured if isinstance(measured, float) else spent)
    return times


def clocked(run: Callable[[], Any], clock: Callable[[], float]) -> Callable[[], float]:
    """What runs once and gives its seconds of `clock`, as a part of `ratios`."""

    def measured() -> float:
        started = clock()
        run()
        return clock() - started

    return measured


def median_ratio(times: Mapping[str, list[float]], over: str, under: str) -> float:
    """The median of the rounds' ratios: a machine whose speed drifts changes both sides alike."""
    return float(np.median(np.array(times[over]) / np.array(times[under])))


@dataclass(frozen=True)
class Program:
    """One attention at one shape, compiled: `run` once, what it needs, and its optimized HLO."""

    run: Callable[[], Any]
    temp_bytes: int
    largest_array: int
    text: str


def program(
    attention: Attention,
    shape: Shape,
    *,
    causal: bool,
    backward: bool = True,
    dtype: Any = jnp.float32,
) -> Program:
    """Compile the forward pass, with gradients by all that is read and by the parameters if
    `backward`."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    sizes = (shape.batch, shape.length, shape.heads, shape.head_dim)
    read = {n: jax.random.normal(next(keys), sizes, dtype) for n in "qkv"}
    if "x" in attention.traits.reads:
        read["x"] = jax.random.normal(
            next(keys), (shape.batch, shape.length, shape.model_dim), dtype
        )
    params = jax.jit(lambda key: attention.init(key, shape))(next(keys))
    cotangent = jax.random.normal(next(keys), sizes, dtype)
    head_keys, noise = jax.random.split(next(keys), shape.heads), next(keys)

    def forward(params: Any, read: dict[str, jax.Array]) -> jax.Array:
        inputs = Inputs(**{"x": None, **read}, head_keys=head_keys)
        return attention(params, inputs, causal=causal, train=True, key=noise)

    def loss(params: Any, read: dict[str, jax.Array]) -> jax.Array:
        return jnp.sum(forward(params, read) * cotangent, dtype=jnp.float32)

    traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)) if backward else forward).trace(
        params, read
    )
    compiled = traced.lower().compile()
    return Program(
        lambda: jax.block_until_ready(compiled(params, read)),
        int(compiled.memory_analysis().temp_size_in_bytes),
        max(arrays(traced.jaxpr)),
        compiled.as_text(),
    )


class Limits(NamedTuple):
    """What the cores of this process reach: FLOPs and bytes a second."""

    flops: float
    bandwidth: float


def limits(clock: Callable[[], float]) -> Limits:
    """Measured in seconds of `clock`, by a product of matrices and by an addition to 256 MiB."""
    size = 2048
    matrix = jnp.ones((size, size))
    array = jnp.ones(2**26)
    product = jax.jit(jnp.matmul)
    addition = jax.jit(jnp.add, donate_argnums=0)  # in place: no pages are mapped
    jax.block_until_ready(product(matrix, matrix))
    array = jax.block_until_ready(addition(array, 1.0))
    products = []
    additions = []
    for _ in range(7):
        started = clock()
        jax.block_until_ready(product(matrix, matrix))
        products.append(clock() - started)
        started = clock()
        array = jax.block_until_ready(addition(array, 1.0))
        additions.append(clock() - started)
    return Limits(2 * size**3 / min(products), 2 * array.nbytes / min(additions))
