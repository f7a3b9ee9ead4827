"""FairDARTS (Chu et al. 2020, arXiv 1911.12126): an independent gate for each candidate.

    mixture_k = sigmoid(a_k),    loss + weight * L,    L = -mean (sigmoid(a) - 1/2)^2

Candidates do not compete as in a softmax, so several may stay in one place. L, the 0-1 loss, pushes
each gate to 0 or 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError, unknown
from dartformer.strategies.alternate import Bilevel
from dartformer.strategies.base import Traits
from dartformer.strategies.relax import Alive, Relaxation, deterministic

NORMS = ("l2", "l1")


def zero_one(gates: Array, norm: str = "l2") -> Array:
    """The 0-1 loss: 0, its maximum, at gates of 1/2; -1/4 ("l2") or -1/2 ("l1") at 0 or 1."""
    distances = gates - 0.5
    if norm == "l2":
        return -jnp.mean(distances**2)
    return -jnp.mean(jnp.abs(distances))


def gates(alphas: Array, alive: Alive) -> Array:
    """Rows of gates between 0 and 1."""
    rows = jax.nn.sigmoid(alphas)
    if alive is None:
        return rows
    return jnp.where(alive, rows, 0)


@dataclass(frozen=True)
class Sigmoid(Bilevel):
    """Learns an independent gate for each candidate, so several may stay in one place.

    Attributes:
      zero_one: weight of the 0-1 loss (the authors' command: 10).
      norm: of the 0-1 loss, "l2" or "l1".
      hypergradient: see `Bilevel`.
      warmup, spread, extras: see `Alternating`.
    """

    traits: ClassVar[Traits] = Traits(
        "arXiv 1911.12126", ("argmax", "masked_drop", "top_k"), simplex=False
    )
    softmax: ClassVar[bool] = False

    zero_one: float = 10.0
    norm: str = "l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_one < 0:
            raise InputError(f"search.strategy.zero_one must be at least 0, got {self.zero_one!r}.")
        if self.norm not in NORMS:
            raise unknown("search.strategy.norm", self.norm, NORMS)

    def penalty(self, alphas: Array, alive: Alive) -> Array:
        """The 0-1 loss, times its weight."""
        return self.zero_one * zero_one(jax.nn.sigmoid(alphas), self.norm)

    def relaxation(self) -> Relaxation:
        """Gates, without samples."""
        return deterministic(gates)
