"""SPOS: single path one-shot search with uniform sampling (Guo et al. 2020, arXiv 1904.00420)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from dartformer.strategies.base import Traits
from dartformer.strategies.one_level import WeightsOnly
from dartformer.strategies.relax import uniform_path


@dataclass(frozen=True)
class Spos(WeightsOnly):
    """Trains one uniformly random path at each step, then evolves genotypes on shared weights."""

    traits: ClassVar[Traits] = Traits(
        "arXiv 1904.00420", ("evolution", "random_search"), alphas=False, halves=False
    )
    draws: ClassVar[bool] = True

    def rows(self) -> Callable[[Array, Array], Array]:
        """One candidate in each place."""
        return lambda alphas, key: uniform_path(alphas, None, key, jnp.zeros(()))
