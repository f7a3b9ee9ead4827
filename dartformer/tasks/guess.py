"""A guess at what a user's file holds: its columns, its labels, and options of the task `files`.

What is guessed is tried: the options prepare the data as a run would."""

import contextlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dartformer.data.locations import located
from dartformer.data.plain_text import is_plain_text
from dartformer.data.prepare import Notes
from dartformer.data.records import Record, read, splits
from dartformer.data.rows import PARTS, is_blank, is_damaged, is_missing, repaired
from dartformer.data.sources import pack
from dartformer.errors import InputError, unknown
from dartformer.tasks.base import parts_of
from dartformer.tasks.columns import (
    MOST_CLASSES,
    as_text,
    label_column,
    names_of,
    sampled,
    text_column,
)
from dartformer.tasks.files import KINDS, Files
from dartformer.tasks.guess_language import guess_language
from dartformer.tasks.guess_tokens import add_tokens
from dartformer.tasks.guesses import Guess
from dartformer.tasks.label_counts import (
    MOST_NUMBERS,
    LabelCounts,
    counted,
    is_aligned,
    kind_of,
    learnable,
    numbers_first,
)
from dartformer.tasks.preparation import MissingClasses, Preparation

LISTED_NAMES = 6
"""Class names that a sentence lists."""

SHOWN_CHARACTERS = 160
"""Characters of the decoded row that a sentence repeats."""

MOST_TRIED = 20_000
"""Rows up to which every example is made as a trial; of more rows only the labels and the division
into splits are tried."""


Rows = Callable[[], Iterable[Record]]
"""Starts reading the rows of a split."""


class Trial(NamedTuple):
    """What preparing the data gave: rows of train and of its smaller half, and the fitted task."""

    train: int
    half: int
    task: Files


def guess(
    file: str,
    texts: Sequence[str] = (),
    label: str = "",
    data_dir: str | None = None,
    kind: str = "",
) -> Guess:
    """Guess the options for a file, but for the columns and the kind that the user names.

    Args:
      file: a file or a folder.
      texts: the column of texts, or two that are compared; empty to guess one.
      label: the column of labels; empty to guess it.
      data_dir: the folder for prepared data sets.
      kind: of the labels, one of `KINDS`; empty to guess it.

    Raises:
      InputError: the file cannot be read or prepared, a column does not exist, or no column will
        do.
    """
    if len(texts) > 2:
        raise InputError(
            f"a model reads one text, or compares two; got {len(texts)}: {', '.join(texts)}."
        )
    if kind and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    path = located(file, data_dir)
    if is_plain_text(path):
        return guess_language(file, list(filter(None, (*texts, label))), kind)
    sources = _sources(path)
    rows = sampled(next(iter(sources.values()))())
    if not rows:
        raise InputError(f"{file} has no rows.")
    _require_columns(file, rows, (*texts, label))
    sentences = []
    if not texts:
        name, reason = text_column(rows, label)
        texts = [name]
        sentences.append(f"text column {name!r}: {reason} (--text names another)")
    if not kind and not label and names_of(rows) == list(texts):
        kind = "language"
        sentences.append("there is no other column, so the task is to predict the next character")
    if kind == "language":
        options = {"path": file, "text": texts[0], "kind": kind}
        labels = None
    else:
        if not label:
            label, reason = label_column(rows, texts)
            sentences.append(f"label column {label!r}: {reason} (--label names another)")
        options = {"path": file, "text": texts[0], "label": label}
        labels = _labels(sources, rows, texts, options, kind, path.name)
        sentences += _of_labels(labels, options, file, named=bool(kind))
    if len(texts) == 2:
        options["text2"] = texts[1]
    add_tokens(options, rows, texts, sentences)
    trial = _tried(options, data_dir, sentences, labels)
    missing = [part for part in ("valid", "test") if part not in sources]
    if missing:
        sentences.append(
            f"no split {' and no split '.join(missing)}: a tenth of the rows each, drawn with seed 0"
        )
    sentences.append(_first_row(trial.task, rows, label))
    return Guess(options, trial.train, sentences, trial.half)


