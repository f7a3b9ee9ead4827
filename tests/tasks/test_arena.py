"""Faults that were found in Long Range Arena's data and input pipelines, each with a test that it
is not ours.

The numbers are those of its issues. Others have their tests beside what they concern: brackets and
lengths of ListOps (20) in `test_listops.py`, models that load as they were saved (60) in
`test_train.py` and `test_cli.py`."""

import json

import numpy as np
import pytest
from test_imdb import lay_out

from dartformer import tasks
from dartformer.data.batches import batches, examine
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError
from dartformer.tasks.base import parts
from dartformer.tasks.image import tokens_of


def sorted_by_class(n=400):
    """What IMDb's archive is: all of one class, then all of the other."""
    tokens = np.arange(n, dtype=np.int32)[:, None]
    return ArraySplit(tokens, np.ones(n, np.int32), (np.arange(n) >= n // 2).astype(np.int32))


def test_a_sorted_data_set_is_shuffled_whole():
    """There a buffer of 256 examples shuffles 25,000 that come in order."""
    stream = batches(sorted_by_class(), 32, 0)
    shares = [next(stream)["label"].mean() for _ in range(24)]
    assert min(shares) > 0.15
    assert max(shares) < 0.85


def test_batches_change_their_composition():
    """There CIFAR-10 is batched first and the batches are shuffled after: the same examples always
    meet."""
    stream = batches(sorted_by_class(), 40, 0)
    epochs = [
        {frozenset(next(stream)["tokens"][:, 0].tolist()) for _ in range(10)} for _ in range(3)
    ]
    assert not epochs[0] & epochs[1]
    assert not epochs[1] & epochs[2]


def test_every_example_of_test_counts():
    """There the last, smaller batch is dropped in evaluation, too."""
    split = sorted_by_class(101)
    assert sum(batch["weight"].sum() for batch in examine(split, 32)) == 101


@pytest.mark.parametrize("name", ["imdb_bytes", "imdb_tokens"])
def test_valid_is_cut_from_train_and_never_is_test(name, tmp_path, capsys):
    """There (and in the code of the papers on this project's search) models are chosen on IMDb's
    test set."""
    task = tasks.make(name, {"rows": False, "length": 64, **lay_out("jsonl", tmp_path)})
    splits, fitted = parts(task, str(tmp_path)), task.fitted(str(tmp_path))
    texts = {
        part: {fitted.decode(row.tolist()) for row in split.take(np.arange(len(split)))["tokens"]}
        for part, split in splits.items()
    }
    if name == "imdb_bytes":
        assert all(text.startswith("train") for text in texts["valid"] | texts["train"])
        assert all(text.startswith("test") for text in texts["test"])
    for part in ("weights", "alphas", "valid"):
        assert not texts[part] & texts["test"]


def test_no_value_of_a_pixel_or_a_byte_is_padding(tmp_path, capsys):
    """There pixel 0 and byte 0 share their id with padding, so that black pixels are masked."""
    black = tokens_of(np.zeros((1, 32, 32), np.uint8), 0)
    assert (black > 0).all()
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"a\0b{i}", "label": i % 2}) + "\n" for i in range(40))
    )
    task = tasks.make(
        "files", {"path": str(path), "label_names": ("0", "1"), "tokens": "bytes", "length": 8}
    )
    batch = task.load(str(tmp_path))["train"].take(np.arange(10))
    assert (batch["valid"].sum(1) >= 4).all()
    assert task.decode(batch["tokens"][0].tolist()).startswith("a\0b")


def test_train_and_test_are_drawn_alike(tmp_path, capsys):
    """Pathfinder-128 (38): 95% on train, chance on test, because the parts came from two different
    folders."""
    task = tasks.make("pathfinder", {"train": 200, "valid": 10, "test": 200, "distractors": 2})
    splits = task.load(str(tmp_path))
    ink = {
        part: (splits[part].take(np.arange(200))["tokens"] > 1).sum(1) for part in ("train", "test")
    }
    assert abs(ink["train"].mean() - ink["test"].mean()) < 2
    pictures = {
        part: {row.tobytes() for row in splits[part].take(np.arange(200))["tokens"]} for part in ink
    }
    assert not pictures["train"] & pictures["test"]
    assert len(pictures["train"]) == 200


def test_no_data_are_fetched_unasked_and_the_error_says_where_to_put_them(tmp_path):
    """1, 12, 45, 52, 63: an archive of 8 GB, a bucket that answers 403, a link that is dead,
    folders not as documented; 11: no way to say where the data lie."""
    for name in ("imdb_bytes", "imdb_tokens", "matching", "image", "language", "files"):
        task = tasks.make(name, {})
        with pytest.raises(InputError, match=r"task\.path"):
            (task.check if hasattr(task, "check") else task.load)(str(tmp_path))


def test_a_set_that_lacks_rows_is_an_error_and_not_a_smaller_set(tmp_path, capsys):
    lay_out("tfrecord", tmp_path)
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace('"20"', '"21"'))
    with pytest.raises(InputError, match=r"has 20 rows, and its dataset_info.json says 21"):
        tasks.make("imdb_bytes", {"rows": False}).load(str(tmp_path))


def test_an_error_while_preparing_leaves_nothing_that_looks_whole(tmp_path, capsys):
    lay_out("tfrecord", tmp_path)
    options = {"path": "tfds:imdb_reviews", "tokens": "bytes", "length": 64}
    with pytest.raises(InputError, match="its label 'neg' is not one of the classes"):
        tasks.make("files", {**options, "label_names": ("pos", "good")}).load(str(tmp_path))
    assert not list(tmp_path.glob("dartformer_files/*/*/dataset_info.json"))
    task = tasks.make("files", {**options, "label_names": ("neg", "pos")})
    assert {k: len(v) for k, v in task.load(str(tmp_path)).items()} == {
        "train": 18,
        "valid": 2,
        "test": 20,
    }


def test_one_class_that_is_nearly_all_there_is_is_said(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": f"row {i}", "label": int(i % 20 == 0)}) + "\n" for i in range(400)
        )
    )
    tasks.make("files", {"path": str(path), "label_names": ("0", "1"), "length": 8}).load(
        str(tmp_path)
    )
    assert "95% are of one class" in capsys.readouterr().err
