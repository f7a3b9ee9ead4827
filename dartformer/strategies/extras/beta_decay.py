"""beta-DARTS (Ye et al. 2022, arXiv 2203.01665): decay of the activated alphas.

    loss + w * mean over rows of log sum_k e^a_k,    w rising linearly from 0

Its gradient is softmax(a) / rows: what a row already favours is held back most.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.extras.base import Extra, Host
from dartformer.strategies.relax import living


@dataclass(frozen=True)
class BetaDecay(Extra):
    """Holds back what a row of the alphas already favours (beta-DARTS, arXiv 2203.01665).

    Attributes:
      weight: at the last step (the authors: 50 after 100 epochs).
    """

    name: ClassVar[str] = "beta_decay"

    weight: float = 50.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise InputError(f"beta_decay: weight must be above 0, got {self.weight}.")

    def refusal(self, strategy: Host) -> str | None:
        """See `Extra`."""
        if strategy.softmax:
            return None
        return "its mixture is no softmax of the alphas"

    def penalty(self, alphas: Array, alive: Array | None, progress: Array) -> Array:
        """See `Extra`."""
        # A dropped candidate is minus infinity here, and adds nothing to the sum.
        log_sums = jax.nn.logsumexp(living(alphas, alive), -1)
        # Linear in the progress: early on the decay would keep all alphas alike.
        return self.weight * progress * jnp.mean(log_sums)
