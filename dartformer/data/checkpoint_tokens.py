"""The tokenizer of a checkpoint, as its `tokenizer.json` says: text to token ids and back.

Only tokenizers that spell every text are read: those of bytes (GPT-2, Llama 3, Qwen, SmolLM), and
those that fall back to bytes (Llama 2). Scores per character then hold for all of the text."""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from dartformer.data.locations import located
from dartformer.data.tokens import pieces, pieces_of_parts
from dartformer.errors import InputError, brief
from dartformer.machine.workdir import read_json, read_text

FILE = "tokenizer.json"

TOGETHER = 2**19
"""Characters that are tokenized at once: the library needs 140 bytes for each, and all cores."""

FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
"""A token that is one byte of a character for which there is no token."""

SPACE = "\u2581"
"""What tokenizers of the family of SentencePiece write for a space."""


class OfFile:
    """A tokenizer by the library, which cuts and fills nothing; `text` is of `tokenizer.json`."""

    def __init__(self, text: str):
        # Here: texts of bytes or characters need no library.
        from tokenizers import Tokenizer as Library

        self.text = text
        self._library = Library.from_str(text)
        self._library.no_truncation()
        self._library.no_padding()
        # "<|endoftext|>" in a text is text. The library's JSON does not keep this setting.
        self._library.encode_special_tokens = True

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return 1 + max(self._library.get_vocab().values())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        return self._library.decode(list(ids))


