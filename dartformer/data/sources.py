"""From the records of a prepared set to a `Split`: in memory where they fit, else in mapped files.

A record costs about 0.15 ms to find, decompress and decode; a row of an array costs its copy. So a
set is decoded once: at every start where it is small, and where it is large into files beside it,
which later starts map."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from dartformer.data import offsets
from dartformer.data.growing import GrowingFile
from dartformer.data.offsets import OffsetSplit
from dartformer.data.prepare import Example, Records, with_progress, write_once
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError

IN_MEMORY_BYTES = 512 * 2**20
"""A split that would take more than this is mapped from disk."""

OFFSET = np.dtype(np.int64)

CHUNK = 1000
"""Records that are decoded at once: they weigh several times what is kept of them."""


def from_source(
    source: Records, length: int, vocabulary: int, in_memory: int = IN_MEMORY_BYTES
) -> ArraySplit | OffsetSplit:
    """A split over a TFDS data source, in memory or mapped from files beside the set.

    It is mapped where it would take more than `in_memory` bytes; the files are written on first
    use. Raises `InputError` where a record is longer than `length`."""
    # The smallest type that holds every id: rows of bytes take half of int32.
    dtype = np.min_scalar_type(vocabulary - 1)
    if len(source) * length * dtype.itemsize > in_memory:
        return mapped(source, length, dtype, Path(source.dataset_info.data_dir))
    return pack(records(source), len(source), length, dtype)


def records(source: Records) -> Iterator[Example]:
    """Every record, in order."""
    for start in range(0, len(source), CHUNK):
        yield from source.__getitems__(list(range(start, min(start + CHUNK, len(source)))))


def mapped(source: Records, length: int, dtype: np.dtype, folder: Path) -> OffsetSplit:
    """A split over files under `folder`, which are written first if they are missing.

    They are written by one process at a time, and appear complete, by a renaming: a process that
    was killed half-way starts again."""
    rows = folder / f"ids-{source.split}-{length}-{dtype}"

    def write(unfinished: Path) -> None:
        decoded = with_progress(records(source), len(source), f"unpacking {source.split}")
        _write(decoded, length, dtype, unfinished)

    try:
        write_once(rows, write, part_of=folder)
    except OSError as error:
        raise InputError(f"cannot write the rows of {folder} to {rows}: {error}") from None
    try:
        return _open(rows, length, len(source))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{rows} is not as it was written: {error}. Delete it and run again to write it again."
        ) from None


def _write(examples: Iterable[Example], length: int, dtype: np.dtype, folder: Path) -> None:
    """Write examples to the folder, one after another and without padding."""
    first, form, stream = _begun(examples)
    with contextlib.ExitStack() as files:

        def new_file(name: str, dtype: np.dtype) -> GrowingFile:
            return files.enter_context(GrowingFile(folder / f"{name}.npy", dtype))

        tokens = _Rows(new_file("tokens", dtype), new_file("tokens_offsets", OFFSET), length)
        labels = new_file("labels", form.label)
        of_tokens = None
        if form.per_token:
            of_tokens = _Rows(labels, new_file("labels_offsets", OFFSET), length)
        for example in itertools.chain([first], stream):
            for name in form.names:
                tokens.append(example[name])
            if of_tokens is not None:
                of_tokens.append(example["label"])
            else:
                labels.append(np.array([example["label"]]))


class _Rows:
    """Two files of rows one after another: the rows, and where each begins and ends."""

    def __init__(self, values: GrowingFile, offsets: GrowingFile, length: int) -> None:
        self._values, self._offsets, self._length = values, offsets, length
        offsets.append(np.zeros(1, OFFSET))

    def append(self, row: Sequence[int]) -> None:
        """Add a row; `InputError` for one above the length."""
        _require_length(len(row), self._length)
        self._values.append(np.asarray(row))
        self._offsets.append(np.array([self._values.count]))


def _open(rows: Path, length: int, count: int) -> OffsetSplit:
    """The split of `count` examples in the folder `rows`; raises `OSError` or `ValueError`."""
    tokens = offsets.opened(rows, "tokens")
    labels: np.ndarray | offsets.Ragged = offsets.mapped(rows / "labels.npy")
    labelled = len(labels)
    if (rows / "labels_offsets.npy").exists():
        labels = offsets.opened(rows, "labels")
        labelled = len(labels.offsets) - 1
    documents, rest = divmod(len(tokens.offsets) - 1, count)
    if rest or documents not in (1, 2) or labelled != count:
        raise ValueError(f"{labelled:,} rows, and the set has {count:,}")
    return OffsetSplit(tokens, labels, length, documents)


class _Form(NamedTuple):
    """What examples have.

    Attributes:
      names: of their documents.
      per_token: whether every token has a label.
      label: the type of labels.
    """

    names: tuple[str, ...]
    per_token: bool
    label: np.dtype


def _begun(examples: Iterable[Example]) -> tuple[Example, _Form, Iterator[Example]]:
    """The first example, the form of all of them, and the others; `InputError` for none."""
    stream = iter(examples)
    first = next(stream, None)
    if first is None:
        raise InputError("a split has no rows.")
    names: tuple[str, ...] = ("tokens",)
    if "tokens2" in first:
        names = ("tokens", "tokens2")
    label = np.asarray(first["label"])
    dtype: np.dtype = np.dtype(np.int32)
    if label.dtype.kind == "f":
        dtype = np.dtype(np.float32)
    return first, _Form(names, label.ndim > 0, dtype), stream


def pack(examples: Iterable[Example], count: int, length: int, dtype: DTypeLike) -> ArraySplit:
    """`count` examples as arrays [count, length] of `dtype`, [count] and [count], in memory.

    With two documents the first two are [count, 2, length] and [count, 2]; where every token has a
    label the last is [count, length]. Raises `InputError` where an example is longer than
    `length`."""
    first, form, stream = _begun(examples)
    texts: tuple[int, ...] = (count,)
    if len(form.names) > 1:
        texts = (count, 2)
    label_shape: tuple[int, ...] = (count,)
    if form.per_token:
        label_shape = (count, length)
    tokens = np.zeros((*texts, length), dtype)
    lengths = np.zeros(texts, np.int32)
    labels = np.zeros(label_shape, form.label)
    for i, example in enumerate(itertools.chain([first], stream)):
        if len(form.names) > 1:
            lengths[i, 0] = _fill(tokens[i, 0], example["tokens"])
            lengths[i, 1] = _fill(tokens[i, 1], example["tokens2"])
        else:
            lengths[i] = _fill(tokens[i], example["tokens"])
        if form.per_token:
            n = len(example["label"])
            labels[i, :n] = example["label"]
            labels[i, n:] = -1  # padding has no label
        else:
            labels[i] = example["label"]
    return ArraySplit(tokens, lengths, labels)


def _fill(row: np.ndarray, ids: Sequence[int]) -> int:
    """Write `ids` to the start of `row` [N]; returns how many there are."""
    n = len(ids)
    _require_length(n, len(row))
    row[:n] = ids
    return n


def _require_length(n: int, length: int) -> None:
    if n > length:
        raise InputError(f"an example has {n} tokens, more than the task's length {length}.")
