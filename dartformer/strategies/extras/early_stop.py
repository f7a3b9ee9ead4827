"""Early stop on curvature (RobustDARTS, Zela et al. 2020, arXiv 1909.09656, section 4.3).

The dominant eigenvalue of d2L/da2 is measured every so often. Where its average over a window has
grown by more than a factor since `patience` measurements ago, the alphas go back to what they were
then, and stay; the weights go on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError
from dartformer.strategies.base import State
from dartformer.strategies.curvature import dominant_eigenvalue
from dartformer.strategies.extras.base import Extra


@dataclass(frozen=True)
class EarlyStop(Extra):
    """Takes earlier alphas and keeps them, where the alphas' loss becomes sharply curved (arXiv
    1909.09656).

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
            if getattr(self, name) < 1:
                raise InputError(
                    f"early_stop: {name} must be at least 1, got {getattr(self, name)}."
                )
        if self.factor <= 1:
            raise InputError(f"early_stop: factor must be above 1, got {self.factor}.")

    def check(self, candidates: int, steps: int) -> None:
        """See `Extra`."""
        needed = (self.window + self.patience) * self.every
        if needed > steps:
            raise InputError(
                f"early_stop: needs {self.window + self.patience} measurements, one every {self.every} "
                f"steps of the alphas, before it can stop; they take {steps} steps."
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
    ) -> tuple[State, dict[str, Array]]:
        """See `Extra`. Whether to measure depends on the step alone."""

        def measure(state: State) -> tuple[State, Array]:
            memory = state.memory
            found = dominant_eigenvalue(jax.grad(loss), state.alphas, key, self.iterations)
            values = jnp.append(memory["eigenvalues"][1:], found)
            earlier = jnp.concatenate([memory["earlier"][1:], state.alphas[None]])
            before, now = values[: self.window].mean(), values[-self.window :].mean()
            stops = (
                ~memory["stopped"] & (before > 0) & (now > self.factor * before)
            )  # never while any is NaN
            alphas = jnp.where(stops, earlier[0], state.alphas)
            return state._replace(
                alphas=alphas,
                memory={
                    **memory,
                    "stopped": memory["stopped"] | stops,
                    "eigenvalues": values,
                    "earlier": earlier,
                },
            ), found

        def rest(state: State) -> tuple[State, Array]:
            return state, jnp.full((), jnp.nan, state.alphas.dtype)

        state, found = jax.lax.cond(
            (progress > 0) & (state.step % self.every == 0), measure, rest, state
        )
        return state, {
            "alphas_curvature": found,
            "stopped": state.memory["stopped"].astype(jnp.float32),
        }
