"""The bracket of a race: who ran, who stopped where, and what it cost."""

from collections.abc import Sequence
from typing import NamedTuple

from dartformer.errors import shortened
from dartformer.report.models import title_of
from dartformer.report.verdicts import hours, sentence
from dartformer.results import EntrantRecord, RaceRecord
from dartformer.space.genotype import Genotype
from dartformer.stages.bracket import ANSWER, HOMOGENEOUS, MIX, NEIGHBOUR
from dartformer.training.metric import LOSS, SCORE, Metric, find

WINNER, FINALIST, STOPPED, REFERENCE = "winner", "finalist", "stopped", "reference"

FATES = (WINNER, FINALIST, STOPPED, REFERENCE)
"""What became of an entrant, in the order of a legend."""


class Line(NamedTuple):
    """A line of the bracket.

    Attributes:
      name: all names of the entrant, and its genotype where they do not tell it.
      fate: of `FATES`.
      outcome: the same in words, with the step.
      rungs: the score on valid at each rung, "" where it did not run.
      end: the score on valid after the whole training; of a finalist the mean over the seeds.
      test: of a finalist.
    """

    name: str
    fate: str
    outcome: str
    rungs: tuple[str, ...]
    end: str
    test: str


def metric_of(race: RaceRecord) -> Metric:
    """What its entrants were compared by."""
    for metric in (LOSS, SCORE):
        if race.metric == metric.name:
            return metric
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
        fate, end = fate_of(race, entrant), scores.get(race.steps, "")
        if entrant.stopped_at is None:
            end = _text(entrant.valid, metric)
        test = _text(entrant.test, tested)
        outcome = _outcome(race, fate, entrant)
        listed.append(Line(name_of(entrant), fate, outcome, rungs, end, test))
    return listed


def name_of(entrant: EntrantRecord) -> str:
    """All names of an entrant, and its genotype where they do not tell it."""
    names = (entrant.name, *entrant.names)
    title = ", ".join(map(title_of, names))
    if any(name.startswith((HOMOGENEOUS, MIX, NEIGHBOUR)) for name in names):
        return title
    return f"{title}: {_genotype(entrant)}"


def _genotype(entrant: EntrantRecord) -> str:
    text = str(Genotype.from_dict(entrant.genotype.to_dict()))
    return shortened(text, LONGEST)


LONGEST = 80
"""Letters of a genotype in the bracket."""


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
    derived = race.entrants[0]
    if derived.name == ANSWER and derived.name != race.winner:
        listed.append(_change(race, derived))
    for tie in race.ties:
        listed.append(f"On valid, {tie.removesuffix('.')}.")
    listed += map(sentence, race.cuts)
    return listed


def _change(race: RaceRecord, derived: EntrantRecord) -> str:
    """That the race chose another genotype than the search."""
    metric = metric_of(race)
    (winner,) = (entrant for entrant in race.entrants if entrant.name == race.winner)
    seeds = ""
    if not derived.finalist:
        seeds = " with one seed"
    return (
        f"The search derived {_genotype(derived)} ({_text(derived.valid, metric)} on valid{seeds}), "
        f"and the race chose {_genotype(winner)} ({_text(winner.valid, metric)})."
    )


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


def _outcome(race: RaceRecord, fate: str, entrant: EntrantRecord) -> str:
    if any(look.diverged for look in entrant.looks):
        return "diverged"
    if entrant.stopped_at == race.steps:
        return "one seed only"
    if fate == STOPPED:
        return f"stopped after {entrant.stopped_at}"
    if fate == REFERENCE:
        return "outside the budget"
    return fate


def _text(value: float | None, metric: Metric) -> str:
    if value is None:
        return ""
    return metric.text(value)
