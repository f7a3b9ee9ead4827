"""What a placement comes to in sentences: by how much it wins, and whether to believe it."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dartformer.config.checkpoint import KV_BYTES
from dartformer.placement.records import (
    ExchangeResults,
    Gap,
    Measured,
    Placed,
    PlacementResults,
    TuningResults,
)
from dartformer.pretrained.passages import AGAIN, TEXT
from dartformer.statistics import paired

OFF = 0.1
"""Share by which the scores may miss the exact sum before a warning."""

AGREE = 0.75
"""Share of the places that both halves must keep in common, or there is a warning."""

LITTLE = 0.01
"""Nats of KL divergence below which the cheap attention loses nothing that a placement can save."""

LITTLE_DISTANCE = 0.001
"""The same of an encoder's embeddings, in cosine distance."""

IN_WORDS = {TEXT: "plain text", AGAIN: "the repeated passage"}


class Words(NamedTuple):
    """How results are told.

    Attributes:
      kinds: of sequences, in words.
      loss: what placements are compared by.
      unit: behind a number of it.
      digits: of such a number.
      least: divergence below which the cheap attention loses nothing that a placement can save.
      same: behind a placement that costs as much.
      of: between a cost and the length that it is of.
    """

    kinds: Mapping[str, str]
    loss: str
    unit: str
    digits: int
    least: float
    same: str
    of: str

    def number(self, value: float) -> str:
        """A loss with its unit."""
        return f"{value:.{self.digits}f}{self.unit}"

    def interval(self, value: float, noise: float) -> str:
        """A difference with its interval and its unit."""
        return f"{value:.{self.digits}f} ± {noise:.{self.digits}f}{self.unit}"


DECODER = Words(IN_WORDS, "loss", " nats", 3, LITTLE, "with the same cache", "of cache at")

ENCODER = Words(
    {TEXT: "documents"},
    "cosine distance",
    "",
    4,
    LITTLE_DISTANCE,
    "at the same cost",
    "for a text of",
)


DECODING = DECODER._replace(same="at the same speed", of="for a token at")
"""A decoder whose budget is the latency of a token."""


def words_of(results: PlacementResults) -> Words:
    """How the results of a checkpoint are told."""
    return words_for(results.scores, results.quantity)


def words_for(kinds: Container[str], quantity: str | None) -> Words:
    """How results on these kinds of sequences, within a limit on a quantity, are told."""
    if AGAIN not in kinds:
        return ENCODER
    if quantity in (None, KV_BYTES):
        return DECODER
    return DECODING


def gaps(placed: Sequence[Placed]) -> tuple[Gap, ...]:
    """The answer against each other placement with its budget, paired by sequence."""
    answer = next(item for item in placed if item.role == "answer")
    rows = []
    for rival in placed:
        if rival.role not in ("baseline", "derived"):
            continue
        for kind, ours in answer.quality.items():
            rows.append(gap(rival.name, kind, ours, rival.quality[kind]))
    return tuple(rows)


def gap(name: str, kind: str, ours: Measured, theirs: Measured) -> Gap:
    """A quality against that of another model on the same sequences."""
    difference, noise = paired(ours.loss, theirs.loss)
    outcome = "undecided"
    if np.array_equal(ours.loss, theirs.loss):
        outcome, noise = "same", 0.0
    elif abs(difference) > noise:
        outcome = "worse"
        if difference < 0:
            outcome = "better"
    return Gap(name, kind, difference, noise, outcome)


def best_random(results: PlacementResults) -> Placed | None:
    """The random layers that predict best on the held-out sequences themselves."""
    draws = []
    for placed in results.placements:
        if placed.name.startswith("random_") and placed.role == "baseline":
            draws.append(placed)
    return min(draws, key=lambda placed: sum(map(placed.loss, results.kinds)), default=None)


