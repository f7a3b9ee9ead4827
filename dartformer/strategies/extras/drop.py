"""Progressive dropping (P-DARTS, Chen et al. 2019, arXiv 1904.12760): the worst leave in stages.

A dropped candidate has weight zero from then on. Where no head of a layer has it any more, the
supernet does not compute it, so steps become cheaper as the search goes on, in time and (compiled
again) in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.base import Metrics, State
from dartformer.strategies.extras.base import Extra
from dartformer.strategies.relax import living


@dataclass(frozen=True)
class Drop(Extra):
    """Drops the candidates with the smallest weights in stages (P-DARTS, arXiv 1904.12760).

    Attributes:
      keep: how many each row ends with.
      stages: how many times candidates are dropped, evenly over the alphas' steps and as evenly in
        number as possible.
      recompile: compile the step again without the dropped candidates, so that it also needs less
        memory. Otherwise steps become as fast, but keep their memory.
    """

    name: ClassVar[str] = "drop"
    vectorises: ClassVar[bool] = False

    keep: int = 1
    stages: int = 3
    recompile: bool = True

    def __post_init__(self) -> None:
        for name, value in (("keep", self.keep), ("stages", self.stages)):
            if value < 1:
                raise InputError(f"drop: {name} must be at least 1, got {value}.")

    @property
    def skips(self) -> bool:
        """See `Extra`."""
        return not self.recompile

    def check(self, candidates: int, steps: int) -> None:
        """See `Extra`."""
        if self.keep >= candidates:
            raise InputError(f"drop: keep={self.keep} of {candidates} candidates drops none.")
        drops = candidates - self.keep
        if self.stages > drops:
            raise InputError(
                f"drop: stages={self.stages}, but it drops only {drops} of {candidates} candidates."
            )

    def memory(self, alphas: Array) -> dict[str, Array]:
        """See `Extra`."""
        return {"alive": jnp.ones(alphas.shape, bool)}

    def drop_steps(self, candidates: int, steps: int) -> frozenset[int]:
        """See `Extra`."""
        if not self.recompile:
            return frozenset()
        progress = jnp.arange(steps + 1) / max(steps, 1)
        counts = np.asarray(self.remaining(candidates, progress))
        drops: set[int] = set()
        for step in np.flatnonzero(np.diff(counts)) + 1:
            # With its neighbours: a compiler may round the progress of a step differently.
            drops.update((int(step) - 1, int(step), int(step) + 1))
        return frozenset(drops)

    def remaining(self, candidates: int, progress: Array) -> Array:
        """How many of a row's candidates are in play, int32."""
        stage = jnp.clip(jnp.floor(progress * (self.stages + 1)), 0, self.stages)
        dropped = (candidates - self.keep) * stage / self.stages
        # Rounded, as the stages need not divide the number that is dropped.
        return jnp.round(candidates - dropped).astype(jnp.int32)

    def after(
        self, state: State, progress: Array, key: Array, loss: Callable[[Array], Array]
    ) -> tuple[State, Metrics]:
        """See `Extra`; weights are in the order of the alphas in every relaxation."""
        alive = state.memory["alive"]
        descending = jnp.argsort(-living(state.alphas, alive), -1)
        rank = jnp.argsort(descending, -1)  # the inverse permutation
        alive = alive & (rank < self.remaining(alive.shape[-1], progress))
        state = state._replace(memory=state.memory | {"alive": alive})
        return state, {"alive": alive.sum(-1).mean()}
