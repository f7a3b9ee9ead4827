"""The tokenizer of an encoder's checkpoint, for texts that are read whole: classes and numbers."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from dartformer.data.checkpoint_tokens import OfFile, file_of
from dartformer.data.tokens import pieces
from dartformer.errors import InputError
from dartformer.machine.workdir import read_text

KIND = "checkpoint"


class EncoderTokens(OfFile):
    """A `dartformer.data.tokens.Tokenizer` by the library, from the text of a `tokenizer.json`.

    Words it does not know become its unknown token, and every text stands between the same tokens,
    such as [CLS] and [SEP] of BERT.
    """

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The ids before and behind every text."""
        bare = self._library.encode("a", add_special_tokens=False).ids
        whole = self._library.encode("a").ids
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        return [], []

    @cached_property
    def unknown(self) -> int | None:
        """The id of the unknown token; None where every text can be spelled."""
        token = json.loads(self.text)["model"].get("unk_token")
        if token is None:
            return None
        number: int | None = self._library.token_to_id(token)
        return number

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """A list of ids for each text, without those around it."""
        encoded = []
        for text in texts:
            ids: list[int] = []
            for part in self._library.encode_batch_fast([*pieces(text)], add_special_tokens=False):
                ids += part.ids
            encoded.append(ids)
        return encoded

    def names(self) -> list[str]:
        """The text of every id."""
        return [self._library.id_to_token(i) or "" for i in range(self.size)]

    def state(self) -> dict[str, str]:
        """The text of the file."""
        return {"kind": KIND, "tokenizer": self.text}


def of_encoder(checkpoint: str) -> EncoderTokens:
    """The tokenizer in the folder of a checkpoint; `InputError` where there is none."""
    file = file_of(checkpoint)
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(file: Path, version: int) -> EncoderTokens:
    """The tokenizer in a file; `version` changes with it."""
    return _opened(read_text(file), str(file))


def restored(state: Mapping[str, Any]) -> EncoderTokens:
    """The tokenizer of a `state`; `InputError` where it is damaged."""
    return _opened(state.get("tokenizer"), "the saved tokenizer")


def _opened(text: Any, place: str) -> EncoderTokens:
    """The tokenizer of a text; `place` names it in errors."""
    try:
        tokenizer = EncoderTokens(text)
        tokenizer.around, tokenizer.unknown  # noqa: B018 - they read what may be damaged
    # The library raises this type for whatever is wrong.
    except Exception as error:
        raise InputError(f"{place} is damaged: {error}.") from None
    return tokenizer
