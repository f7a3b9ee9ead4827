"""Many examples through a compiled model: batches of like lengths, in a few shapes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dartformer.models.sizes import TransformerConfig

TOKENS = 8192
"""Tokens computed at once, padding included: the work of a batch does not depend on its length."""

SHORTEST = 16
"""The least length of a batch. Below it a program costs its dispatch, and not its tokens."""

WINDOW = 2**22
"""Numbers of the largest array of a window, and so the memory that many examples take."""

MOST_ROWS = 8192
"""Examples of a window: among so many, each finds others of its length."""

Predict = Callable[[np.ndarray, np.ndarray], jax.Array]
"""(tokens, valid) -> logits, compiled for each shape."""


class _Batch(NamedTuple):
    """Examples that are computed together.

    Attributes:
      rows: `[b]`, their positions.
      length: tokens of each, padding included.
      size: examples of the program, at least b.
    """

    rows: np.ndarray
    length: int
    size: int


def window_rows(shape: TransformerConfig) -> int:
    """How many examples are sorted by length, computed and answered at once."""
    numbers = shape.length * shape.inputs * max(1, shape.features)
    if shape.labels_tokens:
        numbers = max(numbers, shape.length * shape.classes)
    return min(max(1, WINDOW // numbers), MOST_ROWS)


def logits(
    predict: Predict,
    shape: TransformerConfig,
    tokens: np.ndarray,
    valid: np.ndarray,
    *,
    any_length: bool,
) -> np.ndarray:
    """Logits `[B, C]` of a window, or `[B, N, C]` with 0 behind the last token of an example.

    Where the model takes `any_length`, a batch is cut to the length that its longest example needs:
    what a model makes of an example does not depend on the padding behind it. Shapes of batches are
    powers of two, so that a few programs serve any number of examples of any length.
    """
    lengths = np.full(len(tokens), shape.length)
    if any_length:
        lengths = _lengths(valid)
    results = []
    for batch in _batches(lengths, shape):
        # Filled up with an example of its own, so that no row is without tokens.
        missing = batch.size - len(batch.rows)
        rows = np.concatenate([batch.rows, np.repeat(batch.rows[:1], missing)])
        cut: Any = (rows, *[slice(None)] * (valid.ndim - 2), slice(batch.length))
        results.append((batch, predict(tokens[cut], valid[cut])))
    # Fetched at the end: the device computes a batch while the host prepares the next one.
    each: tuple[int, ...] = (shape.classes,)
    if shape.labels_tokens:
        each = (shape.length, shape.classes)
    gathered = np.zeros((len(tokens), *each), np.float32)
    for batch, result in results:
        computed = np.asarray(result)[: len(batch.rows)]
        if shape.labels_tokens:
            gathered[batch.rows, : batch.length] = computed
        else:
            gathered[batch.rows] = computed
    return gathered


def _lengths(valid: np.ndarray) -> np.ndarray:
    """Tokens up to the last one that exists, `[B]`; of two documents, those of the longer one."""
    n = valid.shape[-1]
    last = n - valid[..., ::-1].argmax(-1)
    lengths = np.where(valid.any(-1), last, 1)
    if lengths.ndim == 2:
        lengths = lengths.max(-1)
    return lengths


def _batches(lengths: np.ndarray, shape: TransformerConfig) -> Iterator[_Batch]:
    """The examples of `lengths` `[B]`, the longest first: a batch may hold shorter ones, too."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        length = min(max(SHORTEST, _power(longest)), shape.length)
        most = max(1, TOKENS // (length * shape.inputs))
        most = 1 << (most.bit_length() - 1)  # the power of two below
        rows = order[start : start + most]
        yield _Batch(rows, length, _power(len(rows)))
        start += most


def _power(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()
