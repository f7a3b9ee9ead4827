"""What the benchmarks of searches share: planted tasks on which searches and trainings run without
workdirs to resume.

Training a genotype alone goes through the supernet at its fixed one-hot mixture. That is the
derived model (tests of the package hold them equal), and the mixture is data: one compiled program
trains every genotype of a space."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import dartformer
from dartformer import derivations
from dartformer.cli.new import space_file
from dartformer.data.batches import batches
from dartformer.data.splits import Batch, Subset
from dartformer.derivations import Derived, Trained
from dartformer.models.transformer import Weights
from dartformer.space.genotype import Genotype
from dartformer.stages.derive import fine_tuner
from dartformer.stages.narrow import Narrowing
from dartformer.stages.search import Group, compiled_step, initial, stream
from dartformer.stages.study import Study
from dartformer.tasks.planted import ANSWERS
from dartformer.training import optimizer
from dartformer.training.loop import Schedule, Stream, fit
from dartformer.training.step import CompiledStep, Metrics, training_loss


class Fixed(NamedTuple):
    """A supernet in training at one mixture, which is part of the state so that one program will do."""

    step: Array
    key: Array
    mixture: Array
    weights: Weights
    optimizer: optax.OptState


class Lab:
    """One planted task with one strategy, everything compiled once; seconds exclude compiling.

    Args:
      run: made from the config; see `open_lab`.
      reference: another lab of the same task and space, which trains genotypes alone for this one
        too.
    """

    def __init__(self, run: Study, reference: "Lab | None" = None):
        self.run, self.space, self.reference = run, run.space, reference
        self._alone: dict[tuple[bytes, int], dict[str, float]] = {}
        self.step: CompiledStep[Any] | Narrowing | None = None

    @cached_property
    def _fixed(self) -> tuple[Callable[[Array], tuple[Any, Any]], CompiledStep[Fixed]]:
        """(weights and optimizer state of a key, step): training of the supernet at one mixture."""
        net, config = self.run.supernet.network, self.run.config.retrain
        loss, chain = training_loss(net), optimizer.build(config.optimizer, config.steps)

        @jax.jit
        def initial(key: Array) -> tuple[Any, Any]:
            weights = net.init(key)
            return weights, chain.init(weights)

        def step(state: Fixed, batch: Batch) -> tuple[Fixed, Metrics]:
            key = jax.random.fold_in(state.key, state.step)
            value_and_gradient = jax.value_and_grad(loss, has_aux=True)
            (value, _), gradient = value_and_gradient(state.weights, state.mixture, batch, key)
            updates, moments = chain.update(gradient, state.optimizer, state.weights)
            weights = optax.apply_updates(state.weights, updates)
            finite = jnp.isfinite(value + optax.tree.norm(gradient))
            state = Fixed(state.step + 1, state.key, state.mixture, weights, moments)
            return state, {"loss": value, "finite": finite}

        return initial, CompiledStep(step)

    @property
    def fixed_step(self) -> CompiledStep[Fixed]:
        """A step of a genotype trained from scratch at `retrain`'s schedule."""
        return self._fixed[1]

    def begin(self, genotype: Genotype, seed: int) -> tuple[Fixed, Stream]:
        """The state of a genotype before its first step, and the batches that it learns from."""
        first, key = jax.random.split(jax.random.key(seed))
        initial_weights, _ = self._fixed
        # An array of its own, because the step reuses the memory of its state.
        mixture = jnp.array(self.space.mixture(genotype))
        state = Fixed(jnp.zeros((), jnp.int32), key, mixture, *initial_weights(first))
        batch_stream = batches(self.run.parts["train"], self.run.config.data.batch_size, seed)
        next(batch_stream)  # the published tables were made without the first batch
        return state, batch_stream

    def alone(self, genotype: Genotype, seed: int) -> dict[str, float]:
        """Scores and seconds of a genotype trained from scratch at `retrain`'s budget.

        The scores are the accuracy on valid and test, and the loss on valid."""
        if self.reference is not None:
            return self.reference.alone(genotype, seed)
        mixture = jnp.asarray(self.space.mixture(genotype))
        name = np.asarray(mixture).tobytes(), seed
        if name not in self._alone:
            run, (state, batch_stream) = self.run, self.begin(genotype, seed)
            schedule = Schedule(run.config.retrain.steps, log_every=run.config.log.every)
            fitted = fit("alone", self.fixed_step, state, batch_stream, schedule, folder=None)
            scores = {}
            for part in ("valid", "test"):
                evaluator = run.supernet.evaluator
                scores[part] = evaluator(fitted.state.weights, run.parts[part], mixture)
            self._alone[name] = {
                "valid": scores["valid"]["accuracy"],
                "valid_loss": scores["valid"]["loss"],
                "test": scores["test"]["accuracy"],
                "seconds": fitted.seconds,
            }
        return self._alone[name]

    def search(self, seed: int) -> tuple[Trained, float]:
        """What a search with `seed` hands to a derivation, and its seconds.

        Without a supernet there is nothing to train, in 0 seconds."""
        run, state, seconds = self.run, None, 0.0
        mixture = np.full(self.space.mixture_shape, 1 / len(self.space.candidates), np.float32)
        if run.strategy.traits.supernet:
            group = Group((seed,))
            if self.step is None:
                self.step = compiled_step(run, group)
            schedule = Schedule(run.config.search.steps, log_every=run.config.log.every)
            start, batch_stream = initial(run, group), stream(run, group)
            fitted = fit("search", self.step, start, batch_stream, schedule, folder=None)
            state, seconds = fitted.state, fitted.seconds
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

        return Trained(
            self.space,
            mixture,
            None if state is None else state.weights,
            evaluate,
            fine_tuner(run),
            np.random.default_rng([seed, 1]),
            run.config.derive.tie_margin,
        ), seconds

    def derive(self, trained: Trained, rule: str | None = None) -> tuple[Derived, float]:
        """What a rule (the config's own if None) makes of it, and its seconds."""
        started = time.perf_counter()
        derived = derivations.parse(rule or self.run.config.derive.rule)(trained)
        return derived, time.perf_counter() - started

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
    yield Lab(Study(config), reference)
