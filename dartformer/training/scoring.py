"""Scores of answers: what each metric is, of a split or of a resample of its examples.

`weights` `[S]` says how often each example counts: once, or as often as a resample drew it. A score
that is undefined is NaN.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dartformer.data.answers import Answers

BINS = 15
"""Of the calibration error (Guo et al. 2017, arXiv 1706.04599)."""

Score = Callable[[Answers, np.ndarray], float]
"""Of answers and the weights of the examples."""


def once(answers: Answers) -> np.ndarray:
    """`[S]` weights that count each example once."""
    return np.ones(answers.labels.examples)


def _quotient(total: float, count: float) -> float:
    if not count:
        return math.nan
    return float(total / count)


def _weights(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """`[M]`: of each label, that of its example."""
    return weights[answers.labels.rows]


# Classes.


def confusion(answers: Answers, weights: np.ndarray) -> np.ndarray:
    """`[C, C]`: labels by answers."""
    classes = answers.outputs.shape[1]
    cells = answers.labels.values.astype(np.int64) * classes + answers.classes
    counted = np.bincount(cells, _weights(answers, weights), classes**2)
    return counted.reshape(classes, classes)


class PerClass(NamedTuple):
    """Of each class, `[C]`; 0 where a quotient is undefined, as is usual.

    Attributes:
      precision: share of the answers that are right.
      recall: share of the labels that are answered.
      f1: their harmonic mean.
      labels: how many.
      answers: how many.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    labels: np.ndarray
    answers: np.ndarray


def per_class(table: np.ndarray) -> PerClass:
    """Of a confusion matrix."""
    right = np.diag(table)
    labels, answered = table.sum(1), table.sum(0)
    precision = right / np.where(answered, answered, 1)
    recall = right / np.where(labels, labels, 1)
    both = labels + answered
    f1 = 2 * right / np.where(both, both, 1)
    return PerClass(precision, recall, f1, labels, answered)


def accuracy(answers: Answers, weights: np.ndarray) -> float:
    """Share of right answers."""
    counted = _weights(answers, weights)
    right = answers.classes == answers.labels.values
    return _quotient((right * counted).sum(), counted.sum())


def macro_f1(answers: Answers, weights: np.ndarray) -> float:
    """Mean F1 of the classes that are labels or answers."""
    classes = per_class(confusion(answers, weights))
    occurs = classes.labels + classes.answers > 0
    return _quotient(classes.f1[occurs].sum(), occurs.sum())


def balanced_accuracy(answers: Answers, weights: np.ndarray) -> float:
    """Mean recall of the classes that are labels."""
    classes = per_class(confusion(answers, weights))
    occurs = classes.labels > 0
    return _quotient(classes.recall[occurs].sum(), occurs.sum())


def mcc(answers: Answers, weights: np.ndarray) -> float:
    """Matthews' correlation of labels and answers, of any number of classes (Gorodkin 2004)."""
    table = confusion(answers, weights)
    total = table.sum()
    if not total:
        return math.nan
    labels, answered = table.sum(1), table.sum(0)
    covariance = np.diag(table).sum() * total - labels @ answered
    variance = (total**2 - labels @ labels) * (total**2 - answered @ answered)
    if variance <= 0:
        return 0.0  # one class everywhere, which correlates with nothing
    return float(covariance / math.sqrt(variance))


def auc(answers: Answers, weights: np.ndarray) -> float:
    """Area under the ROC curve; of more than two classes the mean of each against all others.

    Classes without a label, or with all of them, have no curve."""
    classes = range(answers.outputs.shape[1])
    if len(classes) == 2:
        classes = range(1, 2)
    areas = []
    counted = _weights(answers, weights)
    for c in classes:
        area = _area(answers.outputs[:, c], answers.labels.values == c, counted)
        if not math.isnan(area):
            areas.append(area)
    return _quotient(sum(areas), len(areas))


def _area(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """How often a positive has the larger value than a negative; a tie counts as half."""
    _, place = np.unique(values, return_inverse=True)
    positives = np.bincount(place, weights * positive)
    negatives = np.bincount(place, weights * ~positive)
    below = np.cumsum(negatives) - negatives
    won = (positives * (below + negatives / 2)).sum()
    return _quotient(won, positives.sum() * negatives.sum())


def calibration_error(answers: Answers, weights: np.ndarray) -> float:
    """Expected calibration error: mean gap between probability and accuracy, over `BINS` bins."""
    counted = _weights(answers, weights)
    probability = answers.outputs.max(-1)
    right = answers.classes == answers.labels.values
    # Each bin includes its upper edge, as in the paper.
    bins = np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, counted * (right - probability), BINS)
    return _quotient(np.abs(gaps).sum(), counted.sum())


def log_loss(answers: Answers, weights: np.ndarray) -> float:
    """Mean negative log-probability of the labels, in nats."""
    counted = _weights(answers, weights)
    values = answers.labels.values.astype(np.int64)
    probability = np.take_along_axis(answers.outputs, values[:, None], 1)[:, 0]
    smallest = np.finfo(np.float32).tiny
    nats = -np.log(np.maximum(probability, smallest))
    return _quotient((nats * counted).sum(), counted.sum())


