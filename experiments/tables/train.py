"""Train every genotype of a search space, and write one line for each model.

    python experiments/tables/train.py --table=mqar_2 --raw=runs/tables

One compiled program trains the whole space (`retrain.program`). Weights, batches and schedule are those
of `dartformer retrain`. Seeds come outermost: a run cut short has the same seeds of all genotypes. Run
again, it continues after the last line.
"""

import argparse
import itertools
import json
import platform
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from spaces import NINTHS, SPACES

import dartformer
from dartformer.config import to_dict
from dartformer.data.batches import batches
from dartformer.data.splits import Split, Subset
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.programs import Program
from dartformer.stages.study import Study
from dartformer.training.loop import Stream
from dartformer.training.step import begin

MOST_TEST = 4_000
"""Test examples that are scored, the first of the split: IMDb's 25,000 cost more than a training."""


class Trained(NamedTuple):
    """One training: scores of valid at the looks, of test at the end, and processor seconds.

    `valid` and `valid_loss` are `[9]`, `examples` `[9, S]`.
    """

    valid: list[float]
    valid_loss: list[float]
    test: float
    test_loss: float
    seconds: float
    examples: np.ndarray


class Trainer:
    """Trains genotypes of one space with one compiled program."""

    def __init__(self, study: Study):
        self.study, self.steps = study, study.config.retrain.steps
        self.looks = [round(self.steps * i / NINTHS) for i in range(1, NINTHS + 1)]
        self.test = first_examples(study.parts["test"], MOST_TEST)

    def stream(self, program: Program, seed: int) -> Stream:
        """The batches of a seed, as the program takes them."""
        batch_size = self.study.config.data.batch_size
        return program.feed(batches(self.study.parts["train"], batch_size, seed))

    def compile(self) -> float:
        """Compile the training and the evaluation; returns the processor seconds."""
        program = self.study.program(self.study.space.homogeneous()[0])
        state = begin(program.network, program.optimizer, seed=0)
        started = time.process_time()
        program.step.prepare(program.form.enter(state), next(self.stream(program, seed=0)))
        # They may be smaller than a batch of evaluation, and differ in size.
        for part in (self.study.parts["valid"], self.test):
            program.evaluator(state.weights, part)
        return time.process_time() - started

    def train(self, genotype: Genotype, seed: int) -> Trained:
        """Train one genotype to the end, with a look at valid after each ninth of the steps."""
        study, program = self.study, self.study.program(genotype)
        state = program.form.enter(begin(program.network, program.optimizer, seed))
        stream = self.stream(program, seed)
        score = "loss"
        if study.metric.percent:
            score = "accuracy"
        valid, valid_loss, examples, seconds = [], [], [], 0.0
        for first, last in itertools.pairwise([0, *self.looks]):
            started = time.process_time()
            for _ in range(first, last):
                state, _ = program.step(state, next(stream))
            jax.block_until_ready(state.weights)
            seconds += time.process_time() - started
            weights = program.form.leave(state).weights
            look = program.evaluator.evaluate(weights, study.parts["valid"])
            valid.append(look.scores[study.metric.name])
            valid_loss.append(look.scores["loss"])
            examples.append(look.examples[score])
        test = program.evaluator(weights, self.test)
        return Trained(
            valid, valid_loss, test[study.metric.name], test["loss"], seconds, np.array(examples)
        )


def first_examples(split: Split, most: int) -> Split:
    """The first `most` examples of a split, or all of a smaller one."""
    return Subset(split, np.arange(min(most, len(split))))


def genotypes(space: SearchSpace) -> Iterator[Genotype]:
    """Every genotype of the space, the last layer changing fastest."""
    rows, columns, candidates = space.alphas_shape
    for choice in itertools.product(range(candidates), repeat=rows * columns):
        yield space.genotype(np.array(choice).reshape(rows, columns))


def cpu() -> str:
    """The name of the processor."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def header(study: Study, name: str, test: Split, compile_seconds: float) -> dict[str, object]:
    """The first line of a run: what all of its models share."""
    return {
        "table": name,
        "config": to_dict(study.config),
        "metric": study.metric.name,
        "examples": {"valid": len(study.parts["valid"]), "test": len(test)},
        "compile_seconds": round(compile_seconds, 1),
        "versions": {
            "dartformer": dartformer.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "cpu": cpu(),
        "date": date.today().isoformat(),
    }


def line_of(trainer: Trainer, genotype: Genotype, seed: int) -> dict[str, object]:
    """What is written of one training."""
    trained = trainer.train(genotype, seed)
    rounded = trained.examples.astype(np.float16).tolist()
    return {"genotype": genotype.texts(), "seed": seed, **trained._asdict(), "examples": rounded}


def main(name: str, raw: Path, data: Path, seeds: int) -> None:
    """Train what the file of the table does not hold yet."""
    study = Study(SPACES[name](data))
    raw.mkdir(parents=True, exist_ok=True)
    file = raw / f"{name}.jsonl"
    finished = set()
    if file.exists():
        for text in file.read_text().splitlines():
            line = json.loads(text)
            if "genotype" in line:
                finished.add((json.dumps(line["genotype"]), line["seed"]))
    trainer = Trainer(study)
    compile_seconds = trainer.compile()
    with file.open("a") as output:
        print(
            json.dumps(header(study, name, trainer.test, compile_seconds)), file=output, flush=True
        )
        for seed, genotype in itertools.product(range(seeds), genotypes(study.space)):
            if (json.dumps(genotype.texts()), seed) in finished:
                continue
            line = line_of(trainer, genotype, seed)
            print(json.dumps(line), file=output, flush=True)
            print(
                name, seed, genotype, line["valid"][-1], line["test"], line["seconds"], flush=True
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", required=True, choices=SPACES)
    parser.add_argument(
        "--raw", type=Path, default=Path("runs/tables"), help="where lines are kept"
    )
    parser.add_argument("--data", type=Path, default=Path(), help="the folder of the data sets")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each genotype")
    arguments = parser.parse_args()
    main(arguments.table, arguments.raw, arguments.data, arguments.seeds)
