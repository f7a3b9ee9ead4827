"""Rows of a prepared TFDS folder, read without TensorFlow.

Its array_record or TFRecord files hold serialised `tf.train.Example`s."""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dartformer.data.compressed import opened
from dartformer.errors import InputError

KINDS = ("array_record", "tfrecord")

CHUNK = 1000
"""Records that are read from an array_record file at once."""

MALFORMED = (IndexError, KeyError, struct.error, TypeError, AttributeError, ValueError)
"""What reading the bytes of something else as a protocol buffer may raise."""


def newest(name: str, data_dir: str | None) -> Path:
    """The newest prepared version of the TFDS data set `name` (or `name/config`).

    Raises `InputError` with the folder that was searched where there is none."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    folder = Path(root).expanduser() / name
    # A version is a folder below the data set's name, or below its name and configuration.
    versions = [*folder.glob("*/dataset_info.json"), *folder.glob("*/*/dataset_info.json")]
    if not versions:
        raise InputError(
            f"there is no prepared TFDS data set {name!r}: looked for {folder}/*/dataset_info.json."
        )
    return max((file.parent for file in versions), key=_version)


def _version(folder: Path) -> tuple[list[int], str]:
    """Sorts versions as numbers: 1.10.0 comes after 1.9.0."""
    numbers = []
    for part in folder.name.split("."):
        number = -1  # before every number
        if part.isdigit():
            number = int(part)
        numbers.append(number)
    return numbers, str(folder)


def is_tfds(path: Path) -> bool:
    """Whether a folder is a prepared TFDS data set."""
    return (path / "dataset_info.json").is_file() and bool(files_by_split(path))


def files_by_split(path: Path) -> dict[str, list[Path]]:
    """The files of each split."""
    files: dict[str, list[Path]] = {}
    for kind in KINDS:
        for file in sorted(path.glob(f"*.{kind}*")):
            split = file.name.split(f".{kind}")[0].rpartition("-")[2]
            files.setdefault(split, []).append(file)
    return files


def read_split(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a split, class labels by name.

    Raises `InputError` where there is no such split or the number of rows is not the one in
    `dataset_info.json`."""
    files = files_by_split(path)
    if split not in files:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(files)}.")
    names = _label_names(path)
    count = 0
    for file in files[split]:
        read = tfrecords
        if ".array_record" in file.name:
            read = array_records
        for data in read(file):
            count += 1
            row = example(data)
            for feature, classes in names.items():
                label = row.get(feature)
                # A number that names no class, such as -1 for no label, stays a number.
                if isinstance(label, int) and 0 <= label < len(classes):
                    row[feature] = classes[label]
            yield row
    expected = _row_count(path, split)
    if expected is not None and count != expected:
        raise InputError(
            f"split {split!r} of {path} has {count:,} rows, and its dataset_info.json says "
            f"{expected:,}."
        )


def _label_names(path: Path) -> dict[str, list[str]]:
    """Names of the classes of each feature that has a file of them."""
    names = {}
    for file in path.glob("*.labels.txt"):
        feature = file.name.removesuffix(".labels.txt")
        names[feature] = file.read_text(encoding="utf-8").splitlines()
    return names


def _row_count(path: Path, split: str) -> int | None:
    """Rows of a split, from its `dataset_info.json`; None where it does not say."""
    info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
    for entry in info.get("splits", []):
        if entry.get("name") == split:
            shards = entry.get("shardLengths")
            if shards is not None:
                return sum(map(int, shards))
    return None


def array_records(file: Path) -> Iterator[bytes]:
    """Records of an array_record file."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(file))
        count = reader.num_records()
        for start in range(0, count, CHUNK):
            yield from reader.read(start, min(start + CHUNK, count))
        reader.close()
    except (ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"{file} cannot be read as array_record: {error}.") from None


def tfrecords(file: Path) -> Iterator[bytes]:
    """Records of a TFRecord file.

    Each is its length (8 bytes, little-endian), the length's masked CRC-32C, data, the data's
    CRC-32C.

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
    rotated = (crc >> 15) | (crc << 17)
    return (rotated + 0xA282EAD8) & 0xFFFFFFFF


def example(data: bytes) -> dict[str, Any]:
    """The features of a serialised `tf.train.Example`.

    Each is a value, or a list unless there is exactly one.

    Bytes become text, with surrogates where they are not valid UTF-8."""
    row: dict[str, Any] = {}
    try:
        # Example { Features { map<string, Feature> } }; a map's entries have key 1 and value 2.
        for _, features in _fields(data):
            for _, entry in _fields(features):
                parts = dict(_fields(entry))
                row[parts[1].decode()] = _feature(parts.get(2, b""))
    except MALFORMED as error:
        raise InputError(f"a record is not a tf.train.Example: {error!r}.") from None
    return row


def _feature(data: bytes) -> Any:
    """The values of a `Feature`: a list of bytes (field 1), floats (2) or whole numbers (3)."""
    values: list[Any] = []
    for kind, numbers in _fields(data):
        for _, value in _fields(numbers):
            if kind == 1:
                values.append(value.decode("utf-8", "surrogateescape"))
            elif kind == 2:
                values += struct.unpack(f"<{len(value) // 4}f", value)
            elif isinstance(value, int):
                values.append(_signed(value))
            else:
                values += _packed(value)
    if len(values) == 1:
        return values[0]
    return values


def _packed(data: bytes) -> list[int]:
    """Whole numbers, one after the other."""
    numbers = []
    position = 0
    while position < len(data):
        number, position = _varint(data, position)
        numbers.append(_signed(number))
    return numbers


def _signed(number: int) -> int:
    """A 64-bit number as two's complement."""
    if number >= 2**63:
        return number - 2**64
    return number


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a protocol buffer message; bytes, or an int."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            number, position = _varint(data, position)
            yield field, number
            continue
        # Wire types 5 and 1 have 4 and 8 bytes; the others say how many follow.
        if wire_type == 5:
            length = 4
        elif wire_type == 1:
            length = 8
        else:
            length, position = _varint(data, position)
        end = position + length
        if end > len(data):
            raise ValueError("cut short")
        yield field, data[position:end]
        position = end


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in groups of 7 bits, the lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
