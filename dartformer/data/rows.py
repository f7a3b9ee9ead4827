"""Rules for the rows of real data: what is wrong with them is counted and reported.

Rows are checked while a data set is prepared, so that no bad row ends a training half-way."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dartformer.data import tokens
from dartformer.errors import InputError, brief, unknown

ALLOWED = {
    "empty": ("drop", "error"),
    "duplicate": ("drop", "keep", "error"),
    "bad_label": ("error", "drop"),
    "invalid": ("replace", "drop", "error"),
}
"""The actions that each rule allows; the first is the default."""

HUGE = 2**20
"""Characters of a text above which it is counted as huge; it is cropped like any other."""

COUNTED = ("empty", "bad label", "invalid UTF-8", "with a NUL", "huge")

PARTS = ("train", "valid", "test")

SURROGATES = re.compile("[\ud800-\udfff]+")

NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")

WHOLE = re.compile(r"(?<=[0-9])\.0+$")
"""What a table adds to whole numbers when some are missing."""

Label = Any
"""A class's number, a finite number, or a list of classes, one for each token: which of them, the
task's kind says."""


@dataclass(frozen=True)
class Rules:
    """What to do with bad rows; raises `InputError` for an action that is not in `ALLOWED`.

    Attributes:
      empty: of a row with a blank text.
      duplicate: of a row that occurs in two splits.
      bad_label: of a row with a label outside the classes.
      invalid: of a row with bytes that are not valid UTF-8.
    """

    empty: str = "drop"
    duplicate: str = "drop"
    bad_label: str = "error"
    invalid: str = "replace"

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            action = getattr(self, name)
            if action not in allowed:
                raise unknown(f"task.on_{name}", action, allowed)


@dataclass(frozen=True)
class Row:
    """One or two texts and a label, as they are in the source.

    Attributes:
      where: names the row in errors.
      fault: why its labels do not fit its words, where the reader knows.
      group: rows of one group are in one split; "" for a row on its own.
    """

    texts: tuple[str, ...]
    label: object
    where: str
    fault: str = ""
    group: str = ""


class AcceptedRow(NamedTuple):
    """A row that the rules let through: its number in the source, repaired texts, label as read."""

    number: int
    texts: tuple[str, ...]
    label: Label
    group: str


@dataclass
class Tally:
    """Counts of what was odd in the rows of one source."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))

    def positive(self) -> dict[str, int]:
        """The counts above 0."""
        positive = {}
        for name, n in self.counts.items():
            if n:
                positive[name] = n
        return positive

    def text(self) -> str:
        """ "3 empty, 1 huge", or "" """
        phrases = []
        for name, n in self.positive().items():
            phrases.append(f"{n:,} {name}")
        return ", ".join(phrases)


class Labels:
    """Reads labels of a kind: a class's name as its number, a finite number, a class per token."""

    def __init__(self, kind: str, classes: Sequence[object]):
        self.kind = kind
        self.numeric = are_numbers(map(canonical, classes))
        self.numbers = {canonical(name, self.numeric): i for i, name in enumerate(classes)}

    def read(self, value: object) -> Label:
        """The label as training needs it; `ValueError` says what is wrong."""
        if self.kind == "language":
            return 0
        if is_missing(value):
            raise ValueError("it has no label")
        if self.kind == "regression":
            return self._finite(value)
        if self.kind == "labelling":
            names = value
            if not isinstance(names, list):
                names = str(value).split()
            return list(map(self._class, names))
        return self._class(value)

    def _finite(self, value: Label) -> float:
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"could not convert {brief(value)} to a finite number") from None
        if not math.isfinite(number):
            raise ValueError(f"its label {brief(value)} is not finite")
        return number

    def _class(self, value: object) -> int:
        name = canonical(value, self.numeric)
        if name not in self.numbers:
            raise ValueError(
                f"its label {brief(name)} is not one of the classes {', '.join(self.numbers)} "
                f"(task.on_bad_label='drop' leaves such rows out)"
            )
        return self.numbers[name]


