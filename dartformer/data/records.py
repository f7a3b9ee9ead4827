"""Rows of a file or a folder, as dictionaries by column, one at a time: nothing is read whole,
nothing is unpickled.

JSONL, CSV, TSV, Parquet, Arrow (a saved `datasets` folder), npz, a folder per class, TFDS folders
(array_record, or TFRecord read without TensorFlow), and tar archives, of which nothing is ever
written to disk. Bytes that are no UTF-8 arrive as surrogates (U+DC80 and on), so that whoever reads
can count them."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dartformer.errors import InputError, unknown

Record = dict[str, Any]

OPENERS: dict[str, Any] = {".gz": gzip.open, ".tgz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".npz", ".txt")

DAMAGE = (
    EOFError,
    lzma.LZMAError,
    zlib.error,
    gzip.BadGzipFile,
    tarfile.TarError,
    zipfile.BadZipFile,
)
"""What the standard library raises for a compressed file that is cut short or altered."""


def suffix(path: Path) -> str:
    """The suffix that says what a file holds, compression left out."""
    if path.suffix.lower() == ".tgz":
        return ".tar"
    return Path(path.stem).suffix.lower() if path.suffix.lower() in OPENERS else path.suffix.lower()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed; `InputError` names a file that cannot be read, or is
    damaged."""
    try:
        with OPENERS.get(path.suffix.lower(), open)(path, "rb") as file:
            yield file
    except DAMAGE as error:
        raise InputError(f"{path} is damaged or cut short: {error}.") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from None


def splits(path: Path) -> list[str]:
    """Names of the splits that a folder holds (a TFDS folder's, a saved `datasets` folder's, train/
    and test/)."""
    if not path.is_dir():
        return []
    if (path / "dataset_info.json").is_file() and (found := _tfds_files(path)):
        return list(found)
    return [
        name for name in ("train", "valid", "validation", "test") if _member(path, name) is not None
    ]


def _member(path: Path, name: str) -> Path | None:
    """`path/name`, a folder, or a file of that name with a suffix known here."""
    if (path / name).is_dir():
        return path / name
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
    elif kind in (".csv", ".tsv"):
        yield from _csv(path, "\t" if kind == ".tsv" else "")
    elif kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".npz":
        yield from _npz(path)
    elif kind == ".txt":
        with opened(path) as file:
            for line in file:
                yield {"text": line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")}
    else:
        raise unknown("kind of file", path.name, [f"*{s}" for s in SUFFIXES])


def _jsonl(path: Path) -> Iterator[Record]:
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(
                    line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape")
                )
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise InputError(
                    f"{path}, line {number}: a JSON object is needed, got {type(row).__name__}."
                )
            yield row


def delimiter(header: str) -> str:
    """What separates the columns of a CSV file: the most frequent of , ; tab and | in its first
    line."""
    return max(",;\t|", key=header.count)


def _csv(path: Path, separator: str) -> Iterator[Record]:
    csv.field_size_limit(
        2**31 - 1
    )  # the library's own limit, 128 KiB, is less than a long document
    with (
        opened(path) as file,
        io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text,
    ):
        if not separator:
            first = text.readline()
            separator = delimiter(first)
            text.seek(0)
        reader = csv.reader(
            text,
            delimiter=separator,
            strict=separator != "\t",
            quoting=csv.QUOTE_MINIMAL if separator != "\t" else csv.QUOTE_NONE,
        )
        try:
            header = next(reader, None)
            if header is None:
                raise InputError(f"{path} is empty.")
            # Spreadsheets leave columns without a name at the end of every line.
            header = [name or f"column{i}" for i, name in enumerate(header, 1)]
            if len(set(header)) != len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise InputError(f"{path} has two columns named {twice!r}.")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, where the header has "
                        f"{len(header)}."
                    )
                yield dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}.") from None


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
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
            columns = {name: file[name] for name in file.files}
    except (ValueError, OSError, *DAMAGE) as error:
        raise InputError(f"{path} cannot be read as npz: {error}.") from None
    lengths = {name: len(column) if column.ndim else 0 for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"{path} has columns of different lengths: "
            f"{', '.join(f'{k} {v}' for k, v in lengths.items())}."
        )
    for i in range(next(iter(lengths.values()), 0)):
        yield {name: _plain(column[i]) for name, column in columns.items()}


