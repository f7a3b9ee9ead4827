"""The same rows in every form of file, compressed or not, and what no reader takes."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from dartformer import tasks
from dartformer.data.records import FOREIGN, read, splits
from dartformer.errors import InputError
from dartformer.tasks.guess import guess

ROWS = [{"text": f"a film, number {i}", "label": ("neg", "pos")[i % 2]} for i in range(24)]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def separated(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), data)
    return data.getvalue()


def arrow(rows):
    table, data = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(data, table.schema) as stream:
        stream.write_table(table)
    return data.getvalue()


def npz(rows):
    data = io.BytesIO()
    np.savez(data, **{name: np.array([row[name] for row in rows]) for name in rows[0]})
    return data.getvalue()


WRITERS = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".lines.json": jsonl,
    ".columns.json": lambda rows: json.dumps({n: [r[n] for r in rows] for n in rows[0]}).encode(),
    ".nested.json": lambda rows: json.dumps({"version": "1", "data": rows}).encode(),
    ".csv": separated,
    ".parquet": as_parquet,
    ".arrow": arrow,
    ".npz": npz,
}


def zipped(data):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__MACOSX/x", b"")
        file.writestr("a.csv", data)
    return archive.getvalue()


PACKERS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_form_holds_the_same_rows(suffix, packer, tmp_path):
    file = tmp_path / f"a{suffix}{packer}"
    file.write_bytes(PACKERS[packer](WRITERS[suffix](ROWS)))
    assert list(read(file)) == ROWS


@pytest.mark.parametrize("name", ["a.zip", "a.csv.zip"])
def test_a_zip_of_one_file_is_that_file(name, tmp_path):
    (tmp_path / name).write_bytes(zipped(separated(ROWS)))
    assert list(read(tmp_path / name)) == ROWS


def test_a_zip_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a.csv", b"x")
        file.writestr("b.csv", b"x")
    with pytest.raises(InputError, match=r"holds 2 files.* Unpack it"):
        list(read(tmp_path / "a.zip"))


@pytest.mark.parametrize("suffix", FOREIGN)
def test_what_cannot_be_read_says_what_to_do(suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(b"\0\1")
    with pytest.raises(InputError, match=r"Save|Unpack") as error:
        guess(str(tmp_path / f"a{suffix}"))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("data", [b"", b"[", b"3", b"[1]", b'{"a": 1}', b"{}", b"[[1]]", b"\xff"])
def test_json_without_rows_is_one_line(data, tmp_path):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(InputError) as error:
        guess(str(tmp_path / "a.json"))
    assert len(str(error.value).splitlines()) == 1


words = st.text(st.sampled_from("abc ,;\"'\té"), min_size=1).filter(
    lambda text: text.strip() == text
)


@given(st.lists(st.tuples(words, st.integers(0, 3)), min_size=3, max_size=20))
def test_rows_are_those_that_were_written(tmp_path_factory, pairs):
    rows = [{"text": text, "label": f"c{label}"} for text, label in pairs]
    folder = tmp_path_factory.mktemp("rows")
    for suffix in (".jsonl", ".json", ".parquet", ".npz", ".arrow"):
        (folder / f"a{suffix}").write_bytes(WRITERS[suffix](rows))
        assert list(read(folder / f"a{suffix}")) == rows


def test_a_folder_of_the_hub(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(2):
        name = f"train-0000{i}-of-00002.parquet"
        (tmp_path / "data" / name).write_bytes(as_parquet(ROWS[12 * i : 12 * i + 12]))
    (tmp_path / "data/test-00000-of-00001.parquet").write_bytes(as_parquet(ROWS[:5]))
    (tmp_path / "README.md").write_text("---\n---\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert splits(tmp_path) == ["test", "train"]
    assert list(read(tmp_path, "train")) == ROWS


def test_a_saved_folder_of_splits(tmp_path):
    for part, rows in (("train", ROWS), ("validation", ROWS[:6]), ("test", ROWS[6:12])):
        folder = tmp_path / part
        folder.mkdir()
        (folder / "data-00000-of-00001.arrow").write_bytes(arrow(rows))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    assert sorted(splits(tmp_path)) == ["test", "train", "valid"]
    assert list(read(tmp_path, "valid")) == ROWS[:6]


def test_pictures_in_a_table(tmp_path):
    rows = []
    for i in range(30):
        data = io.BytesIO()
        Image.fromarray(np.full((8, 8), 8 * i, np.uint8)).save(data, "png")
        rows.append({"image": {"bytes": data.getvalue(), "path": None}, "label": i % 2})
    (tmp_path / "a.parquet").write_bytes(as_parquet(rows))
    guessed = guess(str(tmp_path / "a.parquet"))
    assert (guessed.task, guessed.options["height"]) == ("pictures", 8)
    splits_ = tasks.make("pictures", guessed.options).load()
    assert sum(map(len, splits_.values())) == 30


@pytest.mark.parametrize("kind", ["texts", "numbers"])
def test_a_file_that_grows_while_it_is_read_is_refused(kind, tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    rows = list(ROWS)
    if kind == "numbers":
        rows = [{"values": [i, i + 1, i + 3], "label": "ab"[i % 2]} for i in range(24)]
    file.write_bytes(jsonl(rows))
    guessed = guess(str(file))
    module = {"texts": "files", "numbers": "series"}[kind]

    def growing(path, split=""):
        for number, row in enumerate(read(path, split)):
            if number == 12:
                with open(path, "ab") as data:
                    data.write(jsonl(rows[:1]))
            yield row

    monkeypatch.setattr(f"dartformer.tasks.{module}.read", growing)
    task = tasks.make(guessed.task, {**guessed.options, "seed": 1})
    with pytest.raises(InputError, match=r"changed while it was read\. Wait until it is complete"):
        task.load(str(tmp_path))


@pytest.mark.parametrize("kind", ["texts", "numbers"])
def test_a_class_that_only_test_has_is_named(kind, tmp_path):
    for part, labels in (("train", "ab"), ("test", "abc")):
        rows = []
        for i in range(30):
            row = {"label": labels[i % len(labels)], "text": f"a {part} text of number {i}"}
            if kind == "numbers":
                row = {"label": row["label"], "values": [i, i + 1, len(part) * i]}
            rows.append(row)
        (tmp_path / f"{part}.jsonl").write_bytes(jsonl(rows))
    guessed = guess(str(tmp_path))
    absent = (
        "classes that train lacks cannot be learned, and their rows in the other splits are left"
    )
    assert f"{absent} out: c 10" in guessed.sentences
    options = {**guessed.options, "on_bad_label": "error"}
    with pytest.raises(
        InputError, match=r"test, row 3: .*'c' is not one of the classes a, b .*drop"
    ):
        tasks.make(guessed.task, options).load(str(tmp_path))
    options["label_names"] = ("a", "b", "c")
    with pytest.raises(InputError, match=r"train has no row of the class c. Leave it out"):
        tasks.make(guessed.task, options).load(str(tmp_path))


def test_rows_of_unequal_width_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "a b,c\n" * 9 + "a,b,c\n")
    with pytest.raises(InputError, match=r"line 11: 3 fields, and the header has 2"):
        guess(str(tmp_path / "a.csv"))
