"""Cost by measurement on this device: latency, and what XLA says of the same compiled program."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dartformer.attention.base import Attention, Inputs
from dartformer.cost.budget import PHASES
from dartformer.errors import unknown
from dartformer.models.transformer import (
    Block,
    GroupedHeads,
    Network,
    TransformerConfig,
    alibi_slopes,
    attend,
    head_keys,
    own_parameters,
    transformer,
    values,
)
from dartformer.space.genotype import Genotype

clock: Callable[[], float] = time.perf_counter
"""What tells the time. On one core of a busy machine a benchmark may take `time.process_time`
instead."""


@dataclass(frozen=True)
class Measured:
    """A compiled program, measured.

    Attributes:
      seconds: "median", "p90" and "min" of a call.
      temp_bytes: XLA's `temp_size_in_bytes`: intermediate arrays that are in memory at once.
      xla_flops: XLA's `cost_analysis`, which counts the body of a loop once; None where it has
        none.
    """

    seconds: dict[str, float]
    temp_bytes: int
    xla_flops: float | None


def device() -> str:
    """The device in words: two machines with the same words may share a table of latencies."""
    one = jax.devices()[0]
    if one.platform != "cpu":
        return f"{one.platform}: {one.device_kind}"
    info = Path("/proc/cpuinfo")
    models = (
        [
            line.partition(":")[2].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return f"cpu: {models[0] if models else platform.processor() or platform.machine()}, {cores()} cores"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_phase(phase: str, allowed: tuple[str, ...] = PHASES) -> None:
    """Raise `InputError` for a phase that there is not."""
    if phase not in allowed:
        raise unknown("phase", phase, allowed)


def latency(call: Callable[..., Any], *args: Any, repeats: int = 20) -> dict[str, float]:
    """Seconds of `call(*args)` on this device, compiled and warmed up: median, 90th percentile and
    minimum."""
    for _ in range(2):
        jax.block_until_ready(call(*args))
    times = []
    for _ in range(repeats):
        started = clock()
        jax.block_until_ready(call(*args))
        times.append(clock() - started)
    return {
        "median": float(np.median(times)),
        "p90": float(np.quantile(times, 0.9)),
        "min": min(times),
    }


def measured(function: Callable[..., Any], *args: Any, repeats: int) -> Measured:
    """Compile `function` for `args`, and time it."""
    compiled = jax.jit(function).lower(*args).compile()
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    assert memory is not None
    counted = analysis.get("flops") if isinstance(analysis, dict) else None
    return Measured(
        latency(compiled, *args, repeats=repeats), int(memory.temp_size_in_bytes), counted
    )


def model(
    config: TransformerConfig,
    genotype: Genotype,
    *,
    batch: int,
    length: int | None = None,
    phase: str = "forward",
    repeats: int = 20,
) -> Measured:
    """A whole model with fresh weights on full-length inputs: a forward pass, or the gradient of a
    loss (no optimiser).

    Raises `InputError` for the phase "decode": no model here is run token by token.
    """
    check_phase(phase, ("forward", "train"))
    net = transformer(config, genotype)
    weights = net.init(jax.random.key(0))
    tokens, valid = (jnp.ones(a.shape, a.dtype) for a in config.blank(batch, length))
    if phase == "forward":
        return measured(net.apply, weights, tokens, valid, repeats=repeats)
    return measured(
        jax.value_and_grad(_loss_of(net)),
        weights,
        tokens,
        valid,
        jax.random.key(1),
        repeats=repeats,
    )


def temp_bytes(
    config: TransformerConfig,
    genotype: Genotype,
    *,
    batch: int,
    length: int | None = None,
    phase: str = "forward",
) -> int:
    """XLA's `temp_size_in_bytes` of a whole model: compiled, not run."""
    check_phase(phase, ("forward", "train"))
    net = transformer(config, genotype)
    weights, key = (
        jax.eval_shape(f) for f in (lambda: net.init(jax.random.key(0)), lambda: jax.random.key(0))
    )
    blank = config.blank(batch, length)
    if phase == "forward":
        lowered = jax.jit(net.apply).lower(weights, *blank)
    else:
        lowered = jax.jit(jax.value_and_grad(_loss_of(net))).lower(weights, *blank, key)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    return int(memory.temp_size_in_bytes)


def _loss_of(net: Network) -> Callable[..., Any]:
    def loss(weights: Any, tokens: Any, valid: Any, key: Any) -> Any:
        return jnp.mean(net.apply(weights, tokens, valid, train=True, key=key) ** 2)

    return loss


