"""The user's own sequences of numbers and time series, in one of several layouts."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dartformer.data import folders
from dartformer.data.compressed import suffix
from dartformer.data.locations import identity
from dartformer.data.numbers import number, numbers, sequence, trimmed
from dartformer.data.records import READERS, Record, read, splits
from dartformer.data.rows import Labels, canonical
from dartformer.errors import InputError, unknown
from dartformer.tasks.base import Unlabelled
from dartformer.tasks.files import column, part_of, parts_in_column, path_of, places
from dartformer.tasks.numeric import NumericTask, TraitsByKind
from dartformer.tasks.numeric_preparation import NumericRow, NumericSource
from dartformer.tasks.requirements import require_at_least

LAYOUTS = ("lists", "columns", "long", "files")

CROPS = ("head", "tail")

EMPTY = np.zeros((0, 1), np.float32)
"""The steps of a row that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Series(NumericTask):
    """Sequences of numbers of the file or folder `path`: their classes, numbers, or next values.

    Attributes:
      path: a file or a folder.
      valid: a file for validation; empty for the split of that name in `path`, or else a part of train.
      test: a file for test; empty for the split of that name in `path`, or else a part of train.
      kind: "classification" or "regression" of a sequence, or "forecasting" of its next value.
      layout: "lists", a sequence in the cells of a row; "columns", its steps in the columns of a row;
        "long", a step a row; "files", a sequence a file, in a folder for each class.
      values: the columns of the numbers, one for each channel; with "columns" the first and the last
        column of each channel.
      channels_first: a list in a cell has a list for each channel, and not for each step.
      label: the column of labels; of a forecast, the channel that is forecast.
      series: with "long", the column that says which sequence a row belongs to; empty for a single one.
      time: with "long" and "files", the column that orders the steps; empty for the order of the file.
      group: the column of groups, whose sequences are all in one split; empty for none.
      split: the column that says which split a sequence is in; empty for none.
      length: most tokens of a sequence; a longer one is cropped.
      crop: what is kept of a longer sequence: its "head" or its "tail".
      patch: steps of a token.
      horizon: a forecast is of the value this many steps after the last one.
    """

    path: str = ""
    valid: str = ""
    test: str = ""
    kind: str = "classification"
    layout: str = "lists"
    values: tuple[str, ...] = ("values",)
    channels_first: bool = False
    label: str = "label"
    series: str = ""
    time: str = ""
    group: str = ""
    split: str = ""
    length: int = 64
    crop: str = "head"
    patch: int = 1
    horizon: int = 1

    traits: ClassVar[Any] = TraitsByKind(
        summary="Your own sequences of numbers and time series: npz, CSV, JSONL, Parquet, folders",
        paper="none: `dartformer new --data FILE` writes its config",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, length=1, patch=1, horizon=1)
        if self.crop not in CROPS:
            raise unknown("task.crop", self.crop, CROPS)
        if self.layout not in LAYOUTS:
            raise unknown("task.layout", self.layout, LAYOUTS)
        if not self.values or (self.layout == "columns" and len(self.values) % 2):
            raise InputError(
                f"task.values must name columns, with the layout 'columns' the first and the last of "
                f"each channel, got {self.values}."
            )
        if self.layout == "files" and (self.split or self.group):
            raise InputError(
                "task.split and task.group are columns, which a layout of 'files' has none of. Put "
                "the files into folders named train, valid and test."
            )
        if len(Labels(self.kind, self.label_names).numbers) != len(self.label_names):
            raise InputError(f"task.label_names has a name twice: {self.label_names}.")
        if self.kind == "forecasting" and self.layout != "lists" and self.label not in self.values:
            raise InputError(
                f"task.label = {self.label!r} is the channel that is forecast, so it must be one of "
                f"task.values: {', '.join(self.values)}."
            )

    @property
    def title(self) -> str:
        """The data's name."""
        return Path(self.path).name or "series"

    @property
    def patch_steps(self) -> int:
        """Steps of a token."""
        return self.patch

    @property
    def horizon_steps(self) -> int:
        """How many steps after the last one a forecast is of."""
        return self.horizon

    @property
    def target(self) -> int | None:
        """The channel that is forecast."""
        if self.kind != "forecasting":
            return None
        if self.label in self.values and self.layout != "columns":
            return self.values.index(self.label)
        return 0

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, or of the one number."""
        if self.kind != "classification":
            return ("value",)
        return tuple(map(canonical, self.label_names))

    def sources(self, data_dir: str | None) -> dict[str, NumericSource]:
        """Train, and valid and test where there are files, splits or values of `split` for them."""
        path = path_of(self, data_dir)
        if self.split:
            return self._sources_by_column(path)
        sources = {}
        for part, (place, name) in places(self, splits(path), data_dir).items():
            sources[part] = self._source(place, name)
        return sources

    def _source(self, path: Path, split: str) -> NumericSource:
        rows = partial(rows_of, self, path, split)
        return NumericSource(rows, [str(path), split, identity(path)])

    def unlabelled(self, path: Path) -> Iterator[Unlabelled]:
        """The tokens of each sequence of a file or folder; a forecast is of what follows it."""
        for row in rows_of(self, path, "", labelled=False):
            if row.fault:
                raise InputError(f"{row.where}: {row.fault}.")
            try:
                tokens = self.tokens_of(row.values)
            except InputError as error:
                raise InputError(f"{row.where}: {error}") from None
            yield Unlabelled(row.where, tokens)

    def _sources_by_column(self, path: Path) -> dict[str, NumericSource]:
        """The splits that the column `split` names."""
        sources = {}
        version = identity(path)
        for part in parts_in_column(path, self.split, json.dumps(version)):
            rows = partial(rows_of, self, path, "", part)
            sources[part] = NumericSource(rows, [str(path), self.split, part, version])
        return sources


def rows_of(
    task: Series, path: Path, split: str, part: str = "", labelled: bool = True
) -> Iterator[NumericRow]:
    """The sequences of a file or folder, in whatever layout.

    Args:
      task: says what to read.
      path: of the file or folder.
      split: its split; "" for the whole.
      part: of `part` alone, as the column `split` names it, unless it is "".
      labelled: whether the columns of labels and groups must be there.
    """
    if task.layout == "long":
        yield from _long(task, path, split, part, labelled)
        return
    if task.layout == "files":
        yield from _files(task, path, split)
        return
    source = f"{path.name} {split}".rstrip()
    columns = ColumnSpans(task.values)
    for number_of_row, record in enumerate(_records(task, path, split, labelled), 1):
        where = f"{source}, row {number_of_row}"
        if part and part_of(record, task.split, where) != part:
            continue
        fault, values = "", EMPTY
        try:
            if task.layout == "columns":
                values = columns.steps(record, where)
            else:
                values = _cells(task, record, where)
        except (ValueError, TypeError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            fault = str(error).rstrip(".")
        yield _row(task, record, trimmed(values), where, fault)


def _records(task: Series, path: Path, split: str, labelled: bool) -> Iterator[Record]:
    """The rows of a table; without `labelled` those that have no label, too."""
    names: set[str] = set()
    if not labelled:
        names = {task.label, task.group} - {""}
    for record in read(path, split):
        for name in names - record.keys():
            if name not in task.values:
                record[name] = None
        yield record


def _row(
    task: Series, record: Record, values: np.ndarray, where: str, fault: str = ""
) -> NumericRow:
    """A row with what its record says beside the numbers."""
    label = None
    if task.kind != "forecasting":
        label = column(record, task.label, where)
    group = ""
    if task.group:
        group = canonical(column(record, task.group, where))
    return NumericRow(values, label, where, group, fault)


def _cells(task: Series, record: Record, where: str) -> np.ndarray:
    """Steps `[T, D]` from the cells of a row."""
    arrays = []
    for name in task.values:
        array = sequence(column(record, name, where))
        if task.channels_first and array.shape[1] > 1:
            array = array.T
        arrays.append(array)
    if len(arrays) == 1:
        return arrays[0]
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"its channels {', '.join(task.values)} have {min(lengths)} to {max(lengths)} steps"
        )
    return np.concatenate(arrays, 1)


class ColumnSpans:
    """The columns from the first to the last of each channel, in the order of the file."""

    def __init__(self, ends: Sequence[str]):
        self.ends = ends
        self.spans: list[list[str]] = []

    def steps(self, record: Record, where: str) -> np.ndarray:
        """Steps `[T, D]` from the columns of a row."""
        if not self.spans:
            self._find(record, where)
        channels = []
        for names in self.spans:
            channels.append(numbers(column(record, name, where) for name in names))
        lengths = [len(channel) for channel in channels]
        if len(set(lengths)) > 1:
            raise ValueError(f"its channels have {min(lengths)} to {max(lengths)} columns")
        return np.stack(channels, 1)

    def _find(self, record: Record, where: str) -> None:
        """Find the columns in the first row."""
        names = list(record)
        for first, last in zip(self.ends[::2], self.ends[1::2], strict=True):
            column(record, first, where)
            column(record, last, where)
            self.spans.append(names[names.index(first) : names.index(last) + 1])


# A step a row.


def _long(task: Series, path: Path, split: str, part: str, labelled: bool) -> Iterator[NumericRow]:
    """The sequences of a table with a step in each row."""
    source = f"{path.name} {split}".rstrip()
    records: dict[str, list[Record]] = {}
    keep = dict.fromkeys(
        filter(None, (*task.values, task.label, task.series, task.time, task.group))
    )
    if task.kind == "forecasting":
        keep.pop(task.label if task.label not in task.values else "", None)
    for number_of_row, record in enumerate(_records(task, path, split, labelled), 1):
        where = f"{source}, row {number_of_row}"
        if part and part_of(record, task.split, where) != part:
            continue
        name = ""
        if task.series:
            name = canonical(column(record, task.series, where))
        step = {kept: column(record, kept, where) for kept in keep}
        records.setdefault(name, []).append(step)
    for name, steps in records.items():
        where = f"{source}, the sequence {name}".removesuffix(" ")
        if not name:
            where = source
        yield _of_steps(task, steps, where)


def _of_steps(task: Series, steps: list[Record], where: str) -> NumericRow:
    """A sequence from the records of its steps."""
    steps = in_time(task, steps, where)
    fault, values = "", EMPTY
    try:
        channels = []
        for name in task.values:
            channels.append(numbers(column(step, name, where) for step in steps))
        values = np.stack(channels, 1)
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        fault = str(error).rstrip(".")
    for name in filter(None, (task.group, _label_of_sequence(task))):
        distinct = {canonical(step.get(name)) for step in steps}
        if len(distinct) > 1:
            raise InputError(
                f"{where}: the column {name!r} has {len(distinct)} different values in its steps. "
                f"It must have one for a sequence."
            )
    return _row(task, steps[0], values, where, fault)


def _label_of_sequence(task: Series) -> str:
    if task.kind == "forecasting" or task.layout == "files":
        return ""
    return task.label


def in_time(task: Series, steps: list[Record], where: str) -> list[Record]:
    """The steps in the order of their times: numbers, or dates that begin with the year."""
    if not task.time:
        return steps
    times: list[Any] = [step.get(task.time) for step in steps]
    try:
        times = [number(time) for time in times]
    except ValueError:
        # Dates such as 2024-01-31 12:00 are in order as texts; others stay as in the file.
        if not all(is_sortable_date(str(time)) for time in times):
            return steps
        times = list(map(str, times))
    if len(set(times)) < len(times):
        raise InputError(
            f"{where}: two steps have one time in the column {task.time!r}. Keep one of them, or "
            f"name the column that tells sequences apart (task.series)."
        )
    order = sorted(range(len(steps)), key=times.__getitem__)
    return [steps[i] for i in order]


def is_sortable_date(text: str) -> bool:
    """Whether a text is a date that begins with the year, as 2024-01-31 does."""
    return len(text) >= 7 and text[:4].isdigit() and text[4] in "-/." and text[5].isdigit()


# A sequence a file.


def _files(task: Series, path: Path, split: str) -> Iterator[NumericRow]:
    """The sequences of a folder: those of a folder for each class, or of files alone."""
    for name, file in sequence_files(path, split):
        where = f"{path.name}/{file.relative_to(path)}"
        steps = list(read(file))
        if not steps:
            raise InputError(f"{where} has no rows.")
        for step in steps:
            if task.label not in task.values:
                step[task.label] = name
        yield _of_steps(task, steps, where)


def sequence_files(path: Path, split: str) -> Iterator[tuple[str, Path]]:
    """The files of a folder that can be read, each with the folder that it is in."""
    for place in _places(path, split):
        for entry in folders.entries(place):
            if entry.is_dir():
                for file in folders.entries(entry):
                    if suffix(file) in READERS:
                        yield entry.name, file
            elif suffix(entry) in READERS:
                yield place.name, entry


def _places(path: Path, split: str) -> list[Path]:
    """The folder of a split."""
    if not split:
        return [path]
    return folders.split_files(path, READERS)[folders.split_of(split)]
