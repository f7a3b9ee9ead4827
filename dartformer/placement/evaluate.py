"""Evaluating: the exact quality of placements on held-out sequences, and what it comes to."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dartformer.config.checkpoint import KV_BYTES
from dartformer.errors import InputError
from dartformer.machine.identity import different, fingerprint
from dartformer.machine.progress import Bar, say
from dartformer.placement.choose import Choice, answer, baselines, derived_choices, front
from dartformer.placement.records import (
    Additivity,
    Agreement,
    Evaluation,
    ExchangeFile,
    ExchangeResults,
    Measured,
    Placed,
    PlacementResults,
    ScoreFile,
    Teacher,
    TunedQuality,
    TuneFile,
    TuningResults,
)
from dartformer.placement.study import (
    PlacementFolder,
    PlacementStudy,
    PlacementWorkdir,
    require_unchanged,
)
from dartformer.placement.tune import evaluate_tuned, tuned_entrant, tuned_model
from dartformer.placement.verdict import gap, gaps, verdict, warnings
from dartformer.pretrained import Pretrained
from dartformer.pretrained.passages import Documents, Sequences
from dartformer.results import GenotypeRecord
from dartformer.space.genotype import Genotype


def evaluate(
    study: PlacementStudy, folder: PlacementWorkdir, file: ScoreFile, kept: np.ndarray
) -> PlacementResults:
    """The exact quality of the answer and its rivals on held-out sequences, and the verdict.

    `kept` are the places `[L, C]` of the answer.
    """
    choices = [*baselines(study), *derived_choices(study, file, kept), *front(study, file)]
    evaluation = _evaluated(study, folder, file, choices)
    tuned = evaluate_tuned(study, folder, evaluation.tuned)
    if tuned is not evaluation.tuned:
        evaluation = replace(evaluation, tuned=tuned)
        folder.write(folder.evaluation, evaluation)
    placed = []
    for choice in choices:
        quality = {}
        for kind, qualities in evaluation.qualities.items():
            quality[kind] = qualities[_key(study, choice)]
        cost = study.limit.cost_of(choice.kept, study.places)
        size = study.cache_bytes(choice.kept, study.limit.length)
        grid = choice.kept.astype(int)
        item = Placed(choice.name, choice.title, choice.role, grid, size, quality)
        if study.limit.quantity != KV_BYTES:
            item = replace(item, cost=cost)
        placed.append(item)
    trained = folder.read(TuneFile, folder.tuning)
    exchanges = folder.read(ExchangeFile, folder.exchange)
    results = conclude(study, file, exchanges, evaluation, placed, trained)
    folder.write(folder.results, results)
    return results


def _evaluated(
    study: PlacementStudy, folder: PlacementWorkdir, file: ScoreFile, choices: Sequence[Choice]
) -> Evaluation:
    """The qualities of all different placements, each evaluated one time."""
    placements_by_key: dict[str, np.ndarray] = {}
    for choice in choices:
        placements_by_key.setdefault(_key(study, choice), choice.kept)
    tokens = {}
    for kind, split in study.kinds.items():
        tokens[kind] = split.held_out.tokens.tolist()
    identity = {**file.identity, "test": fingerprint(tokens)}
    stored = folder.read(Evaluation, folder.evaluation)
    if stored is None or different(stored.identity, identity):
        stored = Evaluation(identity, {}, 0.0, 0.0)
    for kind, split in study.kinds.items():
        if stored.qualities.get(kind, {}).keys() >= placements_by_key.keys():
            continue
        wall, processor = time.monotonic(), time.process_time()
        qualities = _qualities(study, kind, split.held_out, placements_by_key)
        stored = Evaluation(
            identity,
            {**stored.qualities, kind: qualities},
            stored.seconds + time.monotonic() - wall,
            stored.processor_seconds + time.process_time() - processor,
            stored.tuned,
        )
        folder.write(folder.evaluation, stored)
    return stored


def _key(study: PlacementStudy, choice: Choice) -> str:
    """The same for two placements that are the same model."""
    return fingerprint(study.places.mixture(choice.kept)[..., 0].astype(int).tolist())


def _qualities(
    study: PlacementStudy,
    kind: str,
    sequences: Sequences | Documents,
    placements: Mapping[str, np.ndarray],
) -> dict[str, Measured]:
    """The qualities of placements on the sequences of a kind."""
    kept = list(placements.values())
    columns: dict[str, list[np.ndarray]] = {}
    count = len(sequences.tokens)
    with Bar(f"evaluate {len(kept)} placements, {kind}", count) as bar:
        for number in range(count):
            measured = study.placement.measure(kept, sequences.take(number, number + 1))
            for name, values in measured.items():
                # As wide as the numbers of a file, so that a resumed run says the same.
                columns.setdefault(name, []).append(values[:, 0].astype(np.float64))
            bar.update(number + 1, {})
    qualities = {}
    for row, key in enumerate(placements):
        # [B, M] to the sequences of each placement.
        of_placement = {name: np.array(column)[:, row] for name, column in columns.items()}
        qualities[key] = Measured(**of_placement)
    return qualities


def conclude(
    study: PlacementStudy,
    file: ScoreFile,
    exchanges: ExchangeFile | None,
    evaluation: Evaluation,
    placed: Sequence[Placed],
    trained: TuneFile | None,
) -> PlacementResults:
    """What was measured, with the verdict and whether to believe it."""
    options, rule = study.config.checkpoint, study.config.checkpoint.rules[0]
    scores, additivity = {}, []
    seconds, processor = {"score": 0.0}, {"score": 0.0}
    for kind in study.kind_names:
        of_kind = file.of(rule, kind)
        assert of_kind is not None
        scores[kind] = of_kind.scores.mean(0)
        if rule == "path":
            total = float(of_kind.totals.mean())
            additivity.append(Additivity(kind, float(scores[kind].sum()), total))
    for entry in file.scores:
        seconds["score"] += entry.seconds
        processor["score"] += entry.processor_seconds
    exchange = None
    if exchanges is not None:
        exchange = _exchange(study, file, exchanges)
        seconds["exchange"] = exchanges.seconds
        processor["exchange"] = exchanges.processor_seconds
    seconds["evaluate"] = evaluation.seconds
    processor["evaluate"] = evaluation.processor_seconds
    chosen = next(item for item in placed if item.role == "answer")
    genotype, tuning = study.places.genotype(chosen.kept), None
    if trained is not None and evaluation.tuned is not None:
        tuning = _tuning(study, evaluation.tuned, placed, trained)
        genotype = Genotype.from_dict(tuning.genotype.to_dict())
        seconds["tune"], processor["tune"] = trained.seconds, trained.processor_seconds
        seconds["evaluate"] += evaluation.tuned.seconds
        processor["evaluate"] += evaluation.tuned.processor_seconds
    results = PlacementResults(
        study.described.folder.name,
        study.described.family,
        options.cheap,
        study.config.space.granularity,
        round(study.limit.amount),
        study.limit.length,
        options.sequences,
        options.held_out,
        options.length,
        GenotypeRecord.from_dict(genotype.to_dict()),
        study.described.config.layers * study.columns,
        scores,
        tuple(placed),
        gaps(placed),
        tuple(additivity),
        (),
        (),
        seconds,
        processor,
        _agreement(study, file),
        tuning,
        exchange,
    )
    limit = study.limit
    if limit.quantity != KV_BYTES:
        results = replace(results, kv_bytes=0, quantity=limit.quantity, limit=limit.amount)
    return replace(results, verdict=tuple(verdict(results)), warnings=tuple(warnings(results)))


def _exchange(
    study: PlacementStudy, file: ScoreFile, exchanges: ExchangeFile
) -> ExchangeResults | None:
    """What the local search changed; None where it has not ended."""
    if exchanges.kept is None:
        return None
    exchanged = int(np.sum(exchanges.kept.astype(bool) & ~answer(study, file)))
    return ExchangeResults(exchanges.neighbours, exchanged, exchanges.before, exchanges.after)


def _tuning(
    study: PlacementStudy, tuned: TunedQuality, placed: Sequence[Placed], trained: TuneFile
) -> TuningResults:
    """The tuned placement beside the same one as it was before."""
    options, best = study.config.tune, trained.best
    assert best is not None
    before = next(item for item in placed if item.name == best.name)
    rows = []
    for kind, quality in tuned.quality.items():
        rows.append(gap("before", kind, quality, before.quality[kind]))
    genotype = study.tuned_genotype(best.kept)
    return TuningResults(
        best.name,
        options.attention or study.config.checkpoint.cheap,
        GenotypeRecord.from_dict(genotype.to_dict()),
        study.tuned_bytes(best.kept),
        options.steps,
        options.align_steps,
        options.adapters,
        best.parameters,
        before.quality,
        tuned.quality,
        tuple(rows),
        trained.entrants,
    )


def _agreement(study: PlacementStudy, file: ScoreFile) -> Agreement | None:
    """The places that both halves of the calibration sequences choose."""
    middle = study.config.checkpoint.sequences // 2
    if not middle:
        return None
    first = answer(study, file, slice(None, middle))
    second = answer(study, file, slice(middle, None))
    common = int(np.sum(first & second))
    return Agreement(common, int(max(first.sum(), second.sum())))


def placed_model(path: str | Path) -> Pretrained:
    """The checkpoint of a placement's workdir with the derived attentions, tuned where it is."""
    folder = PlacementFolder(path)
    study, genotype = PlacementStudy(folder.read_config()), folder.read_genotype()
    teacher = folder.read(Teacher, folder.teacher)
    if teacher is not None:
        require_unchanged(teacher, study.described.folder)
    best = tuned_entrant(study, folder)
    if best is not None and study.tuned_genotype(best.kept) == genotype:
        say(f"tuned weights of {folder.tuned}: {study.config.tune.steps} steps on {best.title}")
        return tuned_model(study, folder)
    if not study.places.space.holds(genotype):
        raise InputError(
            f"{folder.genotype} is of another checkpoint. Run `dartformer derive` again."
        )
    if best is not None:
        say(f"{folder.genotype.name} is another placement than the tuned one: untrained weights")
    return replace(study.model, genotype=genotype)
