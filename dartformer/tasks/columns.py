"""Which column of a user's file holds the texts, and which the labels."""

import math
import random
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dartformer.data.numbers import is_number, number
from dartformer.data.records import Record
from dartformer.data.rows import are_numbers, canonical, is_missing
from dartformer.errors import InputError

SAMPLE = 2000
"""Rows that decide the columns, the tokens and the length; labels are counted in all rows."""

LONGEST = 50_000
"""Characters of a text that a sample keeps."""

TEXT_NAMES = (
    "text",
    "sentence",
    "review",
    "content",
    "document",
    "body",
    "message",
    "comment",
    "question",
    "premise",
    "tweet",
    "abstract",
    "article",
    "description",
    "utterance",
    "query",
    "headline",
    "title",
    "tokens",
    "words",
)
"""Names of columns of texts, the surest first."""

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
    "intent",
    "emotion",
    "topic",
    "tags",
    "ner_tags",
    "pos_tags",
    "y",
)

SENTENCE_NAMES = ("sentence", "sentenceid", "sentenceno", "sent", "sentid", "sentenceidx")
"""Names of a column that says which sentence a word is of, without marks."""

WORD_NAMES = ("word", "token", "words", "tokens", "form")

TAG_NAMES = ("tag", "tags", "nertag", "nertags", "ner", "label", "labels", "pos", "postag", "upos")
"""Names of columns of the tags of words, the surest first."""

PAIRS = (
    ("premise", "hypothesis"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "answer"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("text", "textpair"),
    ("text", "hypothesis"),
    ("claim", "evidence"),
    ("headline", "body"),
)
"""Names of two columns of texts that are compared, without marks; beside text1 and text2, a and b."""

PLAIN_NAMES = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
"""The words of a name such as reviewText or review_text."""

ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.|/|\./|[A-Za-z]:\\)\S*|\S+@\S+\.\w+")
"""A link, a path or a mail address."""

CODE = re.compile(r"[!-~]+")
"""What has no space, and only characters of ASCII: a number, a date, an identifier, a word."""

NUMERIC = 0.95
"""The share of the values of a column of numbers that are numbers."""

COMMA = re.compile(r"[+-]?\d+,\d+")
"""A number with a decimal comma."""

DATED = 100
"""Values of a column that are compared with the form of dates."""

DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}\b.*|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}(?!\d).*|\d{1,2}:\d\d.*", re.DOTALL
)
"""A date, or a time of the day."""

MOST_CLASSES = 200


class Evidence(NamedTuple):
    """What speaks for a column of texts; the smallest is best.

    Attributes:
      addresses: most of its values are links or paths.
      rank: of its name among `TEXT_NAMES`.
      codes: most of its values are a single word of ASCII.
      length: the mean number of characters, negative.
    """

    addresses: bool
    rank: int
    codes: bool
    length: float


def sampled(rows: Iterable[Record]) -> list[Record]:
    """Up to `SAMPLE` rows from the whole of a file, in its order.

    A file is often sorted by its labels, so the first rows say little."""
    draw = random.Random(0)
    sample: list[tuple[int, Record]] = []
    for i, row in enumerate(rows):
        if i < SAMPLE:
            sample.append((i, _shortened(row)))
            continue
        # Each row so far is in the sample with the same chance.
        place = draw.randrange(i + 1)
        if place < SAMPLE:
            sample[place] = i, _shortened(row)
    sample.sort(key=lambda item: item[0])
    return [row for _, row in sample]


def _shortened(row: Record) -> Record:
    """A row whose long texts are cut: 2,000 of them must fit into memory."""
    short = {}
    for name, value in row.items():
        if isinstance(value, str | list):
            value = value[:LONGEST]
        short[name] = value
    return short


