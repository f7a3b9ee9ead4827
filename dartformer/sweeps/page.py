"""The page of a sweep: its tasks, the best first, with links to the reports of all."""

from pathlib import Path
from urllib.parse import quote

from dartformer.machine.workdir import write_text
from dartformer.report import page
from dartformer.report.page import EMPTY, Cell
from dartformer.results import finite
from dartformer.sweeps import axes
from dartformer.sweeps.records import GroupRecord, SweepRecord, TaskRecord
from dartformer.training import metric
from dartformer.training.metric import Metric


def write(record: SweepRecord, file: Path) -> None:
    """The page, to a file; the links in it are to workdirs beside it."""
    labels = axes.labels(list(record.axes))
    groups = []
    for group in record.groups:
        groups.append(_group(group, record))
    tasks = []
    for task in record.tasks:
        link = ""
        if (file.parent / task.name / "report.html").exists():
            link = quote(f"{task.name}/report.html")
        tasks.append((link, _task(task, list(labels))))
    text = page.fill(
        "sweep.html",
        title=f"A sweep over {', '.join(labels.values())}",
        figures={},
        extra={},
        live=False,
        record=record,
        first=headline(record),
        labels=labels,
        title_of_score=_title(record),
        groups=groups,
        tasks=tasks,
        failed=[task for task in record.tasks if task.why],
    )
    write_text(file, text)


def headline(record: SweepRecord) -> str:
    """Which values have the best score on valid, or why none has."""
    counts: dict[str, int] = {}
    for task in record.tasks:
        counts[task.state] = counts.get(task.state, 0) + 1
    ended = len(record.tasks) - counts.get("open", 0)
    progress = f"{ended} of {len(record.tasks)} tasks have ended."
    for state in ("diverged", "refused", "failed"):
        if state in counts:
            progress += f" {state.capitalize()}: {counts[state]}."
    progress += _unscored(record)
    measure = record.measure
    if measure is None:
        return f"{progress} Their metrics differ, so they are not ranked."
    scored = [group for group in record.groups if group.mean is not None and not group.diverged]
    if not scored:
        return progress
    first = scored[0]
    assert first.mean is not None
    score = f"{measure.title} {measure.text(first.mean)} on valid"
    if finite(first.spread):
        assert first.spread is not None
        score += f" (sd {measure.gap(first.spread)} over {first.finished} seeds)"
    return f"{first.name} scores best, {score}. {progress}"


def _unscored(record: SweepRecord) -> str:
    """What to do about tasks that are done and have no score."""
    count = 0
    for task in record.tasks:
        count += task.state == "done" and task.valid is None
    if not count:
        return ""
    return f" Without a score on valid: {count}. --verb=run trains and scores what a task found."


def _title(record: SweepRecord) -> str:
    """The heading of the scores."""
    if record.measure is None:
        return "valid"
    return f"valid {record.measure.title}"


def _group(group: GroupRecord, record: SweepRecord) -> tuple[Cell, ...]:
    """A row of the table of groups: the name, mean, deviation and how many there are."""
    cells = [Cell(group.name, group.name), EMPTY, EMPTY]
    measure = record.measure
    if measure is not None and group.mean is not None:
        cells[1] = _score(measure, group.mean)
        if group.spread is not None and finite(group.spread):
            cells[2] = Cell(measure.gap(group.spread).removesuffix(" points"), group.spread)
    note = f"{group.finished} of {group.tasks}"
    if group.diverged:
        note += f" ({group.diverged} diverged)"
    return (*cells, Cell(note, group.finished))


def _score(measure: Metric, value: float) -> Cell:
    return Cell(measure.text(value), value)


def _task(task: TaskRecord, fields: list[str]) -> tuple[Cell, ...]:
    """A row of the table of tasks."""
    cells = [Cell(task.name, task.name)]
    for field in fields:
        cells.append(Cell(task.values[field], task.values[field]))
    score = EMPTY
    if task.valid is not None:
        score = _score(metric.find(task.metric), task.valid)
    cells += [score, Cell(task.state, task.state), Cell(task.genotype or "", task.genotype or "")]
    spent = EMPTY
    if task.processor_seconds is not None:
        spent = Cell(f"{task.processor_seconds:,.0f}", task.processor_seconds)
    return (*cells, spent)
