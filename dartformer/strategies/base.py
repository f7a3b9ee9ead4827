"""What a search strategy is: two pure functions over one state. It sees a loss, never a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import optax
from jax import Array

Weights = Any
"""A pytree of parameters."""

Loss = Callable[[Weights, Array, Any, Array], tuple[Array, dict[str, Array]]]
"""loss(weights, mixture [L, H, K], batch, key) -> (scalar, metrics); the key is for dropout and the
like."""


class State(NamedTuple):
    """All that a search knows, one pytree: what is saved is what is resumed.

    Attributes:
      step: steps taken, int32 scalar.
      key: PRNG key; step `s` draws from `fold_in(key, s)`.
      weights, weights_optimizer: parameters and their optax state.
      alphas, alphas_optimizer: `[1 or L, 1 or H, K]` and their optax state.
      memory: what else a strategy must remember (candidates dropped, alphas of earlier steps);
        empty for most.
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
    """What a strategy is given to solve.

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
    mixture: state -> `[L, H, K]`, what the alphas stand for now, without sampling or disturbance.
    """

    init: Callable[[Array, Weights], State]
    step: Callable[[State, Any, Any], tuple[State, dict[str, Array]]]
    mixture: Callable[[State], Array]


@dataclass(frozen=True)
class Traits:
    """What the stages must know of a strategy without building it.

    Attributes:
      paper: where it was published.
      derivations: names of the derivations that can follow it; the first is the default.
      alphas: it learns alphas; without them every row of its mixture stays uniform and says
        nothing.
      simplex: rows of its mixture sum to one; otherwise they are gates between 0 and 1, each for
        itself.
      supernet: it trains a supernet; otherwise it has no steps, and its work is done by its
        derivation.
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
        return "it trains no supernet that could be asked"
    if not traits.alphas and derivation in ("argmax", "sample", "top_k"):
        return "it learns no alphas, so every row of its mixture is uniform"
    if not traits.simplex and derivation == "sample":
        return "its gates are no distribution that could be sampled"
    return "it is made for another"


def budget_refusal(traits: Traits) -> str | None:
    """Why a budget on the expected cost makes no sense in a search with these traits; None if it
    does."""
    if not traits.supernet:
        return "it trains no supernet"
    if not traits.alphas:
        return "it learns no alphas that a budget could move"
    if not traits.simplex:
        return "its gates are no distribution, so that there is no expected cost"
    return None


def remat_refusal(strategy: Any) -> str | None:
    """Why a supernet that always computes every candidate makes no sense with a strategy; None if
    it does."""
    if not strategy.traits.supernet:
        return "it trains no supernet"
    if strategy.sampled:
        return "it samples, so that a step needs few of the candidates"
    skipping = [extra.name for extra in getattr(strategy, "extras", ()) if extra.skips]
    return (
        f"{skipping[0]} without compiling again saves what it drops only as a step runs"
        if skipping
        else None
    )


class StrategyOptions(Protocol):
    """A frozen dataclass of a strategy's options; calling it with a problem gives the strategy.

    Attributes:
      traits: what stages must know of it.
      order: how many times the loss is differentiated with respect to the network's inputs and
        weights.
      sampled: mixtures are one-hot samples (after any warm-up), so that a step computes few of the
        candidates.
      vectorises: several seeds may run as one `jax.vmap`ped program at no more than their own
        price. Not where `lax.cond` saves work: under `vmap` both its sides are computed.
      falls: (candidates, steps) -> the numbers of steps after which candidates can have been
        dropped for good (`memory["alive"]`), so that the step should be compiled anew without them.
      check: (candidates, steps) -> None, or `InputError` where the options do not fit them.
    """

    traits: ClassVar[Traits]

    @property
    def order(self) -> int: ...

    @property
    def sampled(self) -> bool: ...

    @property
    def vectorises(self) -> bool: ...

    def falls(self, candidates: int, steps: int) -> frozenset[int]: ...
    def check(self, candidates: int, steps: int) -> None: ...
    def __call__(self, problem: Problem) -> Strategy: ...


class Options:
    """What most strategies answer to `StrategyOptions`."""

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

    def falls(self, candidates: int, steps: int) -> frozenset[int]:
        """See `StrategyOptions`."""
        return frozenset()

    def check(self, candidates: int, steps: int) -> None:
        """Raise `InputError` where the options do not fit the number of candidates or of steps."""
