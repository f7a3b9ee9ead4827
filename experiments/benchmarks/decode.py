r"""What a step costs beside one full forward pass: one layer of one attention, compiled.

    python experiments/benchmarks/decode.py > experiments/benchmarks/results/decode_cpu2.jsonl

Prints one JSON line for each type that decodes: milliseconds of the forward pass of N tokens, of a
prompt of N - 1 tokens read into a cache, and of the step that follows it, dispatch included; the
step over the forward pass, whose target for types that keep a state is at most 1/200; and the bytes
of the cache. The three take turns, in rounds. The ratio is that of the medians of the rounds, and
`least` that of the quickest rounds, which a busy machine changes less: a step is so short that
waiting for a core is most of it. One sequence of 2,048 tokens, 8 heads of 64, float32."""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import machine, median_ratio, ratios, say

from dartformer import attention as attentions
from dartformer.attention import Inputs, Shape
from dartformer.attention.base import Decoder
from dartformer.config import split_list

EXTRA = ("local(window=64)", "cosformer(horizon=2048)", "linear(feature='softmax')")
STATES = (
    "linear",
    "cosformer",
    "performer",
    "retention",
    "gated_linear",
    "gated_delta",
    "ssd",
    "uniform",
    "conv",
    "identity",
)
"""Types whose cache does not grow with the length; of `uniform`, `conv` and `identity` the forward
pass is so quick that dispatch alone is more than 1/200 of it."""

STEPS = 50
"""Steps that are timed together."""


def decoding() -> list[str]:
    """The specs of all types that decode."""
    listed = []
    for name in attentions.BUILT_IN:
        if attentions.parse(name).traits.decodes:
            listed.append(name)
    return [*listed, *EXTRA]


def compared(spec: str, shape: Shape, seconds: float) -> dict[str, Any]:
    """One type: its forward pass, its prompt and its step."""
    attention = attentions.parse(spec)
    assert isinstance(attention, Decoder)
    n = shape.length
    sizes = (shape.batch, n, shape.heads, shape.head_dim)
    qkv_key, x_key, init_key, head_key = jax.random.split(jax.random.key(0), 4)
    q, k, v = jax.random.normal(qkv_key, (3, *sizes))
    x = None
    if "x" in attention.traits.reads:
        x = jax.random.normal(x_key, (shape.batch, n, shape.model_dim))
    params = jax.jit(lambda key: attention.init(key, shape))(init_key)
    head_keys = jax.random.split(head_key, shape.heads)

    def part(start: int, stop: int) -> Inputs:
        slices = []
        for array in (q, k, v, x):
            if array is not None:
                array = array[:, start:stop]
            slices.append(array)
        return Inputs(*slices, head_keys=head_keys)

    whole, prompt, token = part(0, n), part(0, n - 1), part(n - 1, n)
    token = Inputs(
        token.q,
        token.k,
        token.v,
        token.x,
        head_keys=head_keys,
        start=jnp.full(shape.batch, n - 1, jnp.int32),
    )
    forward = jax.jit(lambda params, inputs: attention(params, inputs, causal=True))
    prefill = jax.jit(attention.prefill)
    # The cache is given away, so that a step writes into it and does not copy it.
    step = jax.jit(attention.step, donate_argnums=2)
    empty = jax.jit(lambda keys: attention.init_cache(shape, jnp.float32, keys))(head_keys)
    _, cache = prefill(params, prompt, empty)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))

    def steps() -> float:
        nonlocal cache
        started = time.perf_counter()
        for _ in range(STEPS):
            # The same place again: the cache neither grows nor overflows.
            y, cache = step(params, token, cache)
            y.block_until_ready()
        return (time.perf_counter() - started) / STEPS

    times = ratios(
        {
            "forward": lambda: jax.block_until_ready(forward(params, whole)),
            "prefill": lambda: jax.block_until_ready(prefill(params, prompt, empty)),
            "step": steps,
        },
        seconds,
    )
    last = forward(params, whole)[:, -1]
    stepped, _ = step(params, token, prefill(params, prompt, empty)[1])
    difference = jnp.abs(stepped[:, 0] - last).max() / jnp.abs(last).max()
    return {
        "name": "decode",
        "spec": spec,
        "length": n,
        "heads": shape.heads,
        "head_dim": shape.head_dim,
        "keeps_state": spec.split("(")[0] in STATES,
        "forward_ms": 1e3 * float(np.median(times["forward"])),
        "prefill_ms": 1e3 * float(np.median(times["prefill"])),
        "step_ms": 1e3 * float(np.median(times["step"])),
        "step_over_forward": median_ratio(times, "step", "forward"),
        "forward_over_step": 1 / median_ratio(times, "step", "forward"),
        "forward_least_ms": 1e3 * min(times["forward"]),
        "step_least_ms": 1e3 * min(times["step"]),
        "least": min(times["step"]) / min(times["forward"]),
        "cache_bytes": held,
        "priced_bytes": attention.cost(shape).state_bytes,
        "differs_by": float(difference),
    }


def main() -> None:
    """Print a line for each type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="specs, with commas between them")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measured part")
    arguments = parser.parse_args()
    machine()
    specs = decoding()
    if arguments.only:
        specs = split_list(arguments.only)
    for spec in specs:
        shape = Shape(length=arguments.length, heads=8, head_dim=64, model_dim=512)
        say(**compared(spec, shape, arguments.seconds))


if __name__ == "__main__":
    main()
