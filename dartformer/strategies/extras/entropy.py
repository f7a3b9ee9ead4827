"""Entropy schedule: rows of the mixture stay open early and decide late.

    loss + w * mean over rows of H(row) / ln K,    w going linearly from `start` to `end`

A positive weight pulls rows to one-hot, so that rounding them loses little (Tian et al. 2020,
"Discretization-aware architecture search", arXiv 2007.03154); a negative one keeps them apart from
a decision."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.extras.base import Extra, Host
from dartformer.strategies.relax import softmax


def entropy(rows: Array) -> Array:
    """H / ln K of each row `[..., K]`, between 0 and 1; a weight of zero adds nothing."""
    logs = jnp.log(jnp.where(rows > 0, rows, 1))  # no log of 0, whose gradient would be NaN
    return -jnp.sum(rows * logs, -1) / jnp.log(rows.shape[-1])


@dataclass(frozen=True)
class Entropy(Extra):
    """Adds the entropy of the rows to the alphas' loss, so that they decide (arXiv 2007.03154).

    Attributes:
      start, end: weights at the alphas' first and last step. A weight below 0 spreads the rows, one
        above 0 makes them decide.
    """

    name: ClassVar[str] = "entropy"

    start: float = 0.0
    end: float = 0.5

    def __post_init__(self) -> None:
        if self.start == self.end == 0:
            raise InputError("entropy: start and end are both 0, which does nothing.")

    def refusal(self, strategy: Host) -> str | None:
        """See `Extra`."""
        if strategy.softmax:
            return None
        return "its mixture is no softmax of the alphas"

    def penalty(self, alphas: Array, alive: Array | None, progress: Array) -> Array:
        """See `Extra`."""
        weight = self.start + (self.end - self.start) * progress
        # Of the soft rows, whatever rows the strategy takes its steps at.
        return weight * jnp.mean(entropy(softmax(alphas, alive)))
