"""What a run came to, in sentences: its score, how it compares, and what stopped it."""

from dartformer.report.reading import Reading, describe
from dartformer.results import Finding, Layers, Results, finite
from dartformer.training import metric

MARKS = {True: ("ok", "green"), False: ("WARNING", "red"), None: ("?", "yellow")}
"""How a finding is marked, by its `fine`: a word and a color."""


def headline(reading: Reading) -> list[str]:
    """The score of the found model in a sentence, then one for each kind of baseline."""
    results = reading.results
    if results.verdict is None:
        if reading.genotype is None:
            return ["The search has not chosen a genotype yet."]
        return [
            f"The search chose {describe(reading.genotype)}. It is not evaluated yet: no model has "
            f"been scored on test."
        ]
    return [scored(results, reading.genotype), *map(sentence, results.verdict)]


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