def verdict(results: PlacementResults) -> Iterator[str]:
    """The answer first, then what it is worth against each baseline."""
    answer, full, words = results.answer, results.named["full"], words_of(results)
    yield (
        f"Keep full attention in {answer.count} of {results.places} {places_of(results.granularity)}: "
        f"{cost(answer.price, results.quantity)} {words.of} {results.length:,} tokens, "
        f"{answer.price / full.price:.0%} of {cost(full.price, results.quantity)}."
    )
    for kind in results.kinds:
        yield f"{_of_kind(results, kind)}{_recovered(results, kind)}."
    if results.exchange is not None and results.exchange.neighbours:
        yield _exchanged(results.exchange)
    if results.tuning is not None:
        yield _tuned(results, results.tuning)
    yield from against(results)


def _exchanged(exchange: ExchangeResults) -> str:
    """What measuring neighbours changed, in a sentence."""
    measured = plural(exchange.neighbours, "neighbour")
    if not exchange.exchanged:
        return f"Of {measured} measured on the calibration sequences, none loses less."
    less = 1 - exchange.after / exchange.before
    return (
        f"Measuring {measured} on the calibration sequences exchanged "
        f"{plural(exchange.exchanged, 'place')} that the scores chose, which loses {less:.0%} less "
        f"there."
    )


def _tuned(results: PlacementResults, tuning: TuningResults) -> str:
    """What tuning changed, in a sentence."""
    parts = []
    for row in reversed(tuning.gaps):
        before, after = tuning.before[row.kind], tuning.after[row.kind]
        text = f"from {before.mean_nll:.3f} to {after.mean_nll:.3f} nats on {IN_WORDS[row.kind]}"
        if row.outcome == "undecided":
            text += " (not significant)"
        parts.append(text)
    weights = "all weights"
    if tuning.adapters:
        weights = f"adapters of rank {tuning.adapters}"
    title = results.named[tuning.placement].title
    if tuning.attention != results.cheap:
        title += f" with {tuning.attention} elsewhere"
    sentence = (
        f"Tuning {weights} of the {title} for {plural(tuning.steps, 'step')} brings the loss "
        f"{' and '.join(parts)}."
    )
    if results.recommended is not results.answer:
        sentence += " They won the race, so use them."
    return sentence


def _of_kind(results: PlacementResults, kind: str) -> str:
    """The loss of the answer between that of the checkpoint and of the cheap attention."""
    named = results.named
    losses = [results.answer.loss(kind), named["full"].loss(kind), named["none"].loss(kind)]
    answer, full, none = (f"{loss:.{words_of(results).digits}f}" for loss in losses)
    if results.encodes:
        return (
            f"Its embeddings are {answer} from the checkpoint's (1 - cosine, held-out documents), "
            f"and with {results.cheap} everywhere they are {none} from them"
        )
    return (
        f"On {IN_WORDS[kind]} the loss is {answer} nats a token, where the checkpoint has {full} "
        f"and {results.cheap} everywhere {none}"
    )


def _recovered(results: PlacementResults, kind: str) -> str:
    """The share of what the cheap attention loses that the answer recovers, and uniform layers."""
    full, none, uniform = (results.named[name] for name in ("full", "none", "uniform"))
    lost = none.loss(kind) - full.loss(kind)
    if lost <= words_of(results).least:
        return ""
    recovered = (none.loss(kind) - results.answer.loss(kind)) / lost
    plain = (none.loss(kind) - uniform.loss(kind)) / lost
    return f". That recovers {recovered:.0%} of the difference, and {uniform.title} {plain:.0%}"


def against(results: PlacementResults) -> Iterator[str]:
    """A sentence for each baseline, which are the last of the verdict."""
    named = results.named
    rivals = [named["uniform"], named["first"], named["last"]]
    draw = best_random(results)
    if draw is not None:
        rivals.append(draw)
    for rival in rivals:
        yield _against(results, rival)


def _against(results: PlacementResults, rival: Placed) -> str:
    """A sentence about the answer and a baseline."""
    title, words = rival.title, words_of(results)
    if rival.name.startswith("random"):
        title = f"the best of the random draws ({rival.title})"
    parts = []
    for gap in results.gaps:
        if gap.baseline != rival.name:
            continue
        direction = "lower"
        if gap.difference > 0:
            direction = "higher"
        where = f"on {words.kinds[gap.kind]}"
        text = f"{words.interval(abs(gap.difference), gap.noise)} {direction} {where}"
        if gap.outcome == "same":
            text = f"the same {where}"
        if gap.outcome == "undecided":
            text += " (not significant)"
        parts.append(text)
    compared = " and ".join(reversed(parts))
    return f"Against {title} {words.same}, the {words.loss} is {compared}."


