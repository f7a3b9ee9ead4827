"""A text in pieces: the same ids as of the whole text, in memory or in mapped files."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartformer import tasks
from dartformer.data import plain_text, text_ids
from dartformer.data import tokens as tokenizers
from dartformer.data.plain_text import pieces_of_file, text_of_file
from dartformer.errors import InputError
from dartformer.tasks.guess import guess

SURROGATES = re.compile("[\ud800-\udfff]+")

CONTENT = b"the cat \xff\xfe sat \xe2\x82\xac\r\n\xc3on \xf0\x9f\x98\x80\0 " * 40 + b"\xe2\x82" * 9


def by_hand(files, fractions):
    """Parts and invalid bytes of the whole text."""
    text = "\n".join(map(text_of_file, files))
    invalid = sum(map(len, SURROGATES.findall(text)))
    text = SURROGATES.sub("\ufffd", text)
    valid, test = (round(fraction * len(text)) for fraction in fractions)
    cuts = [0, len(text) - valid - test, len(text) - test, len(text)]
    names = ("train", "valid", "test")
    return {n: text[a:b] for n, (a, b) in zip(names, pairwise(cuts), strict=True)}, invalid


@pytest.fixture(params=["memory", "files"])
def held(request, monkeypatch):
    monkeypatch.setattr(plain_text, "READ", 7)
    if request.param == "files":
        monkeypatch.setattr(text_ids, "LONG", 0)
    return request.param


@pytest.mark.parametrize("tokens", ["characters", "bytes"])
def test_pieces_give_the_ids_of_the_whole_text(tokens, held, tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "1.txt").write_bytes(CONTENT)
    (folder / "2.txt").write_bytes(b"\xef\xbb\xbf" + CONTENT[::-1])
    options = {"path": str(folder), "length": 16, "tokens": tokens, "valid_fraction": 0.1}
    task = tasks.make("language", options)
    expected, invalid = by_hand([folder / "1.txt", folder / "2.txt"], (0.1, 0.05))
    data_dir = str(tmp_path / "data")
    tokenizer = task.fitted(data_dir).tokenizer
    if tokens == "characters":
        learned = tokenizers.train(tokens, [expected["train"]], 256)
        assert tokenizer.state() == learned.state()
    splits, facts = task.load(data_dir), task.facts(data_dir)
    for name, text in expected.items():
        ids = np.array(tokenizer.encode([text])[0])
        np.testing.assert_array_equal(splits[name].ids, ids)
        unknown = tokenizer_unknown(tokens, ids)
        assert facts[name] == {
            "characters": len(text),
            "invalid UTF-8": invalid,
            "unknown share": round(unknown / len(ids), 4),
        }
    assert (tmp_path / "data").exists() == (held == "files")


def tokenizer_unknown(tokens, ids):
    return (tokens == "characters") * int((ids == 1).sum())


def test_what_is_written_is_read_again_and_damage_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(text_ids, "LONG", 0)
    file = tmp_path / "a.txt"
    file.write_bytes(CONTENT)
    task = tasks.make("language", {"path": str(file), "length": 16})
    data_dir = str(tmp_path / "data")
    ids = task.load(data_dir)["train"].ids
    assert ids.dtype == np.uint8
    assert not ids.flags.writeable
    # A guess writes nothing, and counts the same windows.
    before = sorted(tmp_path.rglob("*"))
    guessed = guess(str(file))
    loaded = tasks.make(guessed.task, guessed.options).load(data_dir)
    assert guessed.train == len(loaded["train"])
    assert set(before) <= set(tmp_path.rglob("*"))

    def refuse(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(text_ids, "_read", refuse)
    again = task.load(data_dir)["train"].ids
    np.testing.assert_array_equal(again, ids)
    (notes,) = [
        n
        for n in (tmp_path / "data").rglob("notes.json")
        if (n.parent / "train.npy").exists() and len(np.load(n.parent / "train.npy")) == len(ids)
    ][:1]
    whole = (notes.parent / "train.npy").read_bytes()
    np.testing.assert_array_equal(np.load(notes.parent / "train.npy"), ids)
    (notes.parent / "train.npy").write_bytes(whole[:-5])
    with pytest.raises(InputError, match="is not as it was written"):
        task.load(data_dir)


def test_a_text_that_changes_while_it_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(text_ids, "LONG", 0)
    file = tmp_path / "a.txt"
    file.write_bytes(CONTENT)
    task = tasks.make("language", {"path": str(file), "length": 16})
    encode = text_ids._encode

    def growing(*arguments):
        file.write_bytes(CONTENT * 2)
        return encode(*arguments)

    monkeypatch.setattr(text_ids, "_encode", growing)
    with pytest.raises(InputError, match="changed while it was read"):
        task.load(str(tmp_path / "data"))


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(text_ids, "LONG", 0)
    (tmp_path / "a.txt").write_bytes(CONTENT)
    (tmp_path / "data").write_text("a file")
    task = tasks.make("language", {"path": str(tmp_path / "a.txt")})
    with pytest.raises(InputError, match=r"cannot write the tokens of .* Set data.dir"):
        task.load(str(tmp_path / "data"))


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60), size=st.integers(1, 9), wide=st.booleans())
def test_files_in_pieces_are_files(content, size, wide, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "pieces.txt"
    if wide:
        content = content.decode("latin-1").encode("utf-16")
    file.write_bytes(content)
    try:
        expected = text_of_file(file)
    except InputError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "READ", size)
        # A mark of UTF-8 that is cut short is no text.
        if content[:3] != b"\xef\xbb\xbf"[: len(content)]:
            assert "".join(pieces_of_file(file)) == expected


def test_memory_of_a_mapped_file_is_given_back(monkeypatch, tmp_path):
    from dartformer.tasks import language

    monkeypatch.setattr(text_ids, "LONG", 0)
    monkeypatch.setattr(language, "HELD", 1)
    (tmp_path / "a.txt").write_bytes(CONTENT)
    task = tasks.make("language", {"path": str(tmp_path / "a.txt"), "length": 16})
    mapped = task.load(str(tmp_path / "data"))["train"]
    whole = language.Windows(np.array(mapped.ids), 16)
    for i in range(3):
        got, expected = mapped.take(np.array([i, 2])), whole.take(np.array([i, 2]))
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
