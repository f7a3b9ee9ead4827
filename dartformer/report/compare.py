"""Several runs beside each other: their scores, their genotypes, and which differ significantly."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dartformer import diagnostics, statistics
from dartformer.errors import InputError
from dartformer.machine.identity import different
from dartformer.machine.record import Record
from dartformer.machine.workdir import write_text
from dartformer.report import charts, page
from dartformer.report.chart import Chart
from dartformer.report.drawing import Drawing, draw
from dartformer.report.models import Priced, Score
from dartformer.report.reading import FOUND, Reading, describe, read, record
from dartformer.results import ExampleScores, Layers
from dartformer.training import metric
from dartformer.training.metric import UNDEFINED, Metric

LISTED = 30
"""Heads in which two genotypes differ that are listed; the rest are counted."""

SAMPLES = 2000
"""Of the bootstrap. Smaller p than one of them cannot be told apart."""


@dataclass(frozen=True)
class Entry(Record):
    """One run; null for what is not known yet.

    Attributes:
      run: its workdir.
      task, strategy: names.
      genotype: in short.
      test: the score, mean over the seeds.
      spread: over the seeds.
      per_seed: the scores.
      seeds: of the trainings.
      steps: of each training.
      majority: the score of the majority class.
      parameters: of the found model.
      flops: of a forward pass on one example.
      seconds: of the whole run.
    """

    run: str
    task: str
    strategy: str
    genotype: str | None
    test: float | None
    spread: float | None
    per_seed: tuple[float, ...] | None
    seeds: tuple[int, ...] | None
    steps: int | None
    majority: float | None
    parameters: int | None
    flops: float | None
    seconds: float | None


@dataclass(frozen=True)
class Bootstrap(Record):
    """The paired bootstrap over test examples, see `dartformer.statistics.paired_bootstrap`.

    Attributes:
      difference: of the mean scores.
      low, high: its 95% interval.
      p: two-sided.
    """

    difference: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Differences(Record):
    """Where two genotypes differ.

    Attributes:
      count: heads that differ; null for genotypes of different sizes.
      places: heads of each genotype; null for genotypes of different sizes.
      lines: the first of them in words.
    """

    count: int | None
    places: int | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Pair(Record):
    """Two runs compared.

    Attributes:
      a, b: their workdirs.
      seeds: a sentence: would other seeds say the same?
      examples: a sentence: would other test examples?
      bootstrap: the numbers behind `examples`; null where there are none.
      genotypes: where they differ; null where one is missing.
      significant: whether the difference is significant over seeds and over examples.
    """

    a: str
    b: str
    seeds: str
    examples: str
    bootstrap: Bootstrap | None
    genotypes: Differences | None
    significant: bool


@dataclass(frozen=True)
class Compared(Record):
    """Two or more runs compared.

    Attributes:
      metric: of the scores.
      runs: one entry for each.
      pairs: every two of them.
    """

    metric: str
    runs: tuple[Entry, ...]
    pairs: tuple[Pair, ...]

    @property
    def measure(self) -> Metric:
        """The metric of the scores."""
        return metric.find(self.metric)


def compare(paths: Sequence[str | Path]) -> Compared:
    """Two or more workdirs beside each other.

    Every pair is compared twice, which answers different questions: over the seeds (Welch's
    interval, as in the report: would other seeds say the same?) and over the test examples, paired
    (a bootstrap: would other examples?). Raises `InputError` for fewer than two workdirs, one named
    twice, or tasks that are scored differently.
    """
    if len(paths) < 2:
        raise InputError(f"compare takes at least two workdirs, got {len(paths)}.")
    # One folder may be named in two ways.
    folders = {Path(path).resolve() for path in paths}
    if len(folders) < len(paths):
        listed = ", ".join(map(str, paths))
        raise InputError(f"compare takes different workdirs, got {listed}.")
    readings = {str(path): read(path) for path in paths}
    # A run without a score on test names no metric that the scores could differ in.
    measures = set()
    for reading in readings.values():
        if reading.results.test is not None:
            measures.add(reading.metric.name)
    if len(measures) > 1:
        names = ", ".join(sorted(measures))
        raise InputError(f"these runs cannot be compared: they are scored by {names}.")
    measure = metric.ACCURACY  # of runs that are not evaluated yet, for headings
    if measures:
        measure = metric.find(measures.pop())
    runs = [entry(name, reading) for name, reading in readings.items()]
    pairs = [pair(a, b, readings, measure) for a, b in itertools.combinations(readings, 2)]
    return Compared(measure.name, tuple(runs), tuple(pairs))


def entry(name: str, reading: Reading) -> Entry:
    """One run."""
    results = reading.results
    genotype = mean = spread = per_seed = majority = None
    if reading.genotype is not None:
        genotype = describe(reading.genotype)
    if results.test is not None:
        mean, spread, per_seed = results.test.mean, results.test.spread, results.test.per_seed
    if results.baselines and "majority" in results.baselines:
        majority = results.baselines["majority"].test.mean
    return Entry(
        run=name,
        task=reading.settings.task,
        strategy=reading.settings.strategy,
        genotype=genotype,
        test=mean,
        spread=spread,
        per_seed=per_seed,
        seeds=results.seeds,
        steps=results.steps,
        majority=majority,
        parameters=results.parameters,
        flops=results.flops,
        seconds=(results.training_seconds + results.compile_seconds) or None,
    )


def pair(a: str, b: str, readings: Mapping[str, Reading], measure: Metric) -> Pair:
    """Two runs: sentences, the bootstrap's numbers, and where the genotypes differ."""
    ours, theirs = readings[a], readings[b]
    genotypes = None
    if ours.genotype is not None and theirs.genotype is not None:
        genotypes = differences(ours.genotype, theirs.genotype)
    obstacle = _obstacle(a, b, ours, theirs)
    # Genotypes are compared all the same: they need no scores.
    if obstacle:
        return Pair(a, b, obstacle, obstacle, None, genotypes, False)
    seeds, by_seeds = over_seeds(a, b, ours, theirs, measure)
    examples, bootstrap = over_examples(a, b, ours, theirs, measure)
    # Chance has two sources, the seeds and the examples: it must be ruled out in both.
    significant = by_seeds.outcome != "undecided"
    significant = significant and bootstrap is not None and bootstrap.significant
    return Pair(a, b, seeds, examples, bootstrap, genotypes, significant)


