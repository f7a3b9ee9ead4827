"""Processes on this machine, among which its accelerators or its cores are shared out."""

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dartformer.engines.base import STOPPED, Handle, Limits, Task
from dartformer.engines.warm import VISIBLE, Process, Starter
from dartformer.errors import InputError

POLL = 0.05
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Share:
    """What one process gets: the names of accelerators, and the numbers of cores; empty for all."""

    devices: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()


class Processes:
    """One process for each share of the machine; the other tasks wait for their turn."""

    name = "processes"

    def __init__(self, limits: Limits):
        limits.require_unset("processes", "memory", "minutes", "slurm")
        self._free = shares(limits, accelerators(os.environ), cores())
        self._queue: deque[Handle] = deque()
        self._running: dict[Handle, tuple[Process, Share]] = {}
        self._starter = Starter()

    def submit(self, task: Task) -> Handle:
        """See `Engine.submit`."""
        handle = Handle(task)
        self._queue.append(handle)
        return handle

    def wait(self, handles: Sequence[Handle], seconds: float) -> Handle | None:
        """See `Engine.wait`."""
        limit = time.monotonic() + seconds
        while True:
            self._start()
            self._look()
            for handle in handles:
                if handle.code is not None:
                    return handle
            if time.monotonic() >= limit:
                return None
            time.sleep(POLL)

    def cancel(self, handle: Handle) -> None:
        """See `Engine.cancel`."""
        if handle in self._queue:
            self._queue.remove(handle)
            handle.code = STOPPED
        elif handle in self._running:
            process, _ = self._running[handle]
            process.terminate()

    def _start(self) -> None:
        """Start tasks as long as there are shares."""
        while self._queue and self._free:
            handle, share = self._queue.popleft(), self._free.pop(0)
            environment = {**os.environ, **handle.task.environment}
            if share.devices:
                environment[VISIBLE] = ",".join(share.devices)
            task = handle.task
            command = task.command(share.cores)
            process = self._starter.start(command, task.directory, environment)
            self._running[handle] = (process, share)

    def _look(self) -> None:
        """Note the processes that have ended, and take their shares back."""
        for handle, (process, share) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            if code < 0:
                code = 128 - code
            handle.code = code
            del self._running[handle]
            self._free.append(share)


def accelerators(environment: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA names them."""
    if environment.get("JAX_PLATFORMS", "").partition(",")[0] == "cpu":
        return []
    if VISIBLE in environment:
        return list(filter(None, map(str.strip, environment[VISIBLE].split(","))))
    count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return list(map(str, range(count)))


def cores() -> list[int]:
    """The cores that this process may use; empty where the system cannot bind processes."""
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return []
    return sorted(os.sched_getaffinity(0))


def shares(limits: Limits, devices: Sequence[str], cores: Sequence[int]) -> list[Share]:
    """What each of the processes gets: one for each GPU by default, one in all without GPUs."""
    if limits.devices and not devices:
        raise InputError(f"devices={limits.devices} needs GPUs, and this process sees none.")
    each = limits.devices or min(len(devices), 1)
    if each > len(devices):
        raise InputError(f"devices={each} is more than the {len(devices)} GPUs here.")
    jobs = limits.jobs or 1
    if devices:
        jobs = limits.jobs or len(devices) // each
    if jobs * each > len(devices):
        raise InputError(
            f"jobs={jobs} with {each} GPU(s) for each needs {jobs * each} GPUs, and there are "
            f"{len(devices)}."
        )
    if limits.cpus and jobs * limits.cpus > len(cores):
        raise InputError(
            f"jobs={jobs} with cpus={limits.cpus} needs {jobs * limits.cpus} cores, and this "
            f"process can bind {len(cores)}."
        )
    # A process alone keeps all cores, and more processes than cores share them.
    width = limits.cpus or len(cores) // jobs
    bound = bool(limits.cpus) or jobs > 1
    found = []
    for i in range(jobs):
        part: tuple[int, ...] = ()
        if bound:
            part = tuple(cores[i * width : (i + 1) * width])
        found.append(Share(tuple(devices[i * each : (i + 1) * each]), part))
    return found
