"""A tabular benchmark: every genotype of a small space trained once and for all, so that anything
is scored in seconds.

    python experiments/benchmarks/tabular.py --make            # trains what the table lacks; it may
    be stopped python experiments/benchmarks/tabular.py --score=proxies   # parameters, FLOPs, how
    many layers of each type python experiments/benchmarks/tabular.py --score=darts     # a
    strategy: what it derives, and its supernet's ranking

The space: four attentions in each of three layers, the heads of a layer alike, 64 genotypes; two
planted tasks, `recall` and `relay`; three seeds of weights and order of examples.
`results/tabular.json` holds the accuracies.

A choice is scored by its regret: the best genotype's mean test accuracy minus its own. A ranking is
scored by that of its favourite, and by Kendall's tau-b with mean test accuracy. Regrets of random
choices are printed beside."""

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lab import Lab, open_lab
from measure import machine, say

from dartformer import cost
from dartformer.machine.workdir import write_text
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype, parse_candidates
from dartformer.space.search_space import SearchSpace
from dartformer.statistics import kendall_tau

FILE = Path(__file__).parent / "results" / "tabular.json"
CANDIDATES = ("full", "local(window=4)", "strided(stride=8)", "uniform")
KINDS, LAYERS, HEADS, SEEDS, STEPS = ("recall", "relay"), 3, 2, 3, 300

VALUES: dict[str, Any] = {
    "model.layers": LAYERS,
    "model.heads": HEADS,
    "space.candidates": CANDIDATES,
    "space.granularity": "layer",
    "task.length": 32,
    "task.train": 4_000,
    "task.valid": 300,
    "data.batch_size": 8,
    "search.steps": STEPS,
    "retrain.steps": STEPS,
    "retrain.seeds": tuple(range(SEEDS)),
}

SPACE = SearchSpace(parse_candidates(CANDIDATES), LAYERS, HEADS, "layer")


class Table:
    """What is known of each genotype: `valid` and `test` `[64, 3]` of each task, NaN where it is
    not trained yet.

    Genotypes are numbered as `choices` are: (0, 0, 0), (0, 0, 1), ..., the last layer fastest.
    """

    choices = tuple(itertools.product(range(len(CANDIDATES)), repeat=LAYERS))

    def __init__(self, file: Path = FILE):
        self.file = file
        data = json.loads(file.read_text()) if file.exists() else {"tasks": {}}
        self.tasks = {
            kind: {
                what: np.array(
                    data["tasks"].get(kind, {}).get(what, [])
                    or np.full((len(self.choices), SEEDS), np.nan),
                    float,
                )
                for what in ("valid", "test")
            }
            for kind in KINDS
        }

    def genotype(self, i: int) -> Genotype:
        """Genotype number i."""
        return SPACE.genotype(np.array(self.choices[i])[:, None])

    def number(self, genotype: Genotype) -> int:
        """The inverse of `genotype`."""
        return self.choices.index(tuple(SPACE.choice(genotype)[:, 0].tolist()))

    def test(self, kind: str) -> np.ndarray:
        """Mean test accuracy `[64]`."""
        return self.tasks[kind]["test"].mean(1)

    def score(self, kind: str, ranking: Mapping[Genotype, float]) -> dict[str, float | None]:
        """Regret of the favourite in points (of equal ones, their mean), and tau-b (None if all are
        equal)."""
        numbers, test = [self.number(g) for g in ranking], self.test(kind)
        values = np.array(list(ranking.values()))
        favourites = np.array(numbers)[values == values.max()]
        tau = kendall_tau(values.tolist(), test[numbers].tolist())
        return {
            "regret_points": 100 * float(test.max() - test[favourites].mean()),
            "tau": None if np.isnan(tau) else tau,
        }

    def save(self) -> None:
        """Write the file: a line for each genotype."""

        def table(values: np.ndarray) -> str:
            return ",\n   ".join(
                json.dumps([None if np.isnan(v) else round(v, 4) for v in row])
                for row in values.tolist()
            )

        body = ",\n ".join(
            f'"{kind}": {{'
            + ", ".join(f'"{what}": [\n   {table(values)}]' for what, values in parts.items())
            + "}"
            for kind, parts in self.tasks.items()
        )
        head = json.dumps(
            {
                "candidates": CANDIDATES,
                "layers": LAYERS,
                "heads": HEADS,
                "steps": STEPS,
                "seeds": SEEDS,
            }
        )
        write_text(self.file, f'{head[:-1]}, "tasks": {{\n {body}}}}}\n')


