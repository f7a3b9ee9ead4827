"""Rows of a prepared TFDS folder, read without TensorFlow.

Its array_record or TFRecord files hold serialised `tf.train.Example`s."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dartformer.data import folders
from dartformer.data.compressed import opened
from dartformer.errors import InputError
from dartformer.machine.record import Place, Plain, decode
from dartformer.machine.workdir import read_json

KINDS = ("array_record", "tfrecord")

CHUNK = 1000
"""Records that are read from an array_record file at once."""

MALFORMED = (IndexError, KeyError, struct.error, TypeError, AttributeError, ValueError)
"""What reading the bytes of something else as a protocol buffer may raise."""

VARINT_BITS = 64
"""The bits of the longest number of a protocol buffer."""

MOST_DIGITS = 18
"""Digits of a number of rows that is believed."""


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
    for file in folders.entries(path):
        for kind in KINDS:
            # The name ends in .tfrecord-00000-of-00001, and begins with those of set and split.
            stem, ending, _ = file.name.partition(f".{kind}")
            if ending:
                files.setdefault(stem.rpartition("-")[2], []).append(file)
    return files


def read_split(path: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a split, class labels by name.

    Raises `InputError` where there is no such split or the number of rows is not the one in
    `dataset_info.json`."""
    files = files_by_split(path)
    if split not in files:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(files)}.")
    # Before the rows: a damaged note must not be noticed at their end.
    expected = _row_count(path, split)
    names = _label_names(path)
    count = 0
    for file in files[split]:
        read = tfrecords
        if ".array_record" in file.name:
            read = array_records
        for data in read(file):
            count += 1
            row = example(data, f"{file.name}, record {count}")
            for feature, classes in names.items():
                label = row.get(feature)
                # A number that names no class, such as -1 for no label, stays a number.
                if isinstance(label, int) and 0 <= label < len(classes):
                    row[feature] = classes[label]
            yield row
    if expected is not None and count != expected:
        raise InputError(
            f"split {split!r} of {path} has {count:,} rows, and its dataset_info.json says "
            f"{expected:,}."
        )


def _label_names(path: Path) -> dict[str, list[str]]:
    """Names of the classes of each feature that has a file of them."""
    names = {}
    for file in folders.entries(path):
        feature, ending, _ = file.name.partition(".labels.txt")
        if not ending:
            continue
        with opened(file) as data:
            try:
                names[feature] = data.read().decode().splitlines()
            except UnicodeDecodeError as error:
                raise InputError(f"{file} is not valid UTF-8: {error}.") from None
    return names


def _row_count(path: Path, split: str) -> int | None:
    """Rows of a split, from its `dataset_info.json`; None where it does not say."""
    place = Place(str(path / "dataset_info.json"))
    info = decode(dict[str, Plain], read_json(path / "dataset_info.json"), place)
    place = place.at("splits")
    entries = decode(list[dict[str, Plain]] | None, info.get("splits"), place)
    for i, entry in enumerate(entries or ()):
        if entry.get("name") == split:
            lengths = place.at(i).at("shardLengths")
            shards = decode(list[Plain] | None, entry.get("shardLengths"), lengths)
            if shards is not None:
                return sum(_rows_of_shard(shard, lengths) for shard in shards)
    return None


def _rows_of_shard(value: object, place: Place) -> int:
    """A number of rows, which JSON holds as a text because it may have 64 bits."""
    text = str(value)
    if not text.isascii() or not text.isdigit() or len(text) > MOST_DIGITS:
        raise place.wrong(f"must hold numbers of rows, not {value!r:.60}")
    return int(text)


def array_records(file: Path) -> Iterator[bytes]:
    """Records of an array_record file."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(file))
        count = reader.num_records()
        for start in range(0, count, CHUNK):
            yield from reader.read(start, min(start + CHUNK, count))
        reader.close()
    # Whatever it is: the library promises no type for bytes that are something else.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{file} cannot be read as array_record: {reason}.") from None


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
            try:
                body = data.read(length + 4)
            # A length beyond the memory, or beyond what a read may ask for.
            except (MemoryError, OverflowError):
                body = b""
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


def example(data: bytes, where: str = "a record") -> dict[str, Any]:
    """The features of a serialised `tf.train.Example`; `where` names it in errors.

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
        raise InputError(f"{where} is not a tf.train.Example: {error!r}.") from None
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
        if shift >= VARINT_BITS + 7:
            raise ValueError("a number has more than 64 bits")
