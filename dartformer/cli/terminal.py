"""What the terminal shows at the end of a verb."""

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dartformer.cost.budget import number as short
from dartformer.machine.console import Console
from dartformer.machine.printable import one_line
from dartformer.machine.workdir import jsonable
from dartformer.report import bracket, compare, page, verdicts
from dartformer.report.drawing import letter
from dartformer.report.models import distinct, titles
from dartformer.report.probes import headline
from dartformer.report.reading import FOUND, read, settings_of
from dartformer.results import (
    BudgetAnswer,
    Derivation,
    Diagnostics,
    FrontPoint,
    GenotypeRecord,
    Latency,
    Limit,
    ModelScores,
    Prediction,
    Profile,
    RaceRecord,
    Results,
    StepPrediction,
    finite,
)
from dartformer.stages.clean import Cleaned
from dartformer.stages.probe import Probed
from dartformer.statistics import mean
from dartformer.training import metric
from dartformer.training.metric import decimals

COLORS = ("blue", "yellow", "green", "magenta", "cyan", "red", "white", "bright_black")

SHORT_PROBES = {
    "context_recall": "CR",
    "noisy_recall": "NR",
    "fuzzy_recall": "FR",
    "selective_copying": "SC",
    "compression": "C",
    "memorization": "M",
    "recall": "MQ",
    "updated_recall": "UR",
    "compositional_recall": "2K",
    "parity": "P",
}
"""Headings of the probes; the first six are MAD's."""

SENTENCES = 4
"""About a race that are in the terminal."""

DIFFERENCES = 6
"""Heads in which two genotypes differ that are listed in the terminal."""


def say(console: Console, text: str) -> None:
    """A sentence as it is, which the terminal breaks where it ends."""
    console.print(one_line(text), markup=False, soft_wrap=True)


def cell(text: str) -> str:
    """A text for a cell of a table, on one line and without markup."""
    return escape(one_line(text))


def show(verb: str, data: Mapping[str, Any], workdir: Path) -> None:
    """The closing words of a verb, on standard output."""
    console = Console()
    plain = jsonable(data)  # lists for tuples and arrays, as in the files that records read
    if verb in ("run", "evaluate"):
        _show_results(console, Results.from_dict(plain), workdir)
    elif verb == "derive":
        _show_derivation(console, plain)
    elif verb == "search":
        _show_findings(console, Diagnostics.from_dict(plain["diagnostics"]))
        file = workdir / "search/alphas.json"
        say(console, f"searched for {data['seconds']:.1f} s; the mixture is in {file}")
    elif verb == "race":
        show_race(console, RaceRecord.from_dict(plain))
    elif verb == "retrain":
        measure = metric.of(data)
        for scores in data["valid"]:
            value = measure.text(scores[measure.name])
            seed, step = scores["seed"], scores["step"]
            say(console, f"seed {seed}: valid {measure.title} {value} at step {step}")
    elif verb == "profile":
        show_profile(Profile.from_dict(plain))
    else:
        say(console, f"wrote {data.get('folder') or data.get('file')}")


def drawing(layers: Sequence[Sequence[str]]) -> Text:
    """Layers by heads, a colored letter for each attention, and what the letters stand for.

    Rows that repeat the one above them are drawn once.
    """
    counts: Counter[str] = Counter()
    for heads in layers:
        counts.update(heads)
    styles, letters = {}, {}
    # A Counter keeps the order in which the attentions first appear, as the report's drawing does.
    for i, name in enumerate(counts):
        styles[name] = f"bold {COLORS[i % len(COLORS)]}"
        letters[name] = letter(i)
    drawn = Text()
    for first, last in _equal_rows(layers):
        rows = f"layers {first}-{last}"
        if first == last:
            rows = f"layer {first}"
        drawn.append(f"{rows:>13}  ")
        for attention in layers[first]:
            drawn.append(f"{letters[attention]} ", styles[attention])
        drawn.append("\n")
    total = counts.total()
    for name, count in counts.items():
        drawn.append(f"{letters[name]:>13}  ", styles[name])
        drawn.append(f"{name} in {count} of {total} heads\n")
    drawn.rstrip()
    return drawn


