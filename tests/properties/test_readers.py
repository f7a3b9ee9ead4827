"""Damaged files of every kind: rows or an `InputError` of one line, and neither takes long."""

import gzip
import json
import random
import struct
import time

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from dartformer.data.records import read, splits
from dartformer.data.tfds import masked_crc32c
from dartformer.errors import InputError

ROWS = [{"text": f'a "good", fine film {i}', "label": ("neg", "pos")[i % 2]} for i in range(12)]
LIMIT = 1.0
"""Seconds for a damaged file."""


def jsonl(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "a.jsonl", "a.jsonl"


def separated(suffix, separator, encoding="utf-8"):
    def make(folder):
        file = folder / f"a{suffix}"
        lines = [f"text{separator}label"]
        for row in ROWS:
            text = row["text"].replace('"', '""')
            lines.append(f'"{text}"{separator}{row["label"]}')
        file.write_text("\n".join(lines) + "\n", encoding)
        return file, file.name

    return make


def compressed(folder):
    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    return folder / "a.jsonl.gz", "a.jsonl.gz"


def parquet_file(folder):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
    return folder / "a.parquet", "a.parquet"


def saved(folder):
    """A `datasets` folder."""
    table = pyarrow.Table.from_pylist(ROWS)
    with (
        pyarrow.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as data,
        pyarrow.ipc.new_stream(data, table.schema) as stream,
    ):
        stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    return folder, "data-00000-of-00001.arrow"


def state(folder):
    return saved(folder)[0], "state.json"


def indexed(folder):
    table = pyarrow.Table.from_pylist(ROWS)
    with (
        pyarrow.OSFile(str(folder / "a.arrow"), "wb") as data,
        pyarrow.ipc.new_file(data, table.schema) as file,
    ):
        file.write_table(table)
    return folder / "a.arrow", "a.arrow"


def npz(folder):
    np.savez(folder / "a.npz", **{key: np.array([row[key] for row in ROWS]) for key in ROWS[0]})
    return folder / "a.npz", "a.npz"


def message(number, data):
    """A field of a protocol buffer with bytes in it."""
    return bytes([number << 3 | 2, len(data)]) + data


def tfds_folder(folder):
    records = b""
    for i in range(3):
        features = b""
        values = {b"text": message(1, b"a film"), b"label": message(3, bytes([8, i % 2]))}
        for name, value in values.items():
            kind = value[0] >> 3
            feature = message(kind, message(1, b"a film") if kind == 1 else bytes([8, i % 2]))
            features += message(1, message(1, name) + message(2, feature))
        data = message(1, features)
        head = struct.pack("<Q", len(data))
        records += head + struct.pack("<I", masked_crc32c(head)) + data + bytes(4)
    (folder / "x-train.tfrecord-00000-of-00001").write_bytes(records)
    info = {"splits": [{"name": "train", "shardLengths": ["3"]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "label.labels.txt").write_text("neg\npos\n")
    return folder, "x-train.tfrecord-00000-of-00001"


def of_tfds(name):
    def make(folder):
        return tfds_folder(folder)[0], name

    return make


def classes(folder):
    for row in ROWS:
        (folder / row["label"]).mkdir(exist_ok=True)
        (folder / row["label"] / f"{len(row['text'])}.txt").write_text(row["text"])
    return folder, "neg/21.txt"


FORMS = {
    "jsonl": jsonl,
    "csv": separated(".csv", ","),
    "csv of utf-16": separated(".csv", ";", "utf-16"),
    "tsv": separated(".tsv", "\t"),
    "gzip": compressed,
    "parquet": parquet_file,
    "datasets": saved,
    "state of datasets": state,
    "arrow file": indexed,
    "npz": npz,
    "tfds": tfds_folder,
    "dataset_info": of_tfds("dataset_info.json"),
    "labels of tfds": of_tfds("label.labels.txt"),
    "folder per class": classes,
}

SPLICES = [
    b"\0",
    b"\xff",
    b'"',
    b"\r",
    b"[" * 3000,
    b"9" * 5000,
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
    b"null",
    b"{}",
    "\ud800".encode("utf-8", "surrogatepass"),
]


def damaged(data, draw):
    """Bytes that are cut short, altered, or hold what is not theirs."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(len(data) + 1)
        action = draw.randrange(4)
        if action == 0:
            del data[place:]
        elif action == 1 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif action == 2:
            data[place:place] = draw.choice(SPLICES)
        else:
            end = draw.randrange(place, len(data) + 1)
            other = draw.randrange(len(data) + 1)
            data[place:end] = data[other : other + draw.randrange(64)]
    return bytes(data)


def check_damaged(form, folder, seeds):
    """Read a file that is damaged in as many ways."""
    path, name = FORMS[form](folder)
    whole = (folder / name).read_bytes()
    assert list(read(path, next(iter(splits(path)), "")))
    for seed in seeds:
        (folder / name).write_bytes(damaged(whole, random.Random(seed)))
        message, start = "", time.perf_counter()
        try:
            for split in splits(path) or [""]:
                for row in read(path, split):
                    assert isinstance(row, dict)
        except InputError as error:
            message = str(error)
        assert "\n" not in message, seed
        assert time.perf_counter() - start < LIMIT, seed


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_is_rows_or_an_input_error(form, tmp_path):
    check_damaged(form, tmp_path, range(60))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_many_damaged_files_are_rows_or_input_errors(form, tmp_path):
    check_damaged(form, tmp_path, range(1000, 6000))
