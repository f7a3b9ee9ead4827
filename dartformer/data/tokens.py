"""From text to token ids and back: bytes, characters, words, or byte-pair encoding.

Id 0 is always padding. Whatever is learned (the characters, the words, the merges) is learned from
the training part alone, and is plain text: `state` goes with the model and `restored` reads it,
running no code."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dartformer.errors import InputError, unknown

if TYPE_CHECKING:  # the library is imported where it is used: most runs need none
    from tokenizers import Tokenizer as Library
    from tokenizers import trainers

KINDS = ("bytes", "characters", "words", "bpe")

DEFAULT_SIZE = {"bytes": 257, "characters": 256, "words": 8000, "bpe": 8000}
"""The default number of ids, padding (and the unknown) included."""

SMALLEST_SIZE = {"bytes": 257, "characters": 3, "words": 3, "bpe": 258}

PADDING = "[PAD]"
UNKNOWN = "[UNK]"

PIECE = 2**16
"""Characters that the library encodes at once: it needs 140 bytes for each, 0.7 GB for a text of
5 MB."""

SPACE = re.compile(r"(?<=\S) (?=\S)")


def words(text: str) -> list[str]:
    """The words of a text that have a label each: what white space separates."""
    return text.split()


def pieces(text: str) -> Iterator[str]:
    """A text in parts of about `PIECE` characters, with the same tokens as the text.

    It is cut before a single space; where no such space comes for another `PIECE` characters, it is
    cut there.
    """
    start = 0
    while len(text) - start > PIECE:
        end = start + 2 * PIECE
        space = SPACE.search(text, start + PIECE, end)
        if space:
            end = space.start()
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


def pieces_of_parts(parts: Iterable[str]) -> Iterator[str]:
    """The `pieces` of a text that comes in parts, of which a few are in memory.

    They are those of the whole text: whether it is cut at a place is decided by what comes before
    it and by the character after it, and the last piece waits for more text."""
    remainder = ""
    for part in parts:
        *complete, remainder = pieces(remainder + part)
        yield from complete
    if remainder:
        yield remainder


class Tokenizer(Protocol):
    """Text to ids of at least 1 and back; `size` includes padding."""

    @property
    def size(self) -> int: ...
    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def names(self) -> list[str]:
        """The text of every id."""
        ...

    def state(self) -> dict[str, str]: ...


class Bytes:
    """UTF-8: byte b has id b + 1, so that a NUL is a token like any other."""

    size = 257

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """A list of ids for each text."""
        return [ids.tolist() for ids in self.arrays(texts)]

    def arrays(self, texts: Sequence[str]) -> Sequence[np.ndarray]:
        """The ids of each text, `[n]` uint16: five times faster than as lists."""
        arrays = []
        for text in texts:
            # Surrogates, which are not valid UTF-8, become question marks.
            data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
            arrays.append(data.astype(np.uint16) + 1)
        return arrays

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without padding; bytes that are not valid UTF-8 become U+FFFD."""
        return bytes(i - 1 for i in ids if i).decode("utf-8", "replace")

    def names(self) -> list[str]:
        """Each byte's Latin-1 character."""
        return ["", *map(chr, range(256))]

    def state(self) -> dict[str, str]:
        """The kind alone: nothing is learned."""
        return {"kind": "bytes"}


class Characters:
    """The characters of the training part, the most frequent first; id 1 is any other."""

    def __init__(self, characters: str):
        self.characters = characters
        self._ids = {c: i for i, c in enumerate(characters, 2)}

    @property
    def size(self) -> int:
        """Ids, with padding and the unknown."""
        return len(self.characters) + 2

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """A list of ids for each text."""
        ids = []
        for text in texts:
            ids.append([self._ids.get(c, 1) for c in text])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without padding; the unknown is U+FFFD."""
        names = self.names()
        return "".join(names[i] for i in ids if i)

    def names(self) -> list[str]:
        """The characters."""
        return ["", "\ufffd", *self.characters]

    def state(self) -> dict[str, str]:
        """The characters in order."""
        return {"kind": "characters", "characters": self.characters}


class Learned:
    """Words or byte pairs, by the `tokenizers` library."""

    def __init__(self, kind: str, text: str):
        from tokenizers import Tokenizer as Library
        from tokenizers.pre_tokenizers import WhitespaceSplit

        self.kind = kind
        self.text = text
        self._library = Library.from_str(text)
        # "[PAD]" in a text is text. The library's JSON does not keep this setting.
        self._library.encode_special_tokens = True
        # Ids of the words that have a label each; None for other texts.
        self._word_ids: dict[str, int] | None = None
        if isinstance(self._library.pre_tokenizer, WhitespaceSplit):
            self._word_ids = {}
            for word, i in self._library.get_vocab().items():
                if i > 1:  # no word spells padding or the unknown
                    self._word_ids[word] = i

    @property
    def size(self) -> int:
        """Ids, with padding and the unknown."""
        return self._library.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """A list of ids for each text."""
        if self._word_ids is not None:
            return list(map(self._encode_words, texts))
        # A batch is faster, but long texts need too much memory at once.
        longest = max(map(len, texts), default=0)
        if longest > PIECE:
            return list(map(self._encode_long, texts))
        return [encoded.ids for encoded in self._library.encode_batch_fast(list(texts))]

    def _encode_words(self, text: str) -> list[int]:
        # Not by the library, to which U+001C to U+001F are no white space: labels would slide.
        ids = self._word_ids or {}
        return [ids.get(word, 1) for word in words(text)]

    def _encode_long(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces(text):
            ids += self._library.encode(piece).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without padding; words are separated by spaces."""
        ids = list(filter(None, ids))  # 0 is padding
        if self.kind == "bpe":
            return self._library.decode(ids)
        names = self.names()
        return " ".join(names[i] for i in ids)

    def names(self) -> list[str]:
        """The words or pieces."""
        learned = [self._library.id_to_token(i) or "" for i in range(2, self.size)]
        return [PADDING, UNKNOWN, *learned]

    def state(self) -> dict[str, str]:
        """The library's own JSON."""
        return {"kind": self.kind, "tokenizer": self.text}


