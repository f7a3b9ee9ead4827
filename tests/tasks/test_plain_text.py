"""Plain text as it is: `new --data book.txt`, and a folder of text files."""

import json
import lzma

import numpy as np
import pytest
from tasks.test_files import SMALL

from dartformer import tasks
from dartformer.cli.main import main
from dartformer.errors import InputError
from dartformer.tasks.guess import guess

TEXT = "the cat sat on the mat, and the dog sat on the log.\n" * 80


def windows(guessed):
    task = tasks.make(guessed.task, guessed.options)
    splits = task.load()
    batches = {name: split.take(np.arange(len(split))) for name, split in splits.items()}
    return task.fitted(), batches


def forms(folder):
    """The same text in every form."""
    half = TEXT.index("\n", len(TEXT) // 2)
    (folder / "book.txt").write_text(TEXT, "utf-8")
    (folder / "book.md").write_text(TEXT, "utf-16")
    (folder / "book.txt.xz").write_bytes(lzma.compress(TEXT.encode()))
    (folder / "books").mkdir()
    (folder / "books/1.txt").write_text(TEXT[:half], "utf-8")
    (folder / "books/2.txt").write_text(TEXT[half + 1 :], "utf-8")
    return ["book.txt", "book.md", "book.txt.xz", "books"]


def test_every_form_of_a_text_is_the_same_data(tmp_path):
    expected = None
    for name in forms(tmp_path):
        guessed = guess(str(tmp_path / name))
        assert guessed.task == "language"
        fitted, batches = windows(guessed)
        state = fitted.learned, {name: batch["tokens"].tolist() for name, batch in batches.items()}
        assert expected in (None, state)
        expected = state
        assert guessed.train == len(batches["train"]["tokens"])
    assert "plain text of 4,160 characters" in guessed.sentences[0]


def test_files_for_each_part_stay_in_it(tmp_path):
    for part, text in (("train", TEXT), ("valid", "the dog. " * 30), ("test", "the log. " * 30)):
        (tmp_path / f"{part}.txt").write_text(text, "utf-8")
    task = tasks.make("language", {"path": str(tmp_path)}).fitted()
    texts = {name: task.decode(part.ids) for name, part in task.text_parts().items()}
    assert texts == {
        "train": TEXT,
        "valid": "the dog. " * 30,
        "test": "the log. " * 30,
    }


@pytest.mark.parametrize(
    ("letters", "tokens"),
    [("abc de", "characters"), ("".join(map(chr, range(0x4E00, 0x4E00 + 600))), "characters")],
)
def test_the_characters_fit_the_text(letters, tokens, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "a.txt").write_text("".join(random.choice(list(letters), 30_000)), "utf-8")
    guessed = guess(str(tmp_path / "a.txt"))
    assert guessed.options["tokens"] == tokens
    fitted, _ = windows(guessed)
    assert fitted.tokenizer.size == len(set(letters)) + 2


@pytest.mark.parametrize(
    "arguments", [["--label", "x"], ["--text", "x"], ["--kind=classification"]]
)
def test_plain_text_has_no_columns(arguments, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    assert main(["new", "--data", str(tmp_path / "a.txt"), *arguments]) == 2
    error = capsys.readouterr().err
    assert "is plain text, which has no columns" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "ab", "\n"])
def test_too_little_text_is_one_line(text, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match="too few for a"):
        guess(str(tmp_path / "a.txt"))


def test_from_a_book_to_a_prediction(tmp_path, capsys):
    """`new --data book.txt`, `run` and `predict`, as a user types them."""
    (tmp_path / "book.txt").write_text(TEXT)
    assert main(["new", "--data", str(tmp_path / "book.txt"), *SMALL]) == 0
    (tmp_path / "space.py").write_text(capsys.readouterr().out, "utf-8")
    run = ["run", f"--config={tmp_path / 'space.py'}", f"--workdir={tmp_path / 'run'}", "--json"]
    assert main(run) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["metric"] == "bits_per_character"
    assert {"unigram", "bigram"} <= set(results["baselines"])
    assert main(["predict", str(tmp_path / "run/export"), "--text", "the ca", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["label"]) == len("the ca")
