"""Language modelling of plain text: the next byte or character, in bits per character."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dartformer.data import tokens as tokenizers
from dartformer.data.locations import identity, located
from dartformer.data.plain_text import text_files, text_of_file
from dartformer.data.rows import PARTS, SURROGATES, repaired
from dartformer.data.splits import Batch, Split
from dartformer.errors import InputError, unknown
from dartformer.tasks import simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.encoding import with_numbers
from dartformer.tasks.requirements import require_at_least, require_fraction, require_ids

KINDS = ("bytes", "characters")


class Windows:
    """A stream of ids `[T]` in windows of `length` that do not overlap.

    A token's label is the next token."""

    def __init__(self, ids: np.ndarray, length: int):
        self.ids = ids
        self.length = length

    def __len__(self) -> int:
        return -(-(len(self.ids) - 1) // self.length)

    def take(self, indices: np.ndarray) -> Batch:
        """Windows `indices` [B]; the last one of the stream may be shorter."""
        last = len(self.ids) - 2  # the last id has no next one
        position = np.asarray(indices)[:, None] * self.length + np.arange(self.length)  # [B, N]
        valid = position <= last
        position = np.minimum(position, last)  # any place that exists; it is masked below
        return {
            "tokens": np.where(valid, self.ids[position], 0).astype(np.int32),
            "valid": valid,
            "label": np.where(valid, self.ids[position + 1].astype(np.int32), -1),
        }


class Part(NamedTuple):
    """The text of a part, and how many bytes of its files were not valid UTF-8."""

    text: str
    invalid: int


@dataclass(frozen=True, kw_only=True)
class Language:
    """The text of a file or of a folder of text files, read as "bytes" or "characters".

    The last part of the text is the test part, the text before it the valid part: nothing is shuffled
    over their borders. A folder with files for train, valid and test has the parts that they name.
    Windows do not overlap.

    Attributes:
      path: a text file, compressed or not, or a folder of them, which are read in the order of their
        names.
      tokens: "bytes" or "characters".
      vocabulary_size: most different characters, with padding and the unknown one; 0 for 256.
      length: tokens of a window.
      valid_fraction: share of the file that is the valid part.
      test_fraction: share of the file that is the test part.
    """

    path: str = ""
    tokens: str = "characters"
    vocabulary_size: int = 0
    length: int = 256
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    learned: str = field(default="", repr=False, metadata={"option": False})

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Predict the next byte or character of your own text",
        paper="none: any text file",
        metric="bits_per_character",
        causal=True,
        per_token=True,
    )

    def __post_init__(self) -> None:
        if self.tokens not in KINDS:
            raise unknown("task.tokens of language", self.tokens, KINDS)
        tokenizers.size_of(self.tokens, self.vocabulary_size)
        require_at_least(self, length=1)
        require_fraction(self, "valid_fraction", "test_fraction")

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
        names = []
        if self.learned or self.tokens == "bytes":
            names = self.tokenizer.names()
        return with_numbers(names, self.vocabulary)

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of train; `InputError` before `fitted`."""
        if self.tokens == "bytes":
            return tokenizers.Bytes()
        if not self.learned:
            raise InputError("language has not learned its characters yet. Prepare its data first.")
        return tokenizers.restored(json.loads(self.learned))

    def encode(self, text: str) -> list[int]:
        """Token ids; of a long text the last `length`, after which a character is predicted."""
        if not text:
            raise InputError("the text is empty.")
        return self.prompt(text)[-self.length :]

    def prompt(self, text: str) -> list[int]:
        """Token ids of a whole text, however long."""
        return self.tokenizer.encode([repaired(text)])[0]

    @property
    def special(self) -> tuple[int, ...]:
        """Ids that stand for no text: padding, and the unknown character."""
        if self.tokens == "bytes":
            return (0,)
        return (0, 1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without padding; `InputError` for an id beyond the vocabulary."""
        tokenizer = self.tokenizer
        require_ids(ids, tokenizer.size)
        return tokenizer.decode(list(map(int, ids)))

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` where there is no file, or its text is too short for three parts."""
        self.texts()

    def fitted(self, data_dir: str | None = None) -> "Language":
        """This task with the characters of its train part."""
        text = self.texts()["train"].text
        learned = tokenizers.train(self.tokens, [text], self.vocabulary)
        return replace(self, learned=json.dumps(learned.state(), sort_keys=True))

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """Characters of each part, how many bytes were not valid UTF-8, and the unknown share."""
        tokenizer = self.fitted(data_dir).tokenizer
        facts = {}
        for name, part in self.texts().items():
            ids = _encoded(tokenizer, part.text)
            unknown_tokens = tokenizers.unknown_tokens(self.tokens, ids)
            facts[name] = {
                "characters": len(part.text),
                "invalid UTF-8": part.invalid,
                "unknown share": round(unknown_tokens / len(ids), 4),
            }
        return facts

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", in memory."""
        tokenizer = self.fitted(data_dir).tokenizer
        dtype = np.min_scalar_type(self.vocabulary - 1)
        splits = {}
        for name, part in self.texts().items():
            ids = _encoded(tokenizer, part.text).astype(dtype)
            splits[name] = Windows(ids, self.length)
        return splits

    def texts(self) -> dict[str, Part]:
        """The text of each part.

        Raises `InputError` where there is no file, or its text is too short for three parts."""
        if not self.path:
            raise InputError("task.path is empty. Set it to a text file.")
        path = located(self.path, None)
        parts = dict(_texts(path, json.dumps(identity(path))))
        text, invalid = parts["train"]
        # The end of the text is test, and what is before it valid, unless they have files.
        for name, fraction in (("test", self.test_fraction), ("valid", self.valid_fraction)):
            if name in parts:
                continue
            end = len(text) - round(fraction * len(parts["train"].text))
            parts[name] = Part(text[end:], invalid)
            text = text[:end]
        parts["train"] = Part(text, invalid)
        for name in PARTS:
            if len(parts[name].text) < 2:
                n = sum(len(part.text) for part in parts.values())
                raise InputError(f"{path} has {n} characters: too few for a {name} part.")
        return parts

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`unigram` and `bigram`: bits per character of the frequencies of train."""
        return simple.bigram(train, split, self.vocabulary, self.tokens)


def _encoded(tokenizer: tokenizers.Tokenizer, text: str) -> np.ndarray:
    """The ids of a text, `[T]` int32."""
    # Piece by piece: as a list of numbers, a text weighs ten times as much.
    ids = []
    for start in range(0, len(text), tokenizers.PIECE):
        piece = text[start : start + tokenizers.PIECE]
        ids.append(np.array(tokenizer.encode([piece])[0], np.int32))
    return np.concatenate(ids)


@lru_cache(maxsize=1)
def _texts(path: Path, version: str) -> dict[str, Part]:
    """The text of a file as "train", or of each part that a folder has files for.

    `version` changes with the files, so that the cache never returns an old text."""
    parts = {}
    for name, files in text_files(path).items():
        text = "\n".join(map(text_of_file, files))
        invalid = sum(len(run) for run in SURROGATES.findall(text))
        if invalid:
            text = SURROGATES.sub("\ufffd", text)
        parts[name] = Part(text, invalid)
    return parts
