"""What an engine is: three methods for tasks, each of which is a command line and a folder."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dartformer.errors import InputError

DONE, REFUSED, DIVERGED = 0, 2, 3
"""Exit codes after which a task is not started again."""

STOPPED = 128 + 15
"""The exit code of a task that was asked to stop."""

LOST = 128 + 9
"""The exit code of a task whose process or machine is gone."""


@dataclass(frozen=True)
class Task:
    """A command that keeps all it knows in a folder, so that it can be stopped and run again.

    Attributes:
      name: of what it does, under which the runner notes its end.
      argv: the command.
      folder: where it works. The runner waits while another process holds its lock.
      directory: the current folder of the command.
      environment: variables to set beside those that there are.
      title: in lines for people; empty for the name of the folder.
      shared: where an engine keeps files of its own for all tasks; None: beside the folder.
    """

    name: str
    argv: tuple[str, ...]
    folder: Path
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    title: str = ""
    shared: Path | None = None

    def command(self, cores: Sequence[int] = ()) -> list[str]:
        """The runner on this task, bound to cores if there are any."""
        words = [sys.executable, "-m", "dartformer.engines.runner", f"--name={self.name}"]
        words += [f"--folder={self.folder}", f"--directory={self.directory}"]
        if cores:
            words.append(f"--cores={','.join(map(str, cores))}")
        return [*words, "--", *self.argv]


@dataclass(frozen=True)
class Limits:
    """What one task may use, and how many run at the same time; 0 leaves it to the engine.

    Attributes:
      jobs: tasks at the same time.
      devices: accelerators of a task.
      cpus: cores of a task.
      memory: gigabytes of a task.
      minutes: after which a task is stopped, saved and started again.
      tries: how often a task is started before it counts as failed.
      slurm: more options of SLURM by name, such as "partition".
    """

    jobs: int = 0
    devices: int = 0
    cpus: int = 0
    memory: int = 0
    minutes: int = 0
    tries: int = 3
    slurm: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("jobs", "devices", "cpus", "memory", "minutes", "tries"):
            value, least = getattr(self, name), int(name == "tries")
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}.")

    def require_unset(self, engine: str, *names: str) -> None:
        """Raise `InputError` where a limit is set that the engine cannot keep."""
        for name in names:
            if getattr(self, name):
                raise InputError(f"--{name} does not work with --engine={engine}. Leave it out.")


@dataclass(eq=False)
class Handle:
    """A task that was submitted, with its exit code once it has ended."""

    task: Task
    code: int | None = None


class Engine(Protocol):
    """Runs tasks, and says with which exit code they ended.

    Attributes:
      name: of `dartformer.engines.ENGINES`.
    """

    name: str

    def submit(self, task: Task) -> Handle:
        """Take a task, and start it when there is room."""

    def wait(self, handles: Sequence[Handle], seconds: float) -> Handle | None:
        """The first of the handles that has ended, with its code; None after so many seconds."""

    def cancel(self, handle: Handle) -> None:
        """Ask a task to save and end; `wait` says when it has."""
