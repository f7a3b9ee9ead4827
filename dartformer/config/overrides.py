"""Changing fields of a config that is being written: `{"search.steps": "200"}`."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dartformer import strategies
from dartformer.config.presets import strategy_defaults
from dartformer.cost import budget as budgets
from dartformer.errors import InputError, brief, is_storable, unknown
from dartformer.fields import KINDS

BUDGET = "search.budget"
"""The field to which keys are added: see `dartformer.cost.budget`."""

STRATEGY = "search.strategy.name"

WHOLE_NUMBERS = ("model.nope_layers",)
"""Lists of whole numbers that are empty by default, so that no item says their type."""

SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
"""How a text says true or false."""


def override(config: ConfigDict, values: Mapping[str, object]) -> None:
    """Set dotted fields, e.g. `{"search.steps": 200}`; a text is read as the type the field has.

    Another `search.strategy.name` is set first, with its own options in place of the other's (see
    `choose_strategy`). Raises `InputError` for a field that does not exist (with the nearest name)
    or a value of another type."""
    require_names(config)
    # First, because it replaces the section of options that other values may belong to.
    if STRATEGY in values:
        strategy = convert(STRATEGY, values[STRATEGY], "")
        if strategy != _strategy_name(config):
            choose_strategy(config, strategy)
    for name, value in values.items():
        if name == BUDGET or name.startswith(f"{BUDGET}."):
            _override_budget(config, name.removeprefix(BUDGET).lstrip("."), value)
        else:
            _override_field(config, name, value)


def require_names(config: ConfigDict) -> None:
    """Raise `InputError` for a field of any section whose name is no text."""
    sections = [config]
    visited: set[int] = set()  # a section may hold itself
    while sections:
        section = sections.pop()
        if id(section) in visited:
            continue
        visited.add(id(section))
        try:
            fields = section.items(preserve_field_references=True)
        except TypeError:  # it sorts them
            fields = [(None, None)]
        for name, value in fields:
            if not isinstance(name, str):
                raise InputError(
                    "a section of the config holds a name that is no text, such as the 1 of {1: 2}."
                )
            if isinstance(value, ConfigDict):
                sections.append(value)


def _strategy_name(config: ConfigDict) -> str:
    """The name of the strategy; raises `InputError` where the section has none."""
    name = _section(config, "search.strategy").get("name")
    if not isinstance(name, str):
        raise InputError(f"config field {STRATEGY!r} takes a text, got {brief(name)}.")
    return name


def _override_field(config: ConfigDict, name: str, value: object) -> None:
    path, _, last = name.rpartition(".")
    section = config
    if path:
        section = _section(config, path, name)
        path += "."
    _require_field(section, last, name, path)
    current = section[last]
    if isinstance(current, ConfigDict):
        _override_switches(current, name, value)
    else:
        section[last] = convert(name, value, current)


def _section(config: ConfigDict, path: str, name: str = "") -> ConfigDict:
    """The section at a dotted path; `name` is the field that is looked up, for messages."""
    section, prefix = config, ""
    for part in path.split("."):
        _require_field(section, part, name or path, prefix)
        section = section[part]
        prefix = f"{prefix}{part}."
    if not isinstance(section, ConfigDict):
        if name:  # the path leads to a field, and the name beyond it
            raise unknown("config field", name, [])
        raise InputError(f"config field {path!r} is a section, got {brief(section)}.")
    return section


def _require_field(section: object, part: str, name: str, prefix: str) -> None:
    """Raise `InputError` unless `part` is a field of the section that `prefix` leads to."""
    fields = []
    if isinstance(section, ConfigDict):
        fields = list(section.keys())
    if part not in fields:
        names = [f"{prefix}{field}" for field in fields]
        raise unknown("config field", name, names)


def _override_switches(section: ConfigDict, name: str, value: object) -> None:
    """Turn all switches of a section on or off as one: `baselines=false`."""
    if not all(isinstance(switch, bool) for switch in section.values()):
        fields = ", ".join(section.keys())
        raise InputError(f"config field {name!r} is a section. Set one of its fields: {fields}.")
    switched = convert(name, value, True)
    for field in section:
        section[field] = switched


def _override_budget(config: ConfigDict, key: str, value: object) -> None:
    """Set a whole budget, `search.budget="latency_ms=12"`, or one key of it."""
    if key:
        # Added to the limits that there are; a whole budget replaces them.
        budget = _section(config, BUDGET).to_dict()
        if isinstance(value, str):
            budget.update(budgets.parse([f"{key}={value}"], BUDGET))
        else:
            budget[key] = value
    elif isinstance(value, str):
        budget = budgets.parse([value], BUDGET)
    elif isinstance(value, Mapping):
        budget = dict(value)
    else:
        raise InputError(
            f"config field {BUDGET!r} takes limits, as in latency_ms=12, got {brief(value)}."
        )
    for limit in budget:
        budgets.check_key(limit, BUDGET)
    # Whatever a config file left in its place, or deleted.
    with config.unlocked(), config.ignore_type():
        _section(config, "search").budget = ConfigDict(budget)


def choose_strategy(config: ConfigDict, name: str) -> None:
    """Change the strategy, and every field it brings that still has the old strategy's default."""
    strategies.find(name)
    for section in ("search.strategy", "search.alphas", "derive"):
        _section(config, section)
    before = strategy_defaults(_strategy_name(config))
    after = strategy_defaults(name)
    # Unlocked, because another strategy has fields that this config does not know.
    with config.unlocked():
        config.search.strategy = ConfigDict(dict(after.options))
    _replace(config.search, "projections", before.projections, after.projections)
    for field in dataclasses.fields(after.alphas):
        name = field.name
        old, new = getattr(before.alphas, name), getattr(after.alphas, name)
        _replace(config.search.alphas, name, old, new)
    _replace(config.derive, "rule", before.rule, after.rule)
    _replace(config.derive, "second_opinion", before.second_opinion, after.second_opinion)


