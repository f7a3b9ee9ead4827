"""Rows of a file or a folder, as dictionaries by column, one at a time.

JSONL, CSV, TSV, Parquet, Arrow (a saved `datasets` folder), npz, text files, a folder per class,
and TFDS folders. No file is read into memory as one, and nothing is unpickled. Bytes that are not
valid UTF-8 arrive as surrogates (U+DC80 and on), so that the reader can count them."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dartformer.data import lines, tfds
from dartformer.data.compressed import DAMAGE, opened, suffix
from dartformer.errors import InputError, unknown

Record = dict[str, Any]
"""A row's values by column."""

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".npz", ".txt")

SPLITS = ("train", "valid", "validation", "test")
"""Names of the files or folders that are read as the splits of a folder."""


def splits(path: Path) -> list[str]:
    """Names of the splits that a folder holds.

    Those of a TFDS folder, of a saved `datasets` folder, or of a folder with train/ and test/."""
    if not path.is_dir():
        return []
    if tfds.is_tfds(path):
        return list(tfds.files_by_split(path))
    names = []
    for name in SPLITS:
        if _member(path, name) is not None:
            names.append(name)
    return names


def _member(path: Path, name: str) -> Path | None:
    """`path/name`, a folder, or a file of that name with a suffix of `SUFFIXES`."""
    if (path / name).is_dir():
        return path / name
    # Sorted: which of two files is taken must not depend on the file system.
    for file in sorted(path.glob(f"{name}.*")):
        if suffix(file) in SUFFIXES:
            return file
    return None


def read(path: Path, split: str = "") -> Iterator[Record]:
    """Rows of a file, or of a folder, or of one split of a folder that has splits.

    Raises `InputError` where there is no such file, its kind is unknown, or a row is malformed
    (with its line)."""
    if not path.exists():
        raise InputError(f"there is no file or folder {path}.")
    if path.is_dir():
        yield from _folder(path, split)
        return
    kind = suffix(path)
    if kind == ".jsonl":
        yield from _jsonl(path)
    elif kind == ".csv":
        yield from _csv(path)
    elif kind == ".tsv":
        yield from _csv(path, "\t")
    elif kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".npz":
        yield from _npz(path)
    elif kind == ".txt":
        yield from _lines(path)
    else:
        patterns = [f"*{name}" for name in SUFFIXES]
        raise unknown("kind of file", path.name, patterns)


def _lines(path: Path) -> Iterator[Record]:
    with opened(path) as file:
        for line in lines.decoded(file):
            yield {"text": line}


def _jsonl(path: Path) -> Iterator[Record]:
    with opened(path) as file:
        for number, line in enumerate(lines.decoded(file), 1):
            # A blank line, such as the last one, is no row.
            if not line.strip():
                continue
            try:
                row = lines.parsed(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: {error}.") from None
            if not isinstance(row, dict):
                raise InputError(
                    f"{path}, line {number}: a JSON object is needed, got {type(row).__name__}."
                )
            yield row


def delimiter(header: str) -> str:
    """The separator of a CSV file: the most frequent of , ; tab and | in its first line."""
    return max(",;\t|", key=header.count)


def _csv(path: Path, separator: str = "") -> Iterator[Record]:
    # The library's own limit, 128 KiB, is less than a long document.
    csv.field_size_limit(2**31 - 1)
    with (
        opened(path) as file,
        io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text,
    ):
        if not separator:
            separator = delimiter(text.readline())
            text.seek(0)  # the reader below needs the header again
        if separator == "\t":
            # In a TSV file a quotation mark is a character like any other.
            reader = csv.reader(text, delimiter=separator, quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(text, delimiter=separator, strict=True)
        try:
            header = _header(path, next(reader, None))
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields, and the header has "
                        f"{len(header)}."
                    )
                yield dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}.") from None


def _header(path: Path, fields: list[str] | None) -> list[str]:
    """The columns of a CSV file from its first line."""
    if fields is None:
        raise InputError(f"{path} is empty.")
    header: list[str] = []
    for i, field in enumerate(fields, 1):
        # Spreadsheets leave columns without a name at the end of every line.
        name = field or f"column{i}"
        if name in header:
            raise InputError(f"{path} has two columns named {name!r}.")
        header.append(name)
    return header


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            # In batches: a file may be larger than the memory.
            for batch in file.iter_batches(1000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}.") from None


def _arrow(folder: Path) -> Iterator[Record]:
    import pyarrow

    for file in sorted(folder.glob("*.arrow")):
        try:
            with pyarrow.memory_map(str(file)) as data, pyarrow.ipc.open_stream(data) as stream:
                for batch in stream:
                    yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read as an Arrow stream: {error}.") from None


def _npz(path: Path) -> Iterator[Record]:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = dict(file.items())  # read while the file is open
    except (ValueError, OSError, *DAMAGE) as error:
        raise InputError(f"{path} cannot be read as npz: {error}.") from None
    lengths = {}
    for name, column in columns.items():
        lengths[name] = 0
        if column.ndim:
            lengths[name] = len(column)
    if len(set(lengths.values())) > 1:
        phrases = []
        for name, length in lengths.items():
            phrases.append(f"{name} {length}")
        raise InputError(f"{path} has columns of different lengths: {', '.join(phrases)}.")
    for i in range(max(lengths.values(), default=0)):
        yield {name: _plain(column[i]) for name, column in columns.items()}


def _plain(value: Any) -> Any:
    """A value of a NumPy array as JSON would have it."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value


def _folder(path: Path, split: str) -> Iterator[Record]:
    if tfds.is_tfds(path):
        yield from tfds.read_split(path, split)
    elif split:
        member = _member(path, split)
        if member is None:
            raise InputError(
                f"{path} has no split {split!r}; it has {', '.join(splits(path)) or 'none'}."
            )
        yield from read(member)
    elif any(path.glob("*.arrow")):
        yield from _arrow(path)
    else:
        yield from _class_folders(path)


def _class_folders(path: Path) -> Iterator[Record]:
    """A row for each text file of a folder with a folder for each class."""
    classes = sorted(filter(Path.is_dir, path.iterdir()))
    if not classes:
        raise InputError(
            f"cannot read the folder {path}. It must have a folder of .txt files for each class, "
            f"or be a TFDS or `datasets` folder."
        )
    for folder in classes:
        for file in sorted(folder.glob("*.txt")):
            with opened(file) as data:
                text = data.read().decode("utf-8", "surrogateescape")
            yield {"text": text, "label": folder.name, "id": file.stem}