def _sources(path: Path) -> dict[str, Rows]:
    """The rows of each split, train first; of a file the whole file is train."""
    names = splits(path)
    if not names:
        return {"train": partial(read, path, "")}
    if "train" not in names:
        raise InputError(f"{path} has no split 'train'; it has {', '.join(names)}.")
    sources: dict[str, Rows] = {}
    for part in PARTS:
        if part in names:
            sources[part] = partial(read, path, part)
    return sources


def _require_columns(file: str, rows: Sequence[Record], names: Iterable[str]) -> None:
    """Raise `InputError` for a column that is not in the file, or that no config can name."""
    columns = names_of(rows)
    for name in filter(None, names):
        if name not in columns:
            raise unknown(f"column of {file}", name, columns)
    for name in columns:
        if is_damaged(name):
            raise InputError(
                f"the column {name!r} of {file} is not valid UTF-8. Save the file as UTF-8, for "
                f"example with `iconv -f latin1 -t utf-8`."
            )


# The labels.


def _labels(
    sources: Mapping[str, Rows],
    rows: Sequence[Record],
    texts: Sequence[str],
    options: dict[str, Any],
    kind: str,
    name: str,
) -> LabelCounts:
    """Count the labels and set `options["kind"]`."""
    if not kind and len(texts) == 1 and is_aligned(rows, texts[0], options["label"]):
        kind = "labelling"
    labels = counted(sources, texts[0], options["label"], kind, name)
    options["kind"] = kind or kind_of(labels)
    return labels


def _of_labels(labels: LabelCounts, options: dict[str, Any], file: str, named: bool) -> list[str]:
    """Set the classes, and what happens to rows without one; what was guessed of them."""
    if options["kind"] == "regression":
        sentences = [_regression(labels, options, file)]
    else:
        sentences = _classes(labels, options, file, named)
    if labels.missing:
        options["on_bad_label"] = "drop"
        sentences.append(
            f"{labels.missing:,} of {labels.rows.total():,} rows have no label and are left out"
        )
    if labels.misaligned:
        options["on_bad_label"] = "drop"
        sentences.append(
            f"{labels.misaligned:,} of {labels.rows.total():,} rows have another number of labels "
            f"than words and are left out"
        )
    return sentences


def _regression(labels: LabelCounts, options: dict[str, Any], file: str) -> str:
    numbers = 0
    for name, n in labels.total().items():
        if _is_finite(name):
            numbers += n
    odd = labels.total().total() - numbers
    if not numbers:
        raise InputError(f"the column {labels.column!r} of {file} holds no numbers to predict.")
    sentence = (
        f"regression: the label is a number with {_count(labels)} different values "
        f"(--kind=classification makes each a class)"
    )
    if odd:
        options["on_bad_label"] = "drop"
        sentence += f"; {odd:,} rows whose label is no number are left out"
    return sentence


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _count(labels: LabelCounts) -> str:
    count = len(labels.total())
    if count > MOST_NUMBERS:
        return f"more than {MOST_NUMBERS:,}"
    return f"{count:,}"


def _classes(labels: LabelCounts, options: dict[str, Any], file: str, named: bool) -> list[str]:
    total = labels.total()
    if len(total) < 2:
        raise InputError(
            f"the column {labels.column!r} of {file} has {len(total)} different values; at least 2 "
            f"are needed. Name another with --label."
        )
    if len(total) > MOST_NUMBERS or (len(total) > MOST_CLASSES and not named):
        raise InputError(
            f"the column {labels.column!r} of {file} has {_count(labels)} different values, too "
            f"many for classes, and they are not numbers. Name the label column with --label."
        )
    classes: list[str] = sorted(total, key=numbers_first)
    rare: dict[str, int] = {}
    # Of words a class may be rare: a row with it holds others too.
    if options["kind"] == "classification":
        classes, rare = learnable(labels)
    if len(classes) < 2:
        raise InputError(
            f"the column {labels.column!r} of {file} has {len(total)} different values in "
            f"{total.total():,} rows: too few rows of each for train, valid and test."
        )
    options["label_names"] = tuple(classes)
    sentences = [_label_sentence(labels, options)]
    if rare:
        options["on_bad_label"] = "drop"
        sentences.append(
            f"classes with too few rows to learn and test them are left out with their rows: "
            f"{_listed(rare)}"
        )
    return sentences