class CheckpointTokens(OfFile):
    """A `dartformer.data.tokens.Tokenizer` by the library; every id may be of text, 0 too.

    Args:
      text: of `tokenizer.json`.
      end: the id that stands between two documents; None where it is not known.
    """

    def __init__(self, text: str, end: int | None):
        super().__init__(text)
        self.end = end

    @cached_property
    def _adds_space(self) -> bool:
        """Whether a text begins with a space that it does not have, even where it has one."""
        plain, spaced = self.encode_pieces(["a", " a"])
        return self._spelled(plain) == b" a" and self._spelled(spaced) == b"  a"

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """A list of ids for each text, without those that the tokenizer puts around it."""
        encoded = []
        for text in texts:
            parts = [self.continued(piece, number) for number, piece in enumerate(pieces(text))]
            encoded.append(list(itertools.chain.from_iterable(self.encode_pieces(parts))))
        return encoded

    def encode_parts(self, parts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of one text that comes in parts: those of `encode`, some at a time.

        Neither the text nor its ids need fit into memory."""
        waiting: list[str] = []
        characters = 0
        for number, piece in enumerate(pieces_of_parts(parts)):
            waiting.append(self.continued(piece, number))
            characters += len(piece)
            if characters >= TOGETHER:
                yield from self.encode_pieces(waiting)
                waiting, characters = [], 0
        yield from self.encode_pieces(waiting)

    def encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """A list of ids for each of some texts of a moderate length, on all cores."""
        encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def continued(self, piece: str, number: int) -> str:
        """Piece `number` of a text, without a space that the tokenizer puts before it again."""
        if number and piece.startswith(" ") and self._adds_space:
            return piece[1:]
        return piece

    def id_of(self, token: str) -> int | None:
        """The id of a token; None where there is none."""
        number: int | None = self._library.token_to_id(token)
        return number

    def names(self) -> list[str]:
        """The text of every id."""
        names = []
        for i, spelled in enumerate(self.spellings):
            text = spelled.decode("utf-8", "replace")
            names.append(text or self._library.id_to_token(i) or "")
        return names

    def state(self) -> dict[str, str]:
        """The file, and the end token."""
        end = ""
        if self.end is not None:
            end = str(self.end)
        return {"kind": "checkpoint", "tokenizer": self.text, "end": end}

    def _spelled(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.spellings[i] for i in ids)

    @cached_property
    def spellings(self) -> list[bytes]:
        """The bytes of UTF-8 that each id stands for; none for special tokens."""
        spellings = [b""] * self.size
        of_bytes = _is_of_bytes(self.text)
        added = self._library.get_added_tokens_decoder()
        for token, i in self._library.get_vocab().items():
            if i in added:
                # Others than special ones are matched in the text as they are.
                if not added[i].special:
                    spellings[i] = token.encode()
            elif of_bytes:
                spellings[i] = bytes(_BYTES[character] for character in token)
            else:
                byte = FALLBACK.fullmatch(token)
                spellings[i] = token.replace(SPACE, " ").encode()
                if byte:
                    spellings[i] = bytes([int(byte[1], 16)])
        return spellings

    @cached_property
    def characters(self) -> np.ndarray:
        """How many characters each id begins, `[V]` int32: bytes that continue none in UTF-8."""
        counts = np.zeros(self.size, np.int32)
        for i, spelled in enumerate(self.spellings):
            # 10xxxxxx continues a character.
            counts[i] = sum(byte & 0xC0 != 0x80 for byte in spelled)
        return counts


def file_of(checkpoint: str) -> Path:
    """The `tokenizer.json` in the folder of a checkpoint; `InputError` where there is none."""
    path = located(checkpoint, None)
    file = path
    if path.is_dir():
        file = path / FILE
    if not file.is_file():
        raise InputError(f"{path} has no {FILE}. Name the folder of a checkpoint that has one.")
    return file


def of_checkpoint(checkpoint: str, end: str = "") -> CheckpointTokens:
    """The tokenizer in a folder of a checkpoint, or of a `tokenizer.json`.

    Args:
      checkpoint: the folder or file.
      end: the token between documents; empty for the checkpoint's own end token.

    Raises:
      InputError: there is none, it is damaged, it cannot spell every text, or it has no such token.
    """
    file = file_of(checkpoint)
    return _read(file, end, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: Path, end: str, version: int) -> CheckpointTokens:
    """The tokenizer in a file; `version` changes with it."""
    text = read_text(file)
    tokenizer = _opened(text, None, str(file))
    if end:
        tokenizer.end = tokenizer.id_of(end)
        if tokenizer.end is None:
            raise InputError(f"{file} has no token {brief(end)}. Set task.end to one that it has.")
        return tokenizer
    for name in ("generation_config.json", "config.json"):
        settings = file.parent / name
        if tokenizer.end is None and settings.is_file():
            tokenizer.end = _end_of(read_json(settings), tokenizer.size)
    return tokenizer


def _end_of(settings: object, size: int) -> int | None:
    """The first `eos_token_id` of a checkpoint's settings."""
    ids = None
    if isinstance(settings, dict):
        ids = settings.get("eos_token_id")
    if isinstance(ids, list) and ids:
        ids = ids[0]
    if isinstance(ids, int) and 0 <= ids < size:
        return ids
    return None


@lru_cache(maxsize=2)
def restored(text: str) -> CheckpointTokens:
    """The tokenizer of the JSON of a `state`; `InputError` where it is damaged."""
    place = "the saved tokenizer"
    try:
        state = json.loads(text)
        content, end = state["tokenizer"], state["end"]
        number = None
        if end:
            number = int(end)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{place} is damaged: {error}.") from None
    return _opened(content, number, place)


def _opened(text: str, end: int | None, place: str) -> CheckpointTokens:
    """The tokenizer of a text; `place` names it in errors."""
    try:
        json.loads(text)
        tokenizer = CheckpointTokens(text, end)
        tokenizer.characters  # noqa: B018 - it reads every token
    # The library raises this type for whatever is wrong.
    except Exception as error:
        raise InputError(f"{place} is damaged: {error}.") from None
    if not _is_of_bytes(text) and not json.loads(text)["model"].get("byte_fallback"):
        raise InputError(
            f"{place} cannot spell every text, because its tokens are neither of bytes nor fall "
            f"back to bytes. Use the tokenizer of a decoder, or task.tokens='characters'."
        )
    return tokenizer


def _is_of_bytes(text: str) -> bool:
    """Whether the tokens of a `tokenizer.json` are bytes, each written as one character."""
    content = json.loads(text)
    steps = [*_types(content.get("pre_tokenizer")), *_types(content.get("decoder"))]
    return "ByteLevel" in steps


def _types(step: object) -> Iterator[str]:
    """The types of a step of a tokenizer and of those inside it."""
    if isinstance(step, dict):
        yield str(step.get("type"))
        for inner in step.values():
            yield from _types(inner)
    elif isinstance(step, list):
        for inner in step:
            yield from _types(inner)


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a token of bytes stands for (GPT-2's table).

    Bytes that print are themselves, and the others come in order from U+0100 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printed}
    others = sorted(set(range(256)) - set(printed))
    for number, byte in enumerate(others):
        table[chr(0x100 + number)] = byte
    return table


_BYTES = _byte_of_character()
