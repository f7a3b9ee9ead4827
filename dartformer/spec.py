"""Texts of typed options: `local(window=16)`, `parallel(members=(full, linear))`.

A text names a dataclass of a table and gives values to its fields: an attention, a derivation, an
extra, a hypergradient. Texts are read as Python literals and never evaluated.
"""

import ast
import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from dartformer.errors import InputError, brief, is_storable, unknown


class Call(NamedTuple):
    """A text taken apart: `name(*positional, **keywords)`."""

    name: str
    positional: list[object]
    keywords: list[tuple[str, object]]


def parse(text: str, table: Mapping[str, type], kind: str = "attention") -> Any:
    """The instance that `text` describes: `full`, `local(window=16)` or `local(16)`.

    Args:
      text: a name of the table, with or without options.
      table: classes by name, dataclasses.
      kind: what the table holds, for messages.

    Raises:
      InputError: the text is not of this form, a name or an option is unknown, or a value is of the
        wrong type or out of range.
    """
    call = _read(text, table, kind)
    if call.name not in table:
        raise unknown(kind, call.name, table)
    cls = table[call.name]
    options = _options(text, call, cls)
    # `field.type` holds texts where annotations are postponed; this resolves them.
    hints = typing.get_type_hints(cls)
    for option, value in options.items():
        options[option] = typed(f"{call.name}: option {option!r}", value, hints[option])
    missing = list(_required(cls))
    for option in options:
        if option in missing:
            missing.remove(option)
    if missing:
        raise InputError(f"{brief(text)} lacks a value for {', '.join(missing)}.")
    return cls(**options)


def to_text(instance: object, table: Mapping[str, type]) -> str:
    """The text that `parse` reads back as an equal instance; it gives every field."""
    for name, cls in table.items():
        # Not isinstance: a subclass has a name of its own in the table.
        if type(instance) is cls:
            return spelled(name, instance, lambda value: _value_text(value, table))
    raise InputError(
        f"{instance!r} is of no registered type. Register its class first. "
        f"Known: {', '.join(table)}."
    )


def typed(label: str, value: Any, hint: Any) -> Any:
    """`value` as a field annotated with `hint` holds it.

    An int becomes a float where the field holds floats, and a list a tuple, because JSON has no
    tuples. Items of a tuple are checked where they are plain values.

    Args:
      label: what to call the value in the message.
      value: plain data.
      hint: a type, a union of types or a `Literal`.

    Raises:
      InputError: the value is of another type.
    """
    members = _members(hint)
    for member in members:
        origin = typing.get_origin(member) or member
        # Arrays of numbers do not hold it.
        if not is_storable(value):
            break
        # Not isinstance, because a bool is an int and would pass for one.
        if origin is Any or (type(value) is origin and origin is not tuple):
            return value
        if origin is float and type(value) is int:
            return float(value)
        if origin is tuple and type(value) in (list, tuple):
            return _typed_items(label, value, member)
        if origin is typing.Literal and _is_among(value, typing.get_args(member)):
            return value
    expected = " or ".join(map(_type_text, members))
    raise InputError(f"{label} must be {expected}, got {brief(value)}.")


def _typed_items(label: str, values: Iterable[Any], hint: Any) -> tuple[Any, ...]:
    """A tuple for a field annotated with `hint`, `tuple` or `tuple[item, ...]`."""
    item = (*typing.get_args(hint), Any)[0]
    # Attentions are checked by their own parser.
    if not {bool, int, float, str}.issuperset(_members(item)):
        return tuple(values)
    items = []
    for value in values:
        items.append(typed(f"each value of {label}", value, item))
    return tuple(items)


