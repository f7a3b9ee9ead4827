"""The log of a training: `metrics.jsonl` and the trackers."""

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dartformer.machine import hosts
from dartformer.machine.progress import say
from dartformer.machine.workdir import UnreadableFile, jsonable, write_text
from dartformer.training import trackers

Numbers = Mapping[str, Any]
"""What a line of the log holds beside its step: numbers, or nested lists of them, by name."""


Line = dict[str, Any]
"""A line of the log: its step, and numbers or lists of numbers by name."""


class MetricsLog:
    """`metrics.jsonl` and the trackers of one folder; a context manager.

    Lines after `done`, the step resumed from, are dropped: their steps will be run again. Of several
    processes the chief alone writes.
    """

    def __init__(self, folder: Path, done: int, receivers: Sequence[trackers.Tracker]):
        self.file = folder / "metrics.jsonl"
        if not hosts.chief():
            self.file = Path(os.devnull)
        lines, damaged = _parsed(self.file)
        if damaged:
            say(f"{self.file}: left out {damaged} damaged line(s)")
        # Rewritten whole, which also removes a last line that a crash cut short.
        kept = [line for line in lines if line["step"] <= done]
        write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        self.receivers = receivers
        for tracker in receivers:
            # It begins its file again; services have what they were sent.
            if isinstance(tracker, trackers.TensorBoard):
                for line in kept:
                    tracker.scalars(line["step"], scalars_of(line))

    def __enter__(self) -> "MetricsLog":
        self.handle = open(self.file, "a", encoding="utf-8")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:
            if error is not None:
                # A full disk must not replace the error that is under way with its own.
                stack.enter_context(contextlib.suppress(OSError))
            self.handle.close()
            for tracker in self.receivers:
                tracker.close()

    def write(self, step: int, numbers: Numbers) -> None:
        """Add a line, and send its scalars to the trackers."""
        self.handle.write(json.dumps(jsonable({"step": step, **numbers})) + "\n")
        # The report is refreshed from this file while the training goes on.
        self.handle.flush()
        scalars = scalars_of(numbers)
        for tracker in self.receivers:
            tracker.scalars(step, scalars)


def scalars_of(numbers: Numbers) -> dict[str, float]:
    """What trackers can plot: a search also logs its whole mixture."""
    scalars = {}
    for name, value in numbers.items():
        if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
            scalars[name] = value
    return scalars


def read_metrics(file: Path) -> list[Line]:
    """The lines of a `metrics.jsonl`, without those that are damaged or cut short by a crash."""
    lines, _ = _parsed(file)
    return lines


def _parsed(file: Path) -> tuple[list[Line], int]:
    """The lines of a file, and how many whole ones are damaged."""
    lines: list[Line] = []
    damaged = 0
    if not os.path.lexists(file):
        return lines, damaged
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UnreadableFile(f"cannot read {file}: {error.strerror}.") from None
    # At newlines alone: `splitlines` would cut a damaged line at signs within it.
    parts = text.split("\n")
    # A crash leaves a last line without its end, which is no damage.
    unfinished = parts.pop()
    for part in parts:
        line = parse_line(part)
        if line is not None:
            lines.append(line)
        elif part:
            damaged += 1
    line = parse_line(unfinished)
    if line is not None:
        lines.append(line)
    return lines, damaged


def parse_line(text: str | bytes) -> Line | None:
    """A line of the log; None where it is no object with a step."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    # No whole number of a training needs more than 64 bits, and larger ones cannot be drawn.
    for value in line.values():
        if isinstance(value, int) and abs(value) >= 2**63:
            return None
    return line
