"""What the places of a checkpoint are scored with.

A decoder reads pieces of a text and passages that come again, and an encoder reads documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dartformer.errors import InputError
from dartformer.machine.workdir import read_text
from dartformer.pretrained.base import Described
from dartformer.pretrained.sentence import Rows, filled, sentence_of
from dartformer.pretrained.texts import Texts

MOST_SCORED = 64
"""Tokens of a sequence that are scored. For a vocabulary of 50,000 the logits of 256 tokens would
cost as much as the layers of a small model."""

MOST_READ = 2**23
"""Characters of a text that are read: far more than the sequences of a placement need."""


Row = tuple[np.ndarray, np.ndarray]
"""The tokens `[N]` of a sequence, and which of them count."""


class Sequences(NamedTuple):
    """Sequences of one length and what is scored of them.

    Attributes:
      tokens: ids `[B, N]`.
      scored: `[S]`, the tokens whose predictions count; token n is predicted from those before it.
    """

    tokens: np.ndarray
    scored: np.ndarray

    def take(self, start: int, end: int) -> "Sequences":
        """Some of the sequences."""
        return Sequences(self.tokens[start:end], self.scored)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [self.tokens.shape[1]] * len(self.tokens)

    def rows(self) -> Iterator[Row]:
        """Each sequence with what is scored of it."""
        for tokens in self.tokens:
            yield tokens, self.scored


class Documents(NamedTuple):
    """Documents of an encoder, filled up to one length.

    Attributes:
      tokens: ids `[B, N]`.
      valid: `[B, N]` bool, False at padding.
    """

    tokens: np.ndarray
    valid: np.ndarray

    def take(self, start: int, end: int) -> "Documents":
        """Some of the documents."""
        return Documents(self.tokens[start:end], self.valid[start:end])

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document, without padding."""
        lengths: list[int] = self.valid.sum(1).tolist()
        return lengths

    def rows(self) -> Iterator[Row]:
        """Each document with which of its tokens are valid."""
        yield from zip(self.tokens, self.valid, strict=True)


def pieces(text: np.ndarray, length: int, count: int) -> Sequences:
    """Pieces of a text, spread evenly over it; up to 64 tokens of each are scored.

    The first quarter is context alone.

    Raises:
      InputError: the text is shorter than the pieces together.
    """
    tokens = _cut(text, length, count)
    scored = min(MOST_SCORED, length - length // 4 - 1)
    return Sequences(tokens, np.linspace(length // 4 + 1, length - 1, scored).round().astype(int))


def repeated(text: np.ndarray, length: int, count: int) -> Sequences:
    """Pieces whose first passage comes again at their end: 5 in 16 tokens, such as 80 of 256.

    What is between is the text that follows the passage. The last 64 tokens of the second reading
    are scored, or all but its first where it is shorter: nothing announces that.

    Raises:
      InputError: the text is shorter than the pieces together.
    """
    passage = 5 * length // 16
    tokens = _cut(text, length, count)
    tokens[:, length - passage :] = tokens[:, :passage]
    scored = min(MOST_SCORED, passage - 1)
    return Sequences(tokens, np.arange(length - scored, length))


class Split(NamedTuple):
    """Sequences of one kind: those that score the places, and those that test the choice."""

    calibration: Sequences | Documents
    held_out: Sequences | Documents


TEXT, AGAIN = "text", "again"
"""The kinds of sequences: plain text, and a passage that comes again. An encoder has text alone."""

KINDS = {TEXT: pieces, AGAIN: repeated}


def both_kinds(text: np.ndarray, length: int, calibration: int, held_out: int) -> dict[str, Split]:
    """Sequences of both kinds; the beginning of the text scores, and the rest tests.

    Raises `InputError` where the text is shorter than the sequences together.
    """
    count = calibration + held_out
    splits = {}
    for kind, make in KINDS.items():
        sequences = make(text, length, count)
        splits[kind] = Split(sequences.take(0, calibration), sequences.take(calibration, count))
    return splits


def calibration_part(text: np.ndarray, calibration: int, held_out: int) -> np.ndarray:
    """The text before the first sequence that tests, see `both_kinds`."""
    return text[: len(text) // (calibration + held_out) * calibration]


def documents_of(text: str) -> list[str]:
    """The documents of a text: what blank lines set off, or its lines where there are none."""
    separator = "\n"
    if "\n\n" in text.strip():
        separator = "\n\n"
    documents = []
    for document in text.split(separator):
        if document.strip():
            documents.append(document.strip())
    return documents


def documents_in(file: str | Path) -> list[str]:
    """The documents of a text file; raises `InputError` where it cannot be read."""
    return documents_of(read_text(Path(file).expanduser())[:MOST_READ])


def documents(
    checkpoint: Described, file: str | Path, length: int, calibration: int, held_out: int
) -> Split:
    """Documents of a text file for an encoder, cut after `length` tokens.

    Those of at least so many tokens are taken, spread evenly over the file, or the longest ones
    where there are too few of them: no window loses anything on a short one. Raises `InputError`
    where the file has fewer documents than are needed.
    """
    count = calibration + held_out
    texts = documents_in(file)
    if len(texts) < count:
        raise InputError(
            f"{file} has {_counted(len(texts))}, and {count} are needed. Set documents off by blank "
            f"lines, or give each one a line; or use fewer of them (checkpoint.sequences, "
            f"checkpoint.held_out)."
        )
    rows = Rows(checkpoint.folder, sentence_of(checkpoint), length)(texts)
    largest = max(max(row, default=0) for row in rows)
    _require_vocabulary(checkpoint.folder, largest, checkpoint.config.vocabulary)
    long = [row for row in rows if len(row) >= length]
    if len(long) < count:
        longest = sorted(range(len(rows)), key=lambda number: -len(rows[number]))[:count]
        long = [rows[number] for number in sorted(longest)]
    chosen = [long[number * len(long) // count] for number in range(count)]
    whole = Documents(*filled(chosen, length))
    return Split(whole.take(0, calibration), whole.take(calibration, count))


def _counted(count: int) -> str:
    if count == 1:
        return "1 document"
    return f"{count} documents"


def tokens_of(folder: Path, file: str | Path, vocabulary: int) -> np.ndarray:
    """The tokens of a text file, by the tokenizer of a checkpoint.

    Raises `InputError` where the file cannot be read, or the tokenizer has tokens that the model
    lacks.
    """
    text = read_text(Path(file).expanduser())[:MOST_READ]
    tokens = np.array(Texts(folder).prompt(text), np.int32)
    _require_vocabulary(folder, tokens.max(initial=0), vocabulary)
    return tokens


def _require_vocabulary(folder: Path, largest: int, vocabulary: int) -> None:
    """Raise `InputError` for a token that the model lacks."""
    if largest >= vocabulary:
        raise InputError(
            f"the tokenizer of {folder} does not match its model: it makes the token {largest}, "
            f"and the model has {vocabulary} of them. Use the tokenizer.json that the checkpoint "
            f"was trained with."
        )


def _cut(text: np.ndarray, length: int, count: int) -> np.ndarray:
    if length < 8 or count < 1:
        raise InputError(
            f"placement needs at least 1 sequence of at least 8 tokens, got {count} of {length}."
        )
    text = np.asarray(text)
    if len(text) < length * count:
        raise InputError(
            f"the text has {len(text)} tokens, and {count} sequences of {length} need "
            f"{length * count}. Use a longer text, or fewer or shorter sequences."
        )
    distance = len(text) // count
    starts = distance * np.arange(count)
    return text[starts[:, None] + np.arange(length)]