def size_of(kind: str, size: int) -> int:
    """The most ids that a tokenizer of a `vocabulary_size` uses (0: the default).

    Raises `InputError` for an unknown kind or an impossible size."""
    if kind not in KINDS:
        raise unknown("tokens", kind, KINDS)
    if size == 0:
        return DEFAULT_SIZE[kind]
    if kind == "bytes" and size != 257:
        raise InputError(
            f"vocabulary_size={size} does not work with tokens='bytes', which has 257 ids. "
            f"Leave vocabulary_size at 0."
        )
    least = SMALLEST_SIZE[kind]
    if size < least:
        raise InputError(
            f"vocabulary_size must be at least {least} for tokens = {kind!r}, got {size}."
        )
    return size


def unknown_tokens(kind: str, ids: np.ndarray) -> int:
    """How many ids stand for an unknown token. Bytes have none: their id 1 is a NUL."""
    if kind == "bytes":
        return 0
    return int(np.count_nonzero(ids == 1))


def train(kind: str, texts: Iterable[str], size: int, *, split: bool = False) -> Tokenizer:
    """A tokenizer of at most `size` ids, learned from `texts`.

    Args:
      kind: of `KINDS`.
      texts: of the training part only.
      size: see `size_of`.
      split: for "words": split by `words`, and keep case. Otherwise punctuation is
        separated and everything is lower case.
    """
    if kind == "bytes":
        return Bytes()
    if kind == "characters":
        return _train_characters(texts, size)
    if kind == "words":
        library, trainer = _words(size, split)
        if split:
            texts = (" ".join(words(text)) for text in texts)
    else:
        library, trainer = _byte_pairs(size)
    library.train_from_iterator(_chunks(texts), trainer)
    return Learned(kind, library.to_str())


def _train_characters(texts: Iterable[str], size: int) -> Characters:
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    return Characters(ranked(counts, size))


def ranked(counts: Mapping[str, int], size: int) -> str:
    """The characters for `size` ids, the most frequent first."""
    # Equally frequent characters come in the order of their code points.
    order = sorted(counts, key=lambda character: (-counts[character], character))
    return "".join(order[: size - 2])


def _words(size: int, split: bool) -> tuple["Library", "trainers.Trainer"]:
    """The library's model of words, and its trainer."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    special = [PADDING, UNKNOWN]
    if split:
        # With a space, as no word has: "[UNK]" may be a word of the text.
        special = [f"{token} " for token in special]
    library = Library(models.WordLevel(unk_token=special[1]))
    if split:
        library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        library.pre_tokenizer = pre_tokenizers.Whitespace()
        library.normalizer = normalizers.Lowercase()
    trainer = trainers.WordLevelTrainer(
        vocab_size=size, special_tokens=special, show_progress=False
    )
    return library, trainer


def _byte_pairs(size: int) -> tuple["Library", "trainers.Trainer"]:
    """The library's model of byte pairs, and its trainer."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PADDING, UNKNOWN],
        show_progress=False,
        # Sorted: the library's own order changes from process to process.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    return library, trainer


def _chunks(texts: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    """Lists of `size` pieces of the texts.

    The library trains faster on lists than on single texts."""
    chunk: list[str] = []
    for text in texts:
        for piece in pieces(text):
            chunk.append(piece)
            if len(chunk) == size:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def restored(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a `state`; `InputError` for anything else."""
    kind = state.get("kind")
    try:
        if kind == "bytes":
            return Bytes()
        if kind == "characters":
            return Characters(str(state["characters"]))
        if kind in ("words", "bpe"):
            json.loads(state["tokenizer"])  # says where what is not JSON breaks off
            return Learned(kind, state["tokenizer"])
    except Exception as error:
        raise InputError(f"the saved tokenizer of {kind} is damaged: {error}.") from None
    raise unknown("kind of saved tokenizer", kind, KINDS)
