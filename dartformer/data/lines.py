"""Lines of text, and JSON lines, read alike for training and for prediction."""

import codecs
import json
from collections.abc import Iterable, Iterator


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
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except ValueError:  # an integer of more digits than Python reads
        raise ValueError("a number in it has too many digits") from None
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None
