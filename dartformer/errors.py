"""Errors of the user, which the command line prints as one line before it exits with code 2."""

import difflib
import re
from collections.abc import Iterable

SHORT = 80
"""Characters of a value that an error repeats."""

WORD = 400
"""Characters from which on a word of a message is cut: a path may be long, and has no spaces."""

HEAD, TAIL = 1500, 500
"""Characters of a longer message that are kept at its beginning and at its end."""


def shortened(text: str, limit: int = SHORT) -> str:
    """A text, or its beginning and its length where it is longer than `limit`."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text):,} characters)"


def _concise(message: str) -> str:
    """A message in which no value, whatever a user or a file gave, hides the rest of it."""

    def cut(word: re.Match[str]) -> str:
        return shortened(word[0])

    message = re.sub(rf"\S{{{WORD},}}", cut, message)
    if len(message) <= HEAD + TAIL:
        return message
    # The end is kept, because it says what to do.
    return f"{message[:HEAD]}... ({len(message):,} characters) ...{message[-TAIL:]}"


class InputError(ValueError):
    """Invalid input; the message names the value, what is wrong with it, and what is allowed.

    Long values are cut in the message.
    """

    def __init__(self, message: str = ""):
        super().__init__(_concise(message))


def brief(value: object) -> str:
    """The `repr` of a value, cut where it is long: a row may hold a megabyte."""
    try:
        return shortened(repr(value))
    # Of an object of the user's own, or of a whole number with more than 4,300 digits.
    except Exception:
        return f"a value of type {type(value).__name__}"


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a table, with the nearest name and the whole list."""
    names = list(known)
    message = f"unknown {kind} {brief(name)}."
    # What is compared is cut too: the comparison takes the square of its length.
    near = difflib.get_close_matches(brief(name).strip("'"), names, n=1, cutoff=0.5)
    if near:
        message += f" Did you mean {near[0]!r}?"
    listed = ", ".join(names) or "none"
    return InputError(f"{message} Known: {listed}.")


LARGEST_INT = 2**63 - 1
"""The largest whole number that arrays of numbers hold."""


def is_storable(value: object) -> bool:
    """Whether a value is no whole number beyond what arrays of numbers hold."""
    return not isinstance(value, int) or -LARGEST_INT <= value <= LARGEST_INT


SEEDS = 2**32
"""How many seeds there are. JAX reads 32 bits of one: larger or negative ones would draw the same
numbers as others."""


def seed_problem(seed: int) -> str:
    """What is wrong with a seed, as the rest of a sentence; empty where nothing is."""
    if 0 <= seed < SEEDS:
        return ""
    return f"must be between 0 and {SEEDS - 1}, because a seed has 32 bits; got {seed!r:.40}."
