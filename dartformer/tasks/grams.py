"""N-grams of texts as sparse TF-IDF: hashed, so that neither time nor memory depends on the words."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self
from zlib import crc32

import numpy as np
from scipy import sparse

WIDTH = 2**20
"""Buckets that n-grams are hashed to."""

MOST_FEATURES = 100_000
"""Buckets that are kept by default: those of the most texts."""

FEWEST_TEXTS = 2
"""An n-gram of a single text says nothing of others."""

CHUNK = 2**20
"""Symbols whose n-grams are counted at once."""

WORD = re.compile(r"\w+")

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio, odd: products with it spread neighbouring numbers far apart."""

Unit = Literal["words", "characters"]

LONGEST = {"words": 2, "characters": 5}
"""Symbols of the longest n-gram."""


class _Symbols(NamedTuple):
    """Texts one after another.

    Attributes:
      values: `[T]` uint64, code points of characters, or hashes of words.
      texts: `[T]` the text of each.
      breaks: `[T]` whether it is a space between words, which no n-gram has inside.
    """

    values: np.ndarray
    texts: np.ndarray
    breaks: np.ndarray


def counts(texts: Iterable[str], unit: Unit) -> sparse.csr_matrix:
    """`[S, WIDTH]` how often the n-grams of each bucket occur in each text.

    N-grams of characters do not cross the borders of words, and see a space at either end.
    """
    rows = []
    for chunk in _chunks(texts, unit):
        rows.append(_counted(chunk, len(chunk), unit))
    if not rows:
        return sparse.csr_matrix((0, WIDTH), dtype=np.float32)
    return sparse.vstack(rows, "csr")


def _chunks(texts: Iterable[str], unit: Unit) -> Iterator[list[np.ndarray]]:
    """Symbols of texts, about `CHUNK` at a time."""
    chunk: list[np.ndarray] = []
    size = 0
    for text in texts:
        text = text.lower()
        if unit == "words":
            # The same in every process, which Python's own hash is not.
            words = text.encode("utf-8", "replace").decode()
            numbers = [crc32(word.encode()) for word in WORD.findall(words)]
            symbols = np.array(numbers, np.uint32)
        else:
            spaced = f" {' '.join(text.split())} "
            # Lone surrogates, which are not valid UTF-32, become question marks.
            symbols = np.frombuffer(spaced.encode("utf-32-le", "replace"), np.uint32)
        chunk.append(symbols)
        size += len(symbols)
        if size > CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _counted(chunk: Sequence[np.ndarray], texts: int, unit: Unit) -> sparse.csr_matrix:
    """`[texts, WIDTH]` of a chunk."""
    lengths = [len(symbols) for symbols in chunk]
    values = np.concatenate(chunk).astype(np.uint64)
    breaks = np.zeros(len(values), bool)
    if unit == "characters":
        breaks = values == ord(" ")
    symbols = _Symbols(values, np.repeat(np.arange(texts), lengths), breaks)
    cells = []
    for n in range(1, LONGEST[unit] + 1):
        cells.append(_cells(symbols, n))
    # One number for each pair of text and bucket, so that sorting counts them.
    cell, times = np.unique(np.concatenate(cells), return_counts=True)
    place = np.divmod(cell, WIDTH)
    return sparse.csr_matrix((times.astype(np.float32), place), shape=(texts, WIDTH))


def _cells(symbols: _Symbols, n: int) -> np.ndarray:
    """`text * WIDTH + bucket` of every n-gram of `n` symbols."""
    values, texts, breaks = symbols
    count = len(values) - n + 1
    if count <= 0:
        return np.zeros(0, np.int64)
    hashed = np.full(count, n, np.uint64)
    for i in range(n):
        # Wraps around modulo 2^64.
        hashed = (hashed + values[i : i + count]) * MULTIPLIER
        hashed ^= hashed >> np.uint64(29)
    valid = texts[:count] == texts[n - 1 :]
    for i in range(1, n - 1):
        valid &= ~breaks[i : i + count]
    if n == 1:
        valid &= ~breaks
    elif n == 2:
        # A space and the next word's first letter are a 2-gram; two spaces never meet.
        valid &= ~(breaks[:count] & breaks[1:])
    bucket = (hashed[valid] >> np.uint64(44)).astype(np.int64)  # the upper 20 bits
    return texts[:count][valid] * WIDTH + bucket


@dataclass(frozen=True)
class TfIdf:
    """Weights of the buckets that are kept, fitted on counts.

    Attributes:
      columns: `[F]` the buckets.
      idf: `[F]` log of the inverse share of texts that have each, smoothed by one text with all.
    """

    columns: np.ndarray
    idf: np.ndarray

    @classmethod
    def fitted(cls, counted: sparse.csr_matrix, most: int = MOST_FEATURES) -> Self:
        """Of the counts of train, with at most so many features."""
        texts = np.bincount(counted.indices, minlength=counted.shape[1])
        columns = np.flatnonzero(texts >= min(FEWEST_TEXTS, counted.shape[0]))
        most = min(most, MOST_FEATURES)
        if len(columns) > most:
            order = np.argsort(-texts[columns], kind="stable")
            columns = np.sort(columns[order[:most]])
        idf = np.log((1 + counted.shape[0]) / (1 + texts[columns])) + 1
        return cls(columns, idf.astype(np.float32))

    def __call__(self, counted: sparse.csr_matrix) -> sparse.csr_matrix:
        """`[S, F]` of counts: (1 + log count) idf, rows of length 1."""
        weighted = counted[:, self.columns].tocsr()
        weighted.data = 1 + np.log(weighted.data)
        weighted.data *= self.idf[weighted.indices]
        squares = np.asarray(weighted.multiply(weighted).sum(1)).ravel()
        # A text without any of the n-grams stays zero.
        norms = np.sqrt(np.maximum(squares, 1e-12)).astype(np.float32)
        weighted.data /= np.repeat(norms, np.diff(weighted.indptr))
        return weighted