def _equal_rows(layers: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """The first and the last layer of each stretch of equal ones."""
    stretches: list[tuple[int, int]] = []
    for l, heads in enumerate(layers):
        if stretches and layers[stretches[-1][0]] == heads:
            stretches[-1] = (stretches[-1][0], l)
        else:
            stretches.append((l, l))
    return stretches


def show_report(workdir: str | Path) -> None:
    """The verdict of a workdir, which need not be finished, and its genotype."""
    console, reading = Console(), read(workdir)
    if reading.genotype is not None:
        console.print(drawing(reading.genotype))
    for line in verdicts.headline(reading):
        say(console, line)
    _show_belief(console, verdicts.belief(reading.results, page.diagnostics(reading)))


def show_cleaned(cleaned: Cleaned) -> None:
    """What was removed from a workdir, and what is left."""
    console = Console()
    verb = "would remove"
    if cleaned.removed:
        verb = "removed"
    if not cleaned.groups:
        say(console, f"nothing to remove from {cleaned.workdir}")
    for group in cleaned.groups:
        size = mebibytes(group.bytes)
        say(console, f"{verb} {group.files:,} files, {size}: {group.kind}")
    say(console, f"{cleaned.files:,} files, {mebibytes(cleaned.bytes)}, stay in {cleaned.workdir}")


def mebibytes(size: int) -> str:
    """ "1.2 MiB" """
    return f"{size / 2**20:.1f} MiB"


def show_comparison(compared: compare.Compared) -> None:
    """Several runs as a table, then each pair in sentences."""
    console, measure = Console(), compared.measure
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for title in (f"test {measure.title}", "spread", "majority", "seeds"):
        table.add_column(title, no_wrap=True)
    table.add_column("genotype", overflow="fold")
    for run in compared.runs:
        test = spread = majority = ""
        if run.test is not None:
            test = measure.text(run.test)
        if finite(run.spread) and run.spread is not None:
            spread = _bare_gap(measure, run.spread)
        if run.majority is not None:
            majority = measure.text(run.majority)
        seeds = ", ".join(map(str, run.seeds or ()))
        # A name of a folder or a genotype may hold brackets, which rich would take for markup.
        cells = (run.run, test or "not yet", spread, majority, seeds, run.genotype or "none yet")
        table.add_row(*map(cell, cells))
    console.print(table)
    say(console, compare.headline(compared))
    for pair in compared.pairs:
        say(console, f"over seeds: {pair.seeds}")
        say(console, f"over test examples, paired: {pair.examples}")
        _show_differences(console, pair.genotypes)


def show_probes(probed: Probed) -> None:
    """The models of a probe suite with their scores in per cent, a column for each probe."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("model", overflow="fold")
    for title in ("score", "state"):
        table.add_column(title, justify="right", no_wrap=True)
    names = [probe.probe for probe in probed.models[0].probes]
    for name in names:
        table.add_column(SHORT_PROBES[name], justify="right", no_wrap=True)
    for model in probed.models:
        scores = [f"{100 * probe.test:.0f}" for probe in model.probes]
        state = short(model.state_bytes)
        table.add_row(cell(model.name), f"{100 * model.score:.1f}", state, *scores)
    rules = [task.rules[task.best_rule] for task in probed.tasks]
    chances = [task.chance for task in probed.tasks]
    for name, accuracies in {"best rule": rules, "chance": chances}.items():
        scores = [f"{100 * accuracy:.0f}" for accuracy in accuracies]
        table.add_row(name, f"{100 * mean(accuracies):.1f}", "-", *scores)
    console.print(table)
    legend = ", ".join(f"{SHORT_PROBES[name]} {name}" for name in names)
    say(console, f"test accuracy in per cent, bytes of state; {legend}")
    say(console, headline(probed))


def _show_differences(console: Console, apart: compare.Differences | None) -> None:
    """Where two genotypes differ, if they do."""
    if apart is None or apart.count == 0:
        return
    extent = "different sizes"
    if apart.count is not None:
        extent = f"they differ in {apart.count} of {apart.places} heads"
    say(console, f"genotypes: {extent}: {'; '.join(apart.lines[:DIFFERENCES])}")


def _bare_gap(measure: metric.Metric, value: float) -> str:
    """A difference of scores without its unit, for a table."""
    return measure.gap(value).removesuffix(" points")


class Column(NamedTuple):
    """A column of a profile.

    Attributes:
      title: its heading.
      fields: names of the record's fields, of which a row has one.
      text: how the value is written.
    """

    title: str
    fields: tuple[str, ...]
    text: Callable[[Any], str]


def _count(value: float) -> str:
    return f"{value:,}"


def _millions(value: float) -> str:
    return f"{value / 1e6:.3g}"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:.3g}"


def _kibibytes(value: float) -> str:
    return f"{value / 2**10:.3g}"


def _median(latency: Latency) -> str:
    return f"{1e3 * latency.median:.3g}"


def _p90(latency: Latency) -> str:
    return f"{1e3 * latency.p90:.3g}"


def _rate(value: float) -> str:
    return f"{value:.4g}"


COLUMNS = (
    Column("parameters", ("parameters", "attention_parameters"), _count),
    Column("MFLOP", ("flops", "attention_flops"), _millions),
    Column("useful", ("useful_flops",), _millions),
    Column("act. MiB", ("activation_bytes", "attention_activation_bytes"), _mebibytes),
    Column("kept to train MiB", ("training_bytes", "attention_training_bytes"), _mebibytes),
    Column("XLA temp MiB", ("xla_temp_bytes",), _mebibytes),
    Column("state KiB", ("state_bytes",), _kibibytes),
    Column("ms", ("latency_seconds",), _median),
    Column("p90", ("latency_seconds",), _p90),
    Column("examples/s", ("throughput",), _rate),
)
"""The numbers of a profile."""


def show_profile(profile: Profile) -> None:
    """Tables of `dartformer profile`: whole models, layers, attentions, and the sweep of
    lengths."""
    console = Console()
    where = f"batch {profile.batch}, length {profile.length}, phase {profile.phase}"
    console.print(f"{profile.device}; {where}, {profile.dtype}", markup=False)
    _show_costs(console, "whole models", ("name",), profile.models)
    layers = "layers: measured whole; by formula, their attentions alone"
    _show_costs(console, layers, ("layer", "attentions"), profile.layers or ())
    attentions = "attentions, each on its group of heads, without projections"
    _show_costs(console, attentions, ("attention", "heads"), profile.attentions)
    _show_costs(console, "over lengths", ("name", "length"), profile.sweep or ())
    if profile.note is not None:
        console.print(verdicts.sentence(profile.note), markup=False)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g}"


PREDICTED = (
    Column("peak GB", ("peak_bytes",), _gigabytes),
    Column("GFLOP", ("flops",), _gigabytes),
    Column("GB moved", ("moved_bytes",), _gigabytes),
    Column("ms at least", ("roofline_ms",), _rate),
    Column("bound by", ("bound",), str),
    Column("compile s", ("compile_seconds",), lambda value: f"{value:.0f}"),
    Column("largest batch", ("largest_batch",), _count),
)
"""The numbers of a prediction."""


def show_prediction(prediction: Prediction) -> None:
    """The table of `dartformer profile --on`, and a line for each step that cannot be."""
    console = Console()
    batch = prediction.steps[0].batch
    where = f"batch {batch}, length {prediction.length}, {prediction.dtype}"
    memory = f"{_gigabytes(prediction.memory_bytes)} GB"
    console.print(f"{prediction.label} ({prediction.kind}, {memory}); {where}", markup=False)
    rows = [step for step in prediction.steps if step.refusal is None]
    _show_costs(console, "a step of training", ("name",), rows, PREDICTED)
    for step in prediction.steps:
        if step.refusal is not None:
            say(console, f"{step.name}: the compiler gave up: {step.refusal}")
        elif not step.fits:
            say(console, does_not_fit(step, prediction))


def does_not_fit(step: StepPrediction, prediction: Prediction) -> str:
    """That a batch does not fit, and which one does."""
    needed = ""
    if step.peak_bytes is not None:
        needed = f": it needs {_gigabytes(step.peak_bytes)} GB"
    line = (
        f"{step.name}: a batch of {step.batch} does not fit the "
        f"{_gigabytes(prediction.memory_bytes)} GB of {prediction.device}{needed}. "
    )
    if step.largest_batch is None:
        return line + "Not even one example does."
    return line + f"The largest that fits is {step.largest_batch}."


def _show_costs(
    console: Console,
    title: str,
    names: tuple[str, ...],
    rows: Sequence[object],
    known: Sequence[Column] = COLUMNS,
) -> None:
    """A table of costs: fields that name a row, then the numbers that a row has."""
    if not rows:
        return
    columns = _columns(rows, known)
    heads = [*names]
    for column in columns:
        heads.append(column.title)
    texts = []
    for row in rows:
        cells = [str(getattr(row, name)) for name in names]
        for column in columns:
            value = _value(row, column)
            text = "-"
            if value is not None:
                text = column.text(value)
            cells.append(text)
        texts.append(cells)
    # rich would shorten the numbers of a table that is too wide, so it becomes lines instead.
    width = 0
    for column_texts in zip(heads, *texts, strict=True):
        width += max(map(len, column_texts)) + 1  # a space between columns
    if width > console.width:
        _show_lines(console, title, heads, texts, len(names))
        return
    table = Table(*names, box=None, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for cells in texts:
        table.add_row(*map(cell, cells))
    console.print(table)


def _columns(rows: Sequence[object], known: Sequence[Column]) -> list[Column]:
    """The columns in which at least one row has a number that is not 0."""
    columns = []
    for column in known:
        if any(_value(row, column) for row in rows):
            columns.append(column)
    return columns


def _value(row: object, column: Column) -> Any:
    """The number of a row in a column; None where it has none."""
    for field in column.fields:
        value = getattr(row, field, None)
        if value is not None:
            return value
    return None


def _show_lines(
    console: Console, title: str, heads: list[str], rows: list[list[str]], names: int
) -> None:
    """A table too wide for the terminal: for each row its name, then its numbers, wrapped."""
    console.print(title, style="italic", markup=False)
    for row in rows:
        console.print(" ".join(row[:names]), style="bold", markup=False, soft_wrap=True)
        numbers = []
        for head, cell in zip(heads[names:], row[names:], strict=True):
            numbers.append(f"{head} {cell}")
        wrapped = textwrap.fill("; ".join(numbers), console.width - 2)
        console.print(textwrap.indent(wrapped, "  "), markup=False)


def show_budget(answer: BudgetAnswer, workdir: Path) -> None:
    """What `dartformer derive --budget` chose, its costs against the limits, and the front."""
    console = Console()
    console.print(drawing(answer.genotype))
    if "on" in answer.budget:
        say(console, f"latencies are {answer.device}: rooflines of its compiler, none measured")
    show_limits(console, answer.limits)
    _show_ties(console, answer.ties)
    if answer.programme != answer.text:
        say(
            console,
            f"instead of {answer.programme}, which has the highest sum of log weights but costs "
            f"more and scores less with inherited weights",
        )
    table = Table(box=None, title="accuracy with inherited weights against cost")
    table.title_justify = "left"
    for title in (answer.quantity or "cost", f"valid {answer.metric}", ""):
        table.add_column(cell(title), no_wrap=True)
    table.add_column("genotype", overflow="fold")
    for point in answer.front or ():
        score = decimals(point.score)
        table.add_row(short(point.cost), score, _kind(point), cell(point.text))
    console.print(table)
    written = f"written to {workdir / 'budget.json'} and {workdir / 'pareto.json'}"
    if answer.written:
        say(console, f"{written}, and {workdir / 'genotype.json'}")
    else:
        say(
            console,
            f"{written}. genotype.json is unchanged because a model was trained from it: to train "
            f"this genotype, use a new workdir",
        )


def _kind(point: FrontPoint) -> str:
    """Where a genotype is, in the table of the front."""
    if point.chosen:
        return "chosen"
    if point.front:
        return "front"
    return ""


def show_limits(console: Console, limits: Sequence[Limit]) -> None:
    """A line for each limit: predicted, measured, slack."""
    for limit in limits:
        text = f"{limit.quantity}: limit {short(limit.limit)}, predicted {short(limit.predicted)}"
        if limit.measured is not None:
            text += f", measured {short(limit.measured)}"
        if limit.met:
            text += f": {short(limit.slack)} to spare"
        else:
            share = -limit.slack / limit.limit
            text += f": EXCEEDED by {short(-limit.slack)} ({share:.1%})"
        say(console, text)


def _show_results(console: Console, results: Results, workdir: Path) -> None:
    """The verdict of a finished run, its models, its diagnostics and where it is."""
    if results.genotype is not None:
        console.print(drawing(results.genotype.layers))
    if results.derive is not None:
        _show_seeds(console, results.derive)
    _show_ties(console, results.ties or ())
    if results.race is not None:
        show_race(console, results.race, metric.find(results.measure))
    console.print(_models(results, _title(workdir, results)))
    console.print(f"* {verdicts.scored(results)}", markup=False, soft_wrap=True)
    for line in results.verdict or ():
        say(console, f"* {verdicts.sentence(line)}")
    if results.diagnostics is not None:
        _show_findings(console, results.diagnostics)
    training, compiling = results.training_seconds, results.compile_seconds
    console.print(f"{training:.0f} s of training, {compiling:.0f} s of compiling", markup=False)
    for name, shape in (results.shapes or {}).items():
        text = f"shape {name}: valid {shape.valid.metric} {decimals(shape.valid.mean)}"
        text += f", {shape.parameters:,} parameters"
        if name == results.shape:
            text += ", chosen"
        say(console, text)
    # A search over shapes keeps each shape's files in a folder of its own.
    if results.shape is not None:
        workdir = workdir / f"shapes/{results.shape}"
    say(console, f"everything is in {workdir}: report.html, results.json, export/")
    _show_belief(console, verdicts.belief(results, results.diagnostics))
    _show_conclusion(console, results)


def _show_belief(console: Console, belief: verdicts.Belief | None) -> None:
    """Whether to believe a result; the reasons stand in the table of findings."""
    if belief is not None:
        console.print(f"{belief.words}.", style=belief.color, markup=False)


def _show_conclusion(console: Console, results: Results) -> None:
    """The headline of a run, last of all, where everybody looks."""
    if results.conclusion is None:
        return
    style = "bold"
    if verdicts.failed(results):
        style = "bold red"
    headline = one_line(results.conclusion.headline)
    console.print(headline, style=style, markup=False, soft_wrap=True)
    for line in results.conclusion.details:
        if verdicts.improving(results, line):
            console.print(one_line(line), style="yellow", markup=False, soft_wrap=True)
        else:
            say(console, line)


def show_race(console: Console, race: RaceRecord, tested: metric.Metric | None = None) -> None:
    """The bracket of a race, and what it cost; `tested` is the metric of scores on test."""
    table = Table(box=None, title="race, scores on valid", pad_edge=False)
    table.add_column("entrant", overflow="fold")
    table.add_column("outcome", no_wrap=True)
    for heading in (*bracket.headings(race), "end", "test"):
        table.add_column(heading, no_wrap=True)
    for line in bracket.lines(race, tested or bracket.metric_of(race)):
        style = ""
        if line.fate == bracket.WINNER:
            style = "bold"
        cells = (escape(line.name), line.outcome, *line.rungs, line.end, line.test)
        table.add_row(*cells, style=style)
    console.print(table)
    sentences = bracket.sentences(race)
    for text in sentences[:SENTENCES]:
        say(console, f"* {text}")
    if len(sentences) > SENTENCES:
        say(console, f"* {len(sentences) - SENTENCES} more ties and cuts are in report.html.")


def _title(workdir: Path, results: Results) -> str:
    """What the task is called: your own file by its name."""
    if (workdir / "config.json").exists():
        return settings_of(workdir).title
    return results.task


def _models(results: Results, task: str) -> Table:
    """The table of models. Their names are folded where they do not fit, and never cut."""
    measure = metric.find(results.measure)
    seeds = len(results.seeds or ())
    title = f"{task}: {verdicts.seeds_in_words(seeds)}, {results.steps} steps"
    if results.test is not None:
        title += f", {results.test.examples} test examples"
    table = Table(box=None, title=cell(title), pad_edge=False)
    table.add_column("model", overflow="fold")
    for heading in (f"test {measure.title}", "spread", "valid", "parameters"):
        table.add_column(heading, no_wrap=True)
    named = titles(results)
    for name, model in distinct(results).items():
        cells = [cell(named[name]), measure.text(model.test.mean), "", "", ""]
        # A rule such as the majority class was never trained, so its other cells stay empty.
        if isinstance(model, ModelScores):
            if finite(model.test.spread):
                cells[2] = _bare_gap(measure, model.test.spread)
            cells[3] = measure.text(model.valid.mean)
            cells[4] = f"{model.parameters:,}"
        style = ""
        if name == FOUND:
            style = "bold"
        table.add_row(*cells, style=style)
    return table


def _show_derivation(console: Console, data: Mapping[str, Any]) -> None:
    """What `dartformer derive` chose."""
    if "genotype" not in data:
        say(console, data["text"])
        return
    derivation = Derivation.from_dict(data)
    console.print(drawing(GenotypeRecord.from_dict(data["genotype"]).layers))
    _show_seeds(console, derivation)
    if derivation.budget is not None:
        say(console, f"budget: {derivation.budget.note}")
        if not derivation.budget.kept:
            show_limits(console, derivation.budget.limits)
    _show_ties(console, data["ties"])


def _show_ties(console: Console, ties: Sequence[str]) -> None:
    for tie in ties:
        console.print(f"tie: {tie}", markup=False)


def _show_seeds(console: Console, derivation: Derivation) -> None:
    """How far the seeds of a search agree, where there are several."""
    if derivation.seeds is not None:
        say(console, derivation.seeds.verdict)


def _show_findings(console: Console, diagnostics: Diagnostics) -> None:
    """What the search's diagnostics say: a line for each, warnings marked."""
    if not diagnostics.findings:
        for line in diagnostics.verdicts:
            console.print(line, markup=False)
        return
    table = Table("search", "value", "threshold", "verdict", box=None, pad_edge=False)
    for finding in diagnostics.findings:
        word, color = verdicts.mark(finding)
        table.add_row(
            Text(f"{word} {one_line(finding.name)}", color),
            verdicts.number(finding.value),
            verdicts.limit(finding),
            cell(finding.verdict),
        )
    console.print(table)
