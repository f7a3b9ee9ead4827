r"""What each attention costs as the input grows, and from which length on it beats full attention.

    python experiments/benchmarks/attention.py
        --plot=experiments/benchmarks/results/attention_cpu2.png \ >
        experiments/benchmarks/results/attention_cpu2.jsonl

Prints one JSON line for each type of `dartformer list attentions`: milliseconds of a forward and
backward pass (by q, k, v, x and the parameters), bytes that XLA plans for what it keeps meanwhile,
and the largest array, at every length; how both grow; and `full` over it at each length, whose
medians say where they cross. The type at all lengths and `full` take turns, in rounds; ratios and
exponents are those of the rounds. One sequence, 4 heads of 32, float32; without padding; causal
only where a type knows nothing else.

On an accelerator it also prints, for each type at 1,024, 4,096 and 16,384 tokens of 16 heads of 64
in bfloat16, milliseconds forward and forward and backward, and which part they are of what the
device was measured to do in products of matrices and in copies."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import Program, clocked, machine, median_ratio, program, ratios, say

from dartformer import attention as attentions
from dartformer.attention import Shape
from dartformer.config import split_list
from dartformer.report import plots

LENGTHS = (256, 1024, 2048, 4096, 8192)
GROWTH = (1024, 8192)
"""Exponents are taken between these."""

QUADRATIC_LIMIT = 4096
"""Types that claim no less than quadratic growth are not run beyond."""

EXTRA = ("local(window=64)",)
SLACK = 0.15


def exponent(lengths: list[int], values: Any) -> float:
    """The slope of a straight line through log(values) over log(lengths), of those within
    `GROWTH`."""
    points = [
        (math.log(n), math.log(v))
        for n, v in zip(lengths, values, strict=True)
        if GROWTH[0] <= n <= GROWTH[1]
    ]
    if len(points) < 2:
        return math.nan
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def crossover(lengths: list[int], ahead: list[float]) -> dict[str, Any]:
    """From which length on `full` takes longer, on the line between the logarithms of the two
    nearest lengths."""
    slower = [i for i, ratio in enumerate(ahead) if ratio < 1]
    if not slower:
        return {"crossover": lengths[0], "crossover_is": "at most"}
    last = slower[-1]
    if last == len(lengths) - 1:
        return {"crossover": lengths[-1], "crossover_is": "above"}
    (n, m), (a, b) = np.log(lengths[last : last + 2]), np.log(ahead[last : last + 2])
    return {"crossover": round(float(np.exp(n - a * (m - n) / (b - a)))), "crossover_is": "about"}


class Full:
    """Compiled programs of `full`, which all are compared with, made once for each length."""

    def __init__(self) -> None:
        self._made: dict[tuple[Shape, bool], Program] = {}

    def __call__(self, shape: Shape, causal: bool) -> Program:
        if (shape, causal) not in self._made:
            self._made[shape, causal] = program(attentions.parse("full"), shape, causal=causal)
        return self._made[shape, causal]


def growth(
    spec: str,
    lengths: list[int],
    seconds: float,
    full: Full,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """One type at every length, beside `full`."""
    attention = attentions.parse(spec)
    traits = attention.traits
    causal = not traits.bidirectional
    if traits.growth >= 2:
        lengths = [n for n in lengths if n <= QUADRATIC_LIMIT] or lengths[:1]
    started = time.perf_counter()
    made, beside = {}, {}
    for n in lengths:
        shape = Shape(length=n, heads=4, head_dim=32, model_dim=128)
        made[n] = program(attention, shape, causal=causal)
        if n <= QUADRATIC_LIMIT and spec != "full":
            beside[n] = full(shape, causal)
    compiling = time.perf_counter() - started
    times = ratios(
        {
            **{str(n): clocked(p.run, clock) for n, p in made.items()},
            **{f"full {n}": clocked(p.run, clock) for n, p in beside.items()},
        },
        seconds,
    )
    ms = [1e3 * float(np.median(times[str(n)])) for n in lengths]
    row = {
        "name": "attention",
        "spec": spec,
        "causal": causal,
        "lengths": lengths,
        "ms": ms,
        "temp_mib": [made[n].temp_bytes / 2**20 for n in lengths],
        "largest_array": [made[n].largest_array for n in lengths],
        "growth_declared": traits.growth,
    }
    if sum(GROWTH[0] <= n <= GROWTH[1] for n in lengths) > 1:
        rounds = np.array([times[str(n)] for n in lengths]).T
        row["growth_time"] = float(np.median([exponent(lengths, one) for one in rounds]))
        row["growth_array"] = exponent(lengths, row["largest_array"])
    if beside:
        ahead = [median_ratio(times, f"full {n}", str(n)) for n in beside]
        row["full_over_this"] = dict(zip(map(str, beside), ahead, strict=True))
        row |= crossover(list(beside), ahead)
    return say(**row, rounds=len(times[str(lengths[0])]), compile_seconds=compiling)


def verdicts(rows: list[dict[str, Any]]) -> None:
    """What the targets say, of the types that claim less than quadratic growth."""
    less = [r for r in rows if r["growth_declared"] < 2]
    grown = [r for r in less if "growth_time" in r]
    say(
        name="growth",
        target=f"time and largest array grow with the declared exponent + {SLACK} at most",
        types=len(grown),
        missed={
            r["spec"]: [r["growth_time"], r["growth_array"]]
            for r in grown
            if max(r["growth_time"], r["growth_array"]) > r["growth_declared"] + SLACK
        },
    )
    at = str(QUADRATIC_LIMIT)
    beside = [r for r in less if at in r.get("full_over_this", {})]
    say(
        name="crossover",
        target=f"faster than full at N = {at}; local(window=64) 8 times",
        types=len(beside),
        missed={
            r["spec"]: r["full_over_this"][at]
            for r in beside
            if r["full_over_this"][at] < (8 if r["spec"] == "local(window=64)" else 1)
        },
    )


def drawn(rows: list[dict[str, Any]]) -> list[plots.Growth]:
    """The rows of attentions, as a figure takes them."""
    growths = []
    for row in rows:
        if row["name"] == "attention":
            growths.append(plots.Growth(row["spec"], row["lengths"], row["ms"], row["temp_mib"]))
    return growths


def timed(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of one run, the median of several."""
    run()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < until:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def ceilings(dtype: Any, size: int, seconds: float) -> dict[str, float]:
    """What this device does: FLOP/s in products of square matrices, and bytes/s in copies, read and
    written."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    copy = jax.jit(lambda x: x + 1).lower(a).compile()
    return {
        "matmul": 2 * size**3 / timed(lambda: jax.block_until_ready(product(a, a)), seconds),
        "copy": 2 * a.nbytes / timed(lambda: jax.block_until_ready(copy(a)), seconds),
    }


def device(specs: list[str], lengths: list[int], size: int, seconds: float) -> None:
    """Milliseconds and parts of the ceilings, in bfloat16. A backward pass counts as two forward
    passes."""
    top = ceilings(jnp.bfloat16, size, seconds)
    say(
        name="ceilings",
        dtype="bfloat16",
        size=size,
        matmul_tflops=top["matmul"] / 1e12,
        copy_gb_s=top["copy"] / 1e9,
    )
    for spec in specs:
        attention = attentions.parse(spec)
        for n in lengths:
            shape = Shape(length=n, heads=16, head_dim=64, model_dim=1024, itemsize=2)
            token = (
                shape.heads * shape.head_dim * shape.itemsize
            )  # bytes of one token of q, k, v or the output
            reads = n * (
                token * len(attention.traits.reads & set("qkv"))
                + ("x" in attention.traits.reads) * shape.model_dim * shape.itemsize
            )
            row: dict[str, Any] = {
                "name": "device",
                "spec": spec,
                "length": n,
                "heads": 16,
                "head_dim": 64,
            }
            for passes, backward, flops, moved in (
                ("forward", False, 1, reads + n * token),
                ("both", True, 3, 3 * reads + 2 * n * token),
            ):
                try:
                    one = program(
                        attention,
                        shape,
                        causal=not attention.traits.bidirectional,
                        backward=backward,
                        dtype=jnp.bfloat16,
                    )
                    spent = timed(one.run, seconds)
                except (
                    jax.errors.JaxRuntimeError
                ) as error:  # most likely it does not fit the device's memory
                    row[passes] = {"error": str(error).strip().splitlines()[0][:120]}
                    continue
                row[passes] = {
                    "ms": 1e3 * spent,
                    "temp_mib": one.temp_bytes / 2**20,
                    "of_matmul": flops * attention.cost(shape).flops / spent / top["matmul"],
                    "of_copy": moved / spent / top["copy"],
                }
            say(**row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="specs, as in a config; all types, and " + ", ".join(EXTRA)
    )
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="for each thing compared; at least 5 rounds"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time in place of wall time"
    )
    parser.add_argument("--plot", default="", help="a file for the figure, .png or .svg")
    parser.add_argument(
        "--from", dest="made", default="", help="only draw: a file with the lines of an earlier run"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "yes", "no"),
        default="auto",
        help="parts of the device's ceilings; auto: where there is an accelerator",
    )
    parser.add_argument("--device-lengths", default="1024,4096,16384")
    parser.add_argument(
        "--device-size",
        type=int,
        default=8192,
        help="of the matrices that are multiplied and copied",
    )
    arguments = parser.parse_args()
    if arguments.made:
        with open(arguments.made) as lines:
            rows = [json.loads(line) for line in lines]
    else:
        machine()
        specs = (
            split_list(arguments.only)
            if arguments.only
            else [
                *(attentions.to_text(attentions.parse(name)) for name in attentions.names()),
                *EXTRA,
            ]
        )
        lengths, full = sorted(map(int, arguments.lengths.split(","))), Full()
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        rows = []
        if lengths:
            rows = [growth(spec.strip(), lengths, arguments.seconds, full, clock) for spec in specs]
        verdicts(rows)
        if arguments.device == "yes" or (
            arguments.device == "auto" and jax.default_backend() != "cpu"
        ):
            device(
                specs,
                [int(n) for n in arguments.device_lengths.split(",")],
                arguments.device_size,
                arguments.seconds,
            )
        else:
            say(name="ceilings", skipped=f"no accelerator here: {jax.devices()[0].device_kind}")
    if arguments.plot:
        plots.growth(drawn(rows)).save(arguments.plot)
        print(f"wrote {arguments.plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
