"""What the terminal shows at the end of a verb."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dartformer.cost import budget as budgets
from dartformer.report.reading import read
from dartformer.report.verdicts import MARKS, headline, number
from dartformer.space.genotype import Genotype
from dartformer.training import metric

COLOURS = ("blue", "yellow", "green", "magenta", "cyan", "red", "white", "bright_black")


def drawing(genotype: Genotype) -> Text:
    """Layers by heads, a coloured letter for each attention, and what the letters stand for."""
    return letters(genotype.to_dict()["layers"])


def letters(layers: list[list[str]]) -> Text:
    """`drawing` of attentions that are given as texts; rows that repeat the one above them are
    drawn once."""
    names = list(dict.fromkeys(a for row in layers for a in row))
    signs = {
        n: (chr(65 + i) if i < 26 else str(i), COLOURS[i % len(COLOURS)])
        for i, n in enumerate(names)
    }
    drawn = Text()
    l = 0
    while l < len(layers):
        last = l
        while last + 1 < len(layers) and layers[last + 1] == layers[l]:
            last += 1
        drawn.append(f"{f'layer {l}' if l == last else f'layers {l}-{last}':>13}  ")
        for a in layers[l]:
            drawn.append(f"{signs[a][0]} ", f"bold {signs[a][1]}")
        drawn.append("\n")
        l = last + 1
    for n in names:
        count = sum(row.count(n) for row in layers)
        drawn.append(f"{signs[n][0]:>13}  ", f"bold {signs[n][1]}")
        drawn.append(f"{n} in {count} of {len(layers) * len(layers[0])} heads\n")
    drawn.rstrip()
    return drawn


def show_report(workdir: str | Path) -> None:
    """The verdict of a workdir, which need not be finished, and its genotype."""
    console, found = Console(highlight=False), read(workdir)
    if found.genotype:
        console.print(letters(found.genotype))
    for line in headline(found):
        console.print(line, markup=False, soft_wrap=True)


def show_comparison(data: dict[str, Any]) -> None:
    """Several runs as a table, then each pair in sentences (see `stages.compare`)."""
    console, shown = Console(highlight=False), metric.find(data["metric"])
    table = Table("run", f"test {shown.title}", "spread", "majority", "seeds", "genotype", box=None)
    for row in data["runs"]:
        table.add_row(
            *(
                escape(cell)
                for cell in (
                    row["run"],
                    "not yet" if row["test"] is None else shown.text(row["test"]),
                    ""
                    if row["spread"] is None
                    else shown.gap(row["spread"]).removesuffix(" points"),
                    "" if row["majority"] is None else shown.text(row["majority"]),
                    ", ".join(map(str, row["seeds"] or [])),
                    row["genotype"] or "none yet",
                )
            )
        )
    console.print(table)
    for one in data["pairs"]:
        for line in (
            f"over seeds: {one['seeds']}",
            f"over test examples, paired: {one['examples']}",
        ):
            console.print(line, markup=False, soft_wrap=True)
        apart = one["genotypes"]
        if apart is not None and apart["count"] != 0:
            where = (
                "different sizes"
                if apart["count"] is None
                else f"they differ in {apart['count']} of {apart['places']} heads"
            )
            console.print(
                f"genotypes: {where}: {'; '.join(apart['lines'][:6])}", markup=False, soft_wrap=True
            )


def show(verb: str, data: dict[str, Any], workdir: Path) -> None:
    """The closing words of a verb, on standard output."""
    console = Console(highlight=False)
    if verb in ("run", "evaluate"):
        _show_results(console, data, workdir)
    elif verb == "derive":
        console.print(drawing(Genotype.from_dict(data["genotype"])))
        _show_seeds(console, data)
        if "budget" in data:
            console.print(f"budget: {data['budget']['note']}", markup=False, soft_wrap=True)
            if not data["budget"]["kept"]:
                show_limits(console, data["budget"])
        for line in data["ties"]:
            console.print(f"tie: {line}", markup=False)
    elif verb == "search":
        _show_findings(console, data["diagnostics"])
        console.print(
            f"searched for {data['seconds']:.1f} s; the mixture is in {workdir / 'search/alphas.json'}",
            markup=False,
            soft_wrap=True,
        )
    elif verb == "retrain":
        for one in data["valid"]:
            shown = metric.of(data)
            value = shown.text(one[shown.name])
            console.print(f"seed {one['seed']}: valid {shown.title} {value} at step {one['step']}")
    elif verb == "profile":
        show_profile(data)
    else:
        console.print(
            f"wrote {data.get('folder') or data.get('file')}", markup=False, soft_wrap=True
        )


def show_profile(data: dict[str, Any]) -> None:
    """Tables of `dartformer profile`: whole models, layers, attentions, and the sweep of
    lengths."""
    console = Console(highlight=False)
    console.print(
        f"{data['device']}; batch {data['batch']}, length {data['length']}, phase {data['phase']}, "
        f"{data['dtype']}",
        markup=False,
    )
    for title, keys, rows in (
        ("model", ("name",), data["models"]),
        ("layer", ("layer", "attentions"), data.get("layers", ())),
        ("attention", ("attention", "heads"), data["attentions"]),
        ("sweep", ("name", "length"), data.get("sweep", ())),
    ):
        shown = [c for c in COSTS if any(any(row.get(k) is not None for k in c[1]) for row in rows)]
        if not rows:
            continue
        table = Table(
            *keys, box=None, title=TITLES[title], title_justify="left", padding=(0, 1, 0, 0)
        )
        for label, *_ in shown:
            table.add_column(label, justify="right", no_wrap=True)
        texts = [
            [
                *(str(row[k]) for k in keys),
                *(
                    next((form(row[f]) for f in fields if row.get(f) is not None), "-")
                    for _, fields, form in shown
                ),
            ]
            for row in rows
        ]
        heads = [*keys, *(label for label, *_ in shown)]
        if (
            sum(max(map(len, column)) + 1 for column in zip(heads, *texts, strict=True))
            > console.width
        ):
            _print_lines(console, TITLES[title], heads, texts, len(keys))
            continue
        for cells in texts:
            table.add_row(*map(escape, cells))
        console.print(table)
    if "note" in data:
        console.print(data["note"] + ".", markup=False)


def _print_lines(
    console: Console, title: str, heads: list[str], rows: list[list[str]], names: int
) -> None:
    """A table too wide for the terminal: for each row what names it, then its numbers, as many in a
    line as fit."""
    console.print(title, style="italic", markup=False)
    for row in rows:
        console.print(" ".join(row[:names]), style="bold", markup=False, soft_wrap=True)
        numbers = [
            f"{label} {cell}" for label, cell in zip(heads[names:], row[names:], strict=True)
        ]
        console.print(
            textwrap.indent(textwrap.fill("; ".join(numbers), console.width - 2), "  "),
            markup=False,
        )


def show_budget(data: dict[str, Any], workdir: Path) -> None:
    """What `dartformer derive --budget` found: the genotype, its costs against the limits, and the
    front."""
    console = Console(highlight=False)
    console.print(drawing(Genotype.from_dict({"format": 1, "layers": data["genotype"]})))
    show_limits(console, data)
    for line in data["ties"]:
        console.print(f"tie: {line}", markup=False)
    if data["programme"] != data["text"]:
        console.print(
            f"instead of {data['programme']}, which has the highest sum of log weights, but costs more and "
            f"scores less with inherited weights",
            markup=False,
            soft_wrap=True,
        )
    table = Table(
        data["quantity"],
        f"valid {data['metric']}",
        "",
        "genotype",
        box=None,
        title_justify="left",
        title="accuracy with inherited weights against cost",
    )
    for row in data["front"]:
        mark = "chosen" if row["chosen"] else "front" if row["front"] else ""
        table.add_row(
            budgets.number(row["cost"]), f"{row[data['metric']]:.3f}", mark, escape(row["text"])
        )
    console.print(table)
    where = f"{workdir / 'budget.json'} and {workdir / 'pareto.json'}"
    console.print(
        f"written to {where}"
        + (
            f", and {workdir / 'genotype.json'}"
            if data["written"]
            else "; genotype.json stays, as a model is trained from it: to train this one, take a new workdir"
        ),
        markup=False,
        soft_wrap=True,
    )


def show_limits(console: Console, data: dict[str, Any]) -> None:
    """A line for each limit: predicted, measured, slack."""
    for row in data["limits"]:
        measured = (
            "" if row["measured"] is None else f", measured {budgets.number(row['measured'])}"
        )
        left = (
            f"{budgets.number(row['slack'])} to spare"
            if row["met"]
            else f"ABOVE it by {budgets.number(-row['slack'])} ({-row['slack'] / row['limit']:.1%})"
        )
        console.print(
            f"{row['quantity']}: limit {budgets.number(row['limit'])}, predicted "
            f"{budgets.number(row['predicted'])}{measured}: {left}",
            markup=False,
            soft_wrap=True,
        )


TITLES = {
    "model": "whole models",
    "layer": "layers: measured whole; by formula, their attentions alone",
    "attention": "attentions, each on its group of heads, without projections",
    "sweep": "over lengths",
}
COSTS: tuple[tuple[str, tuple[str, ...], Callable[[Any], str]], ...] = (
    ("parameters", ("parameters", "attention_parameters"), lambda v: f"{v:,}"),
    ("MFLOP", ("flops", "attention_flops"), lambda v: f"{v / 1e6:.3g}"),
    ("useful", ("useful_flops",), lambda v: f"{v / 1e6:.3g}"),
    ("act. MiB", ("activation_bytes", "attention_activation_bytes"), lambda v: f"{v / 2**20:.3g}"),
    (
        "kept to train MiB",
        ("training_bytes", "attention_training_bytes"),
        lambda v: f"{v / 2**20:.3g}",
    ),
    ("XLA temp MiB", ("xla_temp_bytes",), lambda v: f"{v / 2**20:.3g}"),
    ("state KiB", ("state_bytes",), lambda v: f"{v / 2**10:.3g}"),
    ("ms", ("latency_seconds",), lambda v: f"{1e3 * v['median']:.3g}"),
    ("p90", ("latency_seconds",), lambda v: f"{1e3 * v['p90']:.3g}"),
    ("examples/s", ("throughput",), lambda v: f"{v:.4g}"),
)
"""Columns of a profile: title, fields of which a row has one, and how it is written."""


def _show_results(console: Console, results: dict[str, Any], workdir: Path) -> None:
    console.print(drawing(Genotype.from_dict(results["genotype"])))
    _show_seeds(console, results.get("derive", {}))
    for line in results.get("ties", []):
        console.print(f"tie: {line}", markup=False)
    examples, seeds = results["test"]["examples"], len(results["seeds"])
    shown = metric.of(results)
    table = Table(
        "model",
        f"test {shown.title}",
        "seeds' spread",
        "valid",
        "parameters",
        box=None,
        title=f"{results['task']}: {seeds} seed{'s' * (seeds > 1)}, {results['steps']} steps, "
        f"{examples} test examples",
    )
    for name, fields in [("found", results), *results["baselines"].items()]:
        test = fields["test"]
        table.add_row(
            f"[bold]{name}[/]" if name == "found" else name,
            shown.text(test[shown.name]),
            "" if test.get("spread") is None else shown.gap(test["spread"]).removesuffix(" points"),
            shown.text(fields["valid"][shown.name]) if "valid" in fields else "",
            f"{fields['parameters']:,}" if "parameters" in fields else "",
        )
    console.print(table)
    for sentence in headline(read(workdir)):
        console.print(f"* {sentence}", markup=False, soft_wrap=True)
    if "diagnostics" in results:
        _show_findings(console, results["diagnostics"])
    seconds = results["seconds"]
    running = sum(v for k, v in seconds.items() if not k.endswith(".compile"))
    compiling = sum(v for k, v in seconds.items() if k.endswith(".compile"))
    console.print(f"{running:.0f} s of training, {compiling:.0f} s of compiling", markup=False)
    for name, one in results.get("shapes", {}).items():
        valid = one["valid"][metric.of(results).share]
        console.print(
            f"shape {name}: valid {metric.of(results).share} {valid:.3f}, {one['parameters']:,} parameters"
            f"{', chosen' if name == results['shape'] else ''}"
        )
    workdir = workdir / f"shapes/{results['shape']}" if "shapes" in results else workdir
    console.print(
        f"everything is in {workdir}: report.html, results.json, export/",
        markup=False,
        soft_wrap=True,
    )


def _show_seeds(console: Console, derived: dict[str, Any]) -> None:
    """How far the seeds of a search agree, where there are several."""
    if "seeds" in derived:
        console.print(derived["seeds"]["verdict"], markup=False, soft_wrap=True)


def _show_findings(console: Console, diagnostics: dict[str, Any]) -> None:
    """What the search's diagnostics say: a line for each, warnings marked."""
    if not diagnostics["findings"]:
        for line in diagnostics["verdicts"]:
            console.print(line, markup=False)
        return
    table = Table("search", "value", "limit", "verdict", box=None)
    for one in diagnostics["findings"]:
        mark, colour = MARKS[one["fine"]]
        table.add_row(
            f"[{colour}]{mark} {one['name']}[/]",
            *(number(one[k]) for k in ("value", "threshold")),
            escape(one["verdict"]),
        )
    console.print(table)
