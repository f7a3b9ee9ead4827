"""Errors of the user, which the command line prints as one line before it exits with code 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Invalid input; the message names the value, what is wrong with it, and what is allowed."""


SHORT = 80
"""Characters of a value that an error repeats."""


def brief(value: object) -> str:
    """The `repr` of a value, cut where it is long: a row may hold a megabyte."""
    if isinstance(value, str | bytes):
        value = value[: SHORT + 1]
    text = repr(value)
    if len(text) > SHORT:
        return f"{text[:SHORT]}..."
    return text


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a table, with the nearest name and the whole list."""
    names = list(known)
    message = f"unknown {kind} {brief(name)}."
    # What is compared is cut too: the comparison takes the square of its length.
    near = difflib.get_close_matches(str(name)[:SHORT], names, n=1, cutoff=0.5)
    if near:
        message += f" Did you mean {near[0]!r}?"
    listed = ", ".join(names) or "none"
    return InputError(f"{message} Known: {listed}.")
