"""Sequences to score the places of a checkpoint with: pieces of a text, and passages read twice."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dartformer.errors import InputError
from dartformer.machine.workdir import read_text
from dartformer.pretrained.texts import Texts

MOST_SCORED = 64
"""Tokens of a sequence that are scored. For a vocabulary of 50,000 the logits of 256 tokens would
cost as much as the layers of a small model."""

MOST_READ = 2**23
"""Characters of a text that are read: far more than the sequences of a placement need."""


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

    calibration: Sequences
    held_out: Sequences


TEXT, AGAIN = "text", "again"
"""The kinds of sequences: plain text, and a passage that comes again."""

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


def tokens_of(folder: Path, file: str | Path, vocabulary: int) -> np.ndarray:
    """The tokens of a text file, by the tokenizer of a checkpoint.

    Raises `InputError` where the file cannot be read, or the tokenizer has tokens that the model
    lacks.
    """
    text = read_text(Path(file).expanduser())[:MOST_READ]
    tokens = np.array(Texts(folder).prompt(text), np.int32)
    if len(tokens) and tokens.max() >= vocabulary:
        raise InputError(
            f"the tokenizer of {folder} does not match its model: it makes the token "
            f"{tokens.max()}, and the model has {vocabulary} of them. Use the tokenizer.json that "
            f"the checkpoint was trained with."
        )
    return tokens


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
