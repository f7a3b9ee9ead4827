"""Exchanging: the places that the scores choose, improved by exact measurements.

Scores are added up, but places stand in for each other: of two layers that do the same, either is
worth little while the other is there. So the choice of the scores is where a local search begins. A
neighbour of a placement keeps one other place in exchange for one that it keeps. Those with the
highest sum of scores are measured first, and one that loses less takes the place of the choice.
Only the calibration sequences are read, so that the held-out ones still test the answer."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dartformer.machine.identity import fingerprint, require_same
from dartformer.machine.progress import Bar
from dartformer.placement.choose import answer, combined
from dartformer.placement.records import ExchangeFile, MeasuredPlaces, ScoreFile
from dartformer.placement.study import PlacementFolder, PlacementStudy, PlacementWorkdir
from dartformer.placement.verdict import LITTLE, LITTLE_DISTANCE

TOGETHER = 4
"""Neighbours that are measured at once: the checkpoint then reads each sequence once for all."""

Losses = Callable[[Sequence[np.ndarray], int], np.ndarray]
"""The losses `[M]` of M placements on so many sequences of each kind."""


class Step(NamedTuple):
    """The local search after some neighbours.

    Attributes:
      kept: the best places `[L, C]` so far.
      loss: of them, on all sequences.
      measured: neighbours so far.
    """

    kept: np.ndarray
    loss: float
    measured: int


def local_search(
    start: np.ndarray,
    scores: np.ndarray,
    losses: Losses,
    sequences: int,
    most: int,
    allowed: Callable[[np.ndarray], bool],
) -> Iterator[Step]:
    """Improve a placement by exchanging a place that is kept for another.

    Neighbours are measured a few at a time: on the first sequence of each kind, and on all of them
    where they lose less than the best placement so far. Ends after `most` neighbours, or when the
    best placement has no more of them.

    Args:
      start: the places `[L, C]` to begin with.
      scores: what each place is thought to be worth; neighbours with the highest sums come first.
      losses: measures placements.
      sequences: how many there are of each kind.
      most: how many neighbours are measured.
      allowed: whether a placement is within the budget.

    Yields:
      The search before the first neighbours, and after each few of them.
    """
    best = Step(start, float(losses([start], sequences)[0]), 0)
    yield best
    seen = {start.tobytes()}
    while best.measured < most:
        fresh = _unseen(best.kept, scores, seen, allowed)
        group = list(itertools.islice(fresh, min(TOGETHER, most - best.measured)))
        if not group:
            return
        seen.update(kept.tobytes() for kept in group)
        best = best._replace(measured=best.measured + len(group))
        first = losses([best.kept, *group], 1)
        hopeful = [kept for kept, loss in zip(group, first[1:], strict=True) if loss < first[0]]
        if hopeful:
            whole = losses(hopeful, sequences)
            least = int(np.argmin(whole))
            if whole[least] < best.loss:
                best = best._replace(kept=hopeful[least], loss=float(whole[least]))
        yield best


def _unseen(
    kept: np.ndarray, scores: np.ndarray, seen: set[bytes], allowed: Callable[[np.ndarray], bool]
) -> Iterator[np.ndarray]:
    """The neighbours of a placement that were not measured, the highest sum of scores first."""
    given_up, taken = np.flatnonzero(kept), np.flatnonzero(~kept)
    values = scores.ravel()
    loss = values[given_up][:, None] - values[taken]
    # Stable, so that equal sums come in order.
    for number in np.argsort(loss, axis=None, kind="stable"):
        old, new = np.unravel_index(number, loss.shape)
        neighbour = kept.copy()
        neighbour.flat[[given_up[old], taken[new]]] = False, True
        if neighbour.tobytes() not in seen and allowed(neighbour):
            yield neighbour


def exchange(study: PlacementStudy, folder: PlacementWorkdir, scores: ScoreFile) -> np.ndarray:
    """The places `[L, C]` of the answer; what is in `exchange.json` is not measured again."""
    start, most = answer(study, scores), study.config.checkpoint.exchanges
    if not most:
        return start
    places = _Measurements(study, folder, scores)
    if places.file.kept is not None:
        return places.file.kept.astype(bool)

    def within_budget(kept: np.ndarray) -> bool:
        return study.limit.cost_of(kept, study.places) <= study.limit.amount

    order = study.at_granularity(
        combined(scores, study.config.checkpoint.rules[0], study.kind_names)
    )
    sequences = study.config.checkpoint.sequences
    step = Step(start, 0.0, 0)
    with Bar("exchange places", most) as bar:
        for step in local_search(start, order, places.losses, sequences, most, within_budget):
            bar.update(step.measured, {"loss": step.loss})
    places.end(step)
    return step.kept


def finished(
    study: PlacementStudy, folder: PlacementFolder, scores: ScoreFile
) -> np.ndarray | None:
    """The places that the local search of a workdir ended with; None where it did not end."""
    file = folder.read(ExchangeFile, folder.exchange)
    if file is None or file.kept is None or file.identity != _identity(study, scores):
        return None
    return file.kept.astype(bool)


def _identity(study: PlacementStudy, scores: ScoreFile) -> dict[str, str]:
    """Fingerprints of what a local search belongs to."""
    start = answer(study, scores).astype(int).tolist()
    settings = [start, study.config.checkpoint.exchanges]
    return {**scores.identity, "exchange": fingerprint(settings)}


class _Measurements:
    """The losses of placements on the calibration sequences, each measured and written one time.

    Args:
      study: of the config.
      folder: where `exchange.json` is.
      scores: whose totals make the losses of both kinds comparable.
    """

    def __init__(self, study: PlacementStudy, folder: PlacementWorkdir, scores: ScoreFile):
        self.study, self.folder, self.scores = study, folder, scores
        identity = _identity(study, scores)
        self.file = folder.read(ExchangeFile, folder.exchange) or ExchangeFile(identity)
        require_same(self.file.identity, identity, str(folder.exchange), "Choose another workdir.")
        self.known: dict[bytes, MeasuredPlaces] = {}
        for places in self.file.measured:
            self.known[places.kept.astype(bool).tobytes()] = places

    def losses(self, placements: Sequence[np.ndarray], sequences: int) -> np.ndarray:
        """`[M]`: the divergence of each kind as a share of what all cheap places lose, added up."""
        wall, processor = time.monotonic(), time.process_time()
        fresh = False
        for number in range(sequences):
            unmeasured = [kept for kept in placements if self._count(kept) <= number]
            if unmeasured:
                self._measure(unmeasured, number)
                fresh = True
        if fresh:
            self._write(time.monotonic() - wall, time.process_time() - processor)
        return np.array([self._loss(kept, sequences) for kept in placements])

    def _count(self, kept: np.ndarray) -> int:
        """The sequences of each kind that a placement was measured on."""
        known = self.known.get(kept.tobytes())
        return 0 if known is None else len(known)

    def _measure(self, placements: Sequence[np.ndarray], number: int) -> None:
        """Measure placements on one sequence of each kind."""
        rows = {}
        for kind, split in self.study.kinds.items():
            sequence = split.calibration.take(number, number + 1)
            rows[kind] = self.study.placement.divergence(placements, sequence)[:, 0]
        for position, kept in enumerate(placements):
            losses = {kind: float(row[position]) for kind, row in rows.items()}
            known = self.known.get(kept.tobytes(), MeasuredPlaces(kept.astype(int), {}))
            self.known[kept.tobytes()] = known.with_sequence(losses)

    def _loss(self, kept: np.ndarray, sequences: int) -> float:
        known, total = self.known[kept.tobytes()], 0.0
        least = LITTLE_DISTANCE if self.study.places.encodes else LITTLE
        for kind in self.study.kind_names:
            scores = self.scores.of(self.study.config.checkpoint.rules[0], kind)
            assert scores is not None
            total += float(known.losses[kind][:sequences].mean() / max(scores.totals.mean(), least))
        return total

    def _write(self, seconds: float, processor_seconds: float) -> None:
        self.file = replace(
            self.file,
            measured=tuple(self.known.values()),
            seconds=self.file.seconds + seconds,
            processor_seconds=self.file.processor_seconds + processor_seconds,
        )
        self.folder.write(self.folder.exchange, self.file)

    def end(self, step: Step) -> None:
        """Note what the search ended with."""
        start = self.file.measured[0]
        self.file = replace(
            self.file,
            kept=step.kept.astype(int),
            neighbours=step.measured,
            before=self._loss(start.kept.astype(bool), len(start)),
            after=step.loss,
        )
        self.folder.write(self.folder.exchange, self.file)
