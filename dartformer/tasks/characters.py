"""Characters behind the labels of language models, whatever their tokens are.

A score is per character of the text. A byte counts where it begins a character of UTF-8. An unknown
character costs what it takes to spell it as well: an even choice among all of Unicode, so that a
small vocabulary never scores better for not knowing.
"""

from typing import TypeVar

import numpy as np
from jax import Array

A = TypeVar("A", Array, np.ndarray)

UNKNOWN = 1
"""The id of every character outside the vocabulary, for tokens that are characters."""

SPELLING = float(np.log(0x110000 - 0x800))
"""Nats to spell a character: of the code points all but surrogates, which no text has."""


def begins_character(labels: A, tokens: str) -> A:
    """Whether each label counts as a character: bool, False where there is no label (below 0)."""
    labelled = labels >= 0
    if tokens != "bytes":
        return labelled
    byte = labels - 1  # id 0 is padding
    # 10xxxxxx continues a character of UTF-8.
    continues = (byte >= 0x80) & (byte < 0xC0)
    return labelled & ~continues


def spelling(labels: A, tokens: str) -> A:
    """Nats that each label costs beside its own: those of unknown characters, 0 otherwise."""
    if tokens != "characters":
        return labels * 0.0
    return (labels == UNKNOWN) * SPELLING
