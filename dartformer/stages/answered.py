"""Answered: what a model answers on test, by class, and the mistakes that it is surest of."""

import numpy as np

from dartformer.data.answers import Answers
from dartformer.data.splits import Split
from dartformer.machine.printable import one_line
from dartformer.results import AnswersRecord, ClassScores, Confused, Mistake
from dartformer.stages.study import Study
from dartformer.training import scoring
from dartformer.training.metric import scale_of

MISTAKES = 10
"""That are kept, and as many pairs of classes that are confused."""

MOST_CLASSES = 30
"""Classes of a confusion matrix that a page can show."""

MOST_ROWS = 1000
"""Classes that are listed."""

LETTERS = 200
"""Of the text of a mistake."""


def all_scores(study: Study, answers: Answers) -> dict[str, float]:
    """All scores of answers; distances between numbers are in the units of the labels."""
    values = scoring.scores(answers, study.task.labels)
    if answers.outputs.ndim == 1:
        scale = scale_of(study.fitted)
        values["mae"] *= scale
        values["rmse"] *= scale
    return values


def record(study: Study, answers: Answers, seed: int) -> AnswersRecord:
    """What `results.json` holds of a model's answers on test."""
    part = study.parts["test"]
    if answers.outputs.ndim == 1:
        return AnswersRecord(seed, _far(study, part, answers))
    table = scoring.confusion(answers, scoring.once(answers)).astype(int)
    confusion = None
    if len(table) <= MOST_CLASSES:
        confusion = table
    return AnswersRecord(
        seed,
        _mistakes(study, part, answers),
        _classes(study, table),
        confusion,
        _confused(study, table),
    )


def _classes(study: Study, table: np.ndarray) -> tuple[ClassScores, ...]:
    """The classes that occur, in their order; the most frequent where there are very many."""
    columns = scoring.per_class(table)
    occurs = np.flatnonzero(columns.labels + columns.answers)
    frequent = occurs[np.argsort(-columns.labels[occurs], kind="stable")]
    rows = []
    for i in np.sort(frequent[:MOST_ROWS]).tolist():
        rows.append(
            ClassScores(
                study.task.labels[i],
                float(columns.precision[i]),
                float(columns.recall[i]),
                float(columns.f1[i]),
                int(columns.labels[i]),
                int(columns.answers[i]),
            )
        )
    return tuple(rows)


def _confused(study: Study, table: np.ndarray) -> tuple[Confused, ...]:
    """The pairs of a label and a wrong answer that are most frequent."""
    wrong = table - np.diag(np.diag(table))
    names = study.task.labels
    pairs = []
    for cell in np.argsort(-wrong.ravel(), kind="stable")[:MISTAKES].tolist():
        label, answer = divmod(cell, len(table))
        if wrong[label, answer]:
            pairs.append(Confused(names[label], names[answer], int(wrong[label, answer])))
    return tuple(pairs)


def _mistakes(study: Study, part: Split, answers: Answers) -> tuple[Mistake, ...]:
    """The wrong answers of the largest probability."""
    probability, classes = answers.outputs.max(-1), answers.classes
    labels, names = answers.labels, study.task.labels
    wrong = np.flatnonzero(classes != labels.values)
    order = wrong[np.argsort(-probability[wrong], kind="stable")][:MISTAKES]
    mistakes = []
    for i in order.tolist():
        text = _text(study, part, int(labels.rows[i]), _place(study, answers, i))
        label, answer = names[int(labels.values[i])], names[int(classes[i])]
        mistakes.append(Mistake(text, label, answer, float(probability[i])))
    return tuple(mistakes)


def _far(study: Study, part: Split, answers: Answers) -> tuple[Mistake, ...]:
    """The numbers that are farthest from their labels."""
    value = getattr(study.fitted, "value", float)
    errors = np.abs(answers.outputs - answers.labels.values)
    mistakes = []
    for i in np.argsort(-errors, kind="stable")[:MISTAKES].tolist():
        text = _text(study, part, int(answers.labels.rows[i]), 0)
        label = f"{float(value(float(answers.labels.values[i]))):.4g}"
        answer = f"{float(value(float(answers.outputs[i]))):.4g}"
        mistakes.append(Mistake(text, label, answer, None))
    return tuple(mistakes)


def _place(study: Study, answers: Answers, i: int) -> int:
    """The token that a label belongs to; 0 where the whole example has one."""
    if not study.task.traits.per_token:
        return 0
    rows = answers.labels.rows
    row = study.parts["test"].take(rows[i : i + 1])
    labelled = np.flatnonzero(row["label"][0] >= 0)
    return int(labelled[i - np.searchsorted(rows, rows[i])])


def _text(study: Study, part: Split, row: int, start: int) -> str:
    """The beginning of an example as one line, from a token on; of two documents both."""
    batch = part.take(np.array([row]))
    tokens, valid = batch["tokens"][0], batch["valid"][0]
    if study.model.features:
        return f"row {row + 1:,} of test: {int(valid.sum())} tokens"
    documents = [(tokens, valid)]
    if study.model.inputs == 2:
        documents = list(zip(tokens, valid, strict=True))
    texts = []
    for ids, exists in documents:
        # The ids beyond the last letter that is kept need not be decoded.
        spelled = study.fitted.decode(ids[exists][start : start + LETTERS].tolist())
        if len(spelled) > LETTERS:
            spelled = spelled[:LETTERS] + "..."
        texts.append(one_line(spelled))
    return " | ".join(texts)
