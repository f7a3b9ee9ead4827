"""The loop of strategies with alphas: a step of the alphas, then a step of the weights.

A strategy is a relaxation (how alphas become a mixture), a hypergradient (how the gradient of the
alphas accounts for the weights' response), a penalty on the alphas, and extras on top. `Alternating`
and `Bilevel` are its options; `Loop` is the algorithm, to be read from top to bottom.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from dartformer import spec
from dartformer.errors import InputError
from dartformer.strategies.base import Batch, Metrics, Options, Problem, State, Strategy, Weights
from dartformer.strategies.extras import constrain
from dartformer.strategies.extras.base import Extra
from dartformer.strategies.hypergradients import HYPERGRADIENTS
from dartformer.strategies.hypergradients.bilevel import First, Hypergradient
from dartformer.strategies.relax import Alive, Relaxation, everywhere

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
                    f"search.strategy.extras: {extra.name} does not work with "
                    f"{type(self).__name__.lower()}, because {reason}."
                )

    @property
    def order(self) -> int:
        """See `StrategyOptions`."""
        order = 1
        for extra in self.extras:
            order = max(order, extra.order)
        return order

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

    def warmup_steps(self, steps: int) -> int:
        """How many of the first steps move the weights alone."""
        return round(self.warmup * steps)

    def schedule_step(self, step: ArrayLike, steps: int) -> Array:
        """Where on the alphas' schedule of `steps` steps the search's `step` stands.

        The schedule spans the steps in which the alphas move, which begin after the warm-up."""
        warmup = self.warmup_steps(steps)
        moving = max(steps - warmup, 1)
        return (jnp.asarray(step) - warmup) * (steps / moving)

    def alphas_rate(self, schedule: optax.Schedule, steps: int) -> optax.Schedule:
        """The alphas' learning rate by the search's step, 0 while they rest."""
        warmup = self.warmup_steps(steps)

        def rate(step: ArrayLike) -> Array:
            moving = jnp.asarray(step) >= warmup
            return jnp.where(moving, schedule(self.schedule_step(step, steps)), 0.0)

        return rate

    def drop_steps(self, candidates: int, steps: int) -> frozenset[int]:
        """See `StrategyOptions`."""
        warmup = self.warmup_steps(steps)
        drops: set[int] = set()
        for extra in self.extras:
            # Extras count from the end of the warm-up, the search from its first step.
            for step in extra.drop_steps(candidates, steps - warmup):
                drops.add(warmup + step)
        return frozenset(drops)

    def check(self, candidates: int, steps: int) -> None:
        """See `StrategyOptions`."""
        for extra in self.extras:
            extra.check(candidates, steps - self.warmup_steps(steps))

    def __call__(self, problem: Problem) -> Strategy:
        """The strategy for a problem."""
        return alternate(problem, self, First())


@dataclass(frozen=True)
class Bilevel(Alternating):
    """Options of the strategies whose alphas can account for the weights' response.

    Attributes:
      hypergradient: "first", "second" (exact), "finite" (the published approximation of the
        second), or an implicit gradient, "neumann(terms=10, rate=0.1)" or
        "conjugate_gradient(terms=10, damping=0.1)".
    """

    hypergradient: str | Hypergradient = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.response()  # refuses what cannot be read before anything is trained

    def response(self) -> Hypergradient:
        """The hypergradient, read from its text if it is one."""
        if not isinstance(self.hypergradient, str):
            return self.hypergradient
        hypergradient: Hypergradient = spec.parse(
            self.hypergradient, HYPERGRADIENTS, "hypergradient"
        )
        return hypergradient

    @property
    def order(self) -> int:
        """See `StrategyOptions`."""
        return max(super().order, self.response().order)

    def __call__(self, problem: Problem) -> Strategy:
        """The strategy for a problem."""
        return alternate(problem, self, self.response())


def alternate(problem: Problem, options: Alternating, hypergradient: Hypergradient) -> Strategy:
    """The strategy that `options` describe: see `Loop`."""
    options.check(problem.alphas_shape[-1], problem.steps)
    loop = Loop(problem, options, options.relaxation(), hypergradient)
    return Strategy(loop.init, loop.step, loop.mixture)


@dataclass(frozen=True, eq=False)
class Loop:
    """Alternates steps of the alphas and of the weights.

    Rows are `[1 or L, 1 or H, K]`, as the alphas are; the loss takes them broadcast to `[L, H, K]`.
    """

    problem: Problem
    options: Alternating
    relaxation: Relaxation
    hypergradient: Hypergradient

    def init(self, key: Array, weights: Weights) -> State:
        """The state before the first step."""
        problem, options = self.problem, self.options
        # Small noise breaks the tie between candidates whose gradients are equal.
        key, noise = jax.random.split(key)
        alphas = options.spread * jax.random.normal(noise, problem.alphas_shape)
        memory = constrain.start(problem.constraint)
        for extra in options.extras:
            memory.update(extra.memory(alphas))
        return State(
            step=jnp.zeros((), jnp.int32),
            key=key,
            weights=weights,
            weights_optimizer=problem.weights_optimizer.init(weights),
            alphas=alphas,
            alphas_optimizer=problem.alphas_optimizer.init(alphas),
            memory=memory,
        )

    def step(
        self, state: State, weights_batch: Batch, alphas_batch: Batch
    ) -> tuple[State, Metrics]:
        """One step of both levels, then what extras and budget make of it."""
        # From the step, not from a chain of splits: a restart continues with the same numbers.
        upper_key, lower_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        active = self.active(state)
        if self.options.joint:
            state, metrics = self.joint_step(state, weights_batch, lower_key, active)
        else:
            state, upper = self.alphas_phase(state, weights_batch, alphas_batch, upper_key, active)
            state, lower = self.weights_phase(state, weights_batch, lower_key)
            metrics = lower | upper
        # The norm of a gradient with a NaN or infinity is not finite, whatever the loss.
        finite = jnp.isfinite(metrics["loss"] + metrics["gradient_norm"])
        # Extras and budget see the step as finished: their progress counts it.
        state = state._replace(step=state.step + 1)
        state, extra_metrics = self.extras_phase(state, alphas_batch, upper_key)
        state, budget_metrics = self.budget_phase(state, active)
        finite = finite & jnp.all(jnp.isfinite(state.alphas))
        return state, metrics | extra_metrics | budget_metrics | {"finite": finite}

    def mixture(self, state: State) -> Array:
        """`[L, H, K]`: what the alphas stand for now."""
        return self.soft(state, state.alphas)

    # The phases of a step, in their order.

    def alphas_phase(
        self, state: State, weights_batch: Batch, alphas_batch: Batch, key: Array, active: Array
    ) -> tuple[State, Metrics]:
        """A step of the alphas, unless they rest."""
        operands = state, weights_batch, alphas_batch, key
        if self.warmup == 0 and "stopped" not in state.memory:
            return self.alphas_step(*operands)  # They never rest: there is no branch to compile.
        return jax.lax.cond(active, self.alphas_step, self.alphas_rest, *operands)

    def alphas_step(
        self, state: State, weights_batch: Batch, alphas_batch: Batch, key: Array
    ) -> tuple[State, Metrics]:
        """A step of the alphas by the hypergradient of their own batch's loss."""
        sample = jax.random.fold_in(key, SAMPLE)

        def lower(weights: Weights, alphas: Array) -> tuple[Array, Metrics]:
            rows = self.lower_rows(state, alphas, sample)
            return self.loss(weights, rows, weights_batch, key)

        def upper(weights: Weights, alphas: Array) -> tuple[Array, Metrics]:
            rows = self.upper_rows(state, alphas, sample)
            value, _ = self.loss(weights, rows, alphas_batch, key)
            return value + self.penalty(state, alphas), {"alphas_loss": value}

        def update(gradient: Weights) -> Weights:
            # The optimizer's new state is dropped: this step is only looked ahead.
            weights, _ = self.moved_weights(state, gradient)
            return weights

        result = self.hypergradient(lower, upper, update, state.weights, state.alphas)
        # Of the raw gradient: an optimizer such as Adam makes all steps alike.
        norm = optax.tree.norm(result.gradient)
        state = self.moved_alphas(state, result.gradient, sample)
        return state, result.metrics | {"alphas_gradient_norm": norm}

    def alphas_rest(
        self, state: State, weights_batch: Batch, alphas_batch: Batch, key: Array
    ) -> tuple[State, Metrics]:
        """No step of the alphas: the state as it is, and the metrics of a step as NaN."""
        _, shapes = jax.eval_shape(self.alphas_step, state, weights_batch, alphas_batch, key)
        return state, jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)

    def weights_phase(self, state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        """A step of the weights, at rows that the extras may have perturbed."""
        sample = jax.random.fold_in(key, SAMPLE)
        rows = self.lower_rows(state, state.alphas, sample)
        if self.warmup and self.options.sampled:
            # Of hard samples each candidate would get only its share of the warm-up.
            soft = self.relaxation.soft(state.alphas, alive(state))
            rows = jnp.where(state.step < self.warmup, soft, rows)

        def loss(rows: Array) -> Array:
            value, _ = self.loss(state.weights, rows, batch, key)
            return value

        for extra in self.options.extras:
            rows = extra.perturb(rows, sample, self.progress(state), loss)
        mixture = everywhere(rows, self.problem.mixture_shape)
        return weights_step(self.problem, state, mixture, batch, key)

    def joint_step(
        self, state: State, batch: Batch, key: Array, active: Array
    ) -> tuple[State, Metrics]:
        """One gradient of weights and alphas on one batch, in place of the first two phases."""
        sample = jax.random.fold_in(key, SAMPLE)

        def loss(weights: Weights, alphas: Array) -> tuple[Array, tuple[Array, Metrics]]:
            rows = self.upper_rows(state, alphas, sample)
            value, metrics = self.loss(weights, rows, batch, key)
            return value + self.penalty(state, alphas), (value, metrics)

        gradient_of = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, (value, metrics)), gradients = gradient_of(state.weights, state.alphas)
        gradient, alphas_gradient = gradients
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            **metrics,
            "alphas_loss": value,
            "alphas_gradient_norm": optax.tree.norm(alphas_gradient),
        }
        # One backward pass serves both levels, so resting alphas are masked rather than skipped.
        moved = self.moved_alphas(state, alphas_gradient, sample)
        alphas, alphas_optimizer = jax.tree.map(
            lambda new, old: jnp.where(active, new, old),
            (moved.alphas, moved.alphas_optimizer),
            (state.alphas, state.alphas_optimizer),
        )
        weights, optimizer = self.moved_weights(state, gradient)
        state = state._replace(
            weights=weights,
            weights_optimizer=optimizer,
            alphas=alphas,
            alphas_optimizer=alphas_optimizer,
        )
        return state, metrics

    def extras_phase(self, state: State, alphas_batch: Batch, key: Array) -> tuple[State, Metrics]:
        """What the extras do after a step: drop candidates, stop the alphas."""
        metrics: Metrics = {}
        for extra in self.options.extras:

            def soft_loss(alphas: Array, state: State = state) -> Array:
                rows = self.relaxation.soft(alphas, alive(state))
                value, _ = self.loss(state.weights, rows, alphas_batch, key)
                return value

            state, logged = extra.after(state, self.progress(state), key, soft_loss)
            metrics.update(logged)
        return state, metrics

    def budget_phase(self, state: State, active: Array) -> tuple[State, Metrics]:
        """The multipliers of a budget rise with what the mixture costs above its limits."""
        memory, metrics = constrain.ascend(
            self.problem.constraint, self.mixture(state), state.memory, active
        )
        return state._replace(memory=memory), metrics

    # What the phases are made of.

    @property
    def warmup(self) -> int:
        """Steps before the alphas begin to move."""
        return self.options.warmup_steps(self.problem.steps)

    def active(self, state: State) -> Array:
        """Whether the alphas move in this step."""
        stopped = state.memory.get("stopped", jnp.zeros((), bool))
        return (state.step >= self.warmup) & ~stopped

    def progress(self, state: State) -> Array:
        """From 0, where the alphas begin to move, to 1, at the last step."""
        length = max(self.problem.steps - self.warmup, 1)
        return jnp.clip((state.step - self.warmup) / length, 0.0, 1.0)

    def loss(
        self, weights: Weights, rows: Array, batch: Batch, key: Array
    ) -> tuple[Array, Metrics]:
        """The problem's loss at rows `[1 or L, 1 or H, K]`."""
        mixture = everywhere(rows, self.problem.mixture_shape)
        return self.problem.loss(weights, mixture, batch, key)

    def soft(self, state: State, alphas: Array) -> Array:
        """The soft mixture `[L, H, K]` of `alphas`, over the candidates still alive."""
        rows = self.relaxation.soft(alphas, alive(state))
        return everywhere(rows, self.problem.mixture_shape)

    def lower_rows(self, state: State, alphas: Array, sample: Array) -> Array:
        """The rows at which the weights take their step."""
        return self.relaxation.lower(alphas, alive(state), sample, self.progress(state))

    def upper_rows(self, state: State, alphas: Array, sample: Array) -> Array:
        """The rows through which the alphas' loss is differentiated."""
        return self.relaxation.upper(alphas, alive(state), sample, self.progress(state))

    def penalty(self, state: State, alphas: Array) -> Array | float:
        """What the strategy, its extras and a budget add to the alphas' loss."""
        extras: Array | float = 0.0
        for extra in self.options.extras:
            extras += extra.penalty(alphas, alive(state), self.progress(state))
        pressure = constrain.pressure(
            self.problem.constraint, self.soft(state, alphas), state.memory
        )
        return self.options.penalty(alphas, alive(state)) + extras + pressure

    def moved_alphas(self, state: State, gradient: Array, sample: Array) -> State:
        """The state after an optimizer step of the alphas, settled as the relaxation needs it."""
        at = self.options.schedule_step(state.step, self.problem.steps)
        # An optimizer that counts its own steps takes no `at`.
        chain = optax.with_extra_args_support(self.problem.alphas_optimizer)
        updates, optimizer = chain.update(gradient, state.alphas_optimizer, state.alphas, at=at)
        alphas = optax.apply_updates(state.alphas, updates)
        alphas = self.relaxation.settle(state.alphas, alphas, alive(state), sample)
        return state._replace(alphas=alphas, alphas_optimizer=optimizer)

    def moved_weights(self, state: State, gradient: Weights) -> tuple[Weights, optax.OptState]:
        """Weights after an optimizer step, and the optimizer's new state."""
        return move(
            self.problem.weights_optimizer, gradient, state.weights_optimizer, state.weights
        )


def alive(state: State) -> Alive:
    """The candidates still in play; None where no extra ever drops one."""
    return state.memory.get("alive")


def weights_step(
    problem: Problem, state: State, mixture: Array, batch: Batch, key: Array
) -> tuple[State, Metrics]:
    """One step of the weights at a mixture `[L, H, K]`."""

    def loss(weights: Weights) -> tuple[Array, Metrics]:
        return problem.loss(weights, mixture, batch, key)

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.weights)
    weights, optimizer = move(
        problem.weights_optimizer, gradient, state.weights_optimizer, state.weights
    )
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient), **metrics}
    return state._replace(weights=weights, weights_optimizer=optimizer), metrics


def move(
    optimizer: optax.GradientTransformation,
    gradient: Weights,
    state: optax.OptState,
    values: Weights,
) -> tuple[Weights, optax.OptState]:
    """One optimizer step: the new values and the optimizer's new state."""
    updates, state = optimizer.update(gradient, state, values)
    return optax.apply_updates(values, updates), state
