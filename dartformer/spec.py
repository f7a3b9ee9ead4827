"""Attentions as text: `local(window=16)`, `parallel(members=(full, linear))`. Nothing is ever
evaluated."""

import ast
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from dartformer.errors import InputError, unknown


def parse(text: str, table: Mapping[str, type], kind: str = "attention") -> Any:
    """The attention that `text` spells: `full`, `local(window=16)` or `local(16)`; or a thing of
    another `kind`.

    Raises:
      InputError: not of this form, an unknown name or option, or a value of the wrong type or
        range.
    """
    name, positional, keywords = _read(text, table, kind)
    if name not in table:
        raise unknown(kind, name, table)
    cls = table[name]
    fields = [f.name for f in dataclasses.fields(cls) if f.init]
    if len(positional) > len(fields):
        raise InputError(
            f"{name} takes {len(fields)} options at most ({', '.join(fields) or 'none'}), "
            f"got {len(positional)} in {text!r}."
        )
    options = dict(zip(fields, positional, strict=False))
    for option, value in keywords:
        if option in options:
            raise InputError(f"{text!r} gives option {option!r} twice.")
        if option not in fields:
            raise unknown(f"option of {name}", option, fields)
        options[option] = value
    hints = typing.get_type_hints(cls)
    options = {
        option: _typed(name, option, value, hints[option]) for option, value in options.items()
    }
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.init
        and f.name not in options
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{text!r} lacks a value for {', '.join(missing)}.")
    return cls(**options)


def to_text(attention: Any, table: Mapping[str, type]) -> str:
    """The text that `parse` reads back as an equal attention; every field is written."""
    for name, cls in table.items():
        if type(attention) is cls:
            return spelled(name, attention, lambda value: _text(value, table))
    raise InputError(
        f"{attention!r} is of no registered attention type: register its class first. "
        f"Known: {', '.join(table)}."
    )


def _text(value: Any, table: Mapping[str, type]) -> str:
    """A field's value as `_value` reads it."""
    if isinstance(value, tuple) and value and all(map(dataclasses.is_dataclass, value)):
        return (
            "("
            + ", ".join(to_text(one, table) for one in value)
            + ("," if len(value) == 1 else "")
            + ")"
        )
    return repr(value)


def _read(
    text: str, table: Mapping[str, type], kind: str
) -> tuple[str, list[Any], list[tuple[str, Any]]]:
    """Name, positional values and keyword values of a spec."""
    error = InputError(
        f"cannot read {kind} {text!r}: write a name, or name(option=value, ...) with plain values."
    )
    if not isinstance(text, str):
        raise error
    try:
        body = ast.parse(text.strip(), mode="eval").body
        if isinstance(body, ast.Name):
            return body.id, [], []
        if not isinstance(body, ast.Call) or not isinstance(body.func, ast.Name):
            raise error
        positional = [_value(node, table) for node in body.args]
        keywords = [
            (str(k.arg), _value(k.value, table)) for k in body.keywords if k.arg is not None
        ]
    except InputError:  # of an attention inside
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise error from None
    if len(keywords) < len(body.keywords):  # ** unpacking
        raise error
    return body.func.id, positional, keywords


def _value(node: ast.expr, table: Mapping[str, type]) -> Any:
    """A constant, or a tuple of attentions; raises what `ast.literal_eval` raises for anything
    else."""
    if isinstance(node, ast.Tuple) and any(
        isinstance(one, (ast.Name, ast.Call)) for one in node.elts
    ):
        return tuple(parse(ast.unparse(one), table) for one in node.elts)
    return ast.literal_eval(node)


def _typed(name: str, option: str, value: Any, wanted: Any) -> Any:
    """`value`, checked against the field's annotation; a whole number is accepted where a float is
    wanted."""
    for kind in _alternatives(wanted):
        if kind is Any or (type(value) is kind) or (typing.get_origin(kind) is type(value)):
            return value
        if kind is float and type(value) is int:
            return float(value)
        if typing.get_origin(kind) is typing.Literal and value in typing.get_args(kind):
            return value
    expected = " or ".join(
        "None"
        if k is types.NoneType
        else " or ".join(map(repr, typing.get_args(k)))
        if typing.get_origin(k) is typing.Literal
        else getattr(k, "__name__", str(k))
        for k in _alternatives(wanted)
    )
    raise InputError(f"{name}: option {option!r} must be {expected}, got {value!r}.")


def _alternatives(wanted: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return typing.get_args(wanted)
    return (wanted,)


def spelled(name: str, attention: Any, text: Callable[[Any], str] = repr) -> str:
    """`name(field=value, ...)` with every field of the dataclass `attention`, or `name` if it has
    none."""
    fields = ", ".join(
        f"{f.name}={text(getattr(attention, f.name))}" for f in dataclasses.fields(attention)
    )
    return f"{name}({fields})" if fields else name


class Spelled:
    """Prints an attention as the text that configs use: `local(window=16)`. For
    `@dataclass(repr=False)`.

    Attributes:
      spelling: its name there, where it is not that of the class in small letters.
    """

    spelling: ClassVar[str] = ""

    def __repr__(self) -> str:
        return spelled(name_of(self), self)


def name_of(option: Any) -> str:
    """What `option` is called in texts: its class's `spelling`, or the class's name in small letters."""
    return getattr(option, "spelling", "") or type(option).__name__.lower()