def _label_sentence(labels: LabelCounts, options: Mapping[str, Any]) -> str:
    """What was guessed of the labels."""
    total = labels.total()
    counts = {name: total[name] for name in options["label_names"]}
    start = "classification into"
    if options["kind"] == "labelling":
        start = "a label for each word, of"
    majority = max(counts, key=lambda name: counts[name])
    share = 100 * counts[majority] / sum(counts.values())
    sentence = (
        f"{start} {len(counts)} classes ({_listed(counts)}); always saying {majority!r} is right "
        f"in {share:.0f}%"
    )
    if all(map(_is_finite, counts)) and options["kind"] == "classification":
        sentence += " (--kind=regression predicts numbers instead)"
    return sentence


def _listed(counts: Mapping[str, int]) -> str:
    """ "neg 30, pos 28, ..." """
    phrases = []
    for name, n in list(counts.items())[:LISTED_NAMES]:
        phrases.append(f"{name} {n:,}")
    if len(counts) > LISTED_NAMES:
        phrases.append("...")
    return ", ".join(phrases)


# The trial.


def _tried(
    options: dict[str, Any],
    data_dir: str | None,
    sentences: list[str],
    labels: LabelCounts | None,
) -> Trial:
    """Prepare the data with the options, without the classes that end up outside train."""
    while True:
        try:
            return tried(Files(**options), data_dir)
        except MissingClasses as error:
            names = [name for name in options["label_names"] if name not in error.names]
            if labels is None or len(names) < 2:
                raise
            total = labels.total()
            lost = {name: total[name] for name in error.names}
        options["label_names"] = tuple(names)
        options["on_bad_label"] = "drop"
        sentences.append(
            f"classes without a row in train, when rows are drawn for valid and test and repeated "
            f"ones are left out, are left out: {_listed(lost)}"
        )


def tried(task: Files, data_dir: str | None = None) -> Trial:
    """Prepare the data of a task as a run would, but write nothing.

    Raises `InputError` for what a run would refuse."""
    preparation = Preparation(task, task.sources(data_dir))
    notes: Notes = {}
    # The preparation prints its counts, which a run will print again.
    with contextlib.redirect_stderr(io.StringIO()):
        examples = preparation.run(notes)
        fitted = replace(task, learned=json.dumps(notes["learned"], sort_keys=True))
        train = len(preparation.rows["train"].positions)
        if train > MOST_TRIED:
            return Trial(train, train // 2, fitted)
        loaded = {}
        # Later splits first: an earlier one leaves out what they hold.
        for part in reversed(PARTS):
            rows_of_part = list(examples[part])
            loaded[part] = pack(rows_of_part, len(rows_of_part), task.length, task.token_dtype)
    parts = parts_of(loaded)
    half = min(len(parts["weights"]), len(parts["alphas"]))
    return Trial(len(parts["train"]), half, fitted)


def _first_row(task: Files, rows: Sequence[Record], label: str) -> str:
    """What the model reads of a row, and its label."""
    for row in rows:
        columns = filter(None, (task.text, task.text2))
        texts = [repaired(as_text(row.get(name))) for name in columns]
        value = row.get(label)
        if any(map(is_blank, texts)) or (label and is_missing(value)):
            continue
        decoded = []
        for text in texts:
            ids = task.documents([text], 0)[0].ids
            start = task.decode(ids.tolist())[:SHOWN_CHARACTERS]
            decoded.append(repr(start))
        sentence = f"the first row is read as {' and '.join(decoded)}"
        if label:
            sentence += f", with the label {str(value)[:SHOWN_CHARACTERS]!r}"
        return sentence
    return "no row of the sample has both a text and a label"
