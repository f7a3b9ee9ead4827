"""Folders as systems, editors and libraries leave them, and tables in every dialect."""

import gzip
import json

import numpy as np
import pyarrow
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from pyarrow import parquet

from dartformer import tasks
from dartformer.cli.main import main
from dartformer.data import folders
from dartformer.data.locations import identity
from dartformer.data.records import read, splits
from dartformer.errors import InputError
from dartformer.tasks.guess import guess


def put(folder, name, data=b"text,label\na film,pos\n"):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def test_hidden_files_and_folders_are_no_classes_and_no_rows(tmp_path):
    for i in range(4):
        put(tmp_path, f"neg/{i}.txt", b"bad")
        put(tmp_path, f"pos/{i}.TXT", b"good")
    for name in (".ipynb_checkpoints/0.txt", "__MACOSX/._neg.txt", "pos/._3.txt", "Thumbs.db"):
        put(tmp_path, name, b"\x00\x05\x16\x07")
    assert [row["label"] for row in read(tmp_path)] == ["neg"] * 4 + ["pos"] * 4
    put(tmp_path, "notes/a.md")
    with pytest.raises(InputError, match=r"notes holds no \.txt files"):
        list(read(tmp_path))


FEATURES = {
    "text": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["bad", "good"], "_type": "ClassLabel"},
    "tags": {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "Sequence"},
    "old": [{"names": ["O", "B-X"], "_type": "ClassLabel"}],
    "count": {"dtype": "int64", "_type": "Value"},
}


