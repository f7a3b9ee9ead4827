"""Gumbel-softmax: GDAS (Dong and Yang 2019) and SNAS (Xie et al. 2019).

    q = softmax((log softmax(a) + g) / tau),  g = -log(-log U)        both
    h = onehot(argmax q), differentiated as q                         GDAS (hard)

Of a hard sample only the drawn candidate is computed, so the alphas' gradient comes through it
alone.

Sources: GDAS, arXiv 1910.04465; SNAS, arXiv 1812.09926.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.alternate import Alternating
from dartformer.strategies.base import Traits
from dartformer.strategies.relax import Alive, Relaxation, living, one_hot, softmax


def relaxed(alphas: Array, alive: Alive, key: Array, temperature: Array | float) -> Array:
    """q, rows `[..., K]` that sum to one; a lower temperature brings them nearer to one-hot."""
    noise = jax.random.gumbel(key, alphas.shape, alphas.dtype)
    # Minus infinity for a dropped candidate: no noise can bring it back.
    logits = jax.nn.log_softmax(living(alphas, alive), -1)
    return jax.nn.softmax((logits + noise) / temperature, -1)


def straight_through(soft: Array) -> Array:
    """One-hot at the largest of each row, exactly; differentiated as if it were `soft`."""
    # soft - stop_gradient(soft) is zero in the forward pass and has the gradient of soft.
    hard = jax.lax.stop_gradient(one_hot(jnp.argmax(soft, -1), soft))
    return hard + (soft - jax.lax.stop_gradient(soft))


@dataclass(frozen=True)
class Gumbel(Alternating):
    """Samples one candidate in each place with Gumbel noise, hard (GDAS) or relaxed (SNAS).

    Attributes:
      hard: GDAS's one-hot samples, for which a step computes one candidate; otherwise SNAS's soft
        ones, which need all.
      temperature: at the first step of the alphas and at the last, linear in between (GDAS: 10 to
        0.1; SNAS: 1 to 0.33).
      warmup, spread, extras: see `Alternating`.
    """

    traits: ClassVar[Traits] = Traits(
        "arXiv 1910.04465, arXiv 1812.09926", ("argmax", "masked_drop", "sample", "top_k")
    )

    hard: bool = True
    temperature: tuple[float, float] = (10.0, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = all(isinstance(t, (int, float)) and t > 0 for t in self.temperature)
        if len(self.temperature) != 2 or not positive:
            raise InputError(
                f"search.strategy.temperature must be two numbers above 0, got {self.temperature!r}."
            )

    @property
    def sampled(self) -> bool:
        """See `StrategyOptions`."""
        return self.hard

    def relaxation(self) -> Relaxation:
        """Samples for the steps of weights and alphas; the softmax as the soft rows."""
        first, last = self.temperature

        def draw(alphas: Array, alive: Alive, key: Array, progress: Array) -> Array:
            soft = relaxed(alphas, alive, key, first + (last - first) * progress)
            if self.hard:
                return straight_through(soft)
            return soft

        return Relaxation(softmax, draw, draw)
