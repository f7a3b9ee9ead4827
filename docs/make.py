"""Generate the parts of the documentation that come from the code.

    python docs/make.py

This writes the table of attentions in docs/attention.md with the picture of their weight matrices,
docs/results.md and docs/fields.md. Run it after you add, change or measure an attention, or change
a record or a field of a config.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from dartformer import results, strategies, tasks
from dartformer.attention import BUILT_IN, parse
from dartformer.cli import listing
from dartformer.cli.new import literal
from dartformer.config import checkpoint_defaults, defaults, reference
from dartformer.fields import documented
from dartformer.machine.record import Record
from dartformer.placement import records as placed
from dartformer.report import plots
from dartformer.report.varying import VARYING
from dartformer.sweeps import records as sweeps

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "experiments/benchmarks/results/attention_cpu2.jsonl"
BEGIN, END = "<!-- made by docs/make.py -->\n", "<!-- until here -->\n"

DRAWN = {
    "local": "local(window=3)",
    "strided": "strided(stride=4)",
    "block": "block(size=8)",
    "sparse": "sparse(stride=6)",
    "longformer": "longformer(window=2)",
    "bigbird": "bigbird(block=3, randoms=1)",
    "sink": "sink(window=3, sinks=2)",
    "window_linear": "window_linear(window=3)",
    "linformer": "linformer(rank=8)",
    "nystrom": "nystrom(landmarks=6)",
    "sinkhorn": "sinkhorn(block=6)",
    "reformer": "reformer(buckets=4, hashes=2, chunk=6)",
    "parallel": "parallel(members=(local(window=2), uniform))",
}
"""Options small enough for the small input; others have their own."""


def crossings() -> dict[str, str]:
    """By name, from which length on a type is faster than `full`, where that was measured."""
    found = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        row = json.loads(line)
        if "crossover" in row and row["name"] == "attention":
            sign = {"at most": "≤ ", "above": "> ", "about": ""}[row["crossover_is"]]
            found.setdefault(row["spec"].split("(")[0], f"{sign}{row['crossover']:,}")
    return found


def table() -> str:
    """The types, in Markdown."""

    def cells(row: dict[str, Any]) -> list[str]:
        paper = "" if row["paper"] == "none" else row["paper"]
        ways = " and ".join(
            w for w, able in (("both", row["bidirectional"]), ("causal", row["causal"])) if able
        )
        return [
            f"`{row['spec']}`",
            row["summary"],
            ways,
            f"N^{row['growth']:g}",
            "fixed" if row["fixed_length"] else "any",
            ", ".join(row["positions"]) or "-",
            row["dropout"] or "-",
            crossing.get(row["name"], "-"),
            paper,
        ]

    crossing = crossings()
    head = [
        "spec, with its defaults",
        "what it is",
        "ways",
        "growth",
        "length",
        "positions",
        "dropout",
        "faster from",
        "paper",
    ]
    rows = [
        head,
        ["---"] * len(head),
        *(cells(row) for row in listing.rows("attentions") if row["name"] in BUILT_IN),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(text: str) -> str:
    """The page with a new table."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


FILES = {
    "results.json": results.Results,
    "search/alphas.json": results.SearchRecord,
    "profile.json": results.Profile,
    "test_scores.json": results.ExampleScores,
    "attention.json": results.AttentionMaps,
    "budget.json": results.BudgetAnswer,
    "pareto.json": results.Front,
    "provenance.json": results.Provenance,
    "sweep.json": sweeps.SweepRecord,
}


OF_CHECKPOINTS = {
    "results.json": placed.PlacementResults,
    "scores.json": placed.ScoreFile,
    "exchange.json": placed.ExchangeFile,
    "tuning.json": placed.TuneFile,
    "evaluation.json": placed.Evaluation,
    "teacher.json": placed.Teacher,
    "budget.json": placed.PlacementBudgetAnswer,
}
"""Files of the workdir of a checkpoint."""


def records_in(hint: Any) -> Iterator[type[Record]]:
    """The records that a type mentions."""
    if isinstance(hint, type) and issubclass(hint, Record):
        yield hint
    for argument in get_args(hint):
        yield from records_in(argument)


def reachable(first: type[Record]) -> list[type[Record]]:
    """A record and all the records within it, in the order of their keys."""
    order = [first]
    for record in order:
        for hint in get_type_hints(record).values():
            order += [inner for inner in records_in(hint) if inner not in order]
    return order


WORDS = {
    np.ndarray: "array",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    object: "anything",
    type(None): "null",
}


def type_text(hint: Any) -> str:
    """A type in the words of JSON, with links to the tables of the records."""
    if hint in WORDS:
        return WORDS[hint]
    if isinstance(hint, type) and issubclass(hint, Record):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return " or ".join(f'"{argument}"' for argument in arguments)
    if get_origin(hint) is tuple:
        return f"list of {type_text(arguments[0])}"
    if get_origin(hint) is dict:
        return f"object of {type_text(arguments[1])}"
    return " or ".join(type_text(argument) for argument in arguments)


def record_table(record: type[Record]) -> str:
    """Keys, types and meanings of a record, in Markdown."""
    meanings = documented(record)
    hints = get_type_hints(record)
    lines = ["| key | type | meaning |", "|---|---|---|"]
    for field in fields(record):
        if field.name == "metric" and record.by_metric:
            continue
        key = f"`{record.by_metric.get(field.name, field.name).format('METRIC')}`"
        if field.name == record.open_field:
            key = "more keys"
        kind = type_text(hints[field.name])
        if field.default is None:
            kind = kind.removesuffix(" or null")
            key += " (optional)"
        meaning = meanings[field.name]
        lines.append(f"| {key} | {kind} | {meaning[0].upper()}{meaning[1:]} |")
    return "\n".join(lines) + "\n"


