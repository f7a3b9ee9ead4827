"""What a user's file seems to hold: which column is the text, which the label, and options that will do for it."""

import itertools
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from dartformer.errors import InputError, unknown
from dartformer.tasks.files import located
from dartformer.tasks.records import Record, read, splits
from dartformer.tasks.rows import canonical

LABEL_NAMES = ("label", "labels", "class", "target", "category", "sentiment", "stars", "rating", "score", "y")

LOOKED_AT = 2000
"""Rows that decide the columns and the length; labels are counted in all of them."""

MOST_CLASSES = 200


class Guess(NamedTuple):
    """Options of the task `files`, how many rows train will have, and sentences that say what was guessed and why."""

    options: dict[str, Any]
    train: int
    sentences: list[str]


def guess(file: str, text: str = "", label: str = "", data_dir: str | None = None) -> Guess:
    """Look at a file; columns that are given are not guessed.

    Raises `InputError` where the file cannot be read, a column does not exist, or none will do.
    """
    path = located(file, data_dir)
    inside = splits(path)
    split = "train" if "train" in inside else (inside[0] if inside else "")
    rows = list(itertools.islice(read(path, split), LOOKED_AT))
    if not rows:
        raise InputError(f"{file} has no rows.")
    for name in filter(None, (text, label)):
        if name not in rows[0]:
            raise unknown(f"column of {file}", name, rows[0])
    said = []
    if not text:
        text = _text_column(rows, label)
        said.append(f"text column {text!r}: of all columns it has the longest texts")
    if not label:
        label = _label_column(rows, text)
        said.append(f"label column {label!r}: by its name, or because its values are few")
    values, count = Counter[str](), 0
    for row in read(path, split):
        count += 1
        if row.get(label) not in (None, ""):
            values[canonical(row[label])] += 1
    if len(values) < 2:
        raise InputError(f"the column {label!r} of {file} has {len(values)} different values; at least 2 are needed.")
    if len(values) > MOST_CLASSES:
        raise InputError(f"the column {label!r} of {file} has {len(values)} different values: too many for classes "
                         f"(at most {MOST_CLASSES}). Which column is the label? Name it with --label.")
    names = tuple(sorted(values, key=_numbers_first))
    most, often = values.most_common(1)[0]
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    said.append(f"classification into {len(names)} classes ({shown}); always saying {most!r} is right in "
                f"{100 * often / values.total():.0f}%")
    lengths = np.array([len(re.findall(r"\w+|[^\w\s]+", str(row.get(text) or ""))) for row in rows])
    options: dict[str, Any] = {"path": file, "text": text, "label": label, "label_names": names}
    if np.median(lengths) >= 3:
        options["tokens"] = "words"
    else:
        options["tokens"] = "bytes"
        lengths = np.array([len(str(row.get(text) or "").encode("utf-8", "replace")) for row in rows])
    wanted = int(np.quantile(lengths, 0.95))
    options["length"] = min(512, max(16, -(-wanted // 8) * 8))
    said.append(f"tokens are {options['tokens']}; length {options['length']}, which holds "
                f"{100 * float((lengths <= options['length']).mean()):.0f}% of the texts whole")
    missing = [part for part in ("valid", "test") if part not in inside and not (part == "valid" and "validation" in
                                                                                inside)]
    if missing:
        said.append(f"no split {' and no split '.join(missing)}: a tenth of the rows each, drawn with seed 0")
    return Guess(options, round(count * (1 - 0.1 * len(missing))), said)


def _text_column(rows: list[Record], label: str) -> str:
    """The column of texts whose mean length is largest."""
    lengths = {name: np.mean([len(row[name]) if isinstance(row.get(name), str) else 0 for row in rows])
               for name in rows[0] if name != label}
    best = max(lengths, key=lambda name: lengths[name], default="")
    if not best or lengths[best] == 0:
        raise InputError(f"no column holds texts; there are {', '.join(rows[0])}.")
    return best


def _label_column(rows: list[Record], text: str) -> str:
    """The first column with a label's name, else the one with the fewest values, of at least two."""
    others = [name for name in rows[0] if name != text]
    named = [name for wanted in LABEL_NAMES for name in others if name.lower() == wanted]
    few = {name: len({canonical(row.get(name)) for row in rows}) for name in others}
    possible = {name: n for name, n in few.items() if 1 < n <= min(MOST_CLASSES, max(2, len(rows) // 2))}
    found = named[0] if named else min(possible, key=lambda name: possible[name], default="")
    if not found:
        raise InputError(f"no column looks like a label; there are {', '.join(rows[0])}. Name one with --label.")
    return found


def _numbers_first(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
