"""Language modelling of a text file: the next byte or character, given all before it, in bits per
character."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dartformer.data import tokens as tokenizers
from dartformer.data.records import opened
from dartformer.data.rows import SURROGATES
from dartformer.data.splits import Batch, Split
from dartformer.errors import InputError, unknown
from dartformer.tasks import simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.files import identity, located

KINDS = ("bytes", "characters")


class Windows:
    """A stream of ids `[T]` in windows of `length` that do not overlap; what follows each token is
    its label."""

    def __init__(self, ids: np.ndarray, length: int):
        self.ids, self.length = ids, length

    def __len__(self) -> int:
        return -(-(len(self.ids) - 1) // self.length)

    def take(self, indices: np.ndarray) -> Batch:
        """Windows `indices` [B]; the last one of the stream may be shorter."""
        at = np.asarray(indices)[:, None] * self.length + np.arange(self.length)
        valid = at < len(self.ids) - 1
        at = np.minimum(at, len(self.ids) - 2)
        return {
            "tokens": np.where(valid, self.ids[at], 0).astype(np.int32),
            "valid": valid,
            "label": np.where(valid, self.ids[at + 1].astype(np.int32), -1),
        }


@dataclass(frozen=True, kw_only=True)
class Language:
    """The text of the file `path` (compressed or not), read as "bytes", or as "characters", of
    which the most frequent of train are known, `vocabulary_size` with padding and the unknown (0:
    256). The file's last `test_fraction` is the test part, what stands before it the valid part:
    nothing is shuffled over their borders. Windows of `length` tokens do not overlap."""

    path: str = ""
    tokens: str = "characters"
    vocabulary_size: int = 0
    length: int = 256
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    learned: str = field(default="", repr=False, metadata={"option": False})

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="the next byte or character of a text of your own",
        paper="none: any text file",
        metric="bits_per_character",
        causal=True,
        per_token=True,
    )

    def __post_init__(self) -> None:
        if self.tokens not in KINDS:
            raise unknown("task.tokens of language", self.tokens, KINDS)
        tokenizers.size_of(self.tokens, self.vocabulary_size)
        if self.length < 1:
            raise InputError(f"task.length must be at least 1, got {self.length}.")
        for name in ("valid_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise InputError(
                    f"task.{name} must be above 0 and below 0.5, got {getattr(self, name)}."
                )

    @property
    def vocabulary(self) -> int:
        """Token ids, with padding."""
        return tokenizers.size_of(self.tokens, self.vocabulary_size)

    @property
    def classes(self) -> int:
        """The next token's ids."""
        return self.vocabulary

    @property
    def labels(self) -> tuple[str, ...]:
        """The text of every token; before they are learned, their numbers."""
        names = self.tokenizer.names() if self.learned or self.tokens == "bytes" else []
        return tuple(names + [f"#{i}" for i in range(len(names), self.vocabulary)])

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """What train taught; `InputError` before `fitted`."""
        if self.tokens == "bytes":
            return tokenizers.Bytes()
        if not self.learned:
            raise InputError("language has not learned its characters yet: prepare its data first.")
        return tokenizers.restored(json.loads(self.learned))

    def encode(self, text: str) -> list[int]:
        """Token ids; of a long text the last `length`, after which a character is predicted."""
        if not text:
            raise InputError("the text is empty.")
        return self.tokenizer.encode([text])[0][-self.length :]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, padding left out; `InputError` for an id beyond the vocabulary."""
        tokenizer = self.tokenizer
        for i in ids:
            if not 0 <= i < tokenizer.size:
                raise InputError(f"token id {i} is not between 0 and {tokenizer.size - 1}.")
        return tokenizer.decode([int(i) for i in ids])

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` where there is no file, or its text is too short to be cut in
        three."""
        self._parts()

    def fitted(self, data_dir: str | None = None) -> "Language":
        """This task with the characters of its train part."""
        text, _ = self._parts()["train"]
        learned = tokenizers.train(self.tokens, [text], self.vocabulary)
        return replace(self, learned=json.dumps(learned.state(), sort_keys=True))

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """Characters of each part, and how many bytes were no UTF-8."""
        return {
            part: {"characters": len(text), "invalid UTF-8": odd}
            for part, (text, odd) in self._parts().items()
        }

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", in memory."""
        tokenizer = self.fitted(data_dir).tokenizer
        dtype = np.min_scalar_type(self.vocabulary - 1)
        return {
            part: Windows(np.array(tokenizer.encode([text])[0], dtype), self.length)
            for part, (text, _) in self._parts().items()
        }

    def _parts(self) -> dict[str, tuple[str, int]]:
        """Text of each part, and how many bytes of it were no UTF-8 and became U+FFFD."""
        if not self.path:
            raise InputError("task.path is empty: which text file?")
        path = located(self.path, None)
        if path.is_dir():
            raise InputError(f"{path} is a folder; language reads one text file.")
        text, odd = _text(path, json.dumps(identity(path)))
        n = len(text)
        test, valid = round(self.test_fraction * n), round(self.valid_fraction * n)
        cut = {
            "train": (0, n - test - valid),
            "valid": (n - test - valid, n - test),
            "test": (n - test, n),
        }
        for part, (start, end) in cut.items():
            if end - start < 2:
                raise InputError(f"{path} has {n} characters: too few for a {part} part.")
        return {part: (text[start:end], odd) for part, (start, end) in cut.items()}

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`unigram` and `bigram`: bits per character of the frequencies of train."""
        return simple.bigram(train, split, self.vocabulary)


@lru_cache(maxsize=1)
def _text(path: Path, known: str) -> tuple[str, int]:
    with opened(path) as file:
        text = file.read().decode("utf-8", "surrogateescape")
    odd = sum(len(one) for one in SURROGATES.findall(text))
    return (SURROGATES.sub("\ufffd", text) if odd else text), odd
