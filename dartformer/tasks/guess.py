"""What a user's file seems to hold: which column is the text, which the label, and options that
will do for it."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
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

LOOKED_AT = 2000
"""Rows that decide the columns and the length; labels are counted in all of them."""

MOST_CLASSES, MOST_NUMBERS = 200, 10_000
FEWEST_NUMBERS = 20
"""Numbers of more different values than this are a quantity; after `MOST_NUMBERS` they are counted
no more."""


class Guess(NamedTuple):
    """Options of the task `files`, how many rows train will have, and sentences that say what was
    guessed and why."""

    options: dict[str, Any]
    train: int
    sentences: list[str]


def guess(
    file: str, texts: Sequence[str] = (), label: str = "", data_dir: str | None = None
) -> Guess:
    """Look at a file; columns that are given are not guessed: one text, or two that are to be
    compared, and a label.

    Raises `InputError` where the file cannot be read, a column does not exist, or none will do.
    """
    if len(texts) > 2:
        raise InputError(
            f"one text, or two that are compared, can be read; got {len(texts)}: {', '.join(texts)}."
        )
    path = located(file, data_dir)
    inside = splits(path)
    split = "train" if "train" in inside else (inside[0] if inside else "")
    rows = list(itertools.islice(read(path, split), LOOKED_AT))
    if not rows:
        raise InputError(f"{file} has no rows.")
    for name in filter(None, (*texts, label)):
        if name not in rows[0]:
            raise unknown(f"column of {file}", name, rows[0])
    said = []
    if not texts:
        texts = [_text_column(rows, label)]
        said.append(f"text column {texts[0]!r}: of all columns it has the longest texts")
    if not label:
        label = _label_column(rows, texts)
        said.append(f"label column {label!r}: by its name, or because its values are few")
    options: dict[str, Any] = {"path": file, "text": texts[0], "label": label}
    if len(texts) == 2:
        options["text2"] = texts[1]
    kind = "labelling" if len(texts) == 1 and _aligned(rows, texts[0], label) else ""
    values, count = Counter[str](), 0
    for row in read(path, split):
        count += 1
        if row.get(label) in (None, "", []):
            continue
        if kind:
            values.update(canonical(one) for one in words(row[label]))
        elif len(values) <= MOST_NUMBERS:
            values[canonical(row[label])] += 1
    if len(values) < 2:
        raise InputError(
            f"the column {label!r} of {file} has {len(values)} different values; at least 2 are needed."
        )
    if not kind:
        kind = (
            "regression"
            if len(values) > FEWEST_NUMBERS and all(map(is_number, values))
            else "classification"
        )
    if kind != "regression" and len(values) > MOST_CLASSES:
        raise InputError(
            f"the column {label!r} of {file} has more than {MOST_CLASSES} different values: too many for "
            f"classes, and they are no numbers. Which column is the label? Name it with --label."
        )
    options["kind"] = kind
    if kind == "regression":
        said.append(
            f"regression: the label is a number with more than {FEWEST_NUMBERS} different values"
        )
    else:
        names = options["label_names"] = tuple(sorted(values, key=_numbers_first))
        most, often = values.most_common(1)[0]
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        what = "a label for each word, of" if kind == "labelling" else "classification into"
        said.append(
            f"{what} {len(names)} classes ({shown}); always saying {most!r} is right in "
            f"{100 * often / values.total():.0f}%"
        )
    every = [str(row.get(name) or "") for row in rows for name in texts]
    lengths = np.array(
        [
            len(text.split()) if kind == "labelling" else len(re.findall(r"\w+|[^\w\s]+", text))
            for text in every
        ]
    )
    options["tokens"] = "words"
    if kind != "labelling" and np.median(lengths) < 3:
        options["tokens"] = "bytes"
        lengths = np.array([len(text.encode("utf-8", "replace")) for text in every])
    options["length"] = min(512, max(16, -(-int(np.quantile(lengths, 0.95)) // 8) * 8))
    said.append(
        f"tokens are {options['tokens']}; length {options['length']}, which holds "
        f"{100 * float((lengths <= options['length']).mean()):.0f}% of the texts whole"
    )
    missing = [
        part
        for part, also in (("valid", "validation"), ("test", "test"))
        if not {part, also} & set(inside)
    ]
    if missing:
        said.append(
            f"no split {' and no split '.join(missing)}: a tenth of the rows each, drawn with seed 0"
        )
    return Guess(options, round(count * (1 - 0.1 * len(missing))), said)


def words(value: Any) -> list[Any]:
    """A label for each word: a list, or a text of them."""
    return value if isinstance(value, list) else str(value).split()


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _aligned(rows: list[Record], text: str, label: str) -> bool:
    """Whether every row has as many labels as words, and some have several."""
    counts = [
        (
            len(words(row.get(text) or "")),
            len(words(row.get(label) if row.get(label) is not None else "")),
        )
        for row in rows
    ]
    return all(a == b for a, b in counts) and any(a > 1 for a, _ in counts)


def _text_column(rows: list[Record], label: str) -> str:
    """The column of texts whose mean length is largest."""
    lengths = {
        name: np.mean([len(row[name]) if isinstance(row.get(name), str) else 0 for row in rows])
        for name in rows[0]
        if name != label
    }
    best = max(lengths, key=lambda name: lengths[name], default="")
    if not best or lengths[best] == 0:
        raise InputError(f"no column holds texts; there are {', '.join(rows[0])}.")
    return best


def _label_column(rows: list[Record], texts: Sequence[str]) -> str:
    """The first column with a label's name, else the one with the fewest values, of at least
    two."""
    others = [name for name in rows[0] if name not in texts]
    named = [name for wanted in LABEL_NAMES for name in others if name.lower() == wanted]
    few = {name: len({canonical(row.get(name)) for row in rows}) for name in others}
    possible = {
        name: n for name, n in few.items() if 1 < n <= min(MOST_CLASSES, max(2, len(rows) // 2))
    }
    found = named[0] if named else min(possible, key=lambda name: possible[name], default="")
    if not found:
        raise InputError(
            f"no column looks like a label; there are {', '.join(rows[0])}. Name one with --label."
        )
    return found


def _numbers_first(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
