"""Tasks: their table, and how a config's options make one.

To add a task here, write a file and a line in `BUILT_IN`. To add one from outside, call
`dartformer.register("task", name, cls)` or offer an entry point of the group `dartformer.task`.
"""

import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from dartformer import spec
from dartformer.errors import unknown
from dartformer.registry import Registry, is_dataclass_type
from dartformer.tasks.base import Task
from dartformer.tasks.compositional_recall import CompositionalRecall
from dartformer.tasks.compression import Compression
from dartformer.tasks.context_recall import ContextRecall, FuzzyRecall, NoisyRecall
from dartformer.tasks.files import Files
from dartformer.tasks.image import Image
from dartformer.tasks.imdb import ImdbBytes, ImdbTokens
from dartformer.tasks.language import Language
from dartformer.tasks.listops import ListOps
from dartformer.tasks.matching import Matching
from dartformer.tasks.memorization import Memorization
from dartformer.tasks.parity import Parity
from dartformer.tasks.passage import Passage
from dartformer.tasks.pathfinder import Pathfinder
from dartformer.tasks.pictures import Pictures
from dartformer.tasks.planted import Planted
from dartformer.tasks.recall import Recall, UpdatedRecall
from dartformer.tasks.selective_copying import SelectiveCopying
from dartformer.tasks.series import Series

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
    "updated_recall": UpdatedRecall,
    "compositional_recall": CompositionalRecall,
    "context_recall": ContextRecall,
    "noisy_recall": NoisyRecall,
    "fuzzy_recall": FuzzyRecall,
    "selective_copying": SelectiveCopying,
    "compression": Compression,
    "memorization": Memorization,
    "parity": Parity,
    "passage": Passage,
    "files": Files,
    "series": Series,
    "pictures": Pictures,
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


def options_of(cls: type) -> dict[str, Any]:
    """The options of a task type with their defaults, without what a task learns from its data."""
    options = {}
    for field in fields(cls):
        if field.init and field.metadata.get("option", True):
            options[field.name] = field.default
    return options


def make(name: str, options: Mapping[str, Any]) -> Task:
    """The task `name` with these options; the rest have their defaults.

    An int is accepted for a float, and a list for a tuple.

    Raises:
      InputError: for an unknown task or option, a value of the wrong type, or one that the task
        refuses.
    """
    cls = find(name)
    available = list(options_of(cls))
    hints = typing.get_type_hints(cls)
    values = {}
    for option, value in options.items():
        if option not in available:
            raise unknown(f"option of task {name}", option, available)
        values[option] = spec.typed(f"task.{option} of {name}", value, hints[option])
    task: Task = cls(**values)
    return task
