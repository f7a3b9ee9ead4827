"""Records: frozen dataclasses that are written as JSON and checked field by field when read."""

import dataclasses
import types
from collections.abc import Container, Iterable, Mapping
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from dartformer.errors import InputError

Plain = object
"""What JSON can hold, of a form that a plug-in decides: rules and tasks report what they like."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a value stands: a file and the path of keys in it, for messages."""

    file: str
    key: str = ""

    def at(self, name: str | int) -> "Place":
        """One key or number further in."""
        if isinstance(name, int):
            return Place(self.file, f"{self.key}[{name}]")
        return Place(self.file, f"{self.key}.{name}".lstrip("."))

    def wrong(self, problem: str) -> InputError:
        """The error that names the file, the key and what is wrong with it."""
        if not self.key:
            return InputError(f"{self.file} {problem}.")
        return InputError(f"{self.file}: {self.key} {problem}.")


class Record:
    """A frozen dataclass with a JSON form.

    A field without a default is always written. A field whose default is None is left out while it
    is None. `by_metric` maps fields to keys that contain the metric's name, which the field
    `metric` holds: `{"mean": "{}"}` writes `mean` under "accuracy". `open_field` names a mapping
    whose entries stand beside the record's own keys.
    """

    by_metric: ClassVar[Mapping[str, str]] = {}
    open_field: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        written: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            # The keys of the scores name the metric already: "valid_accuracy".
            if field.name == "metric" and self.by_metric:
                continue
            if field.name == self.open_field:
                written.update(plain(value))
            elif field.name in self.by_metric:
                key = self.by_metric[field.name].format(self.metric)  # type: ignore[attr-defined]
                written[key] = plain(value)
            else:
                written[field.name] = plain(value)
        return written

    @classmethod
    def from_dict(cls, data: object, file: str = "the data") -> Self:
        """The record in plain data; `InputError` names the file, the key and what is wrong."""
        return cls.decode(data, Place(file))

    @classmethod
    def decode(cls, data: object, place: Place) -> Self:
        """`from_dict` at a place within a file."""
        if not isinstance(data, dict):
            raise place.wrong(f"must be an object, not {kind(data)}")
        values: dict[str, Any] = {}
        # Hints are texts where a class is defined below its use; this resolves them.
        hints = get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name, pattern in cls.by_metric.items():
            metric = _metric_of(data, pattern, fields)
            if metric is None:
                raise place.wrong(f"lacks the key {pattern.format('METRIC')!r}")
            key = pattern.format(metric)
            values["metric"] = metric
            values[name] = decode(hints[name], data[key], place.at(key))
        for name, field in fields.items():
            if name in values or name == cls.open_field:
                continue
            if name in data:
                values[name] = decode(hints[name], data[name], place.at(name))
            elif (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            ):
                raise place.wrong(f"lacks the key {name!r}")
        # Unknown keys are ignored, so that a file of a newer version can be read, unless the record
        # has a field for them.
        if cls.open_field:
            values[cls.open_field] = _without(data, fields)
        return cls(**values)


def _without(data: Mapping[str, Plain], names: Container[str]) -> dict[str, Plain]:
    """The entries of `data` that have none of the names."""
    entries = {}
    for name, value in data.items():
        if name not in names:
            entries[name] = value
    return entries


def _metric_of(data: Iterable[str], pattern: str, fields: Container[str]) -> str | None:
    """The name that stands for {} in the first key of `data` that has the pattern."""
    before, after = pattern.split("{}")
    for key in data:
        # A pattern that is "{}" alone fits every key, so the record's other keys come first.
        if key in fields or not (key.startswith(before) and key.endswith(after)):
            continue
        return key[len(before) : len(key) - len(after)]
    return None


def plain(value: object) -> Any:
    """Records, arrays and tuples as what JSON can hold."""
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        entries = {}
        for key, item in value.items():
            entries[str(key)] = plain(item)
        return entries
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def decode(hint: Any, value: object, place: Place) -> Any:
    """`value` as the type `hint`; `InputError` where it is something else."""
    # Any on both sides: a hint can be a class, a union or an alias, for which typing has no type.
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Plain:
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, place)
    if origin is Literal:
        if value not in arguments:
            raise place.wrong(
                f"must be one of {', '.join(map(repr, arguments))}, not {value!r:.60}"
            )
        return value
    if origin is tuple:
        return tuple(_decode_list(arguments[0], value, place))
    if origin is list:
        return _decode_list(arguments[0], value, place)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise place.wrong(f"must be an object, not {kind(value)}")
        entries = {}
        for key, item in value.items():
            entries[key] = decode(arguments[1], item, place.at(key))
        return entries
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.decode(value, place)
    if hint is np.ndarray:
        return _decode_array(value, place)
    return _decode_scalar(hint, value, place)


def _decode_union(arguments: tuple[Any, ...], value: object, place: Place) -> Any:
    options = list(arguments)
    if type(None) in options:
        options.remove(type(None))
    if value is None and len(options) < len(arguments):
        return None
    if len(options) == 1:
        return decode(options[0], value, place)
    # The first option's error is shown: it is the common form, and the next ones are exceptions.
    problem: InputError | None = None
    for option in options:
        try:
            return decode(option, value, place)
        except InputError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _decode_list(hint: Any, value: object, place: Place) -> list[Any]:
    if not isinstance(value, list):
        raise place.wrong(f"must be a list, not {kind(value)}")
    items = []
    for i, item in enumerate(value):
        items.append(decode(hint, item, place.at(i)))
    return items


def _decode_array(value: object, place: Place) -> np.ndarray:
    # null stands for NaN, which JSON lacks.
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError):
        raise place.wrong("must be nested lists of numbers") from None


def _decode_scalar(hint: type, value: object, place: Place) -> Any:
    if hint is float and value is None:
        return float("nan")
    accepted: tuple[type, ...] = (hint,)
    if hint is float:
        accepted = (int, float)  # JSON writes 1.0 as 1 in other languages
    # To Python a bool is an int, and would pass for a number.
    if isinstance(value, bool) != (hint is bool) or not isinstance(value, accepted):
        raise place.wrong(f"must be {KINDS[hint]}, not {kind(value)}")
    return value


KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def kind(value: object) -> str:
    """What a value is, in words."""
    return KINDS.get(type(value), type(value).__name__)
