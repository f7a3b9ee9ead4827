"""What a search strategy is: two pure functions over one state. It sees a loss, never a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import optax
from jax import Array

Weights = Any
"""A pytree of parameters."""

Loss = Callable[[Weights, Array, Any, Array], tuple[Array, dict[str, Array]]]
"""loss(weights, mixture [L, H, K], batch, key) -> (scalar, metrics); the key is for dropout and the like."""


class State(NamedTuple):
    """All that a search knows, one pytree: what is saved is what is resumed.

    Attributes:
      step: steps taken, int32 scalar.
      key: PRNG key; step `s` draws from `fold_in(key, s)`.
      weights, weights_optimizer: parameters and their optax state.
      alphas, alphas_optimizer: `[1 or L, 1 or H, K]` and their optax state.
    """

    step: Array
    key: Array
    weights: Weights
    weights_optimizer: optax.OptState
    alphas: Array
    alphas_optimizer: optax.OptState


@dataclass(frozen=True)
class Problem:
    """What a strategy is given to solve.

    Attributes:
      loss: of weights and mixture on a batch.
      alphas_shape: `[1 or L, 1 or H, K]`, from the search space's granularity.
      mixture_shape: `[L, H, K]`.
      weights_optimizer, alphas_optimizer: optax transformations.
      steps: how many steps the search will take.
    """

    loss: Loss
    alphas_shape: tuple[int, int, int]
    mixture_shape: tuple[int, int, int]
    weights_optimizer: optax.GradientTransformation
    alphas_optimizer: optax.GradientTransformation
    steps: int


class Strategy(NamedTuple):
    """A search algorithm.

    init: (key, weights) -> State.
    step: (state, weights_batch, alphas_batch) -> (State, metrics), one step of both levels.
    mixture: state -> `[L, H, K]`, the point on the simplex that the alphas stand for now.
    """

    init: Callable[[Array, Weights], State]
    step: Callable[[State, Any, Any], tuple[State, dict[str, Array]]]
    mixture: Callable[[State], Array]


class StrategyOptions(Protocol):
    """A frozen dataclass of a strategy's options; calling it with a problem gives the strategy.

    `order` is how many times the loss is differentiated with respect to the network's inputs and weights.
    """

    @property
    def order(self) -> int: ...

    def __call__(self, problem: Problem) -> Strategy: ...
