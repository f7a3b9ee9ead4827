"""What a loaded model takes, texts, token ids or arrays, checked and padded to the model's length."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import cast

import jax
import numpy as np
from numpy.typing import ArrayLike

from dartformer.errors import InputError, brief
from dartformer.models.sizes import TransformerConfig
from dartformer.tasks.base import EncodesMany, Task

Document = str | Sequence[int] | Sequence[Sequence[float]] | np.ndarray
"""A text, token ids, or numbers `[n, F]`."""

Example = Document | Sequence[Document]
"""A document, or two of them where the model compares two."""

Ids = Sequence[int] | np.ndarray
"""Token ids of a document, or its numbers `[n, F]`."""

Texts = Sequence[Example] | np.ndarray | jax.Array
"""A list, NumPy array or Series of examples, or the tokens of a batch as an array."""

Arrays = tuple[np.ndarray, np.ndarray]
"""Tokens `[B, N]`, `[B, 2, N]` of pairs, or `[B, N, F]` of numbers; and which exist."""


def arrays(
    task: Task, shape: TransformerConfig, texts: Texts, valid: ArrayLike | None = None
) -> Arrays:
    """The arrays for a list of texts or of token ids (of pairs of these), or for arrays."""
    texts = listed(texts)
    if valid is not None or hasattr(texts, "__array__"):
        return padded(shape, np.asarray(texts), valid)
    documents: list[Document] = []
    for example in texts:
        documents += _documents(shape, example)
    ids = _ids(task, shape, documents)
    blank, mask = shape.blank(len(texts))
    tokens, exists = np.zeros(blank.shape, blank.dtype), np.zeros(mask.shape, bool)
    if ids:
        counts = np.array(list(map(len, ids))).reshape(*mask.shape[:-1], 1)
        exists |= np.arange(shape.length) < counts
        tokens[exists] = np.concatenate(ids)
    return tokens, exists


def _ids(task: Task, shape: TransformerConfig, documents: Sequence[Document]) -> Sequence[Ids]:
    """The tokens of each document; `EncodesMany` reads texts alone together, much faster."""
    if isinstance(task, EncodesMany) and all(type(document) is str for document in documents):
        return task.encode_all(cast(Sequence[str], documents))
    return [document_ids(task, shape, document) for document in documents]


def listed(texts: Texts) -> Sequence[Example] | np.ndarray:
    """Texts in whatever holds them, such as a NumPy array or a Series, as a list.

    An array of numbers stays an array."""
    examples: object = texts
    if hasattr(texts, "__array__"):
        array = np.asarray(texts)
        # Text is an array of objects, of Unicode or bytes, or of strings of any length.
        if array.dtype.kind not in "OUST":
            return array
        examples = array.tolist()
    if isinstance(examples, str | bytes):
        raise InputError("give a list of texts, not one text.")
    if isinstance(examples, Mapping) or not isinstance(examples, Iterable):
        raise InputError(f"give a list of texts, not {type(examples).__name__}.")
    return list(examples)


def _documents(shape: TransformerConfig, example: Example) -> Sequence[Document]:
    """The documents of an example."""
    if shape.inputs != 2:
        return [cast(Document, example)]
    if isinstance(example, str | bytes) or not isinstance(example, Sized) or len(example) != 2:
        raise InputError("this model compares two documents, so give pairs of texts.")
    first, second = cast(Sequence[Document], example)
    return [first, second]


def document_ids(task: Task, shape: TransformerConfig, document: Document) -> Ids:
    """The tokens of one document: ids `[n]`, or numbers `[n, F]`."""
    if isinstance(document, str):
        return task.encode(str(document))
    if isinstance(document, bytes) or not isinstance(document, Iterable):
        # The bytes of a text would pass for token ids.
        raise InputError(f"give a text or token ids, got {brief(document)}.")
    if shape.features:
        return _checked_numbers(shape, document)
    return _checked_ids(shape, document)


def _checked_numbers(shape: TransformerConfig, document: ArrayLike) -> np.ndarray:
    """Tokens that are numbers, of one document."""
    try:
        numbers = np.asarray(document, np.float32)
    except (ValueError, TypeError, OverflowError):
        raise InputError(
            f"the model takes tokens of {shape.features} numbers, got {brief(document)}."
        ) from None
    fits = numbers.ndim == 2 and numbers.shape[1] == shape.features
    if not fits or not 0 < len(numbers) <= shape.length:
        raise InputError(
            f"the model takes 1 to {shape.length} tokens of {shape.features} numbers, got an "
            f"array of shape {numbers.shape}."
        )
    return numbers


def _checked_ids(
    shape: TransformerConfig, document: Sequence[int] | Sequence[Sequence[float]] | np.ndarray
) -> list[int]:
    """Token ids of one document."""
    ids = cast(list[int], list(document))  # which is checked below
    if not 0 < len(ids) <= shape.length:
        raise InputError(f"the model takes 1 to {shape.length} tokens, got {len(ids)}.")
    if not all(map(_is_whole, ids)):
        raise InputError(f"token ids must be whole numbers, got {brief(ids)}.")
    if min(ids) < 0 or max(ids) >= shape.vocabulary:
        raise InputError(
            f"token ids must be at least 0 and below {shape.vocabulary}, got {brief(ids)}."
        )
    return ids


def _is_whole(value: object) -> bool:
    # True and False are integers of Python, but no token ids.
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def padded(shape: TransformerConfig, tokens: np.ndarray, valid: ArrayLike | None = None) -> Arrays:
    """Arrays, checked, with zeros up to the model's length."""
    blank, mask = shape.blank(len(tokens))
    axis = mask.ndim - 1  # of N
    sizes = list(blank.shape)
    if tokens.ndim > axis:
        sizes[axis] = tokens.shape[axis]  # any length up to the model's
    if list(tokens.shape) != sizes or not 0 < tokens.shape[axis] <= shape.length:
        raise InputError(
            f"the model takes arrays {list(blank.shape)} or shorter, got {list(tokens.shape)}."
        )
    exists = np.ones(tokens.shape[: mask.ndim], bool)
    if valid is not None:
        exists = np.asarray(valid)
    expected = tokens.shape[: mask.ndim]
    if exists.shape != expected or exists.dtype != np.bool_:
        raise InputError(
            f"valid must be bool of shape {list(expected)}, got {exists.dtype} of shape "
            f"{list(exists.shape)}."
        )
    # What stands at tokens that do not exist is not read, so it may be anything.
    if shape.features:
        tokens = np.where(exists[..., None], tokens, 0)
    else:
        _require_ids(shape, tokens, exists)
        tokens = np.where(exists, tokens, 0)
    width = [(0, 0)] * tokens.ndim
    width[axis] = (0, shape.length - tokens.shape[axis])
    return np.pad(tokens, width).astype(blank.dtype), np.pad(exists, width[: mask.ndim])


def _require_ids(shape: TransformerConfig, tokens: np.ndarray, exists: np.ndarray) -> None:
    """Raise `InputError` for tokens that are no ids of the vocabulary."""
    if not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"token ids must be whole numbers, got an array of {tokens.dtype}.")
    ids = tokens[exists]
    if ids.size and (ids.min() < 0 or ids.max() >= shape.vocabulary):
        raise InputError(
            f"token ids must be at least 0 and below {shape.vocabulary}, got {ids.min()} to "
            f"{ids.max()}."
        )
