"""Entrants: the trainings of a race as tasks of an engine, each one entrant up to one rung."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dartformer.engines.base import DIVERGED, DONE, REFUSED, Engine, Task
from dartformer.engines.runner import last_line
from dartformer.errors import InputError
from dartformer.machine.progress import say
from dartformer.stages.entrant import folder_of
from dartformer.stages.layout import Layout, Workdir
from dartformer.stages.race import Leg
from dartformer.sweeps.supervise import TaskFailed, supervise, tries_of

ENGINE = "engine"
"""The folder of a workdir that is held while its run is on an engine."""


class EngineTrainer:
    """Trains the entrants of a race on an engine, see `dartformer.stages.race.Trainer`.

    Args:
      engine: that runs them.
      tries: how often a training is started before the race fails.
      options: of the command line, for each of them.
    """

    where: str

    def __init__(self, engine: Engine, tries: int, options: Sequence[str] = ()):
        self.engine, self.tries, self.options = engine, tries, tuple(options)
        self.where = f"engine {engine.name}"

    def train(self, workdir: Workdir, legs: Sequence[Leg]) -> Mapping[Leg, str]:
        """See `Trainer`.

        Raises:
          InputError: a training was refused for its input.
          Interrupted: a signal came, and the trainings are saved.
          TaskFailed: a training ended with another error each time.
        """
        diverged: dict[Leg, str] = {}
        by_folder: dict[Path, Leg] = {}
        tasks = []
        for leg in legs:
            task = self._task(workdir, leg)
            by_folder[task.folder] = leg
            tasks.append(task)
            task.folder.mkdir(parents=True, exist_ok=True)

        def ended(task: Task, code: int | None, starts: int) -> None:
            leg, line = by_folder[task.folder], last_line(task.folder)
            if code == DIVERGED:
                diverged[leg] = line
            elif code == DONE:
                say(f"race: {task.title} is trained to step {leg.step}")
            else:
                raise refusal(task.title, code, starts, line)

        supervise(self.engine, tasks, self.tries, ended, "race")
        return diverged

    def _task(self, workdir: Workdir, leg: Leg) -> Task:
        path = workdir.path.absolute()
        folder = folder_of(leg)
        words = (f"--train={folder}", f"--until={leg.step}", *self.options)
        return Task(
            f"step {leg.step}",
            (*command("race", path), *words),
            path / folder,
            Path.cwd(),
            title=f"{leg.name} seed {leg.seed}",
            shared=path / ENGINE,
        )


def command(verb: str, workdir: Path) -> tuple[str, ...]:
    """The command line of a verb on a workdir and the config in it."""
    config = Layout(workdir).config
    return (
        *(sys.executable, "-m", "dartformer", verb),
        *(f"--config={config}", f"--workdir={workdir}"),
    )


def refusal(name: str, code: int | None, starts: int, line: str) -> Exception:
    """The error of a task without which nothing can go on."""
    if code == REFUSED:
        return InputError(f"{name}: {line}")
    return TaskFailed(f"{name} ended with exit code {code} in {starts} {tries_of(starts)}: {line}")
