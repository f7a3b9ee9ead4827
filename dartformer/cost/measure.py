"""Cost by measurement on this device: latency, and XLA's own figures of the compiled program."""

import functools
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dartformer.attention.base import Attention, Cache, Inputs
from dartformer.cost.budget import check_phase
from dartformer.models.decode import decoding, layer_advance, layer_cache, place_of
from dartformer.models.layerwise import block_of
from dartformer.models.mixers import GroupedHeads, attend, head_keys, own_parameters, values
from dartformer.models.positions import alibi_slopes
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Block, Network, Weights, label_scores, transformer
from dartformer.space.genotype import Genotype

clock: Callable[[], float] = time.perf_counter
"""The clock of all measurements. On a single core of a busy machine a benchmark may replace it by
`time.process_time`."""

WARM_UPS = 2
RUN_PHASES = ("forward", "train")
"""The phases of a whole input; `decode` measures one more token."""


class Latency(NamedTuple):
    """Seconds of a call: the median, the 90th percentile and the minimum of the repeats."""

    median: float
    p90: float
    min: float


@dataclass(frozen=True)
class Measured:
    """A compiled program, measured.

    Attributes:
      seconds: of a call.
      temp_bytes: XLA's `temp_size_in_bytes`: intermediate arrays that are in memory at once.
      xla_flops: XLA's `cost_analysis`, which counts the body of a loop once; None where XLA has
        none.
      argument_bytes: of what the program is given, such as weights and a cache.
    """

    seconds: Latency
    temp_bytes: int
    xla_flops: float | None
    argument_bytes: int = 0


def device() -> str:
    """The device in words: two machines with the same words may share a table of latencies."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{first.platform}: {first.device_kind}"
    return f"cpu: {_cpu()}, {cores()} cores"


def _cpu() -> str:
    """The model of the processor, from Linux where it runs."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def latency(call: Callable[..., object], *args: object, repeats: int = 20) -> Latency:
    """Seconds of `call(*args)` on this device, compiled and warmed up."""
    # The first calls allocate buffers and fill caches.
    for _ in range(WARM_UPS):
        jax.block_until_ready(call(*args))
    times = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(call(*args))
        times.append(clock() - start)
    return Latency(float(np.median(times)), float(np.quantile(times, 0.9)), min(times))


def measured(function: Callable[..., object], *args: object, repeats: int) -> Measured:
    """Compile `function` for `args`, and time it."""
    compiled = jax.jit(function).lower(*args).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    # Not every backend counts FLOPs.
    analysis = compiled.cost_analysis()
    xla_flops = None
    if isinstance(analysis, dict):
        xla_flops = analysis.get("flops")
    seconds = latency(compiled, *args, repeats=repeats)
    return Measured(seconds, int(memory.temp_size_in_bytes), xla_flops)


def model(
    config: TransformerConfig,
    genotype: Genotype,
    *,
    batch: int,
    length: int | None = None,
    phase: str = "forward",
    repeats: int = 20,
) -> Measured:
    """A model with fresh weights on full-length inputs: a forward pass, or a loss's gradient.

    No optimiser runs. Raises `InputError` for the phase "decode"."""
    program = model_program(config, genotype, batch, length, phase)
    return measured(program.function, *program.arguments, repeats=repeats)


class Program(NamedTuple):
    """A function, and its arguments."""

    function: Callable[..., object]
    arguments: tuple[object, ...]


def model_program(
    config: TransformerConfig, genotype: Genotype, batch: int, length: int | None, phase: str
) -> Program:
    """What `model` measures."""
    check_phase(phase, RUN_PHASES)
    net = transformer(config, genotype)
    weights = net.init(jax.random.key(0))
    tokens, valid = (jnp.ones(blank.shape, blank.dtype) for blank in config.blank(batch, length))
    if phase == "forward":
        return Program(net.apply, (weights, tokens, valid))
    gradient = jax.value_and_grad(_loss_of(net, config))
    return Program(gradient, (weights, tokens, valid, jax.random.key(1)))


def block_program(
    config: TransformerConfig, genotype: Genotype, batch: int, length: int | None, phase: str
) -> Program:
    """What `block` runs: the first block of a model."""
    return Program(*_block(config, genotype, 0, batch, length, phase))


