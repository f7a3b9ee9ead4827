"""A guess at sequences of numbers: their layout, and options of the task `series`."""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dartformer.data import folders
from dartformer.data.compressed import suffix
from dartformer.data.numbers import is_number, is_sequence, number, sequence
from dartformer.data.records import Record, read
from dartformer.data.rows import canonical, is_missing
from dartformer.data.tfds import is_tfds
from dartformer.errors import InputError
from dartformer.tasks.base import parts_of
from dartformer.tasks.columns import (
    LABEL_NAMES,
    MOST_CLASSES,
    TEXT_NAMES,
    as_text,
    has_decimal_commas,
    is_date,
    is_finite,
    is_numeric,
    label_column,
    names_of,
    quoted,
    sampled,
)
from dartformer.tasks.guess_labels import majority_share, of_labels, without_missing_classes
from dartformer.tasks.guesses import Columns, Guess
from dartformer.tasks.label_counts import LabelCounts, counted, kind_of
from dartformer.tasks.series import Series

FEWEST_STEPS = 8
"""Numbered columns from which on they are steps of a sequence."""

FEWEST_COLUMNS = 16
"""Columns without names from which on they may be steps of a sequence."""

SMOOTH = 0.6
"""Below this, steps that follow one another differ so much less than any two that they have an
order."""

MOST_TOKENS = 64
"""Tokens of a sequence: longer ones are cut into patches."""

MOST_CONTEXT = 96
"""Steps before a forecast, at most."""

EXAMINED = 100
"""Rows whose cells are read as sequences, to see whether they are."""

LONG_TEXT = 40
"""Characters from which on a mean value is a text, and no name."""

VALUE_NAMES = ("x", "values", "value", "sequence", "series", "signal", "data", "features", "input")
"""Names of columns of sequences, the surest first."""

TIME_NAMES = (
    "time",
    "timestamp",
    "datetime",
    "date",
    "ds",
    "step",
    "t",
    "month",
    "week",
    "day",
    "hour",
    "year",
    "index",
    "time_idx",
)
"""Names of columns that order the steps."""

SERIES_NAMES = (
    "unique_id",
    "series_id",
    "series",
    "id",
    "sequence_id",
    "sequence",
    "case",
    "sample",
    "subject",
    "trial",
    "instance",
    "item_id",
    "name",
)
"""Names of columns that say which sequence a row belongs to."""

TARGET_NAMES = ("ot", "value", "target", "y", "close", "price", "sales", "demand", "load")
"""Names of channels to forecast, the surest first."""

NUMBERED = re.compile(r"(.*?)(\d+)")

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".npz", ".npy", ".arrow")
"""Suffixes of files that may hold a sequence each."""


class Layout(NamedTuple):
    """How the numbers lie in the data.

    Attributes:
      options: of the task, as far as the layout decides them.
      sentence: what was seen.
      columns: all that are read beside the label.
    """

    options: dict[str, Any]
    sentence: str
    columns: list[str]


# The layout.


def layout_of(rows: Sequence[Record], named: Columns) -> Layout | None:
    """The layout of a table of sequences of numbers; None where it holds texts or no order."""
    names = [name for name in names_of(rows) if name not in named[1:]]
    if named.texts:
        names = list(named.texts)
    elif named.kind in ("labelling", "language") or holds_texts(rows, names):
        return None
    long = _long(rows, named)
    # Columns c1, c2, ... beside a series and its times are what is measured, and no steps.
    if long is not None and long.options["series"] and long.options["time"]:
        return long
    return _lists(rows, names) or _steps_in_columns(rows, names, named) or long


def holds_texts(rows: Sequence[Record], names: Sequence[str]) -> bool:
    """Whether a column holds texts that a reader would call so, and neither numbers nor names."""
    for name in names:
        values = [row.get(name) for row in rows]
        texts = [as_text(value) for value in values if as_text(value).strip()]
        if len(texts) < len(rows) / 2 or is_numeric(rows, name) or is_date(rows, name):
            continue
        if all(is_sequence(value) for value in values[:EXAMINED]):
            continue
        spaced = sum(" " in text.strip() for text in texts) > len(texts) / 2
        length = sum(map(len, texts)) / len(texts)
        if name.lower() in TEXT_NAMES or (spaced and length > LONG_TEXT):
            return True
    return False


