"""Scoring: what each place of a checkpoint is worth, one calibration sequence after another."""

import time
from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np

from dartformer.errors import InputError
from dartformer.machine.identity import require_same
from dartformer.machine.progress import Bar, say
from dartformer.placement.records import ScoreFile, Scores, Teacher
from dartformer.placement.study import (
    PlacementFolder,
    PlacementStudy,
    PlacementWorkdir,
    ends,
    marks_of,
    require_unchanged,
)
from dartformer.pretrained.passages import Documents, Sequences


def score(study: PlacementStudy, folder: PlacementWorkdir) -> ScoreFile:
    """The scores of all places by all rules; what is in `scores.json` is not computed again."""
    teacher = _teacher(study, folder)
    identity = study.identity(teacher.files)
    file = folder.read(ScoreFile, folder.scores) or ScoreFile(dict(identity))
    require_same(file.identity, identity, str(folder.scores), "Choose another workdir.")
    for rule in study.config.checkpoint.rules:
        for kind, split in study.kinds.items():
            for scores in _scored(study, rule, kind, split.calibration, file.of(rule, kind)):
                file = _with(file, scores)
                folder.write(folder.scores, file)
    return file


def _teacher(study: PlacementStudy, folder: PlacementWorkdir) -> Teacher:
    """The checkpoint as it was scored; on the first call it is loaded."""
    teacher = folder.read(Teacher, folder.teacher)
    source = study.described.folder
    if teacher is not None:
        require_unchanged(teacher, source)
        return teacher
    say(f"teacher: loading {source}")
    marks = list(marks_of(source))
    started = time.monotonic()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(study.model.weights))
    seconds = time.monotonic() - started
    shape = study.described.config
    teacher = Teacher(
        str(source),
        study.described.family,
        shape.layers,
        shape.heads,
        study.places.groups,
        parameters,
        tuple(marks),
        seconds,
    )
    folder.write(folder.teacher, teacher)
    return teacher


def _scored(
    study: PlacementStudy,
    rule: str,
    kind: str,
    sequences: Sequences | Documents,
    before: Scores | None,
) -> Iterator[Scores]:
    """The scores of the sequences so far, after each one more."""
    rows: list[np.ndarray] = []
    totals: list[float] = []
    spent = [0.0, 0.0]
    if before is not None:
        rows, totals = list(before.scores), list(before.totals)
        spent = [before.seconds, before.processor_seconds]
    count = len(sequences.tokens)
    if len(rows) == count:
        return
    with Bar(f"score by {rule}, {kind}", count, len(rows)) as bar:
        for number in range(len(rows), count):
            wall, processor = time.monotonic(), time.process_time()
            row, total = _of_sequence(study, rule, sequences.take(number, number + 1))
            if not np.isfinite(total):
                raise InputError(
                    f"{study.described.folder} predicts no finite numbers on {kind} sequence "
                    f"{number}. Its weights may be damaged."
                )
            rows.append(row.astype(np.float64))
            totals.append(total)
            spent[0] += time.monotonic() - wall
            spent[1] += time.process_time() - processor
            bar.update(number + 1, {study.divergence: total})
            yield Scores(rule, kind, np.array(rows), np.array(totals), *spent)


def _of_sequence(
    study: PlacementStudy, rule: str, sequence: Sequences | Documents
) -> tuple[np.ndarray, float]:
    """Scores `[L, C]` by a rule, and the divergence with the cheap attention everywhere."""
    placement = study.placement
    if rule == "path":
        scores = placement.path(sequence, study.config.checkpoint.points)
        return scores.groups, scores.total
    if rule == "frozen":
        steps = study.config.checkpoint.frozen_steps
        learned = placement.learned(sequence, steps, study.affordable_share, study.columns)
        # In nats like those of other rules: what all places together are worth, shared out.
        return learned.shares * learned.total / learned.shares.sum(), learned.total
    layers = placement.swap(sequence)
    if rule == "restore":
        layers = placement.restore(sequence)
    _, none = ends(study.places)
    return layers, float(placement.divergence([none], sequence).mean())


def _with(file: ScoreFile, scores: Scores) -> ScoreFile:
    """The file with these scores in place of those of the same rule and kind."""
    kept = []
    for entry in file.scores:
        if (entry.rule, entry.kind) != (scores.rule, scores.kind):
            kept.append(entry)
    return replace(file, scores=(*kept, scores))


def require_scores(study: PlacementStudy, folder: PlacementFolder) -> ScoreFile:
    """The finished scores of a workdir, whose checkpoint is as it was; raises `InputError`."""
    teacher = folder.read(Teacher, folder.teacher)
    file = folder.read(ScoreFile, folder.scores)
    if teacher is not None:
        require_unchanged(teacher, study.described.folder)
    for kind in study.kind_names:
        scores = None
        if file is not None:
            scores = file.of(study.config.checkpoint.rules[0], kind)
        if scores is None or len(scores.totals) < study.config.checkpoint.sequences:
            raise InputError(
                f"the places in {folder.path} are not scored yet: run `dartformer run` first."
            )
    assert file is not None
    return file
