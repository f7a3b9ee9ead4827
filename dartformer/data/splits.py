"""Splits: examples by index, in memory, mapped from a file, or generated as they are taken."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike

from dartformer.data.rows import digest
from dartformer.errors import InputError

Batch = dict[str, np.ndarray]
"""`tokens` [B, N] int32, 0 where padded; `valid` [B, N] bool, from lengths and never from token
ids; `label` [B] int32 (or [B, N] where every token has a label; negative labels do not count).

With two documents, tokens and valid are [B, 2, N]; tokens that are F numbers are [B, N, F] float32;
labels that are numbers are float32."""


SAMPLED = 512
"""Examples of an endless split among which none is repeated where the task has many."""


@runtime_checkable
class Split(Protocol):
    """Examples by index, many at a time."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Batch:
        """The examples at `indices` [B], padded to the task's length, in arrays of their own."""
        ...


@runtime_checkable
class Measured(Protocol):
    """A split that knows the lengths of its examples without reading them."""

    lengths: np.ndarray
    """`[S]` tokens, or `[S, 2]` of two documents."""


@runtime_checkable
class Grouped(Protocol):
    """A split whose rows may belong to groups, such as the texts of one author."""

    groups: np.ndarray | None
    """`[S]` numbers of the groups, below 0 for a row on its own; None where all are."""


class ArraySplit:
    """Examples in memory, or in mapped files.

    `tokens` [S, N] of any integer type, `lengths` [S], `labels` [S] or [S, N].

    With two documents `tokens` is [S, 2, N] and `lengths` [S, 2]. Tokens that are F numbers each are
    [S, N, F] of any floating type, and stay numbers. Labels may be float32. The arrays may be mapped
    files."""

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray, labels: np.ndarray):
        if not len(tokens) == len(lengths) == len(labels):
            raise InputError(
                f"the tokens, lengths and labels of a split must have the same number of examples; "
                f"got {len(tokens)}, {len(lengths)} and {len(labels)}."
            )
        self.tokens = tokens
        self.lengths = lengths
        self.labels = labels
        self.groups: np.ndarray | None = None
        # Regression predicts floats; class labels are integers of any width on disk.
        self._label_dtype: DTypeLike = np.int32
        if labels.dtype.kind == "f":
            self._label_dtype = np.float32
        self._token_dtype: DTypeLike = np.int32
        self._length = tokens.shape[-1]
        if tokens.dtype.kind == "f":
            if tokens.ndim != 3:
                raise InputError(
                    f"tokens that are numbers must be an array [S, N, F], got shape "
                    f"{list(tokens.shape)}. Use F = 1 for a number a token."
                )
            self._token_dtype = np.float32
            self._length = tokens.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, indices: np.ndarray) -> Batch:
        """Rows `indices` [B] as a `Batch`."""
        positions = np.arange(self._length)
        return {
            "tokens": self.tokens[indices].astype(self._token_dtype),
            "valid": positions < self.lengths[indices][..., None],
            "label": self.labels[indices].astype(self._label_dtype),
        }


class Subset:
    """The examples of `split` at `indices` [S], in that order."""

    def __init__(self, split: Split, indices: np.ndarray):
        self.split = split
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: np.ndarray) -> Batch:
        """The examples at positions `indices` [B] of this subset."""
        # Of large splits the numbers are kept in 32 bits, which products of them would not fit.
        return self.split.take(self.indices[indices].astype(np.int64, copy=False))


