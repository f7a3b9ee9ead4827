"""Choosing: which places the scores keep within a budget, and the placements beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dartformer.attention import to_text
from dartformer.config.checkpoint import KV_BYTES
from dartformer.errors import InputError
from dartformer.machine.workdir import write_text
from dartformer.placement.records import PlacementBudgetAnswer, ScoreFile
from dartformer.placement.study import (
    Limit,
    PlacementStudy,
    PlacementWorkdir,
    by_layer,
    ends,
)
from dartformer.placement.verdict import LITTLE, LITTLE_DISTANCE, plural
from dartformer.pretrained.passages import AGAIN, TEXT
from dartformer.pretrained.placement import Places, top, uniform
from dartformer.results import GenotypeRecord

RANDOM = 3
"""Placements of layers that are drawn."""

FRONT = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Shares of the layers whose caches are the other budgets of the front."""

EVERYTHING = slice(None)

ALONE = {TEXT: "text alone", AGAIN: "repeated passage alone"}
"""The kinds of sequences in the titles of what one of them chooses."""


def combined(
    file: ScoreFile,
    rule: str,
    kinds: Sequence[str],
    part: slice = EVERYTHING,
    least: float = LITTLE,
) -> np.ndarray:
    """Scores `[L, C]` of a rule: each kind as a share of what all cheap places lose.

    Args:
      file: all scores.
      rule: that scored.
      kinds: of sequences that count, equally.
      part: of the sequences.
      least: loss that tests something.
    """
    shares = []
    for kind in kinds:
        scores = file.of(rule, kind)
        if scores is None:
            raise InputError("there are no scores: run `dartformer run` first.")
        mean = scores.scores[part].mean(0)
        total = float(scores.totals[part].mean())
        if rule != "path":
            # Layers stand in for each other, so single swaps add up to less than that.
            total = float(mean.sum())
        # Where nothing is lost nothing is tested, and such scores must not be blown up.
        shares.append(mean / max(total, least))
    return np.sum(shares, axis=0)


def choose(places: Places, scores: np.ndarray, limit: Limit) -> np.ndarray:
    """The places `[L, C]` with the highest sum of scores within a limit."""
    return places.within(scores, [(limit.price(places), limit.amount)])


class Choice(NamedTuple):
    """A placement to be evaluated.

    Attributes:
      name, title, role: as in `Placed`.
      kept: places `[L, C]`.
    """

    name: str
    title: str
    role: str
    kept: np.ndarray


def answer(study: PlacementStudy, file: ScoreFile, part: slice = EVERYTHING) -> np.ndarray:
    """The places `[L, C]` that the first rule chooses by both kinds of sequences."""
    scores = combined(file, study.config.checkpoint.rules[0], study.kind_names, part)
    return choose(study.places, study.at_granularity(scores), study.limit)


def derived_choices(study: PlacementStudy, file: ScoreFile, best: np.ndarray) -> Iterator[Choice]:
    """The answer first, then what the scores choose, by one kind alone, and by other rules.

    `best` are the places `[L, C]` of the answer.
    """
    rule = study.config.checkpoint.rules[0]
    chosen = answer(study, file)
    if not np.array_equal(best, chosen):
        yield Choice("exchanged", f"{counted(best)} by {rule} and exchange", "answer", best)
    for number, rule in enumerate(study.config.checkpoint.rules):
        # Groups are compared with layers of the same rule.
        layouts = [study.at_granularity(combined(file, rule, study.kind_names))]
        if layouts[0].shape[1] > 1:
            layouts.append(by_layer(layouts[0]))
        for scores in layouts:
            kept = choose(study.places, scores, study.limit)
            name, role = rule, "derived"
            if scores is not layouts[0]:
                name = f"{rule}_layers"
            elif number == 0 and np.array_equal(best, chosen):
                role = "answer"
            yield Choice(name, f"{counted(kept)} by {rule}", role, kept)
        if len(study.kind_names) == 1:
            continue
        for kind, words in ALONE.items():
            scores = study.at_granularity(combined(file, rule, (kind,)))
            kept = choose(study.places, scores, study.limit)
            yield Choice(f"{rule}_{kind}", f"{counted(kept)} by {rule}, {words}", "derived", kept)


