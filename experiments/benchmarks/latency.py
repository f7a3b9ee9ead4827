"""Latency of whole models, predicted from the table of measured attentions against measured: random
genotypes.

    python experiments/benchmarks/latency.py [--genotypes 12] [--table FILE] [--layers 4] [--heads
    8] [--length 512] ...

Prints JSON lines: the machine, a line for each genotype with `predicted_ms`, `measured_ms` (the
least of 30, as in the table), `median_ms` and `error`, and last the median, the 90th percentile and
the largest error. The table is built on the first run and reused on the next."""

import argparse
import time

import numpy as np
from measure import machine, say

from dartformer import cost
from dartformer.cost import measure as measure_model
from dartformer.cost.budget import Budget
from dartformer.cost.prices import prices
from dartformer.cost.table import Table
from dartformer.models.sizes import TransformerConfig
from dartformer.space.genotype import parse_candidates
from dartformer.space.search_space import SearchSpace

CANDIDATES = ("full", "local(window=32)", "linear", "uniform", "longformer(window=32)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("genotypes", 12),
        ("layers", 4),
        ("heads", 4),
        ("head_dim", 32),
        ("model_dim", 128),
        ("mlp_dim", 256),
        ("length", 512),
        ("batch", 4),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--phase", default="forward")
    parser.add_argument("--granularity", default="head")
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES)
    parser.add_argument("--table")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time: for one core of a busy machine"
    )
    given = parser.parse_args()
    if given.cpu_time:
        measure_model.clock = time.process_time
    machine()
    config = TransformerConfig(
        256,
        10,
        given.length,
        layers=given.layers,
        heads=given.heads,
        head_dim=given.head_dim,
        model_dim=given.model_dim,
        mlp_dim=given.mlp_dim,
    )
    space = SearchSpace(
        parse_candidates(given.candidates), given.layers, given.heads, given.granularity
    )
    table, started = Table(given.table), time.perf_counter()
    known = len(table.entries)
    budget = Budget((("latency_ms", 1.0),), batch=given.batch, phase=given.phase)
    price = prices(config, space, budget, table)["latency_ms"]
    say(
        name="table",
        file=str(table.file),
        entries=len(table.entries),
        measured_now=len(table.entries) - known,
        seconds=time.perf_counter() - started,
        rest_ms=price.rest,
        **{str(a): price.groups[k].tolist() for k, a in enumerate(space.candidates)},
    )
    rng, errors = np.random.default_rng(given.seed), []
    for _ in range(given.genotypes):
        genotype = space.random(rng)
        predicted = price.of(genotype, space)
        found = cost.model(config, genotype, batch=given.batch, phase=given.phase, repeats=30)
        measured = 1e3 * found.seconds.min
        errors.append(predicted / measured - 1)
        say(
            name="genotype",
            genotype=str(genotype),
            predicted_ms=predicted,
            measured_ms=measured,
            median_ms=1e3 * found.seconds.median,
            error=errors[-1],
        )
    sizes = np.abs(errors)
    say(
        name="error",
        clock="processor time" if given.cpu_time else "time",
        phase=given.phase,
        granularity=given.granularity,
        genotypes=given.genotypes,
        median=float(np.median(sizes)),
        p90=float(np.quantile(sizes, 0.9)),
        largest=float(sizes.max()),
        within_15_percent=float(np.mean(sizes <= 0.15)),
    )


if __name__ == "__main__":
    main()
