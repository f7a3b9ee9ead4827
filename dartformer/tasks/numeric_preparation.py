"""Sequences of numbers: from the rows of their sources to splits, in memory."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dartformer.data.rows import (
    PARTS,
    Labels,
    Tally,
    digest,
    joined,
    without_leaks,
)
from dartformer.data.sequences import Scale, Sequences
from dartformer.data.splits import Split
from dartformer.errors import InputError
from dartformer.machine.printable import one_line
from dartformer.machine.progress import say
from dartformer.tasks.division import (
    SHARED_GROUP,
    Rows,
    division,
    group_digest,
    group_numbers,
    without_shared_groups,
)
from dartformer.tasks.numeric_encoding import NumericEncoding
from dartformer.tasks.preparation import MissingClasses

MOST_VALUES = 2**29
"""Numbers that are held in memory: 2 GiB of float32."""


class NumericRow(NamedTuple):
    """A row of the source.

    Attributes:
      values: the steps, `[T, D]`.
      label: as in the source.
      where: names the row in errors.
      group: rows of one group are in one split; "" for a row on its own.
      fault: what is wrong with its numbers, where the reader knows.
    """

    values: np.ndarray
    label: object
    where: str
    group: str = ""
    fault: str = ""


@dataclass(frozen=True)
class NumericSource:
    """Where the rows of a split come from.

    `rows` starts reading; `identity` changes whenever the rows may have changed."""

    rows: Callable[[], Iterable[NumericRow]]
    identity: Any


class Prepared(NamedTuple):
    """What is made of the data: splits, what was learned, and counts by split."""

    splits: Mapping[str, Split]
    learned: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """The rows of one source that the rules let through.

    `values` `[T, D]` of all rows, one after the other; `starts` and `counts` `[S]` of each; `labels`,
    `groups` and `digests` `[S]`."""

    values: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    digests: np.ndarray
    tally: Tally
    missing: int


def table_of(task: NumericEncoding, name: str, rows: Iterable[NumericRow]) -> Table:
    """All rows of a source; raises `InputError`, with the row, where a rule says "error"."""
    tally = Tally({"bad label": 0, "bad numbers": 0, "with missing numbers": 0})
    reader = Labels(_reading(task), task.labels)
    values, labels, groups, digests = [], [], [], []
    size = missing = 0
    for row in rows:
        label = _checked(task, row, reader, tally)
        if label is None:
            continue
        gaps = int(np.isnan(row.values).sum())
        missing += gaps
        tally.counts["with missing numbers"] += gaps > 0
        values.append(row.values)
        size += row.values.size
        if size > MOST_VALUES:
            raise InputError(
                f"{task.title} {name} has more than {MOST_VALUES:,} numbers, which do not fit in "
                f"memory here. Use fewer rows, or average several steps."
            )
        labels.append(label)
        digests.append(digest(joined([row.values.tobytes()])))
        groups.append(group_digest(row.group))
    if not values:
        raise InputError(
            f"{task.title}: {name} has no rows that can be used ({tally.text() or 'it is empty'})."
        )
    counts = np.array([len(steps) for steps in values])
    return Table(
        np.concatenate(values),
        np.cumsum(counts) - counts,
        counts,
        np.array(labels),
        np.array(groups, np.uint64),
        np.array(digests, np.uint64),
        tally,
        missing,
    )


def _reading(task: NumericEncoding) -> str:
    """How labels are read: those of a forecast are in the numbers, and a row needs none."""
    if task.kind == "forecasting":
        return "language"
    return task.kind


def _checked(task: NumericEncoding, row: NumericRow, reader: Labels, tally: Tally) -> Any:
    """The label of a row, or None for a row that a rule drops."""
    fault, name = row.fault, "bad numbers"
    if not fault and row.values.shape[1] != task.channels:
        fault = f"it has {row.values.shape[1]} channels, and task.channels is {task.channels}"
    if not fault and not np.isfinite(row.values).any():
        fault = "it holds no number"
    if not fault:
        try:
            return reader.read(row.label)
        except (ValueError, TypeError) as error:
            fault, name = str(error).rstrip("."), "bad label"
    tally.counts[name] += 1
    if task.on_bad_label == "error":
        raise InputError(f"{row.where}: {fault}.")
    return None


def by_rows(task: NumericEncoding, tables: Mapping[str, Table]) -> Prepared:
    """Splits in which every row is an example."""
    groups = {name: table.groups for name, table in tables.items()}
    fractions = {"test": task.test_fraction, "valid": task.valid_fraction}
    rows = division(groups, fractions, task.seed)
    rows, shared = without_shared_groups(rows, groups)
    digests = {}
    for part, (source, positions) in rows.items():
        digests[part] = tables[source].digests[positions]
    keep, leaked = without_leaks(digests, task.on_duplicate)
    for part, (source, positions) in rows.items():
        rows[part] = Rows(source, positions[keep[part]])
        if not len(rows[part].positions):
            raise InputError(f"{task.title}: no rows are left for {part}.")
    train = tables["train"]
    chosen = rows["train"].positions
    if task.kind == "classification":
        require_classes(task, train.labels[chosen])
    scale = Scale.of(values_of(train, chosen))
    label_scale = {"mean": 0.0, "scale": 1.0}
    if task.kind == "regression":
        numbers = train.labels[chosen].astype(np.float64)
        # Labels that are all alike have no deviation to divide by.
        label_scale = {"mean": float(numbers.mean()), "scale": float(numbers.std()) or 1.0}
    splits, facts = {}, {}
    for part in PARTS:
        source, positions = rows[part]
        table = tables[source]
        labels = table.labels[positions]
        if task.kind == "regression":
            labels = ((labels - label_scale["mean"]) / label_scale["scale"]).astype(np.float32)
        starts, counts = cropped_spans(task, table, positions)
        members = group_numbers(table.groups[positions])
        splits[part] = Sequences(table.values, starts, counts, labels, scale, task.patches, members)
        odd = {}
        if source == part:
            odd = table.tally.positive()
        if shared[part]:
            odd[SHARED_GROUP] = shared[part]
        facts[part] = facts_of(task, table, positions, odd)
        facts[part]["also in a later split"] = leaked[part]
        report(task, part, facts[part])
    return Prepared(splits, state_of(scale, label_scale), facts)


def require_classes(task: NumericEncoding, present: np.ndarray) -> None:
    """Raise `InputError` for a class that is not among those `present` in train."""
    missing = sorted(set(range(task.classes)).difference(present.tolist()))
    if missing:
        raise MissingClasses(task.title, [task.labels[i] for i in missing])


def values_of(table: Table, positions: np.ndarray) -> np.ndarray:
    """The values of some rows, `[T, D]`."""
    chosen = np.zeros(len(table.starts), bool)
    chosen[positions] = True
    return table.values[np.repeat(chosen, table.counts)]


def cropped_spans(
    task: NumericEncoding, table: Table, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and counts of rows, cropped to what the model reads."""
    starts, counts = table.starts[positions], table.counts[positions]
    most = task.length * task.patch_steps
    surplus = np.maximum(counts - most, 0)
    if task.crop == "tail":
        starts = starts + surplus
    return starts, counts - surplus


