"""Callbacks: functions of the user's that every training of a call reports to, and that can stop it.

`calling` sets them for what is called inside it, in the same thread: a run has many trainings, of
which stages start some and a race the others, and all report to the same functions.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dartformer.errors import InputError, brief


@dataclass(frozen=True)
class Moment:
    """Where a training is.

    Attributes:
      training: its name, such as "search" or "found seed 0".
      step: how many steps it has taken.
      steps: how many it takes.
      folder: of its log and its checkpoints.
      measured: what the step or the evaluation gave, by name; after a step on the device.
    """

    training: str
    step: int
    steps: int
    folder: Path
    measured: Mapping[str, ArrayLike]

    @property
    def numbers(self) -> dict[str, float]:
        """`measured` as numbers: "loss" of a step, scores on valid of an evaluation.

        After a step this waits for the device, which costs time where every step reads it."""
        numbers = {}
        for name, value in self.measured.items():
            numbers[name] = float(np.mean(np.asarray(value)))
        return numbers


Callback = Callable[[Moment], object]
"""What is called. False stops the training, and anything else lets it go on."""


class Stopped(RuntimeError):
    """A callback returned False.

    Attributes:
      moment: at which it did.
      saved: everything is saved, and the same call goes on from there.
    """

    def __init__(self, moment: Moment, saved: bool = True):
        message = f"a callback stopped {moment.training} at step {moment.step} of {moment.steps}"
        if saved:
            message += "; everything is saved. Make the same call again to continue."
        else:
            message += "; without a workdir nothing is saved."
        super().__init__(message)
        self.moment, self.saved = moment, saved


class Callbacks(NamedTuple):
    """What a training calls.

    Attributes:
      on_step: after each step.
      on_evaluation: after each evaluation on valid, when its checkpoint is written.
    """

    on_step: Callback | None = None
    on_evaluation: Callback | None = None


_current: ContextVar[Callbacks] = ContextVar("callbacks", default=Callbacks())  # noqa: B039


def current() -> Callbacks:
    """The callbacks of the call under way."""
    return _current.get()


@contextmanager
def calling(
    on_step: Callback | None = None, on_evaluation: Callback | None = None
) -> Iterator[None]:
    """Trainings inside report to these callbacks; without any, to those around it."""
    for name, callback in (("on_step", on_step), ("on_evaluation", on_evaluation)):
        if callback is not None and not callable(callback):
            raise InputError(f"{name} must be a function of a Moment, got {brief(callback)}.")
    if on_step is None and on_evaluation is None:
        yield
        return
    token = _current.set(Callbacks(on_step, on_evaluation))
    try:
        yield
    finally:
        _current.reset(token)
