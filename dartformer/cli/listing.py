"""The verb list: tables of attentions, strategies, derivations, tasks and config fields."""

import argparse
import dataclasses
from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from dartformer import strategies, tasks
from dartformer.attention import Shape, names, parse, to_text
from dartformer.cli.new import literal
from dartformer.cli.output import print_json
from dartformer.config import defaults, reference
from dartformer.config.presets import strategy_defaults
from dartformer.derivations import DERIVATIONS
from dartformer.errors import InputError
from dartformer.machine.console import Console

LISTED = Shape(length=1024, heads=4, head_dim=32, model_dim=128)
"""The shape for which `dartformer list attentions` gives costs: one sequence, float32."""
Row = dict[str, Any]
"""One line of a list as plain data, which `--json` prints: what it holds depends on the list."""

TITLES = {
    "strategy": "search.strategy.name",
    "hypergradient": "search.strategy.hypergradient",
    "extra": "search.strategy.extras",
}
"""For each kind of row, the field of the config that takes its names."""

TRAITS = ("causal", "bidirectional", "linear")
"""Flags that list the attentions with a trait alone."""

LEGEND = (
    "\nboth: works in both directions. steps: runs token by token. time: growth with the length N. "
    "length: any, or fixed when the layer is built. positions: supported besides learned and "
    "sinusoidal. dropout: what attention dropout drops. MFLOP and MiB: operations and intermediate "
    f"arrays of one forward pass at N={LISTED.length}, {LISTED.heads} heads of {LISTED.head_dim}, "
    "float32, by formula, with the default options:\n"
)


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Print one of the lists."""
    listed = _with_traits(rows(arguments.what), arguments)
    if arguments.json:
        print_json(listed)
    else:
        show(arguments.what, listed)
    return 0


def _with_traits(listed: list[Row], arguments: argparse.Namespace) -> list[Row]:
    """The attentions with the traits that flags name."""
    for name in TRAITS:
        if not getattr(arguments, name):
            continue
        if arguments.what != "attentions":
            raise InputError(
                f"--{name} does not work with `dartformer list {arguments.what}` because it is a "
                f"trait of attentions. Use `dartformer list attentions --{name}`."
            )
        listed = [row for row in listed if _has_trait(row, name)]
    return listed


def _has_trait(row: Row, name: str) -> bool:
    if name == "linear":
        return bool(row["growth"] <= 1)
    return bool(row[name])


def rows(subject: str) -> list[Row]:
    """Rows of `dartformer list`: plain data, each with at least `name`."""
    if subject == "attentions":
        return list(map(_attention, names()))
    if subject == "strategies":
        return _strategies()
    if subject == "derivations":
        return [_part(name, "derivation", cls) for name, cls in DERIVATIONS.items()]
    if subject == "fields":
        return list(map(_field, reference.fields(defaults())))
    return list(map(_task, tasks.names()))


def _field(field: reference.Field) -> Row:
    """A row of `dartformer list fields`: the field, its default and its meaning."""
    summary = field.sentence[:1].upper() + field.sentence[1:]
    return {"name": field.name, "summary": summary, "default": field.value}


def _task(name: str) -> Row:
    """A row of `dartformer list tasks`."""
    cls: Any = tasks.find(name)
    return {"name": name, "summary": cls.traits.summary, "options": _options(cls)}


def _strategies() -> list[Row]:
    """The rows of `dartformer list strategies`."""
    listed = list(map(_strategy, strategies.names()))
    tables: dict[str, Any] = {
        "hypergradient": strategies.HYPERGRADIENTS,
        "extra": strategies.EXTRAS,
    }
    for kind, table in tables.items():
        for name, cls in table.items():
            listed.append(_part(name, kind, cls))
    return listed


def _strategy(name: str) -> Row:
    """A row for a strategy, with its paper and the derivation that follows it."""
    cls: Any = strategies.find(name)
    traits = cls.traits
    return _part(name, "strategy", cls) | {
        "paper": traits.paper,
        "derivations": list(traits.derivations),
        "rule": strategy_defaults(name).rule,
        "alphas": traits.alphas,
        "supernet": traits.supernet,
        "sampled": strategies.make(name, {}).sampled,
    }


def _part(name: str, kind: str, cls: Any) -> Row:
    """What rows of all kinds have: a name, a kind, a sentence and the options."""
    summary = (cls.__doc__ or "").split("\n")[0]
    return {"name": name, "kind": kind, "summary": summary, "options": _options(cls)}


def _options(cls: Any) -> dict[str, Any]:
    """The options that a config can set, with their defaults."""
    options = {}
    for field in dataclasses.fields(cls):
        # What a task learns from its data is a field of the task, but not of the config.
        settable = field.metadata.get("option", True)
        if settable and field.default is not dataclasses.MISSING:
            options[field.name] = field.default
    return options


def _attention(name: str) -> Row:
    """A row for an attention: the traits of its default options, and the cost at `LISTED`."""
    attention = parse(name)
    traits = attention.traits
    positions = set(traits.positions)
    if not traits.reads & {"q", "k"}:
        positions.add("rotary")  # which turns q and k alone, and leaves v as it is
    cost = dataclasses.asdict(attention.cost(LISTED))
    return {
        "name": name,
        "spec": to_text(attention),
        "causal": traits.causal,
        "bidirectional": traits.bidirectional,
        "decodes": traits.decodes,
        "cross": traits.cross,
        "growth": traits.growth,
        "fixed_length": traits.fixed_length,
        "positions": sorted(positions),
        "dropout": traits.dropout,
        "reads": sorted(traits.reads),
        "stochastic": traits.stochastic,
        "order": traits.order,
        "summary": traits.summary,
        "paper": traits.paper,
        "cost": cost | {"shape": dataclasses.asdict(LISTED)},
    }


def show(subject: str, listed: list[Row]) -> None:
    """Print the table of `rows`."""
    console = Console()
    if subject == "attentions":
        _show_attentions(console, listed)
    elif subject == "strategies":
        _show_strategies(console, listed)
    else:
        console.print(_entries(listed))


def _show_strategies(console: Console, listed: list[Row]) -> None:
    """Strategies with their papers and derivations, then hypergradients and extras."""
    for kind, title in TITLES.items():
        console.print(f"[bold]{title}[/bold]")
        entries = []
        for row in listed:
            if row["kind"] == kind:
                entries.append(row)
        console.print(_entries(entries))
        console.print()


def _entries(listed: Iterable[Row]) -> Table:
    """Names, and beside each its text: readable however narrow a terminal is."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for row in listed:
        table.add_row(row["name"], escape("\n".join(_entry(row))))
    return table


