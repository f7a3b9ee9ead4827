"""Multi-query associative recall (Arora et al. 2023, Zoology, 2312.04927).

Pairs of a key and a value, then keys again, among other tokens; what follows a key must be its
value. Causal attention solves it in two layers (or in one that also sees the token before), a
recurrence only as far as its state is large."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from dartformer.data.splits import Batch, Split, in_order
from dartformer.errors import InputError
from dartformer.tasks import generated, simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws
from dartformer.tasks.requirements import require_at_least, require_ids, require_seed
from dartformer.tasks.symbols import require_different


@dataclass(frozen=True, kw_only=True)
class Recall:
    """`pairs` keys with their values, then each key once more, somewhere in the other tokens.

    A key comes again near the start with a probability like position^(power - 1); the remaining
    tokens of the `length` are none of the example's keys. The label of a key's second place is its
    value; no other token has a label. After the pairs, `updates` of the keys come with another
    value, which is from then on theirs (Zoology's `forgetting_mqar.py`, where the new value of a key
    may be its first one).

    Attributes:
      length: tokens of an example.
      pairs: keys of an example, each with its value.
      updates: keys that get a new value before they come again.
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
    updates: int = 0
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
        generated=True,
    )

    def __post_init__(self) -> None:
        require_at_least(self, pairs=1, updates=0, keys=2, train=1, valid=1, test=1)
        require_seed(self)
        if self.pairs >= self.keys:
            raise InputError(f"task.pairs must be below task.keys = {self.keys}, got {self.pairs}.")
        if self.updates > self.pairs:
            raise InputError(
                f"task.updates must be at most task.pairs = {self.pairs}, got {self.updates}."
            )
        if self.length < self._context + 2 * self.pairs:
            needed = f"4 * pairs = {4 * self.pairs}"
            if self.updates:
                least = self._context + 2 * self.pairs
                needed = f"4 * pairs + 2 * updates = {least}"
            raise InputError(f"task.length must be at least {needed}, got {self.length}.")
        if not self.power > 0:
            raise InputError(f"task.power must be above 0, got {self.power}.")

    @property
    def vocabulary(self) -> int:
        """Padding, keys, values."""
        return 1 + 2 * self.keys

    @property
    def _context(self) -> int:
        """Tokens before keys come again."""
        return 2 * (self.pairs + self.updates)

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
        places = (self.length - self._context) // 2
        sizes = [key_count, key_count, places, self.length, pairs, pairs]
        bits = draws(self.seed, indices, sum(sizes))
        parts = np.split(bits, np.cumsum(sizes[:-1]), axis=1)
        key_bits, value_bits, place_bits, filler_bits, update_bits, new_bits = parts

        # Random numbers in order give a random permutation: the first keys of it all differ.
        order = np.argsort(key_bits, axis=1, kind="stable")
        keys, unused_keys = order[:, :pairs], order[:, pairs:]
        values = below(key_count, value_bits[:, :pairs])
        # Every place has room for a key and its value.
        place = self._context + 2 * power_law_places(place_bits, pairs, self.power)

        tokens = self._filler(unused_keys, filler_bits)
        tokens[:, 0 : 2 * pairs : 2] = 1 + keys
        tokens[:, 1 : 2 * pairs : 2] = 1 + key_count + values
        # As above: which pairs are updated, in random order.
        updated = np.argsort(update_bits, axis=1, kind="stable")[:, : self.updates]
        values = self._updated(values, updated, new_bits)
        new_keys = np.take_along_axis(keys, updated, 1)
        tokens[:, 2 * pairs : self._context : 2] = 1 + new_keys
        new_values = np.take_along_axis(values, updated, 1)
        tokens[:, 2 * pairs + 1 : self._context : 2] = 1 + key_count + new_values
        np.put_along_axis(tokens, place, 1 + keys, 1)
        np.put_along_axis(tokens, place + 1, 1 + key_count + values, 1)
        # Only a key that comes again has a label: its value is known from the first place.
        label = np.full_like(tokens, -1)
        np.put_along_axis(label, place, values, 1)
        return batch_of(tokens, label)

    def _filler(self, unused_keys: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """`[B, N]` tokens from all values and the keys that an example does not use."""
        filler = below(2 * self.keys - self.pairs, bits)
        unused = np.take_along_axis(unused_keys, np.maximum(filler - self.keys, 0), 1)
        return np.where(filler < self.keys, 1 + self.keys + filler, 1 + unused)

    def _updated(self, values: np.ndarray, pairs: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """`[B, pairs]` the values after the updates of `pairs` `[B, updates]`, which all differ."""
        before = np.take_along_axis(values, pairs, 1)
        new = below(self.keys - 1, bits[:, : self.updates])
        new += new >= before  # any value but the one before
        values = values.copy()
        np.put_along_axis(values, pairs, new, 1)
        return values

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`own_token`: the value that most often followed a key in train.

        With updates also `first_value`: the first value that followed a key in the example."""
        rules = {"own_token": simple.own_token(train, split, self.vocabulary, self.classes)}
        if self.updates:
            rules["first_value"] = self._first_value(split)
        return rules

    def _first_value(self, split: Split) -> float:
        """Accuracy of a model that recalls and never forgets."""
        right = count = 0
        for batch in in_order(split):
            tokens, label = batch["tokens"], batch["label"]
            row, place = np.nonzero(label >= 0)
            pairs = tokens[row, : 2 * self.pairs]  # the pairs of each label's example
            is_key = pairs[:, 0::2] == tokens[row, place][:, None]
            answer = pairs[:, 1::2][is_key]  # each key is in one pair
            right += int((answer == 1 + self.keys + label[row, place]).sum())
            count += len(row)
        return right / count


def power_law_places(bits: np.ndarray, count: int, power: float) -> np.ndarray:
    """`[B, count]` different places, likely near the start, of draws `[B, places]`.

    Place i is drawn with a weight of (i + 1)^(power - 1)."""
    # Places without repetition, by weight: the largest of u^(1/w) (Efraimidis and Spirakis
    # 2006), in logarithms.
    weight = np.arange(1, bits.shape[1] + 1, dtype=np.float64) ** (power - 1)
    uniform = (bits.astype(np.float64) + 1) / 2.0**64  # above 0, for the logarithm
    score = np.log(uniform) / weight
    return np.argsort(-score, axis=1, kind="stable")[:, :count]


@dataclass(frozen=True, kw_only=True)
class UpdatedRecall(Recall):
    """`recall` where some keys get a new value, which is the right one from then on."""

    pairs: int = 8
    updates: int = 4

    traits: ClassVar[TaskTraits] = replace(
        Recall.traits,
        summary="Recall the last value that followed a key (causal, generated)",
        paper="Zoology, github.com/HazyResearch/zoology; Arora et al. 2023, 2312.04927",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = math.perm(self.keys, self.pairs) * self.keys**self.pairs
        updates = math.perm(self.pairs, self.updates) * (self.keys - 1) ** self.updates
        require_different(self, math.log2(pairs * updates))
