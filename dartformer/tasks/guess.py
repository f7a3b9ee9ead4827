"""A guess at what a user's file holds: its columns, its labels, and options of the task `files`.

What is guessed is tried: the options prepare the data as a run would."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dartformer.data.locations import identity, located
from dartformer.data.plain_text import is_plain_text
from dartformer.data.prepare import Notes
from dartformer.data.records import Record, read, splits
from dartformer.data.rows import PARTS, is_blank, is_damaged, is_missing, repaired
from dartformer.data.sources import pack
from dartformer.errors import InputError, unknown
from dartformer.tasks.base import parts_of
from dartformer.tasks.columns import (
    WordColumns,
    as_text,
    label_column,
    names_of,
    quoted,
    sampled,
    text_column,
    text_pair,
    word_columns,
)
from dartformer.tasks.files import KINDS, Files, joined_words, part_of, parts_in_column
from dartformer.tasks.guess_labels import majority_share, of_labels, without_missing_classes
from dartformer.tasks.guess_language import guess_language
from dartformer.tasks.guess_pictures import guess_pictures, is_folder_of_pictures, pixels_column
from dartformer.tasks.guess_pixels import pixel_columns
from dartformer.tasks.guess_series import (
    guess_series,
    layout_of,
    layout_of_files,
    require_texts,
)
from dartformer.tasks.guess_tokens import add_tokens
from dartformer.tasks.guesses import Columns, Guess, Rows
from dartformer.tasks.label_counts import (
    LabelCounts,
    counted,
    is_aligned,
    kind_of,
    several_labels,
)
from dartformer.tasks.numeric_encoding import KINDS as NUMERIC_KINDS
from dartformer.tasks.preparation import Preparation

SHOWN_CHARACTERS = 160
"""Characters of the decoded row that a sentence repeats."""

SERIES = "series"
"""The kind with which a table of pixels is read as a series; what is predicted is guessed."""

MOST_TRIED = 20_000
"""Rows up to which every example is made as a trial; of more rows only the labels and the division
into splits are tried."""


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
    group: str = "",
    split: str = "",
    checkpoint: str = "",
) -> Guess:
    """Guess the options for a file, but for the columns and the kind that the user names.

    Args:
      file: a file or a folder.
      texts: the column of texts, or two that are compared; empty to guess one.
      label: the column of labels; empty to guess it.
      data_dir: the folder for prepared data sets.
      kind: of the labels, one of `KINDS`, or "forecasting"; empty to guess it.
      group: the column of groups, whose rows are all in one split; empty for none.
      split: the column that says which split a row is in; empty for none.
      checkpoint: the folder of an encoder that reads the texts; empty for none.

    Raises:
      InputError: the file cannot be read or prepared, a column does not exist, or no column will
        do.
    """
    if len(texts) > 2:
        raise InputError(
            f"a model reads one text, or compares two; got {len(texts)}: {', '.join(texts)}."
        )
    kinds = dict.fromkeys((*KINDS, *NUMERIC_KINDS, SERIES))
    if kind and kind not in kinds:
        raise unknown("kind", kind, kinds)
    as_series = kind == SERIES
    if as_series:
        kind = ""
    named = Columns(tuple(texts), label, kind, group, split)
    path = located(file, data_dir)
    if is_plain_text(path):
        return guess_language(file, list(filter(None, (*texts, label, group, split))), kind)
    if is_folder_of_pictures(path):
        return guess_pictures(file, path, [], "", named)
    files = layout_of_files(path)
    if files is not None:
        return guess_series(file, path, files, [], named)
    sources = _sources(path)
    if split:
        sources = _sources_by_column(path, split)
    rows = sampled(next(iter(sources.values()))())
    if not rows:
        raise InputError(f"{file} has no rows.")
    _require_columns(file, rows, (*texts, label, group, split))
    words = word_columns(rows)
    if words is not None and not texts and kind in ("", "labelling"):
        return _guess_words(file, path, sources, words, label, data_dir)
    pixels = pixels_column(rows)
    if pixels and not texts:
        return guess_pictures(file, path, rows, pixels, named)
    if not (as_series or texts or group or split) and kind in ("", "classification", "regression"):
        columns = pixel_columns(rows, label)
        if columns is not None:
            return guess_pictures(file, path, rows, columns.first, named, columns)
    layout = layout_of(rows, named)
    if layout is not None:
        return guess_series(file, path, layout, rows, named)
    if as_series:
        raise InputError(
            f"{file} holds no series: its columns are {', '.join(names_of(rows))}. Name the columns "
            f"of its numbers t1, t2, and so on, or leave out --kind={SERIES}."
        )
    require_texts(file, rows, named)
    sentences = []
    pair = text_pair(_without(rows, label, group, split))
    if pair is not None and not texts and kind not in ("labelling", "language"):
        texts = list(pair)
        sentences.append(
            f"two texts to compare, {pair[0]!r} and {pair[1]!r} (--text names one to read alone)"
        )
    if not texts:
        name, reason = text_column(_without(rows, group, split), label)
        texts = [name]
        sentences.append(f"text column {name!r}: {reason} (--text names another)")
    if not kind and not label and names_of(_without(rows, group, split)) == list(texts):
        kind = "language"
        sentences.append("there is no other column, so the task is to predict the next character")
    if kind == "language":
        options: dict[str, Any] = {"path": file, "text": texts[0], "kind": kind}
        labels = None
    else:
        if not label:
            label, reason = label_column(_without(rows, group, split), texts)
            sentences.append(f"label column {label!r}: {reason} (--label names another)")
        options = {"path": file, "text": texts[0], "label": label}
        labels = _labels(sources, rows, texts, options, kind, path.name)
        sentences += of_labels(labels, options, file, named=bool(kind))
    used = (*texts, label, group, split)
    ignored = [name for name in names_of(rows) if name not in used]
    if ignored:
        sentences.append(f"not read: {quoted(ignored)}")
    for option, name in (("group", group), ("split", split)):
        if name:
            options[option] = name
    if len(texts) == 2:
        options["text2"] = texts[1]
    add_tokens(options, rows, texts, sentences, checkpoint)
    trial = without_missing_classes(
        options, sentences, labels, lambda: tried(Files(**options), data_dir)
    )
    missing = [part for part in ("valid", "test") if part not in sources]
    if missing:
        sentences.append(
            f"no split {' and no split '.join(missing)}: a tenth of the rows each, drawn with seed 0"
        )
    sentences.append(_first_row(trial.task, rows, label))
    majority = majority_share(labels, options)
    return Guess(options, trial.train, sentences, trial.half, majority=majority)


def _guess_words(
    file: str,
    path: Path,
    sources: Mapping[str, Rows],
    columns: WordColumns,
    label: str,
    data_dir: str | None,
) -> Guess:
    """Guess the options for a table with a word in each row."""
    joined: dict[str, Rows] = {}
    for part, source in sources.items():
        joined[part] = partial(_sentences, source, columns.sentence, path.name)
    rows = sampled(joined["train"]())
    options: dict[str, Any] = {
        "path": file,
        "text": columns.word,
        "label": label or columns.tag,
        "sentence": columns.sentence,
    }
    sentences = [
        f"a word in each row: the column {columns.word!r}, of the sentences that "
        f"{columns.sentence!r} names (--text names a column of texts)",
        f"label column {options['label']!r} (--label names another)",
    ]
    labels = _labels(joined, rows, [columns.word], options, "labelling", path.name)
    sentences += of_labels(labels, options, file, named=False)
    ignored = [name for name in names_of(rows) if name not in (*columns, options["label"])]
    if ignored:
        sentences.append(f"not read: {quoted(ignored)}")
    add_tokens(options, rows, [columns.word], sentences)
    trial = without_missing_classes(
        options, sentences, labels, lambda: tried(Files(**options), data_dir)
    )
    sentences.append(_first_row(trial.task, rows, options["label"]))
    majority = majority_share(labels, options)
    return Guess(options, trial.train, sentences, trial.half, majority=majority)


def _sentences(source: Rows, sentence: str, name: str) -> Iterator[Record]:
    return joined_words(source(), sentence, name)


def _without(rows: Sequence[Record], *columns: str) -> list[Record]:
    """The rows without some columns."""
    fewer = []
    for row in rows:
        fewer.append({name: value for name, value in row.items() if name not in columns})
    return fewer


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


def _sources_by_column(path: Path, name: str) -> dict[str, Rows]:
    """The rows of each split that a column names."""
    sources: dict[str, Rows] = {}
    for part in parts_in_column(path, name, json.dumps(identity(path))):
        sources[part] = partial(_records_of_part, path, name, part)
    return sources


def _records_of_part(path: Path, name: str, part: str) -> Iterator[Record]:
    for number, record in enumerate(read(path), 1):
        if part_of(record, name, f"{path.name}, row {number}") == part:
            yield record


def _require_columns(file: str, rows: Sequence[Record], names: Iterable[str]) -> None:
    """Raise `InputError` for a column that is not in the file, or that no config can name."""
    columns = names_of(rows)
    for name in filter(None, names):
        if name not in columns:
            several = [part.strip() for part in name.split(",")]
            if len(several) > 1 and set(several) <= set(columns):
                raise several_labels(several)
            raise unknown(f"column of {file}", name, columns)
    for name in columns:
        if is_damaged(name):
            raise InputError(
                f"the column {name!r} of {file} is not valid UTF-8. Save the file as UTF-8, for "
                f"example with `iconv -f latin1 -t utf-8`."
            )


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


# The trial.


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