def _obstacle(a: str, b: str, ours: Reading, theirs: Reading) -> str:
    """Why two runs cannot be compared, or nothing."""
    if ours.settings.task != theirs.settings.task:
        return f"different tasks: {ours.settings.task} and {theirs.settings.task}"
    missing = []
    for name, run in ((a, ours), (b, theirs)):
        if run.results.test is None:
            missing.append(name)
    if missing:
        return f"not evaluated yet: {', '.join(missing)}"
    # The same task may have been read from a folder whose files changed.
    changed = different(ours.results.identity or {}, theirs.results.identity or {})
    if "data" in changed:
        return "trained on different data, which allows no comparison"
    # Scores are compared example by example, so the examples must be the same in the same order.
    fingerprints = set()
    for run in (ours, theirs):
        scores = record(ExampleScores, run.path / "test_scores.json")
        if scores is not None:
            fingerprints.add(scores.fingerprint)
    if len(fingerprints) > 1:
        return "tested on different examples, which allows no comparison"
    return ""


def over_seeds(
    a: str, b: str, ours: Reading, theirs: Reading, measure: Metric
) -> tuple[str, statistics.Comparison]:
    """A sentence on two evaluated runs compared over their seeds, and its numbers."""
    first, second = ours.results.test, theirs.results.test
    assert first is not None
    assert second is not None
    compared, sentence = diagnostics.compare(
        a, first.per_seed, b, second.per_seed, examples=first.examples, metric=measure
    )
    return sentence, compared


def _outcome(a: str, b: str, outcome: str) -> str:
    """Which of two runs is better, in words."""
    if outcome == "better":
        return f"{a} beats {b}"
    if outcome == "worse":
        return f"{a} loses to {b}"
    return f"{a} and {b} do not differ significantly"


def over_examples(
    a: str, b: str, ours: Reading, theirs: Reading, measure: Metric
) -> tuple[str, Bootstrap | None]:
    """A sentence on two runs compared over their test examples, and its numbers."""
    kept = {}
    for name, reading in ((a, ours), (b, theirs)):
        scores = record(ExampleScores, reading.path / "test_scores.json")
        if scores is None:
            return f"{name} kept no scores of test examples: evaluate it again", None
        kept[name] = scores
    score = kept[a].score
    numbers = statistics.paired_bootstrap(kept[a].array(FOUND), kept[b].array(FOUND), SAMPLES)
    bootstrap = Bootstrap(*numbers)  # paired: example by example, which is far sharper
    outcome = "undecided"
    if bootstrap.significant:
        # Of a score such as bits per character the lower one is better.
        outcome = "worse"
        if (bootstrap.difference > 0) == kept[a].higher:
            outcome = "better"
    low, high = _signed(bootstrap.low, measure), _signed(bootstrap.high, measure)
    difference = _signed(bootstrap.difference, measure)
    unit = score_name = ""
    if measure.percent:
        unit = " points"
    if score != measure.name:
        score_name = f" in {score}"
    # The bootstrap cannot tell a smaller p from this one.
    sign = "="
    if bootstrap.p <= 1 / SAMPLES:
        sign = "<"
    in_words = (
        f"{difference}{unit}{score_name}, 95% interval {low} to {high}, p {sign} {bootstrap.p:.2g}, "
        f"{kept[a].examples:,} examples"
    )
    return f"{_outcome(a, b, outcome)} ({in_words})", bootstrap


