"""Estimators of scikit-learn: a search as one step of a Pipeline, or in `cross_val_score`.

X is an array of numbers `[N, T]`, whose rows are sequences of T steps, or whatever else
`dartformer.fit` takes: texts, pairs of texts, sequences of unequal lengths, tables with columns.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from dartformer.data.rows import canonical, is_missing
from dartformer.fitted import FitResult
from dartformer.fitting import fit

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        check_array,
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "sklearn":
        raise
    raise ImportError(
        "dartformer.sklearn needs scikit-learn, which is not installed: "
        "pip install 'dartformer[sklearn]'."
    ) from None

SEEDS = 3
"""Seeds that a random state becomes."""


class _Search(BaseEstimator):
    """What both estimators do."""

    # Parameters of scikit-learn are attributes of their names, set here and nowhere else.
    def __init__(
        self,
        *,
        steps: int | None = None,
        minutes: float | None = None,
        candidates: str = "",
        config: Mapping[str, object] | None = None,
        workdir: str | Path | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.steps = steps
        self.minutes = minutes
        self.candidates = candidates
        self.config = config
        self.workdir = workdir
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # A missing number becomes the mean of its channel.
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags

    def _search(self, X: object, y: np.ndarray, kind: str) -> FitResult:
        values: dict[str, Any] = dict(self.config or {})
        if self.random_state is not None:
            seed = int(check_random_state(self.random_state).randint(2**16))
            values.setdefault("task.seed", seed)
            seeds = tuple(range(seed, seed + SEEDS))
            values.setdefault("retrain.seeds", seeds)
        return fit(
            X,
            y,
            workdir=self.workdir,
            steps=self.steps,
            minutes=self.minutes,
            candidates=self.candidates,
            kind=kind,
            quiet=not self.verbose,
            **values,
        )

    def _examples(self, X: Any, *, reset: bool) -> Any:
        """X as numbers, checked as scikit-learn does, where it is an array of them."""
        if not _is_matrix(X):
            return X
        fewest = 1
        if reset:
            # One step is no sequence, and one row has no split.
            fewest = 2
        return validate_data(
            self,
            X,
            reset=reset,
            dtype="numeric",
            ensure_all_finite="allow-nan",
            ensure_min_features=fewest,
            ensure_min_samples=fewest,
        )

    def _fitted(self, X: Any) -> Any:
        check_is_fitted(self, "result_")
        return self._examples(X, reset=False)


class AttentionSearchClassifier(ClassifierMixin, _Search):
    """A Transformer that predicts classes, whose attentions are searched for.

    Args:
      steps: of each training. None: as many as fit into `minutes`.
      minutes: that a fit may take, 8 by default.
      candidates: attentions with commas between them, "cheap", "long" or "all".
      config: dotted fields of the config, such as `{"model.layers": 1}`.
      workdir: the folder for all results; a fit on other rows needs another one. None: a temporary
        one.
      random_state: of the split and of the seeds; None: those of the config.
      verbose: 0 prints no progress.

    Attributes:
      classes_: the classes, sorted.
      result_: what `dartformer.fit` returned.
      n_features_in_: numbers of a row, where X is an array of them.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Of a few dozen rows a Transformer learns little.
        tags.classifier_tags.poor_score = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Search, race and train; what scikit-learn's checks refuse raises a `ValueError`."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None.")
        examples = self._examples(X, reset=True)
        y = column_or_1d(y, warn=True)
        _require_labels(y)
        check_classification_targets(y)
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y")
        check_consistent_length(examples, y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y needs at least 2 classes, got one class: {self.classes_[0]}.")
        # By number, because classes may be anything that can be sorted.
        self.result_ = self._search(examples, numbers, "classification")
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each of `classes_`, `[N, C]`; 0 for a class that was too rare."""
        examples = self._fitted(X)
        probabilities = self.result_.predict_proba(examples)
        numbers = [int(canonical(name)) for name in self.result_.classes]
        of_all = np.zeros((len(probabilities), len(self.classes_)))
        of_all[:, numbers] = probabilities
        return of_all

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]


class AttentionSearchRegressor(RegressorMixin, _Search):
    """A Transformer that predicts numbers, whose attentions are searched for.

    Its arguments are those of `AttentionSearchClassifier`.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Of a few dozen rows a Transformer learns little.
        tags.regressor_tags.poor_score = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Search, race and train; what scikit-learn's checks refuse raises a `ValueError`."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None.")
        examples = self._examples(X, reset=True)
        y = column_or_1d(y, warn=True)
        y = check_array(y, ensure_2d=False, dtype="numeric", input_name="y")
        check_consistent_length(examples, y)
        self.result_ = self._search(examples, y.astype(np.float64), "regression")
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The number of each row."""
        examples = self._fitted(X)
        return np.asarray(self.result_.predict(examples))


def _require_labels(y: np.ndarray) -> None:
    """Raise `ValueError` for a row without a label."""
    for i, label in enumerate(y.tolist()):
        if is_missing(label):
            raise ValueError(f"row {i} of y has no label. Leave it out.")


def _is_matrix(X: Any) -> bool:
    """Whether X is a matrix of numbers, or meant as one: neither texts, columns nor sequences."""
    if hasattr(X, "toarray") or np.isscalar(X):
        return True  # which scikit-learn refuses in its own words
    if hasattr(X, "dtypes"):
        return all(np.dtype(kind).kind in "biufc" for kind in _dtypes(X))
    if isinstance(X, Mapping) or hasattr(X, "column_names"):
        return False
    if not hasattr(X, "__array__"):
        X = list(X)
        if _is_text(X):
            return False
        try:
            X = np.asarray(X)
        except ValueError:
            return False  # of unequal lengths
    array = np.asarray(X)
    if array.ndim > 2:
        return False
    # Numbers may be objects, and a text is none even where it spells a number.
    return not _is_text(array.ravel()[:1].tolist())


def _dtypes(frame: Any) -> list[Any]:
    """The types of the columns of a frame of pandas; objects for those that NumPy lacks."""
    kinds = []
    for kind in list(frame.dtypes):
        if not isinstance(kind, np.dtype):
            kind = np.dtype(object)
        kinds.append(kind)
    return kinds


def _is_text(values: list[Any]) -> bool:
    """Whether a list begins with a text, or with a list of texts."""
    if not values:
        return False
    first = values[0]
    if isinstance(first, list | tuple) and first:
        first = first[0]
    return isinstance(first, str)
