"""The metrics that can decide: means over labels, such as accuracy, and scores of all answers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from dartformer.data.answers import Answers, labels_of
from dartformer.data.splits import Split
from dartformer.errors import InputError, unknown
from dartformer.tasks.base import Task
from dartformer.tasks.characters import Units, characters_of, spelling
from dartformer.training import scoring

UNDEFINED = "–"
"""What a table shows of a score that is undefined."""

A = TypeVar("A", Array, np.ndarray)


class Losses(NamedTuple, Generic[A]):
    """What a metric needs of each label, or of the sum of them of each example.

    Attributes:
      loss: cross-entropy, or the squared error for regression.
      statistic: 1 where the prediction is right, or the label itself for regression.
      weight: 1, or 0 where there is no label.
    """

    loss: A
    statistic: A
    weight: A


class Spelled(NamedTuple, Generic[A]):
    """What bits per character need beside `Losses`.

    Attributes:
      characters: how many the label begins.
      nats: the loss, with what an unknown character costs to spell.
    """

    characters: A
    nats: A


@dataclass(frozen=True)
class Metric:
    """One way to score a task. A score that is undefined is NaN, and null in files.

    Attributes:
      name: the field of `results.json`, of the metrics' lines and of evaluations.
      title: in words.
      share: the field whose best value is 1, which the diagnostics of a search read.
      higher: more is better.
      percent: shown as a percentage.
      tokens: what the labels of bits per character are (see `dartformer.tasks.characters`).
      numbers: of a task that predicts a number.
      scale: the number that an output of 1 more stands for; for distances between numbers.
      names: of the classes, which entities are read from.
      class_weights: of each class in the loss of training; empty for equal ones. Evaluation counts
        every label once.
    """

    name: str
    title: str
    share: str = "accuracy"
    higher: bool = True
    percent: bool = False
    tokens: Units = ""
    numbers: bool = False
    scale: float = 1.0
    names: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()

    @property
    def regression(self) -> bool:
        """Whether the model predicts a number and not a class."""
        return self.numbers

    @property
    def of_all(self) -> bool:
        """Whether it is no mean over examples, but a score of all answers together."""
        return self.name not in ("loss", "accuracy", "r2", "bits_per_character")

    def of_answers(self, answers: Answers, weights: np.ndarray | None = None) -> float:
        """The score of answers; `weights` `[S]` say how often each example counts."""
        if weights is None:
            weights = scoring.once(answers)
        if self.name == "entity_f1":
            return scoring.entity_f1(answers, weights, self.names)
        functions = scoring.OF_CLASSES
        if self.numbers:
            functions = scoring.OF_NUMBERS
        return functions[self.name](answers, weights) * self.scale

    def losses(self, outputs: Array, labels: ArrayLike) -> Losses[Array]:
        """Loss, statistic and weight of each label, shaped like `labels`, in float32 or wider.

        Outputs are logits `[..., C]`, and a negative label has the weight 0; or predicted numbers
        `[B, 1]`."""
        labels = jnp.asarray(labels)
        if self.regression:
            numbers = labels.astype(outputs.dtype)
            error = outputs[..., 0] - numbers
            return Losses(error**2, numbers, jnp.ones_like(numbers))
        labelled = labels >= 0  # a negative label is a missing one
        # They get a class that exists, so that their loss is finite: NaN times 0 would stay NaN.
        classes = jnp.where(labelled, labels, 0)
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs, classes)
        weight = labelled.astype(loss.dtype)
        correct = jnp.argmax(outputs, -1) == classes
        return Losses(loss * weight, correct * weight, weight)

    def spelled(self, losses: Losses[Array], labels: ArrayLike) -> Spelled[Array] | None:
        """What bits per character need of the labels; None for the other metrics."""
        if self.name != "bits_per_character":
            return None
        labels, dtype = jnp.asarray(labels), losses.loss.dtype
        characters = characters_of(labels, self.tokens).astype(dtype)
        nats = losses.loss + spelling(labels, self.tokens).astype(dtype) * losses.weight
        return Spelled(characters, nats)

    def batch_loss(self, outputs: Array, labels: ArrayLike) -> tuple[Array, dict[str, Array]]:
        """Mean loss of a batch in training, and what is logged beside it."""
        return self.batch_mean(self.losses(outputs, labels), labels)

    def batch_mean(
        self, losses: Losses[Array], labels: ArrayLike
    ) -> tuple[Array, dict[str, Array]]:
        """The same, from the losses of the labels."""
        # At least 1: a batch of language without a label has the loss 0, not NaN.
        count = jnp.maximum(losses.weight.sum(), 1)
        mean = losses.loss.sum() / count
        if self.class_weights:
            weights = self._label_weights(jnp.asarray(labels), losses.weight)
            mean = (losses.loss * weights).sum() / self._total_weight(weights)
        if self.regression:
            return mean, {}
        return mean, {"accuracy": losses.statistic.sum() / count}

    def of_batch(self, losses: Losses[Array], labels: ArrayLike) -> Array:
        """Mean loss of a batch, from the losses of the labels."""
        return self.batch_mean(losses, labels)[0]

    def shares(self, labels: ArrayLike) -> Array:
        """What the loss of each label counts in the mean of a batch, shaped like `labels`.

        The mean of `batch_mean` is the sum of losses times shares."""
        labels = jnp.asarray(labels)
        if self.regression:
            return jnp.full(labels.shape, 1 / labels.size)
        weights = (labels >= 0).astype(jnp.result_type(float))
        if not self.class_weights:
            return weights / jnp.maximum(weights.sum(), 1)
        weights = self._label_weights(labels, weights)
        return weights / self._total_weight(weights)

    def _label_weights(self, labels: Array, weight: Array) -> Array:
        """The class weight of each label; its `weight` is 0 where there is none."""
        weights = jnp.asarray(self.class_weights, weight.dtype)
        return weights[jnp.where(labels >= 0, labels, 0)] * weight

    def _total_weight(self, weights: Array) -> Array:
        """The sum of the weights of all labels, and above 0 where there is none."""
        # Of weights that are small the sum may be below 1.
        return jnp.maximum(weights.sum(), min(self.class_weights))

    def mean(self, outputs: Array, labels: ArrayLike) -> Array:
        """Mean loss of a batch in training."""
        return self.batch_loss(outputs, labels)[0]

    def summary(
        self,
        losses: Losses[np.ndarray],
        spelled: Spelled[np.ndarray] | None = None,
        answers: Answers | None = None,
    ) -> dict[str, float]:
        """The scores of a split, from the sums `[S]` of each example's labels.

        Without `spelled` each label counts as a character that is known. A score of all answers
        together is one of the scores where the answers are.
        A score is NaN, which means undefined, where the split has no label; the share of variance
        explained also where its labels are all the same."""
        # Sums over the split first: a mean of batch means would weigh a short last batch too much.
        count = losses.weight.sum()
        mean = _quotient(losses.loss.sum(), count)
        if self.regression:
            labels = losses.statistic
            # Labels that are all the same have no variance to explain; rounding may leave some.
            variance = 0.0
            if len(labels) and labels.min() != labels.max():
                variance = labels.var()
            numbers = {"loss": mean, "r2": 1 - _quotient(mean, variance)}
            return self._with_own(numbers, answers)
        scores = {"loss": mean, "accuracy": _quotient(losses.statistic.sum(), count)}
        if self.name == "bits_per_character":
            nats = mean
            if spelled is not None:
                nats = _quotient(spelled.nats.sum(), spelled.characters.sum())
            scores["bits_per_character"] = nats / float(np.log(2))
        return self._with_own(scores, answers)

    def _with_own(self, scores: dict[str, float], answers: Answers | None) -> dict[str, float]:
        if self.of_all and answers is not None:
            scores[self.name] = self.of_answers(answers)
        return scores

    def objective(self, scores: Mapping[str, float]) -> float:
        """The score with the sign that makes larger better.

        An undefined score is replaced by minus the loss, and is minus infinity where that is
        undefined, too: it is never the best."""
        score, loss = scores[self.name], scores.get("loss", math.inf)
        if "loss" in scores and math.isnan(loss):
            return -math.inf  # of outputs that are NaN an accuracy says nothing
        if not math.isfinite(score):
            return -loss
        if self.higher:
            return score
        return -score

    def text(self, value: float) -> str:
        """ "83.2%", or "1.834"; a dash for an undefined score."""
        if not math.isfinite(value):
            return UNDEFINED
        if self.percent:
            return f"{100 * value:.1f}%"
        return f"{value:.3f}"

    def number(self, value: float) -> float:
        """The number to plot: per cent of a share, or the value."""
        if self.percent:
            return 100 * value
        return value

    def gap(self, value: float) -> str:
        """ "1.2 points", or "0.034"; a dash where it is undefined."""
        if not math.isfinite(value):
            return UNDEFINED
        if self.percent:
            return f"{100 * value:.1f} points"
        return f"{value:.3f}"


ACCURACY = Metric("accuracy", "accuracy", percent=True)
R2 = Metric("r2", "share of variance explained", share="r2", numbers=True)
BITS_PER_CHARACTER = Metric("bits_per_character", "bits per character", higher=False)

LOSS = Metric("loss", "loss", higher=False)
"""Of any task; a race can compare by it."""

SCORE = Metric("score", "score")
"""What a user's own function returns; a race of modules can compare by it."""

