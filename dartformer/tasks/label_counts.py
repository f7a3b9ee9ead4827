"""The labels of a user's file: what kind they are, how often each occurs, which can be learned."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dartformer.data.records import Record
from dartformer.data.rows import are_numbers, canonical, is_damaged, is_missing
from dartformer.data.tokens import words
from dartformer.errors import InputError, brief
from dartformer.tasks.columns import MOST_CLASSES, as_text

MOST_NUMBERS = 10_000
"""Different labels beyond this are no longer counted."""

FEWEST_NUMBERS = 20
"""Numbers of more different values than this are a quantity, unless they count from 0 or 1."""

REPEATS = 5
"""Rows of each value, on average, from which on whole numbers may be classes."""

FEWEST_ROWS = 3
"""Rows of a class from which train, valid and test are drawn: one for each."""

NOT_A_NUMBER = ("nan", "na", "n/a", "null", "none")
"""What tables write in place of a missing number."""


@dataclass
class LabelCounts:
    """The labels of all rows.

    Attributes:
      column: their name.
      rows: how many rows each split has.
      counts: how often each label occurs in each split.
      missing: rows without a label.
      misaligned: rows with another number of labels than words.
    """

    column: str
    rows: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    missing: int = 0
    misaligned: int = 0

    def total(self) -> Counter[str]:
        """How often each label occurs."""
        total = Counter[str]()
        for counts in self.counts.values():
            total.update(counts)
        return total


def is_aligned(rows: Sequence[Record], text: str, label: str) -> bool:
    """Whether every row has as many labels as words, and some have several."""
    several = False
    for row in rows:
        value = row.get(label)
        if is_missing(value):
            continue
        count = len(words(as_text(row.get(text))))
        if count != len(labels_of_words(value)):
            return False
        several = several or count > 1
    return several


def labels_of_words(value: object) -> Sequence[Any]:
    """A label for each word: a list, or a text of them."""
    if isinstance(value, list):
        return value
    return words(str(value))


def counted(
    splits: Mapping[str, Callable[[], Iterable[Record]]],
    text: str,
    label: str,
    kind: str,
    source: str,
) -> LabelCounts:
    """Count the labels of every row of every split, not only of the sample.

    Raises `InputError`, with the row, for a label that no config can name."""
    labels = LabelCounts(label)
    for split, rows in splits.items():
        counts = labels.counts.setdefault(split, Counter())
        for number, row in enumerate(rows(), 1):
            labels.rows[split] += 1
            value = row.get(label)
            if is_missing(value):
                labels.missing += 1
                continue
            names = [value]
            if kind == "labelling":
                names = list(labels_of_words(value))
                if len(names) != len(words(as_text(row.get(text)))):
                    labels.misaligned += 1
                    continue
            where = f"{source} {split}".rstrip()
            for name in names:
                _require_plain(name, f"{where}, row {number}")
                if len(counts) <= MOST_NUMBERS:
                    counts[canonical(name)] += 1
    _merge_numbers(labels)
    return labels


def several_labels(names: Sequence[str]) -> InputError:
    """The error for a user who names several columns of labels."""
    return InputError(
        f"a model predicts one label or number for a row, and you named {', '.join(names)}. Use "
        f"--label={names[0]}, and search again for each of the others."
    )


def _require_plain(label: object, where: str) -> None:
    """Raise `InputError` for a label that is a list, an object, or not valid UTF-8."""
    if isinstance(label, list | dict):
        raise InputError(
            f"{where}: its label {brief(label)} is several values. A row has one label, or with "
            f"--kind=labelling one for each word. Put each into a column of its own, name one with "
            f"--label, and search once for each."
        )
    if is_damaged(str(label)):
        raise InputError(
            f"{where}: its label {brief(label)} is not valid UTF-8. Save the file as UTF-8, for "
            f"example with `iconv -f latin1 -t utf-8`."
        )


def _merge_numbers(labels: LabelCounts) -> None:
    """Where all labels are numbers, count "1.0" as 1, and "nan" as missing."""
    numbers = [name for name in labels.total() if name.lower() not in NOT_A_NUMBER]
    if not numbers or not are_numbers(numbers):
        return
    for split, counts in labels.counts.items():
        merged = Counter[str]()
        for name, n in counts.items():
            if name.lower() in NOT_A_NUMBER:
                labels.missing += n
            else:
                merged[canonical(name, numeric=True)] += n
        labels.counts[split] = merged


def kind_of(labels: LabelCounts) -> str:
    """ "classification" or "regression", by the values: quantities rarely repeat."""
    total = labels.total()
    if not total or not are_numbers(total):
        return "classification"
    repeats = total.total() / len(total)
    if len(total) <= FEWEST_NUMBERS:
        # A dozen rows with a dozen numbers are no classes.
        if repeats >= FEWEST_ROWS or len(total) == 2:
            return "classification"
        return "regression"
    values = sorted(map(float, total))
    # From 0 or 1 without a gap, as classes are numbered.
    consecutive = values == [values[0] + i for i in range(len(values))]
    if consecutive and values[0] in (0, 1) and len(values) <= MOST_CLASSES and repeats >= REPEATS:
        return "classification"
    return "regression"


def learnable(labels: LabelCounts) -> tuple[list[str], dict[str, int]]:
    """The classes that can be learned, in order, and the rows of each that cannot.

    A class needs rows in train; where valid and test are drawn from train, one for each."""
    classes, rare = _by_rows(labels)
    if not are_numbers(classes):
        return classes, rare
    names = {name: n for name, n in rare.items() if not are_numbers([name])}
    for counts in labels.counts.values():
        for name in names:
            counts.pop(name, None)
    # Without these names all classes are numbers, of which "1.0" is 1 to training.
    _merge_numbers(labels)
    classes, rare = _by_rows(labels)
    return classes, {**names, **rare}


def _by_rows(labels: LabelCounts) -> tuple[list[str], dict[str, int]]:
    """The classes with enough rows, and the rows of each other one."""
    first = next(iter(labels.counts))
    fewest = FEWEST_ROWS
    if len(labels.counts) == len(("train", "valid", "test")):
        fewest = 1
    total = labels.total()
    classes, rare = [], {}
    # Numbers by value: the classes 1 to 10 must not come as 1, 10, 2.
    for name in sorted(total, key=numbers_first):
        if labels.counts[first][name] >= fewest:
            classes.append(name)
        else:
            rare[name] = total[name]
    return classes, rare


def numbers_first(name: str) -> tuple[int, float, str]:
    """Sorts names of classes: numbers by value, before any other name."""
    if are_numbers([name]):
        return 0, float(name), name
    return 1, 0.0, name
