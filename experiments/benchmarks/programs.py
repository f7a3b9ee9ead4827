"""One program for a whole space against a program for each genotype: compiling and steps.

    python experiments/benchmarks/programs.py [--config=search_spaces/recall_mixes.py]

Prints a JSON line for each genotype, with processor seconds of compiling its own program (step and
evaluation) and of 100 steps in either program, which take turns, then one with the sums. The
compile cache is off.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ["DARTFORMER_COMPILE_CACHE"] = "off"

import jax
import numpy as np
from measure import machine, say

import dartformer
from dartformer.data.batches import batches
from dartformer.space.genotype import Genotype
from dartformer.stages.study import Study
from dartformer.training.step import begin

STEPS = 100


def processor_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    jax.block_until_ready(work())
    return time.process_time() - started


class Training:
    """A genotype in one of the two programs."""

    def __init__(self, study: Study, genotype: Genotype):
        self.program = study.program(genotype)
        data = study.config.data
        stream = batches(study.parts["train"], data.batch_size, 0, data.buckets)
        self.stream = self.program.feed(stream)
        self.valid = study.parts["valid"]
        state = begin(self.program.network, self.program.optimizer, 0)
        self.state = self.program.form.enter(state)

    def compile(self) -> Any:
        self.step()
        return self.evaluate()

    def step(self, steps: int = 1) -> Any:
        for _ in range(steps):
            self.state, _ = self.program.step(self.state, next(self.stream))
        return self.state

    def evaluate(self) -> Any:
        weights = self.program.form.leave(self.state).weights
        return self.program.evaluator(weights, self.valid)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="search_spaces/recall_mixes.py")
    parser.add_argument("--genotypes", type=int, default=6)
    arguments = parser.parse_args()
    machine()
    studies = []
    for program in ("own", "shared"):
        config = dartformer.load_config(arguments.config, {"retrain.program": program})
        studies.append(Study(config))
    own_study, shared_study = studies
    rng = np.random.default_rng(0)
    shared_compile = None
    compiles, ratios = [], []
    for _ in range(arguments.genotypes):
        genotype = own_study.space.random(rng)
        own, shared = Training(own_study, genotype), Training(shared_study, genotype)
        own_compile = processor_seconds(own.compile)
        seconds = processor_seconds(shared.compile)
        if shared_compile is None:
            shared_compile = seconds
        rounds = []
        for _ in range(3):
            own_steps = processor_seconds(lambda own=own: own.step(STEPS))
            shared_steps = processor_seconds(lambda shared=shared: shared.step(STEPS))
            rounds.append((own_steps, shared_steps))
        own_steps, shared_steps = np.median(rounds, axis=0)
        compiles.append(own_compile)
        ratios.append(shared_steps / own_steps)
        say(
            name="genotype",
            genotype=str(genotype),
            own_compile=own_compile,
            own_steps=own_steps,
            shared_steps=shared_steps,
        )
    say(
        name="programs",
        config=arguments.config,
        steps=STEPS,
        shared_compile=shared_compile,
        own_compile=float(np.mean(compiles)),
        compiles=shared_compile / float(np.mean(compiles)),
        step=float(np.mean(ratios)),
        most=float(np.max(ratios)),
    )


if __name__ == "__main__":
    main()