MACRO_F1 = Metric("macro_f1", "macro F1", share="macro_f1")
BALANCED_ACCURACY = Metric("balanced_accuracy", "balanced accuracy", share="balanced_accuracy")
AUC = Metric("auc", "area under the ROC curve", share="auc")
MCC = Metric("mcc", "Matthews' correlation", share="mcc")
ENTITY_F1 = Metric("entity_f1", "F1 of entities", share="entity_f1")
MAE = Metric("mae", "mean absolute error", share="r2", higher=False, numbers=True)
RMSE = Metric("rmse", "root mean squared error", share="r2", higher=False, numbers=True)
SPEARMAN = Metric("spearman", "rank correlation", share="spearman", numbers=True)

OF_TASK = (ACCURACY, R2, BITS_PER_CHARACTER)
"""What a task can be scored by where a config names no metric."""

OF_CLASSES = (ACCURACY, MACRO_F1, BALANCED_ACCURACY, AUC, MCC, ENTITY_F1, LOSS)
OF_NUMBERS = (R2, MAE, RMSE, SPEARMAN, LOSS)
OF_LANGUAGE = (BITS_PER_CHARACTER, ACCURACY, LOSS)

METRICS = {metric.name: metric for metric in (*OF_CLASSES, *OF_NUMBERS, *OF_LANGUAGE)}


