"""Predict: a stream of JSON lines in, the same lines with answers out."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from dartformer.errors import InputError
from dartformer.export.load import Served

FIELDS = ("text", "texts", "tokens")
"""What a line may hold: a text, two texts to compare, or token ids (two lists to compare)."""


class Line(NamedTuple):
    """A line that was read.

    Attributes:
      fields: what is answered with, whatever else the line holds among it.
      document: what the model reads; None where the line cannot be read.
      error: what is wrong with it.
    """

    fields: Mapping[str, Any]
    document: Any
    error: str = ""


def stream(served: Served, lines: Iterable[str], batch: int = 64) -> Iterator[dict[str, Any]]:
    """For each line that is not blank its object with the answer, or with "error".

    Lines are `{"text": "..."}`, `{"texts": ["...", "..."]}` or `{"tokens": [...]}`, with whatever
    else they hold, or a bare JSON text. `batch` of them are read before they are answered together,
    so memory does not grow.
    """
    if batch < 1:
        raise InputError(f"--batch must be at least 1, got {batch}.")
    numbered = _numbered(lines)
    while chunk := list(itertools.islice(numbered, batch)):
        read = [_read(served, number, line) for number, line in chunk]
        # A line with an error must not keep the lines around it from being answered.
        documents = []
        for line in read:
            if not line.error:
                documents.append(line.document)
        answers = iter(served(documents))
        for line in read:
            if line.error:
                yield {**line.fields, "error": line.error}
            else:
                yield {**line.fields, **next(answers)}


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers, which count blank ones too."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line


def _read(served: Served, number: int, text: str) -> Line:
    """A line, checked."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return Line({"line": number}, None, f"line {number} is not JSON: {error}.")
    fields = data
    if isinstance(data, str):
        fields = {"text": data}
    if not isinstance(fields, dict) or sum(name in fields for name in FIELDS) != 1:
        names = ", ".join(FIELDS)
        wrong = f"line {number} must be an object with one of {names}."
        return Line({"line": number}, None, wrong)
    try:
        document = _document(served, fields)
        served.arrays([document])  # raises for what the model cannot read
    # The line may hold anything: a number for a list, a list within a list.
    except (InputError, TypeError, ValueError) as error:
        return Line({**fields, "line": number}, None, f"line {number}: {error}")
    return Line(fields, document)


def _document(served: Served, fields: Mapping[str, Any]) -> Any:
    """The text, the two texts or the token ids of a line."""
    if "text" in fields:
        if not isinstance(fields["text"], str):
            raise InputError("'text' must be a text.")
        return fields["text"]
    if "texts" in fields:
        texts = fields["texts"]
        if not isinstance(texts, list) or len(texts) != 2 or not all(map(_is_text, texts)):
            raise InputError("'texts' must be a list of two texts.")
        if served.model.shape.inputs != 2:
            raise InputError("'texts' does not work with a model of one document. Use 'text'.")
        return texts
    return fields["tokens"]


def _is_text(value: object) -> bool:
    return isinstance(value, str)
