"""The warm process: `python -m dartformer.engines.forks CHANNEL`, see `dartformer.engines.warm`.

A fork has one thread, whatever threads its parent had, and a lock that another thread held stays
locked in it. So this process forks only if it has no other thread after a first fork: the threads
of OpenBLAS, which NumPy and SciPy start at their imports, end at a fork and start again. Nor does
it fork where JAX has started a backend, or where an import has opened a device: CUDA does not work
in forks of a process that has begun it."""

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from dartformer.engines import runner
from dartformer.engines.warm import LARGEST, POLL, VISIBLE
from dartformer.machine.start import prepare_process

MODULES = (
    "dartformer.cli.main",
    "dartformer.cli.run_verbs",
    # What these import where they need it.
    "grain",
    "orbax.checkpoint",
    "tensorflow_datasets",
)
"""What is imported."""

PATIENCE = 10.0
"""Seconds in which a first fork must end."""


class Becoming(BaseException):
    """Unwinds a fork out of all that its parent does.

    Args:
      action: what the fork does then; returns its exit code.
    """

    def __init__(self, action: Callable[[], int]):
        super().__init__()
        self.action = action


def main(words: Sequence[str]) -> int:
    """Import everything, and fork as the other end of the channel says, until it is closed."""
    channel = socket.socket(fileno=int(words[0]))
    action: Callable[[], int] = functools.partial(_serve, channel)
    with _quiet():
        before = _devices()
        _import()
        if _devices() - before or not _is_safe():
            return 1
    while True:
        try:
            return action()
        except Becoming as fork:
            action = fork.action


def _import() -> None:
    prepare_process()
    for module in MODULES:
        importlib.import_module(module)
    # Pages without objects that a collection would mark stay shared.
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Write nothing inside the block: what an import prints belongs to no task."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _devices() -> set[str]:
    """The device files that this process has open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing is closed by now
            file = os.readlink(f"/proc/self/fd/{number}")
            if file.startswith("/dev/"):
                found.add(file)
    return found


def _is_safe() -> bool:
    """Whether forks of this process are whole: no backend, and no thread that outlives a fork."""
    from jax._src import xla_bridge

    if xla_bridge.backends_are_initialized():
        return False
    process = os.fork()
    if not process:
        os._exit(0)
    try:
        _Command(process).wait(PATIENCE)
    except subprocess.TimeoutExpired:
        os.kill(process, signal.SIGKILL)
        return False
    return len(os.listdir("/proc/self/task")) == 1


def _serve(channel: socket.socket) -> int:
    """Fork for each message with words, and say how each fork has ended."""
    # The forks have them for their tasks; this process ends with its channel.
    for number in runner.SIGNALS:
        signal.signal(number, _ignore)
    running: dict[int, int] = {}
    codes: dict[int, int] = {}
    _say(channel, {})
    while True:
        timeout = POLL if running else None
        if select.select([channel], [], [], timeout)[0]:
            data = channel.recv(LARGEST)
            if not data:
                return 0
            message = json.loads(data)
            fork = message["fork"]
            if "words" in message:
                running[fork] = _fork(functools.partial(_run, channel, message, os.getpid()))
            elif fork in running:
                os.kill(running[fork], message["signal"])
            elif fork in codes:
                _say(channel, {fork: codes[fork]})
        for fork, process in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del running[fork]
                codes[fork] = os.waitstatus_to_exitcode(status)
                _say(channel, {fork: codes[fork]})


def _ignore(*_: object) -> None:
    """Handle a signal; not SIG_IGN, which programs that a task starts would inherit."""


def _say(channel: socket.socket, codes: Mapping[int, int]) -> None:
    with contextlib.suppress(ConnectionError):  # the next look finds the channel closed
        channel.send(json.dumps(codes).encode())


def _fork(action: Callable[[], int]) -> int:
    """The number of a new process, which does `action`."""
    # A signal that comes before the fork has handlers of its own waits for that.
    signal.pthread_sigmask(signal.SIG_BLOCK, runner.SIGNALS)
    try:
        process = os.fork()
        if not process:
            for number in runner.SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise Becoming(action)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, runner.SIGNALS)
    return process


def _run(channel: socket.socket, message: Mapping[str, Any], parent: int) -> int:
    """In a fork: the runner of a task."""
    channel.close()
    os.setsid()
    if message["visible"] is None:
        os.environ.pop(VISIBLE, None)
    else:
        os.environ[VISIBLE] = message["visible"]
    code = runner.main(message["words"], _begin, parent)
    # Nothing of the imports is in use, and to take them down would take as long as the rest.
    os._exit(code)


def _begin(argv: Sequence[str], log: IO[bytes]) -> "_Command":
    """Start `python -m MODULE WORDS`, as `subprocess.Popen` would."""
    _, _, module, *words = argv
    # The fork unwinds, which closes the log.
    output = os.dup(log.fileno())
    command = _Command(_fork(functools.partial(_command, module, words, output)))
    os.close(output)
    return command


def _command(module: str, words: Sequence[str], output: int) -> int:
    """In a fork of the runner: the command."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


class _Command:
    """A fork of this process, with the methods of `subprocess.Popen` that a runner calls."""

    def __init__(self, number: int):
        self.number = number
        self.code: int | None = None

    def wait(self, timeout: float) -> int:
        """The exit code; raises `TimeoutExpired` after so many seconds."""
        limit = time.monotonic() + timeout
        while self.code is None:
            ended, status = os.waitpid(self.number, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= limit:
                raise subprocess.TimeoutExpired("dartformer", timeout)
            else:
                time.sleep(POLL)
        return self.code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        # A handler of signals may come between the two lines that note the end.
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.number, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
