"""Rules that a user would try first: linear models on n-grams, linear models and trees on numbers.

They are fitted on train and choose their settings on valid. What bounds their time and memory are
counts of rows and letters, not a clock: a rule gives the same answers on every machine.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from scipy import sparse

from dartformer.data.answers import Answers, labels_of
from dartformer.data.splits import Split, Subset, in_order
from dartformer.tasks import grams
from dartformer.tasks.grams import TfIdf, Unit

MOST_ROWS = 25_000
"""Rows of train that a rule is fitted on."""

MOST_LETTERS = 30_000_000
"""Letters of these rows."""

TRIED_ROWS, TRIED_LETTERS = 5_000, 2_500_000
"""Rows and letters of train, and rows of valid, that settings are compared on."""

MOST_WEIGHTS = 2_500_000
"""Features times classes, of which a step of the optimizer computes as many."""

FEWEST_FEATURES = 5_000

INVERSE_PENALTIES = (1.0, 10.0, 100.0)
"""Settings of logistic regression, scikit-learn's C. Rows have length 1, so few are right."""

PENALTIES = (0.3, 1.0, 3.0)
"""Settings of ridge regression."""

ITERATIONS = 100
"""Of the optimizer of logistic regression."""

Merit = Callable[[Answers], float]
"""How good answers are, by the metric that decides; more is better."""

Features: TypeAlias = np.ndarray | sparse.csr_matrix


class Rule(NamedTuple):
    """A rule that is fitted.

    Attributes:
      name: in `results.json`.
      words: what it is, and what was chosen on valid.
      answers: of a split.
      seconds: that fitting and choosing took.
    """

    name: str
    words: str
    answers: Callable[[Split], Answers]
    seconds: float


class Texts(Protocol):
    """A task whose examples are texts."""

    @property
    def classes(self) -> int: ...

    @property
    def inputs(self) -> int: ...

    def texts(self, tokens: np.ndarray, valid: np.ndarray) -> list[str]:
        """The texts of tokens `[B, N]`, of which those exist that are `valid`."""
        ...


# Models, of features and labels.


@dataclass(frozen=True)
class _Fitted:
    """A model of scikit-learn; `classes` is 0 where it predicts numbers."""

    model: Any
    classes: int

    def outputs(self, features: Features) -> np.ndarray:
        """`[M, C]` probabilities, or `[M]` numbers."""
        if not self.classes:
            return np.asarray(self.model.predict(features), np.float64)
        outputs = np.zeros((features.shape[0], self.classes))
        if features.shape[0]:
            # A class without a row in what was fitted gets the probability 0.
            outputs[:, self.model.classes_] = self.model.predict_proba(features)
        return outputs


def linear(features: Features, labels: np.ndarray, classes: int, setting: float) -> _Fitted:
    """Logistic regression, or ridge regression where there are no classes."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if not classes:
        solver = "auto"
        if sparse.issparse(features):
            solver = "lsqr"
        ridge = Ridge(alpha=setting, solver=solver, tol=1e-3)
        return _Fitted(_without_warnings(ridge, features, labels), 0)
    model = LogisticRegression(C=setting, max_iter=ITERATIONS)
    return _Fitted(_without_warnings(model, features, labels), classes)


def _without_warnings(model: Any, features: Features, labels: np.ndarray, **options: Any) -> Any:
    """A model that is fitted; that it stopped before it converged is no news to a user."""
    import warnings

    from threadpoolctl import threadpool_limits

    # In one thread: on two cores that other work shares, two threads that wait for each other took
    # eight times the processor time for trees, and three times for sparse features.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        return model.fit(features, labels, **options)


def _settings(classes: int) -> Sequence[float]:
    if classes:
        return INVERSE_PENALTIES
    return PENALTIES


def _in_words(classes: int, setting: float) -> str:
    if classes:
        return f"logistic regression (C = {setting:g})"
    return f"ridge regression (penalty {setting:g})"


def _name(classes: int) -> str:
    if classes:
        return "logistic_regression"
    return "ridge"


def can_fit(labels: np.ndarray) -> bool:
    """Whether there are labels to tell apart."""
    return len(labels) > 1 and labels.min() != labels.max()


def first(split: Split, rows: int) -> Split:
    """At most `rows` examples: train and valid are in a random order, or spread evenly."""
    if len(split) <= rows:
        return split
    return Subset(split, np.linspace(0, len(split) - 1, rows).astype(np.int64))


# Texts.


class _Grams(NamedTuple):
    """Features of texts: n-grams of a unit, weighted as train has them."""

    task: Texts
    unit: Unit
    weights: TfIdf

    def __call__(self, split: Split) -> sparse.csr_matrix:
        counted = [counts.tocsr() for counts in _counted(self.task, split, self.unit)]
        weighted = list(map(self.weights, counted))
        if len(weighted) == 1:
            return weighted[0]
        first, second = weighted
        # What two texts share, and what only one of them has.
        return sparse.hstack([first.multiply(second), abs(first - second)], "csr")


def of_texts(task: Texts, train: Split, valid: Split, merit: Merit) -> list[Rule]:
    """A linear model on TF-IDF of n-grams, of words or of characters.

    Texts are what the model reads of them. Which n-grams, and how much weights are penalised, is
    chosen on valid.
    """
    start = time.perf_counter()
    if not can_fit(labels_of(train).values):
        return []
    mean_letters = _letters(task, first(train, 200)) / min(len(train), 200)
    classes = _classes_of(task, train)
    tried = first(train, _rows(TRIED_ROWS, TRIED_LETTERS, mean_letters))
    judges = first(valid, _rows(TRIED_ROWS, TRIED_LETTERS, mean_letters))
    tried_labels, judged = labels_of(tried).values, labels_of(judges)
    best: tuple[float, Unit, float] | None = None
    units: tuple[Unit, ...] = ("words", "characters")
    if not can_fit(tried_labels):
        return []
    for unit in units:
        features = _grams(task, tried, unit, classes)
        fitting, judging = features(tried), features(judges)
        for setting in _settings(classes):
            model = linear(fitting, tried_labels, classes, setting)
            value = merit(Answers(model.outputs(judging), judged))
            if best is None or value > best[0]:
                best = value, unit, setting
    assert best is not None
    _, unit, setting = best
    rows = first(train, _rows(MOST_ROWS, MOST_LETTERS, mean_letters))
    features = _grams(task, rows, unit, classes)
    model = linear(features(rows), labels_of(rows).values, classes, setting)

    def answers(split: Split) -> Answers:
        return Answers(model.outputs(features(split)), labels_of(split))

    words = f"{_in_words(classes, setting)} on TF-IDF of {_span(unit)}"
    words += sampled(len(rows), len(train))
    return [Rule(_name(classes), words, answers, time.perf_counter() - start)]


def _rows(most: int, letters: int, mean_letters: float) -> int:
    return max(min(most, int(letters / max(mean_letters, 1))), 100)


def _span(unit: Unit) -> str:
    if unit == "words":
        return "words and pairs of words"
    return f"1 to {grams.LONGEST['characters']} characters"


def sampled(rows: int, total: int) -> str:
    """What a rule's words add where not all rows were fitted."""
    if rows == total:
        return ""
    return f", fitted on {rows:,} of {total:,} rows"