def _entry(row: Row) -> list[str]:
    """The summary of a row, its derivation, paper and options."""
    lines = [row["summary"]]
    if "rule" in row:
        lines.append(f"Derivation: {row['rule']}.")
    if row.get("paper"):
        lines.append(f"Paper: {row['paper']}.")
    if "default" in row:
        lines.append(f"Default: {literal(row['default'])}")
    options = []
    for name, value in row.get("options", {}).items():
        options.append(f"{name}={value}")
    if options:
        lines.append(f"Options: {', '.join(options)}")
    return lines


def _show_attentions(console: Console, listed: list[Row]) -> None:
    """What each can do and costs, then what each is."""
    heads = ("name", "causal", "both", "steps", "time", "length", "positions", "dropout")
    table = Table(*heads, box=None, padding=(0, 1, 0, 0))
    for column in ("MFLOP", "MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in listed:
        table.add_row(*_abilities(row))
    console.print(table)
    console.print(LEGEND, markup=False)
    for row in listed:
        text = f"{row['spec']}\n    {row['summary']}"
        if row["paper"] != "none":
            text += f" ({row['paper']})"
        console.print(text, markup=False, soft_wrap=True)


def _abilities(row: Row) -> list[str]:
    """The cells of an attention in the table."""
    # The table has many columns, so every cell is short.
    answers = {True: "yes", False: "no"}
    lengths = {True: "fixed", False: "any"}
    cost = row["cost"]
    return [
        row["name"],
        answers[row["causal"]],
        answers[row["bidirectional"]],
        answers[row["decodes"]],
        f"N^{row['growth']:g}",
        lengths[row["fixed_length"]],
        " ".join(row["positions"]) or "-",
        row["dropout"] or "-",
        f"{cost['flops'] / 1e6:.1f}",
        f"{cost['activation_bytes'] / 2**20:.2f}",
    ]
