"""Simple rules that read hardly any order: what a model must beat to have learned something."""

from collections.abc import Callable

import numpy as np

from dartformer.data.splits import Batch, Split, in_order
from dartformer.tasks.characters import Units, characters_of, spelling

HASHED = 2**16
"""Buckets of four-grams, where tokens are bytes or characters."""

PAIRS_CHUNK = 256
"""Pairs of documents at once: their features are wide."""

TOKENS_CHUNK = 2**22
"""Tokens whose pairs are counted at once."""

Features = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(tokens `[B, N]`, valid `[B, N]`) -> `[B, width]`, 0 or 1: what occurs in each text."""


def occurs(width: int, grams: int = 1) -> Features:
    """Which of `width` token ids a text has; or which n-grams, in `width` buckets."""

    def features(tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
        ids = tokens.astype(np.int64)
        if grams > 1:
            ids = _hashed(ids, grams, width)
            # A gram is valid where its last token is.
            valid = valid[:, valid.shape[1] - ids.shape[1] :]
        occurring = np.zeros((len(ids), width), np.float32)
        row, position = np.nonzero(valid)
        occurring[row, ids[row, position]] = 1
        return occurring

    return features


def _hashed(ids: np.ndarray, grams: int, width: int) -> np.ndarray:
    """`[B, N - grams + 1]` buckets of the n-grams of ids `[B, N]`."""
    length = ids.shape[1]
    n = max(length - grams + 1, 1)
    # A polynomial in a prime; powers modulo 2^31, so that the sum fits 64 bits.
    total = np.zeros((len(ids), n), np.int64)
    for i in range(min(grams, length)):
        total += ids[:, i : i + n] * pow(1_000_003, i, 2**31)
    return total % width


def naive_bayes(train: Split, split: Split, classes: int, features: Features) -> float:
    """Accuracy on `split` of naive Bayes on what occurs, fitted on `train`.

    Counts have add-one smoothing."""
    counts: np.ndarray | float = 0.0  # [classes, width], once the width is known
    per_class = np.zeros(classes)
    for batch in in_order(train):
        one_hot = np.eye(classes, dtype=np.float32)[batch["label"]]
        # Added up in float64: float32 stops counting at 2^24.
        counts = counts + (one_hot.T @ _occurring(batch, features)).astype(np.float64)
        per_class += one_hot.sum(0)
    smoothed = np.asarray(counts) + 1
    likelihood = np.log(smoothed) - np.log(smoothed.sum(1, keepdims=True))
    weights = likelihood.T.astype(np.float32)
    # A class without examples gets a probability that never wins, not a logarithm of zero.
    prior = np.log(np.maximum(per_class, 1e-9) / per_class.sum())
    right = 0
    for batch in in_order(split):
        scores = _occurring(batch, features) @ weights + prior
        # Rounded, so that classes tied but for the last digits, which depend on a row's place in
        # its batch, stay tied: the first is taken.
        scores = scores.round(2)
        right += int((scores.argmax(1) == batch["label"]).sum())
    return right / len(split)


def _occurring(batch: Batch, features: Features) -> np.ndarray:
    """Features of examples, two documents read as one."""
    count = len(batch["label"])
    return features(batch["tokens"].reshape(count, -1), batch["valid"].reshape(count, -1))


def overlap(train: Split, split: Split, features: Features) -> float:
    """Accuracy on `split` of calling two documents a match above a TF-IDF cosine.

    Idf and threshold are fitted on `train`."""
    documents: np.ndarray | float = 0.0  # [width] documents that have a feature
    for batch in in_order(train, PAIRS_CHUNK):
        first, second = _both(batch, features)
        documents = documents + (first.sum(0) + second.sum(0)).astype(np.float64)
    # Smoothed by one document that has every feature, so that no idf is infinite.
    idf = np.log((2 * len(train) + 1) / (np.asarray(documents) + 1)).astype(np.float32)
    values, labels = _cosines(train, features, idf)
    threshold = best_threshold(values, labels)
    values, labels = _cosines(split, features, idf)
    return float(((values >= threshold) == labels).mean())


def _both(batch: Batch, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Features of the first and of the second document."""
    tokens, valid = batch["tokens"], batch["valid"]  # [B, 2, N]
    first = features(tokens[:, 0], valid[:, 0])
    second = features(tokens[:, 1], valid[:, 1])
    return first, second


