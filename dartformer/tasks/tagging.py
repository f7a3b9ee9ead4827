"""What a user would try first on labelled words: logistic regression on the word and its neighbours.

The words are those that the model reads: one that train has too rarely is unknown here, too.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from dartformer.data.answers import Answers, labels_of
from dartformer.data.splits import Batch, Split, in_order
from dartformer.tasks.rules import MOST_WEIGHTS, Merit, Rule, can_fit, first, linear, sampled

REACH = 2
"""Neighbours on either side."""

LONGEST = 4
"""Letters of the longest beginning and ending of a word that are features."""

MOST_WORDS = 40_000
"""Labelled words of train that the rule is fitted on."""

TRIED_WORDS = 10_000
"""Labelled words of train, and of valid, that settings are compared on."""

INVERSE_PENALTIES = (1.0, 10.0, 100.0)
"""Settings of logistic regression, scikit-learn's C."""


def of_words(
    names: Sequence[str], classes: int, train: Split, valid: Split, merit: Merit
) -> list[Rule]:
    """Logistic regression on each word, its letters and its neighbours.

    Args:
      names: the word of every token id, of which the first is padding.
      classes: how many.
      train: what is learned from.
      valid: how much weights are penalised is chosen on.
      merit: how good answers are.
    """
    start = time.perf_counter()
    if not can_fit(labels_of(train).values):
        return []
    tables = _tables(names)
    tried, judges = _part(train, TRIED_WORDS), _part(valid, TRIED_WORDS)
    judged = labels_of(judges)
    fitted = []
    for setting in INVERSE_PENALTIES:
        outputs = _model(tables, tried, classes, setting)
        fitted.append((merit(Answers(outputs(judges), judged)), setting))
    # Of equals the stronger penalty.
    _, setting = max(fitted, key=lambda entry: (entry[0], -entry[1]))
    rows = _part(train, MOST_WORDS)
    outputs = _model(tables, rows, classes, setting)

    def answers(split: Split) -> Answers:
        return Answers(outputs(split), labels_of(split))

    words = f"logistic regression (C = {setting:g}) on each word, its letters and its neighbours"
    words += sampled(len(rows), len(train))
    return [Rule("logistic_regression", words, answers, time.perf_counter() - start)]


def _part(split: Split, words: int) -> Split:
    """Rows of a split that have about so many labelled words."""
    labels = labels_of(split)
    mean = len(labels.values) / max(1, labels.examples)
    return first(split, max(1, int(words / max(mean, 1))))


def _model(
    tables: "_Tables", rows: Split, classes: int, setting: float
) -> Callable[[Split], np.ndarray]:
    """A function from a split to probabilities `[M, C]`, fitted on rows."""
    features = sparse.vstack(list(tables.features(rows)), "csr")
    # The features of the most words, as many as there is memory for.
    counts = features.getnnz(0)
    order = np.argsort(-counts, kind="stable")[: MOST_WEIGHTS // max(1, classes)]
    columns = np.sort(order[counts[order] > 0])
    model = linear(features[:, columns], labels_of(rows).values, classes, setting)

    def outputs(split: Split) -> np.ndarray:
        parts = [np.zeros((0, classes))]
        for part in tables.features(split):
            parts.append(model.outputs(part[:, columns]))
        return np.concatenate(parts)

    return outputs


class _Tables(NamedTuple):
    """Features of every word: as the one that has the label `[V, F]`, as its neighbour `[V, G]`."""

    own: sparse.csr_matrix
    near: sparse.csr_matrix

    def features(self, split: Split) -> Iterator[sparse.csr_matrix]:
        """Of the labelled words of each batch, in the order of `labels_of`."""
        for batch in in_order(split):
            yield self._of_batch(batch)

    def _of_batch(self, batch: Batch) -> sparse.csr_matrix:
        tokens = np.where(batch["valid"], batch["tokens"], 0)
        # Beyond the ends is padding, whose feature says so.
        padded = np.pad(tokens, ((0, 0), (REACH, REACH)))
        rows, places = np.nonzero(batch["label"] >= 0)
        blocks = []
        for offset in range(2 * REACH + 1):
            table = self.near
            if offset == REACH:
                table = self.own
            blocks.append(table[padded[rows, places + offset]])
        return sparse.hstack(blocks, "csr")


def _tables(names: Sequence[str]) -> _Tables:
    own, near = [], []
    for name in names:
        own.append(_features(name))
        near.append([f"word {name.lower()}", f"shape {shape(name)}"])
    return _Tables(_one_hot(own), _one_hot(near))


def _features(word: str) -> list[str]:
    features = [f"spelling {word}", f"word {word.lower()}", f"shape {shape(word)}"]
    for n in range(1, LONGEST + 1):
        features.append(f"beginning {word[:n]}")
        features.append(f"ending {word[-n:]}")
    return features


def shape(word: str) -> str:
    """ "Xx", "x0" or "X.X.": kinds of the letters, a repeated one once."""
    kinds: list[str] = []
    for letter in word:
        kind = letter
        if letter.isupper():
            kind = "X"
        elif letter.isalpha():
            kind = "x"
        elif letter.isdigit():
            kind = "0"
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
    return "".join(kinds)


def _one_hot(features: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """`[V, F]`: 1 where a word has a feature."""
    columns: dict[str, int] = {}
    places, ends = [], [0]
    for of_word in features:
        for name in dict.fromkeys(of_word):
            places.append(columns.setdefault(name, len(columns)))
        ends.append(len(places))
    values = np.ones(len(places))
    return sparse.csr_matrix((values, places, ends), shape=(len(features), len(columns)))
