"""What generated tasks over named tokens share: their sizes, their texts and their splits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from dartformer.data.splits import Batch, Split
from dartformer.errors import InputError
from dartformer.tasks import generated, simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.requirements import require_at_least, require_ids, require_seed

REPEATED = 0.01
"""Most examples of valid and test that train may be expected to hold by chance."""


class Counted(Protocol):
    """A task with numbers of examples."""

    @property
    def train(self) -> int:
        """Training examples."""
        ...

    @property
    def valid(self) -> int:
        """Validation examples."""
        ...

    @property
    def test(self) -> int:
        """Test examples."""
        ...


@dataclass(frozen=True, kw_only=True)
class SymbolTask(ABC):
    """Generated examples of named tokens, some of which have a label.

    Attributes:
      length: tokens of an example.
      train: number of training examples; with `endless`, what the simple rules are fitted on.
      valid: number of validation examples.
      test: number of test examples.
      endless: draw new training examples without end, so that none is seen twice.
      seed: of the examples.
    """

    length: int = 64
    train: int = 12_800
    valid: int = 500
    test: int = 1_280
    endless: bool = False
    seed: int = 0

    traits: ClassVar[TaskTraits]

    @property
    @abstractmethod
    def symbols(self) -> tuple[str, ...]:
        """The text of every token id; 0 is padding."""

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The names of the classes."""

    @abstractmethod
    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of the options and its number alone."""

    @property
    def vocabulary(self) -> int:
        """Token ids, with padding."""
        return len(self.symbols)

    @property
    def classes(self) -> int:
        """The labels."""
        return len(self.labels)

    def encode(self, text: str) -> list[int]:
        """Token ids of symbols separated by spaces.

        Raises `InputError` for an unknown symbol, none, or too many."""
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        del ids[""]  # padding is not a symbol
        symbols = text.split()
        for symbol in symbols:
            if symbol not in ids:
                raise InputError(f"unknown symbol {symbol!r}. Known: {_listed(self.symbols[1:])}.")
        if not 0 < len(symbols) <= self.length:
            raise InputError(
                f"the text has {len(symbols)} symbols; 1 to {self.length} are allowed."
            )
        return [ids[symbol] for symbol in symbols]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without padding; `InputError` for an id beyond the vocabulary."""
        require_ids(ids, self.vocabulary)
        return generated.spelled(ids, self.symbols)

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", generated in memory; `data_dir` is not used."""
        numbers = generated.numbers(self.test, self.valid, self.train)
        tokens = np.min_scalar_type(self.vocabulary)
        return generated.splits(self.examples, numbers, self.endless, tokens, np.int16)

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`own_token`: the most frequent label of `train` given the token itself."""
        return {"own_token": simple.own_token(train, split, self.vocabulary, self.classes)}

    def require_counts(self) -> None:
        """Raise `InputError` for a number of examples or a seed that does not exist."""
        require_at_least(self, train=1, valid=1, test=1)
        require_seed(self)


def require_different(task: Counted, bits: float) -> None:
    """Raise `InputError` where train would hold examples of valid and test by chance.

    Args:
      task: has the options `train`, `valid` and `test`.
      bits: the examples have at least 2^bits sequences, all about as likely.
    """
    # Numbers are drawn independently, so nothing but the size of the space keeps them apart.
    pairs = float(task.train) * (task.valid + task.test)
    if np.log2(pairs) - bits > np.log2(REPEATED):
        raise InputError(
            f"these options leave about 2^{bits:.0f} different examples, so train could share some "
            f"with valid and test. Use a larger task.length, more symbols or fewer examples."
        )


def _listed(symbols: Sequence[str]) -> str:
    """A few symbols of a long alphabet."""
    if len(symbols) > 20:
        return f"{', '.join(symbols[:10])}, ..., {', '.join(symbols[-5:])}"
    return ", ".join(symbols)


def distinct(count: int, bits: np.ndarray) -> np.ndarray:
    """`[..., M]` numbers below `count` that differ along the last axis, of draws `[..., M]`.

    Every ordered choice is equally likely. The draws are read from left to right, so that a shorter
    choice is the start of a longer one."""
    chosen = np.empty(bits.shape, np.int64)
    for j in range(bits.shape[-1]):
        # A number among those left is moved up past each smaller one that is taken already.
        number = generated.below(count - j, bits[..., j])
        earlier = np.sort(chosen[..., :j], axis=-1)
        for i in range(j):
            number += number >= earlier[..., i]
        chosen[..., j] = number
    return chosen
