"""Multi-query associative recall (Arora et al. 2023, Zoology, 2312.04927).

Pairs of a key and a value, then keys again, among other tokens; what follows a key must be its
value. Causal attention solves it in two layers (or in one that also sees the token before), a
recurrence only as far as its state is large."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.splits import Batch, Split
from dartformer.errors import InputError
from dartformer.tasks import generated, simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws
from dartformer.tasks.requirements import require_at_least, require_ids


@dataclass(frozen=True, kw_only=True)
class Recall:
    """`pairs` keys with their values, then each key once more, somewhere in the other tokens.

    A key comes again near the start with a probability like position^(power - 1); the remaining
    tokens of the `length` are none of the example's keys. The label of a key's second place is its
    value; no other token has a label.

    Attributes:
      length: tokens of an example.
      pairs: keys of an example, each with its value.
      keys: different keys; there are as many values.
      power: how near the start keys come again; the smaller, the nearer.
      train: number of training examples.
      valid: number of validation examples.
      test: number of test examples.
      endless: draw new training examples without end, so that none is seen twice.
      seed: of the examples.
    """

    length: int = 64
    pairs: int = 4
    keys: int = 32
    power: float = 0.01
    train: int = 20_000
    valid: int = 500
    test: int = 1_000
    endless: bool = False
    seed: int = 0

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Recall the value that followed a key (multi-query, causal, generated)",
        paper="Arora et al. 2023 (Zoology), 2312.04927",
        causal=True,
        per_token=True,
    )

    def __post_init__(self) -> None:
        require_at_least(self, pairs=1, keys=2, train=1, valid=1, test=1, seed=0)
        if self.pairs >= self.keys:
            raise InputError(f"task.pairs must be below task.keys = {self.keys}, got {self.pairs}.")
        if self.length < 4 * self.pairs:
            raise InputError(
                f"task.length must be at least 4 * pairs = {4 * self.pairs}, got {self.length}."
            )
        if not self.power > 0:
            raise InputError(f"task.power must be above 0, got {self.power}.")

    @property
    def vocabulary(self) -> int:
        """Padding, keys, values."""
        return 1 + 2 * self.keys

    @property
    def classes(self) -> int:
        """The values."""
        return self.keys

    @property
    def symbols(self) -> tuple[str, ...]:
        """The text of every token id."""
        return ("", *generated.numbered("k", self.keys), *generated.numbered("v", self.keys))

    @property
    def labels(self) -> tuple[str, ...]:
        """v0, v1, ..."""
        return self.symbols[1 + self.keys :]

    def encode(self, text: str) -> list[int]:
        """Token ids of symbols separated by spaces.

        Raises `InputError` for an unknown symbol, none, or too many."""
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        symbols = text.split()
        for symbol in symbols:
            if symbol not in ids:
                last = self.keys - 1
                raise InputError(
                    f"unknown symbol of recall {symbol!r}. Known: k0 to k{last}, v0 to v{last}."
                )
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

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of the options and its number alone."""
        pairs, key_count = self.pairs, self.keys
        places = (self.length - 2 * pairs) // 2
        sizes = [key_count, key_count, places, self.length]
        bits = draws(self.seed, indices, sum(sizes))
        key_bits, value_bits, place_bits, filler_bits = np.split(bits, np.cumsum(sizes[:3]), axis=1)

        # Random numbers in order give a random permutation: the first keys of it all differ.
        order = np.argsort(key_bits, axis=1, kind="stable")
        keys, unused_keys = order[:, :pairs], order[:, pairs:]
        values = below(key_count, value_bits[:, :pairs])
        place = self._places(place_bits)

        # Filler is drawn from all values and the keys that the example does not use.
        filler = below(2 * key_count - pairs, filler_bits)
        unused = np.take_along_axis(unused_keys, np.maximum(filler - key_count, 0), 1)
        tokens = np.where(filler < key_count, 1 + key_count + filler, 1 + unused)

        tokens[:, 0 : 2 * pairs : 2] = 1 + keys
        tokens[:, 1 : 2 * pairs : 2] = 1 + key_count + values
        np.put_along_axis(tokens, place, 1 + keys, 1)
        np.put_along_axis(tokens, place + 1, 1 + key_count + values, 1)
        # Only a key that comes again has a label: its value is known from the first place.
        label = np.full_like(tokens, -1)
        np.put_along_axis(label, place, values, 1)
        return batch_of(tokens, label)

    def _places(self, bits: np.ndarray) -> np.ndarray:
        """`[B, pairs]` positions of the keys' second places, of draws `[B, places]`."""
        # Places without repetition, by weight: the largest of u^(1/w) (Efraimidis and Spirakis
        # 2006), in logarithms.
        weight = np.arange(1, bits.shape[1] + 1, dtype=np.float64) ** (self.power - 1)
        uniform = (bits.astype(np.float64) + 1) / 2.0**64  # above 0, for the logarithm
        score = np.log(uniform) / weight
        chosen = np.argsort(-score, axis=1, kind="stable")[:, : self.pairs]
        return 2 * self.pairs + 2 * chosen  # every place has room for a key and its value

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`own_token`: the value that most often followed a key in train."""
        return {"own_token": simple.own_token(train, split, self.vocabulary, self.classes)}
