"""DARTFormer (arXiv 2210.00641) again: does a search by masking name the best attention, and do
mixed heads help?

    python experiments/dartformer/run.py --size=cpu --imdb=FOLDER_OR_ARCHIVE
    --matching=FOLDER_OR_ARCHIVE python experiments/dartformer/run.py --size=published --imdb=...
    --matching=...     # on an accelerator

For each task, each written to `results/<size>.jsonl` as it comes and not done again by the same
command:

* `grid`: each of the nine types (and Long Range Arena's own Reformer, on ListOps) in every layer
  and head, three seeds;
* `masked`: the paper's search, one layer, candidates with their own projections averaged, three
  seeds: the drop of accuracy and of loss when each is masked, what that would choose, the four
  best, and what pruning leaves;
* `darts`, `spos`: this package's default search, and one that trains one path at a time (three
  times the steps, each a fraction of the cost), at full depth, for one attention everywhere (three
  seeds) and for each layer; and the accuracy that each type has alone, everywhere, with the weights
  of that search;
* `mixed`: the heterogeneous models: the paper's four best and what pruning left, side by side in
  every layer; four drawn at random; and what our searches found layer by layer.

`--summary` prints the tables.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import arena
import as_in_lra  # noqa: F401 - registers
import numpy as np
from lab import Lab
from summary import mean_drops, summary
from trial import Lines, provenance, trained

from dartformer import attention, derivations
from dartformer import config as configs
from dartformer.derivations import masked
from dartformer.machine.progress import say
from dartformer.space.genotype import Genotype
from dartformer.stages.study import Study
from dartformer.tasks.base import majority

TASKS = ("listops", "imdb_bytes", "matching")
SHAPE = {"published": arena.DEEP["published"], "cpu": dict.fromkeys(TASKS, (2, 4))}
"""Layers and heads of what is trained in the end."""

SEEDS, KEEP, SAMPLED = 3, 4, 3
"""Of searches; types kept; how many times the steps of a mixture a search of single paths has."""


class Experiment:
    """One task at one size.

    Args:
      task, size: see `arena`.
      data: fields that say where the data are.
      steps: of every training and search; 0 for those of the size.
      lines: where results go.
    """

    def __init__(self, task: str, size: str, data: dict[str, Any], steps: int, lines: Lines):
        self.task, self.size, self.data, self.steps, self.lines = task, size, data, steps, lines
        self.shape, self.small = SHAPE[size][task], size == "cpu"
        self.types = {name: arena.TYPES[size][name] for name in arena.DARTFORMER}

    def study(self, strategy: str = "darts", layers: int = 0, **values: Any) -> Study:
        """A study of this task."""
        shape = (layers or self.shape[0], self.shape[1])
        config = arena.config(self.task, self.size, shape, self.steps, self.data, strategy)
        configs.override(
            config,
            {
                "space.candidates": tuple(self.types.values()),
                "space.granularity": "model",
                "search.observe": False,
                **values,
            },
        )
        if strategy == "spos":
            config.search.steps *= SAMPLED
        return Study(config)

    def add(self, kind: str, name: str, **row: Any) -> None:
        self.lines.add(task=self.task, kind=kind, name=name, **row, **provenance())

    def has(self, kind: str, name: str) -> bool:
        return self.lines.find(task=self.task, kind=kind, name=name) is not None

    def train(self, kind: str, name: str, genotype: Genotype) -> None:
        """Three seeds of a genotype, unless they are there."""
        if self.has(kind, name):
            return
        say(f"{self.task} {kind} {name}")
        run = self.study()
        found, _ = trained(
            run,
            genotype,
            together=self.small,
            test_examples=2_000 if self.small else len(run.parts["test"]),
        )
        self.add(kind, name, genotype=genotype.to_dict()["layers"], **found)

    def baselines(self) -> None:
        """What a constant and ListOps' root operator score."""
        if not self.has("baseline", "majority"):
            run = self.study()
            train, test = run.parts["train"], run.parts["test"]
            simple = {"majority": majority(train, test), **run.task.baselines(train, test)}
            for name in sorted(simple, reverse=True):
                self.add("baseline", name, test=[simple[name]])

    def grid(self) -> None:
        """Every type alone."""
        types = dict(self.types)
        if self.task == "listops":
            options = "chunk=8, buckets=4" if self.small else "chunk=10, buckets=10"
            types["Reformer as in LRA"] = f"reformer_as_in_lra({options})"
        for name, spec in types.items():
            self.train("grid", name, Genotype.homogeneous(attention.parse(spec), *self.shape))

    def masked(self) -> None:
        """The paper's search."""
        if all(self.has("masked", str(seed)) for seed in range(SEEDS)):
            return
        names = list(self.types)
        run = self.study("masked", layers=1)
        lab = Lab(run)
        for seed in range(SEEDS):
            if self.has("masked", str(seed)):
                continue
            say(f"{self.task} masked search, seed {seed}")
            found, seconds = lab.search(seed)
            started = time.perf_counter()
            lost = {
                metric: masked.drops(found, found.weights, found.mixture, metric, renormalise=False)
                for metric in ("accuracy", "loss")
            }
            drops = {
                metric: {names[k]: float(v.mean()) for k, v in of.items()}
                for metric, of in lost.items()
            }
            tune = max(1, run.config.search.steps // 10)
            pruned = derivations.parse(f"prune(keep={KEEP}, fine_tune={tune})")(found)
            whole = found.evaluate(found.weights, found.mixture, None)
            self.add(
                "masked",
                str(seed),
                drops=drops,
                valid=float(np.mean(whole["accuracy"])),
                chosen={metric: max(of, key=lambda n: of[n]) for metric, of in drops.items()},
                pruned=[self.name_of(text) for text in pruned.details["kept"]],
                search_seconds=seconds,
                derive_seconds=time.perf_counter() - started,
                steps=run.config.search.steps,
            )

    def name_of(self, text: str) -> str:
        """The type behind an attention's text, however fully it is written."""
        return next(
            n for n, spec in self.types.items() if attention.parse(spec) == attention.parse(text)
        )

    def ours(self) -> None:
        """Our searches: for one attention everywhere, and layer by layer."""
        for strategy, more in (("darts", {"model.branch_norm": True}), ("spos", {})):
            for granularity, seeds in (("model", SEEDS), ("layer", 1)):
                if all(self.has(strategy, f"{granularity} {seed}") for seed in range(seeds)):
                    continue
                run = self.study(strategy, **{"space.granularity": granularity, **more})
                self.search(run, granularity, seeds)

    def search(self, run: Study, granularity: str, seeds: int) -> None:
        """Searches from several seeds, unless they are there."""
        strategy, lab = run.config.search.strategy.name, Lab(run)
        for seed in range(seeds):
            if self.has(strategy, f"{granularity} {seed}"):
                continue
            say(f"{self.task} {strategy} by {granularity}, seed {seed}")
            found, seconds = lab.search(seed)
            derived, more = lab.derive(found)
            alone = {
                name: float(
                    np.mean(
                        found.evaluate(
                            found.weights,
                            run.space.mixture(
                                Genotype.homogeneous(attention.parse(spec), *self.shape)
                            ),
                            None,
                        )["accuracy"]
                    )
                )
                for name, spec in self.types.items()
            }
            self.add(
                strategy,
                f"{granularity} {seed}",
                genotype=derived.genotype.to_dict()["layers"],
                alone=alone,
                mixture=found.mixture[:, 0].tolist(),
                search_seconds=seconds,
                derive_seconds=more,
                steps=run.config.search.steps,
                ties=derived.ties,
            )

    def mixed(self) -> None:
        """Heterogeneous models, trained as the homogeneous ones are."""
        rows = [row for row in self.lines.rows if row["task"] == self.task]
        drops = mean_drops(rows, "accuracy")
        four = sorted(drops, key=lambda name: -drops[name])[:KEEP]
        pruned = next(
            row["pruned"] for row in rows if row["kind"] == "masked" and row["name"] == "0"
        )
        drawn = np.random.default_rng(0).choice(list(self.types), KEEP, replace=False).tolist()
        for name, kept in (("one-shot", four), ("prune", pruned), ("random four", drawn)):
            layer = tuple(attention.parse(self.types[kept[h % KEEP]]) for h in range(self.shape[1]))
            self.train("mixed", name, Genotype((layer,) * self.shape[0]))
        for strategy in ("darts", "spos"):
            ours = next(
                row["genotype"]
                for row in rows
                if (row["kind"], row["name"]) == (strategy, "layer 0")
            )
            self.train(
                "mixed", f"{strategy} by layer", Genotype.from_dict({"format": 1, "layers": ours})
            )


def main() -> None:
    parser = arena.parser(__doc__, TASKS)
    arguments = parser.parse_args()
    file = arguments.results or Path(__file__).parent / "results" / f"{arguments.size}.jsonl"
    lines = Lines(file, ("task", "kind", "name"))
    if arguments.summary:
        print(summary(lines.rows))
        return
    for task in arguments.tasks.split(","):
        data = arena.data_of(task, arguments.imdb, arguments.matching, arguments.data_dir)
        one = Experiment(task, arguments.size, data, arguments.steps, lines)
        for part in (one.baselines, one.masked, one.grid, one.ours, one.mixed):
            part()


if __name__ == "__main__":
    main()
