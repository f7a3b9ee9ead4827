"""Programs: what trains and evaluates a genotype, compiled for it alone or for the whole space.

Compiling a small model for a CPU takes longer than training it. The supernet at a one-hot mixture is
the model of a genotype, and its mixture is an argument, so that one program can train all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from dartformer.data.splits import Batch, Split
from dartformer.models.supernet import expand, inherit
from dartformer.models.transformer import Network, OfLabels, Weights, label_scores
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.training.evaluate import Evaluation, Evaluator, ExampleScores, Scores
from dartformer.training.loop import AS_IT_IS, Form, Schedule, Stream, fit
from dartformer.training.metric import Metric
from dartformer.training.step import CompiledStep, Metrics, TrainState, plain_step


class Evaluates(Protocol):
    """Scores of a derived model's weights on a split; see `Evaluator`."""

    def __call__(self, weights: Weights, split: Split) -> Scores: ...
    def evaluate(self, weights: Weights, split: Split) -> Evaluation: ...
    def per_example(self, weights: Weights, split: Split) -> ExampleScores: ...


class Program(NamedTuple):
    """A genotype's network with all that is compiled for it, shared by seeds and stages.

    Attributes:
      network: the derived model.
      optimizer: of its weights.
      step: of training.
      evaluator: of the derived model's weights.
      form: of the state that `step` takes.
      feed: from batches to what `step` takes.
    """

    network: Network
    optimizer: optax.GradientTransformation
    step: CompiledStep[TrainState]
    evaluator: Evaluates
    form: Form[TrainState] = AS_IT_IS
    feed: Callable[[Stream], Stream] = lambda stream: stream


class SharedProgram:
    """One compiled step and one evaluator for every genotype of a space.

    Args:
      supernet: with shared projections, at whose one-hot mixtures the genotypes train.
      space: of the genotypes.
      chain: their optimizer.
      metric: their metric.
      evaluator: of the supernet.
      parts: that a batch is computed in.
    """

    def __init__(
        self,
        supernet: Network,
        space: SearchSpace,
        chain: optax.GradientTransformation,
        metric: Metric,
        evaluator: Evaluator,
        parts: int = 1,
    ):
        self.space, self.chain, self.evaluator = space, chain, evaluator
        self.step = CompiledStep(mixed_step(supernet, chain, metric, parts))
        self.shapes = jax.eval_shape(supernet.init, jax.random.key(0))

    def of(self, genotype: Genotype, network: Network) -> Program:
        """The program of one genotype, whose derived model is `network`."""
        mixture = np.asarray(self.space.mixture(genotype))

        def widen(weights: Weights) -> Weights:
            return expand(weights, self.space, genotype, self.shapes)

        def narrow(weights: Weights) -> Weights:
            return inherit(weights, self.space, genotype)

        return Program(
            network,
            self.chain,
            self.step,
            _AtMixtureEvaluator(self.evaluator, widen, mixture),
            Form(
                enter=lambda state: _with_weights(state, widen),
                leave=lambda state: _with_weights(state, narrow),
            ),
            lambda stream: AtMixture(stream, mixture),
        )


def _with_weights(state: TrainState, change: Callable[[Weights], Weights]) -> TrainState:
    """A state with changed weights; the optimizer's moments, which are shaped as they, alike."""
    structure: Any = jax.tree.structure(state.weights)

    def is_shaped_as_weights(node: Any) -> bool:
        return isinstance(node, dict) and bool(jax.tree.structure(node) == structure)

    def changed(node: Any) -> Any:
        if is_shaped_as_weights(node):
            return change(node)
        return node

    moments = jax.tree.map(changed, state.optimizer, is_leaf=is_shaped_as_weights)
    return state._replace(weights=change(state.weights), optimizer=moments)


class _AtMixtureEvaluator:
    """Evaluates a derived model's weights by the evaluator of the supernet."""

    def __init__(
        self, evaluator: Evaluator, widen: Callable[[Weights], Weights], mixture: np.ndarray
    ):
        self.evaluator, self.widen, self.mixture = evaluator, widen, mixture

    def __call__(self, weights: Weights, split: Split) -> Scores:
        return self.evaluate(weights, split).scores

    def per_example(self, weights: Weights, split: Split) -> ExampleScores:
        """See `Evaluator`."""
        return self.evaluate(weights, split).examples

    def evaluate(self, weights: Weights, split: Split) -> Evaluation:
        """See `Evaluator`."""
        return self.evaluator.evaluate(self.widen(weights), split, self.mixture)


# Training at a fixed mixture.


def mixed_step(
    supernet: Network, chain: optax.GradientTransformation, metric: Metric, parts: int = 1
) -> Callable[[TrainState, tuple[Batch, Array]], tuple[TrainState, Metrics]]:
    """One step of ordinary training of a supernet at the mixture that comes with each batch."""

    def step(state: TrainState, pair: tuple[Batch, Array]) -> tuple[TrainState, Metrics]:
        batch, mixture = pair
        return plain_step(_at_mixture(supernet, mixture), chain, metric, parts)(state, batch)

    return step


def _at_mixture(network: Network, fixed: Array) -> Network:
    """A supernet as an ordinary network whose mixture is fixed."""

    def apply(
        weights: Weights,
        tokens: ArrayLike,
        valid: ArrayLike,
        mixture: ArrayLike | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        assert mixture is None
        return network.apply(weights, tokens, valid, fixed, train=train, key=key)

    def of_labels(
        function: OfLabels,
        weights: Weights,
        tokens: ArrayLike,
        valid: ArrayLike,
        labels: ArrayLike,
        mixture: ArrayLike | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Any:
        assert mixture is None
        arrays = (weights, tokens, valid, labels, fixed)
        return label_scores(network, function, *arrays, train=train, key=key)

    return network._replace(apply=apply, of_labels=of_labels)


class AtMixture:
    """A stream of pairs of a batch and a mixture that stays the same."""

    def __init__(self, stream: Stream, mixture: np.ndarray):
        self.stream, self.mixture = stream, jnp.asarray(mixture)
        self.get_state, self.set_state = stream.get_state, stream.set_state

    def __next__(self) -> tuple[Batch, Array]:
        return next(self.stream), self.mixture


def fine_tuner(
    program: Callable[[int], tuple[optax.GradientTransformation, CompiledStep[TrainState]]],
    stream: Callable[[int], Stream],
) -> Callable[[Weights, np.ndarray, int, int], Weights]:
    """(weights, mixture, steps, seed) -> weights, trained further at a fixed mixture.

    Args:
      program: from a number of steps to an optimizer and a step on pairs of a batch and a mixture.
        Called once for each number of steps: the mixture is an argument, so that a rule can
        fine-tune at many mixtures without compiling for each.
      stream: from a seed to batches.
    """
    compiled: dict[int, tuple[optax.GradientTransformation, CompiledStep[TrainState]]] = {}

    def fine_tune(weights: Weights, mixture: np.ndarray, steps: int, seed: int) -> Weights:
        if steps == 0:
            return weights
        if steps not in compiled:
            compiled[steps] = program(steps)
        chain, step = compiled[steps]
        # A step reuses the memory of its state, and the caller keeps its weights.
        copied = jax.tree.map(jnp.copy, weights)
        start = jnp.zeros((), jnp.int32)
        state = TrainState(start, jax.random.key(seed), copied, chain.init(copied))
        schedule = Schedule(steps, log_every=steps)
        pairs = AtMixture(stream(seed), mixture)
        return fit("fine-tuning", step, state, pairs, schedule, None).state.weights

    return fine_tune
