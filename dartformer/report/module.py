"""The results of a search in a user's module, and of its race: a page, and what a notebook shows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from dartformer import diagnostics
from dartformer.attention import to_text
from dartformer.errors import InputError
from dartformer.machine.workdir import write_text
from dartformer.modules.race import ModuleRace
from dartformer.modules.search import ModuleSearch
from dartformer.modules.shown import Shown
from dartformer.report import bracket, charts, drawing, markup, page, plots, verdicts
from dartformer.report.chart import Chart
from dartformer.report.models import title_of
from dartformer.report.page import Fact, Race
from dartformer.report.reading import SEARCH, WEIGHTS, Curve, Trajectory
from dartformer.results import RaceRecord
from dartformer.space.genotype import Genotype, in_words, layer_in_words
from dartformer.stages.bracket import HOMOGENEOUS
from dartformer.training.metric import LOSS

FILE = "report.html"

FEWEST, MOST = 12, 400
"""Steps at which a page holds the mixtures, at least and at most."""

ABOUT_CURVES = "The lines are of the supernet, which trains all candidates at once."


def write(result: Shown, path: str | Path | None = None) -> Path:
    """Write the page of a search or a race; None writes it to the workdir."""
    if path is not None:
        file = Path(path).expanduser()
        if file.is_dir():
            file = file / FILE
    else:
        folder = _parts(result)[0].path
        if folder is None:
            raise InputError("report needs a path because the search has no workdir. Pass one.")
        file = folder / FILE
    write_text(file, render(result))
    return file


def notebook(result: Shown) -> str:
    """What a notebook shows, in one piece: no script and no file beside it."""
    search, race = _parts(result)
    genotype = _genotype(search, race)
    cells = ""
    if genotype is not None:
        cells = drawing.svg(drawing.draw(genotype.texts(), _candidates(search)))
    plot = ""
    if _trajectory(search) is not None:
        plot = plots.trajectories(search.history, search.space).svg
    columns, rows = _table(search, race)
    return markup.fill(
        "notebook.html",
        lines=verdict(search, race),
        genotype=Markup(cells),
        plot=Markup(plot),
        columns=columns,
        rows=rows,
    )


def render(result: Shown) -> str:
    """The page."""
    search, race = _parts(result)
    genotype, trajectory = _genotype(search, race), _trajectory(search)
    candidates = _candidates(search)
    extra: dict[str, object] = {}
    drawn, raced, title = None, None, "Search in a module"
    if genotype is not None:
        layers = tuple(map(tuple, genotype.texts()))
        drawn = drawing.draw(layers, candidates)
        extra["genotype"] = page.genotype_numbers(layers)
    if trajectory is not None:
        extra["trajectories"] = charts.packed(trajectory, candidates)
    chosen = "Largest weights of the mixture"
    if race is not None:
        title, chosen = "Search and race in a module", "The winner of the race"
        raced = _race(race.record)
    return page.fill(
        "module.html",
        title=title,
        figures=_figures(search, race, trajectory),
        extra=extra,
        live=False,
        verdict=verdict(search, race),
        searched=_searched(search),
        genotype=drawn,
        chosen=chosen,
        names=search.places,
        places=_names(search),
        describe_layer=layer_in_words,
        race=raced,
        trajectory=trajectory,
        diagnostics=search.diagnosis,
        mark=verdicts.mark,
        number=verdicts.number,
        limit=verdicts.limit,
        facts=_facts(search, race),
    )


def verdict(search: ModuleSearch, race: ModuleRace | None = None) -> list[str]:
    """The verdict of the race, or what the search chose and what speaks against it."""
    if race is not None:
        lines = []
        for line in race.verdict:
            # Those are told with the bracket.
            if line not in race.record.cuts:
                lines.append(verdicts.sentence(_in_words(line, race.record)))
        return lines
    lines = []
    genotype = _genotype(search, None)
    if genotype is not None:
        lines.append(f"The search gives the largest weights to {in_words(genotype.texts())}.")
    lines += map(verdicts.sentence, search.verdict)
    lines.append("No race has compared it with its rivals yet: df.race does.")
    return lines


def _in_words(line: str, record: RaceRecord) -> str:
    """A sentence with titles in place of names, and arguments of `df.race` in place of fields."""
    line = line.replace(" race.", " ")
    names = [entrant.name for entrant in record.entrants if title_of(entrant.name) != entrant.name]
    # The longest first: a name may begin another.
    for name in sorted(names, key=len, reverse=True):
        if name.startswith(HOMOGENEOUS):
            line = line.replace(name, title_of(name))
    return line


def _parts(result: Shown) -> tuple[ModuleSearch, ModuleRace | None]:
    if isinstance(result, ModuleRace):
        return result.search, result
    assert isinstance(result, ModuleSearch)
    return result, None


def _candidates(search: ModuleSearch) -> list[str]:
    return list(map(to_text, search.space.candidates))


def _genotype(search: ModuleSearch, race: ModuleRace | None) -> Genotype | None:
    """The winner of a race, or the largest weights of a search that learns them."""
    if race is not None:
        return race.genotype
    if not search.searched.settings.strategy.traits.alphas:
        return None
    winners = diagnostics.rows(search.mixture, search.space).winner
    return search.space.genotype(winners)


def _names(search: ModuleSearch) -> dict[int, str]:
    """The places of the layers by their numbers."""
    named = {}
    for layer, name in enumerate(search.places):
        named[layer] = f"{layer}: {name}"
    return named


def _trajectory(search: ModuleSearch) -> Trajectory | None:
    """The logged mixtures at evenly spaced steps; None where no strategy moves them."""
    lines = [line for line in search.history if "mixture" in line]
    settings = search.searched.settings
    if not lines or not settings.strategy.traits.alphas:
        return None
    most = int(np.clip(WEIGHTS // search.alphas.size, FEWEST, MOST))
    numbers = np.linspace(0, len(lines) - 1, min(len(lines), most)).round().astype(int)
    steps, mixtures = [], []
    for number in numbers:
        line = lines[number]
        mixture = np.array(line["mixture"]).reshape(search.space.mixture_shape)
        steps.append(line["step"])
        mixtures.append(search.space.free(mixture))
    weights = np.stack(mixtures)[None]  # [1, T, 1 or L, 1 or H, K]
    return Trajectory((settings.seed,), tuple(steps), weights, len(lines))


def _figures(
    search: ModuleSearch, race: ModuleRace | None, trajectory: Trajectory | None
) -> dict[str, Chart]:
    candidates = _candidates(search)
    drawn: list[Chart | None] = []
    if race is not None:
        drawn.append(charts.race(race.record))
    if trajectory is not None:
        rows, columns = trajectory.weights.shape[2:4]
        drawn.append(charts.trajectories(trajectory, candidates))
        if rows * columns > 1:
            drawn.append(charts.winners(rows, candidates))
    curves = charts.searching(_curves(search))
    if curves is not None:
        curves = replace(curves, title="Loss over the steps of the search", note=ABOUT_CURVES)
        drawn.append(curves)
    return charts.by_name(drawn)


def _curves(search: ModuleSearch) -> list[Curve]:
    """A curve for each number of the log."""
    logged: dict[str, list[tuple[int, float]]] = {}
    for line in search.history:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                logged.setdefault(name, []).append((line["step"], value))
    curves = []
    for name, points in logged.items():
        seed = search.searched.settings.seed
        curves.append(Curve(SEARCH, seed, name, tuple(points), len(points)))
    return curves


def _race(record: RaceRecord) -> Race:
    metric = bracket.metric_of(record)
    best = "less"
    if metric.higher:
        best = "more"
    # In words before they become sentences, which begin with a capital letter.
    cuts = tuple(_in_words(cut, record) for cut in record.cuts)
    sentences = [
        f"Entrants are compared by the {metric.title} on valid, where {best} is better.",
        *bracket.sentences(replace(record, cuts=cuts)),
    ]
    return Race(bracket.headings(record), bracket.lines(record, metric), sentences)


def _table(
    search: ModuleSearch, race: ModuleRace | None
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """The entrants of a race; or what a search measured of each candidate alone."""
    rows: list[tuple[str, ...]] = []
    if race is not None:
        metric = bracket.metric_of(race.record)
        for line in bracket.lines(race.record, metric):
            # Of what stopped, the score where it did.
            reached = [score for score in (*line.rungs, line.end) if score]
            score = (reached or [""])[-1]
            rows.append((line.name, line.outcome, score, line.test))
        names = ("entrant", "outcome", f"{metric.title} on valid", f"{metric.title} on test")
        return names, rows
    for name, scores in (search.diagnosis.alone or {}).items():
        rows.append((name, LOSS.text(scores[LOSS.name])))
    return ("this candidate everywhere, with the weights of the search", "loss on valid"), rows


def _searched(search: ModuleSearch) -> list[str]:
    layers, heads, count = search.space.mixture_shape
    settings = search.searched.settings
    choices = search.alphas.size // count
    return [
        f"{choices} choices among {', '.join(_candidates(search))}, by {settings.granularity}, in "
        f"{layers} layers of {heads} heads."
    ]


def _facts(search: ModuleSearch, race: ModuleRace | None) -> list[Fact]:
    """Steps, seeds and costs."""
    settings = search.searched.settings
    spent = verdicts.hours(search.processor_seconds)
    compiling = verdicts.hours(search.compile_seconds)
    facts = [
        Fact("strategy", repr(settings.strategy)),
        Fact("search", f"{settings.steps:,} steps with seed {settings.seed}"),
        Fact("cost of the search", f"{spent} of processor time, and {compiling} to compile"),
    ]
    if race is not None:
        record = race.record
        seeds = ", ".join(map(str, record.seeds))
        facts.append(Fact("race", f"{record.steps:,} steps; finalists with the seeds {seeds}"))
        cost = f"{verdicts.hours(record.seconds)} of processor time"
        facts.append(Fact("cost of the race", cost))
    if search.path is not None:
        facts.append(Fact("workdir", str(search.path)))
    return facts
