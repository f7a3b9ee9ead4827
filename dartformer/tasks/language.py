"""Language modelling of text: the next byte, character or token, in bits per character."""

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from dartformer.data import tokens as tokenizers
from dartformer.data.checkpoint_tokens import CheckpointTokens, of_checkpoint, restored
from dartformer.data.locations import located
from dartformer.data.packed import Part as PackedPart
from dartformer.data.packed import Source, packed
from dartformer.data.rows import PARTS, repaired
from dartformer.data.splits import Batch, Split
from dartformer.data.text_ids import Part, TextSource, characters, is_long, survey, text_ids
from dartformer.errors import InputError, unknown
from dartformer.tasks import simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.characters import Pieces, Units
from dartformer.tasks.encoding import with_numbers
from dartformer.tasks.requirements import require_at_least, require_fraction, require_ids

KINDS = ("bytes", "characters", "checkpoint")

COUNTED = 2**22
"""Tokens whose characters are counted at once."""

HELD = 64
"""Windows of a mapped file that are held: up to 256 KB are mapped around a place that is read."""


class Windows:
    """A stream of ids `[T]` in windows of `length` that do not overlap.

    A token's label is the next token. Where the ids are mapped, `mapping` is the file's: what was
    read of it is given back to the system at once, so a pass over a file larger than memory does not
    fill it."""

    def __init__(self, ids: np.ndarray, length: int, mapping: mmap.mmap | None = None):
        self.ids = ids
        self.length = length
        self._mapping = mapping

    def __len__(self) -> int:
        return -(-(len(self.ids) - 1) // self.length)

    def take(self, indices: np.ndarray) -> Batch:
        """Windows `indices` [B]; the last one of the stream may be shorter."""
        last = len(self.ids) - 1
        position = np.asarray(indices)[:, None] * self.length + np.arange(self.length + 1)
        ids = self._read(np.minimum(position, last))  # [B, N + 1]; any id that is masked below
        valid = position[:, 1:] <= last  # the last id has no next one
        return {
            "tokens": np.where(valid, ids[:, :-1], 0).astype(np.int32),
            "valid": valid,
            "label": np.where(valid, ids[:, 1:].astype(np.int32), -1),
        }

    def _read(self, position: np.ndarray) -> np.ndarray:
        """The ids at positions `[B, M]`."""
        if self._mapping is None:
            return self.ids[position]
        ids = np.empty(position.shape, self.ids.dtype)
        for start in range(0, len(position), HELD):
            rows = slice(start, start + HELD)
            ids[rows] = self.ids[position[rows]]
            # What was read stays in the system's cache of files, and out of this process.
            self._mapping.madvise(mmap.MADV_DONTNEED)
        return ids


@dataclass(frozen=True, kw_only=True)
class Language:
    """The text of a file or of a folder of text files, as bytes, characters or a checkpoint's tokens.

    The last part of the text is the test part, the text before it the valid part: nothing is shuffled
    over their borders. A folder with files for train, valid and test has the parts that they name.
    Windows do not overlap. A text of any size is read piece by piece; the ids of one above 32 MB are
    prepared once, in files that are mapped.

    The tokens of a checkpoint are packed: one document follows another, with the end token between
    them, and a window may hold the end of one and the beginning of the next. Where there are three
    documents or more, no two parts share one. The ids are prepared once, in a file that is mapped,
    so neither they nor the text need fit into memory.

    Attributes:
      path: a text file, compressed or not, or a folder of them, which are read in the order of their
        names; or a table, with the option `text`.
      tokens: "bytes", "characters" or "checkpoint".
      checkpoint: for "checkpoint", the folder with its `tokenizer.json`, or this file.
      vocabulary_size: most different characters, with padding and the unknown one; 0 for 256. Of a
        checkpoint the number of ids; 0 for as many as its tokenizer has.
      text: for "checkpoint", the column of a table whose rows are the documents; empty for plain
        text, of which each file is a document.
      end: for "checkpoint", the token between documents; empty for the checkpoint's own end token.
      length: tokens of a window.
      valid_fraction: share of the file that is the valid part.
      test_fraction: share of the file that is the test part.
    """

    path: str = ""
    tokens: str = "characters"
    checkpoint: str = ""
    vocabulary_size: int = 0
    text: str = ""
    end: str = ""
    length: int = 256
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    learned: str = field(default="", repr=False, metadata={"option": False})

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Predict the next byte, character or token of your own text",
        paper="none: any text file",
        metric="bits_per_character",
        causal=True,
        per_token=True,
    )

    def __post_init__(self) -> None:
        if self.tokens not in KINDS:
            raise unknown("task.tokens of language", self.tokens, KINDS)
        if self.tokens != "checkpoint":
            tokenizers.size_of(self.tokens, self.vocabulary_size)
        self._check_checkpoint()
        require_at_least(self, length=1, vocabulary_size=0)
        require_fraction(self, "valid_fraction", "test_fraction")

    def _check_checkpoint(self) -> None:
        """Raise `InputError` for options of a checkpoint that do not fit `tokens`."""
        if self.tokens == "checkpoint":
            if not self.checkpoint and not self.vocabulary_size:
                raise InputError(
                    "task.checkpoint is empty. Set it to the folder of a checkpoint with a "
                    "tokenizer.json."
                )
            return
        for option in ("checkpoint", "text", "end"):
            if getattr(self, option):
                raise InputError(
                    f"task.{option} does not work with task.tokens={self.tokens!r}, which packs no "
                    f"documents. Use task.tokens='checkpoint'."
                )

    @property
    def vocabulary(self) -> int:
        """Token ids, with padding."""
        if self.tokens == "checkpoint":
            return self.vocabulary_size or self._of_checkpoint.size
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
    def units(self) -> Units:
        """What the tokens are, for scores per character."""
        if self.tokens == "checkpoint":
            return _pieces(self._of_checkpoint, self.vocabulary)
        return self.tokens

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of train; `InputError` before `fitted`."""
        if self.tokens == "bytes":
            return tokenizers.Bytes()
        if self.tokens == "checkpoint":
            return self._of_checkpoint
        if not self.learned:
            raise InputError("language has not learned its characters yet. Prepare its data first.")
        return tokenizers.restored(json.loads(self.learned))

    @property
    def _of_checkpoint(self) -> CheckpointTokens:
        """The tokenizer that the task has learned, or that of the folder.

        Raises `InputError` for one with more tokens than the vocabulary has."""
        if self.learned:
            return restored(self.learned)
        if not self.checkpoint:
            raise InputError("task.checkpoint is empty. Set it to the folder of a checkpoint.")
        tokenizer = of_checkpoint(self.checkpoint, self.end)
        if self.vocabulary_size and tokenizer.size > self.vocabulary_size:
            raise InputError(
                f"the tokenizer of {self.checkpoint} has {tokenizer.size} tokens, more than "
                f"task.vocabulary_size = {self.vocabulary_size}. Set it to 0 for as many."
            )
        return tokenizer

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
        """Ids that stand for no text: padding, and the unknown character.

        Of a checkpoint those that the tokenizer has no token for."""
        if self.tokens == "bytes":
            return (0,)
        if self.tokens == "checkpoint":
            return tuple(range(self._of_checkpoint.size, self.vocabulary))
        return (0, 1)

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end a document."""
        if self.tokens != "checkpoint" or self._of_checkpoint.end is None:
            return ()
        return (self._of_checkpoint.end,)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without padding; `InputError` for an id beyond the vocabulary."""
        tokenizer = self.tokenizer
        require_ids(ids, tokenizer.size)
        return tokenizer.decode(list(map(int, ids)))

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` where there is no file, or its text is too short for three parts."""
        if self.tokens == "checkpoint":
            # The text is read when it is packed.
            self._source()
            self._of_checkpoint  # noqa: B018 - it opens the tokenizer
        else:
            source = self._text_source()
            if not is_long(source.path):
                survey(source, data_dir)

    def fitted(self, data_dir: str | None = None) -> "Language":
        """This task with the characters of its train part, or with the checkpoint's tokenizer."""
        if self.tokens == "checkpoint":
            state = self._of_checkpoint.state()
        else:
            frequencies = survey(self._text_source(), data_dir).frequencies
            state = characters(frequencies, self.vocabulary).state()
        return replace(self, learned=json.dumps(state, sort_keys=True))

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """Characters of each part, how many bytes were not valid UTF-8, and the unknown share."""
        if self.tokens == "checkpoint":
            return self._packed_facts(data_dir)
        facts = {}
        for name, part in self.text_parts(data_dir).items():
            facts[name] = {
                "characters": part.notes.characters,
                "invalid UTF-8": part.notes.invalid,
                "unknown share": round(part.notes.unknown / part.notes.tokens, 4),
            }
        return facts

    def _packed_facts(self, data_dir: str | None) -> dict[str, Any]:
        characters = self._of_checkpoint.characters
        facts = {}
        for name, part in self.packed(data_dir).items():
            count = 0
            for start in range(0, len(part.ids), COUNTED):
                count += int(characters[part.ids[start : start + COUNTED]].sum())
            facts[name] = {
                "characters": count,
                "tokens": len(part.ids),
                "documents of its files": part.documents,
                "invalid UTF-8": part.invalid,
            }
        return facts

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", in memory or mapped from files."""
        splits = {}
        if self.tokens == "checkpoint":
            for name, packed_part in self.packed(data_dir).items():
                splits[name] = Windows(packed_part.ids, self.length)
            return splits
        for name, part in self.text_parts(data_dir).items():
            splits[name] = Windows(part.ids, self.length, part.mapping)
        return splits

    def text_parts(self, data_dir: str | None = None) -> dict[str, Part]:
        """The ids of each part, not packed; those of a long text are prepared on first use.

        Raises `InputError` where there is no file, or its text is too short for three parts."""
        tokenizer = self.fitted(data_dir).tokenizer
        return text_ids(self._text_source(), tokenizer, self.vocabulary, data_dir)

    def packed(self, data_dir: str | None = None) -> dict[str, PackedPart]:
        """The tokens of a checkpoint for each part, prepared on first use.

        Raises `InputError` where a part is too short."""
        parts = packed(self._source(), self._of_checkpoint, data_dir)
        for name in PARTS:
            count, least = len(parts[name].ids), 2
            if name == "train":
                least = self.length + 1  # the last token has no next one
            if count < least:
                raise InputError(
                    f"the {name} part of {self.path} has {count} tokens, and needs {least} with "
                    f"task.length = {self.length}. Use a longer text or a smaller task.length."
                )
        return parts

    def _source(self) -> Source:
        """What is packed; `InputError` where there is no file."""
        text = self._text_source()
        return Source(text.path, self.text, text.fractions)

    def _text_source(self) -> TextSource:
        """The text; `InputError` where there is no file."""
        if not self.path:
            raise InputError("task.path is empty. Set it to a text file.")
        return TextSource(located(self.path, None), (self.valid_fraction, self.test_fraction))

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`unigram` and `bigram`: bits per character of the frequencies of train."""
        return simple.bigram(train, split, self.vocabulary, self.units)


@lru_cache(maxsize=2)
def _pieces(tokenizer: CheckpointTokens, vocabulary: int) -> Pieces:
    """The characters of a checkpoint's tokens; ids without a token have none."""
    missing = vocabulary - tokenizer.size
    return Pieces(np.pad(tokenizer.characters, (0, missing)))
