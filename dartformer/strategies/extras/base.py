"""What an extra is: a frozen dataclass of options that goes on top of a strategy with alphas."""

from collections.abc import Callable
from typing import ClassVar, Protocol

from jax import Array

from dartformer.strategies.base import Metrics, State, Traits


class Host(Protocol):
    """What an extra may ask of the strategy that it goes on top of: see `Alternating`."""

    traits: ClassVar[Traits]
    softmax: ClassVar[bool]
    joint: ClassVar[bool]

    @property
    def sampled(self) -> bool: ...


class Extra:
    """Does nothing alone: each extra overrides the part that it changes.

    Rows are `[1 or L, 1 or H, K]`, the free places of the search. `progress` runs from 0, where the
    alphas begin to move, to 1, at the last step.

    Attributes:
      name: in the table and in messages.
      order: derivatives it takes of the network.
      vectorises: several seeds may still run as one program at no extra cost.
      skips: it saves work only because a step skips candidates without weight.
    """

    name: ClassVar[str]
    order: ClassVar[int] = 1
    vectorises: ClassVar[bool] = True

    @property
    def skips(self) -> bool:
        """See above."""
        return False

    def refusal(self, strategy: Host) -> str | None:
        """Why it does not work on top of a strategy ; None if it does."""
        return None

    def check(self, candidates: int, steps: int) -> None:
        """Raise `InputError` where the options do not fit the number of candidates or of alphas'
        steps."""

    def drop_steps(self, candidates: int, steps: int) -> frozenset[int]:
        """The steps of the alphas after which candidates can have been dropped for good.

        The step is compiled again after each of them, which saves memory."""
        return frozenset()

    def memory(self, alphas: Array) -> dict[str, Array]:
        """The entries that it keeps in `State.memory`, as they are before the first step."""
        return {}

    def penalty(self, alphas: Array, alive: Array | None, progress: Array) -> Array | float:
        """What it adds to the alphas' loss."""
        return 0.0

    def perturb(
        self, rows: Array, key: Array, progress: Array, loss: Callable[[Array], Array]
    ) -> Array:
        """The rows at which the weights take their step; `loss` maps rows to the weights' loss."""
        return rows

    def after(
        self, state: State, progress: Array, key: Array, loss: Callable[[Array], Array]
    ) -> tuple[State, Metrics]:
        """The state after a step of both levels, and numbers to log.

        `loss` maps alphas to the loss of their own batch at the soft rows."""
        return state, {}
