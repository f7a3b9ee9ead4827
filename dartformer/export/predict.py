"""Predict: a stream of JSON lines in, the same lines with answers out."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dartformer.data.lines import parsed
from dartformer.errors import InputError, shortened
from dartformer.export.load import Answer, Served

FIELDS = ("text", "texts", "tokens")
"""What a line may hold: a text, two texts to compare, or token ids (two lists to compare)."""

UNREADABLE = (InputError, TypeError, ValueError, OverflowError)
"""What a document raises, which may be anything: a number for a list, a list within a list."""

LONGEST = 400
"""Characters of an error of a line, whatever it repeats."""

PREFIX = "dartformer_"
"""In front of the name of an answer's field where the line has a field of that name."""


class Reply(NamedTuple):
    """What is printed for a line: the line's object with the answer; whether it is an error."""

    record: dict[str, Any]
    failed: bool


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


def stream(
    served: Served, lines: Iterable[str], batch: int = 64, *, top: int = 0
) -> Iterator[Reply]:
    """For each line that is not blank its object with the answer, or with "error".

    Lines are `{"text": "..."}`, `{"texts": ["...", "..."]}` or `{"tokens": [...]}`, with whatever
    else they hold, or a bare JSON text. Their own fields are kept: a field of the answer gets
    `PREFIX` where the line has one of its name. `batch` lines are read before they are answered
    together, so memory does not grow. `top` is that of `Served`.
    """
    if batch < 1:
        raise InputError(f"--batch must be at least 1, got {batch}.")
    numbered = _numbered(lines)
    while chunk := list(itertools.islice(numbered, batch)):
        yield from _replies(served, chunk, top)


def _replies(served: Served, chunk: Sequence[tuple[int, str]], top: int) -> Iterator[Reply]:
    """The replies to some lines, which are answered together."""
    read = [_read(served, number, line) for number, line in chunk]
    documents = []
    for line in read:
        if not line.error:
            documents.append(line.document)
    answers = iter(answers_or_faults(served, documents, top=top))
    for (number, _), line in zip(chunk, read, strict=True):
        error = line.error
        if not error:
            answer = next(answers)
            if not isinstance(answer, str):
                yield Reply(_with(line.fields, answer), False)
                continue
            error = f"line {number}: {answer}"
        yield Reply(_with(line.fields, {"line": number, "error": error}), True)


def answers_or_faults(
    served: Served, documents: Sequence[Any], *, top: int = 0
) -> Sequence[Answer | str]:
    """For each document the model's answer, or why the model cannot read it."""
    try:
        return served(documents, top=top)
    except UNREADABLE:
        # Which one it is, the model does not say of many: they are read one by one.
        faults = [fault_of(served, document) for document in documents]
        if not any(faults):
            raise
    # A document with a fault must not keep those around it from being answered.
    readable = itertools.compress(documents, [not fault for fault in faults])
    answers = iter(served(list(readable), top=top))
    return [fault or next(answers) for fault in faults]


def _with(fields: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a line and of its answer."""
    record = dict(fields)
    for name, value in answer.items():
        while name in record:
            name = PREFIX + name
        record[name] = value
    return record


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers, which count blank ones too."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line


def _read(served: Served, number: int, text: str) -> Line:
    """A line, checked."""
    try:
        data = parsed(text)
    except ValueError as error:
        return Line({}, None, f"line {number} is {error}.")
    fields = data
    if isinstance(data, str):
        fields = {"text": data}
    if not isinstance(fields, dict) or sum(name in fields for name in FIELDS) != 1:
        names = ", ".join(FIELDS)
        return Line({}, None, f"line {number} must be an object with one of {names}.")
    try:
        document = _document(served, fields)
    except InputError as error:
        return Line(fields, None, f"line {number}: {error}")
    return Line(fields, document)


def fault_of(served: Served, document: Any) -> str:
    """Why the model cannot read a document, or ""."""
    try:
        served.arrays([document])
    except UNREADABLE as error:
        return shortened(str(error), LONGEST)
    return ""


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
    if not isinstance(fields["tokens"], list):
        raise InputError("'tokens' must be a list of token ids.")
    return fields["tokens"]


def _is_text(value: object) -> bool:
    return isinstance(value, str)