def _plain(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _folder(path: Path, split: str) -> Iterator[Record]:
    if (path / "dataset_info.json").is_file() and _tfds_files(path):
        yield from _tfds(path, split)
        return
    if split:
        member = _member(path, split)
        if member is None:
            raise InputError(
                f"{path} has no split {split!r}; it has {', '.join(splits(path)) or 'none'}."
            )
        yield from read(member)
        return
    if any(path.glob("*.arrow")):
        yield from _arrow(path)
        return
    classes = sorted(p for p in path.iterdir() if p.is_dir())
    if not classes:
        raise InputError(
            f"{path} is neither a folder with a folder of .txt files for each class, nor a TFDS or "
            f"`datasets` folder."
        )
    for label in classes:
        for file in sorted(label.glob("*.txt")):
            with opened(file) as data:
                yield {
                    "text": data.read().decode("utf-8", "surrogateescape"),
                    "label": label.name,
                    "id": file.stem,
                }


# TFDS folders. Both kinds of file hold serialised `tf.train.Example`s.


def tfds_folder(name: str, data_dir: str | None) -> Path:
    """The newest prepared version of the TFDS data set `name` (or `name/config`); `InputError` says
    where it looked."""
    base = Path(
        data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    ).expanduser()
    found = [
        p.parent for depth in ("*", "*/*") for p in (base / name).glob(f"{depth}/dataset_info.json")
    ]
    if not found:
        raise InputError(
            f"there is no prepared TFDS data set {name!r}: looked for {base / name}/*/dataset_info.json."
        )
    return max(
        found, key=lambda p: ([int(d) if d.isdigit() else -1 for d in p.name.split(".")], str(p))
    )


def _tfds_files(path: Path) -> dict[str, list[Path]]:
    """Files of each split."""
    found: dict[str, list[Path]] = {}
    for kind in ("array_record", "tfrecord"):
        for file in sorted(path.glob(f"*.{kind}*")):
            found.setdefault(file.name.split(f".{kind}")[0].rpartition("-")[2], []).append(file)
    return found


def _tfds(path: Path, split: str) -> Iterator[Record]:
    files = _tfds_files(path)
    if split not in files:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(files)}.")
    info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    noted = next(
        (s.get("shardLengths") for s in info.get("splits", []) if s.get("name") == split), None
    )
    names = {
        f.name.removesuffix(".labels.txt"): f.read_text(encoding="utf-8").splitlines()
        for f in path.glob("*.labels.txt")
    }
    count = 0
    for file in files[split]:
        for data in _array_records(file) if ".array_record" in file.name else tfrecords(file):
            count += 1
            yield {
                k: names[k][v]
                if k in names and isinstance(v, int) and 0 <= v < len(names[k])
                else v
                for k, v in example(data).items()
            }
    if noted is not None and count != sum(int(n) for n in noted):
        raise InputError(
            f"split {split!r} of {path} has {count:,} rows, and its dataset_info.json says "
            f"{sum(int(n) for n in noted):,}."
        )


def _array_records(file: Path) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(file))
        for start in range(0, reader.num_records(), 1000):
            yield from reader.read(start, min(start + 1000, reader.num_records()))
        reader.close()
    except (ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"{file} cannot be read as array_record: {error}.") from None


def tfrecords(file: Path) -> Iterator[bytes]:
    """Records of a TFRecord file: length (8 bytes, little-endian), its masked CRC-32C, data, the
    data's CRC-32C.

    The length's checksum is compared, the data's is not (it would take minutes in Python); a file
    that ends inside a record is an error."""
    with opened(file) as data:
        while head := data.read(12):
            if len(head) < 12 or struct.unpack("<I", head[8:])[0] != masked_crc32c(head[:8]):
                raise InputError(
                    f"{file} is damaged: a record's length does not match its checksum."
                )
            length = struct.unpack("<Q", head[:8])[0]
            body = data.read(length + 4)
            if len(body) < length + 4:
                raise InputError(f"{file} is cut short.")
            yield body[:length]


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as TFRecord does."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def example(data: bytes) -> Record:
    """The features of a serialised `tf.train.Example`: a value, or a list where there is not
    exactly one.

    Bytes become text, with surrogates where they are no UTF-8.
    """
    row: Record = {}
    try:
        for _, features in _fields(data):
            for _, entry in _fields(features):
                parts = dict(_fields(entry))
                row[parts[1].decode()] = _feature(parts.get(2, b""))
    except (IndexError, KeyError, struct.error, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"a record is no tf.train.Example: {error!r}.") from None
    return row


def _feature(data: bytes) -> Any:
    values: list[Any] = []
    for kind, listed in _fields(data):
        for _, value in _fields(listed):
            if kind == 1:
                values.append(value.decode("utf-8", "surrogateescape"))
            elif kind == 2:
                values += struct.unpack(f"<{len(value) // 4}f", value)
            elif isinstance(value, int):
                values.append(_signed(value))
            else:
                at = 0
                while at < len(value):
                    number, at = _varint(value, at)
                    values.append(_signed(number))
    return values[0] if len(values) == 1 else values


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer message; bytes, or an int."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length, at = (4, at) if key & 7 == 5 else (8, at) if key & 7 == 1 else _varint(data, at)
        if at + length > len(data):
            raise ValueError("cut short")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def members(archive: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Name and bytes of every plain file of a tar archive, in its order. Nothing is written to
    disk, so that no name in it, absolute, with `..`, or of a link, can touch anything."""
    if not archive.is_file():
        raise InputError(f"there is no file {archive}.")
    with opened(archive) as file, tarfile.open(fileobj=file, mode="r|") as files:
        for member in files:
            if member.isfile() and (data := files.extractfile(member)) is not None:
                yield member.name.removeprefix("./"), data  # type: ignore[misc]
