"""Rules for the rows of real data: what is wrong with them is counted and reported, and each kind
has a rule.

Nothing of this can happen in the middle of training: rows are looked at while the data set is
prepared."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dartformer.errors import InputError, unknown

EMPTY, DUPLICATE, BAD_LABEL, INVALID = (
    ("drop", "error"),
    ("drop", "keep", "error"),
    ("error", "drop"),
    ("replace", "drop", "error"),
)
"""What may be done; the first is the default."""

HUGE = 2**20
"""Characters of a text above which it is counted as huge; it is cropped like any other."""

ODD = ("empty", "bad label", "invalid UTF-8", "with a NUL", "huge")
"""What is counted."""

SURROGATES = re.compile("[\ud800-\udfff]+")


@dataclass(frozen=True)
class Rules:
    """What is done with a row that has a blank text, occurs in two splits, has a label outside the
    classes, or bytes that are no UTF-8. Raises `InputError` for a rule that there is not."""

    empty: str = "drop"
    duplicate: str = "drop"
    bad_label: str = "error"
    invalid: str = "replace"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("empty", EMPTY),
            ("duplicate", DUPLICATE),
            ("bad_label", BAD_LABEL),
            ("invalid", INVALID),
        ):
            if getattr(self, name) not in allowed:
                raise unknown(f"task.on_{name}", getattr(self, name), allowed)


@dataclass(frozen=True)
class Row:
    """One or two texts and a label, as they stand in the source; `where` names the row in
    errors."""

    texts: tuple[str, ...]
    label: Any
    where: str


@dataclass
class Tally:
    """What was met in one source."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ODD, 0))

    def text(self) -> str:
        """ "3 empty, 1 huge", or "" """
        return ", ".join(f"{n:,} {name}" for name, n in self.counts.items() if n)


class Labels:
    """Reads labels: a class's number of a text; a finite number; or a class for each token."""

    def __init__(self, kind: str, classes: Sequence[str]):
        self.kind, self.numbers = kind, {name: i for i, name in enumerate(classes)}

    def read(self, value: Any) -> Any:
        """The label as training needs it; `ValueError` says what is wrong."""
        if self.kind == "language":
            return 0
        if value is None:
            raise ValueError("it has no label")
        if self.kind == "regression":
            number = float(value)
            if not math.isfinite(number):
                raise ValueError(f"its label {value!r} is not finite")
            return number
        if self.kind == "labelling":
            return [
                self._number(one)
                for one in (value if isinstance(value, list) else str(value).split())
            ]
        return self._number(value)

    def _number(self, value: Any) -> int:
        name = canonical(value)
        if name not in self.numbers:
            raise ValueError(
                f"its label {name!r} is not one of the classes {', '.join(self.numbers)}"
            )
        return self.numbers[name]


def canonical(label: Any) -> str:
    """A label as text: 1, 1.0 and "1" are one class, as are True and "True"."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip()


def kept(
    rows: Iterable[Row], rules: Rules, labels: Labels, tally: Tally
) -> Iterator[tuple[int, tuple[str, ...], Any]]:
    """Number, repaired texts and read label of each row that the rules let through; what is met
    goes into `tally`.

    Raises `InputError`, with the row, where a rule says "error".
    """
    counts = tally.counts

    def refused(rule: str, name: str, row: Row, reason: str) -> bool:
        counts[name] += 1
        if rule == "error":
            raise InputError(f"{row.where}: {reason}.")
        return rule == "drop"

    for number, row in enumerate(rows):
        texts = row.texts
        if any(map(damaged, texts)):
            if refused(rules.invalid, "invalid UTF-8", row, "its text is not valid UTF-8"):
                continue
            texts = tuple(SURROGATES.sub("\ufffd", text) for text in texts)
        if not all(text.strip() for text in texts) and refused(
            rules.empty, "empty", row, "its text is empty"
        ):
            continue
        try:
            label = labels.read(row.label)
            if labels.kind == "labelling" and len(label) != len(texts[0].split()):
                raise ValueError(f"it has {len(texts[0].split())} tokens and {len(label)} labels")
        except (ValueError, TypeError) as error:
            if refused(rules.bad_label, "bad label", row, str(error)):
                continue
            raise
        counts["with a NUL"] += any("\0" in text for text in texts)
        counts["huge"] += any(len(text) > HUGE for text in texts)
        yield number, texts, label


def damaged(text: str) -> bool:
    """Whether a text holds surrogates, bytes that were no UTF-8 (encoding it is ten times faster
    than a search)."""
    try:
        return not text.isascii() and not text.encode()
    except UnicodeEncodeError:
        return True


def digest(content: Sequence[str] | bytes) -> int:
    """64 bits that stand for texts, or for bytes."""
    if not isinstance(content, bytes):
        content = "\x1f".join(content).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def without_leaks(
    found: dict[str, np.ndarray], rule: str
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Which rows of each split stay, so that no text of one split occurs in another.

    Args:
      found: digests `[S]` of the rows of "train", "valid" and "test" (any may be absent).
      rule: "drop": out of train what is in valid or test, and out of valid what is in test; "keep";
        "error".

    Returns:
      Booleans `[S]` by split, and how many rows of each split occur in a later one.
    """
    order: list[str] = [name for name in ("train", "valid", "test") if name in found]
    stay = {name: np.ones(len(found[name]), bool) for name in order}
    counts = {}
    for i, name in enumerate(order):
        later = (
            np.concatenate([found[other] for other in order[i + 1 :]])
            if i + 1 < len(order)
            else np.empty(0)
        )
        both = np.isin(found[name], later)
        counts[name] = int(both.sum())
        if counts[name] and rule == "error":
            raise InputError(
                f"{counts[name]:,} rows of {name} also occur in {' or '.join(order[i + 1 :])}, and "
                f"task.on_duplicate is 'error'."
            )
        if rule == "drop":
            stay[name] = ~both
    return stay, counts
