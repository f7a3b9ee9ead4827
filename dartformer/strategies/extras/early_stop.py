"""Early stop on curvature (RobustDARTS, Zela et al. 2020, arXiv 1909.09656, section 4.3).

The dominant eigenvalue of d2L/da2 is measured at intervals. When its average over a window has grown
by more than a factor since `patience` measurements ago, the alphas go back to their values of that
time and stay there, while the weights go on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.base import Metrics, State
from dartformer.strategies.curvature import dominant_eigenvalue
from dartformer.strategies.extras.base import Extra


@dataclass(frozen=True)
class EarlyStop(Extra):
    """Returns to earlier alphas when their loss becomes sharply curved (arXiv 1909.09656).

    Attributes:
      every: steps between measurements.
      window: measurements in an average (the authors: 5).
      patience: how many measurements lie between the two averages (the authors: 4 in their code, 5
        in the paper).
      factor: growth that stops (1.3 in their code, 1 / 0.75 in the paper).
      iterations: of Lanczos; each costs about two steps of the alphas.
    """

    name: ClassVar[str] = "early_stop"
    order: ClassVar[int] = 2
    vectorises: ClassVar[bool] = False

    every: int = 10
    window: int = 5
    patience: int = 4
    factor: float = 1.3
    iterations: int = 10

    def __post_init__(self) -> None:
        for name in ("every", "window", "patience", "iterations"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"early_stop: {name} must be at least 1, got {value}.")
        if self.factor <= 1:
            raise InputError(f"early_stop: factor must be above 1, got {self.factor}.")

    def check(self, candidates: int, steps: int) -> None:
        """See `Extra`."""
        measurements = self.window + self.patience
        if measurements * self.every > steps:
            raise InputError(
                f"early_stop needs {measurements} measurements, one every {self.every} steps of the "
                f"alphas, before it can stop, but the alphas take only {steps} steps."
            )

    def memory(self, alphas: Array) -> dict[str, Array]:
        """See `Extra`."""
        return {
            "stopped": jnp.zeros((), bool),
            "eigenvalues": jnp.full(self.window + self.patience, jnp.nan, alphas.dtype),
            "earlier": jnp.zeros((self.patience + 1, *alphas.shape), alphas.dtype),
        }

    def after(
        self, state: State, progress: Array, key: Array, loss: Callable[[Array], Array]
    ) -> tuple[State, Metrics]:
        """See `Extra`. Whether to measure depends on the step alone."""

        def measure(state: State) -> tuple[State, Array]:
            memory = state.memory
            curvature = dominant_eigenvalue(jax.grad(loss), state.alphas, key, self.iterations)
            eigenvalues = jnp.append(memory["eigenvalues"][1:], curvature)
            earlier = jnp.concatenate([memory["earlier"][1:], state.alphas[None]])
            before = eigenvalues[: self.window].mean()
            now = eigenvalues[-self.window :].mean()
            # NaN until the windows are full, and then no comparison holds.
            grown = (before > 0) & (now > self.factor * before)
            stops = ~memory["stopped"] & grown
            state = state._replace(
                alphas=jnp.where(stops, earlier[0], state.alphas),
                memory=memory
                | {
                    "stopped": memory["stopped"] | stops,
                    "eigenvalues": eigenvalues,
                    "earlier": earlier,
                },
            )
            return state, curvature

        def skip(state: State) -> tuple[State, Array]:
            return state, jnp.full((), jnp.nan, state.alphas.dtype)

        due = (progress > 0) & (state.step % self.every == 0)
        state, curvature = jax.lax.cond(due, measure, skip, state)
        stopped = state.memory["stopped"].astype(jnp.float32)
        return state, {"alphas_curvature": curvature, "stopped": stopped}
