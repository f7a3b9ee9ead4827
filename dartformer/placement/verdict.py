"""What a placement comes to in sentences: by how much it wins, and whether to believe it."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from dartformer.placement.records import Gap, Measured, Placed, PlacementResults, TuningResults
from dartformer.pretrained.passages import AGAIN, TEXT
from dartformer.statistics import paired

OFF = 0.1
"""Share by which the scores may miss the exact sum before a warning."""

AGREE = 0.75
"""Share of the places that both halves must keep in common, or there is a warning."""

LITTLE = 0.01
"""Nats of KL divergence below which the cheap attention loses nothing that a placement can save."""

IN_WORDS = {TEXT: "plain text", AGAIN: "the repeated passage"}


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
    difference, noise = paired(ours.nll, theirs.nll)
    outcome = "undecided"
    if np.array_equal(ours.nll, theirs.nll):
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
    return min(draws, key=lambda placed: placed.nll(AGAIN) + placed.nll(TEXT), default=None)


def verdict(results: PlacementResults) -> Iterator[str]:
    """The answer first, then what it is worth against each baseline."""
    answer, named = results.answer, results.named
    full, none = named["full"], named["none"]
    yield (
        f"Keep full attention in {answer.count} of {results.places} {places_of(results.granularity)}: "
        f"{size(answer.kv_bytes)} of cache at {results.length:,} tokens, "
        f"{answer.kv_bytes / full.kv_bytes:.0%} of {size(full.kv_bytes)}."
    )
    for kind, words in reversed(IN_WORDS.items()):
        line = (
            f"On {words} the loss is {answer.nll(kind):.3f} nats a token, where the checkpoint has "
            f"{full.nll(kind):.3f} and {results.cheap} everywhere {none.nll(kind):.3f}"
        )
        lost = none.nll(kind) - full.nll(kind)
        if lost > LITTLE:
            recovered = (none.nll(kind) - answer.nll(kind)) / lost
            plain = (none.nll(kind) - named["uniform"].nll(kind)) / lost
            line += (
                f". That recovers {recovered:.0%} of the difference, and "
                f"{named['uniform'].title} {plain:.0%}"
            )
        yield f"{line}."
    if results.tuning is not None:
        yield _tuned(results, results.tuning)
    yield from against(results)


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
    return (
        f"Tuning {weights} of the {title} for {tuning.steps:,} steps brings the loss "
        f"{' and '.join(parts)}."
    )


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
    title = rival.title
    if rival.name.startswith("random"):
        title = f"the best of the random draws ({rival.title})"
    parts = []
    for gap in results.gaps:
        if gap.baseline != rival.name:
            continue
        words = IN_WORDS[gap.kind]
        direction = "lower"
        if gap.difference > 0:
            direction = "higher"
        text = f"{abs(gap.difference):.3f} ± {gap.noise:.3f} nats {direction} on {words}"
        if gap.outcome == "same":
            text = f"the same on {words}"
        if gap.outcome == "undecided":
            text += " (not significant)"
        parts.append(text)
    return f"Against {title} with the same cache, the loss is {' and '.join(reversed(parts))}."


def warnings(results: PlacementResults) -> Iterator[str]:
    """Reasons to doubt the answer."""
    full, none = results.named["full"], results.named["none"]
    for kind, words in IN_WORDS.items():
        lost = none.kl(kind)
        if lost < LITTLE:
            yield (
                f"{results.cheap} everywhere loses only {lost:.4f} nats on {words}, so nothing is "
                f"tested there. Use longer sequences (checkpoint.length) or a smaller window."
            )
        # Half of the passage is context, so only a model that reads nothing is that bad.
        if not math.isfinite(full.nll(kind)):
            yield f"The checkpoint's loss on {words} is not finite."
    for row in results.additivity:
        if row.total >= LITTLE and row.error > OFF:
            yield (
                f"The scores of {IN_WORDS[row.kind]} add up to {row.sum:.3f} nats, and the exact "
                f"loss is {row.total:.3f}, {row.error:.0%} off. Use more checkpoint.points."
            )
    if results.agreement is None:
        yield "One calibration sequence of each kind has no halves to compare. Use more of them."
    elif results.agreement.common < AGREE * results.agreement.kept:
        yield (
            f"Two halves of the calibration sequences have {results.agreement.common} of "
            f"{results.agreement.kept} places in common. Use more checkpoint.sequences."
        )
    if results.tuning is not None and results.tuning.kv_bytes > results.kv_bytes:
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
                    f"{placed.title} with the same cache: the loss is {gap.difference:.3f} ± "
                    f"{gap.noise:.3f} nats lower on {IN_WORDS[gap.kind]}."
                )


def believed(results: PlacementResults) -> str:
    """Whether the scores add up, and whether halves of the calibration sequences agree."""
    parts = []
    for row in results.additivity:
        parts.append(
            f"the scores of {IN_WORDS[row.kind]} add up to {row.sum:.3f} nats, where the exact loss "
            f"is {row.total:.3f} ({row.error:.1%} off)"
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


def size(count: float) -> str:
    """Bytes in a unit that a person reads."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
