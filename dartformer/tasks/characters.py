"""Characters behind the labels of language models, whatever their tokens are.

A score is per character of the text. A byte counts where it begins a character of UTF-8, and a
token of several bytes as often as it does. An unknown character costs what it takes to spell it as
well: an even choice among all of Unicode, so that a small vocabulary never scores better for not
knowing.
"""

from dataclasses import dataclass
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

A = TypeVar("A", Array, np.ndarray)

UNKNOWN = 1
"""The id of every character outside the vocabulary, for tokens that are characters."""

SPELLING = float(np.log(0x110000 - 0x800))
"""Nats to spell a character: of the code points all but surrogates, which no text has."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """Tokens of several characters each, as those of a checkpoint.

    Attributes:
      characters: how many each token begins, `[C]`; 0 for one that ends a document.
    """

    characters: np.ndarray


Units = str | Pieces
"""What tokens are: "bytes", "characters", "" where each label is a character, or pieces."""


def characters_of(labels: A, tokens: Units) -> A:
    """How many characters each label begins; none where there is no label (below 0)."""
    labelled = labels >= 0
    if isinstance(tokens, Pieces):
        table: A = tokens.characters  # type: ignore[assignment]
        if not isinstance(labels, np.ndarray):
            table = jnp.asarray(tokens.characters)
        return table[labels * labelled] * labelled
    if tokens != "bytes":
        return labelled
    byte = labels - 1  # id 0 is padding
    # 10xxxxxx continues a character of UTF-8.
    continues = (byte >= 0x80) & (byte < 0xC0)
    return labelled & ~continues


def spelling(labels: A, tokens: Units) -> A:
    """Nats that each label costs beside its own: those of unknown characters, 0 otherwise."""
    if tokens != "characters":
        return labels * 0.0
    return (labels == UNKNOWN) * SPELLING