def _is_among(value: object, choices: tuple[object, ...]) -> bool:
    """Whether a value is one of the choices, and of its type: True is not 1 here."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def spelled(name: str, instance: Any, text: Callable[[Any], str] = repr) -> str:
    """`name(field=value, ...)` with every field of a dataclass, or `name` if it has none."""
    fields = []
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        fields.append(f"{field.name}={text(value)}")
    if not fields:
        return name
    return f"{name}({', '.join(fields)})"


class Spelled:
    """Prints an attention as the text that configs use: `local(window=16)`.

    For classes decorated with `@dataclass(repr=False)`.

    Attributes:
      spelling: its name in texts, where it is not the name of the class in lower case.
    """

    spelling: ClassVar[str] = ""

    def __repr__(self) -> str:
        return spelled(name_of(self), self)


def name_of(option: object) -> str:
    """The name of `option` in texts: its `spelling`, or its class's name in lower case."""
    return getattr(option, "spelling", "") or type(option).__name__.lower()


def _read(text: str, table: Mapping[str, type], kind: str) -> Call:
    """A text taken apart; `InputError` where it is not a name or a call with plain values."""
    error = InputError(
        f"cannot read {kind} {brief(text)}: write a name, or name(option=value, ...) with plain values."
    )
    if not isinstance(text, str):
        raise error
    try:
        # The text is parsed and never evaluated, since a config may come from somebody else.
        body = ast.parse(text.strip(), mode="eval").body
        if isinstance(body, ast.Name):
            return Call(body.id, [], [])
        if not isinstance(body, ast.Call) or not isinstance(body.func, ast.Name):
            raise error
        positional = [_value(node, table) for node in body.args]
        keywords = []
        for keyword in body.keywords:
            if keyword.arg is None:  # ** unpacking
                raise error
            keywords.append((keyword.arg, _value(keyword.value, table)))
    except InputError:  # this error, or that of an attention inside the text
        raise
    # All that ast raises: for null bytes, for unhashable keys, for parentheses nested too deep.
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise error from None
    return Call(body.func.id, positional, keywords)


def _value(node: ast.expr, table: Mapping[str, type]) -> object:
    """A constant, or a tuple of attentions.

    For anything else it raises what `ast.literal_eval` raises."""
    if isinstance(node, ast.Tuple):
        # A bare name or a call is no literal, so a tuple with one can only be of attentions.
        nested = any(isinstance(item, (ast.Name, ast.Call)) for item in node.elts)
        if nested:
            members = []
            for item in node.elts:
                members.append(parse(ast.unparse(item), table))
            return tuple(members)
    return ast.literal_eval(node)


def _value_text(value: object, table: Mapping[str, type]) -> str:
    """The text of a field's value, which `_value` reads back."""
    if not isinstance(value, tuple) or not value or not all(map(dataclasses.is_dataclass, value)):
        return repr(value)
    texts = [to_text(item, table) for item in value]
    if len(texts) == 1:
        return f"({texts[0]},)"  # without the comma Python reads no tuple
    return f"({', '.join(texts)})"


def _options(text: str, call: Call, cls: type) -> dict[str, object]:
    """The values of a call by field name."""
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    if len(call.positional) > len(fields):
        raise InputError(
            f"{call.name} takes {len(fields)} options at most ({', '.join(fields) or 'none'}), "
            f"got {len(call.positional)} in {brief(text)}."
        )
    options: dict[str, object] = dict(zip(fields, call.positional, strict=False))
    for option, value in call.keywords:
        if option in options:
            raise InputError(f"{brief(text)} gives option {option!r} twice.")
        if option not in fields:
            raise unknown(f"option of {call.name}", option, fields)
        options[option] = value
    return options


def _required(cls: type) -> list[str]:
    """The fields of a dataclass that have no default."""
    required = []
    for field in dataclasses.fields(cls):
        default = field.default is not dataclasses.MISSING
        factory = field.default_factory is not dataclasses.MISSING
        if field.init and not default and not factory:
            required.append(field.name)
    return required


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _type_text(hint: Any) -> str:
    """A type in a message: "int", "None", "'dense' or 'random'"."""
    if hint is types.NoneType:
        return "None"
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))