def _lists(rows: Sequence[Record], names: Sequence[str]) -> Layout | None:
    """A sequence in a cell."""
    sample = rows[:EXAMINED]
    candidates = []
    for name in names:
        present = [row[name] for row in sample if not is_missing(row.get(name))]
        if present and all(map(is_sequence, present)) and not has_decimal_commas(sample, name):
            candidates.append(name)
    if not candidates:
        return None
    by_name = [name for common in VALUE_NAMES for name in candidates if name.lower() == common]
    channels = candidates
    if by_name:
        channels = by_name[:1]
    elif not _are_channels(sample, candidates):
        longest = max(candidates, key=lambda name: len(sequence(sample[0][name])))
        channels = [longest]
    first = sequence(sample[0][channels[0]])
    options: dict[str, Any] = {"layout": "lists", "values": tuple(channels)}
    sentence = f"sequences of numbers in the column {quoted(channels)} (--text names another)"
    if first.shape[1] > 1:
        steps, width = first.shape
        if steps == 1 or (steps <= 12 and 4 * steps <= width):
            options["channels_first"] = True
            steps, width = width, steps
        sentence += (
            f"; the first is read as {steps} steps of {width} numbers (task.channels_first = "
            f"{not options.get('channels_first', False)} reads the other way)"
        )
    return Layout(options, sentence, channels)


def _are_channels(rows: Sequence[Record], names: Sequence[str]) -> bool:
    """Whether the columns have lists of one length, and one number a step, in every row."""
    for row in rows:
        shapes = set()
        for name in names:
            if is_missing(row.get(name)):
                return False
            shapes.add(sequence(row[name]).shape)
        if len(shapes) > 1 or next(iter(shapes))[1] > 1:
            return False
    return True


def _steps_in_columns(
    rows: Sequence[Record], names: Sequence[str], named: Columns
) -> Layout | None:
    """Steps in columns that are numbered, or that have no names and change smoothly."""
    # Short rows leave the last columns empty, in a sample all of them.
    numeric = [name for name in names if is_numeric(rows, name) or _is_empty(rows, name)]
    spans = _numbered_spans(names, set(numeric))
    spans = [span for span in spans if len(span) >= FEWEST_STEPS]
    if not spans:
        return None
    unnamed = spans[0][0].startswith("column")
    if unnamed:
        span = _without_label(rows, spans[0], names)
        if len(span) < FEWEST_COLUMNS or not is_smooth(rows, span):
            return None
        spans = [span]
    longest = max(map(len, spans))
    # Spans of one length are channels; of others the longest alone is a sequence.
    spans = [span for span in spans if len(span) == longest]
    ends: list[str] = []
    columns: list[str] = []
    for span in spans:
        ends += [span[0], span[-1]]
        columns += span
    sentence = f"sequences of {longest} numbers in the columns {ends[0]!r} to {ends[1]!r}"
    if len(spans) > 1:
        sentence = f"sequences of {longest} steps of {len(spans)} channels, in the columns "
        sentence += ", ".join(f"{span[0]!r} to {span[-1]!r}" for span in spans)
    return Layout({"layout": "columns", "values": tuple(ends)}, sentence, columns)


def _is_empty(rows: Sequence[Record], name: str) -> bool:
    return all(is_missing(row.get(name)) for row in rows)


def _numbered_spans(names: Sequence[str], numeric: set[str]) -> list[list[str]]:
    """Runs of columns of numbers whose names count up: t1, t2, ..., or 400.0, 402.0, ..."""
    spans: list[list[str]] = [[]]
    before: tuple[str, float] | None = None
    for name in names:
        place = _place_in_order(name)
        if place is None or name not in numeric:
            before = None
            continue
        follows = before is not None and before[0] == place[0] and before[1] < place[1]
        if follows and place[0] and before is not None:
            follows = place[1] == before[1] + 1
        if not follows:
            spans.append([])
        spans[-1].append(name)
        before = place
    return [span for span in spans if span]


