"""Ours beside the attentions of other packages on a CPU, forward and backward, at the same shape.

    python experiments/benchmarks/peers.py --python=PYTHON --fla-python=PYTHON \
        > experiments/benchmarks/results/peers_cpu2.jsonl

The interpreters are those of the two environments of `tests/oracles/README.md`; without one, its
peers are skipped. Prints one JSON line for each peer: milliseconds of ours, of theirs as it is, and
of theirs under `torch.compile` where that works, and theirs over ours, the median of the rounds.
`floor_ms` is what bounds ours: its products at the measured peak of the cores, and the bytes that
its operations read and write at their measured bandwidth, of which caches save a part.
Both sides have the same number of threads, keep freed memory, and take turns, one at a time. On a
machine that does other work besides, torch's threads wait for one another at great length: measure
there with `--threads=1 --cpu-time`. """

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dartformer.machine.allocator import OPTIONS

if TYPE_CHECKING:  # it imports JAX, which must wait for the affinity of `main`
    from measure import Limits


@dataclass(frozen=True)
class Pair:
    """A peer's name in peers_torch.py, what of ours it is held against, and how often ours may take
    its time."""

    peer: str
    spec: str
    causal: bool = False
    fla: bool = False
    allowed: float = 1.0
    compile: bool = True


PAIRS = (
    Pair("torch", "full", allowed=1.2),
    Pair("local-attention", "local(window=64)"),
    Pair("performer-pytorch", "performer(features=128)"),
    Pair("linformer", "linformer(rank=64)"),
    Pair("reformer-pytorch", "reformer(buckets=32, hashes=4, chunk=64)"),
    Pair("sinkhorn-transformer", "sinkhorn(block=64, iterations=5, temperature=0.75)"),
    Pair("nystrom-attention", "nystrom(landmarks=64)"),
    Pair("transformers-longformer", "longformer(window=64, globals=1)"),
    Pair("transformers-bigbird", "bigbird(block=64, randoms=3, globals=1)"),
    Pair("fla-linear-chunk", "linear", causal=True, fla=True),
    Pair("fla-retention", "retention", causal=True, fla=True),
    Pair("fla-simple-gla-chunk", "ssd", causal=True, fla=True),
    Pair(
        "fla-gla-recurrent", "gated_linear", causal=True, fla=True, compile=False
    ),  # a loop of N steps, unrolled
    Pair("fla-gated-delta-chunk", "gated_delta", causal=True, fla=True),
)


class Peers:
    """A process of another interpreter that runs them, started when first asked."""

    def __init__(self, python: str, threads: int) -> None:
        command = [python, str(Path(__file__).with_name("peers_torch.py")), str(threads)]
        kept = {
            f"MALLOC_{name[2:]}_": str(value) for name, (_, value) in OPTIONS.items()
        }  # as ours keeps it
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **kept},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer, or {"error": ...}."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return {"error": f"its interpreter ended with status {self.process.wait()}"}
        line = self.process.stdout.readline()
        return (
            json.loads(line)
            if line
            else {"error": f"its interpreter ended with status {self.process.wait()}"}
        )

    def run(self, name: str, compile: bool, cpu_time: bool) -> float:
        """Seconds of one pass. A moment later its threads have stopped waiting for more, and do not
        hinder ours."""
        seconds = self.ask(run=name, compile=compile, cpu_time=cpu_time)["seconds"]
        time.sleep(0.02)
        return seconds


def clock_of(arguments: argparse.Namespace) -> Callable[[], float]:
    """The wall's, or that of the process."""
    if arguments.cpu_time:
        return time.process_time
    return time.perf_counter


