"""Predict: a stream of JSON lines in, the same lines with answers out."""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from dartformer.errors import InputError
from dartformer.export.load import Served

FIELDS = ("text", "texts", "tokens")
"""What a line may hold: a text, two texts that are compared, or token ids (two lists where two are
compared)."""


def stream(served: Served, lines: Iterable[str], batch: int = 64) -> Iterator[dict[str, Any]]:
    """For each line that is not blank its object with the answer's fields, or with "error" where it
    cannot be read.

    Lines are `{"text": "..."}`, `{"texts": ["...", "..."]}` or `{"tokens": [...]}`, with whatever
    else they hold, or a bare JSON text. `batch` of them are read before they are answered together;
    memory does not grow."""
    if batch < 1:
        raise InputError(f"--batch must be at least 1, got {batch}.")
    numbered = ((n, line) for n, line in enumerate(lines, 1) if line.strip())
    while some := list(itertools.islice(numbered, batch)):
        read = [_read(served, n, line) for n, line in some]
        good = [i for i, (_, error) in enumerate(read) if not error]
        answers = dict(zip(good, served([_document(read[i][0]) for i in good]), strict=True))
        for i, (one, error) in enumerate(read):
            yield {**one, **({"error": error} if error else answers[i])}


def _document(one: dict[str, Any]) -> Any:
    return next(one[field] for field in FIELDS if field in one)


def _read(served: Served, number: int, line: str) -> tuple[dict[str, Any], str]:
    """A line's object and what is wrong with it."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        return {"line": number}, f"line {number} is not JSON: {error}."
    one = {"text": data} if isinstance(data, str) else data
    if not isinstance(one, dict) or sum(field in one for field in FIELDS) != 1:
        return {"line": number}, f"line {number} must be an object with one of {', '.join(FIELDS)}."
    try:
        if ("text" in one and not isinstance(one["text"], str)) or (
            "texts" in one
            and not (
                isinstance(one["texts"], list)
                and len(one["texts"]) == 2
                and all(isinstance(t, str) for t in one["texts"])
            )
        ):
            raise InputError("'text' must be a text, 'texts' a list of two.")
        if "texts" in one and served.model.shape.inputs != 2:
            raise InputError("this model reads one text: give 'text'.")
        served.arrays([_document(one)])
    except (InputError, TypeError, ValueError) as error:
        return {**one, "line": number}, f"line {number}: {error}"
    return one, ""
