"""Answers: what a model or a rule says of every label of a split."""

from typing import NamedTuple

import numpy as np

from dartformer.data.splits import Split, in_order


class Labels(NamedTuple):
    """The labels of a split that count.

    Attributes:
      values: `[M]` classes, or numbers.
      rows: `[M]` the example of each label, in order.
      examples: of the split.
    """

    values: np.ndarray
    rows: np.ndarray
    examples: int


class Answers(NamedTuple):
    """What is answered for the labels of a split.

    Attributes:
      outputs: `[M, C]` probabilities of the classes, or `[M]` numbers.
      labels: what is right.
    """

    outputs: np.ndarray
    labels: Labels

    @property
    def classes(self) -> np.ndarray:
        """`[M]` the most probable classes."""
        return self.outputs.argmax(-1)


def labels_of(split: Split) -> Labels:
    """The labels of a split, without the negative ones, which stand for none."""
    values, rows, start = [], [], 0
    for batch in in_order(split):
        label = batch["label"]
        counts = np.ones(label.shape, bool)
        if label.dtype.kind != "f":
            counts = label >= 0
        values.append(label[counts])
        rows.append(start + np.nonzero(counts)[0])
        start += len(label)
    return Labels(np.concatenate(values), np.concatenate(rows), start)
