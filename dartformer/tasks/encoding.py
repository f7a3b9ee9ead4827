"""Options of tasks on texts, and texts as token ids."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from dartformer.data import tokens as tokenizers
from dartformer.data.encoder_tokens import KIND, EncoderTokens, of_encoder
from dartformer.data.encoder_tokens import restored as encoder_tokens
from dartformer.data.rows import Rules, is_blank, is_damaged, repaired
from dartformer.errors import InputError, unknown
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.requirements import (
    require_at_least,
    require_fraction,
    require_ids,
    require_seed,
)

CROPS = ("head", "tail", "ends")

Ids = list[int] | np.ndarray


class Document(NamedTuple):
    """What the model reads of a text.

    Attributes:
      ids: cropped.
      tokens: of the whole text.
      unknown: how many of the ids stand for an unknown token.
    """

    ids: np.ndarray
    tokens: int
    unknown: int


@dataclass(frozen=True, kw_only=True)
class TextEncoding(ABC):
    """Texts as tokens, from rows that are checked on the way.

    What is dropped, replaced or refused on the way is counted, printed and kept (see
    `dartformer.data.rows`).

    Attributes:
      tokens: "bytes", "characters", "words", "bpe" (byte-pair encoding), or "checkpoint".
      checkpoint: for "checkpoint", the folder whose tokenizer reads the texts.
      vocabulary_size: most different tokens; 0 for the default of the kind of tokens. Of a
        checkpoint the rows of its embeddings; 0 for as many as its tokenizer has.
      length: most tokens of a text; a longer one is cropped.
      crop: what is kept of a longer text: its "head", its "tail", or half of each ("ends").
      valid_fraction: share of train that becomes the valid split where the source has none.
      test_fraction: share of train that becomes the test split where the source has none.
      seed: of the rows that become valid and test.
      on_empty: rows without text: "drop" or "error".
      on_duplicate: rows that occur in two splits, by the tokens that the model reads: "drop", "keep"
        or "error".
      on_bad_label: rows whose label is none of the classes: "drop" or "error".
      on_invalid: bytes that are not valid UTF-8: "replace" them, "drop" the row, or "error".
    """

    tokens: str = "bytes"
    checkpoint: str = ""
    vocabulary_size: int = 0
    length: int = 512
    crop: str = "head"
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    on_empty: str = "drop"
    on_duplicate: str = "drop"
    on_bad_label: str = "error"
    on_invalid: str = "replace"
    learned: str = field(default="", repr=False, metadata={"option": False})

    traits: ClassVar[TaskTraits]

    def __post_init__(self) -> None:
        self._check_tokens()
        require_at_least(self, length=1)
        require_seed(self)
        if self.crop not in CROPS:
            raise unknown("task.crop", self.crop, CROPS)
        require_fraction(self, "valid_fraction", "test_fraction")
        self.rules  # noqa: B018 - raises for an unknown rule

    def _check_tokens(self) -> None:
        """Raise `InputError` for tokens that the task cannot have."""
        if self.tokens != "checkpoint":
            tokenizers.size_of(self.tokens, self.vocabulary_size)
            if self.checkpoint:
                raise InputError(
                    f"task.checkpoint has no effect with task.tokens={self.tokens!r}. Use "
                    f"'checkpoint', or leave it empty."
                )
            return
        if self.kind not in ("classification", "regression"):
            raise InputError(
                f"task.tokens='checkpoint' does not work with labels for each token "
                f"(task.kind={self.kind!r})."
            )
        require_at_least(self, vocabulary_size=0)
        if not self.checkpoint and not self.vocabulary_size:
            raise InputError(
                "task.checkpoint is empty. Set it to the folder of a checkpoint with a "
                "tokenizer.json."
            )

    # What a task says of itself.

    @property
    def title(self) -> str:
        """Its name in messages."""
        return type(self).__name__

    @property
    def kind(self) -> str:
        """The kind of labels.

        "classification", "regression", "labelling" (a class for each token) or "language" (the next
        token)."""
        return "classification"

    @property
    def inputs(self) -> int:
        """Documents of an example."""
        return 1

    @property
    def rules(self) -> Rules:
        """What to do with bad rows."""
        return Rules(self.on_empty, self.on_duplicate, self.on_bad_label, self.on_invalid)

    @property
    def vocabulary(self) -> int:
        """The most token ids, with padding; the tokenizer of little data uses fewer."""
        if self.tokens == "checkpoint":
            return self.vocabulary_size or self.tokenizer.size
        return tokenizers.size_of(self.tokens, self.vocabulary_size)

    @property
    def token_dtype(self) -> np.dtype:
        """The smallest type that holds every token id."""
        return np.min_scalar_type(self.vocabulary - 1)

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    # From texts to token ids.

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of the training part; `InputError` before `fitted`."""
        if self.tokens == "bytes":
            return tokenizers.Bytes()
        if self.tokens == "checkpoint" and not self.learned:
            return of_encoder(self.checkpoint)
        if not self.learned:
            raise InputError(
                f"{self.title} has not learned its {self.tokens} yet. Prepare its data first."
            )
        return _restored(self.learned)

    def documents(self, texts: Sequence[str], extra: int = 0) -> list[Document]:
        """What the model reads of texts, in training and in prediction alike.

        Args:
          texts: repaired, and not blank.
          extra: tokens beyond `length`, of which a language model predicts the last.

        Raises `InputError` where what a checkpoint puts around each text leaves no room for it.
        """
        tokenizer = self.tokenizer
        encoded: Sequence[Ids]
        if isinstance(tokenizer, tokenizers.Bytes):
            encoded = tokenizer.arrays(texts)
        else:
            encoded = tokenizer.encode(texts)
        if isinstance(tokenizer, EncoderTokens):
            return [self._between(tokenizer, ids) for ids in encoded]
        documents = []
        dtype = self.token_dtype  # looked up once: it costs as much as a short text
        for ids in encoded:
            if not len(ids):
                # An unknown token in place of none: every row has something to attend to.
                ids = [1]
            cropped = np.array(self.cropped(ids, extra), dtype)
            unknown_tokens = tokenizers.unknown_tokens(self.tokens, cropped)
            documents.append(Document(cropped, len(ids), unknown_tokens))
        return documents

    def _between(self, tokenizer: EncoderTokens, ids: Ids) -> Document:
        """A text between the tokens that a checkpoint puts around it; they are never cropped."""
        before, behind = tokenizer.around
        around = len(before) + len(behind)
        if around >= self.length:
            raise InputError(
                f"task.length must be above {around}, the tokens that {self.checkpoint} puts around "
                f"each text, got {self.length}."
            )
        cropped = self.cropped(ids, -around)
        whole = np.array([*before, *cropped, *behind], self.token_dtype)
        unknown_tokens = int(np.count_nonzero(np.asarray(cropped) == tokenizer.unknown))
        return Document(whole, len(ids) + around, unknown_tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, cropped as in training; `InputError` for a blank one."""
        return self.encode_all([text])[0].tolist()

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text; see `encode`."""
        repaired_texts = []
        for text in texts:
            if is_damaged(text):
                if self.on_invalid != "replace":
                    raise InputError("the text is not valid UTF-8.")
                text = repaired(text)
            if is_blank(text):
                raise InputError("the text is empty.")
            repaired_texts.append(text)
        return [document.ids for document in self.documents(repaired_texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without padding; `InputError` for an id beyond the vocabulary."""
        tokenizer = self.tokenizer
        require_ids(ids, tokenizer.size)
        return tokenizer.decode(list(map(int, ids)))

    def texts(self, tokens: np.ndarray, valid: np.ndarray) -> list[str]:
        """Texts of rows of token ids `[B, N]`, of which those exist that are `valid`."""
        rows = [row[exists] for row, exists in zip(tokens, valid, strict=True)]
        if self.tokens == "bytes":
            # Id b + 1 stands for the byte b.
            return [(row - 1).astype(np.uint8).tobytes().decode("utf-8", "replace") for row in rows]
        tokenizer = self.tokenizer
        if self.tokens in ("bpe", "checkpoint"):
            return [tokenizer.decode(row.tolist()) for row in rows]
        # Looked up once for all rows: a tokenizer of words spells them all for every text.
        names = np.array(tokenizer.names(), object)
        space = " " * (self.tokens == "words")
        return [space.join(names[row]) for row in rows]

    def comparable(self, text: str) -> str:
        """A text less what its words cannot tell apart, before any are learned."""
        if self.tokens != "words":
            return text
        text = " ".join(tokenizers.words(text))
        if self.kind == "labelling":
            return text
        return text.lower()

    def cropped(self, ids: Ids, extra: int = 0) -> Ids:
        """At most `length` of the ids, and `extra`, which may be below 0."""
        n = self.length + extra
        if len(ids) <= n:
            return ids
        if self.crop == "head":
            return ids[:n]
        if self.crop == "tail":
            return ids[-n:]
        tail = n // 2
        return [*ids[: n - tail], *ids[len(ids) - tail :]]


@lru_cache(maxsize=8)
def _restored(learned: str) -> tokenizers.Tokenizer:
    state = json.loads(learned)
    if state.get("kind") == KIND:
        return encoder_tokens(state)
    return tokenizers.restored(state)


def token_names(task: TextEncoding) -> tuple[str, ...]:
    """The text of every token id; before the task has learned them, their numbers."""
    names = []
    if task.tokens in ("bytes", "checkpoint") or task.learned:
        names = task.tokenizer.names()
    return with_numbers(names, task.vocabulary)


def with_numbers(names: list[str], count: int) -> tuple[str, ...]:
    """The names of `count` ids, of which those beyond `names` have their numbers."""
    numbers = [f"#{i}" for i in range(len(names), count)]
    return (*names, *numbers)
