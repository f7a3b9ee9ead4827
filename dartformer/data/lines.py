"""Lines of text, and JSON lines, read alike for training and for prediction."""

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence

DEEPEST = 100
"""Levels of lists and objects of a JSON line. Python's own limit depends on where it is called."""


def decoded(lines: Iterable[bytes]) -> Iterator[str]:
    """Lines without their ends, of a file that is opened as bytes.

    Only "\\n" and "\\r\\n" end a line: U+2028 and form feeds are part of a text. The first line may
    start with a byte order mark. Bytes that are not valid UTF-8 arrive as surrogates.
    """
    for number, line in enumerate(lines):
        if not number:
            line = line.removeprefix(codecs.BOM_UTF8)
        yield line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def parsed(line: str) -> object:
    """The value of a JSON line; `ValueError` says what is wrong."""
    nested = "not JSON that can be read: its lists or objects are nested too deeply"
    try:
        value: object = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except ValueError:  # an integer of more digits than Python reads
        raise ValueError("not JSON that can be read: a number has too many digits") from None
    except RecursionError:
        raise ValueError(nested) from None
    if line.count("[") + line.count("{") > DEEPEST and _is_deep(value):
        raise ValueError(nested)
    return value


def _is_deep(value: object) -> bool:
    """Whether lists and objects are nested beyond `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[object] = []
        for outer in level:
            inner.extend(_contents(outer))
        if not inner:
            return False
        level = inner
    return True


def _contents(value: object) -> Sequence[object]:
    """The values in a list or an object."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list):
        return value
    return ()
