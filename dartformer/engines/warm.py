"""Start tasks as forks of a process that has imported everything once.

Imports take most of the processor time of a small task. A warm process imports the command line,
starts no backend of JAX, and forks the runner of each task, which forks the command. So a task has
devices, threads and memory of its own, and its signals and its exit code are those of a task that
starts cold.

A task starts cold where forks are not safe (see `dartformer.engines.forks`), and where its command
is not a module for the same interpreter. Another environment or folder, or files that changed since the
imports, need another warm process."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The one variable in which the tasks of a warm process may differ: a backend reads it, no import."""

POLL = 0.05
"""Seconds between two looks at a process."""

SWITCH = "DARTFORMER_WARM"
"""The environment variable that has each task start cold where it is "off"."""

LARGEST = 2**17
"""Bytes of a message."""

Key = tuple[Any, ...]
"""What the imports of a process depend on."""


class Process(Protocol):
    """The process of a task. Codes below zero are signals, as those of `subprocess.Popen` are."""

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def wait(self) -> int:
        """The exit code, once it has ended."""


class Starter:
    """Starts the runners of tasks.

    Starters share a warm process, which ends with the last of them. Tasks that still run then save
    and end."""

    def __init__(self) -> None:
        self._warm: _Warm | None = None

    def start(
        self, command: Sequence[str], directory: Path, environment: Mapping[str, str]
    ) -> Process:
        """Start a runner in a session of its own.

        Args:
          command: of `Task.command`.
          directory: in which the task works.
          environment: all of its variables.
        """
        if environment.get(SWITCH) != "off" and _can_fork(command):
            warm = self._of(_key(command[0], directory, environment))
            if warm is not None:
                return _Fork(warm, command, environment)
        return _cold(command, environment)

    def _of(self, key: Key) -> "_Warm | None":
        """The warm process for a key; None where it cannot be."""
        if self._warm is None or self._warm.key != key or self._warm.was_lost():
            shared = _shared.get(key)
            if shared is None or shared.was_lost():
                try:
                    shared = _shared[key] = _Warm(key)
                except OSError:  # there is no such folder, and the runner says so
                    return None
            self._warm = shared
        if self._warm.is_gone:  # it cannot fork
            return None
        return self._warm


class _Warm:
    """A warm process, and what it has said of its forks."""

    def __init__(self, key: Key):
        self.key = key
        self.is_ready = self.is_gone = False
        self._count = 0
        self._codes: dict[int, int] = {}
        executable, directory, environment, _ = key
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # In a session of its own: Ctrl-C reaches the sweep alone, which passes it on once.
            process = subprocess.Popen(
                [executable, "-m", "dartformer.engines.forks", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=directory,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._channel = ours
        weakref.finalize(self, _end, ours, process, os.getpid())

    def was_lost(self) -> bool:
        """Whether it ended, though it was able to fork."""
        return self.is_gone and self.is_ready

    def begin(self, words: Sequence[str], environment: Mapping[str, str]) -> int:
        """Have it fork a runner; the number of the fork."""
        self._count += 1
        visible = environment.get(VISIBLE)
        self._send({"fork": self._count, "words": list(words), "visible": visible})
        return self._count

    def stop(self, fork: int) -> None:
        """Send SIGTERM to a fork; of one that has ended, its code comes again."""
        self._send({"fork": fork, "signal": signal.SIGTERM})

    def code(self, fork: int) -> int | None:
        """The exit code of a fork, or None as far as it is known to run."""
        while not self.is_gone:
            try:
                data = self._channel.recv(LARGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            self.is_gone = not data
            if data:
                self.is_ready = True
                self._codes.update((int(i), code) for i, code in json.loads(data).items())
        return self._codes.get(fork)

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):  # `code` notes the end
            self._channel.send(json.dumps(message).encode())


class _Fork:
    """A runner that a warm process forks; one that starts cold where it turns out not to fork."""

    def __init__(self, warm: _Warm, command: Sequence[str], environment: Mapping[str, str]):
        self._warm, self._command, self._environment = warm, command, environment
        self._cold: subprocess.Popen[bytes] | None = None
        # Without the interpreter, "-m" and the module of the runner.
        self._fork = warm.begin(command[3:], environment)

    def poll(self) -> int | None:
        """See `Process`."""
        if self._cold is not None:
            return self._cold.poll()
        code = self._warm.code(self._fork)
        if code is None and self._warm.is_gone:
            if self._warm.is_ready:
                return -signal.SIGKILL
            self._cold = _cold(self._command, self._environment)
        return code

    def terminate(self) -> None:
        """See `Process`."""
        if self._cold is not None:
            self._cold.terminate()
        else:
            self._warm.stop(self._fork)

    def wait(self) -> int:
        """See `Process`."""
        code = self.poll()
        while code is None:
            time.sleep(POLL)
            code = self.poll()
        return code


_shared: "weakref.WeakValueDictionary[Key, _Warm]" = weakref.WeakValueDictionary()


def _can_fork(command: Sequence[str]) -> bool:
    """Whether a warm process may run a command, which is a module for the same interpreter."""
    argv = command[command.index("--") + 1 :]
    # macOS has libraries that do not survive a fork.
    return sys.platform == "linux" and list(argv[:2]) == [command[0], "-m"]


def _key(executable: str, directory: Path, environment: Mapping[str, str]) -> Key:
    others = {name: value for name, value in environment.items() if name != VISIBLE}
    return executable, str(directory), tuple(sorted(others.items())), _stamp()


def _stamp() -> int:
    """Changes with the files of this package and with the packages that are installed."""
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    times = []
    for path in (*sorted(installed), *sorted(Path(__file__).parents[1].rglob("*.py"))):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime_ns)
    return hash(tuple(times))


def _cold(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    # In a session of its own, as a warm one.
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=dict(environment), start_new_session=True
    )


def _end(channel: socket.socket, process: "subprocess.Popen[bytes]", owner: int) -> None:
    """End a warm process, which keeps nothing; not from a fork of its owner."""
    if os.getpid() == owner:
        channel.close()
        process.kill()
        process.wait()
