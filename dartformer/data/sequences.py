"""Sequences of numbers, of unequal lengths, as tokens of several steps each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from dartformer.data.splits import Batch


@dataclass(frozen=True)
class Scale:
    """How the numbers of each channel are scaled: their mean becomes 0, their deviation 1.

    Attributes:
      mean: of each channel, `[D]`.
      deviation: of each channel, `[D]`, above 0.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Scale":
        """The scale of values `[T, D]`, of which missing ones (NaN) do not count."""
        numbers = values.astype(np.float64)
        present = np.isfinite(numbers)
        count = np.maximum(present.sum(0), 1)
        mean = np.where(present, numbers, 0).sum(0) / count
        squares = np.where(present, numbers - mean, 0) ** 2
        deviation = np.sqrt(squares.sum(0) / count)
        # A channel that never changes has no deviation to divide by.
        return cls(mean, np.where(deviation > 0, deviation, 1.0))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Values `[..., D]`, scaled; the mean takes the place of a missing one."""
        scaled = ((values - self.mean) / self.deviation).astype(np.float32)
        return np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True)
class Patches:
    """From scaled steps `[T, D]` to tokens `[N, patch * D]`.

    Attributes:
      length: tokens of the longest sequence.
      patch: steps of a token.
      target: the channel whose change from the last step is forecast; None where nothing is.
    """

    length: int
    patch: int
    target: int | None = None

    def __call__(self, steps: np.ndarray, counts: np.ndarray) -> Batch:
        """Tokens and valid of scaled steps `[B, length * patch, D]`, `counts` [B] of which exist."""
        exist = np.arange(steps.shape[1]) < counts[:, None]  # [B, T]
        if self.target is not None:
            last = np.take_along_axis(steps, (counts - 1)[:, None, None], 1)  # [B, 1, D]
            # Numbers around the last step: a model must not extrapolate where a series rises.
            # The level itself is a channel of its own, from which a forecast is made whole.
            level = np.broadcast_to(last[..., self.target, None], (*exist.shape, 1))
            steps = np.concatenate([steps - last, level], -1)
        steps = np.where(exist[..., None], steps, 0)
        # A token holds its steps one after the other, each with all of its channels.
        tokens = steps.reshape(len(steps), self.length, -1)  # [B, N, patch * D]
        count = -(-counts // self.patch)
        return {
            "tokens": tokens.astype(np.float32),
            "valid": np.arange(self.length) < count[:, None],
        }


@dataclass(frozen=True)
class Sequences:
    """Sequences in memory; a `Split`.

    Attributes:
      values: of all sequences, one after the other or with steps in common, `[T, D]`.
      starts: where each sequence begins in `values`, `[S]`.
      counts: steps of each, `[S]`.
      labels: `[S]`, classes or numbers.
      scale: of the values.
      patches: how steps become tokens.
      groups: see `dartformer.data.splits.Grouped`.
    """

    values: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    labels: np.ndarray
    scale: Scale
    patches: Patches
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, indices: np.ndarray) -> Batch:
        """The sequences at `indices` [B]."""
        counts = self.counts[indices]
        positions = np.arange(self.patches.length * self.patches.patch)
        # A place that exists, for steps that do not: they become zeros.
        places = self.starts[indices][:, None] + np.minimum(positions, counts[:, None] - 1)
        batch = self.patches(self.scale(self.values[places]), counts)
        dtype: DTypeLike = np.int32
        if self.labels.dtype.kind == "f":
            dtype = np.float32
        return {**batch, "label": self.labels[indices].astype(dtype)}
