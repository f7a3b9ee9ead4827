"""Which rows of the user's data are in which split."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dartformer.data.rows import PARTS, among, digest
from dartformer.data.splits import divided, permutation

NO_GROUP = 0
"""The digest of rows that belong to no group."""

SHARED_GROUP = "of a group that a later split has"
"""What rows are called that are left out because of their group."""


class Rows(NamedTuple):
    """The rows of a split: a source, and positions `[S]` among its rows."""

    source: str
    positions: np.ndarray


def group_digest(name: str) -> int:
    """64 bits that stand for a group; "" is none."""
    if not name:
        return NO_GROUP
    return digest([name])


def group_numbers(digests: np.ndarray) -> np.ndarray | None:
    """`[S]` numbers of groups from their digests, -1 for a row on its own; None where all are."""
    if (digests == NO_GROUP).all():
        return None
    _, numbers = np.unique(digests, return_inverse=True)
    return np.where(digests == NO_GROUP, -1, numbers)


def division(
    groups: Mapping[str, np.ndarray], fractions: Mapping[str, float], seed: int
) -> dict[str, Rows]:
    """The rows of each split; what the data lack is cut out of train, by `seed`.

    Rows of a group are in one split.

    Args:
      groups: of each source "train", and "valid" and "test" where the data have them, the digests of
        the groups of its rows, `[S]`; all `NO_GROUP` where rows are on their own.
      fractions: the shares of train that become splits, the first to be cut out first.
      seed: of the order in which rows are drawn.
    """
    rows = {}
    for name, digests in groups.items():
        rows[name] = Rows(name, np.arange(len(digests)))
    digests = groups["train"]
    order = permutation(len(digests), seed)
    grouped = bool((digests != NO_GROUP).any())
    for part, fraction in fractions.items():
        if part in rows:
            continue
        count = max(1, round(fraction * len(digests)))
        if grouped:
            drawn, order = divided(order, digests[order], min(count, len(order) - 1))
        else:
            drawn, order = order[:count], order[count:]
        # In the order of the source, which is read from start to end.
        rows[part] = Rows("train", np.sort(drawn))
    rows["train"] = Rows("train", np.sort(order))
    return rows


def without_shared_groups(
    rows: Mapping[str, Rows], groups: Mapping[str, np.ndarray]
) -> tuple[dict[str, Rows], dict[str, int]]:
    """The rows of each split without those whose group a later split has; how many these are."""
    kept: dict[str, Rows] = {}
    shared = {}
    later = np.zeros(0, np.uint64)
    for part in reversed(PARTS):
        source, positions = rows[part]
        digests = groups[source][positions]
        leaks = among(digests, later) & (digests != NO_GROUP)
        kept[part] = Rows(source, positions[~leaks])
        shared[part] = int(leaks.sum())
        later = np.unique(np.concatenate([later, digests]))
    return kept, shared
