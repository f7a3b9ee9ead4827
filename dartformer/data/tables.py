"""The text of a file whatever its encoding, and the dialect of a CSV file."""

import contextlib
import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from dartformer.data.compressed import opened
from dartformer.errors import InputError

if TYPE_CHECKING:
    from _csv import Reader

MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks and their encodings, the longer marks first."""

SEPARATORS = ",;\t|"

NO_SEPARATOR = "\x1f"
"""Separates fields in no file: every line is one field."""

NO_FIELDS = (0.0, 0)
"""The consistency of a dialect that separates nothing."""

SAMPLE = 2**18
"""Characters that decide a file's dialect."""

TABLE_SHARE = 0.95
"""The share of rows with as many fields as the header from which on text is a table."""

FEWEST_ROWS = 3
"""Lines from which on text may be a table."""

COMPARED = 200
"""Rows that are compared with the first, which may be a header."""

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")

SEPARATOR_LINE = re.compile('"?sep=(.)"?(?:\r\n|\r|\n)', re.IGNORECASE)
"""The line with which Excel says how fields are separated."""

QUOTED_FIELD = re.compile('(?:^|\t)"[^\t\r\n]*""[^\t\r\n]*"(?:\t|\r|\n|$)', re.MULTILINE)
"""A field in quotes that holds a quote, which a program wrote twice."""


class Dialect(NamedTuple):
    """How a file separates its fields, and whether it quotes them.

    Attributes:
      separator: between two fields.
      quoted: a field in quotes may hold separators and line ends.
      skipped: lines before the header.
    """

    separator: str
    quoted: bool
    skipped: int = 0

    def rows(self, text: Iterable[str]) -> "Reader":
        """The fields of each row of a file that is open at its header."""
        if self.quoted:
            return csv.reader(text, delimiter=self.separator, strict=True)
        return csv.reader(text, delimiter=self.separator, quoting=csv.QUOTE_NONE)


def encoding(head: bytes) -> str:
    """The encoding of a file that starts with `head`: UTF-8, unless it says otherwise."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    # Latin letters as UTF-16 have a NUL in every second byte.
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    if zeros == [True, False, True, False]:
        return "utf-16-be"
    return "utf-8-sig"


def decoded(data: bytes) -> str:
    """A file's text; bytes that are not valid UTF-8 become surrogates."""
    return data.decode(encoding(data[:4]), "surrogateescape")


@contextlib.contextmanager
def opened_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A file as text; `newline` is that of `open`."""
    with opened(path) as file:
        name = encoding(file.read(4))
        file.seek(0)
        try:
            with io.TextIOWrapper(file, name, "surrogateescape", newline) as text:
                yield text
        except UnicodeError as error:
            raise InputError(f"{path} is not valid {name.upper()}: {error}.") from None


def dialect(sample: str, separators: str) -> Dialect:
    """The dialect of a CSV file that starts with `sample`.

    It is the one in which most rows have as many fields as the header. Counting separators in the
    header alone would count those inside quotes."""
    skipped = 0
    declared = SEPARATOR_LINE.match(sample)
    if declared:
        separators, skipped = declared[1], 1
        sample = sample[declared.end() :]
    choice, best = Dialect(NO_SEPARATOR, True, skipped), NO_FIELDS
    for separator in separators:
        candidate = Dialect(separator, True, skipped)
        score = _consistency(sample, candidate)
        if separator == "\t" and not _is_quoted(sample):
            # A TSV file as it is meant has no quotes: they are characters like any other.
            literal = _consistency(sample, Dialect(separator, False))
            if literal >= score:
                candidate, score = Dialect(separator, False, skipped), literal
        if score > best:
            choice, best = candidate, score
    return choice


def _is_quoted(sample: str) -> bool:
    """Whether a file with tabs quotes fields, as programs and not as authors do."""
    return sample.startswith('"') or QUOTED_FIELD.search(sample) is not None


def _consistency(sample: str, candidate: Dialect) -> tuple[float, int]:
    """The share of rows with as many fields as the header, and that number; 0 for one field."""
    counts = []
    errors = 0
    try:
        for fields in candidate.rows(io.StringIO(sample, newline="")):
            if fields:
                counts.append(len(fields))
    except csv.Error:
        errors = 1
    if len(sample) >= SAMPLE:
        # The sample ends inside a row, which may be its only one.
        errors = 0
        counts = counts[:-1] or counts
    if not counts or counts[0] == 1:
        return NO_FIELDS
    return counts.count(counts[0]) / (len(counts) + errors), counts[0]


def is_table(sample: str) -> bool:
    """Whether nearly all rows of a file that starts with `sample` have as many fields, and several."""
    form = dialect(sample, SEPARATORS)
    share, _ = _consistency(sample, form)
    return share >= TABLE_SHARE and sample.count("\n") >= FEWEST_ROWS


def has_header(sample: str, form: Dialect) -> bool:
    """Whether the first row of a CSV file that starts with `sample` has the names of the columns.

    It has none where it looks like the rows below it: numbers above numbers, or a value that its
    column has again."""
    rows = []
    try:
        text = io.StringIO(sample, newline="")
        for _ in range(form.skipped):
            text.readline()
        for fields in form.rows(text):
            if fields:
                rows.append(fields)
            if len(rows) > COMPARED:
                break
    except csv.Error:
        pass  # what could be read tells enough
    if len(rows) < 3:
        return True
    first, below = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if first in below:
        return True  # several files in one, each with its header
    numeric = 0
    for i, field in enumerate(first):
        values = [row[i].strip() for row in below]
        if _are_numbers(values):
            if not _are_numbers([field.strip()]):
                return True
            numeric += 1
    if numeric > 1 and not _count_up(first):
        return False
    return not any(_occurs_again(first, below, i) for i in range(len(first)))


def _are_numbers(values: Iterable[str]) -> bool:
    present = [value for value in values if value]
    return bool(present) and all(map(NUMBER.fullmatch, present))


def _count_up(fields: list[str]) -> bool:
    """Whether the fields that are numbers go up, as the names of steps do."""
    numbers = [float(field) for field in fields if _are_numbers([field.strip()])]
    return all(a < b for a, b in pairwise(numbers))


def _occurs_again(first: list[str], below: list[list[str]], i: int) -> bool:
    """Whether the first value of a column, which is no blank, comes again below it."""
    return bool(first[i].strip()) and any(row[i] == first[i] for row in below)


def unnamed(count: int) -> list[str]:
    """Names for the columns of a file without a header."""
    return [f"column{i}" for i in range(1, count + 1)]


def header(path: Path, fields: Iterable[str] | None) -> list[str]:
    """The columns of a CSV file from its first row."""
    if fields is None:
        raise InputError(f"{path} is empty.")
    names: list[str] = []
    for i, field in enumerate(fields, 1):
        # Spreadsheets leave columns without a name at the end of every line.
        names.append(field.strip() or f"column{i}")
    require_distinct(path, names)
    return names


def require_distinct(path: Path, names: Iterable[str]) -> None:
    """Raise `InputError` for two columns of one name, of which one would be lost."""
    distinct = set()
    for name in names:
        if name in distinct:
            raise InputError(f"{path} has two columns named {name!r}.")
        distinct.add(name)
