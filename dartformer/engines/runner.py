"""Run one task in a process: `python -m dartformer.engines.runner --folder=DIR ... -- COMMAND`.

The runner keeps the output, notes the exit code in the folder, passes signals on, and stops the
command when the process that started the runner is gone. It imports neither JAX nor NumPy."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

from dartformer.machine import locks
from dartformer.machine.workdir import LockedFolder, read_json, write_json

LOG, ENDS = "task.log", "task.json"
"""In the folder of a task: what it printed, and how it ended."""

POLL = 0.2
"""Seconds between two looks at the command and at the parent."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Child(Protocol):
    """The process of a command, as `subprocess.Popen` has it."""

    def wait(self, timeout: float) -> int:
        """The exit code; raises `TimeoutExpired` after so many seconds."""

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""


Begin = Callable[[Sequence[str], IO[bytes]], Child]
"""Starts a command, whose output goes to a file."""


def cold(argv: Sequence[str], log: IO[bytes]) -> Child:
    """Start a command as a new program."""
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def main(words: Sequence[str], begin: Begin = cold, parent: int | None = None) -> int:
    """Run the command and return its exit code.

    Args:
      words: of the command line.
      begin: starts the command.
      parent: the process without which the command is to stop; None for that of this one.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--cores", default="")
    parser.add_argument("argv", nargs="+")
    arguments = parser.parse_args(words)
    if arguments.cores:
        # The command inherits them, and XLA starts as many threads.
        os.sched_setaffinity(0, set(map(int, arguments.cores.split(","))))
    os.chdir(arguments.directory)
    runner = _Runner(arguments.argv, arguments.folder, begin, parent or os.getppid())
    if runner.waits() and not runner.stopped:
        # A sweep that was killed may have left a task that came to its end in the meantime.
        end = ends(arguments.folder).get(arguments.name)
        if end is not None and end["code"] == 0:
            return 0
    code = runner.run()
    # A command that was stopped is not at its end, unless it got there first.
    if not runner.stopped or code == 0:
        _note(arguments.folder, arguments.name, code, time.monotonic() - runner.started)
    return code


class _Runner:
    """A command, the signals for it, and the process that wants it."""

    def __init__(self, argv: Sequence[str], folder: Path, begin: Begin, parent: int):
        self.argv, self.folder, self.begin, self.parent = argv, folder, begin, parent
        self.signal = 0  # that came before there was a command
        self.stopped = False
        self.child: Child | None = None
        self.started = time.monotonic()

    def waits(self) -> bool:
        """Wait while another process holds the folder; whether one did."""
        for number in SIGNALS:
            signal.signal(number, self._forward)
        waited = False
        while not self.stopped and _held(self.folder):
            waited = True
            self.stopped = bool(self.signal) or self._orphaned()
            time.sleep(POLL)
        return waited

    def run(self) -> int:
        """The exit code of the command; 128 + n of one that signal n ended."""
        if self.stopped:
            return 128 + (self.signal or signal.SIGTERM)
        self.started = time.monotonic()
        with open(self.folder / LOG, "ab") as log:
            self.child = self.begin(self.argv, log)
            if self.signal:  # between the last look and the start
                self.child.send_signal(self.signal)
            code = self._wait(self.child)
        if code < 0:
            return 128 - code
        return code

    def _wait(self, child: Child) -> int:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(POLL)
            if not self.stopped and self._orphaned():
                self.stopped = True
                child.send_signal(signal.SIGTERM)

    def _forward(self, number: int, _: object) -> None:
        self.stopped = True
        self.signal = number
        if self.child is not None:
            self.child.send_signal(number)

    def _orphaned(self) -> bool:
        return os.getppid() != self.parent


def _held(folder: Path) -> bool:
    """Whether another process holds the folder, such as a task of an earlier sweep that saves."""
    file = folder / LockedFolder.NAME
    if not file.exists():
        return False
    with open(file, "a") as lock:
        try:
            locks.lock(lock, wait=False)
        except BlockingIOError:
            return True
        except OSError:  # a disk without locks, of which the command itself will tell
            return False
    return False


def _note(folder: Path, name: str, code: int, seconds: float) -> None:
    """Write how the command ended, beside the ends of others in the folder."""
    usage = os.times()
    ends = {}
    if (folder / ENDS).exists():
        ends = read_json(folder / ENDS)
    ends[name] = {
        "code": code,
        "seconds": seconds,
        "processor_seconds": usage.children_user + usage.children_system,
    }
    write_json(folder / ENDS, ends)


def ends(folder: Path) -> dict[str, dict[str, float]]:
    """For each command that ended in a folder: its exit code, seconds and processor seconds."""
    if not (folder / ENDS).exists():
        return {}
    noted: dict[str, dict[str, float]] = read_json(folder / ENDS)
    return noted


def last_line(folder: Path) -> str:
    """The last line that a task printed, which is its error."""
    try:
        data = (folder / LOG).read_bytes()
    except OSError:
        return ""
    printed = data[-4000:].decode(errors="replace").split("\n")
    for line in reversed(printed):
        if line.strip():
            return line.strip().removeprefix("dartformer: error: ")[:500]
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
