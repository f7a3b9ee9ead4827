"""Rows in files of text: tables without their suffix, a labelled word a line, fastText's labels."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from dartformer.data import tables
from dartformer.errors import InputError

SAMPLE = 2**16
"""Characters that decide what a file of text holds."""

FEWEST_LINES = 4
"""Lines from which on a file of text may be a table."""

MOST_TAGS = 200
"""Different tags of words, at most."""

COMMENT = re.compile(r"#\s|#$|-DOCSTART-")
"""How lines start that are no words: comments of CoNLL-U, documents of CoNLL-2003."""

FAST_TEXT = re.compile(r"__label__(\S+)\s+(.*)", re.DOTALL)

UNIVERSAL = 10
"""The columns of CoNLL-U: number, form, lemma, part of speech, and six more."""


def form_of(file: Path) -> str:
    """ "words" (a word and its tags a line, with blank lines between sentences), "table" (fields with
    tabs between them), "fasttext" (a label before each text), or "plain"."""
    with tables.opened_text(file, newline="\n") as text:
        sample = text.read(SAMPLE)
    lines = sample.splitlines()
    if len(sample) == SAMPLE:
        lines = lines[:-1]  # it may be cut
    if _are_words(lines):
        return "words"
    present = [line for line in lines if line.strip()]
    if len(present) < FEWEST_LINES:
        return "plain"
    if all(map(FAST_TEXT.match, present)):
        return "fasttext"
    counts = {line.count("\t") for line in present}
    if len(counts) == 1 and counts != {0}:
        return "table"
    return "plain"


def _are_words(lines: list[str]) -> bool:
    """Whether lines are words with tags: as many fields in each, and blank lines between some."""
    sentences = 0
    rows = []
    for is_blank, group in groupby(lines, lambda line: not line.strip()):
        if not is_blank:
            sentences += 1
            rows += [fields_of(line) for line in group if not COMMENT.match(line)]
    if sentences < 2 or len(rows) < 2 * sentences:
        return False
    counts = {len(fields) for fields in rows}
    if len(counts) != 1 or counts == {1}:
        return False
    tags = {fields[_tag_of(fields)] for fields in rows}
    return 1 < len(tags) <= min(MOST_TAGS, max(2, len(rows) // 2))


def fields_of(line: str) -> list[str]:
    """The fields of a word's line: tabs separate them, or else spaces."""
    line = line.rstrip("\r\n")
    if "\t" in line:
        return line.strip("\t").split("\t")
    return line.split()


def _tag_of(fields: list[str]) -> int:
    """Which field of a word's line is its tag."""
    if _is_universal(fields):
        return 3
    return len(fields) - 1


def _is_universal(fields: list[str]) -> bool:
    return len(fields) == UNIVERSAL and fields[0][:1].isdigit()


def sentences(file: Path) -> Iterator[dict[str, Any]]:
    """The sentences of a file with a word a line: lists of words and of their tags, by column."""
    with tables.opened_text(file, newline="\n") as text:
        width = 0
        rows: list[list[str]] = []
        for number, line in enumerate(text, 1):
            if not line.strip():
                if rows:
                    yield _sentence(rows)
                rows = []
                continue
            fields = fields_of(line)
            # In CoNLL-U, "1-2" is a word of two parts, which follow.
            if COMMENT.match(line) or (_is_universal(fields) and not fields[0].isdigit()):
                continue
            width = width or len(fields)
            if len(fields) != width or width == 1:
                raise InputError(
                    f"{file}, line {number}: {len(fields)} columns. Every line must be a word and "
                    f"its tags ({width} columns, as in the first line), or blank between sentences."
                )
            rows.append(fields)
        if rows:
            yield _sentence(rows)


def _sentence(rows: list[list[str]]) -> dict[str, Any]:
    columns = [list(column) for column in zip(*rows, strict=True)]
    if _is_universal(rows[0]):
        return {"tokens": columns[1], "lemmas": columns[2], "tags": columns[3], "xpos": columns[4]}
    record = {"tokens": columns[0]}
    for i, column in enumerate(columns[1:-1], 2):
        record[f"column{i}"] = column
    record["tags"] = columns[-1]
    return record


def labelled_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of fastText."""
    with tables.opened_text(file, newline="\n") as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            match = FAST_TEXT.match(line.rstrip("\r\n"))
            if not match:
                raise InputError(f"{file}, line {number}: it does not begin with __label__.")
            yield {"label": match[1], "text": match[2]}
