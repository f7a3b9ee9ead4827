"""From text to token ids and back: bytes, characters, words, or byte-pair encoding. Id 0 is
padding, always.

Whatever is learned (the characters, the words, the merges) is learned from the training part alone,
and is plain text: `state` goes with the model and `restored` reads it, running no code."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from dartformer.errors import InputError, unknown

KINDS = ("bytes", "characters", "words", "bpe")

DEFAULT_SIZE = {"bytes": 257, "characters": 256, "words": 8000, "bpe": 8000}
"""How many ids there are by default, padding (and the unknown) included."""

PADDING, UNKNOWN = "[PAD]", "[UNK]"


PIECE = 2**16
"""Characters that the library is given at once: it needs 140 bytes for each, of a text of 5 MB 0.7
GB."""

SPACE = re.compile(r"(?<=\S) (?=\S)")


def pieces(text: str) -> Iterator[str]:
    """A text in parts of about `PIECE` characters, cut before a single space, so that they have the
    whole's tokens.

    Where no such space comes for another `PIECE` characters, it is cut there.
    """
    start = 0
    while len(text) - start > PIECE:
        found = SPACE.search(text, start + PIECE, start + 2 * PIECE)
        end = found.start() if found else start + 2 * PIECE
        yield text[start:end]
        start = end
    if start < len(text) or not text:
        yield text[start:]


class Tokenizer(Protocol):
    """Text to ids of at least 1 and back; `size` counts padding, too."""

    @property
    def size(self) -> int: ...
    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def names(self) -> list[str]:
        """The text of every id."""
        ...

    def state(self) -> dict[str, Any]: ...


class Bytes:
    """UTF-8, byte b being id b + 1, so that a NUL is a token like any other."""

    size = 257

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids for each text."""
        return [[b + 1 for b in text.encode("utf-8", "replace")] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, padding left out; bytes that make no UTF-8 become U+FFFD."""
        return bytes(i - 1 for i in ids if i).decode("utf-8", "replace")

    def names(self) -> list[str]:
        """Each byte's Latin-1 character."""
        return ["", *(chr(b) for b in range(256))]

    def state(self) -> dict[str, Any]:
        """Nothing is learned."""
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
        """One list of ids for each text."""
        return [[self._ids.get(c, 1) for c in text] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, padding left out; the unknown is U+FFFD."""
        return "".join("\ufffd" if i == 1 else self.characters[i - 2] for i in ids if i)

    def names(self) -> list[str]:
        """The characters."""
        return ["", "\ufffd", *self.characters]

    def state(self) -> dict[str, Any]:
        """The characters in order."""
        return {"kind": "characters", "characters": self.characters}


class Learned:
    """Words or byte pairs, by the `tokenizers` library."""

    def __init__(self, kind: str, text: str):
        from tokenizers import Tokenizer as Library

        self.kind, self.text = kind, text
        self._library = Library.from_str(text)

    @property
    def size(self) -> int:
        """Ids, with padding and the unknown."""
        return self._library.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids for each text."""
        if all(len(text) <= PIECE for text in texts):
            return [one.ids for one in self._library.encode_batch_fast(list(texts))]
        return [
            [i for piece in pieces(text) for i in self._library.encode(piece).ids] for text in texts
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, padding left out; of words, with spaces between them."""
        ids = [i for i in ids if i]
        return (
            self._library.decode(ids)
            if self.kind == "bpe"
            else " ".join(self.names()[i] for i in ids)
        )

    def names(self) -> list[str]:
        """The words or pieces."""
        return [self._library.id_to_token(i) or "" for i in range(self.size)]

    def state(self) -> dict[str, Any]:
        """The library's own JSON."""
        return {"kind": self.kind, "tokenizer": self.text}


def size_of(kind: str, size: int) -> int:
    """Ids that a tokenizer of at most `size` may use (0: the default); `InputError` for an
    impossible number."""
    if kind not in KINDS:
        raise unknown("tokens", kind, KINDS)
    if size == 0:
        return DEFAULT_SIZE[kind]
    least = {"bytes": 257, "bpe": 258}.get(kind, 3)
    if kind == "bytes" and size != 257:
        raise InputError(f"tokens = 'bytes' has 257 ids: leave vocabulary_size at 0, got {size}.")
    if size < least:
        raise InputError(
            f"vocabulary_size must be at least {least} for tokens = {kind!r}, got {size}."
        )
    return size


def train(kind: str, texts: Iterable[str], size: int, *, split: bool = False) -> Tokenizer:
    """A tokenizer of at most `size` ids, learned from `texts`.

    Args:
      kind: of `KINDS`.
      texts: of the training part only.
      size: see `size_of`.
      split: for "words": words are what stands between white space, and case counts. Otherwise
        punctuation is apart and everything is lower case.
    """
    if kind == "bytes":
        return Bytes()
    if kind == "characters":
        counts = Counter(c for text in texts for c in text)
        ranked = sorted(counts, key=lambda c: (-counts[c], c))
        return Characters("".join(ranked[: size - 2]))
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "words":
        library = Library(models.WordLevel(unk_token=UNKNOWN))
        library.pre_tokenizer = (
            pre_tokenizers.WhitespaceSplit() if split else pre_tokenizers.Whitespace()
        )
        if not split:
            library.normalizer = normalizers.Lowercase()
        trainer: Any = trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=[PADDING, UNKNOWN], show_progress=False
        )
    else:
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[PADDING, UNKNOWN],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
    library.train_from_iterator(_chunks(texts), trainer)
    return Learned(kind, library.to_str())


def _chunks(texts: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in itertools.chain.from_iterable(map(pieces, texts)):
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def restored(state: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a `state`; `InputError` where it is none."""
    kind = state.get("kind")
    try:
        if kind == "bytes":
            return Bytes()
        if kind == "characters":
            return Characters(str(state["characters"]))
        if kind in ("words", "bpe"):
            json.loads(state["tokenizer"])
            return Learned(kind, state["tokenizer"])
    except Exception as error:
        raise InputError(f"the saved tokenizer of {kind} is damaged: {error}.") from None
    raise unknown("kind of saved tokenizer", kind, KINDS)
