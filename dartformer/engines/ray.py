"""Ray: one task of Ray Core for each task, on the cluster at RAY_ADDRESS or on a local one.

Ray starts a task again whose machine is lost. The command runs in a process of its own: Ray's
workers stay as they were, and a task's environment is that of the cluster. Each worker has a warm
process, from which its later tasks start."""

import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dartformer.engines.base import LOST, STOPPED, Handle, Limits, Task
from dartformer.engines.warm import Starter
from dartformer.errors import InputError

try:
    import ray
    from ray import exceptions
except ImportError:
    raise InputError("--engine=ray needs the package ray: pip install 'dartformer[ray]'.") from None

PATIENCE = 10.0
"""Seconds in which a cluster must answer."""

STORE = 2**27
"""Bytes of the object store of a local cluster, which holds exit codes alone."""


POLL = 0.2
"""Seconds between two looks at a process."""

_starter = Starter()
"""Of a worker."""


def execute(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> int:
    """In a worker: run a task to its end; Ray stops it by KeyboardInterrupt."""
    # Ignored where a shell has started the sweep in the background, and nothing would stop the task.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = _starter.start(command, directory, {**os.environ, **environment})
    try:
        code = process.poll()
        while code is None:
            # Not `wait`: Ray raises the exception between two instructions, never in a system call.
            time.sleep(POLL)
            code = process.poll()
    except KeyboardInterrupt:
        process.terminate()
        code = process.wait()
    if code < 0:
        return 128 - code
    return code


class Ray:
    """Tasks on Ray."""

    name = "ray"

    def __init__(self, limits: Limits):
        limits.require_unset("ray", "minutes", "slurm")
        _connect()
        self._limits = limits
        self._queue: deque[Handle] = deque()
        self._running: dict[Any, Handle] = {}
        self._task = ray.remote(execute).options(**_resources(limits))

    def submit(self, task: Task) -> Handle:
        """See `Engine.submit`."""
        handle = Handle(task)
        self._queue.append(handle)
        return handle

    def wait(self, handles: Sequence[Handle], seconds: float) -> Handle | None:
        """See `Engine.wait`."""
        self._start()
        if self._running:
            references, _ = ray.wait(list(self._running), num_returns=1, timeout=seconds)
            for reference in references:
                self._running.pop(reference).code = _code(reference)
        for handle in handles:
            if handle.code is not None:
                return handle
        return None

    def cancel(self, handle: Handle) -> None:
        """See `Engine.cancel`."""
        if handle in self._queue:
            self._queue.remove(handle)
            handle.code = STOPPED
            return
        for reference, running in self._running.items():
            if running is handle:
                ray.cancel(reference)

    def _start(self) -> None:
        """Hand tasks to Ray: all, as it has a queue of its own, or as many as `jobs` says."""
        most = self._limits.jobs or math.inf
        while self._queue and len(self._running) < most:
            handle = self._queue.popleft()
            task = handle.task
            reference = self._task.remote(task.command(), task.directory, dict(task.environment))
            self._running[reference] = handle


def _connect() -> None:
    """Connect to the cluster at RAY_ADDRESS, or start one here that ends with this process."""
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        _require_answer(address)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options.update(address="local", include_dashboard=False, object_store_memory=STORE)
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = str(error).split("\n")[0]
        raise InputError(f"cannot connect to Ray at RAY_ADDRESS={address}: {line}") from None


def _require_answer(address: str) -> None:
    """Raise `InputError` where nothing listens at HOST:PORT; Ray itself tries for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():  # "auto", which Ray resolves
        return
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except OSError as error:
        raise InputError(f"cannot connect to Ray at RAY_ADDRESS={address}: {error}.") from None


def _resources(limits: Limits) -> dict[str, Any]:
    """What a task needs, as Ray names it."""
    devices = limits.devices
    if not devices and ray.cluster_resources().get("GPU", 0):
        devices = 1
    options: dict[str, Any] = {
        "num_cpus": limits.cpus or 1,
        "num_gpus": devices,
        "max_retries": limits.tries,
    }
    if limits.memory:
        options["memory"] = limits.memory * 10**9
    return options


def _code(reference: Any) -> int:
    """The exit code of a task that Ray has ended."""
    try:
        code: int = ray.get(reference)
    except exceptions.TaskCancelledError:
        return STOPPED
    except exceptions.RayError:  # the machine was lost more often than Ray tries
        return LOST
    return code
