"""What a run came to, in sentences: its score, how it compares, and what stopped it."""

from collections.abc import Sequence
from typing import NamedTuple

from dartformer.report.reading import Reading, Settings, describe
from dartformer.results import Diagnostics, Finding, Layers, Results, finite
from dartformer.stages.conclude import TRAINED
from dartformer.training import metric

MARKS = {True: ("ok", "green"), False: ("WARNING", "red"), None: ("?", "yellow")}
"""How a finding is marked, by its `fine`: a word and a color."""


class Belief(NamedTuple):
    """Whether to believe a result: a few words, their color, and what speaks against it."""

    words: str
    color: str
    reasons: tuple[str, ...]


def headline(reading: Reading) -> list[str]:
    """What the run comes to, the score of the found model, and how it compares, in sentences."""
    results = reading.results
    if results.verdict is None:
        if reading.genotype is None:
            return ["The search has not chosen a genotype yet."]
        return [
            f"The search chose {describe(reading.genotype)}. It is not evaluated yet: no model has "
            f"been scored on test."
        ]
    lines: list[str] = []
    if results.conclusion is not None:
        lines += results.conclusion.sentences
    lines.append(scored(results, reading.genotype))
    lines += map(sentence, results.verdict)
    return lines


def failed(results: Results) -> bool:
    """Whether the models have not learned enough for one of them to be taken as it is."""
    return results.conclusion is not None and results.conclusion.state != TRAINED


def improving(results: Results, line: str) -> bool:
    """Whether a line of the conclusion says that more steps are likely to improve a good model."""
    conclusion = results.conclusion
    if conclusion is None or conclusion.flag is None or failed(results):
        return False
    return conclusion.flag in line


def belief(results: Results, diagnostics: Diagnostics | None) -> Belief | None:
    """Whether to believe the result; None before there is one."""
    if results.verdict is None:
        return None
    reasons = []
    seeds = len(results.seeds or ())
    if seeds == 1:
        reasons.append("Each model was trained with one seed. Set retrain.seeds=(0, 1, 2).")
    if diagnostics is not None:
        for finding in diagnostics.findings:
            if finding.fine is False:
                reasons.append(sentence(finding.verdict))
    conclusion = results.conclusion
    if conclusion is not None and conclusion.take is None:
        return Belief("Do not rely on it", "red", tuple(reasons))
    if failed(results):
        reasons.insert(0, "Longer trainings may choose another model.")
    if reasons:
        return Belief(f"Believe it with care: {warnings(len(reasons))}", "yellow", tuple(reasons))
    return Belief(f"You can believe it: {seeds_in_words(seeds)}, no warnings", "green", ())


def warnings(count: int) -> str:
    """ "1 warning" or "2 warnings" """
    if count == 1:
        return "1 warning"
    return f"{count} warnings"


def searched(reading: Reading) -> list[str]:
    """What was searched and trained, and how long it took, in sentences."""
    settings, results = reading.settings, reading.results
    search_epochs = epochs = None
    # Of a generated task the number of examples is an option, and passes over them mean little.
    if results.conclusion is not None and not settings.generated:
        search_epochs, epochs = results.conclusion.search_epochs, results.conclusion.epochs
    count = len(settings.candidates)
    space = f"{count} candidates ({', '.join(settings.candidates)}) {_places(settings)}"
    told = []
    # A strategy that searches nothing has a record of that, too.
    conclusion = results.conclusion
    is_search = conclusion is None or conclusion.search_epochs is not None
    if reading.search is not None and is_search:
        steps = _steps(settings.search_steps, search_epochs)
        told.append(f"Searched: {space}, with {settings.strategy} in {steps}.")
    else:
        told.append(f"The space: {space}.")
    if results.race is not None:
        entrants = len(results.race.entrants)
        finalists = sum(entrant.finalist for entrant in results.race.entrants)
        most = ""
        if settings.patience:
            # The epochs are those of the found model, on average.
            most = "up to "
        told.append(
            f"Raced: {entrants} models, of which {finalists} trained for {most}"
            f"{_steps(settings.retrain_steps, epochs)}, {_over(settings.retrain_seeds)}."
        )
    for limit in results.limits or ():
        told.append(limit.sentence)
    if results.seconds:
        spent = hours(results.training_seconds + results.compile_seconds)
        told.append(f"It took {spent}, of which {hours(results.compile_seconds)} was compiling.")
    return told


def _places(settings: Settings) -> str:
    if settings.granularity == "model":
        return "for the whole model"
    if settings.granularity == "layer":
        return f"in each of {settings.layers} layers"
    if settings.granularity == "kv_group":
        _, groups = settings.places
        return f"in each of {groups} KV groups of {settings.layers} layers"
    return f"in each of {settings.heads} heads of {settings.layers} layers"


def _steps(steps: int, epochs: float | None) -> str:
    if epochs is None:
        return f"{steps:,} steps"
    return f"{steps:,} steps ({epochs:.1f} epochs)"


def _over(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return "with one seed"
    return f"with each of {len(seeds)} seeds"


def scored(results: Results, genotype: Layers | None = None) -> str:
    """The score of the found model beside that of the majority class."""
    test = results.test
    if test is None or results.genotype is None:
        return "The found model has no score on test."
    measure = metric.find(results.measure)
    name = describe(genotype or results.genotype.layers)
    text = f"The found model ({name}) scores {measure.text(test.mean)} on test ({measure.title}, "
    text += seeds_in_words(len(test.per_seed))
    if finite(test.spread):
        text += f", spread {measure.gap(test.spread)}"
    text += ")"
    # Beside the score, as 90% says little where 90% of the examples are of one class.
    majority = (results.baselines or {}).get("majority")
    if majority is not None:
        text += f"; the majority class scores {measure.text(majority.test.mean)}"
    return f"{text}."


def seeds_in_words(count: int) -> str:
    """ "one seed", or "mean of 3 seeds" """
    if count == 1:
        return "one seed"
    return f"mean of {count} seeds"


def sentence(text: str) -> str:
    """A text with a capital letter and a period."""
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def mark(finding: Finding) -> tuple[str, str]:
    """The word and the color that mark a finding."""
    return MARKS[finding.fine]


def number(value: float | None) -> str:
    """A number of a finding in three digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.3g}"


SENSES = {
    "entropy": "at most",
    "decision": "at least",
    "margin": "above",
    "seeds": "above",
    "discretisation": "at most",
    "output RMS": "at most",
    "query and key gradients": "at least",
    "curvature": "at most",
    "ranking": "at least",
    "unknown tokens": "at most",
}
"""On which side of its threshold a diagnostic is fine."""


def limit(finding: Finding) -> str:
    """A threshold with its sense: "at least 0.75"; nothing where there is none."""
    if finding.threshold is None:
        return ""
    return f"{SENSES.get(finding.name, '')} {number(finding.threshold)}".strip()


def large(value: float) -> str:
    """A count in at most five digits: "21,216", "1.21 M"."""
    if value < 1e5:
        return f"{value:,.0f}"
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)):
        if value < 999.5 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def hours(seconds: float) -> str:
    """ "41 s", "12.3 min" or "5.2 h" """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def stopped(reading: Reading) -> str:
    """Why the last command stopped, or nothing if it did not."""
    if not reading.invocations:
        return ""
    last = reading.invocations[-1]  # an earlier failure that was repaired is of no interest
    if last.state != "stopped":
        return ""
    return f"{last.verb} stopped: {last.why}"
