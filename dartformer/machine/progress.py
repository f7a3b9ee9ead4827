"""Progress of long work: rich bars in a terminal, plain lines in a pipe or in CI."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

from rich.console import Group
from rich.live import Live
from rich.text import Text

from dartformer.machine import printable
from dartformer.machine.console import Console

console = Console(stderr=True)
"""Standard error, for everything but results. It is silent while its `quiet` is set, and has no
colors if NO_COLOR is set or it is not a terminal."""

LINE_EVERY = 5
"""Seconds between plain lines."""

BAR = 12
"""Letters of a bar in a terminal."""

SETTLED = 0.02
"""Share of the planned work from which on the time left is estimated."""


class Work(NamedTuple):
    """What a stage trains: its steps, and the cost of one, such as FLOPs."""

    steps: float
    cost: float

    @property
    def total(self) -> float:
        """The cost of all steps."""
        return self.steps * self.cost


class Whole:
    """How far a command of several stages is, which its bars show beside their own steps.

    Args:
      stages: their names, in order.
      work: of the stages that train.
      trainings: how many there are, about.
    """

    def __init__(self, stages: Sequence[str], work: Mapping[str, Work], trainings: int):
        self.stages, self.work, self.trainings = list(stages), work, trainings
        self.total = sum(planned.total for planned in work.values())
        self.stage = self.stages[0]
        self.begun: set[str] = set()
        # `done` counts what was skipped too; `trained` is what was done since `started`.
        self.done = self.trained = 0.0
        self.started = time.monotonic()

    def enter(self, stage: str) -> None:
        """A stage begins: those before it are done, whatever was planned for them."""
        self.stage = stage
        self.done = self._until(self.stages.index(stage))

    def _until(self, number: int) -> float:
        """What is planned for the first stages."""
        done = 0.0
        for name in self.stages[:number]:
            if name in self.work:
                done += self.work[name].total
        return done

    def begin(self, training: str, steps: int) -> None:
        """A training begins; an earlier call, before a resume, took its first steps."""
        self.begun.add(training)
        self._add(steps)

    def advance(self, steps: int) -> None:
        """Steps of the stage are done."""
        self.trained += self._add(steps)

    def _add(self, steps: int) -> float:
        if self.stage not in self.work:
            return 0.0
        gained = steps * self.work[self.stage].cost
        # A stage that takes more steps than were planned waits at its end.
        end = self._until(self.stages.index(self.stage) + 1)
        self.done = min(self.done + gained, end)
        return gained

    @property
    def share(self) -> float:
        """What is done of the planned work."""
        if not self.total:
            return 1.0
        return self.done / self.total

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far, compiling included; None where it is too early to say."""
        seconds = time.monotonic() - self.started
        if self.trained < SETTLED * self.total:
            return None
        return (self.total - self.done) * seconds / self.trained

    def text(self) -> str:
        """The stage, the training, and the time that is left."""
        number = self.stages.index(self.stage) + 1
        parts = [f"{self.stage} (stage {number} of {len(self.stages)})"]
        if self.begun:
            count = len(self.begun)
            parts.append(f"training {count} of about {max(count, self.trainings)}")
        # A race may have more entrants than were planned for, whose time is then unknown.
        if self.seconds_left and self.share < 1:
            parts.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(parts)


@contextlib.contextmanager
def quiet(asked: bool = True) -> Iterator[None]:
    """Nothing is shown inside, if that is asked; afterwards it is as before."""
    before = console.quiet
    console.quiet = before or asked
    try:
        yield
    finally:
        console.quiet = before


_whole: Whole | None = None


@contextlib.contextmanager
def whole(of: Whole) -> Iterator[None]:
    """Show how far a whole command is, inside the block."""
    global _whole
    before, _whole = _whole, of
    try:
        yield
    finally:
        _whole = before


class Bar:
    """Progress of one named piece of work of `total` steps; use it as a context manager."""

    def __init__(self, name: str, total: int, done: int = 0):
        self.name, self.total, self.first = name, total, done
        self.started = self.last_line = time.monotonic()
        self.done = done
        self._live: Live | None = None

    def __enter__(self) -> "Bar":
        if _whole is not None:
            _whole.begin(self.name, self.first)
        # A pipe or a CI log would hold every redrawn frame of a bar, one after the other.
        if console.is_terminal and not console.quiet:
            self._live = Live(self._drawn("", ""), console=console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, done: int, numbers: Mapping[str, object]) -> None:
        """Show that `done` steps are done, with a few numbers."""
        now = time.monotonic()
        if _whole is not None:
            _whole.advance(done - self.done)
        self.done = done
        # Steps of an earlier call, before a resume, took none of this one's time.
        rate = (done - self.first) / max(now - self.started, 1e-9)
        remaining = math.inf
        if rate > 0:
            remaining = (self.total - done) / rate
        parts = []
        for name, value in numbers.items():
            parts.append(f"{name} {_text(value)}")
        parts.append(f"{rate:.1f} steps/s")
        note = "  ".join(parts)
        count = f"{done}/{self.total}"
        if self._live is not None:
            self._live.update(self._drawn(count, f"{note}  {duration(remaining)} left"))
            return
        due = now - self.last_line >= LINE_EVERY or done == self.total
        if due and not console.quiet:
            self.last_line = now
            line = f"{self.name}  {count}  {note}  {duration(remaining)} left"
            if _whole is not None:
                line += f"  [{_whole.text()}]"
            printable.note(line)

    def _drawn(self, count: str, note: str) -> Group:
        """The lines in a terminal, each with its own widths, so that none is cut at 80 columns."""
        share = self.done / max(self.total, 1)
        lines = [Text(self.name), _line(share, count, note)]
        if _whole is not None:
            lines.insert(0, _line(_whole.share, f"{_whole.share:.0%}", _whole.text()))
        return Group(*lines)


def _line(share: float, count: str, note: str) -> Text:
    """A bar with what stands after it."""
    full = round(BAR * min(max(share, 0.0), 1.0))
    line = Text("━" * full, "green")
    line.append("━" * (BAR - full), "bright_black")
    return line.append(f" {count}  {note}", "default")


def duration(seconds: float) -> str:
    """ "40 s", "4 min" or "1.5 h" """
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def say(text: str) -> None:
    """Print one line to standard error, above a running bar."""
    console.print(text, markup=False, soft_wrap=True)
