"""Tasks: their table, and how a config's options make one.

To add a task here, write a file and a line in `BUILT_IN`. To add one from outside, call
`dartformer.register("task", name, cls)` or offer an entry point of the group `dartformer.task`.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dartformer.errors import InputError, unknown
from dartformer.registry import Registry, is_dataclass_type
from dartformer.tasks.base import Task
from dartformer.tasks.files import Files
from dartformer.tasks.image import Image
from dartformer.tasks.imdb import ImdbBytes, ImdbTokens
from dartformer.tasks.language import Language
from dartformer.tasks.listops import ListOps
from dartformer.tasks.matching import Matching
from dartformer.tasks.pathfinder import Pathfinder
from dartformer.tasks.planted import Planted
from dartformer.tasks.recall import Recall

BUILT_IN: dict[str, type] = {
    "listops": ListOps,
    "planted": Planted,
    "imdb_bytes": ImdbBytes,
    "imdb_tokens": ImdbTokens,
    "matching": Matching,
    "image": Image,
    "pathfinder": Pathfinder,
    "language": Language,
    "recall": Recall,
    "files": Files,
}

TASKS: Registry[type] = Registry(
    "task",
    BUILT_IN,
    group="dartformer.task",
    requirement="a dataclass",
    fits=is_dataclass_type,
)
"""Every task by name: the built-in ones, and those of other packages."""


def names() -> list[str]:
    """Every known task: built in, registered, and offered by entry points."""
    return TASKS.names()


def find(name: str) -> type:
    """The task type of that name; `InputError` if it is unknown or does not load."""
    return TASKS.find(name)


def options_of(kind: type) -> dict[str, Any]:
    """The options of a task type with their defaults; what a task learns from its data is none."""
    return {f.name: f.default for f in fields(kind) if f.init and f.metadata.get("option", True)}


def make(name: str, options: Mapping[str, Any]) -> Task:
    """The task `name` with these options, the rest at their defaults.

    Raises `InputError` for an unknown task or option, a value of another type than the option's, or
    one that the task refuses. A float option accepts an int, and a tuple option a list."""
    kind = find(name)
    known = list(options_of(kind))
    hints = typing.get_type_hints(kind)
    for option in options:
        if option not in known:
            raise unknown(f"option of task {name}", option, known)
    return kind(
        **{key: _fitted(f"{name} {key}", value, hints[key]) for key, value in options.items()}
    )


def _fitted(option: str, value: Any, hint: Any) -> Any:
    """`value`, where it is of the type `hint`; a union's first member that fits decides."""
    members = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )
    for member in members:
        kind = typing.get_origin(member) or member
        if kind is Any or type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
        if kind is tuple and isinstance(value, list):
            return tuple(value)
    wanted = getattr(hint, "__name__", str(hint)) if len(members) == 1 else str(hint)
    raise InputError(
        f"task option {option} must be {wanted}; got {value!r}, of type {type(value).__name__}."
    )
