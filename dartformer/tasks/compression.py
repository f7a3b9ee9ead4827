"""Compression: all of a sequence in the vector of its last token.

Poli et al. 2024 (MAD, arXiv:2403.17844), section 3.1 and appendix B, with the settings of the
authors' code."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.splits import Batch, Split
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws, numbered
from dartformer.tasks.requirements import require_at_least
from dartformer.tasks.symbols import SymbolTask, require_different

END = ">"


@dataclass(frozen=True, kw_only=True)
class Compression(SymbolTask):
    """Random letters and a sign, from whose vector alone every letter must be read.

    A letter's label is the letter itself. The model reads it from the last token's vector and the
    letter's position (`model.pooling = "decode"`), with one hidden layer. The authors' code has two
    hidden layers, of the width of the model, and counts the sign among the letters.

    Attributes:
      letters: different letters.
    """

    length: int = 32
    letters: int = 15

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Put a whole sequence into one vector (causal, generated)",
        paper="Poli et al. 2024 (MAD), 2403.17844",
        causal=True,
        per_token=True,
        decoded=True,
        generated=True,
    )

    def __post_init__(self) -> None:
        self.require_counts()
        require_at_least(self, length=2, letters=2)
        require_different(self, (self.length - 1) * math.log2(self.letters))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Padding, the letters and the sign."""
        return ("", *numbered("a", self.letters), END)

    @property
    def labels(self) -> tuple[str, ...]:
        """a0, a1, ..."""
        return self.symbols[1 : 1 + self.letters]

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of the options and its number alone."""
        letters = below(self.letters, draws(self.seed, indices, self.length - 1))
        tokens = np.full((len(letters), self.length), 1 + self.letters)
        tokens[:, :-1] = 1 + letters
        label = np.full_like(tokens, -1)
        label[:, :-1] = letters
        return batch_of(tokens, label)

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """None but the majority: any rule that sees a token has its label."""
        return {}
