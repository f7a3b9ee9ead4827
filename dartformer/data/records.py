"""Rows of a file or a folder, as dictionaries by column, one at a time.

JSONL, CSV, TSV, Parquet, Arrow (a saved `datasets` folder), array_record, TFRecord, npz, text files,
a folder per class, and TFDS folders. No file is read into memory as one, and nothing is unpickled.
Bytes that are not valid UTF-8 arrive as surrogates (U+DC80 and on), so that the reader can count
them.
"""

import contextlib
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dartformer.data import folders, lines, tables, tfds
from dartformer.data.compressed import is_compressed, opened, suffix
from dartformer.data.plain_text import text_of_file
from dartformer.data.text_rows import form_of, labelled_lines, sentences
from dartformer.errors import InputError, unknown

if TYPE_CHECKING:  # the library is imported where it is used: most runs need none
    import pyarrow

Record = dict[str, Any]
"""A row's values by column."""

ROWS_AT_ONCE = 1000
"""Rows of a Parquet or Arrow file that are converted at once."""


def splits(path: Path) -> list[str]:
    """Names of the splits that a folder holds: "train", "valid", "test", or another's own.

    Those of a TFDS folder, of a saved `datasets` folder, or of a folder with train/ and test/, or
    files of these names."""
    if not path.is_dir():
        return []
    if tfds.is_tfds(path):
        return list(_tfds_names(path))
    return list(folders.split_files(path, READERS))


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
    if kind in FOREIGN:
        raise InputError(f"{path} is {FOREIGN[kind]}.")
    yield from READERS.get(kind, _table)(path)


def _text(path: Path) -> Iterator[Record]:
    """Rows of a file of text, by what it holds: a row a line where it is plain."""
    form = form_of(path)
    if form == "words":
        yield from sentences(path)
    elif form == "fasttext":
        yield from labelled_lines(path)
    elif form == "table":
        yield from _tsv(path)
    else:
        yield from _lines(path)


def _table(path: Path) -> Iterator[Record]:
    """Rows of a file whose suffix says nothing, if it is a table."""
    with tables.opened_text(path, newline="") as text:
        sample = text.read(tables.SAMPLE)
    if "\0" not in sample:
        if form_of(path) != "plain":
            return _text(path)
        if tables.is_table(sample):
            return _csv(path)
    patterns = [f"*{name}" for name in READERS]
    raise unknown("kind of file", path.name, patterns)


def _lines(path: Path) -> Iterator[Record]:
    # Only "\n" ends a line, as in `lines.decoded`.
    with tables.opened_text(path, newline="\n") as text:
        for line in text:
            yield {"text": line.rstrip("\r\n")}


def _jsonl(path: Path) -> Iterator[Record]:
    with tables.opened_text(path, newline="\n") as text:
        for number, line in enumerate(text, 1):
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


def _json(path: Path) -> Iterator[Record]:
    """Rows of one JSON value: a list of objects, columns of lists, or an object that holds either.

    Lines of JSON under this suffix are read as such."""
    with tables.opened_text(path) as text:
        content = text.read()
    try:
        value = lines.parsed(content)
    except ValueError as error:
        if _starts_lines(content):
            yield from _jsonl(path)
            return
        raise InputError(f"{path}: {error}.") from None
    yield from _objects(path, value)


def _starts_lines(content: str) -> bool:
    """Whether the first line of a text is an object of its own."""
    try:
        return isinstance(lines.parsed(content.lstrip().partition("\n")[0]), dict)
    except ValueError:
        return False


def _objects(path: Path, value: object) -> Iterator[Record]:
    """The rows in a JSON value."""
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        if len(lists) == len(value) > 1 and len(set(map(len, lists))) == 1:
            names = list(value)
            for row in zip(*lists, strict=True):
                yield dict(zip(names, row, strict=True))
            return
        # An object around the rows, such as {"version": 1, "data": [...]}.
        tables_in_it = [item for item in lists if item and isinstance(item[0], dict)]
        if len(tables_in_it) == 1:
            value = tables_in_it[0]
        elif len(value) > 1 and not lists:
            value = [value]  # a line of its own
    if not isinstance(value, list):
        raise InputError(
            f"{path} holds no list of rows. Save a list of objects, one a row, or a line of JSON "
            f"for each (JSONL)."
        )
    for number, row in enumerate(value, 1):
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, row {number}: a JSON object is needed, got {type(row).__name__}."
            )
        yield row


def _csv(path: Path) -> Iterator[Record]:
    return _separated(path, tables.SEPARATORS)


def _tsv(path: Path) -> Iterator[Record]:
    if form_of(path) == "words":
        return sentences(path)
    return _separated(path, "\t")