# Entities: spans of labels such as B-PER I-PER.


def has_entities(names: Sequence[str]) -> bool:
    """Whether the classes are those of spans: "O", and "B-" or "I-" before each other name."""
    tagged = [name for name in names if name != "O"]
    return "O" in names and bool(tagged) and all(name[:2] in ("B-", "I-") for name in tagged)


def entity_f1(answers: Answers, weights: np.ndarray, names: Sequence[str]) -> float:
    """F1 of whole spans with their types, as CoNLL's script counts them."""
    rows = answers.labels.rows
    expected = _spans(answers.labels.values, rows, names)
    answered = _spans(answers.classes, rows, names)
    right = np.intersect1d(expected, answered)
    totals = []
    for spans in (right, expected, answered):
        start = spans // (len(rows) + 1) // (len(names) + 1)
        totals.append(weights[rows[start]].sum())
    return _quotient(2 * totals[0], totals[1] + totals[2])


def _spans(classes: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """A number for each span: of its start, its type and its end."""
    types, begins = _types(names)
    kind = types[classes]  # [M]; 0 outside
    before = np.concatenate([[0], kind[:-1]])
    same_row = np.concatenate([[False], rows[1:] == rows[:-1]])
    goes_on = same_row & (before == kind) & ~begins[classes]
    starts = np.flatnonzero((kind > 0) & ~goes_on)
    # A span ends before the next one begins, or where there is none.
    ends = np.flatnonzero(~goes_on)
    after = np.append(ends, len(classes))[np.searchsorted(ends, starts) + 1]
    return (starts * (len(names) + 1) + kind[starts]) * (len(classes) + 1) + after


def _types(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each class, the number of its type (0 for "O"), and whether it begins a span."""
    numbers: dict[str, int] = {}
    types, begins = [], []
    for name in names:
        if name == "O":
            types.append(0)
        else:
            types.append(numbers.setdefault(name[2:], len(numbers) + 1))
        begins.append(name.startswith("B-"))
    return np.array(types), np.array(begins)


# Numbers.


def r2(answers: Answers, weights: np.ndarray) -> float:
    """Share of variance explained; NaN where the labels are all the same."""
    counted = _weights(answers, weights)
    labels = answers.labels.values.astype(np.float64)
    drawn = labels[counted > 0]
    if not len(drawn) or drawn.min() == drawn.max():
        return math.nan
    mean = np.average(labels, weights=counted)
    errors = (answers.outputs - labels) ** 2
    return float(1 - (errors * counted).sum() / (((labels - mean) ** 2) * counted).sum())


def mean_absolute_error(answers: Answers, weights: np.ndarray) -> float:
    """Mean distance of answers from labels."""
    counted = _weights(answers, weights)
    errors = np.abs(answers.outputs - answers.labels.values)
    return _quotient((errors * counted).sum(), counted.sum())


def mean_squared_error(answers: Answers, weights: np.ndarray) -> float:
    """Mean squared distance."""
    counted = _weights(answers, weights)
    errors = (answers.outputs - answers.labels.values) ** 2
    return _quotient((errors * counted).sum(), counted.sum())


def root_mean_squared_error(answers: Answers, weights: np.ndarray) -> float:
    """Root of the mean squared distance."""
    return math.sqrt(mean_squared_error(answers, weights))


def spearman(answers: Answers, weights: np.ndarray) -> float:
    """Correlation of the ranks of labels and answers; NaN where either are all the same."""
    counted = _weights(answers, weights)
    if not counted.sum():
        return math.nan
    centred = []
    for values in (answers.outputs, answers.labels.values):
        ranks = _ranks(values, counted)
        centred.append(ranks - np.average(ranks, weights=counted))
    x, y = centred
    variances = (counted * x * x).sum() * (counted * y * y).sum()
    return _quotient((counted * x * y).sum(), math.sqrt(variances))


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks, of values that count as often as their weights say."""
    _, place = np.unique(values, return_inverse=True)
    times = np.bincount(place, weights)
    ranks = np.cumsum(times) - times / 2
    return ranks[place]


OF_CLASSES: Mapping[str, Score] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "balanced_accuracy": balanced_accuracy,
    "auc": auc,
    "mcc": mcc,
    "loss": log_loss,
    "calibration_error": calibration_error,
}
"""Scores of answers that are classes."""

OF_NUMBERS: Mapping[str, Score] = {
    "r2": r2,
    "mae": mean_absolute_error,
    "rmse": root_mean_squared_error,
    "spearman": spearman,
    "loss": mean_squared_error,
}
"""Scores of answers that are numbers."""


def scores(answers: Answers, names: Sequence[str] = ()) -> dict[str, float]:
    """All scores of answers; `names` are those of the classes."""
    weights = once(answers)
    functions = OF_NUMBERS
    if answers.outputs.ndim > 1:
        functions = OF_CLASSES
    values = {}
    for name, score in functions.items():
        values[name] = score(answers, weights)
    if answers.outputs.ndim > 1 and has_entities(names):
        values["entity_f1"] = entity_f1(answers, weights, names)
    return values
