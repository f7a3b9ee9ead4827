"""Simple rules that read no order, or hardly any: what a model on texts must beat to have learned
something."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dartformer.data.splits import Split, in_order

HASHED = 2**16
"""Buckets of four-grams, where tokens are bytes or characters."""

Features = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(tokens `[B, N]`, valid `[B, N]`) -> `[B, width]`, 0 or 1: what occurs in each text."""


def occurs(width: int, grams: int = 1) -> Features:
    """Which of `width` token ids a text has; or which n-grams, in `width` buckets."""

    def features(tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
        ids = tokens.astype(np.int64)
        if grams > 1:
            n = max(ids.shape[1] - grams + 1, 1)
            at = [ids[:, i : i + n] for i in range(min(grams, ids.shape[1]))]
            ids = np.sum([part * pow(1_000_003, i, 2**31) for i, part in enumerate(at)], 0) % width
            valid = valid[:, valid.shape[1] - ids.shape[1] :]
        found = np.zeros((len(ids), width), np.float32)
        row, position = np.nonzero(valid)
        found[row, ids[row, position]] = 1
        return found

    return features


def naive_bayes(train: Split, split: Split, classes: int, features: Features) -> float:
    """Accuracy on `split` of naive Bayes on what occurs, with add-one smoothing, fitted on
    `train`."""
    seen: Any = 0.0
    per_class = np.zeros(classes)
    for batch in in_order(train):
        one_hot = np.eye(classes, dtype=np.float32)[batch["label"]]
        seen = seen + one_hot.T @ _of(batch, features)
        per_class += one_hot.sum(0)
    likelihood = np.log(seen + 1) - np.log((seen + 1).sum(1, keepdims=True))
    prior = np.log(np.maximum(per_class, 1e-9) / per_class.sum())
    right = sum(
        int(
            (
                (_of(batch, features) @ likelihood.T.astype(np.float32) + prior).argmax(1)
                == batch["label"]
            ).sum()
        )
        for batch in in_order(split)
    )
    return right / len(split)


def _of(batch: Mapping[str, np.ndarray], features: Features) -> np.ndarray:
    tokens, valid = (batch[k].reshape(len(batch["label"]), -1) for k in ("tokens", "valid"))
    return features(tokens, valid)


def overlap(train: Split, split: Split, features: Features) -> float:
    """Accuracy on `split` of calling two documents a match above a TF-IDF cosine; idf and threshold
    are `train`'s."""
    seen: Any = 0.0
    for batch in in_order(train, 256):
        seen = seen + sum(
            features(batch["tokens"][:, i], batch["valid"][:, i]).sum(0) for i in range(2)
        )
    idf = (np.log((2 * len(train) + 1) / (seen + 1))).astype(np.float32)

    def cosines(part: Split) -> tuple[np.ndarray, np.ndarray]:
        values, labels = [], []
        for batch in in_order(part, 256):
            u, v = (features(batch["tokens"][:, i], batch["valid"][:, i]) * idf for i in range(2))
            norm = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
            values.append((u * v).sum(1) / np.maximum(norm, 1e-9))
            labels.append(batch["label"])
        return np.concatenate(values), np.concatenate(labels)

    values, labels = cosines(train)
    order = np.argsort(values, kind="stable")
    # Above a threshold a match: at position i, everything before i is called none.
    right = np.concatenate([[0], np.cumsum(labels[order] == 0)]) + np.concatenate(
        [np.cumsum((labels[order] == 1)[::-1])[::-1], [0]]
    )
    at = int(right.argmax())
    threshold = values[order[at]] if at < len(order) else np.inf
    values, labels = cosines(split)
    return float(((values >= threshold) == labels).mean())


def mean_of_train(train: Split, split: Split) -> float:
    """Share of variance explained (at most 0) by always saying the mean of `train`."""
    guess = np.concatenate([batch["label"] for batch in in_order(train)]).mean()
    labels = np.concatenate([batch["label"] for batch in in_order(split)])
    return (
        float(1 - ((labels - guess) ** 2).mean() / labels.var()) if labels.var() else float("nan")
    )


def own_token(train: Split, split: Split, vocabulary: int, classes: int) -> float:
    """Accuracy on `split` of the most frequent label of `train` given the token itself."""
    table = np.zeros((vocabulary, classes), np.int64)
    for batch in in_order(train):
        has = batch["label"] >= 0
        np.add.at(table, (batch["tokens"][has], batch["label"][has]), 1)
    right = [
        table.argmax(1)[batch["tokens"][batch["label"] >= 0]] == batch["label"][batch["label"] >= 0]
        for batch in in_order(split)
    ]
    return float(np.concatenate(right).mean())


def bigram(train: Split, split: Split, vocabulary: int) -> dict[str, float]:
    """Bits per token on `split` of the frequencies of `train`: of tokens, and of tokens given the
    one before."""
    single, pairs = np.full(vocabulary, 1e-2), np.zeros((vocabulary, vocabulary))
    for batch in in_order(train):
        has = batch["label"] >= 0
        np.add.at(single, batch["label"][has], 1)
        np.add.at(pairs, (batch["tokens"][has], batch["label"][has]), 1)
    one = single / single.sum()
    two = (pairs + one) / (
        pairs.sum(1, keepdims=True) + 1
    )  # one token's worth of the unigram stands in for the unseen
    bits = {"unigram": 0.0, "bigram": 0.0}
    count = 0
    for batch in in_order(split):
        has = batch["label"] >= 0
        bits["unigram"] -= np.log2(one[batch["label"][has]]).sum()
        bits["bigram"] -= np.log2(two[batch["tokens"][has], batch["label"][has]]).sum()
        count += int(has.sum())
    return {name: float(value / count) for name, value in bits.items()}