def _separated(path: Path, separators: str) -> Iterator[Record]:
    # The library's own limit, 128 KiB, is less than a long document.
    csv.field_size_limit(2**31 - 1)
    with tables.opened_text(path, newline="") as text:
        sample = text.read(tables.SAMPLE)
        dialect = tables.dialect(sample, separators)
        text.seek(0)  # the reader below needs the header again
        for _ in range(dialect.skipped):
            text.readline()
        reader = dialect.rows(text)
        try:
            rows: Iterator[list[str]] = iter(reader)
            if tables.has_header(sample, dialect):
                header = tables.header(path, next(rows, None))
            else:
                first = next(rows)
                header = tables.unnamed(len(first))
                rows = itertools.chain([first], rows)
            for fields in rows:
                if not fields:
                    continue
                if len(fields) != len(header):
                    line = reader.line_num + dialect.skipped
                    raise InputError(
                        f"{path}, line {line}: {len(fields)} fields, and the header has "
                        f"{len(header)}."
                    )
                yield dict(zip(header, fields, strict=True))
        except csv.Error as error:
            line = reader.line_num + dialect.skipped
            raise InputError(f"{path}, line {line}: {error}.") from None


@contextlib.contextmanager
def _parsing(path: Path, form: str) -> Iterator[None]:
    """Turn what a library raises for a damaged file into an `InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    # Whatever it is: the libraries promise no type for bytes that are something else.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{path} cannot be read as {form}: {reason}.") from None


def _seekable(path: Path) -> Path | io.BytesIO:
    """A file that a library reads, or its decompressed bytes."""
    if not is_compressed(path):
        return path
    with opened(path) as data:
        return io.BytesIO(data.read())


def _parquet(path: Path) -> Iterator[Record]:
    from pyarrow import parquet

    with _parsing(path, "Parquet"), parquet.ParquetFile(_seekable(path)) as file:
        # In batches: a file may be larger than the memory.
        names = class_names(file.schema_arrow)
        for batch in file.iter_batches(ROWS_AT_ONCE):
            yield from _of_batch(path, batch, names)


def _arrow(path: Path) -> Iterator[Record]:
    """Rows of an Arrow file, a stream as `datasets` writes it or the format with an index."""
    import pyarrow

    if is_compressed(path):
        with opened(path) as file:
            source = pyarrow.BufferReader(file.read())
    else:
        source = pyarrow.memory_map(str(path))
    with _parsing(path, "Arrow"), source as data:
        indexed = data.read(6) == b"ARROW1"
        data.seek(0)
        if indexed:
            with pyarrow.ipc.open_file(data) as file:
                names = class_names(file.schema)
                for i in range(file.num_record_batches):
                    yield from _of_batch(path, file.get_batch(i), names)
        else:
            with pyarrow.ipc.open_stream(data) as stream:
                names = class_names(stream.schema)
                for batch in stream:
                    yield from _of_batch(path, batch, names)


def class_names(schema: "pyarrow.Schema") -> dict[str, list[str]]:
    """The names of the classes in columns of numbers, where the library `datasets` notes them."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = dict(content["info"]["features"])
    # A note of a library may be anything, and none is needed to read the rows.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    names = {}
    for column, feature in features.items():
        # Of words the classes are those of each item: {"feature": {...}}, or formerly [{...}].
        if isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        if isinstance(feature, list) and feature:
            feature = feature[0]
        if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
            continue
        listed = feature.get("names")
        if isinstance(listed, list) and all(isinstance(name, str) for name in listed):
            names[column] = listed
    return names


def _named(value: Any, names: list[str]) -> Any:
    """The name of a class, or of each of a list; a number without a name, such as -1, stays."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value


def _of_batch(
    path: Path, batch: "pyarrow.RecordBatch", names: Mapping[str, list[str]]
) -> Iterator[Record]:
    # Offsets of a damaged file would be followed out of the memory.
    batch.validate(full=True)
    tables.require_distinct(path, batch.schema.names)
    for start in range(0, batch.num_rows, ROWS_AT_ONCE):
        for row in batch.slice(start, ROWS_AT_ONCE).to_pylist():
            record = {name: _plain(value) for name, value in row.items()}
            for name, classes in names.items():
                if name in record:
                    record[name] = _named(record[name], classes)
            yield record


def _array_record(path: Path) -> Iterator[Record]:
    if is_compressed(path):
        raise InputError(f"{path} is compressed as a whole. Unpack it: its records are compressed.")
    return _of_records(path, tfds.array_records(path))


def _tfrecord(path: Path) -> Iterator[Record]:
    return _of_records(path, tfds.tfrecords(path))


def _of_records(path: Path, contents: Iterable[bytes]) -> Iterator[Record]:
    """A row for each record: an object of JSON, or a serialised `tf.train.Example`.

    The first byte tells them apart: an Example begins with its field 1, which is a line feed."""
    for number, content in enumerate(contents, 1):
        where = f"{path}, record {number}"
        if content.startswith(b"\n"):
            yield tfds.example(content, where)
        elif content.startswith(b"{"):
            try:
                row = lines.parsed(content.decode("utf-8", "surrogateescape"))
            except ValueError as error:
                raise InputError(f"{where}: {error}.") from None
            assert isinstance(row, dict)
            yield row
        else:
            raise InputError(
                f"{where} is neither a JSON object nor a tf.train.Example; it begins with "
                f"{content[:12]!r}. Write each row as one of these."
            )


def _npz(path: Path) -> Iterator[Record]:
    with _parsing(path, "npz"):
        columns = {}
        with np.load(_seekable(path), allow_pickle=False) as file:
            for name, column in file.items():  # read while the file is open
                if not isinstance(column, np.ndarray):
                    raise ValueError(f"{name} is no array")
                columns[name] = column
        _require_equal_lengths(path, columns)
        rows = 0
        for column in columns.values():
            rows = len(column)
        for i in range(rows):
            yield {name: _plain(column[i]) for name, column in columns.items()}


def _npy(path: Path) -> Iterator[Record]:
    with _parsing(path, "npy"):
        array = np.load(_seekable(path), allow_pickle=False)
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise ValueError("it holds no array")
        for i, row in enumerate(array):
            record = {"x": _plain(row)}
            if array.ndim == 1:
                record["time"] = i  # a single series
            yield record


def _require_equal_lengths(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Raise `InputError` for columns that are no lists, or of different lengths."""
    lengths, phrases = set(), []
    for name, column in columns.items():
        if not column.ndim:
            raise InputError(f"{path} has a column {name!r} that is a single value.")
        lengths.add(len(column))
        phrases.append(f"{name} {len(column)}")
    if len(lengths) > 1:
        raise InputError(f"{path} has columns of different lengths: {', '.join(phrases)}.")


