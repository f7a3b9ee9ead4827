"""Fingerprints of examples: of all, to notice that the data changed, and of each, to find repeats."""

import hashlib
from collections.abc import Iterable

import numpy as np

from dartformer.data.rows import digest
from dartformer.data.splits import ArraySplit, Endless, Split, Subset, in_order
from dartformer.machine.identity import LETTERS

SAMPLED = 64
"""Examples of an endless split that stand for all of them."""


def fingerprint(splits: Iterable[Split]) -> str:
    """Of the examples of some splits in their order."""
    digest = hashlib.blake2b()
    for split in splits:
        if isinstance(split, Endless):
            batches = iter([split.take(np.arange(SAMPLED))])
        else:
            batches = in_order(split)
        # The count marks where a split ends: examples that move to the next split are noticed.
        digest.update(f"{len(split)} examples".encode())
        for batch in batches:
            for name in ("tokens", "valid", "label"):
                digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()[:LETTERS]


def row_digests(split: Split) -> np.ndarray:
    """`[S]` 64 bits that stand for what the model reads of each example; labels do not count."""
    if isinstance(split, Subset):
        return row_digests(split.split)[split.indices]
    if isinstance(split, ArraySplit):
        # As it is kept, which is several times smaller than as it is taken.
        return _digests(split.tokens, split.lengths)
    digests = []
    for batch in in_order(split):
        digests.append(_digests(batch["tokens"], batch["valid"]))
    return np.concatenate(digests)


def _digests(tokens: np.ndarray, exist: np.ndarray) -> np.ndarray:
    """Of rows of tokens, and of which of them exist: an id may be that of padding."""
    digests = np.zeros(len(tokens), np.uint64)
    for i, (row, existing) in enumerate(zip(tokens, exist, strict=True)):
        digests[i] = digest(row.tobytes() + existing.tobytes())
    return digests
