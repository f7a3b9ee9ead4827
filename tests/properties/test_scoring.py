"""Every score is that of scikit-learn, for answers of all shapes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from dartformer.data.answers import Answers, Labels
from dartformer.training import scoring


def labels(values: np.ndarray) -> Labels:
    return Labels(values, np.arange(len(values)), len(values))


@st.composite
def classified(draw: st.DrawFn) -> Answers:
    seed, classes = draw(st.integers(0, 2**32 - 1)), draw(st.integers(2, 6))
    count = draw(st.integers(1, 80))
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * draw(st.sampled_from((0.1, 1.0, 5.0)))
    if draw(st.booleans()):
        logits = logits.round()  # ties
    outputs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    shares = rng.dirichlet(np.full(classes, draw(st.sampled_from((0.2, 5.0)))))
    return Answers(outputs, labels(rng.choice(classes, size=count, p=shares)))


@st.composite
def numbers(draw: st.DrawFn) -> Answers:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(2, 80))
    values = rng.normal(size=count)
    outputs = values * draw(st.sampled_from((-1, 0.5, 1))) + rng.normal(size=count)
    if draw(st.booleans()):
        values, outputs = values.round(), outputs.round()
    return Answers(outputs, labels(values))


def same(ours: float, theirs: float) -> bool:
    return ours == pytest.approx(theirs, rel=1e-6, abs=1e-9, nan_ok=True)


@settings(max_examples=150, deadline=None)
@given(classified())
@pytest.mark.filterwarnings("ignore")
def test_scores_of_classes_are_those_of_sklearn(answers: Answers) -> None:
    ours = scoring.scores(answers)
    right, predicted = answers.labels.values, answers.classes
    present = np.unique(right)
    assert same(ours["accuracy"], metrics.accuracy_score(right, predicted))
    assert same(ours["macro_f1"], metrics.f1_score(right, predicted, average="macro"))
    assert same(ours["balanced_accuracy"], metrics.balanced_accuracy_score(right, predicted))
    assert same(ours["mcc"], metrics.matthews_corrcoef(right, predicted))
    classes = answers.outputs.shape[1]
    assert same(ours["loss"], metrics.log_loss(right, answers.outputs, labels=range(classes)))
    if classes == 2 and len(present) == 2:
        assert same(ours["auc"], metrics.roc_auc_score(right, answers.outputs[:, 1]))
    elif classes > 2 and len(present) == classes:
        area = metrics.roc_auc_score(right, answers.outputs, multi_class="ovr")
        assert same(ours["auc"], area)
    elif len(present) == 1:
        assert math.isnan(ours["auc"])
    table = scoring.per_class(scoring.confusion(answers, scoring.once(answers)))
    expected = metrics.precision_recall_fscore_support(
        right, predicted, labels=range(classes), zero_division=0
    )
    for column, theirs in zip(table[:4], expected, strict=True):
        np.testing.assert_allclose(column, theirs)


@settings(max_examples=150, deadline=None)
@given(numbers())
def test_scores_of_numbers_are_those_of_sklearn_and_scipy(answers: Answers) -> None:
    from scipy.stats import spearmanr

    ours, right = scoring.scores(answers), answers.labels.values
    if right.min() != right.max():
        assert same(ours["r2"], metrics.r2_score(right, answers.outputs))
        if answers.outputs.min() != answers.outputs.max():
            assert same(ours["spearman"], spearmanr(right, answers.outputs).statistic)
    else:
        assert math.isnan(ours["r2"])
        assert math.isnan(ours["spearman"])
    assert same(ours["mae"], metrics.mean_absolute_error(right, answers.outputs))
    assert same(ours["rmse"], metrics.root_mean_squared_error(right, answers.outputs))


@settings(max_examples=60, deadline=None)
@given(classified() | numbers(), st.integers(0, 2**32 - 1))
def test_weights_count_examples_as_often_as_a_resample_has_them(
    answers: Answers, seed: int
) -> None:
    count = answers.labels.examples
    drawn = np.random.default_rng(seed).integers(count, size=count)
    weights = np.bincount(drawn, minlength=count).astype(float)
    resampled = Answers(answers.outputs[drawn], labels(answers.labels.values[drawn]))
    functions = scoring.OF_NUMBERS
    if answers.outputs.ndim > 1:
        functions = scoring.OF_CLASSES
    for name, score in functions.items():
        theirs = score(resampled, scoring.once(resampled))
        assert same(score(answers, weights), theirs), name


def one_hot(classes: list[int], count: int) -> np.ndarray:
    return np.eye(count)[classes]


NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def spans_by_hand(tags: list[str], rows: list[int]) -> set[tuple[int, int, str]]:
    """Spans token by token, as CoNLL's script reads them."""
    spans: set[tuple[int, int, str]] = set()
    start, kind = -1, ""
    for i, tag in enumerate([*tags, "O"]):
        new_row = i == len(tags) or i == 0 or rows[i] != rows[i - 1]
        ends = tag == "O" or tag.startswith("B-") or tag[2:] != kind or new_row
        if start >= 0 and ends:
            spans.add((start, i, kind))
            start, kind = -1, ""
        if i < len(tags) and tag != "O" and start < 0:
            start, kind = i, tag[2:]
    return spans


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1))
def test_entities_are_whole_spans_of_one_example(tokens: list[tuple[int, int, bool]]) -> None:
    right = [token[0] for token in tokens]
    answered = [token[1] for token in tokens]
    rows = np.cumsum([token[2] for token in tokens]).tolist()
    answers = Answers(one_hot(answered, 5), Labels(np.array(right), np.array(rows), rows[-1] + 1))
    expected = spans_by_hand([NAMES[i] for i in right], rows)
    found = spans_by_hand([NAMES[i] for i in answered], rows)
    ours = scoring.entity_f1(answers, scoring.once(answers), NAMES)
    if not expected and not found:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(2 * len(expected & found) / (len(expected) + len(found)))


def test_calibration_of_answers_that_are_as_sure_as_right() -> None:
    outputs = np.array([[0.75, 0.25]] * 4)
    answers = Answers(outputs, labels(np.array([0, 0, 0, 1])))
    assert scoring.calibration_error(answers, scoring.once(answers)) == pytest.approx(0)
    sure = Answers(np.array([[1.0, 0.0]] * 4), labels(np.array([0, 0, 1, 1])))
    assert scoring.calibration_error(sure, scoring.once(sure)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("names", "tagged"),
    [(NAMES, True), (("O", "I-X"), True), (("O",), False), (("NN", "VB"), False)],
)
def test_entities_need_names_of_spans(names: tuple[str, ...], tagged: bool) -> None:
    assert scoring.has_entities(names) == tagged
