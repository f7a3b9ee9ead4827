"""Batches of a split: endless and shuffled for training, every example once for evaluation."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from dartformer.data import shuffle
from dartformer.data.splits import Batch, Endless, Split, lengths, permutation, random_bits
from dartformer.errors import InputError

if TYPE_CHECKING:  # imported where training begins: a loaded model needs none
    from grain import DatasetIterator


class Buckets:
    """Cuts examples to one of at most `count` lengths, equal steps of the full length.

    `steps` `[S]` is the number of steps, at least 1, that hold an example; it is empty where there
    is a single bucket."""

    def __init__(self, split: Split, count: int):
        self.count = count
        self.steps = np.zeros(0, np.uint8)
        if count > 1:
            self.length = split.take(np.arange(1))["valid"].shape[-1]
            # Divisions round up.
            self.step = -(-self.length // count)
            steps = np.maximum(-(-lengths(split) // self.step), 1)
            self.steps = steps.astype(np.min_scalar_type(count))

    def cut(self, batch: Batch, rows: np.ndarray) -> Batch:
        """`batch`, of the examples `rows` [B], without the padding that none of them needs."""
        if self.count == 1:
            return batch
        length = int(self.steps[rows].max()) * self.step
        return resized(batch, min(length, self.length))

    def sorted(self, rows: np.ndarray) -> np.ndarray:
        """The examples `rows`, the shorter first; in their order where they are of one bucket."""
        if self.count == 1:
            return rows
        return rows[np.argsort(self.steps[rows], kind="stable")]


def resized(batch: Batch, n: int) -> Batch:
    """A batch cut or padded to `n` tokens; padding is not valid, and its labels do not count."""
    axis = batch["valid"].ndim - 1
    sized = dict(batch)
    sized["tokens"] = _resized(batch["tokens"], n, axis, 0)
    sized["valid"] = _resized(batch["valid"], n, axis, False)
    if batch["label"].ndim > 1:
        sized["label"] = _resized(batch["label"], n, axis, -1)
    return sized


def _resized(array: np.ndarray, n: int, axis: int, fill: int) -> np.ndarray:
    """`array` cut to `n` along `axis`, or padded to `n` with `fill`."""
    missing = n - array.shape[axis]
    if missing <= 0:
        return array[(slice(None),) * axis + (slice(n),)]
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, missing)
    return np.pad(array, padding, constant_values=fill)


class _Epochs:
    """Batch number `i` of an endless stream that passes over the split in a new order every epoch.

    With `buckets` above 1 a batch holds examples of about the same length, and is cut to the
    shortest of that many equal steps of the full length that holds them all. A large split is taken
    in blocks, and the order is that of a block: its length does not grow with the split. Of a batch
    `mine` is taken, but it is cut by all of it."""

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        buckets: int,
        lengths_seed: int | None,
        mine: np.ndarray,
    ):
        self.split = split
        self.batch_size, self.mine = batch_size, mine
        self.seed = seed
        self.lengths_seed = seed
        if lengths_seed is not None:
            self.lengths_seed = lengths_seed
        self.steps = len(split) // batch_size
        self.is_large = len(split) > shuffle.LARGE
        self.block = self.steps
        if self.is_large and buckets == 1:
            self.block = 1
        elif self.is_large:
            self.block = max(1, shuffle.LARGE // batch_size)
        self.buckets = Buckets(split, buckets)
        self.shuffled = ((-1, 0), np.empty(0, np.int64))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: SupportsIndex) -> Batch:
        epoch, i = divmod(int(step), self.steps)
        block, i = divmod(i, self.block)
        shuffled = self.shuffled
        if shuffled[0] != (epoch, block):
            # One assignment: a reading thread must never see one epoch's order under another's
            # number.
            self.shuffled = shuffled = ((epoch, block), self._order(epoch, block))
        rows = shuffled[1][i * self.batch_size : (i + 1) * self.batch_size]
        return self.buckets.cut(self.split.take(rows[self.mine]), rows)

    def _order(self, epoch: int, block: int) -> np.ndarray:
        """Examples in the order of the batches of a block."""
        seeds = [epoch]
        # Without the remainder before sorting: otherwise the longest examples would always be
        # dropped.
        if self.is_large:
            seeds.append(block)
            first = block * self.block * self.batch_size
            last = min(first + self.block * self.batch_size, self.steps * self.batch_size)
            order = shuffle.shuffled(np.arange(first, last), len(self.split), self.seed, epoch)
        else:
            order = permutation(len(self.split), self.seed, epoch)[: self.steps * self.batch_size]
        if self.buckets.count == 1:
            return order
        rows = self.buckets.sorted(order).reshape(-1, self.batch_size)
        # Sorted batches in a random order: training must not go from short texts to long ones.
        return rows[permutation(len(rows), self.lengths_seed, *seeds)].reshape(-1)


class _Fresh:
    """Batch number `i` of an endless split; the seed says where in its 2^60 examples to start."""

    def __init__(self, split: Endless, batch_size: int, seed: int, mine: np.ndarray):
        self.split = split
        self.batch_size, self.mine = batch_size, mine
        # 60 random bits: streams of two seeds are unlikely to overlap, and numbers fit int64.
        self.start = int(random_bits(1, seed)[0]) >> 4

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: SupportsIndex) -> Batch:
        first = self.start + int(step) * self.batch_size
        return self.split.take(first + self.mine)


def batches(
    split: Split,
    batch_size: int,
    seed: int,
    buckets: int = 1,
    lengths_seed: int | None = None,
    rows: np.ndarray | None = None,
) -> "DatasetIterator":
    """An endless iterator of `Batch`es of exactly `batch_size` examples, reshuffled every epoch.

    An epoch takes every example at most once and drops the remainder; an `Endless` split has no
    epochs, and no example comes twice. Above `shuffle.LARGE` examples the order is computed as it is
    needed. With `buckets` above 1, batches have at most that many lengths and hold examples of
    similar length; the order of short and long batches depends on `lengths_seed` (on `seed` where it
    is None), so that streams over halves of the same data can
    keep step. With `rows` each batch holds its examples at those positions alone, which is what one
    of several processes reads. `get_state()` is one small dictionary, and `set_state` of it on a fresh iterator of
    the same arguments continues with the same batches. Raises `InputError` where a batch is larger
    than the split.

    Complete batches are grain's elements, because its own index shuffle costs 9 us an example. One
    thread reads ahead."""
    import grain

    if not 1 <= batch_size <= len(split):
        raise InputError(
            f"batch size {batch_size} is not between 1 and the split's {len(split)} examples."
        )
    mine = np.arange(batch_size)
    if rows is not None:
        mine = rows
    stream: _Fresh | _Epochs
    if isinstance(split, Endless):
        if buckets > 1:
            lengths(split)  # raises: there is no length to sort by
        stream = _Fresh(split, batch_size, seed, mine)
    else:
        stream = _Epochs(split, batch_size, seed, buckets, lengths_seed, mine)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(stream).to_iter_dataset(options))


def examine(split: Split, batch_size: int, buckets: int = 1) -> Iterator[Batch]:
    """Every example once in batches of exactly `batch_size`, for evaluation.

    Each batch also has `row` [B], the examples' positions, and `weight` [B] float32: 1 for an
    example, 0 for the copies of the last one that fill the last batch, so that one compiled
    function serves all batches and a weighted mean counts every example once. With `buckets` above
    1 the shorter come first, and batches have at most that many lengths."""
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is less than 1.")
    bucketed = Buckets(split, buckets)
    # The shorter first, in the split's own order where lengths are equal.
    order = None
    if buckets > 1:
        order = bucketed.sorted(np.arange(len(split)))
    for start in range(0, len(split), batch_size):
        positions = np.arange(start, start + batch_size)
        rows = np.minimum(positions, len(split) - 1)
        if order is not None:
            rows = order[rows]
        batch = bucketed.cut(split.take(rows), rows)
        weight = (positions < len(split)).astype(np.float32)
        yield {**batch, "row": rows, "weight": weight}