def baselines(study: PlacementStudy) -> Iterator[Choice]:
    """Placements that read no checkpoint, with the same budget."""
    full, none = ends(study.places)
    layers, groups = study.described.config.layers, study.places.groups
    yield Choice("full", "full attention everywhere", "end", full)
    yield Choice("none", f"{to_text(study.places.cheap)} everywhere", "end", none)
    columns = 1
    if not affordable(study.places, study.limit, columns):
        columns = study.columns  # groups, where the budget has not room for a layer
    count = affordable(study.places, study.limit, columns)
    total = layers * columns
    rank = np.arange(total).reshape(layers, columns)
    spread = uniform(total, count).reshape(layers, columns)
    noun = counted(spread)
    yield Choice("uniform", f"{noun} at equal distances", "baseline", spread)
    yield Choice("first", f"first {noun}", "baseline", rank < count)
    yield Choice("last", f"last {noun}", "baseline", rank >= total - count)
    rng = np.random.default_rng(study.config.seed)
    for draw in range(RANDOM):
        kept = top(rng.random((layers, columns)), count)
        yield Choice(f"random_{draw}", f"random {noun}, draw {draw + 1}", "baseline", kept)
    if study.columns > columns:
        # Solved, because three groups of three layers can take longer than a layer.
        kept = choose(study.places, rng.random((layers, groups)), study.limit)
        yield Choice("random_groups", f"random {counted(kept)}", "baseline", kept)


def affordable(places: Places, limit: Limit, columns: int) -> int:
    """How many of `columns` places a layer are within a limit, whichever they are."""
    full, cheap = (limit.cost_of(kept, places) for kept in ends(places))
    total = places.described.config.layers * columns
    # All places cost the same. Rounded, because a budget is often made of so many of them.
    return min(int((limit.amount - cheap) / (full - cheap) * total + 1e-6), total)


def front(study: PlacementStudy, file: ScoreFile) -> Iterator[Choice]:
    """The first rule, equal distances and a random draw with other budgets."""
    places, rule = study.places, study.config.checkpoint.rules[0]
    layers = places.described.config.layers
    scores = study.at_granularity(combined(file, rule, study.kind_names))
    rng = np.random.default_rng(study.config.seed)
    counts = {round(share * layers) for share in FRONT}
    counts -= {0, layers, affordable(places, study.limit, 1)}
    for count in sorted(counts):
        cost = study.limit.cost_of(top(np.zeros((layers, 1)), count), places)
        limit = study.limit._replace(amount=cost)
        kept = choose(places, scores, limit)
        yield Choice(f"answer@{count}", counted(kept), "front", kept)
        kept = uniform(layers, count)
        title = f"{plural(count, 'layer')} at equal distances"
        yield Choice(f"uniform@{count}", title, "front", kept)
        kept = top(rng.random(scores.shape), count * scores.shape[1])
        yield Choice(f"random@{count}", f"random {counted(kept)}", "front", kept)


def counted(kept: np.ndarray) -> str:
    """How many layers or KV groups are kept, in words."""
    noun = "KV group"
    if kept.shape[1] == 1:
        noun = "layer"
    return plural(int(kept.sum()), noun)


def derive(study: PlacementStudy, folder: PlacementWorkdir, kept: np.ndarray) -> None:
    """Write the genotype of the answer, which keeps places `[L, C]`."""
    write_text(folder.genotype, study.places.genotype(kept).to_json())


def derive_within(
    study: PlacementStudy,
    folder: PlacementWorkdir,
    file: ScoreFile,
    limit: Limit,
    improved: np.ndarray | None,
) -> PlacementBudgetAnswer:
    """The best places within a limit, from the stored scores; the weights are not read.

    `improved` are the places `[L, C]` of a local search within this limit; None without one.
    """
    rule = study.config.checkpoint.rules[0]
    kinds = study.kind_names
    kept = improved
    if kept is None:
        kept = choose(study.places, study.at_granularity(combined(file, rule, kinds)), limit)
    shares = {}
    least = LITTLE
    if study.places.encodes:
        least = LITTLE_DISTANCE
    for kind in kinds:
        of_kind = study.at_granularity(combined(file, rule, (kind,), least=least))
        shares[kind] = float(of_kind[kept].sum())
    full, _ = ends(study.places)
    genotype = study.places.genotype(kept)
    bytes_kept, all_bytes = (study.cache_bytes(grid, limit.length) for grid in (kept, full))
    answered = PlacementBudgetAnswer(
        limit.amount,
        limit.length,
        study.config.space.granularity,
        study.config.checkpoint.cheap,
        kept.astype(int),
        bytes_kept,
        all_bytes,
        shares,
        GenotypeRecord.from_dict(genotype.to_dict()),
    )
    if limit.quantity == KV_BYTES:
        answered = replace(answered, limit=round(limit.amount))
    else:
        cost, full_cost = (limit.cost_of(grid, study.places) for grid in (kept, full))
        answered = replace(answered, quantity=limit.quantity, cost=cost, full_cost=full_cost)
    folder.write(folder.budget, answered)
    write_text(folder.genotype, genotype.to_json())
    return answered
