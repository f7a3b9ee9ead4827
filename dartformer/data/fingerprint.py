"""Fingerprints of examples, to notice that the data changed between two stages."""

import hashlib
from collections.abc import Iterable

import numpy as np

from dartformer.data import shuffle
from dartformer.data.splits import Endless, Split, Subset, in_order
from dartformer.machine.identity import LETTERS

SAMPLED = 64
"""Examples of an endless split that stand for all of them."""

OF_LARGE = 2**16
"""Examples, evenly spaced, that stand for all of a large split."""


def fingerprint(splits: Iterable[Split]) -> str:
    """Of the examples of some splits in their order."""
    digest = hashlib.blake2b()
    for split in splits:
        if isinstance(split, Endless):
            batches = iter([split.take(np.arange(SAMPLED))])
        elif len(split) > shuffle.LARGE:
            # Hashing all of them would take minutes at each start.
            batches = in_order(Subset(split, np.linspace(0, len(split) - 1, OF_LARGE, dtype=int)))
        else:
            batches = in_order(split)
        # The count marks where a split ends: examples that move to the next split are noticed.
        digest.update(f"{len(split)} examples".encode())
        for batch in batches:
            for name in ("tokens", "valid", "label"):
                digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()[:LETTERS]
