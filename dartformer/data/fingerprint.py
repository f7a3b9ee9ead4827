"""Fingerprints of examples, to notice that the data changed between two stages."""

import hashlib
from collections.abc import Iterable

import numpy as np

from dartformer.data.splits import Endless, Split, in_order
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
