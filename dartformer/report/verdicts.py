"""What is judged of a run, in words: its headline, and how the page and the terminal write numbers."""

import math

from dartformer.report.reading import Reading, describe
from dartformer.training import metric

MARKS = {True: ("ok", "green"), False: ("WARNING", "red"), None: ("?", "yellow")}
"""How a finding is marked, by its `fine`: a word and a colour."""


def headline(found: Reading) -> list[str]:
    """What was found in sentences: the first says the score, the others hold it against every kind
    of baseline."""
    results = found.results
    if "verdict" not in results:
        if found.genotype:
            return [
                f"The search chose {describe(found.genotype)}. It is not evaluated yet: the test part has not been "
                "read, and nothing can be said about how good it is."
            ]
        return ["Nothing is found yet."]
    shown, test = metric.of(results), results["test"]
    seeds = len(test["per_seed"])
    spread = test.get("spread")
    noise = f", spread {shown.gap(spread)}" if spread is not None and math.isfinite(spread) else ""
    first = (
        f"{describe(found.genotype or results['genotype']['layers'])} has {shown.title} "
        f"{shown.text(test[shown.name])} on test ({'mean of ' if seeds > 1 else ''}{seeds} "
        f"seed{'s' * (seeds > 1)}{noise})"
    )
    if "majority" in results["baselines"]:
        first += f"; the majority class has {shown.text(results['baselines']['majority']['test'][shown.name])}"
    return [first + ".", *(f"{line[0].upper()}{line[1:]}." for line in results["verdict"])]


def hours(seconds: float) -> str:
    """ "41 s", "12.3 min" or "5.2 h" """
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def stopped(found: Reading) -> str:
    """Why the last command stopped, or nothing if it did not."""
    last = found.runs[-1] if found.runs else {}
    return f"{last['verb']} stopped: {last['why']}" if last.get("state") == "stopped" else ""


def number(value: float | None) -> str:
    """A number of a diagnosis in three digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.3g}"
