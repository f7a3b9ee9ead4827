"""The loop of strategies without alphas: steps of the weights alone, at mixtures not learned."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.strategies.alternate import SAMPLE, weights_step
from dartformer.strategies.base import Batch, Metrics, Options, Problem, State, Strategy, Weights
from dartformer.strategies.relax import everywhere, softmax


class WeightsOnly(Options, ABC):
    """A strategy whose weights learn at the rows that `rows` draws; its alphas stay zero."""

    draws: ClassVar[bool]

    @property
    def sampled(self) -> bool:
        """See `StrategyOptions`."""
        return self.draws

    @abstractmethod
    def rows(self) -> Callable[[Array, Array], Array]:
        """(alphas, key) -> `[1 or L, 1 or H, K]`, for one step."""

    def __call__(self, problem: Problem) -> Strategy:
        """The strategy for a problem."""
        rows = self.rows()

        def init(key: Array, weights: Weights) -> State:
            alphas = jnp.zeros(problem.alphas_shape)
            return State(
                step=jnp.zeros((), jnp.int32),
                key=key,
                weights=weights,
                weights_optimizer=problem.weights_optimizer.init(weights),
                alphas=alphas,
                alphas_optimizer=problem.alphas_optimizer.init(alphas),
                memory={},
            )

        def step(state: State, weights_batch: Batch, alphas_batch: Batch) -> tuple[State, Metrics]:
            key = jax.random.fold_in(state.key, state.step)
            sample = jax.random.fold_in(key, SAMPLE)
            drawn = everywhere(rows(state.alphas, sample), problem.mixture_shape)
            state, metrics = weights_step(problem, state, drawn, weights_batch, key)
            # The norm of a gradient with a NaN or infinity is not finite, whatever the loss.
            finite = jnp.isfinite(metrics["loss"] + metrics["gradient_norm"])
            return state._replace(step=state.step + 1), metrics | {"finite": finite}

        def mixture(state: State) -> Array:
            return everywhere(softmax(state.alphas), problem.mixture_shape)

        return Strategy(init, step, mixture)
