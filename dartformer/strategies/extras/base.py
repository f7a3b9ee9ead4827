"""Extras: what can be put on top of a strategy that learns alphas. Each is a frozen dataclass of
its options."""

from collections.abc import Callable
from typing import Any, ClassVar

from jax import Array

from dartformer.strategies.base import State


class Extra:
    """Does nothing by itself; each extra overrides the part that it is about.

    Rows are `[1 or L, 1 or H, K]`, the free places of the search. `progress` runs from 0, where the
    alphas begin to move, to 1, at the last step.

    Attributes:
      name: in the table and in messages.
      order: derivatives it takes of the network.
      vectorises: it leaves seeds in one program at no more than their own price.
      skips: what it saves is candidates without weight that are passed over as a step runs.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 1
    vectorises: ClassVar[bool] = True

    @property
    def skips(self) -> bool:
        """See above."""
        return False

    def refusal(self, strategy: Any) -> str | None:
        """Why it makes no sense on top of a strategy; None if it does."""
        return None

    def check(self, candidates: int, steps: int) -> None:
        """Raise `InputError` where the options do not fit the number of candidates or of alphas'
        steps."""

    def falls(self, candidates: int, steps: int) -> frozenset[int]:
        """After how many steps of the alphas candidates can have been dropped, so that compiling
        again saves memory."""
        return frozenset()

    def memory(self, alphas: Array) -> dict[str, Array]:
        """What it must remember, at the start."""
        return {}

    def penalty(self, alphas: Array, alive: Array | None, progress: Array) -> Array | float:
        """What it adds to the alphas' loss."""
        return 0.0

    def disturb(
        self, rows: Array, key: Array, progress: Array, loss: Callable[[Array], Array]
    ) -> Array:
        """The rows at which the weights take their step; `loss` is the weights' at other rows."""
        return rows

    def after(
        self, state: State, progress: Array, key: Array, loss: Callable[[Array], Array]
    ) -> tuple[State, dict[str, Array]]:
        """The state after a step of both levels, and numbers to log; `loss` is the alphas', at
        their soft rows."""
        return state, {}
