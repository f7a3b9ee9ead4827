"""Language and recall: causal tasks, whose labels stand at the tokens that predict them."""

import os
from pathlib import Path

import numpy as np
import pytest

import dartformer
from dartformer import config as configs
from dartformer import tasks
from dartformer.errors import InputError
from dartformer.tasks.base import parts

DATA = Path(
    os.environ.get(
        "DARTFORMER_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)
TEXT = "the cat sat on the mat, and the dog sat on the log. " * 40


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    return tmp_path / "a.txt"


@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_windows_hold_the_text_once_and_in_order(tokens, file):
    task = tasks.make("language", {"path": str(file), "length": 50, "tokens": tokens})
    splits, fitted = task.load(), task.fitted()
    text = ""
    for part in ("train", "valid", "test"):
        batch = splits[part].take(np.arange(len(splits[part])))
        tokens_, labels, valid = (batch[k].reshape(-1) for k in ("tokens", "label", "valid"))
        assert (labels[~valid] == -1).all()
        np.testing.assert_array_equal(tokens_[valid][1:], labels[valid][:-1])
        text += fitted.decode([int(tokens_[0]), *labels[valid].tolist()])
    assert text == TEXT
    assert fitted.labels[fitted.encode("c")[0]] == "c"
    rules = task.baselines(splits["train"], splits["test"])
    assert 0.5 < rules["bigram"] < rules["unigram"] < 5
    assert len(fitted.encode("x" + TEXT)) == 50
    assert set(parts(task)) == {"weights", "alphas", "valid", "test", "train"}


def test_characters_are_those_of_train(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"aaab" * 50 + "é".encode() * 10 + b"\xff" * 3)
    task = tasks.make("language", {"path": str(tmp_path / "a.txt"), "length": 10})
    assert task.fitted().tokenizer.characters == "ab"
    assert task.fitted().decode(task.fitted().encode("abé")) == "ab\ufffd"
    assert task.facts()["test"]["invalid UTF-8"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Set it to a text file"),
        ({"path": "nowhere.txt"}, "no file or folder nowhere.txt"),
        ({"tokens": "words"}, "unknown task.tokens of language 'words'"),
        ({"length": 0}, "must be at least 1"),
    ],
)
def test_what_will_not_do(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        tasks.make("language", options).check()


def test_a_text_too_short_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(InputError, match="3 characters: too few for a"):
        tasks.make("language", {"path": str(tmp_path / "a.txt")}).check()


def test_tinyshakespeare():
    file = DATA / "tinyshakespeare.txt.xz"
    if not file.exists():
        pytest.skip(f"tinyshakespeare is not at {file}; set DARTFORMER_DATA to its folder")
    task = tasks.make("language", {"path": str(file)})
    facts = task.facts()
    assert sum(f["characters"] for f in facts.values()) == 1_115_394
    assert task.fitted().tokenizer.size == 65 + 2


# Recall.


@pytest.mark.parametrize(
    "options", [{}, {"pairs": 8, "length": 48, "keys": 16, "power": 1.0}, {"pairs": 1, "keys": 2}]
)
def test_every_key_is_asked_once_and_followed_by_its_value(options):
    task = tasks.make("recall", options)
    batch = task.examples(np.arange(200))
    for tokens, label in zip(batch["tokens"], batch["label"], strict=True):
        pairs = dict(
            zip(tokens[0 : 2 * task.pairs : 2], tokens[1 : 2 * task.pairs : 2], strict=True)
        )
        assert len(pairs) == task.pairs
        queries = np.flatnonzero(label >= 0)
        assert sorted(tokens[queries]) == sorted(pairs)
        for at in queries:
            assert tokens[at + 1] == pairs[tokens[at]] == 1 + task.keys + label[at]
        filler = np.setdiff1d(np.arange(2 * task.pairs, task.length), queries)
        assert not set(tokens[filler]) & set(pairs), (
            "a key of the example stands where nothing is asked"
        )
    assert task.decode(batch["tokens"][0].tolist()).split()[0].startswith("k")
    assert task.encode(task.decode(batch["tokens"][0].tolist())) == batch["tokens"][0].tolist()


def test_examples_are_a_function_of_their_number():
    task = tasks.make("recall", {})
    many, single = (task.examples(np.array(numbers))["tokens"] for numbers in ([7, 3], [3]))
    np.testing.assert_array_equal(many[1], single[0])
    near, far = (
        np.mean(
            [
                np.flatnonzero(label >= 0).mean()
                for label in tasks.make("recall", {"power": p}).examples(np.arange(300))["label"]
            ]
        )
        for p in (0.01, 1.0)
    )
    assert near < far - 5
    splits = tasks.make("recall", {"train": 50, "valid": 20, "test": 20, "endless": True}).load()
    assert splits["train"].take(np.array([10**6]))["tokens"].shape == (1, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 32}, "below task.keys = 32, got 32"),
        ({"pairs": 20}, r"at least 4 \* pairs = 80, got 64"),
        ({"power": 0.0}, "above 0"),
        ({"train": 0}, "at least 1"),
    ],
)
def test_recall_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        tasks.make("recall", options)


def test_a_causal_task_has_a_config_that_loads_and_refuses_what_sees_ahead(file):
    for name, values in (("language", {"task.path": str(file)}), ("recall", {})):
        config = dartformer.defaults(name)
        assert config.model.pooling == "none"
        configs.override(config, {**values, "space.candidates": ("full", "linear")})
        configs.build(config)
        configs.override(config, {"space.candidates": ("full", "linformer(rank=2)")})
        with pytest.raises(InputError, match="does not work with a causal task"):
            configs.build(config)