def compare(
    pair: Pair, peers: Peers, arguments: argparse.Namespace, limits: "Limits"
) -> dict[str, Any]:
    import numpy as np
    from measure import clocked, median_ratio, program, ratios, say

    from dartformer import attention as attentions
    from dartformer.accelerators.program import facts
    from dartformer.errors import InputError

    sizes = [int(n) for n in arguments.sizes.split(",")]
    limit, cpu_time = arguments.compile_limit, arguments.cpu_time
    row: dict[str, Any] = {
        "name": "peer",
        "peer": pair.peer,
        "spec": pair.spec,
        "causal": pair.causal,
    }
    try:
        attention = attentions.parse(pair.spec)
        made = peers.ask(make=pair.peer, sizes=sizes, compile=False, limit=limit)
    except InputError as error:
        made = {"error": str(error)}
    if "error" in made:
        return say(**row, error=made["error"])
    b, n, h, d = sizes
    shape = attentions.Shape(length=n, heads=h, head_dim=d, model_dim=h * d, batch=b)
    ours = program(attention, shape, causal=pair.causal)

    parts = {
        "ours": clocked(ours.run, clock_of(arguments)),
        "eager": lambda: peers.run(pair.peer, False, cpu_time),
    }
    if pair.compile and limit:
        compiled = peers.ask(make=pair.peer, sizes=sizes, compile=True, limit=limit)
        if "error" in compiled:
            row["compile_error"] = compiled["error"]
        else:
            parts["compiled"] = lambda: peers.run(pair.peer, True, cpu_time)
    times = ratios(parts, arguments.seconds)
    row |= {f"{part}_ms": 1e3 * float(np.median(times[part])) for part in parts}
    row |= {
        f"{part}_over_ours": median_ratio(times, part, "ours") for part in parts if part != "ours"
    }
    work = facts(ours.text)
    row["floor_ms"] = {
        "compute": 1e3 * work.flops / limits.flops,
        "memory": 1e3 * work.moved / limits.bandwidth,
    }
    slowest = 1 / min(row[f"{part}_over_ours"] for part in parts if part != "ours")
    return say(
        **row,
        packages=made["packages"],
        rounds=len(times["ours"]),
        ours_over_the_faster=slowest,
        allowed=pair.allowed,
        met=slowest <= pair.allowed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default="", help="an interpreter with the extra `oracles`")
    parser.add_argument(
        "--fla-python", default="", help="an interpreter with the extra `oracles-fla`"
    )
    parser.add_argument(
        "--only", default="", help="peers, separated by commas: " + ", ".join(p.peer for p in PAIRS)
    )
    parser.add_argument("--sizes", default="4,2048,4,32", help="B, N, H, D")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="for each thing compared; at least 5 rounds"
    )
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    parser.add_argument(
        "--compile-limit", type=int, default=120, help="seconds for torch.compile; 0: without it"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time in place of wall time"
    )
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # XLA has as many threads as there are cores to run on
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    from measure import limits, machine, say

    machine()
    reached = limits(clock_of(arguments))
    say(name="limits", gflops=reached.flops / 1e9, gigabytes=reached.bandwidth / 1e9)
    chosen = arguments.only.split(",") if arguments.only else [p.peer for p in PAIRS]
    unknown = set(chosen) - {p.peer for p in PAIRS}
    if unknown:
        sys.exit(
            f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(p.peer for p in PAIRS)}"
        )
    rows = []
    for python, fla in ((arguments.python, False), (arguments.fla_python, True)):
        pairs = [p for p in PAIRS if p.peer in chosen and p.fla == fla]
        if not python:
            say(
                name="skipped",
                peers=[p.peer for p in pairs],
                why=f"no {'--fla-python' if fla else '--python'}",
            )
            continue
        peers = Peers(python, arguments.threads)
        rows += [compare(pair, peers, arguments, reached) for pair in pairs]
        peers.process.stdin.close()
        peers.process.wait()
    say(
        name="peers",
        target="ours at least as fast as each, eager and compiled; full within 1.2 of torch's",
        measured=len([r for r in rows if "met" in r]),
        not_measured=[r["peer"] for r in rows if "error" in r],
        missed={r["peer"]: r["ours_over_the_faster"] for r in rows if not r.get("met", True)},
    )


if __name__ == "__main__":
    main()