def canonical(label: object, numeric: bool = False) -> str:
    """A label as text: 1, 1.0 and "1" are one class, as are True and "True".

    Where all classes are numbers (`numeric`) the text "1.0" is that class, too. Elsewhere, as among
    versions and codes, it is another."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    text = str(label).strip()
    if numeric:
        return WHOLE.sub("", text)
    return text


def are_numbers(classes: Iterable[str]) -> bool:
    """Whether all classes are numbers; 01 and 02 are codes."""
    return all(map(NUMBER.fullmatch, classes))


def is_missing(label: object) -> bool:
    """Whether a label is none: null, NaN, a blank text or an empty list."""
    if isinstance(label, str):
        return is_blank(label)
    return label is None or label == [] or label != label


def accepted(
    rows: Iterable[Row], rules: Rules, labels: Labels, tally: Tally
) -> Iterator[AcceptedRow]:
    """The rows that the rules let through; what is odd goes into `tally`.

    Raises `InputError`, with the row, where a rule says "error".
    """
    for number, row in enumerate(rows):
        texts_and_label = usable(row, rules, labels, tally)
        if texts_and_label is not None:
            yield AcceptedRow(number, *texts_and_label, row.group)


def usable(
    row: Row, rules: Rules, labels: Labels, tally: Tally
) -> tuple[tuple[str, ...], Label] | None:
    """Repaired texts and the label of a row; None where a rule drops it.

    Raises `InputError` where a rule says "error"."""
    texts = row.texts
    if any(map(is_damaged, texts)):
        if _dropped(rules.invalid, "invalid UTF-8", row, "its text is not valid UTF-8", tally):
            return None
        texts = tuple(map(repaired, texts))
    blank = any(map(is_blank, texts))
    if blank and _dropped(rules.empty, "empty", row, "its text is empty", tally):
        return None
    try:
        if row.fault:
            raise ValueError(row.fault)
        label = labels.read(row.label)
        if labels.kind == "labelling":
            _check_aligned(texts[0], label)
    except (ValueError, TypeError) as error:
        if _dropped(rules.bad_label, "bad label", row, str(error), tally):
            return None
        raise
    tally.counts["with a NUL"] += any("\0" in text for text in texts)
    tally.counts["huge"] += max(map(len, texts), default=0) > HUGE
    return texts, label


def _dropped(action: str, name: str, row: Row, reason: str, tally: Tally) -> bool:
    """Count a bad row; whether to drop it. Raises `InputError` where the action is "error"."""
    tally.counts[name] += 1
    if action == "error":
        raise InputError(f"{row.where}: {reason.rstrip('.')}.")
    return action == "drop"


def _check_aligned(text: str, labels: list[int]) -> None:
    """Raise `ValueError` unless there is a label for each word."""
    words = len(tokens.words(text))
    if len(labels) != words:
        raise ValueError(f"it has {words} tokens and {len(labels)} labels")


def is_damaged(text: str) -> bool:
    """Whether a text holds surrogates, bytes that were not valid UTF-8."""
    if text.isascii():
        return False
    # Encoding is ten times faster than a search for surrogates.
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def repaired(text: str) -> str:
    """The text with U+FFFD in place of bytes that were not valid UTF-8."""
    if is_damaged(text):
        return SURROGATES.sub("\ufffd", text)
    return text


def is_blank(text: str) -> bool:
    """Whether a text is empty or white space alone."""
    return not text.strip()


def digest(content: Sequence[str] | bytes) -> int:
    """64 bits that stand for texts, or for bytes."""
    if not isinstance(content, bytes):
        parts = []
        for text in content:
            parts.append(text.encode("utf-8", "replace"))
        content = joined(parts)
    # Equal texts always agree; of a billion different ones, two do by chance with 3%.
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def joined(parts: Sequence[bytes]) -> bytes:
    """The parts in a row, each after its length: ("ab", "c") and ("a", "bc") are different rows."""
    pieces = []
    for part in parts:
        pieces += [len(part).to_bytes(8, "big"), part]
    return b"".join(pieces)


def among(digests: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Which of `digests` `[S]` are in `later`, which is sorted."""
    if not len(later):
        return np.zeros(len(digests), bool)
    places = np.searchsorted(later, digests)
    # Beyond the last one there is nothing to compare with.
    return later[np.minimum(places, len(later) - 1)] == digests


def refuse_leaks(part: str, count: int, action: str) -> None:
    """Raise `InputError` where rows of a split occur in a later one and the action is "error"."""
    if count and action == "error":
        later = PARTS[PARTS.index(part) + 1 :]
        raise InputError(
            f"{count:,} rows of {part} also occur in {' or '.join(later)}, and "
            f"task.on_duplicate is 'error'."
        )


def without_leaks(
    digests: Mapping[str, np.ndarray], action: str
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Which rows of each split to keep, so that no text of one split occurs in another.

    Args:
      digests: `[S]` of the rows of "train", "valid" and "test" (any may be absent).
      action: "drop": out of train what is in valid or test, and out of valid what is in test;
        "keep"; "error".

    Returns:
      Booleans `[S]` by split, and how many rows of each split occur in a later one.
    """
    order = [name for name in PARTS if name in digests]
    keep = {}
    counts = {}
    for i, name in enumerate(order):
        later = order[i + 1 :]
        leaked = np.zeros(len(digests[name]), bool)
        for part in later:
            leaked |= np.isin(digests[name], digests[part])
        counts[name] = int(leaked.sum())
        refuse_leaks(name, counts[name], action)
        keep[name] = np.ones(len(leaked), bool)
        if action == "drop":
            keep[name] = ~leaked
    return keep, counts
