"""The metrics: accuracy, the share of variance explained (regression), bits per character."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from dartformer.errors import unknown

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


@dataclass(frozen=True)
class Metric:
    """One way to score a task.

    Attributes:
      name: the field of `results.json`, of the metrics' lines and of evaluations.
      title: in words.
      share: the field whose best value is 1, which the diagnostics of a search read.
      higher: more is better.
      percent: shown as a percentage.
    """

    name: str
    title: str
    share: str = "accuracy"
    higher: bool = True
    percent: bool = False

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

    def summary(self, losses: Losses[np.ndarray]) -> dict[str, float]:
        """The scores of a split, from the sums `[S]` of each example's labels."""
        # Sums over the split first: a mean of batch means would weigh a short last batch too much.
        count = losses.weight.sum()
        mean = float(losses.loss.sum() / count)
        if self.regression:
            variance = float(losses.statistic.var())
            # Labels that are all the same have no variance to explain.
            explained = float("nan")
            if variance:
                explained = 1 - mean / variance
            return {"loss": mean, "r2": explained}
        scores = {"loss": mean, "accuracy": float(losses.statistic.sum() / count)}
        if self.name == "bits_per_character":
            scores["bits_per_character"] = mean / float(np.log(2))  # the loss is in nats
        return scores

    def objective(self, scores: Mapping[str, float]) -> float:
        """The score with the sign that makes larger better."""
        score = scores[self.name]
        if self.higher:
            return score
        return -score

    def text(self, value: float) -> str:
        """ "83.2%", or "1.834" """
        if self.percent:
            return f"{100 * value:.1f}%"
        return f"{value:.3f}"

    def number(self, value: float) -> float:
        """The number to plot: per cent of a share, or the value."""
        if self.percent:
            return 100 * value
        return value

    def gap(self, value: float) -> str:
        """ "1.2 points", or "0.034" """
        if self.percent:
            return f"{100 * value:.1f} points"
        return f"{value:.3f}"


ACCURACY = Metric("accuracy", "accuracy", percent=True)
R2 = Metric("r2", "share of variance explained", share="r2")
BITS_PER_CHARACTER = Metric("bits_per_character", "bits per character", higher=False)

METRICS = {metric.name: metric for metric in (ACCURACY, R2, BITS_PER_CHARACTER)}


def find(name: str) -> Metric:
    """The metric of that name; raises `InputError` for an unknown one."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def of(results: Mapping[str, Any]) -> Metric:
    """The metric of a `results.json`."""
    # Files without the key are older than the other metrics.
    return find(results.get("metric", "accuracy"))