def decode(
    config: TransformerConfig,
    genotype: Genotype,
    *,
    batch: int,
    length: int | None = None,
    repeats: int = 20,
) -> Measured:
    """One more token of each of `batch` rows, the last of `length`, with fresh weights.

    Raises `InputError` for a model that cannot continue a text.
    """
    n = length or config.length
    run = decoding(config, genotype)
    weights = transformer(config, genotype).init(jax.random.key(0))
    empty = jax.jit(run.init_cache, static_argnums=(0, 1, 2))
    cache = empty(batch, n, jnp.dtype(config.dtype))
    cache = {**cache, "count": jnp.full(batch, n - 1, jnp.int32)}
    tokens, valid = jnp.ones((batch, 1), jnp.int32), jnp.ones((batch, 1), bool)

    def step(weights: Weights, tokens: Array, valid: Array, cache: Cache) -> tuple[Array, Cache]:
        logits, after = run.step(weights, tokens, valid, cache)
        # The same place again: a cache that is full has room for no other.
        return logits, {**after, "count": cache["count"]}

    # The cache is given away, as in a generation: a step writes into it, and does not copy it.
    compiled = jax.jit(step, donate_argnums=3).lower(weights, tokens, valid, cache).compile()
    memory = compiled.memory_analysis()
    assert memory is not None

    def call() -> Array:
        nonlocal cache
        logits, cache = compiled(weights, tokens, valid, cache)
        return logits

    seconds = latency(call, repeats=repeats)
    temporary, given = memory.temp_size_in_bytes, memory.argument_size_in_bytes
    return Measured(seconds, int(temporary), None, int(given))


def temp_bytes(
    config: TransformerConfig,
    genotype: Genotype,
    *,
    batch: int,
    length: int | None = None,
    phase: str = "forward",
) -> int:
    """XLA's `temp_size_in_bytes` of a model: compiled, not run."""
    check_phase(phase, RUN_PHASES)
    net = transformer(config, genotype)
    # Shapes alone: a model that does not fit this device can still be compiled for it.
    key = jax.eval_shape(lambda: jax.random.key(0))
    weights = jax.eval_shape(net.init, key)
    blank = config.blank(batch, length)
    if phase == "forward":
        lowered = jax.jit(net.apply).lower(weights, *blank)
    else:
        lowered = jax.jit(jax.value_and_grad(_loss_of(net, config))).lower(weights, *blank, key)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    return int(memory.temp_size_in_bytes)


def _loss_of(
    net: Network, config: TransformerConfig
) -> Callable[[Weights, Array, Array, Array], Array]:
    """A scalar of the outputs, so that there is a gradient to measure."""

    def of_token(logits: Array, labels: Array) -> Array:
        return jnp.mean(logits**2, -1)

    def loss(weights: Weights, tokens: Array, valid: Array, key: Array) -> Array:
        if config.logits_size(*valid.shape[:2]):
            # In parts, as a training computes them: all at once may not fit into memory.
            labels = jnp.zeros(valid.shape, jnp.int32)
            scores = label_scores(
                net, of_token, weights, tokens, valid, labels, train=True, key=key
            )
            return jnp.mean(scores)
        return jnp.mean(net.apply(weights, tokens, valid, train=True, key=key) ** 2)

    return loss


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
) -> Callable[[], Array]:
    """The same block, compiled, as a function without arguments.

    In the phase "decode" it takes one more token, the last of `length`, with full caches."""
    if phase == "decode":
        return _decoding_block(config, genotype, index, batch, length)
    function, args = _block(config, genotype, index, batch, length, phase)
    compiled = jax.jit(function).lower(*args).compile()
    return lambda: compiled(*args)


def _decoding_block(
    config: TransformerConfig, genotype: Genotype, index: int, batch: int, length: int | None
) -> Callable[[], Array]:
    """See `block`."""
    n = length or config.tokens
    dtype = jnp.dtype(config.dtype)
    weights = _block_weights(config, genotype, index)
    start = jnp.full(batch, n - 1, jnp.int32)
    place = place_of(config, start, jnp.ones((batch, 1), bool))
    x = jax.random.normal(jax.random.key(1), (batch, 1, config.model_dim), dtype)
    make = functools.partial(layer_cache, config, genotype, index, batch, n, dtype)
    cache = jax.jit(make)()
    # The cache is given away, as in a generation: a step writes into it, and does not copy it.
    step = jax.jit(layer_advance(config, genotype, index, prompt=False), donate_argnums=3)
    compiled = step.lower(weights, x, place, cache).compile()

    def call() -> Array:
        nonlocal cache
        y, cache = compiled(weights, x, place, cache)
        return y

    return call