def decimals(value: float) -> str:
    """ "0.834", or a dash for a score that is undefined."""
    if not math.isfinite(value):
        return UNDEFINED
    return f"{value:.3f}"


def find(name: str) -> Metric:
    """The metric of that name; raises `InputError` for an unknown one."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def of_task(task: Task, name: str = "") -> Metric:
    """The metric that decides for a task, which knows what the task's labels are.

    Args:
      task: for distances between numbers with what it learned, which says what an output means.
      name: of the metric; empty for the task's own.

    Raises `InputError` for a metric that the task does not have."""
    default = find(task.traits.metric)
    require_of_task(task, name)
    metric = find(name or default.name)
    if default == BITS_PER_CHARACTER:
        units: Units = getattr(task, "units", getattr(task, "tokens", ""))
        return dataclasses.replace(metric, tokens=units)
    if not default.numbers:
        return dataclasses.replace(metric, names=_names(metric, task))
    scale = 1.0
    if metric in (MAE, RMSE):
        scale = scale_of(task)
    share = metric.share
    if metric == LOSS:
        share = R2.share
    return dataclasses.replace(metric, share=share, scale=scale, numbers=True)


def require_of_task(task: Task, name: str) -> None:
    """Raise `InputError` where a metric is none of the task's."""
    if not name:
        return
    fitting: Sequence[Metric] = OF_CLASSES
    if task.traits.metric == R2.name:
        fitting = OF_NUMBERS
    elif task.traits.metric == BITS_PER_CHARACTER.name:
        fitting = OF_LANGUAGE
    names = [metric.name for metric in fitting]
    if name not in METRICS:
        raise unknown("metric", name, names)
    if name not in names:
        raise InputError(
            f"metric={name!r} does not work with the task, whose default is "
            f"{task.traits.metric!r}. Use one of {', '.join(names)}."
        )
    if name == ENTITY_F1.name and not scoring.has_entities(task.labels):
        raise InputError(
            f"metric={name!r} does not work with the task, because its classes are not those of "
            f"spans, such as 'O', 'B-PER' and 'I-PER'. Use metric='macro_f1'."
        )


MOST_ANSWERS = 2**13
"""Numbers that a model may answer for one example, so that all answers fit into memory."""


def keeps_answers(task: Task) -> bool:
    """Whether the answers for a split are kept, which scores and tables beside the metric need."""
    if task.traits.metric == BITS_PER_CHARACTER.name:
        return False
    labels = 1
    if task.traits.per_token:
        labels = task.length
    return labels * task.classes <= MOST_ANSWERS


def balanced(task: Task, train: Split) -> tuple[float, ...]:
    """Weights of the classes with which all count alike; their mean over the labels is 1."""
    values = labels_of(train).values
    counts = np.bincount(values, minlength=task.classes)
    # A class without a label in train is in no batch, whatever its weight.
    weights = len(values) / (len(counts) * np.maximum(counts, 1))
    return tuple(weights.tolist())


def _names(metric: Metric, task: Task) -> tuple[str, ...]:
    if metric == ENTITY_F1:
        return task.labels
    return ()


def scale_of(task: Task) -> float:
    """The number that an output of 1 more stands for."""
    value = getattr(task, "value", None)
    if value is None:
        return 1.0
    return abs(float(value(1.0)) - float(value(0.0)))


def of(results: Mapping[str, Any]) -> Metric:
    """The metric of a `results.json`."""
    # Files without the key are older than the other metrics.
    return find(results.get("metric", "accuracy"))


def _quotient(total: float, count: float) -> float:
    if not count:
        return math.nan
    return float(total / count)
