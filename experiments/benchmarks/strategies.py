"""Strategies on planted tasks: how often each finds what is planted, what its misses cost, and what
it costs itself.

    python experiments/benchmarks/strategies.py [--strategies=darts,...] [--kinds=recall,local,mix]
    [--seeds=5]

Every strategy of `dartformer list strategies` with its defaults and its own derivation, at the
budget of `search_spaces/planted_<kind>.py`. A JSON line for each task and strategy:

found: of how many seeds the planted answer was derived. regret_points: test accuracy of the best
model (every candidate alone, and the planted genotype) minus that of what was
  derived, each trained alone over the same seeds; 0 where they are the same.
cost: seconds of search and derivation over those of training one candidate alone (the mean of all);
  compiling is not counted. wall_seconds: of everything, compiling too, for all seeds.
"""

import argparse
import time
from collections import Counter

import numpy as np
from lab import open_lab
from measure import machine, say

from dartformer.strategies import STRATEGIES
from dartformer.tasks.planted import KINDS


def compare(kind: str, names: list[str], seeds: range) -> None:
    with open_lab(kind) as reference:
        retrain_seeds = reference.run.config.retrain.seeds

        def alone(genotype, what):
            return float(np.mean([reference.alone(genotype, s)[what] for s in retrain_seeds]))

        models = list(reference.space.homogeneous())
        models += (
            [answer] if (answer := reference.planted()) is not None and answer not in models else []
        )
        best = max(models, key=lambda g: alone(g, "valid"))
        one_model = float(np.mean([alone(g, "seconds") for g in reference.space.homogeneous()]))
        say(
            name="grid",
            kind=kind,
            best=str(best),
            test=alone(best, "test"),
            seconds_of_one_model=one_model,
        )
        for name in names:
            started, spent, derived = time.perf_counter(), [], []
            with open_lab(kind, name, reference=reference) as lab:
                for seed in seeds:
                    trained, seconds = lab.search(seed)
                    found, more = lab.derive(trained)
                    spent.append(seconds + more)
                    derived.append(found.genotype)
                wall = time.perf_counter() - started
                say(
                    name="strategy",
                    kind=kind,
                    strategy=name,
                    rule=lab.run.config.derive.rule,
                    seeds=len(seeds),
                    found=sum(map(lab.found, derived)),
                    regret_points=100
                    * float(np.mean([alone(best, "test") - alone(g, "test") for g in derived])),
                    cost=float(np.mean(spent)) / one_model,
                    wall_seconds=wall,
                    genotypes={str(g): n for g, n in Counter(derived).most_common()},
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # The race has its own figures, in experiments/tables.
    searched = [name for name, strategy in STRATEGIES.items() if strategy.traits.supernet]
    parser.add_argument("--strategies", default=",".join(searched))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    machine()
    for kind in arguments.kinds.split(","):
        compare(kind, arguments.strategies.split(","), range(arguments.seeds))