def names_of(rows: Iterable[Record]) -> list[str]:
    """The columns of some rows, of which each may lack some."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    return list(names)


def quoted(names: Sequence[str]) -> str:
    """The first names of columns in quotes, and how many there are."""
    shown = [repr(name) for name in names[:8]]
    if len(names) > 8:
        shown.append(f"... ({len(names)} in all)")
    return ", ".join(shown)


def as_text(value: object) -> str:
    """A value of a column of texts: words may be a list. Empty for anything else."""
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)
    if isinstance(value, str):
        return value
    return ""


def is_numeric(rows: Sequence[Record], name: str) -> bool:
    """Whether nearly all values of a column are numbers, also written out."""
    present = [row[name] for row in rows if not is_missing(row.get(name))]
    if not present or any(isinstance(value, bool | list | dict) for value in present):
        return False
    count = sum(map(is_number, present))
    return count >= NUMERIC * len(present) and any(map(is_finite, present))


def is_finite(value: object) -> bool:
    """Whether a value is a number, also one that is written out, and neither missing nor infinite."""
    return is_number(value) and math.isfinite(number(value))


def has_decimal_commas(rows: Sequence[Record], name: str) -> bool:
    """Whether most values of a column are numbers such as 3,14."""
    present = [row[name] for row in rows if not is_missing(row.get(name))]
    commas = [isinstance(value, str) and COMMA.fullmatch(value.strip()) for value in present]
    return sum(map(bool, commas)) > len(present) / 2


def is_date(rows: Sequence[Record], name: str) -> bool:
    """Whether the values of a column are dates or times of the day."""
    present = [str(row[name]) for row in rows if not is_missing(row.get(name))]
    return bool(present) and all(map(DATE.fullmatch, present[:DATED]))


def text_column(rows: Sequence[Record], label: str) -> tuple[str, str]:
    """The column of texts, and why."""
    evidence = {}
    for name in names_of(rows):
        texts = [as_text(row.get(name)) for row in rows]
        if name != label and any(map(str.strip, texts)) and not is_numeric(rows, name):
            evidence[name] = _evidence(name, texts)
    if not evidence:
        raise InputError(f"no column holds texts; the columns are {', '.join(names_of(rows))}.")
    best = min(evidence, key=lambda name: evidence[name])
    if evidence[best].rank < len(TEXT_NAMES) and not evidence[best].addresses:
        return best, "by its name"
    return best, "of all columns it has the longest texts"


class WordColumns(NamedTuple):
    """The columns of a table with a word in each row: sentence, word and tag."""

    sentence: str
    word: str
    tag: str


def word_columns(rows: Sequence[Record]) -> WordColumns | None:
    """The columns of a table with a word in each row, by their names; None for another table."""
    plain = {re.sub(r"[\W_]", "", name.lower()): name for name in names_of(rows)}
    columns = []
    for names in (SENTENCE_NAMES, WORD_NAMES, TAG_NAMES):
        present = [plain[name] for name in names if name in plain]
        if not present:
            return None
        columns.append(present[0])
    words = [as_text(row.get(columns[1])).strip() for row in rows]
    if any(" " in word for word in words):
        return None
    return WordColumns(*columns)


def text_pair(rows: Sequence[Record]) -> tuple[str, str] | None:
    """Two columns of texts whose names say that they are compared; None where there are none."""
    names = {}
    for name in names_of(rows):
        texts = [as_text(row.get(name)) for row in rows]
        if sum(map(bool, map(str.strip, texts))) > len(rows) / 2 and not is_numeric(rows, name):
            names[re.sub(r"[\W_]", "", name.lower())] = name
    for first, second in PAIRS:
        if first in names and second in names:
            return names[first], names[second]
    for stem in (*TEXT_NAMES, "sent", "doc", "s", "q"):
        for first, second in ((f"{stem}1", f"{stem}2"), (f"{stem}a", f"{stem}b")):
            if first in names and second in names:
                return names[first], names[second]
    return None


def _holds_quantities(rows: Sequence[Record], name: str) -> bool:
    """Whether most values of a column are numbers, and not those of the rows."""
    numbers = []
    for row in rows:
        text = canonical(row.get(name))
        if are_numbers([text]):
            numbers.append(float(text))
    # Rows that are counted have numbers without a gap.
    counted = sorted(numbers) == [min(numbers, default=0) + i for i in range(len(numbers))]
    return len(numbers) > 0.9 * len(rows) and not counted


def _holds_addresses(rows: Sequence[Record], name: str) -> bool:
    """Whether a column holds texts, most of them links or paths."""
    texts = [as_text(row.get(name)) for row in rows]
    return any(map(str.strip, texts)) and _evidence(name, texts).addresses


def _evidence(name: str, texts: Sequence[str]) -> Evidence:
    present = [text.strip() for text in texts if text.strip()]
    addresses = sum(ADDRESS.fullmatch(text) is not None for text in present)
    codes = sum(CODE.fullmatch(text) is not None for text in present)
    # Over all rows: a column that few rows have is not the one of texts.
    length = sum(map(len, texts)) / len(texts)
    return Evidence(addresses > len(present) / 2, _rank(name), codes > 0.9 * len(present), -length)


def _rank(name: str) -> int:
    """The place of a column's name in `TEXT_NAMES`, or of a word in it, after all whole names."""
    lower = name.lower()
    if lower in TEXT_NAMES:
        return TEXT_NAMES.index(lower)
    for word in PLAIN_NAMES.findall(name):
        # A word in a longer name says little: content_type and text_id are no texts.
        if word.lower() in TEXT_NAMES and name.endswith(word):
            return len(TEXT_NAMES) - 1
    return len(TEXT_NAMES)


def label_column(rows: Sequence[Record], texts: Sequence[str]) -> tuple[str, str]:
    """The first column with a label's name, or the one with the fewest values; and why.

    Raises `InputError` where none looks like a label."""
    columns = [name for name in names_of(rows) if name not in texts]
    for label_name in LABEL_NAMES:
        for name in columns:
            if name.lower() == label_name and not _holds_addresses(rows, name):
                return name, "by its name"
    # A column that differs in most rows is an identifier or a text, and no label.
    most = min(MOST_CLASSES, max(2, len(rows) // 2))
    counts = {}
    for name in columns:
        values = set()
        for row in rows:
            if not is_missing(row.get(name)):
                values.add(canonical(row[name]))
        if 1 < len(values) <= most and not _holds_addresses(rows, name):
            counts[name] = len(values)
    if not counts:
        quantities = [name for name in columns if _holds_quantities(rows, name)]
        if len(quantities) == 1:
            return quantities[0], "the only column of quantities"
        raise InputError(
            f"no column looks like a label; the columns are {', '.join(names_of(rows))}. Name one "
            f"with --label, or use --kind=language to predict the next character."
        )
    return min(counts, key=lambda name: counts[name]), "of all columns it has the fewest values"
