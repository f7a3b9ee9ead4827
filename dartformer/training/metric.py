"""The metrics: accuracy, the share of variance explained (regression), bits per character."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from dartformer.errors import unknown
from dartformer.tasks.base import Task
from dartformer.tasks.characters import begins_character, spelling

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
      characters: 1 where the label begins a character.
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
      tokens: what the labels of bits per character are: "bytes", "characters", or "" where each
        label is a character (see `dartformer.tasks.characters`).
    """

    name: str
    title: str
    share: str = "accuracy"
    higher: bool = True
    percent: bool = False
    tokens: str = ""

    @property
    def regression(self) -> bool:
        """Whether the model predicts a number and not a class."""
        return self.name == "r2"

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
        characters = begins_character(labels, self.tokens).astype(dtype)
        nats = losses.loss + spelling(labels, self.tokens).astype(dtype) * losses.weight
        return Spelled(characters, nats)

    def batch_loss(self, losses: Losses[Array]) -> tuple[Array, dict[str, Array]]:
        """Mean loss of a batch, and what is logged beside it."""
        # At least 1: a batch of language without a label has the loss 0, not NaN.
        count = jnp.maximum(losses.weight.sum(), 1)
        mean = losses.loss.sum() / count
        if self.regression:
            return mean, {}
        return mean, {"accuracy": losses.statistic.sum() / count}

    def mean(self, outputs: Array, labels: ArrayLike) -> Array:
        """Mean loss of a batch."""
        return self.batch_loss(self.losses(outputs, labels))[0]

    def summary(
        self, losses: Losses[np.ndarray], spelled: Spelled[np.ndarray] | None = None
    ) -> dict[str, float]:
        """The scores of a split, from the sums `[S]` of each example's labels.

        Without `spelled` each label counts as a character that is known.
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
            return {"loss": mean, "r2": 1 - _quotient(mean, variance)}
        scores = {"loss": mean, "accuracy": _quotient(losses.statistic.sum(), count)}
        if self.name == "bits_per_character":
            nats = mean
            if spelled is not None:
                nats = _quotient(spelled.nats.sum(), spelled.characters.sum())
            scores["bits_per_character"] = nats / float(np.log(2))
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
R2 = Metric("r2", "share of variance explained", share="r2")
BITS_PER_CHARACTER = Metric("bits_per_character", "bits per character", higher=False)

LOSS = Metric("loss", "loss", higher=False)
"""Of any task; a race can compare by it."""

METRICS = {metric.name: metric for metric in (ACCURACY, R2, BITS_PER_CHARACTER)}


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


def of_task(task: Task) -> Metric:
    """The metric of a task, which knows what the task's tokens are."""
    metric = find(task.traits.metric)
    if metric != BITS_PER_CHARACTER:
        return metric
    return dataclasses.replace(metric, tokens=getattr(task, "tokens", ""))


def of(results: Mapping[str, Any]) -> Metric:
    """The metric of a `results.json`."""
    # Files without the key are older than the other metrics.
    return find(results.get("metric", "accuracy"))


def _quotient(total: float, count: float) -> float:
    if not count:
        return math.nan
    return float(total / count)
