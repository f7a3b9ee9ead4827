"""Generated examples: each a function of the options and its own number alone."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from dartformer.data.splits import ArraySplit, Batch, Endless, Split
from dartformer.errors import InputError
from dartformer.machine import memory

PIECE = 1024
"""Examples that are generated at once: what they are made of takes far more memory than they do."""


def numbers(test: int, valid: int, train: int) -> dict[str, range]:
    """The numbers of the examples of each split.

    Test comes first: another number of examples to train on leaves valid and test as they were."""
    return {
        "test": range(test),
        "valid": range(test, test + valid),
        "train": range(test + valid, test + valid + train),
    }


def splits(
    examples: Callable[[np.ndarray], Batch],
    ranges: Mapping[str, range],
    endless: bool,
    tokens: DTypeLike,
    labels: DTypeLike,
) -> dict[str, Split]:
    """The splits of a task whose examples all have the full length.

    Args:
      examples: numbers `[B]` to their examples.
      ranges: the numbers of each split.
      endless: train generates its examples as they are taken, and never ends.
      tokens, labels: the types in which examples are kept in memory.
    """
    by_name: dict[str, Split] = {}
    for name, part in ranges.items():
        if name == "train" and endless:
            by_name[name] = Endless(examples, len(part), part.start)
            continue
        token_rows, label_rows = [], []
        for start in range(part.start, part.stop, PIECE):
            batch = examples(np.arange(start, min(start + PIECE, part.stop)))
            token_rows.append(batch["tokens"].astype(tokens))
            label_rows.append(batch["label"].astype(labels))
        ids = np.concatenate(token_rows)
        lengths = np.full(len(ids), ids.shape[1], np.int32)  # no padding
        by_name[name] = ArraySplit(ids, lengths, np.concatenate(label_rows))
    return by_name


def batch_of(tokens: np.ndarray, label: np.ndarray) -> Batch:
    """A `Batch` of tokens `[B, N]` without padding and their labels."""
    return {
        "tokens": tokens.astype(np.int32),
        "valid": np.ones(tokens.shape, bool),
        "label": label.astype(np.int32),
    }


MOST_NAMES = 2**20
"""Symbols of a letter: a larger vocabulary than any in use."""

NAME_BYTES = 64
"""Memory of the text of a symbol."""


def numbered(letter: str, count: int) -> list[str]:
    """The symbols k0, k1, ... of a letter; `InputError` for more than `MOST_NAMES`."""
    # Here, because whatever counts or names the tokens of a task comes by.
    if count > MOST_NAMES:
        raise InputError(
            f"the options of the task make {count:,} tokens {letter}0, {letter}1 and so on, and "
            f"dartformer supports at most {MOST_NAMES:,}. Their names alone would take "
            f"{memory.in_units(NAME_BYTES * count)}. Lower the options of the task."
        )
    return [f"{letter}{i}" for i in range(count)]


def spelled(ids: Sequence[int], symbols: Sequence[str]) -> str:
    """The text of token ids, without padding, which has id 0."""
    return " ".join(symbols[i] for i in ids if i)


def draws(seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """`[B, count]` uniform uint64, row b a function of (seed, indices[b]) alone.

    SplitMix64 (Steele et al. 2014), whose n-th number needs no number before it, so that any
    example can be generated at any time; NumPy's generators promise neither that nor the same
    numbers in every version."""
    return draws_at(seed, indices, np.arange(count))


def draws_at(seed: int, indices: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The draws of some `places` alone, `[count]` for all rows or `[B, count]`, as if of all."""
    golden = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio; sums wrap around
    stream = _mix(np.array([seed], np.uint64) + golden)
    start = _mix(stream + golden * indices.astype(np.uint64))
    return _mix(start[:, None] + golden * (places.astype(np.uint64) + np.uint64(1)))


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def below(n: int, bits: np.ndarray) -> np.ndarray:
    """Uniform int64 in [0, n) from uniform uint64."""
    # A product and a shift in place of a remainder; the bias is below n / 2^32 (Lemire 2019,
    # arXiv:1805.10941).
    return (bits >> np.uint64(32)).astype(np.int64) * n >> 32
