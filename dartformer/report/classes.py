"""What the found model answers on test: all scores, each class, what is confused, the mistakes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from dartformer.report.chart import TOOLTIP, Chart, place, quantity
from dartformer.report.models import distinct, titles
from dartformer.results import AnswersRecord, Results, RuleScores
from dartformer.training.metric import UNDEFINED, decimals

TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "mcc": "MCC",
    "loss": "loss",
    "calibration_error": "calibration error",
    "entity_f1": "F1 of entities",
    "r2": "R2",
    "mae": "MAE",
    "rmse": "RMSE",
    "spearman": "rank correlation",
}
"""Of the columns of the table of scores. MCC is Matthews' correlation coefficient. With one answer for
each label, micro F1 is accuracy."""

PRINTED = 16
"""Classes up to which the cells of a confusion matrix hold their numbers."""


class ScoreTable(NamedTuple):
    """All scores of models and rules.

    Attributes:
      names: of the columns.
      rows: a title, and a text for each column.
    """

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def all_scores(results: Results) -> ScoreTable | None:
    """The table of all scores on test; None where a run has none."""
    named = titles(results)
    columns: list[str] = []
    scored = {}
    for name, model in distinct(results).items():
        values = model.test.scores
        if values is not None:
            scored[name] = values
            columns += [column for column in values if column not in columns]
    if not scored:
        return None
    rows = []
    for name, values in scored.items():
        cells = [decimals(values.get(column, math.nan)) for column in columns]
        rows.append((named[name], cells))
    return ScoreTable([TITLES.get(column, column) for column in columns], rows)


def rules(results: Results) -> list[str]:
    """What each fitted rule is and how long it took, in sentences."""
    sentences = []
    named = titles(results)
    for name, rule in (results.baselines or {}).items():
        if isinstance(rule, RuleScores) and rule.words is not None:
            seconds = ""
            if rule.seconds is not None:
                seconds = f" It took {rule.seconds:.1f} s to choose and fit."
            sentences.append(f"{named[name].capitalize()}: {rule.words}.{seconds}")
    return sentences


def share(value: float) -> str:
    """ "83.2%", or a dash."""
    if not math.isfinite(value):
        return UNDEFINED
    return f"{100 * value:.1f}%"


def confusion(record: AnswersRecord | None) -> Chart | None:
    """The confusion matrix as cells; None of numbers, and of very many classes."""
    if record is None or record.confusion is None or record.classes is None:
        return None
    names = [row.name for row in record.classes]
    labels = record.confusion.sum(1)
    # Classes that occur neither as a label nor as an answer are no rows.
    occurs = [i for i in range(len(labels)) if labels[i] + record.confusion[:, i].sum() > 0]
    rows = []
    for label, i in zip(names, occurs, strict=True):
        for answer, j in zip(names, occurs, strict=True):
            count = int(record.confusion[i, j])
            rows.append((label, answer, count, round(count / max(labels[i], 1), 4)))
    axis = {"labelLimit": 120, "labelAngle": 0, "labelOverlap": True}
    encoding = {
        "x": place("answer", sort=names, title="answer", axis=axis | {"labelAngle": -45}),
        "y": place("label", sort=names, title="label", axis=axis),
    }
    colors = {"scheme": "blues", "domain": [0, 1]}
    legend = {"orient": "bottom", "format": ".0%", "gradientLength": 160}
    shade = quantity("share", "share of the label", scale=colors, legend=legend)
    cells = {
        "mark": {"type": "rect", **TOOLTIP},
        "encoding": encoding | {"color": shade},
    }
    layers = [cells]
    if len(names) <= PRINTED:
        # White on the dark cells.
        ink = {"condition": {"test": "datum.share > 0.6", "value": "white"}, "value": "#111827"}
        text = {"field": "count", "type": "quantitative", "format": ",d"}
        layers.append(
            {
                "mark": {"type": "text", "fontSize": 11, "tooltip": None},
                "encoding": encoding | {"text": text, "color": ink},
            }
        )
    pairs = []
    for pair in (record.confused or ())[:3]:
        pairs.append(f"{pair.label} answered as {pair.answer} {pair.count} times")
    return Chart(
        "confusion",
        "Confusion matrix",
        f"Cells: labels downward, answers to the right. Most confused: {'; '.join(pairs)}",
        {"height": max(120, 28 * len(names)), "layer": layers},
        ("label", "answer", "count", "share"),
        rows,
        "Shades are shares of each label's row; the diagonal is right.",
    )
