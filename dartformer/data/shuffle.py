"""A shuffle without memory: what is at a place of the order is computed, and not looked up."""

import numpy as np

from dartformer.data.splits import random_bits

LARGE = 10**6
"""Rows above which a split is shuffled, divided and compared without an array of all its rows."""

ROUNDS = 6
"""Rounds of the network; four make a random function a random permutation (Luby and Rackoff 1988)."""


def shuffled(places: np.ndarray, n: int, *seed: int) -> np.ndarray:
    """The rows `[B]` int64 at `places` `[B]` of an order of 0 .. n-1 that depends on `seed` alone.

    A Feistel network permutes the numbers of the smallest even count of bits that holds n. A number
    of n or above is permuted again until it is below ("cycle walking": Black and Rogaway 2002,
    Ciphers with Arbitrary Finite Domains), which takes fewer than four passes on average.
    """
    half = max(1, (int(n - 1).bit_length() + 1) // 2)
    keys = random_bits(ROUNDS, *seed)
    rows = _permuted(np.asarray(places).astype(np.uint64), half, keys)
    while (outside := rows >= n).any():
        rows[outside] = _permuted(rows[outside], half, keys)
    return rows.astype(np.int64)


def _permuted(numbers: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of the numbers of 2 * `half` bits, `[B]` uint64."""
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (mixed(right + key) & mask)
    return (left << shift) | right


def mixed(bits: np.ndarray) -> np.ndarray:
    """uint64 numbers whose every bit depends on all bits of `bits` (splitmix64's last steps)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
