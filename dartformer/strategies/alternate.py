"""The loop that strategies with alphas share: a step of the alphas, then a step of the weights.

A strategy is a relaxation (how alphas become a mixture), a hypergradient (how the weights' answer
is accounted for), a penalty on the alphas, and extras on top."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dartformer.errors import InputError, unknown
from dartformer.strategies.base import Options, Problem, State, Strategy, Weights
from dartformer.strategies.extras import constrain
from dartformer.strategies.extras.base import Extra
from dartformer.strategies.hypergradients import HYPERGRADIENTS
from dartformer.strategies.hypergradients.bilevel import First, Hypergradient
from dartformer.strategies.relax import Alive, Relaxation, everywhere

Penalty = Callable[[Array, Alive], Array | float]
"""(alphas, alive) -> what a strategy adds to the alphas' loss."""

SAMPLE = 0x5A3B1E
"""Folded into a step's key for what is sampled, so that it is independent of dropout."""


@dataclass(frozen=True, kw_only=True)
class Alternating(Options, ABC):
    """Options of all strategies that learn alphas by gradient.

    Attributes:
      warmup: share of the steps in which only the weights move, at the soft mixture, so that slow
        learners are not judged too early (PC-DARTS, arXiv 1907.05737: 15 of 50 epochs).
      spread: standard deviation of the initial alphas.
      extras: what is put on top, by name with options, e.g. "beta_decay(weight=50.0)".
    """

    softmax: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    warmup: float = 0.33
    spread: float = 1e-3
    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= 1:
            raise InputError(
                f"search.strategy.warmup is a share of the steps, between 0 and 1; got {self.warmup!r}."
            )
        if self.spread < 0:
            raise InputError(f"search.strategy.spread must be at least 0, got {self.spread!r}.")
        names = [extra.name for extra in self.extras]
        for extra in self.extras:
            if names.count(extra.name) > 1:
                raise InputError(f"search.strategy.extras holds {extra.name} twice.")
            reason = extra.refusal(self)
            if reason:
                raise InputError(
                    f"search.strategy.extras: {extra.name} cannot be put on top of "
                    f"{type(self).__name__.lower()}: {reason}."
                )

    @property
    def order(self) -> int:
        """See `StrategyOptions`."""
        return max([1, *(extra.order for extra in self.extras)])

    @property
    def vectorises(self) -> bool:
        """See `StrategyOptions`."""
        return not self.sampled and all(extra.vectorises for extra in self.extras)

    @abstractmethod
    def relaxation(self) -> Relaxation:
        """How alphas become mixtures."""

    def penalty(self, alphas: Array, alive: Alive) -> Array | float:
        """What the strategy itself adds to the alphas' loss."""
        return 0.0

    def falls(self, candidates: int, steps: int) -> frozenset[int]:
        """See `StrategyOptions`."""
        warmup = round(self.warmup * steps)
        return frozenset(
            warmup + s for extra in self.extras for s in extra.falls(candidates, steps - warmup)
        )

    def check(self, candidates: int, steps: int) -> None:
        """See `StrategyOptions`."""
        for extra in self.extras:
            extra.check(candidates, steps - round(self.warmup * steps))

    def __call__(self, problem: Problem) -> Strategy:
        """The strategy for a problem."""
        return alternate(problem, self, First())


@dataclass(frozen=True)
class Bilevel(Alternating):
    """Options of the strategies whose alphas can be told how the weights answer.

    Attributes:
      hypergradient: "first", "second" (exact), "finite" (the published approximation of the
        second), or an implicit gradient, "neumann(terms=10, rate=0.1)" or
        "conjugate_gradient(terms=10, damping=0.1)".
    """

    hypergradient: str | Hypergradient = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.hypergradient, str):
            if self.hypergradient not in HYPERGRADIENTS:
                raise unknown("search.strategy.hypergradient", self.hypergradient, HYPERGRADIENTS)
            object.__setattr__(self, "hypergradient", HYPERGRADIENTS[self.hypergradient]())

    @property
    def order(self) -> int:
        """See `StrategyOptions`."""
        return max(super().order, self.hypergradient.order)  # type: ignore[union-attr]

    def __call__(self, problem: Problem) -> Strategy:
        """The strategy for a problem."""
        return alternate(problem, self, self.hypergradient)  # type: ignore[arg-type]


