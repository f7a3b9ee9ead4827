"""Planted answers: tiny generated tasks whose right attention is known, to test a search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.splits import Batch, Split
from dartformer.errors import InputError, unknown
from dartformer.tasks import generated, simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws
from dartformer.tasks.requirements import require_at_least, require_ids, require_seed

KINDS = ("recall", "local", "strided", "global", "mix", "relay", "quartet")

WINDOW = 4
STRIDE = 8
BLOCK = 8
"""`local` labels depend on tokens at most WINDOW away, `strided` ones on tokens a multiple of STRIDE
away, `block` ones on the tokens of one of the blocks of BLOCK tokens."""

LOCAL = f"local(window={WINDOW})"
STRIDED = f"strided(stride={STRIDE})"
BLOCKS = f"block(size={BLOCK})"

ANSWERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "recall": (("full",),),
    "local": ((LOCAL,),),
    "strided": ((STRIDED,),),
    "mix": ((LOCAL, STRIDED),),
    "relay": ((LOCAL,), (STRIDED,)),
    "quartet": ((LOCAL,), (BLOCKS,), (STRIDED,), ("full",)),
}
"""The right attentions by layer, and by head where the heads of a layer must differ (in any order).
`global` has several: every attention that sees all tokens. So has `quartet`: see `is_quartet`."""

QUARTET = ("relay", "block", "relay", "global")
"""What the positions of a `quartet` ask for, over and over."""

VALUES = 8
LETTERS = "abcd"


@dataclass(frozen=True)
class Planted:
    """A label for every token (or for the queries only), which one kind of attention can compute.

    The kinds:
    * `recall`: pairs of a key and a value, then keys alone; the label of those is the key's value.
      Needs `model.stem = "bigram"` where there is one layer.
    * `local`: the most frequent letter at most 4 tokens away, of equals the first.
    * `strided`: the same over every eighth token.
    * `global`: the same over all tokens.
    * `mix`: even positions as in `local`, odd ones as in `strided`.
    * `relay`, for two layers: the most frequent `local` label over every eighth token.
    * `quartet`, for four layers: even positions as in `relay`, the others in turns the most frequent
      letter of their own eight tokens (of 0 to 7, 8 to 15, ...) and of all tokens.

    Attributes:
      kind: which answer is planted: "recall", "local", "strided", "global", "mix", "relay" or
        "quartet".
      length: tokens of an example.
      train: number of training examples; with `endless`, what the simple rules are fitted on.
      valid: number of validation examples.
      test: number of test examples.
      endless: draw new training examples without end, so that none is seen twice.
      seed: of the examples.
    """

    kind: str = "recall"
    length: int = 64
    train: int = 8_000
    valid: int = 500
    test: int = 1_000
    endless: bool = False
    seed: int = 0

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Tiny tasks with a known answer: recall, local, strided, mix, relay, quartet",
        paper="recall: Arora et al. 2023 (Zoology), 2312.04927; the others are this package's",
        per_token=True,
        generated=True,
    )

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of planted task", self.kind, KINDS)
        require_at_least(self, train=1, valid=1, test=1)
        require_seed(self)
        # With fewer than 32 tokens two parts of the data could share an example.
        if self.length < 32 or self.length % 4:
            raise InputError(
                f"task.length must be a multiple of 4 and at least 32, got {self.length}."
            )

    @property
    def symbols(self) -> tuple[str, ...]:
        """The text of every token id; 0 is padding."""
        if self.kind != "recall":
            return ("", *LETTERS)
        return ("", *generated.numbered("k", self.keys), *generated.numbered("v", VALUES))

    @property
    def pairs(self) -> int:
        """Of `recall`: half of the tokens are pairs, half are queries."""
        return self.length // 4

    @property
    def keys(self) -> int:
        """Of `recall`: the number of keys, 1.5 times as many as a sequence has."""
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
        if self.kind == "recall":
            return self.symbols[1 + self.keys :]
        return self.symbols[1:]

    def is_answer(self, genotype: Sequence[Sequence[str]]) -> bool:
        """Whether a genotype, the text of each head of each layer, is a planted answer."""
        if self.kind == "global":
            narrow = {LOCAL, STRIDED, "identity"}
            return all(map(narrow.isdisjoint, genotype))
        # Sets: the heads of a layer may come in any order, and several may be alike.
        layers = list(map(set, genotype))
        if self.kind == "quartet":
            return is_quartet(layers)
        return layers == list(map(set, ANSWERS[self.kind]))

    def encode(self, text: str) -> list[int]:
        """Token ids of symbols separated by spaces.

        Raises `InputError` for an unknown symbol, none, or too many."""
        symbols = text.split()
        for symbol in symbols:
            if symbol not in self.symbols:
                raise unknown(f"symbol of the planted task {self.kind}", symbol, self.symbols[1:])
        if not 0 < len(symbols) <= self.length:
            raise InputError(
                f"the text has {len(symbols)} symbols; 1 to {self.length} are allowed."
            )
        return list(map(self.symbols.index, symbols))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without padding; `InputError` for an id beyond the vocabulary."""
        require_ids(ids, self.vocabulary)
        return generated.spelled(ids, self.symbols)

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", generated in memory; `data_dir` is not used."""
        numbers = generated.numbers(self.test, self.valid, self.train)
        return generated.splits(self.examples, numbers, self.endless, np.uint8, np.int8)

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of (kind, length, seed, number) alone."""
        bits = draws(self.seed, indices, 2 * self.length)
        if self.kind == "recall":
            return batch_of(*self._recall(bits))
        return batch_of(*self._majority(bits))

    def _recall(self, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs first, then queries; tokens and labels `[B, N]` of draws `[B, 2 N]`."""
        pairs = self.pairs
        half = self.length // 2
        # The order of random numbers is a random permutation: its start are keys that differ.
        order = np.argsort(bits[:, : self.keys], axis=1, kind="stable")
        keys = order[:, :pairs]
        values = below(VALUES, bits[:, self.keys : self.keys + pairs])
        queries = below(pairs, bits[:, self.length : self.length + half])
        tokens = np.empty((len(bits), self.length), np.int64)
        tokens[:, 0:half:2] = 1 + keys
        tokens[:, 1:half:2] = 1 + self.keys + values
        tokens[:, half:] = 1 + np.take_along_axis(keys, queries, 1)
        # Ids of keys follow padding, and ids of values follow the keys; only queries have a label.
        label = np.full_like(tokens, -1)
        label[:, half:] = np.take_along_axis(values, queries, 1)
        return tokens, label

    def _majority(self, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Letters, and the most frequent of those that each position is to see, `[B, N]`."""
        letters = below(len(LETTERS), bits[:, : self.length])
        if self.kind != "quartet":
            return 1 + letters, most_frequent(self.kind, letters)
        label = np.empty_like(letters)
        for first, kind in enumerate(QUARTET):
            label[:, first :: len(QUARTET)] = most_frequent(kind, letters)[:, first :: len(QUARTET)]
        return 1 + letters, label

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`own_token`: the most frequent label of `train` given the token itself."""
        return {"own_token": simple.own_token(train, split, self.vocabulary, self.classes)}


def is_quartet(layers: Sequence[set[str]]) -> bool:
    """Whether layers, in any order with `local` before `strided`, are what `quartet` needs."""
    narrow = [{LOCAL}, {BLOCKS}, {STRIDED}]
    wide = [layer for layer in layers if layer not in narrow]
    if len(layers) != 4 or len(wide) != 1 or not wide[0] <= {"full", "linear"}:
        return False
    complete = all(layer in layers for layer in narrow)
    return complete and layers.index({LOCAL}) < layers.index({STRIDED})


def most_frequent(kind: str, letters: np.ndarray) -> np.ndarray:
    """`[B, N]`: the most frequent letter that each position sees, of equals the first."""
    if kind == "relay":
        return most_frequent("strided", most_frequent("local", letters))
    one_hot = np.eye(len(LETTERS), dtype=np.float32)[letters]  # [B, N, letters]
    # Float32 counts up to 2^24 exactly, and has quick matrix products.
    counts = sees(kind, letters.shape[1]) @ one_hot  # [B, N, letters]
    return counts.argmax(-1)


def sees(kind: str, length: int) -> np.ndarray:
    """`[N, N]` 0 or 1: the tokens that the label of each position is the majority of."""
    i = np.arange(length)
    distance = i[:, None] - i
    local = abs(distance) <= WINDOW
    strided = distance % STRIDE == 0
    if kind == "local":
        visible = local
    elif kind == "strided":
        visible = strided
    elif kind == "block":
        visible = i[:, None] // BLOCK == i // BLOCK
    elif kind == "mix":
        visible = np.where((i % 2 == 0)[:, None], local, strided)
    else:
        visible = np.ones((length, length), bool)
    return visible.astype(np.float32)
