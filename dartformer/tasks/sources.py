"""From the records of a prepared set to a `Split`: packed in memory where they fit, else in a file
that is mapped.

A record costs about 0.15 ms to find, decompress and decode; a row of an array costs its copy. So a
set is decoded once: at every start where it is small, and where it is large once for all, into
files beside it."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dartformer.data.prepare import alone, shown
from dartformer.errors import InputError
from dartformer.tasks.base import ArraySplit, Split

IN_MEMORY_BYTES = 512 * 2**20
"""A split that would take more than this is mapped from disk."""

CHUNK = 1000
"""Records that are decoded at once: they weigh several times what is kept of them."""

ARRAYS = ("tokens", "lengths", "labels")


def from_source(
    source: Any, length: int, vocabulary: int, in_memory: int = IN_MEMORY_BYTES
) -> Split:
    """A split over a TFDS data source: in memory where it takes at most `in_memory` bytes, else
    mapped from files that are made beside the set on first use. Raises `InputError` where a record
    is longer than `length`."""
    dtype = np.min_scalar_type(vocabulary - 1)
    if len(source) * length * dtype.itemsize > in_memory:
        return mapped(source, length, dtype, Path(source.dataset_info.data_dir))
    return pack(records(source), len(source), length, dtype)


def records(source: Any) -> Iterable[Mapping[str, Any]]:
    """Every record, in order."""
    for start in range(0, len(source), CHUNK):
        yield from source.__getitems__(list(range(start, min(start + CHUNK, len(source)))))


def mapped(source: Any, length: int, dtype: np.dtype, folder: Path) -> ArraySplit:
    """A split over arrays in files under `folder`, which are written first where they are not
    there.

    They are written by one process at a time, and appear whole, by a renaming: what was killed
    half-way starts again."""
    whole = folder / f"rows-{source.split}-{length}-{dtype}"
    if not whole.exists():
        try:
            with alone(folder):
                if not whole.exists():  # another process may have made it while this one waited
                    part = folder / f"{whole.name}.part"
                    shutil.rmtree(
                        part, ignore_errors=True
                    )  # of a process that was killed: the lock is ours
                    part.mkdir()

                    def array(name: str, shape: tuple[int, ...], of: Any) -> np.ndarray:
                        return np.lib.format.open_memmap(part / f"{name}.npy", "w+", of, shape)

                    made = pack(
                        shown(records(source), len(source), f"unpacking {source.split}"),
                        len(source),
                        length,
                        dtype,
                        array,
                    )
                    for one in (made.tokens, made.lengths, made.labels):
                        one.flush()  # type: ignore[attr-defined]
                    os.replace(part, whole)
        except OSError as error:
            raise InputError(f"cannot write the rows of {folder} to {whole}: {error}") from None
    try:
        tokens, lengths, labels = (np.load(whole / f"{one}.npy", mmap_mode="r") for one in ARRAYS)
        if not len(tokens) == len(lengths) == len(labels) == len(source):
            raise ValueError(f"{len(tokens):,} rows, where the set has {len(source):,}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{whole} is not as it was written: {error}. Delete it and run again: it will be made "
            f"anew."
        ) from None
    return ArraySplit(np.asarray(tokens), np.asarray(lengths), np.asarray(labels))


def in_memory(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros, wherever the system puts them."""
    return np.zeros(shape, dtype)


def pack(
    records: Iterable[Mapping[str, Any]],
    count: int,
    length: int,
    dtype: np.dtype,
    array: Callable[[str, tuple[int, ...], Any], np.ndarray] = in_memory,
) -> ArraySplit:
    """`count` records `{"tokens": [n], "label": int}` as arrays [count, length] of `dtype`, [count]
    and [count].

    A label may be a float, or [n], one for each token; a second document is `tokens2`. `array`
    makes the arrays, of zeros, from a name, a shape and a type. Raises `InputError` where a record
    is longer than `length`."""
    stream = iter(records)
    first = next(stream, None)
    if first is None:
        raise InputError("a split has no rows.")
    label = np.asarray(first["label"])
    documents = ("tokens", "tokens2") if "tokens2" in first else ("tokens",)
    each = (count, len(documents)) if len(documents) > 1 else (count,)
    tokens = array("tokens", (*each, length), dtype)
    lengths = array("lengths", each, np.int32)
    labels = array(
        "labels",
        (count, length) if label.ndim else (count,),
        np.float32 if label.dtype.kind == "f" else np.int32,
    )
    for i, record in enumerate(itertools.chain([first], stream)):
        for d, name in enumerate(documents):
            at = (i, d) if len(documents) > 1 else (i,)
            n = len(record[name])
            if n > length:
                raise InputError(
                    f"an example has {n} tokens, more than the task's length {length}."
                )
            tokens[at][:n], lengths[at] = record[name], n
        if label.ndim:
            labels[i, len(record["label"]) :] = -1
            labels[i, : len(record["label"])] = record["label"]
        else:
            labels[i] = record["label"]
    return ArraySplit(tokens, lengths, labels)
