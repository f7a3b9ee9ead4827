"""Splits of more rows than are looked at together: parts and samples of them, chunk by chunk."""

from collections.abc import Sequence

import numpy as np

from dartformer.data import shuffle
from dartformer.data.shuffle import mixed, shuffled
from dartformer.data.splits import Batch, Endless, Split, Subset, in_order, random_bits, row_groups

CHUNK = 4096
"""Rows that are read at once."""


def is_large(split: Split) -> bool:
    """Whether a split is shuffled, divided and compared without an array of all its rows.

    Rows in groups are few: their groups are kept for each row."""
    return (
        not isinstance(split, Endless) and len(split) > shuffle.LARGE and row_groups(split) is None
    )


def limited(split: Split, limit: int, *seed: int) -> Split:
    """`limit` rows of a split, which depend on `seed` alone; all of them where it is 0 or more."""
    if not limit or limit >= len(split) or isinstance(split, Endless):
        return split
    rows = shuffled(np.arange(limit), len(split), *seed)
    # In the order of the split, which reads faster where it is mapped.
    return Subset(split, np.sort(rows))


def drawn(split: Split, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """The rows of each part of a split, `[S]` each in the smallest type that holds them.

    Each row is drawn into a part by what the model reads of it, so rows of which it reads the same
    are in the same part. A part of `shares`, which add up to 1, has about that share of the rows."""
    edges = np.array(np.cumsum(shares)[:-1] * 2.0**64, np.uint64)
    dtype = np.min_scalar_type(len(split))
    chunks: list[list[np.ndarray]] = [[] for _ in shares]
    start = 0
    for batch in in_order(split, CHUNK):
        part = np.searchsorted(edges, row_bits(batch, seed), side="right")
        for number, rows in enumerate(chunks):
            rows.append((start + np.flatnonzero(part == number)).astype(dtype))
        start += len(part)
    return [np.concatenate(rows) for rows in chunks]


def row_bits(batch: Batch, seed: int) -> np.ndarray:
    """`[B]` uniform uint64 that are functions of the tokens of each row and of `seed`.

    A sum of products modulo 2^64, as its inputs are 32 bits (Carter and Wegman 1979); two rows that
    differ share the upper half of it by a chance of 2^-32."""
    count = len(batch["valid"])
    tokens = np.ascontiguousarray(batch["tokens"]).view(np.uint32).reshape(count, -1)
    exist = batch["valid"].reshape(count, -1)
    factors = random_bits(tokens.shape[1] + exist.shape[1], seed)
    of_tokens, of_valid = np.split(factors, [tokens.shape[1]])
    return mixed(tokens.astype(np.uint64) @ of_tokens + exist.astype(np.uint64) @ of_valid)
