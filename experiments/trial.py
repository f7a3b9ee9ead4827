"""What the reproductions share: training a genotype from several seeds, and files of results."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import stdtrit

from dartformer import cost
from dartformer.data.batches import batches
from dartformer.data.splits import Batch, Split, Subset, permutation
from dartformer.machine.progress import say
from dartformer.machine.workdir import jsonable
from dartformer.models.transformer import Weights, transformer
from dartformer.space.genotype import Genotype
from dartformer.stages.study import Study
from dartformer.training import optimizer
from dartformer.training.evaluate import Evaluator
from dartformer.training.loop import Schedule, ZippedStream, fit
from dartformer.training.step import CompiledStep, Metrics, Step, TrainState, begin, plain_step


class Lines:
    """A file of JSON lines that a run adds to, and does not repeat when it is started again.

    Args:
      file: made if it is not there; a last line that was cut short is dropped.
      names: the fields that tell one result from another.
    """

    def __init__(self, file: Path, names: Sequence[str]):
        self.file, self.names, self.rows = file, tuple(names), list[dict[str, Any]]()
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            text = file.read_text(encoding="utf-8")
            lines = text[: text.rfind("\n") + 1]
            self.rows = [json.loads(line) for line in lines.splitlines()]
            if lines != text:
                file.write_text(lines, encoding="utf-8")

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The result with these values of `names`."""
        for row in self.rows:
            if all(row.get(name) == key.get(name) for name in self.names):
                return row
        return None

    def add(self, **row: Any) -> dict[str, Any]:
        """Keep a result."""
        row = jsonable(row)
        with open(self.file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row


def steps_of(task: str, rows: Sequence[dict[str, Any]]) -> int:
    """The number of steps of all `rows`; ends the program if they differ.

    Trainings of different lengths cannot be compared."""
    steps = sorted({row["steps"] for row in rows})
    if len(steps) > 1:
        raise SystemExit(
            f"{task}: the file mixes trainings of {' and '.join(map(str, steps))} steps. Remove the "
            f"lines that you do not need."
        )
    return steps[0] if steps else 0


def provenance() -> dict[str, Any]:
    """Commit and device of a run."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "commit": process.stdout.strip() or "unknown",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def sample(split: Split, examples: int, seed: int = 0) -> Split:
    """`examples` of a split drawn by the seed, or all of them if it has no more."""
    if len(split) <= examples:
        return split
    return Subset(split, permutation(len(split), seed, 17)[:examples])


class Trial(NamedTuple):
    """Several seeds in training: one pytree whose arrays lead with the seeds, save their step.

    `losses` `[LAST, S]` holds those of the last steps.
    """

    seeds: TrainState
    losses: Array

    @property
    def step(self) -> Array:
        """The number of steps that are done."""
        return self.seeds.step


LAST = 20
"""Steps over which the training loss is averaged."""

# All seeds are at the same step.
AXES = TrainState(step=None, key=0, weights=0, optimizer=0)  # type: ignore[arg-type]


def seeded(step: Step[TrainState]) -> Step[Trial]:
    """A step of all seeds at once."""
    all_seeds = jax.vmap(step, in_axes=(AXES, 0), out_axes=(AXES, 0))

    def run(trial: Trial, batch: Batch) -> tuple[Trial, Metrics]:
        seeds, metrics = all_seeds(trial.seeds, batch)
        losses = trial.losses.at[trial.step % LAST].set(metrics["loss"])
        means = {name: jnp.mean(value) for name, value in metrics.items() if name != "finite"}
        means["finite"] = jnp.all(metrics["finite"])
        return Trial(seeds, losses), means

    return run


class StackedStream(ZippedStream):
    """The batches of several seeds, each array with a leading axis of seeds."""

    def __next__(self) -> Batch:
        batch: Batch = jax.tree.map(lambda *arrays: np.stack(arrays), *super().__next__())
        return batch


def trained(
    run: Study, genotype: Genotype, *, together: bool, test_examples: int, keep: bool = False
) -> tuple[dict[str, Any], list[Weights]]:
    """Train `genotype` from scratch at `retrain`'s budget from each of its seeds, and score it.

    Args:
      run: of the config.
      genotype: of the size of `run.model`.
      together: all seeds as one program, which on a CPU at tiny sizes is nearly as quick as one of
        them.
      test_examples: of test that are scored, drawn once for all.
      keep: whether to give the weights back.

    Returns:
      Accuracies of the last weights of each seed on valid and test, parameters, steps, seconds,
      those of the processor, and steps per second; the weights.
    """
    config, data = run.config.retrain, run.config.data
    net = transformer(run.model, genotype)
    chain = optimizer.build(config.optimizer, config.steps)
    step = CompiledStep(seeded(plain_step(net, chain, run.metric)))
    evaluator = Evaluator(net, data.eval_batch_size, run.metric)
    test = sample(run.parts["test"], test_examples)
    groups = [(seed,) for seed in config.seeds]
    if together:
        groups = [tuple(config.seeds)]
    start = jax.vmap(lambda seed: begin(net, chain, seed), out_axes=AXES)
    kept: list[Weights] = []
    result: dict[str, Any] = {"seeds": list(config.seeds), "valid": [], "test": [], "loss": []}
    seconds = cpu_seconds = 0.0
    for group in groups:
        streams = [batches(run.parts["train"], data.batch_size, seed) for seed in group]
        stream = StackedStream(*streams)
        seeds = start(jnp.array(group))
        state = Trial(seeds, jnp.full((LAST, len(group)), jnp.nan))
        # Compiled here, on the batch that `fit` then draws again, to keep it out of the CPU time.
        position = stream.get_state()
        step.prepare(state, next(stream))
        stream.set_state(position)
        cpu_started = time.process_time()
        schedule = Schedule(config.steps, log_every=run.config.log.every)
        fitted = fit(str(genotype), step, state, stream, schedule, folder=None)
        cpu_seconds += time.process_time() - cpu_started
        seconds += fitted.seconds
        result["loss"] += np.nanmean(fitted.state.losses, axis=0).tolist()
        for i in range(len(group)):
            weights = jax.tree.map(lambda leaf, i=i: leaf[i], fitted.state.seeds.weights)
            result["valid"].append(evaluator(weights, run.parts["valid"])["accuracy"])
            result["test"].append(evaluator(weights, test)["accuracy"])
            if keep:
                kept.append(weights)
    temporaries = [p.memory_analysis().temp_size_in_bytes for p in step.programs.values()]
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    result.update(
        temp_bytes=int(temporaries[-1]),
        parameters=cost.parameters(shapes),
        steps=config.steps,
        test_examples=len(test),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        compile_seconds=step.compile_seconds,
        steps_per_second=len(config.seeds) * config.steps / seconds,
    )
    say(
        f"{genotype}: test {np.mean(result['test']):.3f} ({seconds:.0f} s, {cpu_seconds:.0f} s of "
        f"CPU time, compiled in {step.compile_seconds:.0f} s)"
    )
    return result, kept


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95% interval."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, float("nan")
    return mean, float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
