"""Multi-query associative recall (Arora et al. 2023, Zoology, 2312.04927): pairs of a key and a
value, then keys again, among other tokens; what follows a key must be its value. Causal attention
solves it in two layers (or in one that also sees the token before), a recurrence only as far as its
state is large."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.splits import ArraySplit, Batch, Endless, Split
from dartformer.errors import InputError
from dartformer.tasks import simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.planted import below, draws


@dataclass(frozen=True, kw_only=True)
class Recall:
    """`pairs` keys with their values, then each key once more, somewhere in the rest of the
    `length` tokens: near the start with a probability like position^(power - 1), all else filled
    with tokens that are no keys of the example.

    There are `keys` keys and as many values. The label of a key's second place is its value, no
    other token has one. `train`, `valid` and `test` say how many examples, `seed` which; with
    `endless`, training never sees one twice."""

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
        summary="which value stood after this key? (multi-query associative recall, causal, generated)",
        paper="Arora et al. 2023 (Zoology), 2312.04927",
        causal=True,
        per_token=True,
    )

    def __post_init__(self) -> None:
        for name, least in {
            "pairs": 1,
            "keys": 2,
            "train": 1,
            "valid": 1,
            "test": 1,
            "seed": 0,
        }.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"task.{name} of recall must be at least {least}, got {getattr(self, name)}."
                )
        if self.pairs >= self.keys:
            raise InputError(
                f"task.pairs of recall must be below task.keys = {self.keys}, got {self.pairs}."
            )
        if self.length < 4 * self.pairs:
            raise InputError(
                f"task.length of recall must be at least 4 * pairs = {4 * self.pairs}, got {self.length}."
            )
        if not self.power > 0:
            raise InputError(f"task.power of recall must be above 0, got {self.power}.")

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
        return ("", *(f"k{i}" for i in range(self.keys)), *(f"v{i}" for i in range(self.keys)))

    @property
    def labels(self) -> tuple[str, ...]:
        """v0, v1, ..."""
        return self.symbols[1 + self.keys :]

    def encode(self, text: str) -> list[int]:
        """Token ids of symbols separated by spaces; `InputError` for an unknown one, none, or too
        many."""
        known = {symbol: i for i, symbol in enumerate(self.symbols)}
        found = text.split()
        for symbol in found:
            if symbol not in known:
                raise InputError(
                    f"unknown symbol of recall {symbol!r}: k0 to k{self.keys - 1} and v0 to "
                    f"v{self.keys - 1} are known."
                )
        if not 0 < len(found) <= self.length:
            raise InputError(f"the text has {len(found)} symbols; 1 to {self.length} are allowed.")
        return [known[symbol] for symbol in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, padding left out; `InputError` for an id beyond the vocabulary."""
        for i in ids:
            if not 0 <= i < self.vocabulary:
                raise InputError(f"token id {i} is not between 0 and {self.vocabulary - 1}.")
        return " ".join(self.symbols[i] for i in ids if i)

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", made in memory; `data_dir` is not used."""
        # One stream, test first: another number of examples to train on leaves valid and test as
        # they were.
        cut = {
            "test": (0, self.test),
            "valid": (self.test, self.valid),
            "train": (self.test + self.valid, self.train),
        }
        splits: dict[str, Split] = {}
        for name, (first, count) in cut.items():
            if name == "train" and self.endless:
                splits[name] = Endless(self.examples, count, first)
            else:
                made = self.examples(np.arange(first, first + count))
                splits[name] = ArraySplit(
                    made["tokens"].astype(np.min_scalar_type(self.vocabulary)),
                    np.full(count, self.length, np.int32),
                    made["label"].astype(np.int16),
                )
        return splits

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B], each a function of the options and its number
        alone."""
        n, pairs, places = self.length, self.pairs, (self.length - 2 * self.pairs) // 2
        drawn = draws(self.seed, indices, 2 * self.keys + places + n)
        order, values, where, filler = np.split(
            drawn, np.cumsum([self.keys, self.keys, places]), axis=1
        )
        order = np.argsort(order, axis=1, kind="stable")
        keys, others = order[:, :pairs], order[:, pairs:]
        value = below(self.keys, values[:, :pairs])
        # Places without repetition, by weight: the largest of u^(1/w) (Efraimidis and Spirakis
        # 2006).
        weight = np.arange(1, places + 1, dtype=np.float64) ** (self.power - 1)
        score = np.log((where.astype(np.float64) + 1) / 2.0**64) / weight
        place = 2 * pairs + 2 * np.argsort(-score, axis=1, kind="stable")[:, :pairs]
        pick = below(2 * self.keys - pairs, filler)
        tokens = np.where(
            pick < self.keys,
            1 + self.keys + pick,
            1 + np.take_along_axis(others, np.maximum(pick - self.keys, 0), 1),
        )
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = 1 + keys, 1 + self.keys + value
        label = np.full_like(tokens, -1)
        np.put_along_axis(tokens, place, 1 + keys, 1)
        np.put_along_axis(tokens, place + 1, 1 + self.keys + value, 1)
        np.put_along_axis(label, place, value, 1)
        return {
            "tokens": tokens.astype(np.int32),
            "valid": np.ones(tokens.shape, bool),
            "label": label.astype(np.int32),
        }

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`own_token`: the value that most often followed a key in train."""
        return {"own_token": simple.own_token(train, split, self.vocabulary, self.classes)}