def alternate(problem: Problem, options: Alternating, hypergradient: Hypergradient) -> Strategy:
    """The strategy that `options` describe; with `options.joint`, one gradient of both levels on
    one batch."""
    relaxation, extras = options.relaxation(), options.extras
    warmup = round(options.warmup * problem.steps)
    length = max(problem.steps - warmup, 1)
    options.check(problem.alphas_shape[-1], problem.steps)

    def init(key: Array, weights: Weights) -> State:
        key, noise = jax.random.split(key)
        alphas = options.spread * jax.random.normal(noise, problem.alphas_shape)
        memory = {name: value for extra in extras for name, value in extra.memory(alphas).items()}
        memory.update(constrain.start(problem.constraint))
        return State(
            jnp.zeros((), jnp.int32),
            key,
            weights,
            problem.weights_optimizer.init(weights),
            alphas,
            problem.alphas_optimizer.init(alphas),
            memory,
        )

    def progress_of(state: State) -> Array:
        return jnp.clip((state.step - warmup) / length, 0.0, 1.0)

    def loss_at(
        weights: Weights, rows: Array, batch: Any, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        return problem.loss(weights, everywhere(rows, problem.mixture_shape), batch, key)

    def penalty(alphas: Array, state: State) -> Array | float:
        alive, progress = state.memory.get("alive"), progress_of(state)
        soft = everywhere(relaxation.soft(alphas, alive), problem.mixture_shape)
        return (
            options.penalty(alphas, alive)
            + sum(extra.penalty(alphas, alive, progress) for extra in extras)
            + constrain.pressure(problem.constraint, soft, state.memory)
        )

    def alphas_moved(state: State, gradient: Array, key: Array) -> State:
        alphas, optimizer = move(
            problem.alphas_optimizer, gradient, state.alphas_optimizer, state.alphas
        )
        alphas = relaxation.settle(state.alphas, alphas, state.memory.get("alive"), key)
        return state._replace(alphas=alphas, alphas_optimizer=optimizer)

    def alphas_step(
        state: State, weights_batch: Any, alphas_batch: Any, key: Array
    ) -> tuple[State, dict[str, Array]]:
        alive, progress, sample = (
            state.memory.get("alive"),
            progress_of(state),
            jax.random.fold_in(key, SAMPLE),
        )

        def lower(weights: Weights, alphas: Array) -> tuple[Array, dict[str, Array]]:
            return loss_at(
                weights, relaxation.lower(alphas, alive, sample, progress), weights_batch, key
            )

        def upper(weights: Weights, alphas: Array) -> tuple[Array, dict[str, Array]]:
            rows = relaxation.upper(alphas, alive, sample, progress)
            value, _ = loss_at(weights, rows, alphas_batch, key)
            return value + penalty(alphas, state), {"alphas_loss": value}

        def update(gradient: Weights) -> Weights:
            return move(
                problem.weights_optimizer, gradient, state.weights_optimizer, state.weights
            )[0]

        found = hypergradient(lower, upper, update, state.weights, state.alphas)
        metrics = {**found.metrics, "alphas_gradient_norm": optax.tree.norm(found.gradient)}
        return alphas_moved(state, found.gradient, sample), metrics

    def rows_of_weights(state: State, batch: Any, key: Array) -> Array:
        alive, progress, sample = (
            state.memory.get("alive"),
            progress_of(state),
            jax.random.fold_in(key, SAMPLE),
        )
        rows = relaxation.lower(state.alphas, alive, sample, progress)
        if warmup and options.sampled:
            rows = jnp.where(state.step < warmup, relaxation.soft(state.alphas, alive), rows)
        for extra in extras:
            rows = extra.disturb(
                rows, sample, progress, lambda r: loss_at(state.weights, r, batch, key)[0]
            )
        return rows

    def both(state: State, batch: Any, key: Array) -> tuple[State, dict[str, Array]]:
        alive, progress, sample = (
            state.memory.get("alive"),
            progress_of(state),
            jax.random.fold_in(key, SAMPLE),
        )

        def loss(weights: Weights, alphas: Array) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            value, metrics = loss_at(
                weights, relaxation.upper(alphas, alive, sample, progress), batch, key
            )
            return value + penalty(alphas, state), (value, metrics)

        ((_, (value, metrics)), gradients) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            state.weights, state.alphas
        )
        gradient, alphas_gradient = gradients
        weights, optimizer = move(
            problem.weights_optimizer, gradient, state.weights_optimizer, state.weights
        )
        moved = alphas_moved(state, alphas_gradient, sample)
        alphas, alphas_optimizer = jax.tree.map(
            lambda new, old: jnp.where(active(state), new, old),
            (moved.alphas, moved.alphas_optimizer),
            (state.alphas, state.alphas_optimizer),
        )
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            **metrics,
            "alphas_loss": value,
            "alphas_gradient_norm": optax.tree.norm(alphas_gradient),
        }
        return state._replace(
            weights=weights,
            weights_optimizer=optimizer,
            alphas=alphas,
            alphas_optimizer=alphas_optimizer,
        ), metrics

    def active(state: State) -> Array:
        return (state.step >= warmup) & ~state.memory.get("stopped", jnp.zeros((), bool))

    def step(state: State, weights_batch: Any, alphas_batch: Any) -> tuple[State, dict[str, Array]]:
        upper_key, lower_key = jax.random.split(jax.random.fold_in(state.key, state.step))

        def rest(state: State, *_: Any) -> tuple[State, dict[str, Array]]:
            shapes = jax.eval_shape(alphas_step, state, weights_batch, alphas_batch, upper_key)[1]
            return state, jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)

        upper: dict[str, Array] = {}
        moves = active(state)
        if options.joint:
            state, lower = both(state, weights_batch, lower_key)
        else:
            if warmup == 0 and "stopped" not in state.memory:
                state, upper = alphas_step(state, weights_batch, alphas_batch, upper_key)
            else:
                state, upper = jax.lax.cond(
                    active(state), alphas_step, rest, state, weights_batch, alphas_batch, upper_key
                )
            rows = rows_of_weights(state, weights_batch, lower_key)
            state, lower = weights_step(
                problem, state, everywhere(rows, problem.mixture_shape), weights_batch, lower_key
            )
        state = state._replace(step=state.step + 1)
        noted: dict[str, Array] = {}
        for extra in extras:

            def soft_loss(alphas: Array, state: State = state) -> Array:
                rows = relaxation.soft(alphas, state.memory.get("alive"))
                return loss_at(state.weights, rows, alphas_batch, upper_key)[0]

            state, found = extra.after(state, progress_of(state), upper_key, soft_loss)
            noted.update(found)
        memory, spent = constrain.ascend(problem.constraint, mixture(state), state.memory, moves)
        state = state._replace(memory=memory)
        noted.update(spent)
        finite = jnp.isfinite(lower["loss"]) & jnp.all(jnp.isfinite(state.alphas))
        return state, {**lower, **upper, **noted, "finite": finite}

    def mixture(state: State) -> Array:
        return everywhere(
            relaxation.soft(state.alphas, state.memory.get("alive")), problem.mixture_shape
        )

    return Strategy(init, step, mixture)


def weights_step(
    problem: Problem, state: State, mixture: Array, batch: Any, key: Array
) -> tuple[State, dict[str, Array]]:
    """One step of the weights at a mixture `[L, H, K]`."""

    def loss(weights: Weights) -> tuple[Array, dict[str, Array]]:
        return problem.loss(weights, mixture, batch, key)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.weights)
    weights, optimizer = move(
        problem.weights_optimizer, gradient, state.weights_optimizer, state.weights
    )
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient), **metrics}
    return state._replace(weights=weights, weights_optimizer=optimizer), metrics


def move(
    optimizer: optax.GradientTransformation, gradient: Any, state: optax.OptState, values: Any
) -> tuple[Any, optax.OptState]:
    """One optimiser step: the new values and the optimiser's new state."""
    updates, state = optimizer.update(gradient, state, values)
    return optax.apply_updates(values, updates), state
