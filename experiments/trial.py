"""What the two reproductions share: a genotype trained from some seeds, and results that are kept
as they come."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from dartformer import cost
from dartformer.data.batches import batches
from dartformer.data.splits import Split, Subset, permutation
from dartformer.machine.progress import say
from dartformer.machine.workdir import jsonable
from dartformer.models.transformer import Weights, transformer
from dartformer.space.genotype import Genotype
from dartformer.stages.study import Run
from dartformer.training import optimizer
from dartformer.training.evaluate import Evaluator
from dartformer.training.step import begin, plain_step


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
            whole = file.read_text(encoding="utf-8")
            lines = whole[: whole.rfind("\n") + 1]
            self.rows = [json.loads(line) for line in lines.splitlines()]
            if lines != whole:
                file.write_text(lines, encoding="utf-8")

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The result with these values of `names`."""
        return next(
            (row for row in self.rows if all(row.get(n) == key.get(n) for n in self.names)), None
        )

    def add(self, **row: Any) -> dict[str, Any]:
        """Keep a result."""
        row = jsonable(row)
        with open(self.file, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self.rows.append(row)
        return row


def steps_of(task: str, rows: Sequence[dict[str, Any]]) -> int:
    """The number of steps of all `rows`; ends the program where they differ, since they say nothing
    of each other."""
    found = sorted({row["steps"] for row in rows})
    if len(found) > 1:
        raise SystemExit(
            f"{task}: trainings of {' and '.join(map(str, found))} steps stand in one file: take out "
            f"those that are not wanted."
        )
    return found[0] if found else 0


def provenance() -> dict[str, Any]:
    """Commit and device of a run."""
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "commit": found.stdout.strip() or "unknown",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def some(split: Split, examples: int, seed: int = 0) -> Split:
    """`examples` of a split drawn by the seed; all of it where it has no more."""
    return (
        split
        if len(split) <= examples
        else Subset(split, permutation(len(split), seed, 17)[:examples])
    )


def trained(
    run: Run, genotype: Genotype, *, together: bool, test_examples: int, keep: bool = False
) -> tuple[dict[str, Any], list[Weights]]:
    """Train `genotype` from scratch at `retrain`'s budget from each of its seeds; score the last
    weights.

    Args:
      run: of the config; its workdir is not written to.
      genotype: of the size of `run.model`.
      together: all seeds as one program, which on a CPU at tiny sizes is nearly as quick as one of
        them.
      test_examples: of test that are scored, drawn once for all.
      keep: whether to give the weights back.

    Returns:
      Accuracies of each seed on valid and test, parameters, steps, seconds, those of the processor,
      and steps per second; the weights.
    """
    config, net = run.config.retrain, transformer(run.model, genotype)
    chain = optimizer.build(config.optimizer, config.steps)
    step = plain_step(net, chain, run.metric)
    evaluator = Evaluator(net, run.config.data.eval_batch_size, run.metric)
    test = some(run.parts["test"], test_examples)
    groups = [tuple(config.seeds)] if together else [(seed,) for seed in config.seeds]
    compiled = jax.jit(jax.vmap(step), donate_argnums=0)
    found: dict[str, Any] = {"seeds": list(config.seeds), "valid": [], "test": [], "loss": []}
    kept, seconds, cpu_seconds, compile_seconds = [], 0.0, 0.0, 0.0
    for group in groups:
        streams = [batches(run.parts["train"], run.config.data.batch_size, seed) for seed in group]
        state = jax.vmap(lambda seed: begin(net, chain, seed))(jnp.array(group))

        def take(streams: Any = streams) -> Any:
            return jax.tree.map(lambda *arrays: np.stack(arrays), *(next(one) for one in streams))

        batch, started = take(), time.perf_counter()
        program = compiled.lower(state, batch).compile()
        compile_seconds += time.perf_counter() - started
        found["temp_bytes"] = int(program.memory_analysis().temp_size_in_bytes)
        started, cpu, losses = time.perf_counter(), time.process_time(), []
        for i in range(config.steps):
            state, metrics = program(state, batch)
            losses.append(metrics["loss"])
            if i + 1 < config.steps:
                batch = take()
            if i % run.config.log.every == 0 and not bool(jnp.all(metrics["finite"])):
                raise RuntimeError(f"{genotype} diverged at step {i}.")
        jax.block_until_ready(state)
        seconds, cpu_seconds = (
            seconds + time.perf_counter() - started,
            cpu_seconds + time.process_time() - cpu,
        )
        found["loss"] += np.mean([np.asarray(one) for one in losses[-20:]], 0).tolist()
        for i in range(len(group)):
            weights = jax.tree.map(lambda leaf, i=i: leaf[i], state.weights)
            found["valid"].append(evaluator(weights, run.parts["valid"])["accuracy"])
            found["test"].append(evaluator(weights, test)["accuracy"])
            if keep:
                kept.append(weights)
    first = jax.eval_shape(net.init, jax.random.key(0))
    found.update(
        parameters=cost.parameters(first),
        steps=config.steps,
        test_examples=len(test),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        compile_seconds=compile_seconds,
        steps_per_second=len(config.seeds) * config.steps / seconds,
    )
    say(
        f"{genotype}: test {np.mean(found['test']):.3f} ({seconds:.0f} s, {cpu_seconds:.0f} s of the processor, "
        f"compiled in {compile_seconds:.0f} s)"
    )
    return found, kept


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95% interval."""
    n = len(values)
    half = (
        float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(n))
        if n > 1
        else float("nan")
    )
    return float(np.mean(values)), half
