"""SLURM, by way of submitit: one job of an array for each task.

SLURM says by SIGUSR2 that a job is preempted or that its time is over. The task then saves, and the
job is put into the queue again."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from dartformer.engines.base import LOST, Handle, Limits, Task
from dartformer.errors import InputError

try:
    import submitit
    from submitit.helpers import DelayedSubmission
except ImportError:
    raise InputError(
        "--engine=slurm needs the package submitit: pip install 'dartformer[slurm]'."
    ) from None

LOGS = "slurm"
"""In the folder of the sweep, or in `engine` of a workdir: the scripts and the output of the jobs."""

MINUTES = 240
"""The time of a job by default."""

POLL = 0.5
"""Seconds between two looks at the jobs."""


class Job:
    """What submitit runs: a command, which saves when the job has to go."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]):
        self.command, self.environment = list(command), dict(environment)
        self._number = 0

    def __call__(self) -> int:
        """Run the command and return its exit code."""
        process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, env={**os.environ, **self.environment}
        )
        self._number = process.pid
        return _ended(process.pid)

    def checkpoint(self) -> DelayedSubmission:
        """Let the command save, and say what to run later. submitit calls it in a signal handler."""
        if self._number:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._number, signal.SIGUSR2)
            _ended(self._number)
        return DelayedSubmission(Job(self.command, self.environment))


def _ended(number: int) -> int:
    """The exit code of a process; 128 + n of one that signal n ended.

    Not by `Popen.wait`, whose lock the code that a signal handler interrupts may hold."""
    while True:
        try:
            ended, status = os.waitpid(number, os.WNOHANG)
        except ChildProcessError:  # the code that the handler interrupts took it
            return LOST
        if ended:
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                return 128 - code
            return code
        time.sleep(POLL / 5)


class Slurm:
    """Tasks as jobs of SLURM.

    Args:
      limits: of a task.
      cluster: "slurm"; tests use submitit's "local".
    """

    name = "slurm"

    def __init__(self, limits: Limits, cluster: str = "slurm"):
        if cluster == "slurm" and shutil.which("srun") is None:
            raise InputError(
                "--engine=slurm needs SLURM, and there is no srun here. Run it on a login node."
            )
        self._limits, self._cluster = limits, cluster
        self._options = _options(limits)
        self._new: list[Handle] = []
        self._jobs: dict[Handle, Any] = {}

    def submit(self, task: Task) -> Handle:
        """See `Engine.submit`."""
        handle = Handle(task)
        self._new.append(handle)
        return handle

    def wait(self, handles: Sequence[Handle], seconds: float) -> Handle | None:
        """See `Engine.wait`."""
        self._start()
        limit = time.monotonic() + seconds
        while True:
            for handle in handles:
                job = self._jobs.get(handle)
                if handle.code is None and job is not None and job.done():
                    handle.code = _code(job)
                if handle.code is not None:
                    return handle
            if time.monotonic() >= limit:
                return None
            time.sleep(min(POLL, max(limit - time.monotonic(), 0)))

    def cancel(self, handle: Handle) -> None:
        """See `Engine.cancel`."""
        if handle in self._new:
            self._new.remove(handle)
            handle.code = 128 + signal.SIGTERM
        elif handle in self._jobs:
            self._jobs[handle].cancel()

    def _start(self) -> None:
        """Hand all new tasks over together, as one array."""
        if not self._new:
            return
        first = self._new[0].task
        folder = (first.shared or first.folder.parent) / LOGS / "%j"
        executor = submitit.AutoExecutor(
            folder=folder, cluster=self._cluster, slurm_max_num_timeout=self._limits.tries
        )
        _update(executor, self._options)
        with executor.batch():
            for handle in self._new:
                job = Job(handle.task.command(), handle.task.environment)
                self._jobs[handle] = executor.submit(job)
        self._new.clear()


def _options(limits: Limits) -> dict[str, Any]:
    """The limits as submitit names them."""
    options: dict[str, Any] = {
        "name": "dartformer",
        "timeout_min": limits.minutes or MINUTES,
        "cpus_per_task": limits.cpus or 1,
    }
    if limits.devices:
        options["gpus_per_node"] = limits.devices
    if limits.memory:
        options["mem_gb"] = limits.memory
    if limits.jobs:
        options["slurm_array_parallelism"] = limits.jobs
    for name, value in limits.slurm.items():
        options[f"slurm_{name}"] = value
    return options


def _update(executor: Any, options: Mapping[str, Any]) -> None:
    try:
        executor.update_parameters(**options)
    except NameError as error:
        line = str(error).split("\n")[0]
        raise InputError(f"--slurm: {line}") from None


def _code(job: Any) -> int:
    """The exit code of a job that has ended."""
    try:
        code: int = job.result()
    except Exception:  # whatever submitit raises for a job without a result
        return LOST
    return code
