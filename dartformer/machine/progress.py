"""Progress of long work: rich bars in a terminal, plain lines in a pipe or in CI."""

import math
import time
from collections.abc import Mapping
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dartformer.machine import printable
from dartformer.machine.console import Console

console = Console(stderr=True)
"""Standard error, for everything but results. It is silent while its `quiet` is set, and has no
colors if NO_COLOR is set or it is not a terminal."""

LINE_EVERY = 5
"""Seconds between plain lines."""


class Bar:
    """Progress of one named piece of work of `total` steps; use it as a context manager."""

    def __init__(self, name: str, total: int, done: int = 0):
        self.name, self.total, self.first = name, total, done
        self.started = self.last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "Bar":
        # A pipe or a CI log would hold every redrawn frame of a bar, one after the other.
        if console.is_terminal and not console.quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.name, total=self.total, completed=self.first, note=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, numbers: Mapping[str, object]) -> None:
        """Show that `done` steps are done, with a few numbers."""
        now = time.monotonic()
        # Steps of an earlier call, before a resume, took none of this one's time.
        rate = (done - self.first) / max(now - self.started, 1e-9)
        parts = []
        for name, value in numbers.items():
            parts.append(f"{name} {_text(value)}")
        parts.append(f"{rate:.1f} steps/s")
        note = "  ".join(parts)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        due = now - self.last_line >= LINE_EVERY or done == self.total
        if due and not console.quiet:
            self.last_line = now
            remaining = math.inf
            if rate > 0:
                remaining = (self.total - done) / rate
            line = f"{self.name}  {done}/{self.total}  {note}  {remaining:.0f} s left"
            printable.note(line)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def say(text: str) -> None:
    """Print one line to standard error, above a running bar."""
    console.print(text, markup=False, soft_wrap=True)