def random_regret(test: np.ndarray, n: int) -> float:
    """Expected regret in points of the best of `n` genotypes drawn without replacement."""
    total, ordered = len(test), np.sort(test)[::-1]
    # The chance that the genotype of rank r is drawn, and none before it.
    chances = [math.comb(total - r - 1, n - 1) / math.comb(total, n) for r in range(total)]
    return 100 * float(ordered[0] - np.dot(chances, ordered))


def make(table: Table, kinds: Sequence[str] = KINDS) -> None:
    for kind in kinds:
        with open_lab(kind, values=VALUES) as lab:
            for seed, i in itertools.product(range(SEEDS), range(len(table.choices))):
                if np.isnan(table.tasks[kind]["test"][i, seed]):
                    found = lab.alone(table.genotype(i), seed)
                    for what, values in table.tasks[kind].items():
                        values[i, seed] = found[what]
                    table.save()
                    say(
                        name="trained",
                        kind=kind,
                        seed=seed,
                        genotype=str(table.genotype(i)),
                        **found,
                    )


def proxies(table: Table, kind: str, lab: Lab) -> None:
    genotypes = [table.genotype(i) for i in range(len(table.choices))]
    counts = {
        "parameters": {
            g: float(cost.model_parameters(transformer(lab.run.model, g))) for g in genotypes
        },
        "flops": {g: float(cost.flops(lab.run.model, g)) for g in genotypes},
    }
    for k, one in enumerate(CANDIDATES):
        counts[f"layers of {one}"] = {
            g: float((SPACE.choice(g)[:, 0] == k).sum()) for g in genotypes
        }
    for name, ranking in counts.items():
        say(name="proxy", kind=kind, proxy=name, **table.score(kind, ranking))


def strategy(table: Table, kind: str, lab: Lab, name: str, seed: int) -> None:
    trained, seconds = lab.search(seed)
    derived, more = lab.derive(trained)
    chosen = table.score(kind, {derived.genotype: 1.0})["regret_points"]
    say(
        name="strategy",
        kind=kind,
        strategy=name,
        rule=lab.run.config.derive.rule,
        seed=seed,
        found=str(derived.genotype),
        regret_points=chosen,
        seconds=seconds + more,
    )
    if trained.weights is not None:
        genotypes = [table.genotype(i) for i in range(len(table.choices))]
        ranking = {
            g: float(trained.evaluate(trained.weights, SPACE.mixture(g), None)["accuracy"].mean())
            for g in genotypes
        }
        say(name="inherited", kind=kind, strategy=name, seed=seed, **table.score(kind, ranking))


def score(table: Table, what: str, seeds: int, kinds: Sequence[str] = KINDS) -> None:
    for kind in kinds:
        test = table.test(kind)
        if np.isnan(test).any():
            raise SystemExit(
                f"the table lacks {int(np.isnan(test).sum())} genotypes of {kind}: run --make first."
            )
        say(
            name="table",
            kind=kind,
            best=str(table.genotype(int(test.argmax()))),
            best_test=float(test.max()),
            median_test=float(np.median(test)),
            spread_over_seeds=float(np.std(table.tasks[kind]["test"], 1, ddof=1).mean()),
            regret_points_of_the_best_of_random={n: random_regret(test, n) for n in (1, 4, 16)},
        )
        with open_lab(kind, "darts" if what == "proxies" else what, values=VALUES) as lab:
            if what == "proxies":
                proxies(table, kind, lab)
            else:
                for seed in range(seeds):
                    strategy(table, kind, lab, what, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--score", help='"proxies", or the name of a strategy')
    parser.add_argument("--seeds", type=int, default=3, help="of a strategy's searches")
    parser.add_argument("--kinds", default=",".join(KINDS))
    arguments = parser.parse_args()
    machine()
    if arguments.make:
        make(Table(), arguments.kinds.split(","))
    if arguments.score:
        score(Table(), arguments.score, arguments.seeds, arguments.kinds.split(","))
