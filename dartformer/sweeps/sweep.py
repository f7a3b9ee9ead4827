"""A sweep: its tasks from a config and axes, run by an engine until each has ended.

All that a sweep knows is in its folder, in which each task has a workdir. So one that was killed
goes on with the same command, on the same engine or on another."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dartformer import config as configs
from dartformer.config import Config, load_config
from dartformer.engines.base import DIVERGED, DONE, Engine, Task
from dartformer.engines.runner import ends, last_line
from dartformer.errors import InputError, unknown
from dartformer.machine.progress import duration, say
from dartformer.machine.workdir import LockedFolder, jsonable, read_json, write_checked_json
from dartformer.stages.layout import claim
from dartformer.sweeps import page, records
from dartformer.sweeps.axes import Axis, name, product
from dartformer.sweeps.entrants import command
from dartformer.sweeps.records import SweepRecord, TaskRecord
from dartformer.sweeps.supervise import supervise, tasks_of, tries_of
from dartformer.training import metric
from dartformer.training.loop import Interrupted

VERBS = ("run", "search", "derive", "race", "retrain", "evaluate")
"""The verbs that a sweep can run."""


@dataclass(frozen=True)
class Cell:
    """A task of the sweep, with its config."""

    values: dict[str, str]
    config: Config
    task: Task


def sweep(
    source: tuple[str | Path, Mapping[str, str]],
    folder: str | Path,
    axes: Sequence[Axis],
    engine: Engine,
    verb: str = "run",
    tries: int = 3,
) -> SweepRecord:
    """Run a verb for each choice of values, and return the table, which `sweep.json` holds too.

    Args:
      source: a config file, and fields that are set for all tasks.
      folder: of the sweep. A sweep on it goes on; another one is refused.
      axes: the fields that differ.
      engine: that runs the tasks.
      verb: of the command line.
      tries: how often a task is started before it counts as failed.

    Raises:
      InputError: a value or a folder that cannot be, before anything is started.
      Interrupted: a signal came; the tasks are saved.
    """
    if verb not in VERBS:
        raise unknown("verb of a sweep", verb, VERBS)
    path = Path(folder).absolute()
    cells = _cells(source, path, axes, verb)
    lock = LockedFolder(path)
    try:
        _claim(path, axes)
        for cell in cells:
            cell.task.folder.mkdir(exist_ok=True)
            claim(cell.task.folder, jsonable(configs.to_dict(cell.config)))
        return _Sweep(path, axes, cells, engine, verb, tries).run()
    finally:
        lock.close()


def _cells(
    source: tuple[str | Path, Mapping[str, str]], path: Path, axes: Sequence[Axis], verb: str
) -> list[Cell]:
    """The tasks; raises `InputError` for a config that cannot be, with the values that make it."""
    file, fixed = source
    for axis in axes:
        if axis.field in fixed:
            raise InputError(
                f"{axis.field} is set by --config.{axis.field} and is an axis. Leave one out."
            )
    cells = []
    for values in product(axes):
        try:
            config = load_config(file, {**fixed, **values})
        except InputError as error:
            raise InputError(f"{name(values)}: {error}") from None
        workdir = path / name(values)
        task = Task(verb, command(verb, workdir), workdir, Path.cwd())
        cells.append(Cell(values, config, task))
    return cells


def _claim(path: Path, axes: Sequence[Axis]) -> None:
    """Raise `InputError` for a folder of another sweep, or of something else."""
    file = path / records.FILE
    if not file.exists():
        others = sorted(set(os.listdir(path)) - {LockedFolder.NAME})
        if others:
            raise InputError(
                f"the folder {path} holds other files ({', '.join(others[:3])}) and no "
                f"{records.FILE}: choose an empty or a new folder."
            )
        return
    saved = SweepRecord.from_dict(read_json(file), str(file))
    fields = {axis.field for axis in axes}
    if saved.axes.keys() != fields:
        raise InputError(
            f"the folder {path} belongs to a sweep over {', '.join(saved.axes)}, and this one is "
            f"over {', '.join(axis.field for axis in axes)}. Choose another folder."
        )


class _Sweep:
    """The tasks of a sweep, and how each stands."""

    def __init__(
        self,
        path: Path,
        axes: Sequence[Axis],
        cells: Sequence[Cell],
        engine: Engine,
        verb: str,
        tries: int,
    ):
        self.path, self.cells, self.engine, self.verb, self.tries = path, cells, engine, verb, tries
        self.axes = {axis.field: axis.values for axis in axes}
        self.rows: dict[Path, TaskRecord] = {}
        for cell in cells:
            if _ended(cell, verb):
                self._read(cell)
            else:
                row = records.open_task(cell.task.folder, cell.values, cell.config)
                self.rows[cell.task.folder] = row

    def run(self) -> SweepRecord:
        """Run what has not ended yet."""
        self._write()
        to_run = [cell for cell in self.cells if not _ended(cell, self.verb)]
        count, finished = len(self.cells), len(self.cells) - len(to_run)
        say(f"sweep: {count} {tasks_of(count)}, {finished} finished earlier")
        by_task = {cell.task.folder: cell for cell in to_run}

        def ended(task: Task, code: int | None, starts: int) -> None:
            self._end(by_task[task.folder], code, starts)

        try:
            supervise(self.engine, [cell.task for cell in to_run], self.tries, ended)
        except Interrupted:
            # Tasks may have ended while the others saved.
            for cell in to_run:
                self._read(cell)
            self._write()
            raise
        return self._write()

    def _end(self, cell: Cell, code: int | None, starts: int) -> None:
        """Note the end of a task."""
        lost = ""
        if code not in records.STATES:
            line = last_line(cell.task.folder)
            lost = f"exit code {code} in {starts} {tries_of(starts)}: {line}"
        row = self._read(cell, lost)
        count = sum(row.state != "open" for row in self.rows.values())
        say(f"sweep: {count} of {len(self.cells)}: {_sentence(row)}")
        self._write()

    def _read(self, cell: Cell, lost: str = "") -> TaskRecord:
        folder = cell.task.folder
        row = records.of_task(folder, cell.values, cell.config, self.verb, lost)
        self.rows[folder] = row
        return row

    def _write(self) -> SweepRecord:
        record = records.of_sweep(self.verb, self.axes, list(self.rows.values()))
        write_checked_json(self.path / records.FILE, record.to_dict())
        page.write(record, self.path / records.PAGE)
        return record


def _ended(cell: Cell, verb: str) -> bool:
    """Whether a task has a result; one with refused input may have been fixed since."""
    end = ends(cell.task.folder).get(verb)
    return end is not None and int(end["code"]) in (DONE, DIVERGED)


def _sentence(row: TaskRecord) -> str:
    """How a task ended."""
    text = f"{row.name} {row.state}"
    if row.valid is not None:
        text += f", valid {row.metric} {metric.find(row.metric).text(row.valid)}"
    if row.seconds is not None:
        text += f", {duration(row.seconds)}"
    if row.why:
        text += f": {row.why}"
    return text
