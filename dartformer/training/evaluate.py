"""Evaluation: loss and metric of a network over a whole split."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dartformer.data.answers import Answers, Labels
from dartformer.data.batches import examine
from dartformer.data.splits import Batch, Split
from dartformer.machine.progress import say
from dartformer.models.transformer import Network, Weights, label_scores
from dartformer.training.devices import MeshLayout
from dartformer.training.metric import ACCURACY, Losses, Metric, Spelled
from dartformer.training.trace import traced

Scores = dict[str, float]
"""`{"loss", "accuracy"}`, or `{"loss", "r2"}` for regression."""

ExampleScores = dict[str, np.ndarray]
"""`[S]` for each score: one number for each example of a split."""


class Evaluation(NamedTuple):
    """One pass over a split.

    Attributes:
      scores: of the split.
      examples: of each example.
      answers: for each label; None where an evaluator keeps none.
    """

    scores: Scores
    examples: ExampleScores
    answers: Answers | None = None


class _Pass(NamedTuple):
    """What one pass over a split leaves; see `Metric.summary`."""

    losses: Losses[np.ndarray]
    spelled: Spelled[np.ndarray] | None
    answers: Answers | None


class Evaluator:
    """Loss and metric of a network over a whole split.

    Compiled once for each length, whatever the weights and mixtures. With `answers`, or for a metric
    that needs them, it also keeps what the model answers. With a `layout` its devices share the
    examples of each batch.
    """

    def __init__(
        self,
        network: Network,
        batch_size: int,
        metric: Metric = ACCURACY,
        buckets: int = 1,
        *,
        answers: bool = False,
        layout: MeshLayout | None = None,
    ):
        self._layout = layout
        self.batch_size, self.metric, self.buckets = batch_size, metric, buckets
        self.keeps_answers = answers or metric.of_all

        # The mixture is an argument, so one program serves every architecture of a search.
        def sums(
            weights: Weights, mixture: Array | None, batch: Batch
        ) -> tuple[Array, Array | None]:
            labels = batch["label"]

            def of_labels(logits: Array, labels: Array) -> tuple[Losses[Array], Array | None]:
                outputs = None
                if self.keeps_answers and metric.regression:
                    outputs = logits[..., 0]
                elif self.keeps_answers:
                    outputs = jax.nn.softmax(logits)
                return metric.losses(logits, labels), outputs

            arrays = (weights, batch["tokens"], batch["valid"], labels, mixture)
            losses, outputs = label_scores(network, of_labels, *arrays)
            parts: list[Array] = [*losses]
            spelled = metric.spelled(losses, labels)
            if spelled is not None:
                parts += spelled
            stacked = jnp.stack(parts)  # [3 or 5, B], or [3 or 5, B, N]
            per_example = stacked.reshape(*stacked.shape[:2], -1).sum(-1)  # [3 or 5, B]
            return per_example * batch["weight"], outputs

        if layout is None:
            self._sums = jax.jit(sums)
        else:
            self._sums = jax.jit(sums, out_shardings=layout.replicated)
        self._is_compiled = False

    def __call__(self, weights: Weights, split: Split, mixture: ArrayLike | None = None) -> Scores:
        """The scores, means over the split's labels."""
        return self.metric.summary(*self._pass(weights, split, mixture))

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
        losses, spelled, answers = self._pass(weights, split, mixture)
        # Sums over the labels of an example, in units of the mean number of labels.
        scale = len(split) / max(losses.weight.sum(), 1)
        examples = {"loss": losses.loss * scale}
        if not self.metric.regression:
            examples["accuracy"] = losses.statistic * scale
        scores = self.metric.summary(losses, spelled, answers)
        return Evaluation(scores, examples, answers)

    def _pass(self, weights: Weights, split: Split, mixture: ArrayLike | None) -> _Pass:
        """Sums over the labels of each example `[S]`, in the order of the split, and the answers."""
        # A split smaller than a batch would be filled up with examples of weight 0.
        size = min(self.batch_size, len(split))
        if self._layout is not None:
            # Shares of devices are equal.
            size = -(-size // self._layout.ways) * self._layout.ways
            weights, mixture = self._placed(self._layout, weights, mixture)
        if not self._is_compiled:
            say(f"evaluation on {len(split):,} examples: compiling")
            self._is_compiled = True
        rows, labels, outputs = [], [], []
        sums: list[Array] = []
        steps = -(-len(split) // size)
        with traced("evaluation", steps, lambda: jax.block_until_ready(sums)) as before_batch:
            for batch in examine(split, size, self.buckets):
                before_batch()
                rows.append(batch.pop("row"))
                labels.append(batch["label"])
                summed, answered = self._of_batch(weights, mixture, batch)
                sums.append(summed)
                outputs.append(answered)
        # Fetched once at the end, so that the device never waits for the host.
        # float64, because the sums of a long split would lose digits in float32.
        columns = [np.asarray(part, np.float64) for part in jax.device_get(sums)]  # [3, B] each
        # The last batch is filled up with examples of weight 0; buckets reorder the examples.
        examined = np.concatenate(columns, axis=-1)[:, : len(split)]
        order = np.argsort(np.concatenate(rows)[: len(split)])
        in_order = examined[:, order]
        losses = Losses(*in_order[:3])
        answers = None
        if self.keeps_answers:
            answers = _answers(jax.device_get(outputs), labels, rows, len(split))
        if len(in_order) == 3:
            return _Pass(losses, None, answers)
        return _Pass(losses, Spelled(*in_order[3:]), answers)

    def _placed(
        self, layout: MeshLayout, weights: Weights, mixture: ArrayLike | None
    ) -> tuple[Weights, ArrayLike | None]:
        """Weights and mixture where the devices of `layout` read them."""
        if mixture is not None:
            mixture = layout.replicate(mixture)
        return layout.spread(weights), mixture

    def _of_batch(
        self, weights: Weights, mixture: ArrayLike | None, batch: Batch
    ) -> tuple[Array, Array | None]:
        if self._layout is None:
            return self._sums(weights, mixture, batch)
        with jax.set_mesh(self._layout.mesh):
            return self._sums(weights, mixture, self._layout.whole(batch))


def _answers(
    outputs: list[np.ndarray], labels: list[np.ndarray], rows: list[np.ndarray], examples: int
) -> Answers:
    """The answers for the labels that count, in the order of the split."""
    counted, values, of_rows = [], [], []
    remaining = examples
    for answered, label, row in zip(outputs, labels, rows, strict=True):
        # The copies that fill the last batch are left out.
        real = min(remaining, len(row))
        remaining -= real
        answered, label = answered[:real], label[:real]
        counts = np.ones(label.shape, bool)
        if label.dtype.kind != "f":
            counts = label >= 0
        counted.append(answered[counts])
        values.append(label[counts])
        of_rows.append(row[:real][np.nonzero(counts)[0]])
    example = np.concatenate(of_rows)
    # Stable, so that the labels of one example stay in their order.
    order = np.argsort(example, kind="stable")
    labelled = Labels(np.concatenate(values)[order], example[order], examples)
    return Answers(np.concatenate(counted)[order], labelled)
