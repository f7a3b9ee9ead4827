"""The fields of a dataclass of options: what its docstring says of each, and checks of their values.

A dataclass checks itself in `__post_init__` and names the field as it knows it. Whoever builds it
from a config adds the section: `FieldError.within("search.alphas")`."""

import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

from dartformer.errors import InputError, brief, is_storable

KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list separated by commas",
    typing.Literal: "a text",
}
"""What types are called in messages."""

PLURALS = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}
"""What tuples are called, by the type of their members."""


class FieldError(InputError):
    """A value that a field cannot have.

    Attributes:
      field: the name of the field, without its section.
      reason: the rest of the sentence.
    """

    def __init__(self, field: str, reason: str):
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason

    def within(self, section: str) -> "FieldError":
        """The same error, with the section before the field's name."""
        return FieldError(f"{section}.{self.field}", self.reason)


def check_types(options: Any) -> None:
    """Raise `FieldError` for the first field whose value is not of its annotated type."""
    for name, hint in typing.get_type_hints(type(options)).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        value = getattr(options, name)
        if not fits(value, hint):
            raise FieldError(name, f"takes {kind_of(hint)}, got {brief(value)}.")


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of an annotated type. An int will do for a float, a bool not for an int."""
    if not is_storable(value):
        return False
    origin = typing.get_origin(hint) or hint
    if origin is types.UnionType:
        return any(fits(value, one) for one in typing.get_args(hint))
    if origin is tuple:
        item = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(fits(member, item) for member in value)
    if origin is float:
        return type(value) in (int, float)
    if origin is typing.Literal:
        return isinstance(value, str)  # which of them: see `one_of`
    if origin in KINDS:
        return type(value) is origin
    return isinstance(value, origin)


def kind_of(hint: Any) -> str:
    """What an annotated type is called in messages."""
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        return PLURALS[typing.get_args(hint)[0]]
    return KINDS.get(origin, "a section")


def at_least(options: Any, least: int, *names: str) -> None:
    """Raise `FieldError` for the first of the fields that is below `least` or not finite."""
    for name in names:
        value = getattr(options, name)
        if not least <= value < math.inf:
            raise FieldError(name, f"must be at least {least}, got {brief(value)}.")


def at_most(options: Any, most: int, *names: str) -> None:
    """Raise `FieldError` for the first of the fields that is above `most`."""
    for name in names:
        value = getattr(options, name)
        if value > most:
            raise FieldError(name, f"must be at most {most}, got {brief(value)}.")


def between(options: Any, low: float, high: float, *names: str) -> None:
    """Raise `FieldError` for the first of the fields that is not in [low, high]."""
    for name in names:
        value = getattr(options, name)
        if not low <= value <= high:
            raise FieldError(name, f"must be between {low} and {high}, got {brief(value)}.")


def one_of(options: Any, name: str, choices: Iterable[str]) -> None:
    """Raise `FieldError`, with the nearest choice, unless the field is one of them."""
    value, choices = getattr(options, name), list(choices)
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = ""
    if nearest:
        hint = f" Did you mean {nearest[0]!r}?"
    raise FieldError(name, f"cannot be {brief(value)}.{hint} Choices: {', '.join(choices)}.")


def documented(cls: type) -> dict[str, str]:
    """What the `Attributes:` of a class and its bases say of each field, on one line.

    An entry `a, b: text` stands for both fields."""
    sentences: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        sentences.update(_entries(base.__doc__ or ""))
    return sentences


def _entries(docstring: str) -> dict[str, str]:
    """The entries of the `Attributes:` of one docstring."""
    lines = docstring.partition("Attributes:\n")[2].splitlines()
    texts: dict[tuple[str, ...], list[str]] = {}
    names: tuple[str, ...] = ()
    for line in lines:
        if not line.strip():
            break
        head, colon, tail = line.strip().partition(": ")
        words = tuple(name.strip() for name in head.split(","))
        # An entry is indented by two more than the heading; what continues it, by four.
        starts = colon and _indent(line) == _indent(lines[0])
        if starts and all(word.isidentifier() for word in words):
            names = words
            texts[names] = [tail]
        elif names:
            texts[names].append(line.strip())
    return {name: " ".join(parts) for names, parts in texts.items() for name in names}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
