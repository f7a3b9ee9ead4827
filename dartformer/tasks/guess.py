"""A guess at what a user's file holds: its columns, its labels, and options of the task `files`."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dartformer.data.locations import located
from dartformer.data.records import Record, read, splits
from dartformer.data.rows import canonical
from dartformer.errors import InputError, unknown

LABEL_NAMES = (
    "label",
    "labels",
    "class",
    "target",
    "category",
    "sentiment",
    "stars",
    "rating",
    "score",
    "y",
)

SAMPLE = 2000
"""Rows that decide the columns and the length; labels are counted in all rows."""

MOST_CLASSES, MOST_NUMBERS = 200, 10_000
FEWEST_NUMBERS = 20
"""Numbers of more different values than this are a quantity. Beyond `MOST_NUMBERS` values they are
no longer counted."""

WORD = re.compile(r"\w+|[^\w\s]+")
"""A word or punctuation, as the tokenizer of words splits a text."""

LISTED_NAMES = 6
"""Class names that a sentence lists."""

LENGTHS = (16, 512)
"""The shortest and the longest `length` that is guessed."""


class Guess(NamedTuple):
    """What a file seems to hold.

    Attributes:
      options: of the task `files`.
      train: how many rows train will have.
      sentences: what was guessed, and why.
    """

    options: dict[str, Any]
    train: int
    sentences: list[str]


class Labels(NamedTuple):
    """The labels of all rows.

    Attributes:
      kind: of `files`: "classification", "regression" or "labelling".
      counts: how often each label occurs.
      rows: how many rows there are.
    """

    kind: str
    counts: Counter[str]
    rows: int


def guess(
    file: str, texts: Sequence[str] = (), label: str = "", data_dir: str | None = None
) -> Guess:
    """Guess the options for a file, but for the columns that the user names.

    Args:
      file: a file or a folder.
      texts: the column of texts, or two that are compared; empty to guess one.
      label: the column of labels; empty to guess it.
      data_dir: the folder for prepared data sets.

    Raises:
      InputError: the file cannot be read, a column does not exist, or no column will do.
    """
    if len(texts) > 2:
        raise InputError(
            f"a model reads one text, or compares two; got {len(texts)}: {', '.join(texts)}."
        )
    path = located(file, data_dir)
    names = splits(path)
    split = _train_split(names)
    rows = list(itertools.islice(read(path, split), SAMPLE))
    if not rows:
        raise InputError(f"{file} has no rows.")
    for name in filter(None, (*texts, label)):
        if name not in rows[0]:
            raise unknown(f"column of {file}", name, rows[0])
    sentences = []
    if not texts:
        texts = [_text_column(rows, label)]
        sentences.append(f"text column {texts[0]!r}: of all columns it has the longest texts")
    if not label:
        label = _label_column(rows, texts)
        sentences.append(f"label column {label!r}: by its name, or because its values are few")
    options: dict[str, Any] = {"path": file, "text": texts[0], "label": label}
    if len(texts) == 2:
        options["text2"] = texts[1]

    labels = _labels(path, split, rows, texts, label)
    _require_classes(labels, label, file)
    options["kind"] = labels.kind
    if labels.kind != "regression":
        # Numbers by value: the classes 1 to 10 must not come as 1, 10, 2.
        options["label_names"] = tuple(sorted(labels.counts, key=_numbers_first))
    sentences.append(_label_sentence(labels, options.get("label_names", ())))

    options["tokens"], lengths = _tokens(rows, texts, labels.kind)
    options["length"] = _length(lengths)
    complete = 100 * float((lengths <= options["length"]).mean())
    sentences.append(
        f"tokens are {options['tokens']}; length {options['length']}, which holds {complete:.0f}% of "
        f"the texts whole"
    )
    missing = _missing_splits(names)
    if missing:
        splits_text = " and no split ".join(missing)
        sentences.append(f"no split {splits_text}: a tenth of the rows each, drawn with seed 0")
    return Guess(options, round(labels.rows * (1 - 0.1 * len(missing))), sentences)


def words(value: object) -> Sequence[object]:
    """A label for each word: a list, or a text of them."""
    if isinstance(value, list):
        return value
    return str(value).split()


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _train_split(names: Sequence[str]) -> str:
    """The split to learn from, of those that a folder has; "" for a file."""
    if "train" in names:
        return "train"
    return next(iter(names), "")


def _missing_splits(names: Sequence[str]) -> list[str]:
    """Which of the splits valid and test a folder lacks."""
    missing = []
    if not {"valid", "validation"} & set(names):
        missing.append("valid")
    if "test" not in names:
        missing.append("test")
    return missing


def _text_column(rows: list[Record], label: str) -> str:
    """The column of texts whose mean length is largest."""
    lengths = {}
    for name in rows[0]:
        if name != label:
            total = 0
            for row in rows:
                value = row.get(name)
                if isinstance(value, str):
                    total += len(value)
            # Over all rows: a column that few rows have is not the one of texts.
            lengths[name] = total / len(rows)
    longest = max(lengths, key=lambda name: lengths[name], default="")
    if not longest or lengths[longest] == 0:
        raise InputError(f"no column holds texts; the columns are {', '.join(rows[0])}.")
    return longest


def _label_column(rows: list[Record], texts: Sequence[str]) -> str:
    """The first column with a label's name, or the one with the fewest values, at least two."""
    columns = [name for name in rows[0] if name not in texts]
    for label_name in LABEL_NAMES:
        for name in columns:
            if name.lower() == label_name:
                return name
    # A column that differs in most rows is an identifier or a text, and no label.
    most = min(MOST_CLASSES, max(2, len(rows) // 2))
    possible = {}
    for name in columns:
        values = {canonical(row.get(name)) for row in rows}
        count = len(values)
        if 1 < count <= most:
            possible[name] = count
    if not possible:
        raise InputError(
            f"no column looks like a label; the columns are {', '.join(rows[0])}. Name one with "
            f"--label."
        )
    return min(possible, key=lambda name: possible[name])


def _labels(path: Path, split: str, rows: list[Record], texts: Sequence[str], label: str) -> Labels:
    """Count the labels of every row, not only of the sample."""
    per_word = len(texts) == 1 and _aligned(rows, texts[0], label)
    counts = Counter[str]()
    total = 0
    for row in read(path, split):
        total += 1
        value = row.get(label)
        if value in (None, "", []):
            continue
        if per_word:
            counts.update(map(canonical, words(value)))
        elif len(counts) <= MOST_NUMBERS:
            counts[canonical(value)] += 1
    kind = "classification"
    if per_word:
        kind = "labelling"
    elif len(counts) > FEWEST_NUMBERS and all(map(is_number, counts)):
        kind = "regression"
    return Labels(kind, counts, total)


def _aligned(rows: list[Record], text: str, label: str) -> bool:
    """Whether every row has as many labels as words, and some have several."""
    several = False
    for row in rows:
        value = row.get(label)
        if value is None:
            value = ""
        count = len(words(row.get(text) or ""))
        if count != len(words(value)):
            return False
        several = several or count > 1
    return several


def _require_classes(labels: Labels, column: str, file: str) -> None:
    """Raise `InputError` where a column has too few or too many values for labels."""
    count = len(labels.counts)
    if count < 2:
        raise InputError(
            f"the column {column!r} of {file} has {count} different values; at least 2 are needed."
        )
    if labels.kind != "regression" and count > MOST_CLASSES:
        raise InputError(
            f"the column {column!r} of {file} has more than {MOST_CLASSES} different values, too "
            f"many for classes, and they are not numbers. Name the label column with --label."
        )


def _label_sentence(labels: Labels, names: Sequence[str]) -> str:
    """What was guessed of the labels."""
    if labels.kind == "regression":
        return f"regression: the label is a number with more than {FEWEST_NUMBERS} different values"
    start = "classification into"
    if labels.kind == "labelling":
        start = "a label for each word, of"
    listed = ", ".join(names[:LISTED_NAMES])
    if len(names) > LISTED_NAMES:
        listed += ", ..."
    majority, count = labels.counts.most_common(1)[0]
    share = 100 * count / labels.counts.total()
    return (
        f"{start} {len(names)} classes ({listed}); always saying {majority!r} is right in "
        f"{share:.0f}%"
    )


def _tokens(rows: list[Record], texts: Sequence[str], kind: str) -> tuple[str, np.ndarray]:
    """The kind of tokens, and the length in such tokens of every text of the sample."""
    by_space, by_word, by_byte = [], [], []
    for row in rows:
        for name in texts:
            text = str(row.get(name) or "")
            by_space.append(len(text.split()))
            by_word.append(len(WORD.findall(text)))
            by_byte.append(len(text.encode("utf-8", "replace")))
    # Labels are for words between spaces, whatever punctuation is in them.
    if kind == "labelling":
        return "words", np.array(by_space)
    if np.median(by_word) >= 3:
        return "words", np.array(by_word)
    # Texts of a word or two are read byte by byte: words alone would say too little of them.
    return "bytes", np.array(by_byte)


def _length(lengths: np.ndarray) -> int:
    """A multiple of 8 that holds 95% of the texts whole, within `LENGTHS`."""
    shortest, longest = LENGTHS
    enough = 8 * math.ceil(int(np.quantile(lengths, 0.95)) / 8)
    return min(longest, max(shortest, enough))


def _numbers_first(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
