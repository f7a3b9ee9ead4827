"""Planted tasks: have they the gap they claim, and does the default recipe find what is planted?

    python experiments/benchmarks/planted.py --only=gap > planted_gap.jsonl
    python experiments/benchmarks/planted.py --only=finding --seeds=20 > planted_finding.jsonl

`gap`: every candidate alone (and the planted genotype, where it is none of these; for `relay` every
pair), over the seeds: test accuracy at the budget of `search_spaces/planted_<kind>.py`. A line for
each model, then one for each task: the planted answer's worst seed against the runner-up's best.

`finding`: the default recipe from every seed, on the finite set of 8,000 examples and on an endless
stream; a line for each search, with what masked drop would have chosen and what the alphas held in
the end. Seeds come outermost: a run cut short has the same seeds of every task.
`--set=search.strategy.warmup=0.5`, any number of times, tries another recipe; `--only-seeds=6,8,10`
some seeds.

`--summary=FILE` prints the rates of a file of such lines.
"""

import argparse
import contextlib
import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lab import open_lab
from measure import machine, say

from dartformer.attention import to_text
from dartformer.space.genotype import Genotype
from dartformer.tasks.planted import KINDS

SECOND = "masked_drop(fine_tune=0)"
BY_WEIGHT = "masked_drop(fine_tune=0, equals='weight')"


def gap(kind: str, seeds: Sequence[int]) -> None:
    with open_lab(kind) as lab:
        candidates = lab.space.candidates
        if kind == "relay":
            models = [
                Genotype(((a,) * 2, (b,) * 2)) for a, b in itertools.product(candidates, repeat=2)
            ]
        else:
            models = list(lab.space.homogeneous())
        models += [answer] if (answer := lab.planted()) is not None and answer not in models else []
        rows: dict[bool, list[list[float]]] = {True: [], False: []}
        for genotype in models:
            test = [lab.alone(genotype, seed)["test"] for seed in seeds]
            right = lab.found(genotype)
            rows[right].append(test)
            say(
                name="alone",
                kind=kind,
                genotype=str(genotype),
                planted=right,
                test=test,
                mean=float(np.mean(test)),
                steps=lab.run.config.retrain.steps,
            )
        worst, best = min(min(r) for r in rows[True]), max(max(r) for r in rows[False])
        say(
            name="gap",
            kind=kind,
            seeds=len(seeds),
            planted_worst_seed=worst,
            runner_up_best_seed=best,
            gap_points=100 * (worst - best),
            planted_mean=float(np.mean(rows[True])),
            runner_up_mean=max(float(np.mean(r)) for r in rows[False]),
        )


def finding(kinds: list[str], seeds: Sequence[int], values: Mapping[str, str]) -> None:
    with contextlib.ExitStack() as stack:
        if values:
            say(name="values", **values)
        labs = {
            (kind, endless): stack.enter_context(
                open_lab(kind, values={"task.endless": endless, **values})
            )
            for kind in kinds
            for endless in (False, True)
        }
        for seed, ((kind, endless), lab) in itertools.product(seeds, labs.items()):
            trained, seconds = lab.search(seed)
            chosen, second, by_weight = (
                lab.derive(trained, rule)[0].genotype for rule in ("argmax", SECOND, BY_WEIGHT)
            )
            rows, columns, _ = lab.space.alphas_shape
            say(
                name="search",
                kind=kind,
                endless=endless,
                seed=seed,
                found=lab.found(chosen),
                genotype=str(chosen),
                masked_drop_found=lab.found(second),
                masked_drop=str(second),
                by_weight_found=lab.found(by_weight),
                by_weight=str(by_weight),
                seconds=seconds,
                weights=[
                    {
                        to_text(a): round(float(w), 3)
                        for a, w in zip(lab.space.candidates, row, strict=True)
                    }
                    for row in trained.mixture[:rows, :columns].reshape(rows * columns, -1)
                ],
            )


def summary(lines: list[dict[str, Any]]) -> None:
    counts: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line.get("name") == "search":
            counts[line["kind"], line["endless"]].append(line)
    for (kind, endless), found in counts.items():
        say(
            name="finding",
            kind=kind,
            endless=endless,
            seeds=len(found),
            found=sum(f["found"] for f in found),
            masked_drop_found=sum(f["masked_drop_found"] for f in found),
            by_weight_found=sum(f.get("by_weight_found", 0) for f in found),
            missed={f["seed"]: f["genotype"] for f in found if not f["found"]},
            seconds=float(np.mean([f["seconds"] for f in found])),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--only-seeds", default="", help="these seeds, instead of so many from the first on"
    )
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="of the config"
    )
    parser.add_argument("--only", default="gap,finding")
    parser.add_argument(
        "--summary", type=Path, help="print the rates of a file of lines, and run nothing"
    )
    arguments = parser.parse_args()
    if arguments.summary:
        summary([json.loads(line) for line in arguments.summary.read_text().splitlines()])
    else:
        machine()
        kinds = arguments.kinds.split(",")
        seeds: Sequence[int] = range(arguments.first, arguments.first + arguments.seeds)
        if arguments.only_seeds:
            seeds = [int(seed) for seed in arguments.only_seeds.split(",")]
        if "gap" in arguments.only:
            for kind in kinds:
                gap(kind, seeds)
        if "finding" in arguments.only:
            finding(kinds, seeds, dict(one.split("=", 1) for one in arguments.set))
