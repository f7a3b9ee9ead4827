"""Scores: how every model answered every test example, so that runs can be compared by pairs."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dartformer import statistics
from dartformer.data.answers import Answers
from dartformer.data.splits import Split, in_order
from dartformer.machine.identity import LETTERS, Identity
from dartformer.results import ExampleScores
from dartformer.stages.layout import Layout
from dartformer.stages.study import Study
from dartformer.training.metric import Metric

DIGITS = 6
"""Significant digits of a loss that are kept."""


def record(
    study: Study, models: Mapping[str, Sequence[Mapping[str, np.ndarray]]], identity: Identity
) -> ExampleScores:
    """What `test_scores.json` holds.

    Args:
      study: whose test part was read.
      models: for every model, for every seed, what `Evaluator.per_example` gives.
      identity: of the evaluation.
    """
    # What can be tested by pairs: an answer is right or wrong, and r2 exists for no example alone.
    score = "loss"
    if study.metric.name == "accuracy":
        score = "accuracy"
    packed = {}
    for name, seeds in models.items():
        rows = []
        for scores in seeds:
            rows.append(pack(scores[score]))
        packed[name] = tuple(rows)
    part = study.parts["test"]
    return ExampleScores(
        score,
        score == "accuracy",
        len(part),
        fingerprint(part),
        tuple(study.config.retrain.seeds),
        packed,
        dict(identity),
    )


def read(folder: Path) -> ExampleScores | None:
    """The scores of a workdir; None where it keeps none."""
    layout = Layout(folder)
    return layout.read(ExampleScores, layout.test_scores)


def fingerprint(split: Split) -> str:
    """Of the examples in their order: two runs with equal ones were tested on the same examples."""
    digest = hashlib.sha256()
    for batch in in_order(split):
        for name in ("tokens", "valid", "label"):
            digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()[:LETTERS]


def resampled(metric: Metric, answers: Answers) -> np.ndarray:
    """`[RESAMPLES]` the metric's score of resamples of the examples."""

    def score(weights: np.ndarray) -> float:
        return metric.of_answers(answers, weights)

    return statistics.resampled(score, answers.labels.examples)


def pack(scores: np.ndarray) -> str | tuple[float, ...]:
    """Scores `[n]` as a text of 0 and 1 where there is nothing else, or as rounded numbers."""
    # A letter for each example: the file holds every example for every model and seed.
    if np.isin(scores, (0, 1)).all():
        return "".join(scores.astype(int).astype(str))
    rounded = [float(f"{score:.{DIGITS}g}") for score in scores]
    return tuple(rounded)