def _place_in_order(name: str) -> tuple[str, float] | None:
    """The prefix of a numbered name and its number."""
    if is_number(name) and name.strip():
        return "", number(name)
    match = NUMBERED.fullmatch(name.strip())
    if match:
        return match[1], float(match[2])
    return None


def _without_label(rows: Sequence[Record], span: list[str], names: Sequence[str]) -> list[str]:
    """Columns without names, less the first or the last of them if it looks like a class."""
    if len(span) < len(names):
        return span  # the label is no number
    for place, rest in ((0, span[1:]), (-1, span[:-1])):
        values = [canonical(row[span[place]]) for row in rows]
        distinct = set(values)
        whole = all(is_finite(value) and number(value).is_integer() for value in distinct)
        if whole and 1 < len(distinct) <= min(MOST_CLASSES, len(rows) // 2):
            return rest
    return span


def is_smooth(rows: Sequence[Record], names: Sequence[str]) -> bool:
    """Whether values that follow one another are closer than any two of a row."""
    values = []
    for row in rows[:1000]:
        cells = [row.get(name) for name in names]
        values.append([number(cell) if is_number(cell) else math.nan for cell in cells])
    matrix = np.array(values)
    # By column: columns of different units differ, but do not change smoothly.
    following = np.nanmean((matrix[:, 1:] - matrix[:, :-1]) ** 2)
    order = np.random.default_rng(0).permutation(len(names))
    shuffled = matrix[:, order]
    any_two = np.nanmean((shuffled[:, 1:] - shuffled[:, :-1]) ** 2)
    return bool(following < SMOOTH * any_two)


def _long(rows: Sequence[Record], named: Columns) -> Layout | None:
    """A step a row."""
    names = [name for name in names_of(rows) if name not in (named.group, named.split)]
    time = _time_column(rows, names)
    series = _series_column(rows, names, time, named.label)
    if not time and not series:
        return None
    values = []
    for name in names:
        label = name == named.label and named.kind != "forecasting"
        if name not in (time, series) and not label and is_numeric(rows, name):
            values.append(name)
    if named.texts:
        values = list(named.texts)
    if not values:
        return None
    options = {"layout": "long", "values": tuple(values), "series": series, "time": time}
    sentence = f"a step in each row, with the numbers {quoted(values)}"
    if series:
        sentence += f", of the sequences that {series!r} names"
    if time:
        sentence += f", in the order of {time!r}"
    return Layout(options, sentence, [*values, *filter(None, (time, series))])


def _time_column(rows: Sequence[Record], names: Sequence[str]) -> str:
    for common in TIME_NAMES:
        for name in names:
            if name.lower() == common and (is_numeric(rows, name) or is_date(rows, name)):
                return name
    for name in names:
        if is_date(rows, name) and not is_numeric(rows, name):
            return name
    return ""


def _series_column(rows: Sequence[Record], names: Sequence[str], time: str, label: str) -> str:
    """The column that tells sequences apart: by its name, or because times occur again."""
    candidates = [name for name in names if name not in (time, label)]
    for common in SERIES_NAMES:
        for name in candidates:
            if name.lower() != common:
                continue
            if time and _distinct(rows, [name]) < len(rows):
                return name
            if not time and _repeats(rows, name):
                return name
    if not time or _distinct(rows, [time]) == len(rows):
        return ""
    whole = [name for name in candidates if not is_numeric(rows, name) or _is_whole(rows, name)]
    for name in sorted(whole, key=lambda name: _distinct(rows, [name])):
        if _distinct(rows, [name, time]) == len(rows):
            return name
    return ""


def _distinct(rows: Sequence[Record], names: Sequence[str]) -> int:
    present = [name for name in names if name]
    return len({tuple(str(row.get(name)) for name in present) for row in rows})


def _repeats(rows: Sequence[Record], name: str) -> bool:
    """Whether the same values stand in rows that follow one another, as those of a sequence do."""
    values = [str(row.get(name)) for row in rows]
    same = sum(a == b for a, b in pairwise(values))
    return same > len(values) / 3 and len(set(values)) > 1


def _is_whole(rows: Sequence[Record], name: str) -> bool:
    return all(not is_finite(row.get(name)) or number(row[name]).is_integer() for row in rows)


def layout_of_files(path: Path) -> Layout | None:
    """The layout of a folder with a sequence of numbers in each of its files; None for another."""
    files = _files_of(path)
    if len(files) < 2:
        return None
    rows = sampled(read(files[0].path))
    if not rows or holds_texts(rows, names_of(rows)):
        return None
    layout = _long(rows, Columns())
    by_class = any(file.by_class for file in files)
    if not by_class and layout is None:
        return None  # files of one table, with a label in every row, are no sequences
    names = names_of(rows)
    time = _time_column(rows, names)
    values = [name for name in names if name != time and is_numeric(rows, name)]
    if not values:
        return None
    options = {"layout": "files", "values": tuple(values), "time": time}
    sentence = f"a sequence of numbers in each of {len(files):,} files, in {quoted(values)}"
    if time:
        sentence += f", in the order of {time!r}"
    if by_class:
        options["label"] = _free_name("label", names)
        sentence += "; its folder is its class"
    return Layout(options, sentence, [*values, *filter(None, (time,))])


class SeriesFile(NamedTuple):
    """A file, and whether its folder may be its class."""

    path: Path
    by_class: bool


def _files_of(path: Path) -> list[SeriesFile]:
    """The files of a folder that may hold a sequence each."""
    if not path.is_dir() or folders.saved_files(path) or is_tfds(path):
        return []
    places = [path]
    parts = folders.split_files(path, TABLES)
    if "train" in parts:
        places = parts["train"]
    files = []
    for place in places:
        if not place.is_dir():
            return []
        for entry in folders.entries(place):
            if entry.is_dir():
                for file in folders.entries(entry):
                    if suffix(file) in TABLES:
                        files.append(SeriesFile(file, True))
            elif suffix(entry) in TABLES:
                files.append(SeriesFile(entry, False))
    return files


def _free_name(name: str, names: Sequence[str]) -> str:
    """The name, with a mark where a column has it."""
    while name in names:
        name = f"{name}_"
    return name


def require_texts(file: str, rows: Sequence[Record], named: Columns) -> None:
    """Raise `InputError` for a table of numbers that have no order, or of no forecast."""
    names = names_of(rows)
    numeric = [name for name in names if is_numeric(rows, name)]
    for name in names:
        if name not in named.texts and has_decimal_commas(rows, name):
            raise InputError(
                f"the column {name!r} of {file} writes numbers with a decimal comma. Write them with "
                f"a point."
            )
    if named.kind == "forecasting":
        raise InputError(
            f"{file} has no series to forecast. Its rows need numbers and a column of times, or a "
            f"sequence of numbers each; its columns are {', '.join(names)}."
        )
    for name in named.texts:
        if name in numeric:
            raise InputError(
                f"the column {name!r} of {file} holds numbers and no texts. Name a column of texts."
            )
    if named.texts or not numeric or len(numeric) < len(names) - len(_classes(rows, names)):
        return
    raise InputError(
        f"{file} is a table of numbers ({quoted(numeric)}), and this program reads sequences. For "
        f"such a table use gradient boosting, for example scikit-learn's. If its columns are the "
        f"steps of a sequence, at least {FEWEST_STEPS}, name them t1, t2, and so on. If its rows are, "
        f"add a column named time."
    )


def _classes(rows: Sequence[Record], names: Sequence[str]) -> list[str]:
    """The columns of single words, few of which differ, and of dates."""
    classes = []
    for name in names:
        values = [canonical(row[name]) for row in rows if not is_missing(row.get(name))]
        single = not any(" " in value for value in values)
        few = len(set(values)) <= min(MOST_CLASSES, len(values) // 5)
        if not is_numeric(rows, name) and ((single and few) or is_date(rows, name)):
            classes.append(name)
    return classes


# The options.


def guess_series(
    file: str, path: Path, layout: Layout, rows: Sequence[Record], named: Columns
) -> Guess:
    """Guess the options for sequences of numbers in a layout."""
    options: dict[str, Any] = {"path": file, **layout.options}
    sentences = [layout.sentence]
    for option in ("group", "split"):
        if getattr(named, option):
            options[option] = getattr(named, option)
    _add_label(options, sentences, layout, rows, named)
    used = {*layout.columns, *options["values"], options["label"], named.group, named.split}
    ignored = [name for name in names_of(rows) if name not in used]
    if ignored:
        sentences.append(f"not read: {quoted(ignored)}")
    task = Series(**options, channels=1)
    lengths, channels = _measured(task)
    options["channels"] = channels
    _add_length(options, sentences, lengths)
    labels = None
    if options["kind"] != "forecasting":
        labels = _counted(task, path)
        if not named.kind:
            options["kind"] = kind_of(labels)
        sentences += of_labels(labels, options, file, named=bool(named.kind))
    return _trial(options, sentences, labels)


def _add_label(
    options: dict[str, Any],
    sentences: list[str],
    layout: Layout,
    rows: Sequence[Record],
    named: Columns,
) -> None:
    """Set the kind, as far as it is not that of the labels, and the column of labels."""
    options["kind"] = named.kind or "classification"
    values = list(options["values"])
    if "label" in options and named.kind != "forecasting":
        return  # the folder of a file
    if named.label and named.kind != "forecasting":
        options["label"] = named.label
        return
    label = ""
    if named.kind != "forecasting":
        label = _label_of(layout, rows, named)
    if label:
        options["label"] = label
        # A label that is a number is no channel.
        if options["layout"] == "long":
            options["values"] = tuple(name for name in values if name != label)
        sentences.append(f"label column {label!r} (--label names another)")
        return
    options["kind"] = "forecasting"
    target = named.label
    if not target:
        target = values[0]
        if options["layout"] != "columns":
            target = _target(layout, rows)
    options["label"] = target
    if options["layout"] == "columns":
        sentences.append(
            "the task is to forecast the next value of each sequence (--label names a "
            "column of labels)"
        )
        return
    sentences.append(
        f"the task is to forecast the next value of {target!r} (--label names another column)"
    )


def _target(layout: Layout, rows: Sequence[Record]) -> str:
    """The channel to forecast: one with a target's name, or else the last that changes."""
    values = layout.options["values"]
    constant = _constant(layout, rows)
    # What is the same in all steps of a sequence leaves nothing to forecast.
    changing = [name for name in values if name not in constant] or list(values)
    for common in TARGET_NAMES:
        for name in changing:
            if name.lower() == common:
                return name
    return changing[-1]


def _label_of(layout: Layout, rows: Sequence[Record], named: Columns) -> str:
    """The column of labels, or "" where there is none."""
    values = layout.options["values"]
    if layout.options["layout"] in ("long", "files"):
        return _label_of_sequences(layout, rows)
    columns = [name for name in names_of(rows) if name not in layout.columns]
    columns = [name for name in columns if name not in (named.group, named.split)]
    if not columns:
        return ""
    narrow = [{name: row.get(name) for name in columns} for row in rows]
    try:
        return label_column(narrow, values)[0]
    except InputError:
        # Names alone, which differ in every row: nothing is said of the sequences.
        if not named.kind:
            return ""
        return columns[0]


def _label_of_sequences(layout: Layout, rows: Sequence[Record]) -> str:
    """A column that is the same in all steps of a sequence, and not in all sequences.

    One with a label's name or of no numbers, or else the only one there is.
    """
    if not layout.options.get("series"):
        return ""
    values = layout.options["values"]
    constant = []
    for name in _constant(layout, rows):
        if _distinct(rows, [name]) > 1 and not is_date(rows, name):
            constant.append(name)
    for name in constant:
        if name.lower() in LABEL_NAMES or name not in values:
            return name
    # Sequences of one step each would make every column constant.
    if len(constant) == 1 and _distinct(rows, [layout.options["series"]]) < len(rows):
        return constant[0]
    return ""


def _constant(layout: Layout, rows: Sequence[Record]) -> list[str]:
    """The columns that are the same in all steps of a sequence."""
    series = layout.options.get("series")
    keys = []
    if series:
        keys.append(series)
    sequences = max(1, _distinct(rows, keys))
    names = [name for name in names_of(rows) if name not in (series, layout.options.get("time"))]
    return [name for name in names if _distinct(rows, [*keys, name]) == sequences]


def _measured(task: Series) -> tuple[np.ndarray, int]:
    """Steps of every sequence of train, and the channels of the first that can be read."""
    lengths, channels = [], 0
    for row in task.sources(None)["train"].rows():
        if not row.fault and len(row.values):
            lengths.append(len(row.values))
            channels = channels or row.values.shape[1]
        elif row.fault and not channels:
            raise InputError(f"{row.where}: {row.fault}.")
    if max(lengths, default=0) < 2:
        raise InputError(
            f"{task.title} holds no sequence of more than one step. Name the columns of its numbers "
            f"with --text, and that of its labels with --label."
        )
    return np.array(lengths), channels


def _add_length(options: dict[str, Any], sentences: list[str], lengths: np.ndarray) -> None:
    """Set how steps become tokens."""
    steps = int(lengths.max())
    if options["kind"] == "forecasting":
        steps = min(MOST_CONTEXT, max(2, int(np.median(lengths)) // 4))
    patch = math.ceil(steps / MOST_TOKENS)
    options["patch"] = patch
    options["length"] = math.ceil(steps / patch)
    span = f"{lengths.min():,} to {lengths.max():,} steps"
    if lengths.min() == lengths.max():
        span = f"{lengths.max():,} steps"
    elif options["kind"] != "forecasting":
        span += ", and shorter ones are padded and masked"
    tokens = f"a token is {patch} steps" if patch > 1 else "a token is a step"
    plural = "s" * (len(lengths) > 1)
    sentence = f"{len(lengths):,} sequence{plural} of {span}; {tokens}, and the model reads up to "
    sentences.append(f"{sentence}{options['length']} tokens")


def _counted(task: Series, path: Path) -> LabelCounts:
    """The labels of every sequence of every split."""

    def records(part: str) -> Iterator[Record]:
        for row in task.sources(None)[part].rows():
            yield {task.label: row.label}

    rows = {part: partial(records, part) for part in task.sources(None)}
    return counted(rows, "", task.label, "", path.name)


def _trial(options: dict[str, Any], sentences: list[str], labels: LabelCounts | None) -> Guess:
    """Prepare the data as a run would."""

    def attempt() -> Mapping[str, Any]:
        # The preparation prints its counts, which a run will print again.
        with contextlib.redirect_stderr(io.StringIO()):
            return parts_of(Series(**options).load())

    parts = without_missing_classes(options, sentences, labels, attempt)
    task = Series(**options)
    missing = [part for part in ("valid", "test") if part not in task.sources(None)]
    if missing and options["kind"] == "forecasting":
        sentences.append(
            f"no split {' and no split '.join(missing)}: the last tenth of each series, in time"
        )
    elif missing:
        sentences.append(
            f"no split {' and no split '.join(missing)}: a tenth of the rows each, drawn with seed 0"
        )
    half = min(len(parts["weights"]), len(parts["alphas"]))
    majority = majority_share(labels, options)
    return Guess(options, len(parts["train"]), sentences, half, "series", majority)
