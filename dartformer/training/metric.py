"""What is scored: accuracy, the share of variance explained (of numbers), or bits per character (of
language)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from dartformer.errors import unknown


@dataclass(frozen=True)
class Metric:
    """One way to score a task.

    Attributes:
      name: the field of `results.json`, of the metrics' lines and of evaluations.
      title: in words.
      share: the field, in which more is better and 1 is perfect, that diagnoses of a search look
        at.
      higher: more is better.
      percent: shown as a percentage.
    """

    name: str
    title: str
    share: str = "accuracy"
    higher: bool = True
    percent: bool = False

    def losses(self, outputs: Array, labels: ArrayLike) -> tuple[Array, Array, Array]:
        """Loss, what else is needed, and weight, each shaped like `labels`, in float32 or wider.

        Cross-entropy and correctness of classes, a negative label having the weight 0; of numbers,
        with outputs `[B, 1]`, the squared error and the number itself."""
        labels = jnp.asarray(labels)
        if self.name == "r2":
            wide = labels.astype(outputs.dtype)
            return (outputs[..., 0] - wide) ** 2, wide, jnp.ones_like(wide)
        counts = labels >= 0
        safe = jnp.where(counts, labels, 0)
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs, safe)
        weight = counts.astype(loss.dtype)
        return loss * weight, (jnp.argmax(outputs, -1) == safe) * weight, weight

    def training(self, losses: tuple[Array, Array, Array]) -> tuple[Array, dict[str, Array]]:
        """Mean loss of a batch, and what else is logged of it."""
        loss, other, weight = losses
        total = jnp.maximum(weight.sum(), 1)
        return loss.sum() / total, {} if self.name == "r2" else {"accuracy": other.sum() / total}

    def mean(self, outputs: Array, labels: ArrayLike) -> Array:
        """Mean loss of a batch."""
        return self.training(self.losses(outputs, labels))[0]

    def over(self, loss: np.ndarray, other: np.ndarray, weight: np.ndarray) -> dict[str, float]:
        """The scores of a split, from the sums `[S]` of each example's labels."""
        count = weight.sum()
        mean = float(loss.sum() / count)
        if self.name == "r2":
            variance = float(other.var())
            return {"loss": mean, "r2": 1 - mean / variance if variance else float("nan")}
        found = {"loss": mean, "accuracy": float(other.sum() / count)}
        return (
            {**found, "bits_per_character": mean / float(np.log(2))}
            if self.name == "bits_per_character"
            else found
        )

    def better(self, scores: Mapping[str, float]) -> float:
        """A number that is larger the better the scores are."""
        return scores[self.name] if self.higher else -scores[self.name]

    def text(self, value: float) -> str:
        """ "83.2%", or "1.834" """
        return f"{100 * value:.1f}%" if self.percent else f"{value:.3f}"

    def number(self, value: float) -> float:
        """The number to plot: per cent of a share, or the value."""
        return 100 * value if self.percent else value

    def gap(self, value: float) -> str:
        """ "1.2 points", or "0.034" """
        return f"{100 * value:.1f} points" if self.percent else f"{value:.3f}"


ACCURACY = Metric("accuracy", "accuracy", percent=True)
METRICS = {
    m.name: m
    for m in (
        ACCURACY,
        Metric("r2", "share of variance explained", share="r2"),
        Metric("bits_per_character", "bits per character", higher=False),
    )
}


def find(name: str) -> Metric:
    """The metric of that name; `InputError` where there is none."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def of(results: Mapping[str, Any]) -> Metric:
    """What a `results.json` was scored by."""
    return find(results.get("metric", "accuracy"))