def _cosines(split: Split, features: Features, idf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of the two documents of every example, and its label."""
    values = []
    labels = []
    for batch in in_order(split, PAIRS_CHUNK):
        first, second = _both(batch, features)
        u, v = first * idf, second * idf
        norm = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
        values.append((u * v).sum(1) / np.maximum(norm, 1e-9))
        labels.append(batch["label"])
    return np.concatenate(values), np.concatenate(labels)


def right_from(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct `values` [V], ascending, and how many examples each threshold gets right, [V + 1].

    Entry i is for calling all from value i on 1, and those below it 0. A threshold never lies
    between equal values, where the answers would depend on the order of the examples."""
    thresholds, place = np.unique(values, return_inverse=True)
    zeros = np.bincount(place[labels == 0], minlength=len(thresholds))
    ones = np.bincount(place[labels == 1], minlength=len(thresholds))
    zeros_below = np.concatenate([[0], np.cumsum(zeros)])
    ones_below = np.concatenate([[0], np.cumsum(ones)])
    return thresholds, zeros_below + ones.sum() - ones_below


def best_threshold(values: np.ndarray, labels: np.ndarray) -> float:
    """The value at and above which calling examples 1 is right most often; of equals the lowest."""
    thresholds, right = right_from(values, labels)
    best = int(right.argmax())
    if best < len(thresholds):
        return float(thresholds[best])
    return np.inf


def mean_of_train(train: Split, split: Split) -> float:
    """Share of variance explained (at most 0) by always predicting the mean of `train`.

    NaN, which means undefined, where the labels of `split` are all the same."""
    # In one order: the last digits of a sum depend on it.
    prediction = np.sort(_labels(train)).mean(dtype=np.float64)
    labels = np.sort(_labels(split)).astype(np.float64)
    # Not by the variance, which rounding leaves a little above 0 for equal numbers.
    if labels[0] == labels[-1]:
        return float("nan")
    return float(1 - ((labels - prediction) ** 2).mean() / labels.var())


def _labels(split: Split) -> np.ndarray:
    """The labels of a split, `[S]`."""
    return np.concatenate([batch["label"] for batch in in_order(split)])


def _labelled(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that have a label, and their labels, both `[S]`."""
    has_label = batch["label"] >= 0
    return batch["tokens"][has_label], batch["label"][has_label]


def own_token(train: Split, split: Split, vocabulary: int, classes: int) -> float:
    """Accuracy on `split` of the most frequent label of `train` given the token itself.

    NaN, which means undefined, where no token of `split` has a label."""
    table = np.zeros((vocabulary, classes), np.int64)
    for batch in in_order(train):
        np.add.at(table, _labelled(batch), 1)
    prediction = table.argmax(1)  # [vocabulary]; 0 for a token that train does not have
    right = []
    for batch in in_order(split):
        tokens, labels = _labelled(batch)
        right.append(prediction[tokens] == labels)
    answers = np.concatenate(right)
    if not len(answers):
        return float("nan")
    return float(answers.mean())


def bigram(train: Split, split: Split, vocabulary: int, tokens: Units = "") -> dict[str, float]:
    """Bits per character on `split` of the frequencies of `train`; NaN where it has none.

    Of tokens, and of tokens given the one before. `tokens` says what they are, as for
    `dartformer.tasks.characters`."""
    pairs, counts = _pair_counts(train, vocabulary)
    before, following = np.divmod(pairs, vocabulary)
    # A hundredth of a count for every token, so that none costs infinitely many bits.
    single = 1e-2 + np.bincount(following, counts, vocabulary)
    unigram = single / single.sum()
    total = np.bincount(before, counts, vocabulary)  # pairs that begin with each token

    scored, times = _pair_counts(split, vocabulary)
    before, following = np.divmod(scored, vocabulary)
    characters = (times * characters_of(following, tokens)).sum()
    if not characters:
        return {"unigram": float("nan"), "bigram": float("nan")}
    # Only pairs that occur are kept: a table of all would have vocabulary^2 numbers.
    place = np.minimum(np.searchsorted(pairs, scored), max(len(pairs) - 1, 0))
    occurred = np.zeros(len(scored))
    if len(pairs):
        occurred = np.where(pairs[place] == scored, counts[place], 0)
    # One token's worth of the unigram frequencies stands in for pairs that train does not have.
    conditional = (occurred + unigram[following]) / (total[before] + 1)
    spelled = spelling(following, tokens)
    bits = {}
    for name, probability in {"unigram": unigram[following], "bigram": conditional}.items():
        nats = (times * (spelled - np.log(probability))).sum()
        bits[name] = float(nats / np.log(2) / characters)
    return bits


def _pair_counts(split: Split, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (token, label) that occur, as `token * vocabulary + label` ascending; how often."""
    pairs, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    waiting: list[np.ndarray] = []
    size = 0
    for batch in in_order(split):
        tokens, labels = _labelled(batch)
        waiting.append(tokens.astype(np.int64) * vocabulary + labels)
        size += len(labels)
        if size > TOKENS_CHUNK:
            pairs, counts = _merged(pairs, counts, waiting)
            waiting, size = [], 0
    return _merged(pairs, counts, waiting)


def _merged(
    pairs: np.ndarray, counts: np.ndarray, waiting: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs and counts with those of pairs that are not counted yet."""
    fresh, times = np.unique(np.concatenate([*waiting, pairs[:0]]), return_counts=True)
    both, place = np.unique(np.concatenate([pairs, fresh]), return_inverse=True)
    total = np.zeros(len(both), np.int64)
    np.add.at(total, place, np.concatenate([counts, times]))
    return both, total
