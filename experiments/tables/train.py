"""Train every genotype of a search space, and write one line for each model.

    python experiments/tables/train.py --table=mqar_2 --raw=runs/tables

One compiled program trains the whole space: the supernet at a one-hot mixture is the derived model
(`tests/test_supernet.py`), and the mixture is an argument. Weights, batches and schedule are those of
`dartformer retrain`, so a model differs from its own only by rounding. Seeds come outermost: a run cut
short has the same seeds of all genotypes. Run again, it continues after the last line.
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
import optax
from jax import Array
from spaces import NINTHS, SPACES

import dartformer
from dartformer.config import to_dict
from dartformer.data.batches import batches
from dartformer.data.splits import Batch, Split, Subset
from dartformer.models.supernet import supernet
from dartformer.models.transformer import Weights
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.study import Study
from dartformer.training import optimizer
from dartformer.training.evaluate import Evaluator
from dartformer.training.step import TrainState, begin, training_loss

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
        self.test = first_examples(study.parts["test"], MOST_TEST)
        self.looks = [round(self.steps * i / NINTHS) for i in range(1, NINTHS + 1)]
        network = supernet(study.model, study.space)
        self.template: Weights = jax.eval_shape(network.init, jax.random.key(0))
        self.chain = optimizer.build(study.config.retrain.optimizer, self.steps)
        self.evaluator = Evaluator(
            network, study.config.data.eval_batch_size, study.metric, study.config.data.buckets
        )
        value_and_gradient = jax.value_and_grad(training_loss(network, study.metric), has_aux=True)

        def step(state: TrainState, mixture: Array, batch: Batch) -> TrainState:
            key = jax.random.fold_in(state.key, state.step)
            _, gradient = value_and_gradient(state.weights, mixture, batch, key)
            updates, moments = self.chain.update(gradient, state.optimizer, state.weights)
            weights = optax.apply_updates(state.weights, updates)
            return TrainState(state.step + 1, state.key, weights, moments)

        self.step = jax.jit(step, donate_argnums=0)

    def begin(self, genotype: Genotype, seed: int) -> TrainState:
        """The state in which `retrain` begins, as weights of the supernet."""
        state = begin(self.study.program(genotype).network, self.chain, seed)
        weights = embedded(state.weights, self.template, self.study.space, genotype)
        return state._replace(weights=weights, optimizer=self.chain.init(weights))

    def compile(self) -> float:
        """Compile the training and the evaluation; returns the processor seconds."""
        genotype = self.study.space.homogeneous()[0]
        state = self.begin(genotype, seed=0)
        parts, batch_size = self.study.parts, self.study.config.data.batch_size
        batch = next(batches(parts["train"], batch_size, 0))
        mixture = self.study.space.mixture(genotype)
        started = time.process_time()
        state = self.step(state, mixture, batch)
        # They may be smaller than a batch of evaluation, and differ in size.
        for part in (parts["valid"], self.test):
            self.evaluator(state.weights, part, mixture)
        return time.process_time() - started

    def train(self, genotype: Genotype, seed: int) -> Trained:
        """Train one genotype to the end, with a look at valid after each ninth of the steps."""
        study = self.study
        mixture = study.space.mixture(genotype)
        state = self.begin(genotype, seed)
        stream = batches(study.parts["train"], study.config.data.batch_size, seed)
        score = "loss"
        if study.metric.percent:
            score = "accuracy"
        valid, valid_loss, examples, seconds = [], [], [], 0.0
        for first, last in itertools.pairwise([0, *self.looks]):
            started = time.process_time()
            for _ in range(first, last):
                state = self.step(state, mixture, next(stream))
            jax.block_until_ready(state.weights)
            seconds += time.process_time() - started
            look = self.evaluator.evaluate(state.weights, study.parts["valid"], mixture)
            valid.append(look.scores[study.metric.name])
            valid_loss.append(look.scores["loss"])
            examples.append(look.examples[score])
        test = self.evaluator(state.weights, self.test, mixture)
        return Trained(
            valid, valid_loss, test[study.metric.name], test["loss"], seconds, np.array(examples)
        )


def first_examples(split: Split, most: int) -> Split:
    """The first `most` examples of a split, or all of a smaller one."""
    return Subset(split, np.arange(min(most, len(split))))


def embedded(
    weights: Weights, template: Weights, space: SearchSpace, genotype: Genotype
) -> Weights:
    """A derived model's weights in their places of the supernet's; the others are zero, and stay so.

    The inverse of `dartformer.inherit`, for one attention in each layer.
    """
    blocks = {}
    for layer, block in weights["blocks"].items():
        mixer = dict(template["blocks"][layer]["mixer"])
        mixer["projections"] = block["mixer"]["projections"]
        if "own" in mixer:
            own = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), mixer["own"])
            if "own" in block["mixer"]:
                own[space.choice(genotype)[layer, 0]] = block["mixer"]["own"][0]
            mixer["own"] = own
        blocks[layer] = {**block, "mixer": mixer}
    return {**weights, "blocks": blocks}


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