def results_page() -> str:
    """docs/results.md."""
    parts = [
        "# Result files",
        "Every file of a workdir that holds results is JSON with the keys below. `null` stands for "
        "NaN, which JSON lacks. Keys marked optional are missing until a stage has written them. "
        "`METRIC` stands for the name of the task's metric: `accuracy`, `r2` or "
        "`bits_per_character`. This page is generated from `dartformer.results`, whose classes read "
        'these files: `Results.from_dict(json.load(open("results.json")))`.',
        "dartformer compares the key `checksum` of a file with its content, durations aside. Remove "
        "the key from a file that you edit.",
    ]
    seen: list[type[Record]] = []
    files = [(name, name, record) for name, record in FILES.items()]
    for name, record in OF_CHECKPOINTS.items():
        files.append((f"{name} of a checkpoint", name, record))
    for title, name, record in files:
        summary = (record.__doc__ or "").split("\n")[0].removeprefix(f"`{name}`: ")
        parts += [f"## {title}", summary[0].upper() + summary[1:], record_table(record).rstrip()]
        for inner in reachable(record)[1:]:
            if inner in seen:
                continue
            seen.append(inner)
            summary = (inner.__doc__ or "").split("\n")[0]
            parts += [f"### {inner.__name__}", summary, record_table(inner).rstrip()]
    parts += ["## What differs between equal runs", varying_text(), varying_table()]
    return "\n\n".join(parts) + "\n"


def varying_text() -> str:
    """What is said of two equal runs."""
    return (
        "Two runs of one config with the same versions on the same machine leave the same bytes, "
        "whatever `PYTHONHASHSEED` is and however often one was killed and continued. These alone "
        "differ (`dartformer.report.varying.VARYING`). A search with a measured budget "
        "(`latency_ms`) also depends on what was measured."
    )


def varying_table() -> str:
    """The files and keys that differ, in Markdown."""
    lines = ["| file | keys | what differs |", "|---|---|---|"]
    for entry in VARYING:
        keys = ", ".join(f"`{key}`" for key in entry.keys or ())
        reason = entry.reason[0].upper() + entry.reason[1:]
        lines.append(f"| `{entry.file}` | {keys} | {reason}. |")
    return "\n".join(lines)


def field_rows(fields: Iterable[reference.Field]) -> str:
    """Fields, defaults and meanings, in Markdown."""
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for field in fields:
        meaning = field.sentence[:1].upper() + field.sentence[1:]
        lines.append(
            f"| `{field.name}` | `{literal(field.value)}` | {meaning} |".replace("`` ", "")
        )
    return "\n".join(lines)


def fields_page() -> str:
    """docs/fields.md."""
    config = defaults()
    rows = reference.fields(config)
    parts = [
        "# Config fields",
        "Every field of a config with its default and its meaning. A config file assigns them "
        "(`config.search.steps = 500`), and every verb overrides them "
        "(`--config.search.steps=500`). `dartformer list fields` prints this list. The page is "
        "generated from the docstrings of the typed sections.",
    ]
    for section, cls in reference.sections(config).items():
        if section in OWN_OPTIONS:
            continue
        inside = [row for row in rows if row.name.rpartition(".")[0] == section]
        parts += [f"## {section or 'The whole'}", first_line(cls), field_rows(inside)]
    parts += ["## task", "Each task has its own options. `config.task.name` chooses the task."]
    for name in tasks.BUILT_IN:
        rows = reference.fields(defaults(name))
        inside = [row for row in rows if row.name.startswith("task.")][1:]
        parts += [f"### {name}", first_line(tasks.find(name)), field_rows(inside)]
    parts += [
        "## search.strategy",
        "Each strategy has its own options. `config.search.strategy.name` chooses the strategy.",
    ]
    for name in strategies.BUILT_IN:
        rows = reference.fields(defaults(strategy=name))
        inside = [row for row in rows if row.name.startswith("search.strategy.")][1:]
        parts += [f"### {name}", first_line(strategies.find(name))]
        if inside:
            parts.append(field_rows(inside))
    parts += [
        "## Of a checkpoint",
        "`dartformer.checkpoint_defaults()` has these fields, and `dartformer new --from` writes "
        "them. See [Pretrained checkpoints](pretrained.md).",
    ]
    config = checkpoint_defaults()
    for section, cls in reference.sections(config).items():
        rows = reference.fields(config)
        inside = [row for row in rows if row.name.rpartition(".")[0] == section]
        parts += [f"### {_heading(section)}", first_line(cls), field_rows(inside)]
    return "\n\n".join(parts) + "\n"


def _heading(section: str) -> str:
    """The heading of a section of a checkpoint's config."""
    if not section:
        return "The whole config"
    return f"The section {section}"


OWN_OPTIONS = ("task", "search.strategy")
"""The sections whose fields depend on what they name."""


def first_line(cls: type) -> str:
    """The summary of a docstring: what comes before the first blank line."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


if __name__ == "__main__":
    (FOLDER / "fields.md").write_text(fields_page())
    (FOLDER / "results.md").write_text(results_page())
    file = FOLDER / "attention.md"
    file.write_text(page(file.read_text()))
    figure = plots.matrices([parse(DRAWN.get(name, name)) for name in BUILT_IN])
    figure.save(FOLDER / "attention_matrices.png")
