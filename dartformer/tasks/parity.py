"""Parity: is the number of ones odd?

Arora et al. 2023 (Zoology, arXiv:2312.04927): `circuits.py` of the authors' code."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.splits import Batch
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws
from dartformer.tasks.requirements import require_at_least
from dartformer.tasks.symbols import SymbolTask, require_different

END = "="


@dataclass(frozen=True, kw_only=True)
class Parity(SymbolTask):
    """Random bits, with the parity of all bits so far as the label of each.

    Without `cumulative` the last token is an equals sign, and it alone has a label: the parity of
    all bits before it. The authors' code has both; its examples of 16 or fewer bits, which train
    and test share, are refused here unless train is small.

    Attributes:
      cumulative: every bit has a label, and not only the end.
    """

    length: int = 64
    cumulative: bool = True

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Is the number of ones so far odd? (causal, generated)",
        paper="Arora et al. 2023 (Zoology), 2312.04927",
        causal=True,
        per_token=True,
        generated=True,
    )

    def __post_init__(self) -> None:
        self.require_counts()
        require_at_least(self, length=2)
        require_different(self, self._bits)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Padding, the bits and, where only the end has a label, the equals sign."""
        if self.cumulative:
            return ("", "0", "1")
        return ("", "0", "1", END)

    @property
    def labels(self) -> tuple[str, ...]:
        """Even and odd."""
        return ("even", "odd")

    @property
    def _bits(self) -> int:
        """Bits of an example."""
        if self.cumulative:
            return self.length
        return self.length - 1

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of the options and its number alone."""
        bits = below(2, draws(self.seed, indices, self._bits))
        parity = np.cumsum(bits, axis=1) % 2
        if self.cumulative:
            return batch_of(1 + bits, parity)
        end = self._bits
        tokens = np.full((len(bits), self.length), 3)
        tokens[:, :end] = 1 + bits
        label = np.full_like(tokens, -1)
        label[:, end] = parity[:, -1]
        return batch_of(tokens, label)