def state_of(scale: Scale, label_scale: Mapping[str, float]) -> str:
    """What is learned, as JSON."""
    state = {
        "kind": "numbers",
        "mean": scale.mean.tolist(),
        "deviation": scale.deviation.tolist(),
        "label": dict(label_scale),
    }
    return json.dumps(state, sort_keys=True)


def facts_of(
    task: NumericEncoding, table: Table, positions: np.ndarray, odd: dict[str, int]
) -> dict[str, Any]:
    """What is counted of a split, with the keys that tasks on texts have."""
    counts = table.counts[positions]
    most = task.length * task.patch_steps
    names: dict[str, int] = {}
    if task.kind == "classification":
        classes = np.bincount(table.labels[positions], minlength=task.classes)
        for name, count in zip(task.labels, classes.tolist(), strict=True):
            if count:
                names[name] = count
    return {
        "rows": len(positions),
        "left out or odd": odd,
        "also in a later split": 0,
        "repeated in the source": len(table.digests) - len(np.unique(table.digests)),
        "labels": dict(sorted(names.items())),
        "cropped": int((counts > most).sum()),
        "padded share": round(1 - float(np.minimum(counts, most).mean()) / most, 4),
    }


def report(task: NumericEncoding, part: str, facts: Mapping[str, Any]) -> None:
    """Print a line on a split."""
    phrases = [f"{task.title} {part}: {facts['rows']:,} rows"]
    for name, n in facts["left out or odd"].items():
        phrases.append(f"{n:,} {name}")
    if facts["also in a later split"]:
        action = {"drop": ", dropped", "keep": ", kept"}.get(task.on_duplicate, "")
        phrases.append(f"{facts['also in a later split']:,} also in a later split{action}")
    if facts["cropped"]:
        steps = task.length * task.patch_steps
        phrases.append(f"{facts['cropped']:,} cropped to {steps:,} steps")
    say(one_line(", ".join(phrases)))
