"""The report of a run: one self-contained page, which needs no network and no finished run."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dartformer._version import __version__
from dartformer.machine.progress import say
from dartformer.machine.workdir import jsonable, write_text
from dartformer.report import bracket, charts, classes, markup, vega, verdicts
from dartformer.report.chart import Chart
from dartformer.report.drawing import draw
from dartformer.report.models import distinct, priced, scores, search_curves, titles, trained_curves
from dartformer.report.reading import FOUND, SEARCH, Reading, describe, read
from dartformer.results import Diagnostics, Layers, ModelScores, finite
from dartformer.space.genotype import layer_in_words

LINKS = {
    "config.json": "the whole config",
    "genotype.json": "layers and heads",
    "results.json": "every number",
    "search/alphas.json": "architecture weights and mixtures",
    "test_scores.json": "each test example's score",
    "attention.json": "attention maps",
    "profile.json": "cost on this device",
    "pareto.json": "models over cost",
    "provenance.json": "commands, versions, devices",
    "export/README.md": "the exported model's card",
}
"""The files that a page links to, and what they hold."""

COMMANDS = 6
"""The last commands of a workdir are shown."""


class Stage(NamedTuple):
    """A stage of a run: its name, "done", "begun" or "open", and how far it is."""

    name: str
    state: str
    detail: str = ""


class Cell(NamedTuple):
    """A cell of a table: its text, and what it is sorted by."""

    text: str
    value: str | float


EMPTY = Cell("", "")


class Row(NamedTuple):
    """A row of the table of models.

    Attributes:
      found: whether it is the found model.
      taken: whether it is the one to use.
      cells: of the row.
    """

    found: bool
    taken: bool
    cells: tuple[Cell, ...]


class Race(NamedTuple):
    """The bracket of a race: the titles of its rungs, its lines, and sentences about it."""

    rungs: list[str]
    lines: list[bracket.Line]
    sentences: list[str]


class Link(NamedTuple):
    """A file beside the page, and what it holds."""

    file: str
    content: str


class Fact(NamedTuple):
    """Something about how the numbers came about."""

    name: str
    text: str


def report(path: str | Path, *, live: bool = False) -> str:
    """Write `report.html` from what the workdir holds so far and return the page.

    A `live` page is served, and not written.
    """
    text = render(read(path), live=live)
    if not live:
        write_text(Path(path) / "report.html", text)
    return text


def refresh(path: str | Path, write: Callable[[str | Path], object] = report) -> None:
    """Write a page after a stage: one that fails must not stop a run, so a line says why."""
    try:
        write(path)
    except Exception as error:
        # In one line, however the error was written: it stands among those of a training.
        reason = " ".join(str(error).split())[:300]
        say(f"report.html was not refreshed: {type(error).__name__}: {reason}")


def render(reading: Reading, *, live: bool = False) -> str:
    """The page of a workdir."""
    results = reading.results
    drawn, extra = figures(reading)
    drawing = None
    short = "no genotype yet"
    if reading.genotype is not None:
        drawing = draw(reading.genotype, reading.candidates)
        short = describe(reading.genotype)[:80]  # the title of a browser's tab
    findings = diagnostics(reading)
    conclusion: tuple[str, ...] = ()
    if results.conclusion is not None:
        conclusion = results.conclusion.sentences
    # A file of a stage that is still to come has no link.
    links = []
    for file, content in LINKS.items():
        if (reading.path / file).exists():
            links.append(Link(file, content))
    prepared = ""
    if results.data is not None:
        prepared = json.dumps(results.data, indent=2)
    return fill(
        "report.html",
        title=f"{reading.settings.title}: {short}",
        figures=drawn,
        extra=extra,
        live=live,
        task=reading.settings.title,
        verdict=verdicts.headline(reading),
        concluded=len(conclusion),
        failed=verdicts.failed(results),
        improving=partial(verdicts.improving, results),
        belief=verdicts.belief(results, findings),
        searched=verdicts.searched(reading),
        stopped=verdicts.stopped(reading),
        stages=stages(reading),
        genotype=drawing,
        describe_layer=layer_in_words,
        ties=results.ties or (),
        agreement=agreement(reading),
        models=table(reading),
        all_scores=classes.all_scores(results),
        rule_words=classes.rules(results),
        answers=results.answers,
        share=classes.share,
        race=race(reading),
        diagnostics=findings,
        mark=verdicts.mark,
        number=verdicts.number,
        limit=verdicts.limit,
        sentence=verdicts.sentence,
        facts=facts(reading),
        prepared=prepared,
        config=json.dumps(reading.settings.config, indent=2),
        links=links,
        trajectory=reading.trajectory,
        attention=reading.attention,
    )


def fill(
    template: str,
    *,
    figures: dict[str, Chart],
    extra: dict[str, object],
    live: bool,
    **values: object,
) -> str:
    """A page with its charts, their numbers and every script and style within it."""
    described = list(map(Chart.to_dict, figures.values()))
    data = json.dumps(jsonable({"charts": described, **extra}), separators=(",", ":"))
    library = ""
    if figures:  # the script is most of a page
        library = vega.script()
    return markup.fill(
        template,
        figures=figures,
        data=data.replace("<", "\\u003c"),  # so that no text can end the script element
        style=markup.source("report.css"),
        script=markup.source("report.js"),
        vega=library,
        version=__version__,
        live=live,
        **values,
    )


def figures(reading: Reading) -> tuple[dict[str, Chart], dict[str, object]]:
    """The charts that the workdir has numbers for, by name, and what else the script reads."""
    drawn: list[Chart | None] = []
    extra: dict[str, object] = {}
    if reading.results.models:
        drawn.append(charts.comparison(scores(reading.results), reading.metric))
        drawn.append(charts.accuracy_cost(priced(reading), reading.metric))
    drawn.append(classes.confusion(reading.results.answers))
    if reading.results.race is not None:
        drawn.append(charts.race(reading.results.race))
    if reading.front is not None and reading.front.points:
        drawn.append(charts.pareto(reading.front))
    if reading.trajectory is not None:
        drawn.append(charts.trajectories(reading.trajectory, reading.candidates))
        # Packed: as rows of a chart they would be most of the page.
        extra["trajectories"] = charts.packed(reading.trajectory, reading.candidates)
        rows, columns = reading.settings.places
        if rows * columns > 1:  # of one mixture the lines say it all
            drawn.append(charts.winners(rows, reading.candidates))
    drawn.append(charts.searching(search_curves(reading)))
    drawn.append(charts.curves(trained_curves(reading)))
    if reading.results.derive is not None:
        drawn.append(charts.dropping(reading.results.derive))
    if reading.profile is not None:
        drawn.append(charts.layers(reading.profile))
    if reading.attention is not None and reading.attention.examples:
        drawn.append(charts.attention_map())
        extra["attention"] = reading.attention.to_dict()
    if reading.genotype is not None:
        extra["genotype"] = genotype_numbers(reading.genotype)
    return charts.by_name(drawn), extra


def genotype_numbers(layers: Layers) -> dict[str, object]:
    """A genotype as the rows of a CSV file."""
    rows = []
    for layer, heads in enumerate(layers):
        for head, attention in enumerate(heads):
            rows.append((layer, head, attention))
    return {"columns": ("layer", "head", "attention"), "rows": rows}


def diagnostics(reading: Reading) -> Diagnostics | None:
    """Those of the finished run, which know more, or those of the search."""
    if reading.results.diagnostics is not None:
        return reading.results.diagnostics
    if reading.search is not None:
        return reading.search.diagnostics
    return None


def agreement(reading: Reading) -> str:
    """How far the seeds of the search agree, where there are several."""
    derivation = reading.results.derive
    if derivation is None or derivation.seeds is None:
        return ""
    return derivation.seeds.verdict


def table(reading: Reading) -> list[Row]:
    """The table of models, the found one first."""
    measure, results = reading.metric, reading.results
    named, taken = titles(results), None
    if results.conclusion is not None:
        taken = results.conclusion.take
    rows = []
    for name, model in distinct(results).items():
        test = Cell(measure.text(model.test.mean), model.test.mean)
        # The majority class has a score on test and nothing else.
        cells = [Cell(named[name], named[name]), test, EMPTY, EMPTY, EMPTY, EMPTY]
        if isinstance(model, ModelScores):
            if finite(model.test.spread):  # which one seed does not have
                spread = measure.gap(model.test.spread).removesuffix(" points")
                cells[2] = Cell(spread, model.test.spread)
            cells[3] = Cell(measure.text(model.valid.mean), model.valid.mean)
            cells[4] = Cell(f"{model.parameters:,}", model.parameters)
            cells[5] = Cell(verdicts.large(model.flops), model.flops)
        rows.append(Row(name == FOUND, name == taken, tuple(cells)))
    return rows


def race(reading: Reading) -> Race | None:
    """The bracket, where models have raced."""
    record = reading.results.race
    if record is None:
        return None
    return Race(
        bracket.headings(record),
        bracket.lines(record, reading.metric),
        bracket.sentences(record),
    )


def stages(reading: Reading) -> list[Stage]:
    """How far each stage is."""
    settings = reading.settings
    steps: dict[tuple[str, int | None], int] = {}
    for curve in reading.curves:
        if curve.field == "loss":
            step, _ = curve.points[-1]
            steps[curve.model, curve.seed] = step
    goal = settings.retrain_steps
    trained = [steps.get((FOUND, seed), 0) for seed in settings.retrain_seeds]  # 0: not begun
    searched = 0
    baselines = []
    for (model, _), step in steps.items():
        if model == SEARCH:  # whose seeds may have a log each
            searched = max(searched, step)
        elif model != FOUND:
            baselines.append(step)
    # Seeds are trained one after another, so one at most is on its way.
    unfinished = [step for step in trained if step < goal]
    # A training may have ended early, because valid no longer improved.
    if reading.results.verdict is not None:
        unfinished = []
    finished = len(trained) - len(unfinished)
    last_step = max(unfinished, default=goal)
    compared = sum(step >= goal for step in baselines)
    return [
        _stage(
            "search",
            done=reading.search is not None,
            begun=searched > 0,
            detail=f"step {searched} of {settings.search_steps}",
        ),
        _stage("derive", done=reading.genotype is not None),
        _stage(
            "retrain",
            done=finished == len(trained),
            begun=any(trained),
            detail=f"{finished} of {len(trained)} seeds, the last at step {last_step} of {goal}",
        ),
        _stage(
            "evaluate",
            done=reading.results.verdict is not None,
            begun=bool(baselines),
            detail=f"{compared} trainings of baselines finished",
        ),
        _stage("profile", done=reading.profile is not None),
        _stage("export", done=(reading.path / "export/README.md").exists()),
    ]


def _stage(name: str, *, done: bool, begun: bool = False, detail: str = "") -> Stage:
    if done:
        return Stage(name, "done")
    if begun:
        return Stage(name, "begun", detail)
    return Stage(name, "open")


def facts(reading: Reading) -> list[Fact]:
    """How the numbers came about."""
    settings, results = reading.settings, reading.results
    # Each once, in the order of the runs.
    commands: dict[str, None] = {}
    devices: dict[str, None] = {}
    for run in reading.invocations:
        commands[run.command] = None
        devices[run.device] = None
    listed = [
        Fact("command", "\n".join(list(commands)[-COMMANDS:])),
        Fact("device", ", then ".join(devices)),
        Fact("versions", _versions(reading)),
        Fact(
            "seeds",
            f"search {_listed(settings.search_seeds)}; retrain {_listed(settings.retrain_seeds)}",
        ),
        Fact("steps", f"search {settings.search_steps:,}; retrain {settings.retrain_steps:,}"),
    ]
    if results.seconds:
        spent = verdicts.hours(results.training_seconds + results.compile_seconds)
        compiling = verdicts.hours(results.compile_seconds)
        listed.append(Fact("time", f"{spent}, of which {compiling} compiling"))
    if reading.invocations:
        listed.append(Fact("written", reading.invocations[-1].started))
    return [fact for fact in listed if fact.text]


def _versions(reading: Reading) -> str:
    """Of the last command."""
    if not reading.invocations:
        return ""
    versions = reading.invocations[-1].versions
    return ", ".join(map(" ".join, versions.items()))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
