"""Progressive dropping (P-DARTS, Chen et al. 2019, arXiv 1904.12760): candidates leave in stages,
the worst first.

A dropped candidate has weight zero from then on; where no head of a layer has it any more, the
supernet does not compute it, so that steps become cheaper as the search goes on, in time and
(compiled again) in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.base import State
from dartformer.strategies.extras.base import Extra
from dartformer.strategies.relax import living


@dataclass(frozen=True)
class Drop(Extra):
    """Drops the candidates with the smallest weights in stages, and saves their work (P-DARTS,
    arXiv 1904.12760).

    Attributes:
      keep: how many each row ends with.
      stages: how many times some are dropped, evenly over the alphas' steps and as evenly in number
        as can be.
      recompile: compile the step again without what was dropped, so that it also needs less memory.
        Without that, steps become as fast, and nothing is compiled on the way.
    """

    name: ClassVar[str] = "drop"
    vectorises: ClassVar[bool] = False

    keep: int = 1
    stages: int = 3
    recompile: bool = True

    def __post_init__(self) -> None:
        for name in ("keep", "stages"):
            if getattr(self, name) < 1:
                raise InputError(f"drop: {name} must be at least 1, got {getattr(self, name)}.")

    @property
    def skips(self) -> bool:
        """See `Extra`."""
        return not self.recompile

    def check(self, candidates: int, steps: int) -> None:
        """See `Extra`."""
        if self.keep >= candidates:
            raise InputError(f"drop: keep={self.keep} of {candidates} candidates drops none.")
        if self.stages > candidates - self.keep:
            raise InputError(
                f"drop: {self.stages} stages, but only {candidates - self.keep} of {candidates} "
                f"candidates are to be dropped."
            )

    def memory(self, alphas: Array) -> dict[str, Array]:
        """See `Extra`."""
        return {"alive": jnp.ones(alphas.shape, bool)}

    def falls(self, candidates: int, steps: int) -> frozenset[int]:
        """See `Extra`; with the steps next to them, should a compiler round the progress another
        way."""
        if not self.recompile:
            return frozenset()
        left = np.asarray(self.left(candidates, jnp.arange(steps + 1) / max(steps, 1)))
        return frozenset(int(s) + d for s in np.flatnonzero(np.diff(left)) + 1 for d in (-1, 0, 1))

    def left(self, candidates: int, progress: Array) -> Array:
        """How many of a row's candidates are in play, int32."""
        stage = jnp.clip(jnp.floor(progress * (self.stages + 1)), 0, self.stages)
        return jnp.round(candidates - (candidates - self.keep) * stage / self.stages).astype(
            jnp.int32
        )

    def after(
        self, state: State, progress: Array, key: Array, loss: Callable[[Array], Array]
    ) -> tuple[State, dict[str, Array]]:
        """See `Extra`; weights are in the order of the alphas in every relaxation."""
        alive = state.memory["alive"]
        rank = jnp.argsort(jnp.argsort(-living(state.alphas, alive), -1), -1)
        alive = alive & (rank < self.left(alive.shape[-1], progress))
        return state._replace(memory={**state.memory, "alive": alive}), {
            "alive": alive.sum(-1).mean()
        }
