"""The log of a training: `metrics.jsonl` and the trackers."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dartformer.machine.workdir import jsonable, write_text
from dartformer.training import trackers

Numbers = Mapping[str, Any]
"""What a line of the log holds beside its step: numbers, or nested lists of them, by name."""


class MetricsLog:
    """`metrics.jsonl` and the trackers of one folder; a context manager.

    Lines after `done`, the step resumed from, are dropped: their steps will be run again.
    """

    def __init__(self, folder: Path, done: int, receivers: Sequence[trackers.Tracker]):
        self.file = folder / "metrics.jsonl"
        # Rewritten whole, which also removes a last line that a crash cut short.
        kept = ""
        for line in read_metrics(self.file):
            if line["step"] <= done:
                kept += json.dumps(line) + "\n"
        write_text(self.file, kept)
        self.receivers = receivers

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
        # A search also logs its whole mixture, which trackers cannot plot.
        scalars = {}
        for name, value in numbers.items():
            if isinstance(value, (int, float)):
                scalars[name] = value
        for tracker in self.receivers:
            tracker.scalars(step, scalars)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without a last line that a crash cut short."""
    lines: list[dict[str, Any]] = []
    if not file.exists():
        return lines
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break  # lines are written in order, so nothing follows a line that is cut short
    return lines