def _signed(value: float, measure: Metric) -> str:
    """A difference with its sign, in points of a percentage; a dash where it is undefined."""
    if not math.isfinite(value):
        return UNDEFINED
    if measure.percent:
        return f"{100 * value:+.1f}"
    return f"{value:+.3f}"


def differences(ours: Layers, theirs: Layers) -> Differences:
    """Heads in which two genotypes differ."""
    rows, columns = len(ours), len(ours[0])
    if (len(theirs), len(theirs[0])) != (rows, columns):
        line = f"{_size(ours)} against {_size(theirs)}"
        return Differences(None, None, (line,))
    lines: list[str] = []
    count = 0
    for layer, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        heads = [head for head in range(len(a)) if a[head] != b[head]]
        count += len(heads)
        # A line for a layer in which all heads of each genotype are alike.
        if heads and len(set(a)) == len(set(b)) == 1:
            lines.append(f"layer {layer}: {a[0]} against {b[0]}")
        else:
            for head in heads:
                lines.append(f"layer {layer}, head {head}: {a[head]} against {b[head]}")
    if len(lines) > LISTED:
        lines = [*lines[:LISTED], f"and {len(lines) - LISTED} more"]
    return Differences(count, rows * columns, tuple(lines))


def _size(layers: Layers) -> str:
    """The size of a genotype in words."""
    return f"{len(layers)} layers of {len(layers[0])} heads"


@dataclass(frozen=True)
class Drawn:
    """The genotype of a run on the page.

    Attributes:
      key: of its numbers.
      run: whose it is.
      drawing: its shapes.
    """

    key: str
    run: str
    drawing: Drawing


def render(compared: Compared) -> str:
    """The comparison as a page that looks like a report."""
    readings = {run.run: read(run.run) for run in compared.runs}
    drawn, extra = _genotypes(readings)
    return page.fill(
        "compare.html",
        title=f"{len(readings)} runs compared",
        figures=_charts(compared, readings),
        extra=extra,
        live=False,
        compared=compared,
        measure=compared.measure,
        drawn=drawn,
        first=headline(compared),
    )


def _charts(compared: Compared, readings: Mapping[str, Reading]) -> dict[str, Chart]:
    """The charts of the page, by name."""
    scores, priced = [], []
    for run in compared.runs:
        if run.test is None:
            continue
        per_seed = dict(zip(run.seeds or (), run.per_seed or (), strict=False))
        scores.append(Score(run.run, run.test, per_seed))
        costs = {
            "FLOPs of a forward pass": run.flops,
            "parameters": run.parameters,
            "seconds of the whole run": run.seconds,
        }
        priced.append(Priced(run.run, run.test, costs))
    curves = []
    for name, reading in readings.items():
        for curve in reading.curves:
            if curve.model == FOUND:  # baselines would hide the runs themselves
                curves.append(replace(curve, model=name))
    described = [charts.curves(curves)]  # which a run has long before scores
    if scores:
        described.append(charts.comparison(scores, compared.measure))
        described.append(charts.accuracy_cost(priced, compared.measure))
    return charts.by_name(described)


def _genotypes(readings: Mapping[str, Reading]) -> tuple[list[Drawn], dict[str, object]]:
    """The drawings of the page, in the same colors, and their numbers."""
    # Of all runs, so that an attention has one color on the whole page.
    candidates: list[str] = []
    for reading in readings.values():
        candidates += reading.candidates
    drawn: list[Drawn] = []
    numbers: dict[str, object] = {}
    for i, (name, reading) in enumerate(readings.items()):
        if reading.genotype is not None:
            key = f"genotype-{i}"
            drawn.append(Drawn(key, name, draw(reading.genotype, candidates)))
            numbers[key] = page.genotype_numbers(reading.genotype)
    return drawn, numbers


def headline(compared: Compared) -> str:
    """The run with the best mean, and whether it differs significantly from the next."""
    measure = compared.measure
    scored = [run for run in compared.runs if run.test is not None]
    # Sorting keeps the order of the command line among equals.
    scored.sort(key=lambda run: run.test or 0.0, reverse=measure.higher)
    if len(scored) < 2:
        return "Fewer than two of these runs are evaluated, so there is nothing to compare yet."
    best, second = scored[:2]
    assert best.test is not None
    assert second.test is not None
    rank = "lowest"
    if measure.higher:
        rank = "highest"
    text = (
        f"{best.run} scores {rank} on test ({measure.title} {measure.text(best.test)} against "
        f"{measure.text(second.test)} for {second.run})"
    )
    names = {best.run, second.run}
    # The best is first here, but the pair may name them in the order of the command line.
    for two in compared.pairs:
        if {two.a, two.b} == names and two.significant:
            return f"{text}, and the difference is significant."
    return f"{text}, but the difference is not significant."


def write(compared: Compared, file: str | Path) -> None:
    """`render`, to a file."""
    write_text(Path(file), render(compared))
