"""What a search strategy is: pure functions over one state. It sees a loss, never a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import optax
from jax import Array

Weights = Any
"""A pytree of parameters."""

Batch = Any
"""A pytree of arrays of examples: the strategies hand it to the loss and never look inside."""

Metrics = dict[str, Array]
"""Numbers of a step to log, by name."""

Loss = Callable[[Weights, Array, Batch, Array], tuple[Array, Metrics]]
"""loss(weights, mixture [L, H, K], batch, key) -> (scalar, metrics); the key is for dropout and the
like."""


class State(NamedTuple):
    """The whole state of a search, one pytree: a checkpoint holds it and nothing else.

    Attributes:
      step: steps taken, int32 scalar.
      key: PRNG key; step `s` draws from `fold_in(key, s)`.
      weights, weights_optimizer: parameters and their optax state.
      alphas, alphas_optimizer: `[1 or L, 1 or H, K]` and their optax state.
      memory: what the extras and a budget remember (candidates dropped, alphas of earlier steps);
        empty for most strategies.
    """

    step: Array
    key: Array
    weights: Weights
    weights_optimizer: optax.OptState
    alphas: Array
    alphas_optimizer: optax.OptState
    memory: dict[str, Array]


class Constraint(NamedTuple):
    """Limits on what a mixture costs, held by multipliers (see `dartformer.strategies.extras.constrain`).

    ratios: mixture `[L, H, K]` -> `[M]`, cost over limit, differentiable.
    names: of the M limits, for what is logged.
    floor: ratio below which there is no pressure.
    rate: of dual ascent.
    """

    ratios: Callable[[Array], Array]
    names: tuple[str, ...]
    floor: float = 0.9
    rate: float = 0.1


@dataclass(frozen=True)
class Problem:
    """What a strategy solves.

    Attributes:
      loss: of weights and mixture on a batch.
      alphas_shape: `[1 or L, 1 or H, K]`, from the search space's granularity.
      mixture_shape: `[L, H, K]`.
      weights_optimizer, alphas_optimizer: optax transformations.
      steps: how many steps the search will take.
      constraint: limits on the mixture that the alphas stand for; None for none.
    """

    loss: Loss
    alphas_shape: tuple[int, int, int]
    mixture_shape: tuple[int, int, int]
    weights_optimizer: optax.GradientTransformation
    alphas_optimizer: optax.GradientTransformation
    steps: int
    constraint: Constraint | None = None


class Strategy(NamedTuple):
    """A search algorithm.

    init: (key, weights) -> State.
    step: (state, weights_batch, alphas_batch) -> (State, metrics), one step of both levels.
    mixture: state -> `[L, H, K]`, what the alphas stand for now, without samples or perturbations.
    """

    init: Callable[[Array, Weights], State]
    step: Callable[[State, Batch, Batch], tuple[State, Metrics]]
    mixture: Callable[[State], Array]


@dataclass(frozen=True)
class Traits:
    """What the stages need to know about a strategy before it is built.

    Attributes:
      paper: where it was published.
      derivations: names of the derivations that can follow it; the first is the default.
      alphas: it learns alphas; without them every row of its mixture stays uniform and says
        nothing.
      simplex: rows of its mixture sum to one; otherwise they are independent gates between 0 and
        1.
      supernet: it trains a supernet; otherwise it has no steps, and the race does its work.
      halves: weights and alphas learn from their own half of train; otherwise there is one level,
        which has it all.
      projections: what the candidates of a layer have in the method as published, "shared" or
        "separate".
    """

    paper: str
    derivations: tuple[str, ...]
    alphas: bool = True
    simplex: bool = True
    supernet: bool = True
    halves: bool = True
    projections: str = "shared"


def refusal(traits: Traits, derivation: str) -> str | None:
    """Why `derivation` cannot follow a strategy with these traits; None if it can."""
    if derivation in traits.derivations:
        return None
    if not traits.supernet:
        return "it trains no supernet"
    if not traits.alphas and derivation in ("argmax", "sample", "top_k"):
        return "it learns no alphas, so every row of its mixture is uniform"
    if not traits.simplex and derivation == "sample":
        return "its gates are not a distribution to sample from"
    return "it works only after other strategies"


def budget_refusal(traits: Traits) -> str | None:
    """Why a search with these traits cannot hold a budget on the expected cost; None if it can."""
    if not traits.supernet:
        return "it trains no supernet"
    if not traits.alphas:
        return "it learns no alphas for a budget to act on"
    if not traits.simplex:
        return "its gates are not a distribution, so there is no expected cost"
    return None


def remat_refusal(strategy: "StrategyOptions") -> str | None:
    """Why a strategy does not work in a supernet that computes every candidate; None if it does."""
    if not strategy.traits.supernet:
        return "it trains no supernet"
    if strategy.sampled:
        return "it samples, so a step needs only a few of the candidates"
    for extra in getattr(strategy, "extras", ()):
        if extra.skips:
            return f"{extra.name} without recompiling saves work only by skipping candidates"
    return None


class StrategyOptions(Protocol):
    """A frozen dataclass of a strategy's options; calling it with a problem gives the strategy.

    Attributes:
      traits: what stages need to know about it.
      order: how many times the loss is differentiated with respect to the network's inputs and
        weights.
      sampled: mixtures are one-hot samples (after any warm-up), so a step computes few of the
        candidates.
      vectorises: several seeds may run as one `jax.vmap`ped program at no extra cost. Not where
        `lax.cond` saves work, because `vmap` computes both of its branches.
      alphas_rate: (schedule over `steps` steps, steps) -> the alphas' learning rate by the search's
        step.
      drop_steps: (candidates, steps) -> the steps after which candidates can have been dropped for
        good (`memory["alive"]`), so that the step should be compiled again without them.
      check: (candidates, steps) -> None, or `InputError` where the options do not fit them.
    """

    traits: ClassVar[Traits]

    @property
    def order(self) -> int: ...

    @property
    def sampled(self) -> bool: ...

    @property
    def vectorises(self) -> bool: ...

    def alphas_rate(self, schedule: optax.Schedule, steps: int) -> optax.Schedule: ...
    def drop_steps(self, candidates: int, steps: int) -> frozenset[int]: ...
    def check(self, candidates: int, steps: int) -> None: ...
    def __call__(self, problem: Problem) -> Strategy: ...


class Options:
    """The answers that most strategies give to `StrategyOptions`."""

    traits: ClassVar[Traits]

    @property
    def order(self) -> int:
        """Derivatives taken of the network."""
        return 1

    @property
    def sampled(self) -> bool:
        """Mixtures are one-hot samples."""
        return False

    @property
    def vectorises(self) -> bool:
        """Several seeds may run as one program."""
        return not self.sampled

    def alphas_rate(self, schedule: optax.Schedule, steps: int) -> optax.Schedule:
        """The schedule itself, of alphas that move in every step."""
        return schedule

    def drop_steps(self, candidates: int, steps: int) -> frozenset[int]:
        """See `StrategyOptions`."""
        return frozenset()

    def check(self, candidates: int, steps: int) -> None:
        """Raise `InputError` where the options do not fit the number of candidates or of steps."""