def warnings(results: PlacementResults) -> Iterator[str]:
    """Reasons to doubt the answer."""
    words = words_of(results)
    full, none = results.named["full"], results.named["none"]
    for kind in reversed(results.kinds):
        lost, where = none.divergence(kind), words.kinds[kind]
        if lost < words.least:
            yield (
                f"{results.cheap} everywhere loses only {lost:.4f}{words.unit} on {where}, so "
                f"nothing is tested there. Use longer sequences (checkpoint.length) or a smaller "
                f"window."
            )
        # Half of the passage is context, so only a model that reads nothing is that bad.
        if not math.isfinite(full.loss(kind)):
            yield f"The checkpoint's loss on {where} is not finite."
    for row in results.additivity:
        if row.total >= words.least and row.error > OFF:
            yield (
                f"The scores of {words.kinds[row.kind]} add up to {words.number(row.sum)}, and the "
                f"exact {words.loss} is {row.total:.{words.digits}f}, {row.error:.0%} off. Use more "
                f"checkpoint.points, or measure neighbours (checkpoint.exchanges)."
            )
    if results.agreement is None:
        yield "One calibration sequence of each kind has no halves to compare. Use more of them."
    elif results.agreement.common < AGREE * results.agreement.kept:
        yield (
            f"Two halves of the calibration sequences have {results.agreement.common} of "
            f"{results.agreement.kept} places in common. Use more checkpoint.sequences."
        )
    limited = results.quantity is None
    if limited and results.tuning is not None and results.tuning.kv_bytes > results.kv_bytes:
        yield (
            f"The caches of the tuned placement take {size(results.tuning.kv_bytes)}, more than the "
            f"budget of {size(results.kv_bytes)}, because {results.tuning.attention} keeps more than "
            f"{results.cheap}."
        )
    if results.answer.count == 0:
        yield "The budget keeps no place. Raise it."
    for name, placed in results.named.items():
        gaps_of = [gap for gap in results.gaps if gap.baseline == name]
        outcomes = {gap.outcome for gap in gaps_of}
        # Better on one kind and worse on the other is a trade, such as that of one kind alone.
        if "worse" not in outcomes or "better" in outcomes:
            continue
        for gap in gaps_of:
            if gap.outcome == "worse":
                yield (
                    f"{placed.title} {words.same}: the {words.loss} is "
                    f"{words.interval(gap.difference, gap.noise)} lower on "
                    f"{words.kinds[gap.kind]}."
                )


def believed(results: PlacementResults) -> str:
    """Whether the scores add up, and whether halves of the calibration sequences agree."""
    parts, words = [], words_of(results)
    for row in results.additivity:
        parts.append(
            f"the scores of {words.kinds[row.kind]} add up to {words.number(row.sum)}, where the "
            f"exact {words.loss} is {row.total:.{words.digits}f} ({row.error:.1%} off)"
        )
    if results.agreement is not None:
        common, kept = results.agreement.common, results.agreement.kept
        parts.append(
            f"two halves of the calibration sequences have {common} of {kept} places in common"
        )
    sentence = ". ".join(part[0].upper() + part[1:] for part in parts)
    return f"{sentence}."


def places_of(granularity: str) -> str:
    """What is chosen, in the plural."""
    if granularity == "layer":
        return "layers"
    return "KV groups"


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}s"


def size(count: float) -> str:
    """Bytes in a unit that a person reads."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def cost(amount: float, quantity: str | None) -> str:
    """Bytes of a cache, or what a token or a text takes, in a unit that a person reads."""
    if quantity == "latency_ms":
        return f"{amount:.3g} ms"
    if quantity == "flops":
        for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP"):
            if amount < 1000:
                return f"{amount:.3g} {unit}"
            amount /= 1000
        return f"{amount:.3g} TFLOP"
    return size(amount)
