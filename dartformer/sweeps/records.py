"""The records of a sweep: `sweep.json`, and what is read of each task's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from dartformer import tasks
from dartformer.config import Config
from dartformer.engines.base import DIVERGED, DONE, REFUSED
from dartformer.engines.runner import ends, last_line
from dartformer.machine.record import Record
from dartformer.report.reading import describe
from dartformer.results import Results, finite
from dartformer.stages.layout import Layout
from dartformer.statistics import mean, spread
from dartformer.sweeps.axes import name as name_of
from dartformer.tasks.base import Task
from dartformer.training import metric
from dartformer.training.metric import Metric

FILE, PAGE = "sweep.json", "sweep.html"
"""In the folder of a sweep."""

SCHEMA = 1

SEED = "seed"
"""The axis over which means are taken."""

State = Literal["open", "done", "diverged", "refused", "failed"]

STATES: Mapping[int | None, State] = {
    None: "open",
    DONE: "done",
    DIVERGED: "diverged",
    REFUSED: "refused",
}


@dataclass(frozen=True)
class TaskRecord(Record):
    """One task of a sweep.

    Attributes:
      name: of the task, which is its folder in that of the sweep.
      values: by field, as they were typed.
      state: "open", "done", "diverged", "refused" for its input, or "failed" each time.
      metric: of the score.
      valid: the score on valid; null where there is none.
      genotype: that was found, in short.
      seconds: from start to end.
      processor_seconds: on all cores, imports and compiling included.
      why: it was refused or failed.
    """

    name: str
    values: dict[str, str]
    state: State
    metric: str
    valid: float | None = None
    genotype: str | None = None
    seconds: float | None = None
    processor_seconds: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class GroupRecord(Record):
    """The tasks that differ in nothing but the seed, or one task.

    Attributes:
      name: of the group.
      values: by field.
      tasks: how many it has.
      finished: how many of them have a score.
      diverged: how many of them diverged.
      mean: of the scores on valid; null where there is none.
      spread: sample standard deviation over the seeds; null below two.
      best: the task with the best score.
    """

    name: str
    values: dict[str, str]
    tasks: int
    finished: int
    diverged: int
    mean: float | None
    spread: float | None
    best: str | None


@dataclass(frozen=True)
class SweepRecord(Record):
    """`sweep.json`: the tasks of a sweep, and their means over seeds.

    Attributes:
      verb: that is run.
      axes: values by field.
      metric: of the scores; null where tasks have different ones, which are not ranked.
      groups: the best first.
      tasks: the best first.
      schema: version of this record.
    """

    verb: str
    axes: dict[str, tuple[str, ...]]
    metric: str | None
    groups: tuple[GroupRecord, ...]
    tasks: tuple[TaskRecord, ...]
    schema: int = SCHEMA

    @property
    def measure(self) -> Metric | None:
        """The metric of the scores."""
        if self.metric is None:
            return None
        return metric.find(self.metric)

    @property
    def over_seeds(self) -> bool:
        """Whether groups are more than their tasks."""
        return SEED in self.axes


def open_task(folder: Path, values: Mapping[str, str], config: Config) -> TaskRecord:
    """A task that is still to run."""
    return TaskRecord(folder.name, dict(values), "open", _metric(config))


def of_task(
    folder: Path, values: Mapping[str, str], config: Config, verb: str, lost: str = ""
) -> TaskRecord:
    """What the folder of a task holds.

    Args:
      folder: of the task.
      values: by field.
      config: of the task.
      verb: that is run.
      lost: why it failed each time; empty where it did not.
    """
    end = ends(folder).get(verb)
    record = open_task(folder, values, config)
    if end is not None:
        code = int(end["code"])
        record = replace(
            record,
            state=STATES.get(code, "failed"),
            seconds=end["seconds"],
            processor_seconds=end["processor_seconds"],
        )
    if lost:
        record = replace(record, state="failed")
    if record.state in ("refused", "failed"):
        record = replace(record, why=lost or last_line(folder))
    if record.state == "done":
        record = _scored(record, folder)
    return record


def _metric(config: Config) -> str:
    """The name of the metric that decides."""
    task_type = cast(type[Task], tasks.find(config.task.name))
    return config.metric or task_type.traits.metric


def _scored(record: TaskRecord, folder: Path) -> TaskRecord:
    """With the score on valid: of the trained model, of the race, or of the searched supernet."""
    layout = Layout(folder)
    results = layout.read(Results, layout.results)
    if results is None:
        return record
    valid = None
    if results.valid is not None:
        valid = results.valid.mean
    elif results.race is not None:
        winners = [
            entrant for entrant in results.race.entrants if entrant.name == results.race.winner
        ]
        valid = winners[0].valid
    elif results.diagnostics is not None and results.diagnostics.valid_discrete is not None:
        valid = results.diagnostics.valid_discrete.get(record.metric)
    genotype = None
    if results.genotype is not None:
        genotype = describe(results.genotype.layers)
    if not finite(valid):
        valid = None
    return replace(record, valid=valid, genotype=genotype)


def of_sweep(
    verb: str, axes: Mapping[str, Sequence[str]], tasks: Sequence[TaskRecord]
) -> SweepRecord:
    """The record of tasks, the best first: by the mean over seeds, and by the score alone."""
    metrics = {task.metric for task in tasks}
    named = None
    higher = True
    if len(metrics) == 1:
        (named,) = metrics
        higher = metric.find(named).higher
    groups = _groups(axes, tasks, higher)
    ordered = list(tasks)
    if named is not None:
        groups.sort(key=lambda group: _rank(group.mean, group.diverged, higher))
        ordered.sort(key=lambda task: _rank(task.valid, int(task.state == "diverged"), higher))
    listed = {field: tuple(values) for field, values in axes.items()}
    return SweepRecord(verb, listed, named, tuple(groups), tuple(ordered))


def _rank(score: float | None, diverged: int, higher: bool) -> tuple[int, float]:
    """What rows are sorted by: the score, then what diverged, then what has no score yet."""
    value = score or 0.0
    if higher:
        value = -value
    if diverged:
        return 1, value
    return 2 * int(score is None), value


def _groups(
    axes: Mapping[str, Sequence[str]], tasks: Sequence[TaskRecord], higher: bool
) -> list[GroupRecord]:
    members: dict[str, list[TaskRecord]] = {}
    for task in tasks:
        values = _without_seed(task.values)
        members.setdefault(name_of(values) or "all", []).append(task)
    groups = []
    for group, runs in members.items():
        scores = {run.name: run.valid for run in runs if run.valid is not None}
        best = average = None
        if scores:
            choose = min
            if higher:
                choose = max
            best = choose(scores, key=scores.__getitem__)
            average = mean(list(scores.values()))
        deviation = None
        if len(scores) > 1:
            deviation = spread(list(scores.values()))
        diverged = sum(run.state == "diverged" for run in runs)
        groups.append(
            GroupRecord(
                group,
                _without_seed(runs[0].values),
                len(runs),
                len(scores),
                diverged,
                average,
                deviation,
                best,
            )
        )
    return groups


def _without_seed(values: Mapping[str, str]) -> dict[str, str]:
    rest = dict(values)
    rest.pop(SEED, None)
    return rest