def with_features(features, form, path):
    """Rows as the library `datasets` saves them, with a note of their features."""
    rows = []
    for i in range(60):
        label = [0, 1, 1, -1][i % 4]
        rows.append(
            {"text": f"a text {i}", "label": label, "tags": [i % 2], "old": [1, 0], "count": 1}
        )
    table = pyarrow.Table.from_pylist(rows)
    note = features
    if not isinstance(features, bytes):
        note = json.dumps({"info": {"features": features}}).encode()
    table = table.replace_schema_metadata({b"huggingface": note})
    if form == "parquet":
        file = path / "data/train-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        parquet.write_table(table, file)
        return
    folder = path / "train"
    folder.mkdir(parents=True)
    opened = pyarrow.ipc.new_stream
    if form == "indexed":
        opened = pyarrow.ipc.new_file
    with opened(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    (path / "dataset_dict.json").write_text('{"splits": ["train"]}')


@pytest.mark.parametrize("form", ["parquet", "stream", "indexed"])
def test_classes_of_datasets_have_their_names(form, tmp_path):
    with_features(FEATURES, form, tmp_path)
    rows = list(read(tmp_path, "train"))
    assert [row["label"] for row in rows[:4]] == ["bad", "good", "good", -1]
    assert rows[1] == {
        "text": "a text 1",
        "label": "good",
        "tags": ["B-X"],
        "old": ["B-X", "O"],
        "count": 1,
    }
    guessed = guess(str(tmp_path), label="label")
    assert {"bad", "good"} <= set(guessed.options["label_names"])


@pytest.mark.parametrize(
    "features",
    [b"", b"no JSON", b"[]", b'{"info": 1}', b"\xff", [], {"label": 1}]
    + [{"label": {"names": names, "_type": "ClassLabel"}} for names in (None, [1], "ab", [])],
)
def test_a_note_of_features_may_be_anything(features, tmp_path):
    with_features(features, "parquet", tmp_path)
    assert [row["label"] for row in read(tmp_path, "train")][:4] == [0, 1, 1, -1]


def example_of(text, label):
    """A serialised `tf.train.Example`, by the writer of TFDS."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": np.int64})
    serializer = ExampleSerializer(features.get_serialized_info())
    return serializer.serialize_example(features.encode_example({"text": text, "label": label}))


def of_json(text, label):
    return json.dumps({"text": text, "label": label}, ensure_ascii=False).encode()


def put_records(file, records):
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(file), "group_size:2")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize("encode", [of_json, example_of])
@pytest.mark.parametrize(
    "names", ["train-0000{}-of-00002.array_record", "films-train.array_record-0000{}-of-00002"]
)
def test_a_split_in_files_of_array_record(encode, names, tmp_path):
    rows = [{"text": f"film {i} öß", "label": i % 2} for i in range(7)]
    records = [encode(**row) for row in rows]
    put_records(tmp_path / names.format(0), records[:5])
    put_records(tmp_path / names.format(1), records[5:])
    put_records(tmp_path / "test.array_record", records[:1])
    assert sorted(splits(tmp_path)) == ["test", "train"]
    assert list(read(tmp_path, "train")) == rows
    assert list(read(tmp_path, "test")) == rows[:1]
    (tmp_path / names.format(1)).unlink()
    with pytest.raises(InputError, match="promise 2"):
        list(read(tmp_path, "train"))


def test_numbered_files_of_array_record_are_one_set(tmp_path):
    for i in range(30):
        records = [of_json(f"film {i} number {j}", "ab"[j]) for j in range(2)]
        put_records(tmp_path / f"part-{i:02}.array_record", records)
    task = tasks.make("files", {**guess(str(tmp_path)).options, "tokens": "bytes", "length": 32})
    counts = {name: len(split) for name, split in task.load(str(tmp_path / "data")).items()}
    assert sum(counts.values()) == 60


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"a film", r"record 2 is neither a JSON object nor a tf.train.Example; .* b'a film'"),
        (b"", "record 2 is neither"),
        (b'{"text": ', "record 2: not JSON"),
        (b"\n\x7fa", "record 2 is not a tf.train.Example"),
    ],
)
def test_records_of_something_else(record, message, tmp_path):
    put_records(tmp_path / "a.array_record", [of_json("a film", 1), record])
    with pytest.raises(InputError, match=message):
        list(read(tmp_path / "a.array_record"))


def test_files_that_are_no_array_record(tmp_path):
    put(tmp_path, "a.array_record", bytes(range(256)) * 999)
    with pytest.raises(InputError, match=r"a.array_record cannot be read as array_record"):
        list(read(tmp_path / "a.array_record"))
    put(tmp_path, "a.array_record.gz", gzip.compress(b"{}"))
    with pytest.raises(InputError, match="compressed as a whole"):
        list(read(tmp_path / "a.array_record.gz"))


@pytest.mark.parametrize("workdir", ["run", "runs/mine", "train/run", "a/b/c"])
@pytest.mark.parametrize("names", [["train.csv", "test.csv"], ["neg/0.txt", "pos/0.txt"]])
def test_what_a_run_writes_into_the_folder_of_its_data_is_no_data(names, workdir, tmp_path):
    """`cd data; dartformer new --data=. > my_space.py; dartformer run --workdir=run`."""
    for name in names:
        put(tmp_path, name)
    before = identity(tmp_path), splits(tmp_path), list(folders.entries(tmp_path))
    written = ["my_space.py", "run.log", "dartformer_files/bytes-64-0a/1.0.0/a-train.array_record"]
    for name in (".lock", "config.json", "search/metrics.jsonl", "results.json", "summary/a.csv"):
        written.append(f"{workdir}/{name}")
    for name in written:
        put(tmp_path, name)
    (tmp_path / "downloads").mkdir()
    assert identity(tmp_path) == before[0]
    if workdir != "train/run":
        assert splits(tmp_path) == before[1]
        added = set(folders.entries(tmp_path)) - set(before[2])
        assert {entry.name for entry in added} == {"my_space.py", "run.log"}
    put(tmp_path, names[0], b"text,label\nanother,pos\n")
    assert identity(tmp_path) != before[0]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.csv", "dev.csv", "test.csv"], ["train", "valid", "test"]),
        (["Train.CSV", "VAL.csv"], ["train", "valid"]),
        (["train.jsonl", "validation.jsonl", "._test.jsonl"], ["train", "valid"]),
        (["data/train.csv", "data/test.csv", "README.md"], ["train", "test"]),
        (["train/neg/0.txt", "test/neg/0.txt"], ["train", "test"]),
        (["dev/0.txt", "test/0.txt"], []),  # names of classes as well
        (["reviews.csv", "evaluation.csv"], []),
    ],
)
def test_the_splits_of_a_folder(names, expected, tmp_path):
    for name in names:
        put(tmp_path, name)
    assert sorted(splits(tmp_path)) == sorted(expected)


@pytest.mark.parametrize(
    "names", [("dev.csv", "valid.csv"), ("dev.csv", "dev.jsonl"), ("val.csv", "data/val.csv")]
)
def test_two_candidates_for_a_split_are_an_error_that_names_both(names, tmp_path):
    for name in ("train.csv", *names):
        put(tmp_path, name)
    with pytest.raises(
        InputError, match=f"2 candidates for the split 'valid': {' and '.join(names)}"
    ):
        splits(tmp_path)


def test_shards_are_read_in_order_and_all_of_them(tmp_path):
    for i in range(3):
        put(tmp_path, f"data/train-0000{i}-of-00003.csv", f"text,label\n{i},a\n".encode())
        put(tmp_path, f"numbered/000{i}.csv", f"text,label\n{i},a\n".encode())
    assert [row["text"] for row in read(tmp_path, "train")] == ["0", "1", "2"]
    assert [row["text"] for row in read(tmp_path / "numbered")] == ["0", "1", "2"]
    (tmp_path / "data/train-00001-of-00003.csv").unlink()
    with pytest.raises(InputError, match=r"has 2 files such as .*, and their names promise 3"):
        list(read(tmp_path, "train"))


def save(folder, name, texts):
    """A file of a `datasets` folder."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"text": texts})
    with (
        pyarrow.OSFile(str(folder / name), "wb") as data,
        pyarrow.ipc.new_stream(data, table.schema) as stream,
    ):
        stream.write_table(table)


def test_a_datasets_folder_holds_what_its_state_lists(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / split
        save(folder, "data-00000-of-00001.arrow", [split])
        save(folder, "cache-1b2c.arrow", ["cached"])
        save(folder, "tmpx1.arrow", ["cached"])
        assert [row["text"] for row in read(tmp_path, split)] == [split]
        put(folder, "state.json", b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert sorted(splits(tmp_path)) == ["test", "train"]
    for split in ("train", "test"):
        assert [row["text"] for row in read(tmp_path, split)] == [split]
    for content, message in (
        ({"_data_files": [{"filename": "../x"}]}, "names '../x', which is no file of the folder"),
        ({"_data_files": [3]}, r"_data_files\[0\] must be an object"),
        ({"_data_files": [], "_indices_files": [{"filename": "i"}]}, "flatten_indices"),
    ):
        (tmp_path / "test/state.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            list(read(tmp_path, "test"))
    (tmp_path / "test/state.json").unlink()
    save(tmp_path / "test", "indices.arrow", ["0"])
    with pytest.raises(InputError, match="flatten_indices"):
        list(read(tmp_path, "test"))


def test_the_splits_of_a_cache_of_datasets(tmp_path):
    save(tmp_path, "imdb-train-00000-of-00002.arrow", ["a"])
    save(tmp_path, "imdb-train-00001-of-00002.arrow", ["b"])
    save(tmp_path, "imdb-test.arrow", ["c"])
    assert [row["text"] for row in read(tmp_path, "train")] == ["a", "b"]
    assert [row["text"] for row in read(tmp_path, "test")] == ["c"]


TWO = [("a, b; c", "pos"), ("d", "neg")]
DIALECTS = {
    "separator in quotes in the header": (
        ".csv",
        '"text; or so; or so",label\n"a, b; c",pos\nd,neg\n',
        ["text; or so; or so", "label"],
    ),
    "comma in the header": (".csv", 'text, or so;label\n"a, b; c";pos\nd;neg\n', None),
    "sep= of Excel": (".csv", 'sep=;\r\ntext;label\r\n"a, b; c";pos\r\nd;neg\r\n', None),
    "pipes": (".csv", "text|label\na, b; c|pos\nd|neg\n", None),
    "line ends of old": (".csv", 'text,label\r"a, b; c",pos\rd,neg\r', None),
    "quoted tabs": (".tsv", '"text"\t"label"\n"a, b; c"\t"pos"\n"d"\t"neg"\n', None),
    "tabs in a .csv": (".csv", "text\tlabel\na, b; c\tpos\nd\tneg\n", None),
    "spaces in the header": (".csv", 'text, label\n"a, b; c",pos\nd,neg\n', None),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", DIALECTS)
def test_tables_in_every_dialect(name, encoding, tmp_path):
    suffix, text, columns = DIALECTS[name]
    put(tmp_path, f"a{suffix}", text.encode(encoding))
    rows = list(read(tmp_path / f"a{suffix}"))
    assert [tuple(row.values()) for row in rows] == TWO
    if columns:
        assert list(rows[0]) == columns


def test_a_quote_of_an_author_in_a_tsv_file_is_a_character(tmp_path):
    put(tmp_path, "a.tsv", b'text\tlabel\n"Fine" he said\tpos\nsize 5"\tneg\n"open\tneg\n')
    assert [row["text"] for row in read(tmp_path / "a.tsv")] == [
        '"Fine" he said',
        'size 5"',
        '"open',
    ]
    put(tmp_path, "b.tsv", b'text\tlabel\n"a ""fine""\tfilm"\tpos\nbad\tneg\n')
    assert [row["text"] for row in read(tmp_path / "b.tsv")] == ['a "fine"\tfilm', "bad"]


def test_a_single_column_may_hold_every_separator(tmp_path):
    put(tmp_path, "a.csv", b'text\na, b; c | d\n"quoted, too"\n')
    assert [row["text"] for row in read(tmp_path / "a.csv")] == ["a, b; c | d", "quoted, too"]


INFO = ["", "[]", "[" * 9999, '{"splits": 3}', '{"splits": [7]}']
SHARDS = ["3", "[[]]", '["x"]', "[-1]", f"[{'9' * 5000}]", f'["{"9" * 5000}"]']
INFO += [f'{{"splits": [{{"name": "train", "shardLengths": {shards}}}]}}' for shards in SHARDS]


@pytest.mark.parametrize("text", INFO)
def test_a_damaged_dataset_info_is_named(text, tmp_path, capsys):
    put(tmp_path, "x-train.tfrecord-00000-of-00001", b"")
    put(tmp_path, "dataset_info.json", text.encode())
    assert main(["new", f"--data={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "dataset_info.json" in error
    assert len(error) < 500


def test_labels_of_tfds_that_are_not_utf8_are_named(tmp_path):
    put(tmp_path, "x-train.tfrecord-00000-of-00001", b"")
    put(tmp_path, "dataset_info.json", b"{}")
    put(tmp_path, "label.labels.txt", b"n\xe9gatif\n")
    with pytest.raises(InputError, match=r"label\.labels\.txt is not valid UTF-8"):
        tasks.make("files", {"path": str(tmp_path), "label_names": ("a", "b")}).check()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[" * 99999, "line 2: .*its lists or objects are nested too deeply"),
        (b'{"text": ' + b"9" * 5000 + b"}", "line 2: .*number .*has too many digits"),
        (b'{"text": "a" "b"}', "line 2: not JSON: Expecting ',' delimiter: line 1 column 14"),
    ],
)
def test_a_line_that_is_not_json_is_named(line, message, tmp_path):
    put(tmp_path, "a.jsonl", b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(InputError, match=message):
        list(read(tmp_path / "a.jsonl"))


def test_paths_that_cannot_be(tmp_path, capsys):
    for path in ("~nobody-of-this-name/a.csv", "a" * 5000, "a\0b.csv", "/dev/null"):
        assert main(["new", f"--data={path}"]) == 2
        assert "error" in capsys.readouterr().err