def _replace(section: ConfigDict, name: str, old: object, new: object) -> None:
    """Give a field its new default, unless the user set it to another value, or deleted it."""
    if name in section and section[name] == old:
        # `False == 0.0`, but a field keeps the type that it was assigned.
        with section.ignore_type():
            section[name] = new


def convert(name: str, value: object, like: object) -> Any:
    """`value` in the type of `like`: a text is read, anything else must already be of that type."""
    kind = type(like)
    try:
        if isinstance(value, str) and kind is not str:
            return _read(name, value, like)
    except (ValueError, KeyError):
        raise _other_type(name, value, like) from None
    if not is_storable(value):
        raise _other_type(name, value, like)
    if kind is float and type(value) is int:
        return float(value)
    # By `type`, as True is an int, too, but no number of steps.
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if type(value) is not kind:
        raise _other_type(name, value, like)
    return value


def _read(name: str, text: str, like: object) -> object:
    """A text as a value of the type of `like`; raises ValueError or KeyError where it is none."""
    if isinstance(like, bool):
        return SWITCHES[text.strip().lower()]
    if isinstance(like, (int, float)):
        return type(like)(text)
    if not isinstance(like, tuple):
        raise ValueError
    items = list(filter(None, map(str.strip, split_list(text))))  # "1, 2," has two
    if not like and name in WHOLE_NUMBERS:
        return tuple(map(int, items))
    if not like:
        return tuple(items)
    # A default of several items says the type of each.
    return tuple(convert(name, item, like[0]) for item in items)


def _other_type(name: str, value: object, like: object) -> InputError:
    kind = KINDS.get(type(like), type(like).__name__)
    return InputError(f"config field {name!r} takes {kind} (as {brief(like)}), got {brief(value)}.")


def split_list(text: str) -> list[str]:
    """Split at commas outside brackets: "full,local(window=4)" has two items.

    A list or a tuple as Python writes it is split, too: "['full', 'linear']", "(0, 1)"."""
    texts = _literal(text)
    if texts is not None:
        return texts
    text = text.strip()
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        text = text[1:-1]
    items, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            items.append("")
        else:
            items[-1] += sign
    return [_unquoted(item) for item in items]


def _literal(text: str) -> list[str] | None:
    """The items of a list of texts with all quotes and escapes of Python; None for any other text."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return None
    return list(value)


def _unquoted(item: str) -> str:
    """An item without the quotes around it."""
    item = item.strip()
    if len(item) > 1 and item[0] == item[-1] and item[0] in "\"'":
        return item[1:-1]
    return item
