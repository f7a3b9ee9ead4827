"""Entropy schedule: rows of the mixture are kept open early and made to decide late.

    loss + w * mean over rows of H(row) / ln K,    w going linearly from `start` to `end`

A positive weight pulls rows to one-hot, so that rounding them loses little (Tian et al. 2020,
"Discretization-aware architecture search", arXiv 2007.03154); a negative one keeps them apart from
a decision."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.extras.base import Extra
from dartformer.strategies.relax import softmax


def entropy(rows: Array) -> Array:
    """H / ln K of each row `[..., K]`, between 0 and 1; a weight of zero adds nothing."""
    logs = jnp.log(jnp.where(rows > 0, rows, 1))
    return -jnp.sum(rows * logs, -1) / jnp.log(rows.shape[-1])


@dataclass(frozen=True)
class Entropy(Extra):
    """Keeps rows open early and makes them decide late (arXiv 2007.03154): entropy in the alphas'
    loss.

    Attributes:
      start, end: weights at the alphas' first and last step; below 0 it spreads, above 0 it
        decides.
    """

    name: ClassVar[str] = "entropy"

    start: float = 0.0
    end: float = 0.5

    def __post_init__(self) -> None:
        if self.start == self.end == 0:
            raise InputError("entropy: start and end are both 0, which does nothing.")

    def refusal(self, strategy: Any) -> str | None:
        """See `Extra`."""
        return None if strategy.softmax else "its mixture is no softmax of the alphas"

    def penalty(self, alphas: Array, alive: Array | None, progress: Array) -> Array:
        """See `Extra`."""
        weight = self.start + (self.end - self.start) * progress
        return weight * jnp.mean(entropy(softmax(alphas, alive)))
