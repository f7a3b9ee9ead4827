"""A guess at how texts become tokens: their kind, the vocabulary and the length."""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dartformer.data import tokens as tokenizers
from dartformer.data.encoder_tokens import of_encoder
from dartformer.data.records import Record
from dartformer.data.rows import is_blank, repaired
from dartformer.errors import InputError
from dartformer.tasks.columns import as_text

WORD = re.compile(r"\w+|[^\w\s]+")
"""A word or punctuation, as the tokenizer of words splits a text."""

FEWEST_WORDS = 3
"""Words of the median text from which on words are tried."""

MOST_UNKNOWN = {"words": 0.25, "characters": 0.05}
"""The share of unknown tokens, in texts that they were not learned from, up to which a kind of
tokens is proposed."""

BYTES_PER_CHARACTER = 1.5
"""Above this mean characters are tried: bytes would make texts of such a script too long."""

HELD_OUT = 10
"""One in so many texts of the sample measures the tokens, which are learned from the others."""

MEASURED = 5000
"""Characters of a text that are measured: more than the longest `length` reads."""

MOSTLY_WHOLE = 90
"""Percent of the texts that are read whole, below which both ends of the longer ones are read: in
reviews of films that has more right than their beginnings (experiments/README.md)."""

LENGTHS = (16, 512)
"""The shortest and the longest `length` that is guessed."""


class Tokens(NamedTuple):
    """The tokens of texts.

    Attributes:
      kind: of `tokenizers.KINDS`.
      size: `vocabulary_size`; 0 for the default.
      lengths: tokens of each text of the sample.
      unknown: share of unknown tokens in texts that they were not learned from.
    """

    kind: str
    size: int
    lengths: np.ndarray
    unknown: float


def add_tokens(
    options: dict[str, Any],
    rows: Sequence[Record],
    texts: Sequence[str],
    sentences: list[str],
    checkpoint: str = "",
) -> None:
    """Set the kind of tokens and the length; those of an encoder's checkpoint, if there is one."""
    documents = []
    for row in rows:
        for name in texts:
            text = repaired(as_text(row.get(name)))[:MEASURED]
            if not is_blank(text):
                documents.append(text)
    if not documents:
        raise InputError(f"the column {texts[0]!r} holds no texts.")
    if checkpoint:
        if options["kind"] not in ("classification", "regression"):
            raise of_whole_texts(checkpoint, options["kind"])
        tokens = _of_checkpoint(checkpoint, documents)
        options["checkpoint"] = checkpoint
    else:
        tokens = tokens_of(documents, options["kind"])
    options["tokens"] = tokens.kind
    if tokens.size:
        options["vocabulary_size"] = tokens.size
    options["length"] = length_of(tokens.lengths)
    complete = 100 * float((tokens.lengths <= options["length"]).mean())
    origin, among = tokens.kind, "in texts they were not learned from"
    if checkpoint:
        origin, among = "those of the checkpoint", "here"
    sentence = (
        f"tokens are {origin}, {100 * tokens.unknown:.0f}% of which are unknown {among}; length "
        f"{options['length']}, which holds {complete:.0f}% of the texts whole"
    )
    # Where every token has a label, or is one, a text has no middle to leave out.
    if complete < MOSTLY_WHOLE and options["kind"] not in ("labelling", "language"):
        options["crop"] = "ends"
        sentence += "; of a longer one its two ends are read"
    sentences.append(sentence)


def tokens_of(texts: Sequence[str], kind: str) -> Tokens:
    """The tokens that fit the texts, by the share that is unknown in texts held out."""
    by_word = float(np.median([len(WORD.findall(text)) for text in texts]))
    characters = sum(map(len, texts))
    size = sum(len(text.encode()) for text in texts)
    wide = size > BYTES_PER_CHARACTER * characters
    if kind == "labelling":
        # Labels are for words between spaces, whatever punctuation is in them.
        return measured("words", texts, split=True)
    if by_word >= FEWEST_WORDS and kind != "language":
        tokens = measured("words", texts)
        if tokens.unknown <= MOST_UNKNOWN["words"]:
            return tokens
    if wide or kind == "language":
        tokens = measured("characters", texts, characters_size(texts))
        if tokens.unknown <= MOST_UNKNOWN["characters"]:
            return tokens
    if by_word >= FEWEST_WORDS and not wide and kind != "language":
        return measured("bpe", texts)
    # Texts of a word or two are read byte by byte: words alone would say too little of them.
    return measured("bytes", texts)


def of_whole_texts(checkpoint: str, kind: str) -> InputError:
    """The error for data that no encoder reads."""
    return InputError(
        f"--from={checkpoint} is an encoder, which keeps no cache: it works with texts that have a "
        f"class or a number each, and these data are of the kind {kind!r}. Use a decoder, such as a "
        f"Llama, to place full attention."
    )


def _of_checkpoint(checkpoint: str, texts: Sequence[str]) -> Tokens:
    """The tokens of an encoder's checkpoint."""
    tokenizer = of_encoder(checkpoint)
    around = sum(map(len, tokenizer.around))
    lengths, unknowns = [], 0
    for ids in tokenizer.encode(texts):
        lengths.append(len(ids) + around)
        unknowns += int(np.count_nonzero(np.array(ids) == tokenizer.unknown))
    return Tokens("checkpoint", 0, np.array(lengths), unknowns / max(1, sum(lengths)))


def characters_size(texts: Sequence[str]) -> int:
    """A `vocabulary_size` for all characters of the texts; 0 where the default holds them."""
    different = len(set().union(*texts)) + 2
    default = tokenizers.DEFAULT_SIZE["characters"]
    if different <= default:
        return 0
    return default * (math.ceil(different / default) + 1)


def measured(kind: str, texts: Sequence[str], size: int = 0, *, split: bool = False) -> Tokens:
    """The tokens of a kind, learned from most texts and measured on the others."""
    learning = [text for i, text in enumerate(texts) if i % HELD_OUT]
    vocabulary = tokenizers.size_of(kind, size)
    tokenizer = tokenizers.train(kind, learning or texts, vocabulary, split=split)
    lengths = []
    tokens = unknowns = 0
    for i, ids in enumerate(tokenizer.encode(texts)):
        lengths.append(len(ids))
        if i % HELD_OUT == 0:
            tokens += len(ids)
            unknowns += tokenizers.unknown_tokens(kind, np.array(ids))
    return Tokens(kind, size, np.array(lengths), unknowns / max(1, tokens))


def length_of(lengths: np.ndarray) -> int:
    """A multiple of 8 that holds 95% of the texts whole, within `LENGTHS`."""
    shortest, longest = LENGTHS
    enough = 8 * math.ceil(int(np.quantile(lengths, 0.95)) / 8)
    return min(longest, max(shortest, enough))
