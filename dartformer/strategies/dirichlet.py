"""DrNAS (Chen et al. 2021, arXiv 2006.10355): rows drawn from a Dirichlet distribution.

    theta ~ Dir(c),   c = elu(a) + 1,   loss + reg * KL(Dir(c) || Dir(1))

The gradient goes through the draw (implicit reparameterisation). The derivation reads the mean,
c / sum(c).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln

from dartformer.errors import InputError
from dartformer.strategies.alternate import Bilevel
from dartformer.strategies.base import Traits
from dartformer.strategies.relax import Alive, Relaxation


def concentration(alphas: Array) -> Array:
    """c = elu(a) + 1, above 0."""
    # 1 at a = 0: the search begins at the uniform distribution over the simplex.
    return jax.nn.elu(alphas) + 1


def divergence(c: Array) -> Array:
    """KL(Dir(c) || Dir(1)) of each row `[..., K]`: 0 at c = 1, 0.1250928 at c = (2, 2)."""
    total = c.sum(-1)
    # E[log theta_k] under Dir(c).
    logs = digamma(c) - digamma(total)[..., None]
    return (
        gammaln(total) - gammaln(c).sum(-1) - gammaln(float(c.shape[-1])) + ((c - 1) * logs).sum(-1)
    )


def among(rows: Array, alive: Alive) -> Array:
    """Rows over the living candidates, scaled to sum to one again."""
    if alive is None:
        return rows
    # Of a Dirichlet draw, some entries scaled to sum to one are again a Dirichlet draw.
    kept = jnp.where(alive, rows, 0)
    return kept / kept.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Dirichlet(Bilevel):
    """Draws soft mixtures from a Dirichlet distribution with learned concentrations.

    Attributes:
      regularisation: weight of the divergence from the uniform Dirichlet (the authors: 1e-3).
      hypergradient: see `Bilevel`.
      warmup, spread, extras: see `Alternating`.
    """

    traits: ClassVar[Traits] = Traits(
        "arXiv 2006.10355", ("argmax", "masked_drop", "sample", "top_k")
    )
    softmax: ClassVar[bool] = False

    regularisation: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.regularisation < 0:
            raise InputError(
                f"search.strategy.regularisation must be at least 0, got {self.regularisation!r}."
            )

    def penalty(self, alphas: Array, alive: Alive) -> Array:
        """The mean over rows of the divergence, times its weight."""
        return self.regularisation * divergence(concentration(alphas)).mean()

    def relaxation(self) -> Relaxation:
        """Draws for the steps of weights and alphas; their mean as the soft rows."""

        def soft(alphas: Array, alive: Alive) -> Array:
            c = concentration(alphas)
            return among(c / c.sum(-1, keepdims=True), alive)

        def draw(alphas: Array, alive: Alive, key: Array, progress: Array) -> Array:
            # JAX differentiates the draw by implicit reparameterisation of its gamma variables.
            rows = jax.random.dirichlet(key, concentration(alphas), dtype=alphas.dtype)
            return among(rows, alive)

        return Relaxation(soft, draw, draw)