class Endless:
    """Examples that are generated as they are taken, so that none needs to come twice.

    `make` returns the examples of the numbers [B], int64 of at least 0, each a function of its
    number alone; example i of this split is number `first + stride * i`. `count` is the split's
    `len`: how many examples represent it where labels are counted."""

    def __init__(
        self, make: Callable[[np.ndarray], Batch], count: int, first: int = 0, stride: int = 1
    ):
        self.make = make
        self.count = count
        self.first = first
        self.stride = stride

    def __len__(self) -> int:
        return self.count

    def take(self, indices: np.ndarray) -> Batch:
        """The examples at `indices` [B], which may lie beyond `len`."""
        return self.make(self.first + self.stride * np.asarray(indices, np.int64))

    def halves(self) -> tuple["Endless", "Endless"]:
        """Two endless splits without a common example: those at even and those at odd indices.

        Where examples repeat, as they do of few symbols, those of even and those of odd digests.
        """
        stride = 2 * self.stride
        even = Endless(self.make, (self.count + 1) // 2, self.first, stride)
        odd = Endless(self.make, self.count // 2, self.first + self.stride, stride)
        sample = _batch_digests(self.take(np.arange(SAMPLED)))
        if len(np.unique(sample)) < SAMPLED:
            even.make = _OfParity(self.make, 0)
            odd.make = _OfParity(self.make, 1)
        return even, odd


class _OfParity:
    """The examples of `make` whose digest is even (`parity` 0) or odd (1)."""

    TRIES = 64
    """Draws for an example. Half of all have the parity, so that the 64th is hardly ever needed."""

    STEP = 0x1E3779B97F4A7C15
    """From the number of a draw to that of the next. Odd: no number comes back."""

    def __init__(self, make: Callable[[np.ndarray], Batch], parity: int):
        self.make = make
        self.parity = parity

    def __call__(self, numbers: np.ndarray) -> Batch:
        batch = dict(self.make(numbers))
        for draw in range(1, self.TRIES):
            wrong = _batch_digests(batch) % 2 != self.parity
            if not wrong.any():
                return batch
            # Modulo 2^62, so that numbers stay within int64.
            offset = draw * self.STEP % 2**62
            replaced = self.make((numbers[wrong] + offset) % 2**62)
            for name, array in replaced.items():
                batch[name][wrong] = array
        raise InputError(
            "the task has too few different examples for the weights and the alphas to share none. "
            "Make its examples longer, or of more symbols."
        )


def in_order(split: Split, size: int = 512) -> Iterator[Batch]:
    """Every example once, in order, the last batch shorter.

    For counting, not for a compiled function."""
    for start in range(0, len(split), size):
        yield split.take(np.arange(start, min(start + size, len(split))))


def lengths(split: Split) -> np.ndarray:
    """`[S]` tokens of each example (of two documents, of the longer one).

    Raises `InputError` for an endless split."""
    if isinstance(split, Subset):
        return lengths(split.split)[split.indices]
    if isinstance(split, Measured):
        return split.lengths.reshape(len(split), -1).max(1)
    if isinstance(split, Endless):
        raise InputError(
            "data.buckets > 1 does not work with an endless task because examples are sorted by "
            "length, and these are generated without end. Use data.buckets=1."
        )
    longest = []
    for batch in in_order(split):
        tokens = batch["valid"].sum(-1)  # [B] or [B, 2]
        longest.append(tokens.reshape(len(tokens), -1).max(1))
    return np.concatenate(longest)


def row_digests(split: Split) -> np.ndarray:
    """`[S]` 64 bits that stand for what the model reads of each example; labels do not count."""
    if isinstance(split, Subset):
        return row_digests(split.split)[split.indices]
    if isinstance(split, ArraySplit):
        # As it is kept, which is several times smaller than as it is taken.
        return _digests(split.tokens, split.lengths)
    return np.concatenate([_batch_digests(batch) for batch in in_order(split)])


def row_groups(split: Split) -> np.ndarray | None:
    """`[S]` numbers of the groups of the examples, or None; see `Grouped`."""
    if isinstance(split, Subset):
        groups = row_groups(split.split)
        if groups is None:
            return None
        return groups[split.indices]
    if isinstance(split, Grouped):
        return split.groups
    return None


def share_groups(first: Split, second: Split) -> bool:
    """Whether rows of one group are in both splits."""
    groups, others = row_groups(first), row_groups(second)
    if groups is None or others is None:
        return False
    # A row on its own has a number below 0.
    return bool(np.intersect1d(groups[groups >= 0], others[others >= 0]).size)


def linked(digests: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`[S]` numbers, equal for rows of one digest or one group, or that other rows link so.

    Args:
      digests: of the rows, `[S]`.
      groups: of the rows, `[S]`, below 0 for a row on its own.
    """
    _, alike = np.unique(digests, return_inverse=True)
    alone = groups.max() + 1 + np.arange(len(groups))
    _, together = np.unique(np.where(groups < 0, alone, groups), return_inverse=True)
    numbers = alike
    while True:
        # The smallest number spreads over a group, then over its repetitions, until none changes.
        spread = _smallest(_smallest(numbers, together), alike)
        if (spread == numbers).all():
            return numbers
        numbers = spread


def _smallest(numbers: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """`[S]`: of each row the smallest of the numbers of the rows with its key."""
    least = np.full(len(numbers), len(numbers))
    np.minimum.at(least, keys, numbers)
    return least[keys]


def _batch_digests(batch: Batch) -> np.ndarray:
    return _digests(batch["tokens"], batch["valid"])


def _digests(tokens: np.ndarray, exist: np.ndarray) -> np.ndarray:
    """Of rows of tokens, and of which of them exist: an id may be that of padding."""
    digests = np.zeros(len(tokens), np.uint64)
    for i, (row, existing) in enumerate(zip(tokens, exist, strict=True)):
        digests[i] = digest(row.tobytes() + existing.tobytes())
    return digests


def permutation(n: int, *seed: int) -> np.ndarray:
    """0 .. n-1 in an order that depends on `seed` alone.

    NumPy promises that a bit generator's raw stream never changes between versions; it makes no
    such promise for `Generator.permutation`, and a split that moved with NumPy's version would leak
    train into valid."""
    return np.argsort(random_bits(n, *seed), kind="stable")


def divided(order: np.ndarray, digests: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of `order` `[S]`, in its order, the first of `count` rows or a few less.

    Rows of equal digests are in the same part. Where none is repeated the first part is the first
    `count` rows. A part is empty only where all rows are equal.

    Args:
      order: rows.
      digests: of each of these rows, `[S]`.
      count: of the rows of the first part, below S.
    """
    _, first, group, sizes = np.unique(
        digests, return_index=True, return_inverse=True, return_counts=True
    )
    if len(sizes) == len(order):
        return order[:count], order[count:]
    chosen = np.zeros(len(sizes), bool)
    remaining = count
    # In the order of their first rows, which is random: the first part is a fair sample.
    for i in np.argsort(first).tolist():
        if sizes[i] <= remaining:
            chosen[i] = True
            remaining -= int(sizes[i])
    if not chosen.any() and len(sizes) > 1:
        chosen[sizes.argmin()] = True  # more than `count` rows, but not none
    in_first = chosen[group]
    return order[in_first], order[~in_first]


def random_bits(n: int, *seed: int) -> np.ndarray:
    """`[n]` uniform uint64."""
    # PCG64 would raise an error of its own for a negative seed.
    if min(seed, default=0) < 0:
        raise InputError(f"seed {min(seed)} is negative. Use a seed of at least 0.")
    return np.random.PCG64(seed).random_raw(n)
