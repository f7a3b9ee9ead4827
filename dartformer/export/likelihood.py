"""How probable a causal model finds given tokens after others, many texts at once."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.errors import InputError
from dartformer.export.generate import SHORTEST, Source
from dartformer.models.transformer import Weights, label_scores, transformer


class Likelihood(NamedTuple):
    """Of a continuation.

    Attributes:
      log_probability: of all its tokens together, in nats.
      greedy: whether each of them is the most probable one.
    """

    log_probability: float
    greedy: bool


class Pair(NamedTuple):
    """Token ids to score, and those before them, at least one."""

    context: Sequence[int]
    continuation: Sequence[int]


class Scorer:
    """A causal model that scores tokens.

    Args:
      source: the model.
      batch: rows computed at once.
      length: the longest input in tokens; 0 for all that the model takes. Of a longer text the last
        ones are read.
    """

    def __init__(self, source: Source, batch: int = 8, length: int = 0) -> None:
        self.source, self.batch = source, batch
        self.length = length or source.shape.length
        if not 1 <= self.length <= source.shape.length:
            raise InputError(
                f"the length must be from 1 to {source.shape.length}, which the model takes, got "
                f"{length}."
            )
        if batch < 1:
            raise InputError(f"the batch must be at least 1, got {batch}.")

    def __call__(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """The likelihood of each continuation."""
        rows = []
        for number, pair in enumerate(pairs):
            rows.append((self._row(pair), len(pair.continuation), number))
        # The longest first: rows of a batch are then about as long, and memory is short at once.
        rows.sort(key=lambda row: -len(row[0]))
        scored: dict[int, Likelihood] = {}
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            values, best = self._scores([ids for ids, _, _ in part])
            for row, (ids, count, number) in enumerate(part):
                # Labels begin with the second token.
                span = slice(len(ids) - 1 - count, len(ids) - 1)
                total = float(values[row, span].sum())
                scored[number] = Likelihood(total, bool(best[row, span].all()))
        return [scored[number] for number in range(len(rows))]

    def _row(self, pair: Pair) -> list[int]:
        """The tokens of a pair that the model reads, and one more, which it does not."""
        if not pair.context:
            raise InputError("the first token of a text has no probability. Put a token before it.")
        if len(pair.continuation) > self.length:
            raise InputError(
                f"a continuation has {len(pair.continuation)} tokens, and the model takes at most "
                f"{self.length}."
            )
        ids = [*pair.context, *pair.continuation][-(self.length + 1) :]
        if max(ids) >= self.source.shape.vocabulary:
            raise InputError(
                f"a text has the token {max(ids)}, and the model has "
                f"{self.source.shape.vocabulary}. Its tokenizer is of another model."
            )
        return ids

    def _scores(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """`[B, N]`: the log-probability of each token after those before it, and is it the best?"""
        longest = max(map(len, rows)) - 1
        # A power of two, so that few programs are compiled; at least one token.
        width = min(self.length, max(SHORTEST, 1 << max(longest - 1, 0).bit_length()))
        tokens = np.zeros((self.batch, width), np.int32)
        labels = np.zeros((self.batch, width), np.int32)
        # Rows without a text have one token, since a softmax over none is undefined.
        valid = np.zeros((self.batch, width), bool)
        valid[:, 0] = True
        for row, ids in enumerate(rows):
            count = len(ids) - 1
            tokens[row, :count], labels[row, :count] = ids[:-1], ids[1:]
            valid[row, :count] = True
        values, best = self._program(self.source.weights, tokens, valid, labels)
        return np.asarray(values, np.float64), np.asarray(best)

    @cached_property
    def _program(self) -> Any:
        net = transformer(self.source.shape, self.source.genotype)

        def run(weights: Weights, tokens: Array, valid: Array, labels: Array) -> Any:
            return label_scores(net, _of_labels, weights, tokens, valid, labels)

        return jax.jit(run)


def _of_labels(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Log-probabilities of labels `[B, N]` under logits `[B, N, C]`, and are they the best ones?"""
    values = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    return values, logits.argmax(-1) == labels