def _plain(value: Any) -> Any:
    """A value of a NumPy array as JSON would have it."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return value


def _folder(path: Path, split: str) -> Iterator[Record]:
    if tfds.is_tfds(path):
        names = _tfds_names(path)
        yield from tfds.read_split(path, names.get(split, split))
    elif split:
        files = folders.split_files(path, READERS)
        name = folders.split_of(split)
        if name not in files:
            raise InputError(f"{path} has no split {split!r}; it has {', '.join(files) or 'none'}.")
        for file in files[name]:
            yield from read(file)
    else:
        # Folders of one set: as `datasets` saves it, in numbered files, or in a folder per class.
        files_in_order = folders.saved_files(path) or folders.numbered_files(path, READERS)
        for file in files_in_order:
            yield from read(file)
        if not files_in_order:
            yield from _class_folders(path)


def _tfds_names(path: Path) -> dict[str, str]:
    """The splits of a TFDS folder: our names, with those of the folder."""
    names: dict[str, str] = {}
    for name in tfds.files_by_split(path):
        # A set with splits both valid and validation keeps the second as it is.
        if folders.split_of(name) in names:
            names[name] = name
        else:
            names[folders.split_of(name)] = name
    return names


def _class_folders(path: Path) -> Iterator[Record]:
    """A row for each text file of a folder with a folder for each class."""
    classes = list(filter(Path.is_dir, folders.entries(path)))
    if not classes:
        raise InputError(
            f"cannot read the folder {path}. It must have a folder of .txt files for each class, "
            f"files train.* and test.*, or be a TFDS or `datasets` folder."
        )
    for folder in classes:
        files = [file for file in folders.entries(folder) if suffix(file) == ".txt"]
        if not files:
            raise InputError(
                f"{folder} holds no .txt files, and every folder of {path} stands for a class. "
                f"Remove it."
            )
        for file in files:
            yield {"text": text_of_file(file), "label": folder.name, "id": file.stem}


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".array_record": _array_record,
    ".tfrecord": _tfrecord,
    ".npz": _npz,
    ".npy": _npy,
    ".txt": _text,
    ".conll": sentences,
    ".conllu": sentences,
    ".bio": sentences,
    ".iob": sentences,
    ".iob2": sentences,
}
"""How the file of each suffix is read."""

FOREIGN = {
    ".xls": "a spreadsheet. Save it as CSV",
    ".xlsx": "a spreadsheet. Save it as CSV",
    ".ods": "a spreadsheet. Save it as CSV",
    ".pkl": "a pickle, which may run code when it is read. Save its rows as JSONL, Parquet or npz",
    ".pickle": "a pickle, which may run code when it is read. Save its rows as JSONL, Parquet or npz",
    ".pt": "a file of PyTorch, which may run code when it is read. Save its arrays as npz",
    ".pth": "a file of PyTorch, which may run code when it is read. Save its arrays as npz",
    ".h5": "an HDF5 file. Save its arrays as npz",
    ".hdf5": "an HDF5 file. Save its arrays as npz",
    ".mat": "a file of MATLAB. Save its arrays as npz",
    ".feather": "a Feather file. Save it as Parquet",
    ".sqlite": "a database. Save a table of it as CSV",
    ".db": "a database. Save a table of it as CSV",
    ".xml": "XML. Save its rows as JSONL or CSV",
    ".html": "a page of HTML. Save its text as .txt, or its rows as CSV",
    ".pdf": "a PDF. Save its text as .txt",
    ".docx": "a document of Word. Save its text as .txt",
    ".7z": "an archive. Unpack it, and name a file or the folder",
    ".rar": "an archive. Unpack it, and name a file or the folder",
    ".tar": "an archive. Unpack it, and name a file or the folder",
    ".zst": "compressed with zstd. Unpack it, or use gzip, xz or zip",
}
"""What files of other suffixes are, and what to do with them."""
