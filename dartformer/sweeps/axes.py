"""The axes of a sweep: config fields with several values each, and the product of them."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dartformer.errors import InputError, brief
from dartformer.machine.identity import fingerprint

MOST = 10_000
"""Tasks of a sweep. More are probably a slip of the pen in a range."""

RANGE = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})")

READABLE = 120
"""Letters of the name of a folder."""

GENERIC = ("name", "start", "path")
"""Last parts of fields that say less than the section they are in."""


@dataclass(frozen=True)
class Axis:
    """A config field, and its values as they are typed."""

    field: str
    values: tuple[str, ...]


def parse(texts: Sequence[str]) -> tuple[Axis, ...]:
    """The axes of texts such as "seed=0..4" and "search.strategy.name=darts,spos".

    Values are separated by commas outside brackets; "0..4" are the whole numbers from 0 to 4. Whether
    the fields exist and take the values is for the config to say. Raises `InputError` for an axis
    without values, a value or a field that is there twice, and too many tasks.
    """
    axes: list[Axis] = []
    for text in texts:
        field, equals, listed = text.partition("=")
        field = field.strip().removeprefix("config.")
        if not equals or not field:
            raise InputError(f"--over takes FIELD=VALUES, as in seed=0..4, got {brief(text)}.")
        if any(axis.field == field for axis in axes):
            raise InputError(f"the axis {field} is there twice. Give it all its values at once.")
        axes.append(Axis(field, _values(field, listed)))
    if not axes:
        raise InputError("a sweep needs an axis, as in --over=seed=0..4.")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST:
        raise InputError(f"these axes make {count:,} tasks, and a sweep takes at most {MOST:,}.")
    return tuple(axes)


def _values(field: str, text: str) -> tuple[str, ...]:
    values: list[str] = []
    for item in _split(text):
        found = RANGE.fullmatch(item)
        if found is None:
            values.append(item)
            continue
        low, high = map(int, found.groups())
        if high < low:
            raise InputError(f"the axis {field} is empty: {item} ends before it begins.")
        if high - low >= MOST:
            raise InputError(f"the axis {field} has more than {MOST:,} values: {item}.")
        values += map(str, range(low, high + 1))
    if not values:
        raise InputError(f"the axis {field} is empty. Give it values, as in {field}=VALUE,VALUE.")
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"the axis {field} has the value {brief(value)} twice.")
    return tuple(values)


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    items, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            items.append("")
        else:
            items[-1] += sign
    return list(filter(None, map(str.strip, items)))


def product(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Every choice of one value on each axis, by field; the last axis changes first."""
    fields = [axis.field for axis in axes]
    choices = []
    for values in itertools.product(*(axis.values for axis in axes)):
        choices.append(dict(zip(fields, values, strict=True)))
    return choices


def labels(fields: Sequence[str]) -> dict[str, str]:
    """A short name for each field: "strategy" for "search.strategy.name"."""
    short = {}
    for field in fields:
        parts = field.split(".")
        while len(parts) > 1 and parts[-1] in GENERIC:
            parts.pop()
        short[field] = parts[-1]
    named = {}
    for field, label in short.items():
        named[field] = label
        if list(short.values()).count(label) > 1:
            named[field] = field
    return named


def name(choice: Mapping[str, str]) -> str:
    """The name of a task and of its folder, such as "strategy=darts,seed=0"."""
    named = labels(list(choice))
    text = ",".join(f"{named[field]}={value}" for field, value in choice.items())
    plain = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", text)[:READABLE]
    if plain != text:
        # Two texts may look alike once they are cut.
        plain = f"{plain.strip('_')}-{fingerprint(choice)}"
    return plain
