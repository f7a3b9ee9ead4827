"""The bracket of a race: who ran, who stopped where, and what it cost."""

from collections.abc import Sequence
from typing import NamedTuple

from dartformer.report.verdicts import hours, sentence
from dartformer.results import EntrantRecord, RaceRecord
from dartformer.training.metric import LOSS, Metric, find

WINNER, FINALIST, STOPPED, REFERENCE = "winner", "finalist", "stopped", "reference"

FATES = (WINNER, FINALIST, STOPPED, REFERENCE)
"""What became of an entrant, in the order of a legend."""


class Line(NamedTuple):
    """A line of the bracket.

    Attributes:
      name: all names of the entrant.
      fate: of `FATES`.
      outcome: the same in words, with the step.
      rungs: the score on valid at each rung, "" where it did not run.
      valid: its last score on valid; of a finalist the mean over the seeds.
      test: of a finalist.
    """

    name: str
    fate: str
    outcome: str
    rungs: tuple[str, ...]
    valid: str
    test: str


def metric_of(race: RaceRecord) -> Metric:
    """What its entrants were compared by."""
    if race.metric == LOSS.name:
        return LOSS
    return find(race.metric)


def lines(race: RaceRecord, tested: Metric) -> list[Line]:
    """The bracket, the winner first and then by how far each entrant came, best first.

    `tested` is the metric of the scores on test.
    """
    metric = metric_of(race)
    listed = []
    for entrant in _ranked(race, metric):
        scores = {look.step: _text(look.score, metric) for look in entrant.looks}
        rungs = tuple(scores.get(step, "") for step in race.rungs)
        name = ", ".join((entrant.name, *entrant.names))
        fate = fate_of(race, entrant)
        valid, test = _text(entrant.valid, metric), _text(entrant.test, tested)
        listed.append(Line(name, fate, _outcome(fate, entrant), rungs, valid, test))
    return listed


def fate_of(race: RaceRecord, entrant: EntrantRecord) -> str:
    """What became of an entrant."""
    if entrant.name == race.winner:
        return WINNER
    if entrant.outside_budget and entrant.stopped_at is None:
        return REFERENCE
    if entrant.stopped_at is None:
        return FINALIST
    return STOPPED


def sentences(race: RaceRecord) -> list[str]:
    """What the race cost, its ties, and the cuts that noise could have decided otherwise."""
    count, seeds = len(race.entrants), len(race.seeds)
    whole = f"all {count} entrants over {seeds} seeds"
    if seeds == 1:
        whole = f"all {count} entrants with one seed"
    listed = [
        f"The race took {hours(race.seconds)} of processor time, {race.share:.0%} of what training "
        f"{whole} would have taken."
    ]
    for tie in race.ties:
        listed.append(f"On valid, {sentence(tie)}")
    listed += map(sentence, race.cuts)
    return listed


def headings(race: RaceRecord) -> list[str]:
    """The titles of the columns of rungs."""
    return [f"step {step}" for step in race.rungs]


def _ranked(race: RaceRecord, metric: Metric) -> Sequence[EntrantRecord]:
    def order(entrant: EntrantRecord) -> tuple[bool, int, float]:
        reached = entrant.stopped_at or race.steps
        merit = float("-inf")
        if entrant.valid is not None:
            merit = metric.objective({metric.name: entrant.valid})
        return entrant.name == race.winner, reached, merit

    return sorted(race.entrants, key=order, reverse=True)


def _outcome(fate: str, entrant: EntrantRecord) -> str:
    if fate == STOPPED:
        return f"stopped after {entrant.stopped_at}"
    if fate == REFERENCE:
        return "outside the budget"
    return fate


def _text(value: float | None, metric: Metric) -> str:
    if value is None:
        return ""
    return metric.text(value)
