"""Traces of a few steps: what the host and the device do in them, for Perfetto or TensorBoard.

`tracing` names the folder for what is called inside it, in the same thread; each kind of work, such
as "search", is traced once.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import jax

from dartformer.errors import InputError

FOLDER = "profile"
"""In a workdir, where traces are written."""

FIRST = 10
"""Steps before those that are traced: the first ones compile, and touch their memory first."""

STEPS = 10
"""Steps that are traced. More say little more, and fill files that viewers open slowly."""


@dataclass
class Traces:
    """The traces of a call.

    Attributes:
      folder: has a folder for each kind of work.
      kinds: those that were begun; each is traced once.
      runs: whether a trace is under way.
    """

    folder: Path
    kinds: list[str] = field(default_factory=list)
    runs: bool = False

    def start(self, kind: str) -> None:
        """Begin to trace."""
        self.kinds.append(kind)
        options = jax.profiler.ProfileOptions()
        # A frame for each call of Python would slow the steps down, and fill most of the file.
        options.python_tracer_level = 0
        jax.profiler.start_trace(
            self.folder / kind, create_perfetto_trace=True, profiler_options=options
        )
        self.runs = True

    def stop(self) -> None:
        """Write the files of the trace under way, if there is one."""
        if self.runs:
            self.runs = False
            jax.profiler.stop_trace()

    def takes(self, kind: str) -> bool:
        """Whether work of a kind is to be traced: once, and not inside that of another kind."""
        return not self.runs and kind not in self.kinds


_current: ContextVar[Traces | None] = ContextVar("traces", default=None)


@contextmanager
def tracing(folder: Path) -> Iterator[Traces]:
    """Work inside is traced into `folder`; `InputError` where no folder can be made there."""
    _require_writable(folder)
    traces = Traces(folder)
    token = _current.set(traces)
    try:
        yield traces
    finally:
        _current.reset(token)


def _require_writable(folder: Path) -> None:
    # Not made yet: a workdir with a folder in it would be taken for somebody else's.
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(
            f"--profile-trace={folder} must be a folder, but {existing} is a file. Use another."
        )
    if not os.access(existing, os.W_OK):
        raise InputError(f"--profile-trace={folder}: no permission to write to {existing}.")


def _nothing() -> None:
    pass


@contextmanager
def traced(kind: str, steps: int, wait: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Gives a function to call before each of `steps` steps, of which `STEPS` are traced.

    These begin after `FIRST` steps, or in the middle where there are fewer than twice as many.
    `wait` returns when the device has done what was given to it, so that all of it is in the trace.
    Outside `tracing` nothing is traced.
    """
    traces = _current.get()
    if traces is None or steps < 1 or not traces.takes(kind):
        yield _nothing
        return
    first = min(FIRST, steps // 2)
    count = 0

    def before_step() -> None:
        nonlocal count
        if count in (first, first + STEPS):
            wait()
        if count == first:
            traces.start(kind)
        elif count == first + STEPS:
            traces.stop()
        count += 1

    try:
        yield before_step
        if traces.runs:
            wait()
    finally:
        traces.stop()
