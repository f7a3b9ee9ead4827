"""From the records of a prepared set to a `Split`: in memory where they fit, else in mapped files.

A record costs about 0.15 ms to find, decompress and decode; a row of an array costs its copy. So a
set is decoded once: at every start where it is small, and where it is large into files beside it,
which later starts map."""

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from dartformer.data.prepare import Example, Records, alone, with_progress
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError

IN_MEMORY_BYTES = 512 * 2**20
"""A split that would take more than this is mapped from disk."""

CHUNK = 1000
"""Records that are decoded at once: they weigh several times what is kept of them."""

ARRAYS = ("tokens", "lengths", "labels")


class NewArray(Protocol):
    """Makes an array of zeros from a name, a shape and a type."""

    def __call__(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray: ...


def from_source(
    source: Records, length: int, vocabulary: int, in_memory: int = IN_MEMORY_BYTES
) -> ArraySplit:
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


def mapped(source: Records, length: int, dtype: np.dtype, folder: Path) -> ArraySplit:
    """A split over arrays in files under `folder`, which are written first if they are missing.

    They are written by one process at a time, and appear complete, by a renaming: a process that
    was killed half-way starts again."""
    rows = folder / f"rows-{source.split}-{length}-{dtype}"
    if not rows.exists():
        try:
            with alone(folder):
                # Another process may have written them while this one waited for the lock.
                if not rows.exists():
                    _write(source, length, dtype, rows)
        except OSError as error:
            raise InputError(f"cannot write the rows of {folder} to {rows}: {error}") from None
    try:
        return _open(rows, len(source))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{rows} is not as it was written: {error}. Delete it and run again to write it again."
        ) from None


def _write(source: Records, length: int, dtype: np.dtype, rows: Path) -> None:
    """Write the arrays of `source` to the folder `rows`."""
    unfinished = rows.with_name(f"{rows.name}.part")
    # What is there was left by a process that was killed: this one holds the lock.
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()

    def new_file(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        file = unfinished / f"{name}.npy"
        return np.lib.format.open_memmap(file, "w+", np.dtype(dtype), shape)

    count = len(source)
    decoded = with_progress(records(source), count, f"unpacking {source.split}")
    split = pack(decoded, count, length, dtype, new_file)
    for array in (split.tokens, split.lengths, split.labels):
        assert isinstance(array, np.memmap)
        array.flush()
    # Only now under its name: a reader never sees half of the arrays.
    os.replace(unfinished, rows)


def _open(rows: Path, count: int) -> ArraySplit:
    """The split of `count` examples in the folder `rows`; raises `OSError` or `ValueError`."""
    arrays = []
    for name in ARRAYS:
        arrays.append(np.load(rows / f"{name}.npy", mmap_mode="r"))
    tokens, lengths, labels = arrays
    if not len(tokens) == len(lengths) == len(labels) == count:
        raise ValueError(f"{len(tokens):,} rows, and the set has {count:,}")
    # Plain arrays over the same files: indexing a memmap makes memmaps, which is slower.
    return ArraySplit(np.asarray(tokens), np.asarray(lengths), np.asarray(labels))


def zeros(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Zeros in memory."""
    return np.zeros(shape, dtype)


def pack(
    examples: Iterable[Example],
    count: int,
    length: int,
    dtype: DTypeLike,
    new_array: NewArray = zeros,
) -> ArraySplit:
    """`count` examples as arrays [count, length] of `dtype`, [count] and [count].

    With two documents the first two are [count, 2, length] and [count, 2]; where every token has a
    label the last is [count, length]. Raises `InputError` where an example is longer than
    `length`."""
    stream = iter(examples)
    first = next(stream, None)
    if first is None:
        raise InputError("a split has no rows.")
    # All examples are of the form of the first.
    pairs = "tokens2" in first
    label = np.asarray(first["label"])
    per_token = label.ndim > 0
    texts: tuple[int, ...] = (count,)
    if pairs:
        texts = (count, 2)
    label_shape: tuple[int, ...] = (count,)
    if per_token:
        label_shape = (count, length)
    label_dtype: DTypeLike = np.int32
    if label.dtype.kind == "f":
        label_dtype = np.float32

    tokens = new_array("tokens", (*texts, length), dtype)
    lengths = new_array("lengths", texts, np.int32)
    labels = new_array("labels", label_shape, label_dtype)
    for i, example in enumerate(itertools.chain([first], stream)):
        if pairs:
            lengths[i, 0] = _fill(tokens[i, 0], example["tokens"])
            lengths[i, 1] = _fill(tokens[i, 1], example["tokens2"])
        else:
            lengths[i] = _fill(tokens[i], example["tokens"])
        if per_token:
            n = len(example["label"])
            labels[i, :n] = example["label"]
            labels[i, n:] = -1  # padding has no label
        else:
            labels[i] = example["label"]
    return ArraySplit(tokens, lengths, labels)


def _fill(row: np.ndarray, ids: Sequence[int]) -> int:
    """Write `ids` to the start of `row` [N]; returns how many there are."""
    n = len(ids)
    if n > len(row):
        raise InputError(f"an example has {n} tokens, more than the task's length {len(row)}.")
    row[:n] = ids
    return n