def _block(
    config: TransformerConfig,
    genotype: Genotype,
    index: int,
    batch: int,
    length: int | None,
    phase: str,
) -> tuple[Callable[..., object], tuple[object, ...]]:
    """A block as a function, and its arguments."""
    check_phase(phase, RUN_PHASES)
    n = config.tokens
    if length is not None:
        n = length
    documents = batch * config.inputs

    # As a function of its weights, which a jitted function must not hold as constants.
    structure = block_of(config, genotype, index)
    weights = _block_weights(config, genotype, index)
    x = jax.random.normal(
        jax.random.key(1), (documents, n, config.model_dim), jnp.dtype(config.dtype)
    )
    valid = jnp.ones((documents, n), bool)

    def apply(weights: Weights, x: Array, key: Array) -> Array:
        return nnx.merge(structure, weights)(x, valid, None, train=phase == "train", key=key)

    return _forward_or_gradient(apply, phase), (weights, x, jax.random.key(2))


def _block_weights(config: TransformerConfig, genotype: Genotype, index: int) -> Weights:
    """Fresh weights of a block."""
    rngs = nnx.Rngs(params=jax.random.key(0))
    made = Block(config, GroupedHeads(config, genotype, index, rngs=rngs), rngs=rngs)
    weights: Weights = nnx.to_pure_dict(nnx.state(made))
    return weights


def attention(
    config: TransformerConfig,
    attention: Attention,
    heads: int,
    *,
    batch: int,
    length: int | None = None,
    phase: str = "forward",
    repeats: int = 20,
) -> Measured:
    """An attention on its group of `heads` heads of a layer: no projections."""
    check_phase(phase, RUN_PHASES)
    arrays, params = _attention_inputs(config, attention, heads, batch=batch, length=length)
    options = _fixed(config, heads)

    def apply(params: Weights, arrays: dict[str, Array], key: Array) -> Array:
        inputs = Inputs(arrays["q"], arrays["k"], arrays["v"], arrays["x"], **options)
        return attend(attention, params, inputs, config, train=phase == "train", key=key)

    function = _forward_or_gradient(apply, phase)
    return measured(function, params, arrays, jax.random.key(2), repeats=repeats)


def _attention_inputs(
    config: TransformerConfig,
    attention: Attention,
    heads: int,
    *,
    batch: int,
    length: int | None = None,
) -> tuple[dict[str, Array], Weights]:
    """Random q, k, v `[B, N, heads, D]` and x `[B, N, E]`; and the attention's own parameters."""
    n = config.tokens
    if length is not None:
        n = length
    dtype = jnp.dtype(config.dtype)
    documents = batch * config.inputs
    q_key, k_key, v_key, x_key = jax.random.split(jax.random.key(0), 4)
    shape = (documents, n, heads, config.head_dim)
    arrays = {
        "q": jax.random.normal(q_key, shape, dtype),
        "k": jax.random.normal(k_key, shape, dtype),
        "v": jax.random.normal(v_key, shape, dtype),
        "x": jax.random.normal(x_key, (documents, n, config.model_dim), dtype),
    }
    rngs = nnx.Rngs(params=jax.random.key(1))
    return arrays, values(own_parameters(attention, config, heads, rngs))


def _fixed(config: TransformerConfig, heads: int) -> dict[str, Any]:
    """A layer's inputs to its attentions beside arrays of tokens."""
    slopes = None
    if config.positions == "alibi":
        slopes = jnp.asarray(alibi_slopes(config.heads)[:heads], jnp.dtype(config.dtype))
    return {
        "head_keys": head_keys(config, 0)[:heads],
        "dropout": config.attention_dropout,
        "kernel": config.kernel,
        "target": config.target,
        "slopes": slopes,
    }


def _forward_or_gradient(apply: Callable[..., Array], phase: str) -> Callable[..., object]:
    """A function of parameters, inputs and a key, or the gradient of its squares by both."""
    if phase == "forward":
        return apply

    def loss(params: Weights, x: Array | dict[str, Array], key: Array) -> Array:
        return jnp.sum(apply(params, x, key).astype(jnp.float32) ** 2)

    return jax.grad(loss, (0, 1))
