"""A step of a search that is compiled again over the candidates that are left, whenever some have
been dropped."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from dartformer.space.search_space import everywhere
from dartformer.strategies import State
from dartformer.training.devices import MeshLayout, gather
from dartformer.training.step import CompiledStep, Metrics, Step, placed

Remaining = tuple[tuple[int, ...], ...]
"""For each layer, the candidates that are in play in one of its heads at least."""


class Narrowing:
    """A `CompiledStep` for each set of candidates that comes up.

    Memory is set aside when a program is compiled, for every candidate it could have to compute; so
    only a program that lacks the dropped ones needs less. It computes the same: what is left out
    would have been multiplied by zero.

    Attributes:
      programs: the steps so far.

    Args:
      step_of: what is left -> a step over that alone, on the same state.
      mixture_shape: `[L, H, K]`.
      falls: numbers of steps after which candidates can have been dropped. The state is read only
        there, because reading it waits for the device.
      layout: see `CompiledStep`.
    """

    def __init__(
        self,
        step_of: Callable[[Remaining], Step[State]],
        mixture_shape: tuple[int, int, int],
        falls: Collection[int],
        layout: MeshLayout | None = None,
    ):
        self._layout = layout
        self._step_of, self._shape, self._falls = step_of, mixture_shape, frozenset(falls)
        self.programs: dict[Remaining, CompiledStep[State]] = {}
        self._done = 0

    @property
    def compile_seconds(self) -> float:
        """Of all programs so far."""
        return sum(step.compile_seconds for step in self.programs.values())

    def remaining(self, state: State) -> Remaining:
        """The candidates that a state has in play."""
        # Alphas that are shared by layers or heads have one row for them: [L, H, K].
        alive = everywhere(gather(state.memory["alive"]), self._shape[:2])
        remaining = []
        for layer in alive:
            # A candidate is computed for all heads of a layer, so that one head keeps it.
            in_play = np.flatnonzero(layer.any(0))
            remaining.append(tuple(in_play.tolist()))
        return tuple(remaining)

    def _choose_program(self, state: State) -> None:
        key = self.remaining(state)
        if key not in self.programs:
            self.programs[key] = CompiledStep(self._step_of(key), self._layout)
        self._step = self.programs[key]

    def prepare(self, state: State, batch: Any) -> None:
        """See `StepProgram`; steps are counted from this state's on."""
        self._done = int(state.step)
        self._choose_program(state)
        self._step.prepare(state, batch)

    def place(self, batch: Any) -> Any:
        """See `StepProgram`; every program reads it in the same place."""
        return placed(batch, self._layout)

    def spread(self, state: State) -> State:
        """See `StepProgram`; every program takes it in the same place."""
        if self._layout is None:
            return state
        return self._layout.spread(state)

    def __call__(self, state: State, batch: Any) -> tuple[State, Metrics]:
        # Counted here, because reading the step from the state would wait for the device.
        if self._done in self._falls:
            self._choose_program(state)
        self._done += 1
        return self._step(state, batch)
