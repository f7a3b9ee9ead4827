"""Planted answers: tiny generated tasks of which the right attention is known, to test a search
against the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.splits import ArraySplit, Batch, Endless, Split, in_order
from dartformer.errors import InputError, unknown
from dartformer.tasks.base import TaskTraits

KINDS = ("recall", "local", "strided", "global", "mix", "relay")

WINDOW, STRIDE = 4, 8
"""What `local` and `strided` labels depend on: tokens at most WINDOW away; tokens a multiple of
STRIDE away."""

LOCAL, STRIDED = f"local(window={WINDOW})", f"strided(stride={STRIDE})"

ANSWERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "recall": (("full",),),
    "local": ((LOCAL,),),
    "strided": ((STRIDED,),),
    "mix": ((LOCAL, STRIDED),),
    "relay": ((LOCAL,), (STRIDED,)),
}
"""The right attentions by layer, and by head where the heads of a layer must differ (in any order).
`global` has a set of them: whatever sees everything."""

VALUES = 8
LETTERS = "abcd"


@dataclass(frozen=True)
class Planted:
    """A label for every token (or for the queries only), right by construction for one kind of
    attention.

    `recall`: pairs of a key and a value, then keys alone; the label of those is the key's value.
    Needs `model.stem = "bigram"` where there is one layer. `local`: the most frequent letter at
    most 4 tokens away, of equals the first. `strided`: the same over every eighth token. `global`:
    over all. `mix`: even positions as in `local`, odd ones as in `strided`. `relay`, for two
    layers: the most frequent `local` label over every eighth token.

    Sequences have `length` tokens; `train`, `valid` and `test` say how many, `seed` which. With
    `endless`, training never sees an example twice, and `train` is how many the simple rules are
    fitted on."""

    kind: str = "recall"
    length: int = 64
    train: int = 8_000
    valid: int = 500
    test: int = 1_000
    endless: bool = False
    seed: int = 0

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="labels of tokens of which the right attention is known: recall, local, strided, global, mix, relay",
        paper="recall: Arora et al. 2023 (Zoology), 2312.04927; the others are this package's",
        per_token=True,
    )

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of planted task", self.kind, KINDS)
        for name, least in {"train": 1, "valid": 1, "test": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"planted {name} is {getattr(self, name)}; it must be at least {least}."
                )
        # Below 32 tokens two examples could be alike, and a part of the data be another's.
        if self.length < 32 or self.length % 4:
            raise InputError(
                f"planted length is {self.length}; it must be a multiple of 4 and at least 32."
            )

    @property
    def symbols(self) -> tuple[str, ...]:
        """The text of every token id; 0 is padding."""
        if self.kind == "recall":
            return ("", *(f"k{i}" for i in range(self.keys)), *(f"v{i}" for i in range(VALUES)))
        return ("", *LETTERS)

    @property
    def pairs(self) -> int:
        """Of `recall`: half of the tokens are pairs, half are queries."""
        return self.length // 4

    @property
    def keys(self) -> int:
        """Of `recall`: how many keys there are, half as many again as a sequence shows."""
        return 3 * self.pairs // 2

    @property
    def vocabulary(self) -> int:
        """Token ids, with padding."""
        return len(self.symbols)

    @property
    def classes(self) -> int:
        """Values or letters."""
        return len(self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Values or letters as text."""
        return self.symbols[1 + self.keys :] if self.kind == "recall" else self.symbols[1:]

    def found(self, genotype: Sequence[Sequence[str]]) -> bool:
        """Whether a genotype, the spec of each head of each layer, is the planted answer (for
        `global`, one)."""
        if self.kind == "global":
            return all(
                spec not in (LOCAL, STRIDED, "identity") for heads in genotype for spec in heads
            )
        return [sorted(set(heads)) for heads in genotype] == [
            sorted(heads) for heads in ANSWERS[self.kind]
        ]

    def encode(self, text: str) -> list[int]:
        """Token ids of symbols separated by spaces; `InputError` for an unknown one, none, or too
        many."""
        found = text.split()
        for symbol in found:
            if symbol not in self.symbols:
                raise unknown(f"symbol of the planted task {self.kind}", symbol, self.symbols[1:])
        if not 0 < len(found) <= self.length:
            raise InputError(f"the text has {len(found)} symbols; 1 to {self.length} are allowed.")
        return [self.symbols.index(symbol) for symbol in found]

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
                    made["tokens"].astype(np.uint8),
                    np.full(count, self.length, np.int32),
                    made["label"].astype(np.int8),
                )
        return splits

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B], each a function of (kind, length, seed, number)
        alone."""
        drawn = draws(self.seed, indices, 2 * self.length)
        tokens, label = self._recall(drawn) if self.kind == "recall" else self._majority(drawn)
        return {
            "tokens": tokens.astype(np.int32),
            "valid": np.ones(tokens.shape, bool),
            "label": label.astype(np.int32),
        }

    def _recall(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs first, then queries; tokens and labels `[B, N]` of draws `[B, 2 N]`."""
        pairs, half = self.pairs, self.length // 2
        keys = np.argsort(drawn[:, : self.keys], axis=1, kind="stable")[:, :pairs]
        values = below(VALUES, drawn[:, self.keys : self.keys + pairs])
        asked = below(pairs, drawn[:, self.length : self.length + half])
        tokens = np.empty((len(drawn), self.length), np.int64)
        tokens[:, 0:half:2], tokens[:, 1:half:2] = 1 + keys, 1 + self.keys + values
        tokens[:, half:] = 1 + np.take_along_axis(keys, asked, 1)
        label = np.full_like(tokens, -1)
        label[:, half:] = np.take_along_axis(values, asked, 1)
        return tokens, label

    def _majority(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Letters, and the most frequent of those that each position is to see, `[B, N]`."""
        letters = below(len(LETTERS), drawn[:, : self.length])
        label = letters
        for kind in ("local", "strided") if self.kind == "relay" else (self.kind,):
            label = (
                sees(kind, self.length) @ np.eye(len(LETTERS), dtype=np.float32)[label]
            ).argmax(-1)
        return 1 + letters, label

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`own_token`: the most frequent label of `train` given the token itself, scored on
        `split`."""
        table = np.zeros((self.vocabulary, self.classes), np.int64)
        for batch in in_order(train):
            has = batch["label"] >= 0
            np.add.at(table, (batch["tokens"][has], batch["label"][has]), 1)
        right = [
            table.argmax(1)[batch["tokens"]][batch["label"] >= 0]
            == batch["label"][batch["label"] >= 0]
            for batch in in_order(split)
        ]
        return {"own_token": float(np.concatenate(right).mean())}


def sees(kind: str, length: int) -> np.ndarray:
    """`[N, N]` 0 or 1: the tokens that the label of each position is the majority of."""
    i = np.arange(length)
    local = abs(i[:, None] - i) <= WINDOW
    strided = (i[:, None] - i) % STRIDE == 0
    seen = {
        "local": local,
        "strided": strided,
        "global": np.ones((length, length), bool),
        "mix": np.where((i % 2 == 0)[:, None], local, strided),
    }
    return seen[kind].astype(np.float32)


def draws(seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """`[B, count]` uniform uint64, row b a function of (seed, indices[b]) alone.

    SplitMix64 (Steele et al. 2014), whose n-th number needs no number before it, so that any
    example can be made at any time; NumPy's generators promise neither that nor the same numbers in
    every version."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    start = _mix(_mix(np.array([seed], np.uint64) + golden) + golden * indices.astype(np.uint64))
    return _mix(start[:, None] + golden * np.arange(1, count + 1, dtype=np.uint64))


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def below(n: int, drawn: np.ndarray) -> np.ndarray:
    """Uniform int64 in [0, n) from uniform uint64."""
    return (drawn >> np.uint64(32)).astype(np.int64) * n >> 32
