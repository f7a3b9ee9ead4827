"""Evaluation: loss and metric of a network over a whole split."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dartformer.data.batches import examine
from dartformer.data.splits import Batch, Split
from dartformer.machine.progress import say
from dartformer.models.transformer import Network, Weights
from dartformer.training.metric import ACCURACY, Losses, Metric, Spelled

Scores = dict[str, float]
"""`{"loss", "accuracy"}`, or `{"loss", "r2"}` for regression."""

ExampleScores = dict[str, np.ndarray]
"""`[S]` for each score: one number for each example of a split."""


class Evaluation(NamedTuple):
    """One pass over a split: its scores, and those of each example."""

    scores: Scores
    examples: ExampleScores


class Evaluator:
    """Loss and metric of a network over a whole split.

    Compiled once for each length, whatever the weights and mixtures."""

    def __init__(
        self, network: Network, batch_size: int, metric: Metric = ACCURACY, buckets: int = 1
    ):
        self.batch_size, self.metric, self.buckets = batch_size, metric, buckets

        # The mixture is an argument, so one program serves every architecture of a search.
        @jax.jit
        def sums(weights: Weights, mixture: Array | None, batch: Batch) -> Array:
            logits = network.apply(weights, batch["tokens"], batch["valid"], mixture)
            losses = metric.losses(logits, batch["label"])
            parts: list[Array] = [*losses]
            spelled = metric.spelled(losses, batch["label"])
            if spelled is not None:
                parts += spelled
            stacked = jnp.stack(parts)  # [3 or 5, B], or [3 or 5, B, N]
            per_example = stacked.reshape(*stacked.shape[:2], -1).sum(-1)  # [3 or 5, B]
            return per_example * batch["weight"]

        self._sums = sums
        self._is_compiled = False

    def __call__(self, weights: Weights, split: Split, mixture: ArrayLike | None = None) -> Scores:
        """The scores, means over the split's labels."""
        return self.metric.summary(*self._losses(weights, split, mixture))

    def per_example(
        self, weights: Weights, split: Split, mixture: ArrayLike | None = None
    ) -> ExampleScores:
        """The scores of each example, scaled so that their means are those of a call.

        This holds however many labels each example has."""
        return self.evaluate(weights, split, mixture).examples

    def evaluate(
        self, weights: Weights, split: Split, mixture: ArrayLike | None = None
    ) -> Evaluation:
        """The scores of the split and of each example, from one pass."""
        losses, spelled = self._losses(weights, split, mixture)
        # Sums over the labels of an example, in units of the mean number of labels.
        scale = len(split) / max(losses.weight.sum(), 1)
        examples = {"loss": losses.loss * scale}
        if not self.metric.regression:
            examples["accuracy"] = losses.statistic * scale
        return Evaluation(self.metric.summary(losses, spelled), examples)

    def _losses(
        self, weights: Weights, split: Split, mixture: ArrayLike | None
    ) -> tuple[Losses[np.ndarray], Spelled[np.ndarray] | None]:
        """`[S]` each: sums over the labels of each example, in the order of the split."""
        # A split smaller than a batch would be filled up with examples of weight 0.
        size = min(self.batch_size, len(split))
        if not self._is_compiled:
            say(f"evaluation on {len(split):,} examples: compiling")
            self._is_compiled = True
        rows, sums = [], []
        for batch in examine(split, size, self.buckets):
            rows.append(batch.pop("row"))
            sums.append(self._sums(weights, mixture, batch))
        # Fetched once at the end, so that the device never waits for the host.
        # float64, because the sums of a long split would lose digits in float32.
        columns = [np.asarray(part, np.float64) for part in jax.device_get(sums)]  # [3, B] each
        # The last batch is filled up with examples of weight 0; buckets reorder the examples.
        examined = np.concatenate(columns, axis=-1)[:, : len(split)]
        order = np.argsort(np.concatenate(rows)[: len(split)])
        in_order = examined[:, order]
        losses = Losses(*in_order[:3])
        if len(in_order) == 3:
            return losses, None
        return losses, Spelled(*in_order[3:])
