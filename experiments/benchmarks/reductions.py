"""What the flag that keeps XLA's sums on a CPU right costs: every type and the quickstart's steps,
with and without it.

    python experiments/benchmarks/reductions.py [--seconds=2] >
    experiments/benchmarks/results/reductions_cpu2.jsonl

XLA reads its flags once, so each choice of them has a process of its own; they take turns, one pass
at a time. Prints a JSON line for each program: milliseconds with XLA's default, and the time with
each flag over that. The default is measured although it is faulty: no program here has the shapes
that crash."""

import argparse
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
from measure import machine, median_ratio, program, ratios, say
from steps import problem, random_batch, stepper

from dartformer import strategies
from dartformer.attention import ATTENTIONS, Shape, parse
from dartformer.machine.xla_flags import DOTS_ONLY, FLAG
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.training import optimizer
from dartformer.training.step import begin, plain_step

DEFAULT = f"{FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
FLAGS = {"default": DEFAULT, "dots_only": DOTS_ONLY, "without_the_library": f"{FLAG}="}

QUICKSTART = TransformerConfig(
    vocabulary=16, classes=10, length=64, layers=2, heads=4, head_dim=16, model_dim=64, mlp_dim=128
)
CANDIDATES = ("full", "local(window=4)", "linear", "uniform")


def compile_program(name):
    """A function that runs the program once."""
    if name not in ("search_step", "retrain_step"):
        attention = parse(name)
        shape = Shape(length=1024, heads=4, head_dim=32, model_dim=128, batch=4, itemsize=4)
        return program(attention, shape, causal=not attention.traits.bidirectional).run
    batch = random_batch(QUICKSTART, 32)
    if name == "search_step":
        space = SearchSpace(
            tuple(map(parse, CANDIDATES)), QUICKSTART.layers, QUICKSTART.heads, "layer"
        )
        net, search = problem(QUICKSTART, space)
        strategy = strategies.make("darts", {"warmup": 0.0})(search)
        state = strategy.init(jax.random.key(0), net.init(jax.random.key(1)))
        return stepper(jax.jit(strategy.step), state, batch, batch, steps=10)
    net = transformer(
        QUICKSTART, Genotype.homogeneous(parse("full"), QUICKSTART.layers, QUICKSTART.heads)
    )
    chain = optimizer.build(optimizer.Optimizer(), 100)
    return stepper(jax.jit(plain_step(net, chain)), begin(net, chain, 0), batch, steps=10)


def serve():
    """Run the programs that standard input names, and print the seconds of each pass."""
    programs = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in programs:
            programs = {name: compile_program(name)}
            programs[name]()
        started = time.perf_counter()
        programs[name]()
        print(json.dumps(time.perf_counter() - started), flush=True)


def start(flag):
    """A function that has a process with this flag run a program, and returns the seconds it
    took."""
    others = [word for word in os.environ.get("XLA_FLAGS", "").split() if not word.startswith(FLAG)]
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XLA_FLAGS": " ".join([*others, flag])},
    )

    def run(name):
        print(name, file=process.stdin, flush=True)
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} with {flag}: the process ended with status {process.wait()}.")
        return json.loads(line)

    return run


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="for each program and flag (default: 2)"
    )
    parser.add_argument(
        "--only", default="", help="names of programs, separated by semicolons (default: all)"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    machine()
    processes = {label: start(flag) for label, flag in FLAGS.items()}
    names = (
        arguments.only.split(";")
        if arguments.only
        else ["search_step", "retrain_step", *ATTENTIONS]
    )
    logarithms = []
    for name in names:
        parts = {label: lambda run=run, name=name: run(name) for label, run in processes.items()}
        times = ratios(parts, arguments.seconds)
        over = {
            label: median_ratio(times, label, "default") for label in FLAGS if label != "default"
        }
        logarithms.append(np.log(list(over.values())))
        say(name=name, default_ms=1e3 * float(np.median(times["default"])), **over)
    means = dict(zip(over, np.exp(np.mean(logarithms, axis=0)).tolist(), strict=True))
    say(name="geometric_mean", **means)


if __name__ == "__main__":
    main()
