"""What every field of a config means: read from the docstrings of the typed sections."""

import dataclasses
from typing import NamedTuple

from ml_collections import ConfigDict

from dartformer import strategies, tasks
from dartformer.config.checkpoint import (
    Checkpoint,
    PlacementBudget,
    PlacementConfig,
    PlacementSpace,
    Tune,
)
from dartformer.config.load import is_placement
from dartformer.config.sections import (
    Baselines,
    Config,
    Data,
    Derive,
    Log,
    Mesh,
    Named,
    Race,
    Retrain,
    Search,
    Space,
)
from dartformer.fields import documented
from dartformer.models.sizes import TransformerOptions
from dartformer.training.optimizer import Optimizer


class Field(NamedTuple):
    """A field of a config.

    Attributes:
      name: dotted, such as "search.steps".
      value: its value in a config.
      sentence: what it means; "" where no docstring says so.
    """

    name: str
    value: object
    sentence: str


def sections(config: ConfigDict) -> dict[str, type]:
    """The types of the sections of a config, its task's and its strategy's among them."""
    if is_placement(config):
        return {
            "": PlacementConfig,
            "checkpoint": Checkpoint,
            "space": PlacementSpace,
            "search": PlacementBudget,
            "tune": Tune,
        }
    return {
        "": Config,
        "task": tasks.find(config.task.name),
        "data": Data,
        "mesh": Mesh,
        "model": TransformerOptions,
        "space": Space,
        "search": Search,
        "search.strategy": strategies.find(config.search.strategy.name),
        "search.weights": Optimizer,
        "search.alphas": Optimizer,
        "derive": Derive,
        "retrain": Retrain,
        "retrain.optimizer": Optimizer,
        "race": Race,
        "baselines": Baselines,
        "log": Log,
    }


def fields(config: ConfigDict) -> list[Field]:
    """Every field of a config, with its value there, in the order of the sections."""
    types = sections(config)
    rows = []
    # From the types and not from the config, which sorts its fields by name.
    for section, cls in types.items():
        values = config
        for part in filter(None, section.split(".")):
            values = values[part]
        for name in _names(section, cls):
            full = f"{section}.{name}".lstrip(".")
            # A section within this one has rows of its own.
            if full in types or name not in values:
                continue
            value = values[name]
            if isinstance(value, ConfigDict):
                value = value.to_dict()
            rows.append(Field(full, value, sentence_of(config, full)))
    return rows


def _names(section: str, cls: type) -> list[str]:
    """The fields of a section; a task or a strategy has a name, too."""
    names = [field.name for field in dataclasses.fields(cls)]
    if section in ("task", "search.strategy"):
        return ["name", *names]
    return names


def sentence_of(config: ConfigDict, name: str) -> str:
    """What a field means; "" where no docstring says so."""
    section, _, field = name.rpartition(".")
    sentences = documented(sections(config)[section])
    if field == "name":
        # `Named` says it for tasks and strategies; an optimizer says itself what its name means.
        return sentences.get(field, documented(Named)[field])
    return sentences.get(field, "")
