"""Memorization: a map from keys to values that is the same in every example and never given.

Poli et al. 2024 (MAD, arXiv:2403.17844), section 3.1 and appendix B, with the settings of the
authors' code."""

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

ASK = "?"

MAP = np.array([-1])
"""The number whose draws are the map: no example has it."""


@dataclass(frozen=True, kw_only=True)
class Memorization(SymbolTask):
    """Random keys, each with a question mark behind it, whose label is the value of the key.

    Each key has a value of its own, the same in all examples of a seed. Values are no tokens: the
    map must be learned by heart, as facts are. Examples of test differ from those of train in the
    order of their keys. In the authors' code the values count among the tokens, without occurring
    in an example.

    Attributes:
      keys: different keys; there are as many values.
    """

    length: int = 32
    keys: int = 127
    train: int = 256

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Learn a fixed map from keys to values by heart (causal, generated)",
        paper="Poli et al. 2024 (MAD), 2403.17844",
        causal=True,
        per_token=True,
        generated=True,
    )

    def __post_init__(self) -> None:
        self.require_counts()
        require_at_least(self, length=2, keys=2)
        if self.length % 2:
            raise InputError(f"task.length must be even, got {self.length}.")
        require_different(self, self.length // 2 * math.log2(self.keys))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Padding, the keys and the question mark."""
        return ("", *numbered("k", self.keys), ASK)

    @property
    def labels(self) -> tuple[str, ...]:
        """v0, v1, ..."""
        return tuple(numbered("v", self.keys))

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of the options and its number alone."""
        keys = below(self.keys, draws(self.seed, indices, self.length // 2))
        # Random numbers in order give a random permutation.
        value_of = np.argsort(draws(self.seed, MAP, self.keys)[0], kind="stable")
        tokens = np.empty((len(indices), self.length), np.int64)
        tokens[:, 0::2] = 1 + keys
        tokens[:, 1::2] = 1 + self.keys
        label = np.full_like(tokens, -1)
        label[:, 1::2] = value_of[keys]
        return batch_of(tokens, label)