def _classes_of(task: Texts, train: Split) -> int:
    """How many classes there are; 0 where labels are numbers."""
    label = train.take(np.arange(1))["label"]
    if label.dtype.kind == "f":
        return 0
    return task.classes


def _grams(task: Texts, split: Split, unit: Unit, classes: int) -> _Grams:
    """Features whose weights are those of a split."""
    counted = sparse.vstack(_counted(task, split, unit), "csr")
    # Two classes, and a number, have a single row of weights.
    rows = 1
    if classes > 2:
        rows = classes
    most = max(MOST_WEIGHTS // rows, FEWEST_FEATURES)
    return _Grams(task, unit, TfIdf.fitted(counted, most))


def _counted(task: Texts, split: Split, unit: Unit) -> list[sparse.csr_matrix]:
    """N-grams of the first texts of a split, and of the second ones where examples have two."""
    counted = []
    for i in range(task.inputs):
        counted.append(grams.counts(_texts(task, split, i), unit))
    return counted


def _texts(task: Texts, split: Split, i: int) -> Iterator[str]:
    """The texts of a split; of examples with two, those number `i`."""
    for batch in in_order(split):
        tokens, valid = batch["tokens"], batch["valid"]
        if task.inputs > 1:
            tokens, valid = tokens[:, i], valid[:, i]
        yield from task.texts(tokens, valid)


def _letters(task: Texts, split: Split) -> int:
    total = 0
    for i in range(task.inputs):
        total += sum(map(len, _texts(task, split, i)))
    return total


# Numbers.

MOST_CELLS = 10_000_000
"""Rows times features that a linear model is fitted on."""

MOST_VALUES = {"linear": 1024, "trees": 128}
"""Values of a sequence that are features as they are; of longer ones, means of stretches."""

TREE_ROWS = 10_000
"""Rows that trees are fitted on."""

TREES = 100
"""Most rounds of boosting; those that improve valid no more are left out."""

LAST = 16
"""Last steps of a sequence, which stand at other places in sequences of other lengths."""

DENSE_PENALTIES = {True: (0.01, 0.1, 1.0), False: (1.0, 100.0, 10_000.0)}
"""Settings of linear models of standardized features, with and without classes."""


def of_numbers(train: Split, valid: Split, classes: int, merit: Merit) -> list[Rule]:
    """A linear model and boosted trees, on values and their statistics.

    `classes` is 0 where labels are numbers. The penalty of the linear model, and how many trees
    there are, is chosen on valid.
    """
    if not can_fit(labels_of(train).values):
        return []
    return [
        _linear_of_numbers(train, valid, classes, merit),
        _trees_of_numbers(train, valid, classes),
    ]


def _linear_of_numbers(train: Split, valid: Split, classes: int, merit: Merit) -> Rule:
    start = time.perf_counter()
    width = _values(first(train, 1), MOST_VALUES["linear"]).shape[1]
    rows = first(train, min(MOST_ROWS, max(100, MOST_CELLS // width)))
    fitting, labels = _values(rows, MOST_VALUES["linear"]), labels_of(rows).values
    mean, deviation = fitting.mean(0), fitting.std(0)
    # A feature that is the same everywhere has no deviation to divide by.
    deviation = np.where(deviation > 0, deviation, 1)

    def features(split: Split) -> np.ndarray:
        return (_values(split, MOST_VALUES["linear"]) - mean) / deviation

    fitting = (fitting - mean) / deviation
    judges = first(valid, TRIED_ROWS)
    judging, judged = features(judges), labels_of(judges)
    fitted = []
    for setting in DENSE_PENALTIES[classes > 0]:
        model = linear(fitting, labels, classes, setting)
        fitted.append((merit(Answers(model.outputs(judging), judged)), setting, model))
    _, setting, model = max(fitted, key=lambda entry: entry[0])
    words = f"{_in_words(classes, setting)} on values and their statistics"
    words += sampled(len(rows), len(train))

    def answers(split: Split) -> Answers:
        return Answers(model.outputs(features(split)), labels_of(split))

    return Rule(_name(classes), words, answers, time.perf_counter() - start)


def _trees_of_numbers(train: Split, valid: Split, classes: int) -> Rule:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    start = time.perf_counter()
    most = MOST_VALUES["trees"]
    rows, judges = first(train, TREE_ROWS), first(valid, TRIED_ROWS)
    options = {"max_iter": TREES, "early_stopping": True, "random_state": 0}
    boosted: Any = HistGradientBoostingRegressor(**options)
    if classes:
        boosted = HistGradientBoostingClassifier(**options)
    labels, judged = labels_of(rows).values, labels_of(judges).values
    judging = _values(judges, most)
    if classes:
        # Classes that the rows lack cannot be judged.
        present = np.isin(judged, labels)
        judging, judged = judging[present], judged[present]
    if not len(judged):
        judging, judged = _values(rows, most), labels
    boosted = _without_warnings(boosted, _values(rows, most), labels, X_val=judging, y_val=judged)
    model = _Fitted(boosted, classes)

    def answers(split: Split) -> Answers:
        return Answers(model.outputs(_values(split, most)), labels_of(split))

    words = f"gradient boosting ({boosted.n_iter_} rounds) on values and their statistics"
    words += sampled(len(rows), len(train))
    return Rule("gradient_boosting", words, answers, time.perf_counter() - start)


def _values(split: Split, most: int) -> np.ndarray:
    """`[S, W]` the values of sequences, at most so many, and statistics of them."""
    rows = []
    for batch in in_order(split):
        tokens, valid = batch["tokens"], batch["valid"]
        numbers = tokens.reshape(*valid.shape, -1).astype(np.float64)  # [B, N, F]
        rows.append(_features(numbers, valid, most))
    return np.concatenate(rows).astype(np.float32)


def _features(numbers: np.ndarray, valid: np.ndarray, most: int) -> np.ndarray:
    """`[B, W]` of numbers `[B, N, F]`."""
    count = len(numbers)
    length, channels = numbers.shape[1:]
    exists = valid[..., None]
    numbers = np.where(exists, numbers, 0)
    steps = np.maximum(valid.sum(1), 1)[:, None]  # [B, 1]
    mean = numbers.sum(1) / steps
    spread = np.sqrt((np.where(exists, numbers - mean[:, None], 0) ** 2).sum(1) / steps)
    lowest = np.where(exists, numbers, np.inf).min(1)
    highest = np.where(exists, numbers, -np.inf).max(1)
    moves = np.abs(np.diff(numbers, axis=1)) * exists[:, 1:]
    roughness = moves.sum(1) / np.maximum(steps - 1, 1)
    empty = ~valid.any(1)
    lowest[empty], highest[empty] = 0, 0
    # The last steps, the last one first, and how far it is from them.
    places = np.maximum(steps - 1 - np.arange(min(LAST, length)), 0)  # [B, LAST]
    last = np.take_along_axis(numbers, places[..., None], 1)
    gone = last[:, :1] - last[:, 1:]
    parts = [mean, spread, lowest, highest, roughness, steps, last, gone]
    parts.append(_stretches(numbers, max(1, most // channels)))
    return np.concatenate([part.reshape(count, -1) for part in parts], axis=1)


def _stretches(numbers: np.ndarray, most: int) -> np.ndarray:
    """Values `[B, N, F]` as `[B, at most `most`, F]`: means of stretches of equal length."""
    count, length, channels = numbers.shape
    stretch = -(-length // most)  # rounded up
    if stretch == 1:
        return numbers
    padded = np.pad(numbers, ((0, 0), (0, -length % stretch), (0, 0)))
    return padded.reshape(count, -1, stretch, channels).mean(2)
