"""Rows of unequal length one after another, without padding."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dartformer.data.splits import Batch


class Ragged(NamedTuple):
    """Rows one after another.

    Attributes:
      values: of all rows, `[T]`.
      offsets: `[R + 1]`; row i is `values[offsets[i] : offsets[i + 1]]`.
    """

    values: np.ndarray
    offsets: np.ndarray

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """`[B]` numbers in each of the rows `[B]`."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def padded(self, rows: np.ndarray, length: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows `[B]` as an array `[B, length]`, and which of its places they have."""
        places = np.arange(length)
        valid = places < self.lengths(rows)[:, None]
        values = np.full(valid.shape, fill, np.int32)
        # Of the places of the rows alone: behind the last row there is nothing to read.
        values[valid] = self.values[(self.offsets[rows][:, None] + places)[valid]]
        return values, valid


class OffsetSplit:
    """Examples in mapped files, which hold no padding; `take` pads.

    `tokens` has a row for each document, of which an example has `documents`; `labels` is `[S]`,
    or has a row for each example. See `ArraySplit` for the same examples, padded."""

    def __init__(
        self, tokens: Ragged, labels: np.ndarray | Ragged, length: int, documents: int
    ) -> None:
        self.tokens = tokens
        self.labels = labels
        self.groups: np.ndarray | None = None
        self._length = length
        self._documents = documents

    def __len__(self) -> int:
        return (len(self.tokens.offsets) - 1) // self._documents

    @cached_property
    def lengths(self) -> np.ndarray:
        """`[S]` tokens of each example, of two documents those of the longer one."""
        lengths = np.diff(self.tokens.offsets).astype(np.int32)
        return lengths.reshape(-1, self._documents).max(1)

    def take(self, indices: np.ndarray) -> Batch:
        """Rows `indices` [B] as a `Batch`."""
        examples = np.arange(len(self))[indices]
        rows = (examples[:, None] * self._documents + np.arange(self._documents)).reshape(-1)
        tokens, valid = self.tokens.padded(rows, self._length, 0)
        shape: tuple[int, ...] = (len(examples), self._length)
        if self._documents > 1:
            shape = (len(examples), self._documents, self._length)
        if isinstance(self.labels, Ragged):
            label, _ = self.labels.padded(examples, self._length, -1)
        else:
            label = self.labels[examples]
        return {"tokens": tokens.reshape(shape), "valid": valid.reshape(shape), "label": label}


def opened(folder: Path, name: str) -> Ragged:
    """The rows in the files `name.npy` and `name_offsets.npy` of a folder, mapped.

    Raises `OSError` or `ValueError` where they are not as they were written."""
    values = mapped(folder / f"{name}.npy")
    offsets = mapped(folder / f"{name}_offsets.npy")
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(values):
        raise ValueError(f"its offsets do not end at the {len(values):,} numbers of {name}.npy")
    return Ragged(values, offsets)


def mapped(file: Path) -> np.ndarray:
    """An array in a file."""
    # A plain array over the same file: indexing a memmap makes memmaps, which is slower.
    return np.asarray(np.load(file, mmap_mode="r"))
