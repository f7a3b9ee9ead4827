"""DARTS (Liu et al. 2019, arXiv 1806.09055): alphas by gradient descent on their own half of the data."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dartformer.errors import InputError, unknown
from dartformer.strategies import relax
from dartformer.strategies.base import Problem, State, Strategy, Traits, Weights
from dartformer.strategies.bilevel import HYPERGRADIENTS


@dataclass(frozen=True)
class Darts:
    """Alternates a step of the alphas (upper level) and a step of the weights (lower level).

    Attributes:
      hypergradient: "first", "second" (exact) or "finite" (the published approximation of the second).
      warmup: share of the steps in which only the weights move, so that slow learners are not judged too early.
      spread: standard deviation of the initial alphas.
    """

    traits: ClassVar[Traits] = Traits("arXiv 1806.09055", ("argmax", "masked_drop", "sample", "top_k"))

    hypergradient: str = "first"
    warmup: float = 0.33
    spread: float = 1e-3

    def __post_init__(self) -> None:
        if self.hypergradient not in HYPERGRADIENTS:
            raise unknown("search.strategy.hypergradient", self.hypergradient, HYPERGRADIENTS)
        if not 0 <= self.warmup <= 1:
            raise InputError(f"search.strategy.warmup is a share of the steps, between 0 and 1; got {self.warmup!r}.")
        if self.spread < 0:
            raise InputError(f"search.strategy.spread must be at least 0, got {self.spread!r}.")

    @property
    def order(self) -> int:
        """Derivatives taken of the network."""
        return 2 if self.hypergradient == "second" else 1

    @property
    def sampled(self) -> bool:
        """Mixtures are one-hot samples."""
        return False

    @property
    def vectorises(self) -> bool:
        """Several seeds may run as one program."""
        return True

    def __call__(self, problem: Problem) -> Strategy:
        """The strategy for a problem."""
        hypergradient = HYPERGRADIENTS[self.hypergradient]
        warmup = round(self.warmup * problem.steps)

        def mixture_of(alphas: Array) -> Array:
            return relax.softmax(alphas, problem.mixture_shape)

        def init(key: Array, weights: Weights) -> State:
            key, noise = jax.random.split(key)
            alphas = self.spread * jax.random.normal(noise, problem.alphas_shape)
            return State(jnp.zeros((), jnp.int32), key, weights, problem.weights_optimizer.init(weights),
                         alphas, problem.alphas_optimizer.init(alphas), {})

        def alphas_step(state: State, weights_batch: Any, alphas_batch: Any,
                        key: Array) -> tuple[State, dict[str, Array]]:
            def lower(weights: Weights, alphas: Array) -> tuple[Array, dict[str, Array]]:
                return problem.loss(weights, mixture_of(alphas), weights_batch, key)

            def upper(weights: Weights, alphas: Array) -> tuple[Array, dict[str, Array]]:
                return problem.loss(weights, mixture_of(alphas), alphas_batch, key)

            def update(gradient: Weights) -> Weights:
                return move(problem.weights_optimizer, gradient, state.weights_optimizer, state.weights)[0]

            found = hypergradient(lower, upper, update, state.weights, state.alphas)
            alphas, optimizer = move(problem.alphas_optimizer, found.gradient, state.alphas_optimizer, state.alphas)
            metrics = {"alphas_loss": found.loss, "alphas_gradient_norm": optax.tree.norm(found.gradient)}
            return state._replace(alphas=alphas, alphas_optimizer=optimizer), metrics

        def weights_step(state: State, batch: Any, key: Array) -> tuple[State, dict[str, Array]]:
            def loss(weights: Weights) -> tuple[Array, dict[str, Array]]:
                return problem.loss(weights, mixture_of(state.alphas), batch, key)

            (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.weights)
            weights, optimizer = move(problem.weights_optimizer, gradient, state.weights_optimizer, state.weights)
            metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient), **metrics}
            return state._replace(weights=weights, weights_optimizer=optimizer), metrics

        def step(state: State, weights_batch: Any, alphas_batch: Any) -> tuple[State, dict[str, Array]]:
            upper_key, lower_key = jax.random.split(jax.random.fold_in(state.key, state.step))

            def rest(state: State, *_: Any) -> tuple[State, dict[str, Array]]:
                shapes = jax.eval_shape(alphas_step, state, weights_batch, alphas_batch, upper_key)[1]
                return state, jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)

            if warmup == 0:
                state, upper = alphas_step(state, weights_batch, alphas_batch, upper_key)
            else:
                state, upper = jax.lax.cond(state.step >= warmup, alphas_step, rest,
                                            state, weights_batch, alphas_batch, upper_key)
            state, lower = weights_step(state, weights_batch, lower_key)
            finite = jnp.isfinite(lower["loss"]) & jnp.all(jnp.isfinite(state.alphas))
            return state._replace(step=state.step + 1), {**lower, **upper, "finite": finite}

        return Strategy(init, step, lambda state: mixture_of(state.alphas))


def move(optimizer: optax.GradientTransformation, gradient: Any, state: optax.OptState,
         values: Any) -> tuple[Any, optax.OptState]:
    """One optimiser step: the new values and the optimiser's new state."""
    updates, state = optimizer.update(gradient, state, values)
    return optax.apply_updates(values, updates), state
