"""What the benchmarks of searches share: planted tasks on which searches and trainings run without
workdirs to resume.

Training a genotype alone goes through the supernet at its fixed one-hot mixture. That is the
derived model (tests of the package hold them equal), and the mixture is data: one compiled program
trains every genotype of a space."""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dartformer
from dartformer import derivations
from dartformer.cli.new import space_file
from dartformer.data.batches import batches
from dartformer.data.splits import Subset
from dartformer.derivations import Derived, Trained
from dartformer.space.genotype import Genotype
from dartformer.stages.derive import fine_tuner
from dartformer.stages.search import Group, compiled_step, initial, stream
from dartformer.stages.study import Run
from dartformer.tasks.planted import ANSWERS
from dartformer.training import optimizer
from dartformer.training.step import CompiledStep, training_loss


class Lab:
    """One planted task with one strategy, everything compiled once; seconds exclude compiling.

    Args:
      run: made from the config; see `open_lab`.
      reference: another lab of the same task and space, which trains genotypes alone for this one
        too.
    """

    def __init__(self, run: Run, reference: "Lab | None" = None):
        self.run, self.space, self.reference = run, run.space, reference
        self._alone: dict[tuple[bytes, int], dict[str, float]] = {}
        self.step: CompiledStep | None = None
        self._owed = 0.0

    @cached_property
    def _fixed(self) -> tuple[Any, Any]:
        """(begin, step): plain training of the supernet at a mixture that is handed in."""
        net, config = self.run.supernet.network, self.run.config.retrain
        loss, chain = training_loss(net), optimizer.build(config.optimizer, config.steps)

        @jax.jit
        def begin(key: jax.Array) -> Any:
            weights = net.init(key)
            return weights, chain.init(weights)

        def step(state: Any, mixture: Any, batch: Any, key: jax.Array) -> Any:
            weights, moments = state
            gradient = jax.grad(lambda w: loss(w, mixture, batch, key)[0])(weights)
            updates, moments = chain.update(gradient, moments, weights)
            return optax.apply_updates(weights, updates), moments

        return begin, jax.jit(step, donate_argnums=0)

    def alone(self, genotype: Genotype, seed: int) -> dict[str, float]:
        """Valid and test accuracy, valid loss and seconds of a genotype trained from scratch at
        `retrain`'s budget."""
        if self.reference is not None:
            return self.reference.alone(genotype, seed)
        mixture = jnp.asarray(self.space.mixture(genotype))
        known = np.asarray(mixture).tobytes(), seed
        if known not in self._alone:
            run, (begin, step) = self.run, self._fixed
            first, key = jax.random.split(jax.random.key(seed))
            given = batches(run.parts["train"], run.config.data.batch_size, seed)
            # Compiled on a copy, before the clock is started.
            jax.block_until_ready(step(begin(first), mixture, next(given), key))
            state, started = begin(first), time.perf_counter()
            for i in range(run.config.retrain.steps):
                state = step(state, mixture, next(given), jax.random.fold_in(key, i))
            jax.block_until_ready(state)
            seconds = time.perf_counter() - started
            valid, test = (
                run.supernet.evaluator(state[0], run.parts[name], mixture)
                for name in ("valid", "test")
            )
            self._alone[known] = {
                "valid": valid["accuracy"],
                "valid_loss": valid["loss"],
                "test": test["accuracy"],
                "seconds": seconds,
            }
        return self._alone[known]

    def search(self, seed: int) -> tuple[Trained, float]:
        """What a search with `seed` gives a derivation, and its seconds (0 where no supernet is
        trained)."""
        run, state, seconds = self.run, None, 0.0
        mixture = np.full(self.space.mixture_shape, 1 / len(self.space.candidates), np.float32)
        if run.strategy.traits.supernet:
            group = Group(run.file("search"), (seed,))
            state, given = initial(run, group), stream(run, group)
            step = self.step = self.step or compiled_step(run, group)
            step.prepare(state, next(stream(run, group)))
            compiled, started = step.compile_seconds, time.perf_counter()
            for _ in range(run.config.search.steps):
                state, _ = step(state, next(given))
            jax.block_until_ready(state)
            # A step is compiled again on the way where candidates are dropped.
            seconds = time.perf_counter() - started - (step.compile_seconds - compiled)
            mixture = np.asarray(run.supernet.strategy.mixture(state))
        valid = run.parts["valid"]

        def evaluate(
            weights: Any, mixture: np.ndarray, examples: int | None
        ) -> dict[str, np.ndarray]:
            part = (
                valid
                if examples is None or examples >= len(valid)
                else Subset(valid, np.arange(examples))
            )
            return run.supernet.evaluator.per_example(weights, part, mixture)

        def standalone(genotype: Genotype) -> dict[str, np.ndarray]:
            started = time.perf_counter()
            trained = [self.alone(genotype, s) for s in run.config.retrain.seeds]
            # What training took when it was done, whether that was now or for another strategy.
            self._owed += sum(t["seconds"] for t in trained) - (time.perf_counter() - started)
            return {
                "loss": np.array([t["valid_loss"] for t in trained]),
                "accuracy": np.array([t["valid"] for t in trained]),
            }

        return Trained(
            self.space,
            mixture,
            None if state is None else state.weights,
            evaluate,
            fine_tuner(run),
            standalone,
            np.random.default_rng([seed, 1]),
            run.config.derive.tie_margin,
        ), seconds

    def derive(self, trained: Trained, rule: str | None = None) -> tuple[Derived, float]:
        """What a rule (the config's own if None) makes of it, and its seconds."""
        self._owed, started = 0.0, time.perf_counter()
        derived = derivations.parse(rule or self.run.config.derive.rule)(trained)
        return derived, time.perf_counter() - started + self._owed

    def planted(self) -> Genotype | None:
        """The planted answer as a genotype of this size; None for `global`, which has a set of
        them."""
        answer = ANSWERS.get(self.run.task.kind)
        return (
            None
            if answer is None
            else Genotype.from_dict(
                {
                    "format": 1,
                    "layers": [
                        [layer[h % len(layer)] for h in range(self.space.heads)] for layer in answer
                    ],
                }
            )
        )

    def found(self, genotype: Genotype) -> bool:
        """Whether it is the planted answer."""
        return self.run.task.is_answer(genotype.to_dict()["layers"])


@contextlib.contextmanager
def open_lab(
    kind: str,
    strategy: str = "darts",
    values: Mapping[str, Any] | None = None,
    reference: Lab | None = None,
) -> Iterator[Lab]:
    """A lab for a kind of planted task with the settings of `search_spaces/planted_<kind>.py`, and
    `values` on top."""
    file = space_file("planted", kind=kind)
    config = dartformer.load_config(file, {"search.strategy.name": strategy, **(values or {})})
    with tempfile.TemporaryDirectory() as folder, Run(config, Path(folder) / "run") as run:
        yield Lab(run, reference)
