"""IMDb from every place where it may lie, and never a valid split that is the test set."""

import io
import json
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dartformer import tasks
from dartformer.data.tfds import example, masked_crc32c, tfrecords
from dartformer.errors import InputError
from dartformer.tasks import imdb

DATA = Path(
    os.environ.get(
        "DARTFORMER_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)
REVIEWS = {
    split: {
        label: [f"{split} {label} review {i}<br />caf\xe9" for i in range(10)]
        for label in ("neg", "pos")
    }
    for split in ("train", "test")
}


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def serialised(text, label):
    """A `tf.train.Example`, written from its description."""
    features = {
        "text": message(1, message(1, text.encode())),
        "label": message(3, message(1, varint(label))),
    }
    entries = b"".join(
        message(1, message(1, k.encode()) + message(2, v)) for k, v in features.items()
    )
    return message(1, entries)


def tfrecord(records):
    out = b""
    for data in records:
        head = struct.pack("<Q", len(data))
        out += (
            head
            + struct.pack("<I", masked_crc32c(head))
            + data
            + struct.pack("<I", masked_crc32c(data))
        )
    return out


def lay_out(kind, folder):
    """The reviews as one would find them; returns the options of the task."""
    if kind == "aclImdb" or kind == "tar":
        for split, labels in REVIEWS.items():
            for label, texts in labels.items():
                where = folder / "aclImdb" / split / label
                where.mkdir(parents=True)
                for i, text in enumerate(texts):
                    (where / f"{i}_7.txt").write_text(text, "utf-8")
        (folder / "aclImdb/train/unsup").mkdir()
        (folder / "aclImdb/train/unsup/0_0.txt").write_text("nobody knows")
        if kind == "aclImdb":
            return {"path": str(folder / "aclImdb")}
        with tarfile.open(folder / "aclImdb_v1.tar.gz", "w:gz") as archive:
            archive.add(folder / "aclImdb", "aclImdb")
            for name in ("../train/pos/1_1.txt/evil", "/tmp/aclImdb_evil"):
                member = tarfile.TarInfo(name)
                member.size = 4
                archive.addfile(member, io.BytesIO(b"evil"))
        return {"path": str(folder / "aclImdb_v1.tar.gz")}
    rows = {
        split: [(text, int(label == "pos")) for label, texts in labels.items() for text in texts]
        for split, labels in REVIEWS.items()
    }
    if kind == "jsonl":
        for split, examples in rows.items():
            (folder / f"{split}.jsonl").write_text(
                "".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in examples), "utf-8"
            )
        return {"path": str(folder)}
    where = folder / "imdb_reviews/plain_text/1.0.0"
    where.mkdir(parents=True)
    (where / "dataset_info.json").write_text(
        json.dumps({"splits": [{"name": split, "shardLengths": ["20"]} for split in rows]})
    )
    (where / "label.labels.txt").write_text("neg\npos\n")
    for split, examples in rows.items():
        if kind == "tfrecord":
            (where / f"imdb_reviews-{split}.tfrecord-00000-of-00001").write_bytes(
                tfrecord(serialised(*row) for row in examples)
            )
        else:
            from array_record.python.array_record_module import ArrayRecordWriter

            writer = ArrayRecordWriter(
                str(where / f"imdb_reviews-{split}.array_record-00000-of-00001"), "group_size:1"
            )
            for row in examples:
                writer.write(serialised(*row))
            writer.close()
    return {}


def texts(task, split):
    batch = split.take(np.arange(len(split)))
    return [
        (task.decode(row.tolist()), task.labels[n])
        for row, n in zip(batch["tokens"], batch["label"], strict=True)
    ]


@pytest.mark.parametrize("kind", ["aclImdb", "tar", "jsonl", "tfrecord", "array_record"])
def test_every_place_gives_the_same_reviews(kind, tmp_path, capsys):
    task = tasks.make("imdb_bytes", {"length": 64, "rows": False, **lay_out(kind, tmp_path)})
    task.check(str(tmp_path))
    loaded = {part: texts(task, split) for part, split in task.load(str(tmp_path)).items()}
    expected = {
        split: sorted((text, label) for label, reviews in labels.items() for text in reviews)
        for split, labels in REVIEWS.items()
    }
    assert sorted(loaded["test"]) == expected["test"]
    assert sorted(loaded["train"] + loaded["valid"]) == expected["train"]
    assert len(loaded["valid"]) == 2
    assert not Path("/tmp/aclImdb_evil").exists()
    assert not list(tmp_path.rglob("*evil*"))
    with pytest.raises(InputError, match="has 20 rows; it should have 25,000"):
        tasks.make("imdb_bytes", {"path": task.path}).load(str(tmp_path))


def test_what_was_looked_for_is_said(tmp_path):
    with pytest.raises(InputError) as error:
        tasks.make("imdb_tokens", {}).check(str(tmp_path))
    for text in (
        f"{tmp_path}/imdb_reviews/*/dataset_info.json",
        "aclImdb_v1.tar.gz",
        "train.jsonl",
    ):
        assert text in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="looked for train/neg and train/pos"):
        tasks.make("imdb_tokens", {"path": str(tmp_path / "empty")}).check()
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08nothing")
    with pytest.raises(InputError, match="damaged or cut short"):
        tasks.make("imdb_tokens", {"path": str(tmp_path / "cut.tar.gz")}).check()


def test_without_a_network_a_download_is_one_clear_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imdb, "SERVER", "http://no-such-host.invalid/aclImdb_v1.tar.gz")
    with pytest.raises(
        InputError,
        match=r"^TFDS cannot download imdb_reviews from http://no-such-host\.invalid/\S+: .*"
        r"\. Fetch aclImdb_v1\.tar\.gz where there is a network, and set task\.path",
    ):
        tasks.make("imdb_bytes", {"download": True}).check(str(tmp_path))
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_tfrecords_that_are_damaged(tmp_path):
    intact = tfrecord([serialised("good", 1), serialised("bad", 0)])
    file = tmp_path / "a.tfrecord"
    file.write_bytes(intact)
    assert [example(data) for data in tfrecords(file)] == [
        {"text": "good", "label": 1},
        {"text": "bad", "label": 0},
    ]
    for data, message in (
        (intact[:-3], "cut short"),
        (intact[:-30], "cut short|length does not match"),
        (b"\xff" + intact[1:], "length does not match its checksum"),
    ):
        file.write_bytes(data)
        with pytest.raises(InputError, match=message):
            list(tfrecords(file))
    with pytest.raises(InputError, match=r"not a tf\.train\.Example"):
        example(b"\x0a\xff\x01")


def test_crc32c_of_the_standard():
    """RFC 3720, B.4: 32 bytes of zeros have the CRC-32C 0x8A9136AA."""
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_the_real_reviews_begin_as_they_should():
    if not (DATA / "imdb/train.jsonl.xz").exists():
        pytest.skip(f"IMDb is not at {DATA / 'imdb'}; set DARTFORMER_DATA to the folder above it")
    task = tasks.make("imdb_tokens", {"path": str(DATA / "imdb")})
    first = next(iter(task.sources(None)["train"].rows()))
    assert first.label in task.labels
    assert len(first.texts[0]) > 30
