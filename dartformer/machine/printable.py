"""Text of files and of users, made safe to print: it can be read and does nothing else.

A terminal obeys control characters: they clear it, set its title or clipboard, or overwrite lines.
Others hide characters or turn their order around. All are printed as the escapes of a Python text.
"""

import json
import sys
import unicodedata
from collections.abc import Callable

HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that do something or cannot be seen: controls, formats (direction, zero
width), halves of a pair, and separators of lines and paragraphs."""


def printable(text: str) -> str:
    """The text with an escape such as `\\x1b` for each hidden character but newline and tab."""
    return _escaped(text, _python_escape)


def printable_json(text: str) -> str:
    """JSON with `\\u` escapes for hidden characters; it stands for the same data."""
    return _escaped(text, _json_escape)


def one_line(text: str) -> str:
    """`printable`, with newlines and tabs as escapes too: no text can pass for more lines."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def note(text: str) -> None:
    """Print one line to standard error, at once: a pipe is read while the work goes on."""
    print(one_line(text), file=sys.stderr, flush=True)


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    # Nearly all texts are plain, and this is quick. Newlines and tabs stay as they are.
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    characters = []
    for character in text:
        if character not in "\n\t" and unicodedata.category(character) in HIDDEN:
            character = escape(character)
        characters.append(character)
    return "".join(characters)


def _python_escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    if character == "\x7f":  # ASCII, which `json` leaves as it is
        return "\\u007f"
    return json.dumps(character)[1:-1]
