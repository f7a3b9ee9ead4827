"""The verb sweep: one config with several values for some of its fields."""

import argparse
from pathlib import Path

from rich.table import Table

from dartformer.cli.engine import leaving_devices, limits_of
from dartformer.cli.grammar import UNEXPECTED, USER_ERROR
from dartformer.cli.output import print_json
from dartformer.cli.terminal import cell, say
from dartformer.engines import make
from dartformer.machine.console import Console
from dartformer.machine.printable import printable
from dartformer.results import finite
from dartformer.sweeps import axes, page
from dartformer.sweeps.records import PAGE, SweepRecord
from dartformer.sweeps.sweep import sweep
from dartformer.training import metric


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Run the sweep, and print its table."""
    over = axes.parse(arguments.over)
    limits = limits_of(arguments)
    verb, source = arguments.verb_of_tasks, (arguments.config, values)
    with leaving_devices():
        engine = make(arguments.engine, limits)
        record = sweep(source, arguments.workdir, over, engine, verb, limits.tries)
    if arguments.json:
        print_json(record.to_dict())
    else:
        show(record)
        print(printable(f"wrote {Path(arguments.workdir) / PAGE}"))
    states = {task.state for task in record.tasks}
    if "failed" in states:
        return UNEXPECTED
    if "refused" in states:
        return USER_ERROR
    return 0


def show(record: SweepRecord) -> None:
    """The table of groups or of tasks, the best first, on standard output."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column(f"valid {record.metric or 'score'}", justify="right", no_wrap=True)
    if record.over_seeds:
        table.add_column("sd", justify="right", no_wrap=True)
        table.add_column("seeds", justify="right", no_wrap=True)
        _add_groups(table, record)
    else:
        table.add_column("state", no_wrap=True)
        table.add_column("genotype", overflow="fold")
        for task in record.tasks:
            score = "-"
            if task.valid is not None:
                score = metric.find(task.metric).text(task.valid)
            table.add_row(cell(task.name), score, task.state, cell(task.genotype or "-"))
    console.print(table)
    for task in record.tasks:
        if task.why:
            say(console, f"{task.name} {task.state}: {task.why}")
    say(console, page.headline(record))


def _add_groups(table: Table, record: SweepRecord) -> None:
    measure = record.measure
    for group in record.groups:
        score = deviation = "-"
        if measure is not None and group.mean is not None:
            score = measure.text(group.mean)
        if measure is not None and group.spread is not None and finite(group.spread):
            deviation = measure.gap(group.spread).removesuffix(" points")
        count = f"{group.finished} of {group.tasks}"
        table.add_row(cell(group.name), score, deviation, count)