def forward_latency(
    config: TransformerConfig,
    genotype: Genotype,
    *,
    batch: int,
    length: int | None = None,
    repeats: int = 20,
) -> dict[str, float]:
    """Measured seconds of one forward pass of a genotype with fresh weights."""
    return model(config, genotype, batch=batch, length=length, repeats=repeats).seconds


def layer(
    config: TransformerConfig,
    genotype: Genotype,
    index: int,
    *,
    batch: int,
    length: int | None = None,
    phase: str = "forward",
    repeats: int = 20,
) -> Measured:
    """One block of a model: norms, projections, attentions, feed-forward."""
    function, args = _block(config, genotype, index, batch, length, phase)
    return measured(function, *args, repeats=repeats)


def block(
    config: TransformerConfig,
    genotype: Genotype,
    index: int,
    *,
    batch: int,
    length: int | None = None,
    phase: str = "forward",
) -> Callable[[], Any]:
    """The same block, compiled, to be called."""
    function, args = _block(config, genotype, index, batch, length, phase)
    compiled = jax.jit(function).lower(*args).compile()
    return lambda: compiled(*args)


def _block(
    config: TransformerConfig,
    genotype: Genotype,
    index: int,
    batch: int,
    length: int | None,
    phase: str,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    check_phase(phase, ("forward", "train"))
    n = config.tokens if length is None else length
    documents = batch * config.inputs

    def make() -> Block:
        rngs = nnx.Rngs(params=jax.random.key(0))
        return Block(config, GroupedHeads(config, genotype, index, rngs=rngs), rngs=rngs)

    structure, state = nnx.split(make())
    weights = nnx.to_pure_dict(state)
    x = jax.random.normal(
        jax.random.key(1), (documents, n, config.model_dim), jnp.dtype(config.dtype)
    )
    valid = jnp.ones((documents, n), bool)

    def apply(weights: Any, x: Any, key: Any) -> Any:
        return nnx.merge(structure, weights)(x, valid, None, train=phase == "train", key=key)

    return _forward_or_gradient(apply, phase), (weights, x, jax.random.key(2))


def attention(
    config: TransformerConfig,
    one: Attention,
    heads: int,
    *,
    batch: int,
    length: int | None = None,
    phase: str = "forward",
    repeats: int = 20,
) -> Measured:
    """One attention on its group of `heads` heads of a layer: no projections."""
    check_phase(phase, ("forward", "train"))
    given, params = attention_inputs(config, one, heads, batch=batch, length=length)

    def apply(params: Any, given: Any, key: Any) -> Any:
        return attend(
            one,
            params,
            Inputs(**given, **fixed(config, heads)),
            config,
            train=phase == "train",
            key=key,
        )

    return measured(
        _forward_or_gradient(apply, phase), params, given, jax.random.key(2), repeats=repeats
    )


def attention_inputs(
    config: TransformerConfig, one: Attention, heads: int, *, batch: int, length: int | None = None
) -> tuple[dict[str, Any], Any]:
    """Random q, k, v `[B, N, heads, D]`, x and valid; and the attention's own parameters."""
    n = config.tokens if length is None else length
    dtype, keys = jnp.dtype(config.dtype), iter(jax.random.split(jax.random.key(0), 4))
    sizes = (batch * config.inputs, n, heads, config.head_dim)
    given: dict[str, Any] = {name: jax.random.normal(next(keys), sizes, dtype) for name in "qkv"}
    given["x"] = jax.random.normal(next(keys), (*sizes[:2], config.model_dim), dtype)
    params = values(own_parameters(one, config, heads, nnx.Rngs(params=jax.random.key(1))))
    return given, params


def fixed(config: TransformerConfig, heads: int) -> dict[str, Any]:
    """What a layer gives its attentions beside arrays."""
    slopes = alibi_slopes(config.heads)[:heads] if config.positions == "alibi" else None
    return {
        "head_keys": head_keys(config, 0)[:heads],
        "dropout": config.attention_dropout,
        "kernel": config.kernel,
        "slopes": None if slopes is None else jnp.asarray(slopes, jnp.dtype(config.dtype)),
    }


def _forward_or_gradient(
    apply: Callable[[Any, Any, Any], Any], phase: str
) -> Callable[[Any, Any, Any], Any]:
    if phase == "forward":
        return apply

    def loss(params: Any, x: Any, key: Any) -> Any:
        return jnp.sum(apply(params, x, key).astype(jnp.float32) ** 2)

    return jax.grad(loss, (0, 1))
