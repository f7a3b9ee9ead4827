"""The loop of strategies that learn no alphas: steps of the weights alone, at mixtures that nobody
learns."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.strategies.alternate import SAMPLE, weights_step
from dartformer.strategies.base import Options, Problem, State, Strategy, Weights
from dartformer.strategies.relax import everywhere, softmax


class WeightsOnly(Options, ABC):
    """A strategy whose weights learn at the rows that `rows` gives; its alphas stay zero."""

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
                jnp.zeros((), jnp.int32),
                key,
                weights,
                problem.weights_optimizer.init(weights),
                alphas,
                problem.alphas_optimizer.init(alphas),
                {},
            )

        def step(
            state: State, weights_batch: Any, alphas_batch: Any
        ) -> tuple[State, dict[str, Array]]:
            key = jax.random.fold_in(state.key, state.step)
            mixture = everywhere(
                rows(state.alphas, jax.random.fold_in(key, SAMPLE)), problem.mixture_shape
            )
            state, metrics = weights_step(problem, state, mixture, weights_batch, key)
            return state._replace(step=state.step + 1), {
                **metrics,
                "finite": jnp.isfinite(metrics["loss"]),
            }

        return Strategy(
            init, step, lambda state: everywhere(softmax(state.alphas), problem.mixture_shape)
        )
