"""Supervise: tasks on an engine until each has ended; one that crashes starts again."""

from collections.abc import Callable, Sequence

from dartformer.engines.base import DIVERGED, DONE, REFUSED, Engine, Handle, Task
from dartformer.machine.progress import say
from dartformer.machine.signals import StopSignal
from dartformer.training.loop import Interrupted

SECONDS = 0.5
"""Between two looks at a signal to stop."""

Ended = Callable[[Task, int | None, int], None]
"""Called with a task that has ended, its exit code, and how often it was started."""


def supervise(
    engine: Engine, tasks: Sequence[Task], tries: int, ended: Ended, subject: str = "sweep"
) -> None:
    """Run tasks until each has ended.

    Args:
      engine: that runs them.
      tasks: to run.
      tries: how often a task is started before its exit code counts.
      ended: called when a task has ended; what it raises ends the other tasks, which save.
      subject: what the tasks are of, in lines on standard error.

    Raises:
      Interrupted: a signal came; the tasks are saved and have ended.
    """
    running = _Running(engine, subject)
    try:
        with StopSignal() as stop:
            for task in tasks:
                running.submit(task)
            while running.waiting:
                if stop.number:
                    running.stop()
                    raise Interrupted(
                        f"the {subject} was stopped; progress is saved. To continue:", stop.number
                    )
                handle = engine.wait(list(running.waiting), SECONDS)
                if handle is not None:
                    running.end(handle, tries, ended)
    except BaseException:
        running.cancel()
        raise


class TaskFailed(RuntimeError):
    """A task crashed each time it was started, and nothing can go on without it."""


class _Running:
    """The tasks that have not ended, and how often each was started."""

    def __init__(self, engine: Engine, subject: str):
        self.engine, self.subject = engine, subject
        self.waiting: dict[Handle, Task] = {}
        self.starts: dict[str, int] = {}

    def submit(self, task: Task) -> None:
        """Start a task, once more if it was before."""
        key = str(task.folder)
        self.starts[key] = self.starts.get(key, 0) + 1
        self.waiting[self.engine.submit(task)] = task

    def end(self, handle: Handle, tries: int, ended: Ended) -> None:
        """Start a task again that may yet succeed, or say that it has ended."""
        task, code = self.waiting.pop(handle), handle.code
        starts = self.starts[str(task.folder)]
        if code in (DONE, REFUSED, DIVERGED) or starts >= tries:
            ended(task, code, starts)
            return
        name = task.title or task.folder.name
        say(f"{self.subject}: {name} ended with code {code}; try {starts + 1} of {tries}")
        self.submit(task)

    def stop(self) -> None:
        """Let all tasks save and end, and wait for that."""
        count = len(self.waiting)
        say(f"{self.subject}: stopping; {count} {tasks_of(count)} save and end")
        self.cancel()
        while self.waiting:
            handle = self.engine.wait(list(self.waiting), SECONDS)
            if handle is not None:
                del self.waiting[handle]

    def cancel(self) -> None:
        """Ask all tasks to save and end."""
        for handle in self.waiting:
            self.engine.cancel(handle)


def tasks_of(count: int) -> str:
    """The word for so many tasks."""
    return "task" if count == 1 else "tasks"


def tries_of(count: int) -> str:
    """The word for so many tries."""
    return "try" if count == 1 else "tries"
