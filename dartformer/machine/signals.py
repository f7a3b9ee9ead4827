"""Signals to stop, which are noted so that the work under way is finished and saved."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from dartformer.machine import hosts

Handler = Callable[[int, FrameType | None], Any] | int | None
"""What `signal.signal` takes and returns."""

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""SIGUSR2 comes from SLURM, by way of submitit, before a job is preempted or its time is over."""


SAME = 1.0
"""Seconds within which a second signal is the first one again: SLURM and systemd send one to every
process of a group, and a parent passes it on."""


class StopSignal:
    """Notes SIGTERM, SIGINT and SIGUSR2 in `number`; use it as a context manager.

    A second signal, a second later or more, acts as usual. Outside the main thread, where Python
    allows no handlers, this does nothing. Several processes must all stop after the same step:
    JAX's runtime takes SIGTERM and tells them, and other signals are passed on to it."""

    number = 0
    noted = 0.0

    def __enter__(self) -> "StopSignal":
        self._handlers: dict[int, Handler] = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                # A handler of Python's would take the place of the runtime's own.
                if number != signal.SIGTERM or not hosts.together():
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def after_step(self) -> int:
        """The signal on which to stop after this step; 0: none. To be asked once a step."""
        if hosts.together():
            self.number = self.number or hosts.stop_requested()
        return self.number

    def _note(self, number: int, frame: FrameType | None) -> None:
        if hosts.together():
            os.kill(os.getpid(), signal.SIGTERM)
            return
        # The second signal: whoever cannot wait for the step gets the default action.
        if self.number and time.monotonic() - self.noted > SAME:
            signal.signal(number, self._handlers[number])
            signal.raise_signal(number)
        elif not self.number:
            self.number, self.noted = number, time.monotonic()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
