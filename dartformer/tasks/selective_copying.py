"""Selective copying: write down the letters of a text that is mostly blanks, in their order.

Poli et al. 2024 (MAD, arXiv:2403.17844), section 3.1 and appendix B, with the settings of the
authors' code; first in Gu and Dao 2023 (Mamba, arXiv:2312.00752)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.splits import Batch
from dartformer.errors import InputError
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws, numbered
from dartformer.tasks.requirements import require_at_least
from dartformer.tasks.symbols import SymbolTask, require_different

BLANK, COPY = "_", ">"


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(SymbolTask):
    """Letters among blanks, then a sign, then a blank for each letter, whose label is that letter.

    The letters are at random places before the sign, all of which are equally likely. In the
    authors' code the last place before the sign always holds a letter. A longer example has more
    blanks and as many letters.

    Attributes:
      copies: letters of an example, each of which is to be copied.
      letters: different letters.
    """

    length: int = 256
    copies: int = 16
    letters: int = 14

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Copy the letters among blanks, in their order (causal, generated)",
        paper="Poli et al. 2024 (MAD), 2403.17844; Gu and Dao 2023 (Mamba), 2312.00752",
        causal=True,
        per_token=True,
        generated=True,
    )

    def __post_init__(self) -> None:
        self.require_counts()
        require_at_least(self, copies=1, letters=2)
        least = 2 * self.copies + 1
        if self.length < least:
            raise InputError(
                f"task.length must be at least 2 * copies + 1 = {least}, got {self.length}."
            )
        ways = math.comb(self._places, self.copies)
        require_different(self, math.log2(ways) + self.copies * math.log2(self.letters))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Padding, the letters, the blank and the sign to copy."""
        return ("", *numbered("a", self.letters), BLANK, COPY)

    @property
    def labels(self) -> tuple[str, ...]:
        """a0, a1, ..."""
        return self.symbols[1 : 1 + self.letters]

    @property
    def _places(self) -> int:
        """Places before the sign."""
        return self.length - self.copies - 1

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of the options and its number alone."""
        bits = draws(self.seed, indices, self.copies + self._places)
        letter_bits, place_bits = bits[:, : self.copies], bits[:, self.copies :]
        letters = below(self.letters, letter_bits)
        # Random numbers in order give a random permutation: its start are places that differ.
        order = np.argsort(place_bits, axis=1, kind="stable")
        places = np.sort(order[:, : self.copies], axis=1)

        blank, sign = 1 + self.letters, 2 + self.letters
        tokens = np.full((len(indices), self.length), blank)
        np.put_along_axis(tokens, places, 1 + letters, 1)
        tokens[:, self._places] = sign
        label = np.full_like(tokens, -1)
        label[:, self._places + 1 :] = letters
        return batch_of(tokens, label)
