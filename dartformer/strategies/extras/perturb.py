"""SDARTS (Chen and Hsieh 2020, arXiv 2002.05283): weights learn at perturbed mixtures.

Discretization then costs less. The mixture is perturbed, not the alphas, and only in the weights'
step; a candidate of weight zero stays at zero. With eps rising linearly:

    random smoothing    mixture + U(-eps, eps), clipped to [0, 1], scaled to sum to one
    adversarial         the mixture within eps (in each weight) where the weights' loss is highest,
                        by gradient ascent
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.extras.base import Extra, Host


@dataclass(frozen=True)
class Smoothing(Extra):
    """Perturbs the mixture at random in the weights' step (SDARTS-RS, arXiv 2002.05283).

    Attributes:
      start, end: eps at the alphas' first and last step.
    """

    name: ClassVar[str] = "smoothing"

    start: float = 0.03
    end: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.start <= 1 or not 0 < self.end <= 1:
            raise InputError(
                f"{self.name}: start and end must be between 0 and 1, got {self.start} and {self.end}."
            )

    def refusal(self, strategy: Host) -> str | None:
        """See `Extra`."""
        if strategy.sampled:
            return "its weights learn at one-hot samples, not at a soft mixture"
        if not strategy.traits.simplex:
            return "its gates do not sum to one"
        if strategy.joint:
            return "its weights and alphas share one step, and alphas must not see the perturbation"
        return None

    def size(self, progress: Array) -> Array:
        """eps."""
        return self.start + (self.end - self.start) * progress

    def perturb(
        self, rows: Array, key: Array, progress: Array, loss: Callable[[Array], Array]
    ) -> Array:
        """See `Extra`."""
        size = self.size(progress)
        # A key of its own: rows that are sampled have used `key` already.
        noise = jax.random.uniform(jax.random.fold_in(key, 1), rows.shape, rows.dtype, -size, size)
        moved = jnp.where(rows > 0, jnp.clip(rows + noise, 0, 1), 0)
        total = moved.sum(-1, keepdims=True)
        # Noise can take a whole row to zero, which cannot be scaled to sum to one.
        return jnp.where(total > 0, moved / jnp.where(total > 0, total, 1), rows)


@dataclass(frozen=True)
class Adversarial(Smoothing):
    """Moves the mixture to where the weights' loss is highest (SDARTS-ADV, arXiv 2002.05283).

    Attributes:
      start, end: eps at the alphas' first and last step.
      ascents: gradient steps of 2 eps / `ascents`, each about as expensive as a step of the
        weights.
    """

    name: ClassVar[str] = "adversarial"

    ascents: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ascents < 1:
            raise InputError(f"adversarial: ascents must be at least 1, got {self.ascents}.")

    def perturb(
        self, rows: Array, key: Array, progress: Array, loss: Callable[[Array], Array]
    ) -> Array:
        """See `Extra`. Where the ascent does not raise the loss, the rows stay as they are."""
        size = self.size(progress)

        def ascend(_: int, moved: Array) -> Array:
            # Signs, as for a ball in the maximum norm: the largest step that it allows.
            moved = moved + 2 * size / self.ascents * jnp.sign(jax.grad(loss)(moved))
            moved = jnp.clip(moved, rows - size, rows + size)
            return jnp.where(rows > 0, jnp.clip(moved, 0, 1), 0)

        moved = jax.lax.fori_loop(0, self.ascents, ascend, rows)
        return jnp.where(loss(moved) > loss(rows), moved, rows)
