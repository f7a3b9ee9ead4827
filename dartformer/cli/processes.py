"""`--hosts`: one command as several processes, which share one run."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from dartformer.errors import InputError
from dartformer.machine import hosts

PROCESS = "DARTFORMER_PROCESS"
"""The environment variable that tells a process of `--hosts=local:N` which one it is."""

GRACE = 30.0
"""Seconds that the others have to end by themselves, once one has failed."""


def run(arguments: argparse.Namespace, words: Sequence[str], verb: Callable[[], int]) -> int:
    """Run `verb` as one of several processes, or start them all here; its exit code."""
    spec = hosts.parse(arguments.hosts)
    if getattr(arguments, "engine", None) is not None:
        raise InputError(
            "--hosts does not work with --engine, whose trainings are processes of their own. Use "
            "one of them."
        )
    if spec.kind == "local" and PROCESS not in os.environ:
        return start_here(spec.count, words)
    if spec.kind == "local":
        spec = hosts.parse(os.environ[PROCESS])
    from dartformer.machine import progress

    _keep_stdout_clean()
    hosts.start(spec)
    with _silent_stdout(not hosts.chief()), progress.quiet(not hosts.chief()):
        return verb()


def _keep_stdout_clean() -> None:
    """Drop what the runtime prints on standard output, which is for results.

    Gloo, by which processes exchange numbers between CPUs, says there whom it has met.
    """
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, buffering=1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    sys.stdout = results


@contextlib.contextmanager
def _silent_stdout(asked: bool) -> Iterator[None]:
    """Print no results, if that is asked."""
    if not asked:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def start_here(count: int, words: Sequence[str]) -> int:
    """The exit code of a command that runs as `count` processes on this machine."""
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for number in range(count):
        # The words stay what was typed, which is what a run notes and asks to repeat.
        environment = {**os.environ, PROCESS: f"{address},{count},{number}"}
        command = [sys.executable, "-m", "dartformer", *words]
        processes.append(subprocess.Popen(command, env=environment))
    with _passing_on(processes):
        return _exit_code(processes)


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _passing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals to stop on to all processes."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {}
    for number in (signal.SIGTERM, signal.SIGUSR2):
        before[number] = signal.signal(number, pass_on)
    # Ctrl-C reaches every process of a terminal.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; the chief's code, or that of the first that failed before it."""
    failed: int | None = None
    end = float("inf")
    while any(process.poll() is None for process in processes):
        for process in processes:
            code = process.poll()
            if code and failed is None:
                failed, end = code, time.monotonic() + GRACE
        if time.monotonic() > end:
            _kill(processes)
        time.sleep(0.05)
    codes = [_positive(process.returncode) for process in processes]
    if failed is not None and codes[0] == 0:
        return _positive(failed)
    return codes[0]


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()


def _positive(code: int) -> int:
    """An exit code as a shell has it: 128 + n after signal n."""
    if code < 0:
        return 128 - code
    return code
