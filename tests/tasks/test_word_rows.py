"""Texts with rows in them: words with tags, tables without a suffix, fastText, pairs of texts."""

import json

import numpy as np
import pytest

from dartformer import tasks
from dartformer.cli.main import main
from dartformer.data.records import read
from dartformer.errors import InputError
from dartformer.tasks.guess import guess

SENTENCES = [
    (["Ada", "of", "London", f"met{i}", "Bob"], ["B-PER", "O", "B-LOC", "O", "B-PER"])
    for i in range(40)
]


def words(separator, middle=(), head=""):
    lines = [head]
    for tokens, tags in SENTENCES:
        for token, tag in zip(tokens, tags, strict=True):
            lines.append(separator.join([token, *middle, tag]))
        lines.append("")
    return "\n".join(lines)


def universal():
    lines = []
    for tokens, tags in SENTENCES:
        lines += ["# sent_id = 1", f"1-2\t{tokens[0]}{tokens[1]}" + "\t_" * 8]
        for i, (token, tag) in enumerate(zip(tokens, tags, strict=True), 1):
            lines.append(
                "\t".join([str(i), token, token.lower(), tag, "_", "_", "0", "_", "_", "_"])
            )
        lines.append("")
    return "\n".join(lines)


TAGGED = {
    "a.conll": words(" "),
    "a.txt": words(" ", ("NNP", "I-NP"), "-DOCSTART- -X- O O\n"),
    "a.tsv": words("\t"),
    "a.iob2": words("\t"),
    "a.conllu": universal(),
}


@pytest.mark.parametrize("name", TAGGED)
def test_words_with_tags_are_labelled(name, tmp_path):
    (tmp_path / name).write_text(TAGGED[name])
    guessed = guess(str(tmp_path / name))
    assert (guessed.options["kind"], guessed.options["label"]) == ("labelling", "tags")
    rows = [(row["tokens"], row["tags"]) for row in read(tmp_path / name)]
    assert rows == SENTENCES
    task = tasks.make("files", guessed.options)
    assert sum(map(len, task.load(str(tmp_path)).values())) == 40


@pytest.mark.parametrize("repeated", [False, True])
def test_a_word_in_each_row_of_a_table(repeated, tmp_path):
    lines = ["Sentence #,Word,POS,Tag"]
    for i, (tokens, tags) in enumerate(SENTENCES):
        for j, (token, tag) in enumerate(zip(tokens, tags, strict=True)):
            name = f"Sentence: {i}" if repeated or not j else ""
            lines.append(f"{name},{token},NN,{tag}")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    guessed = guess(str(tmp_path / "a.csv"))
    assert guessed.options["kind"] == "labelling"
    assert "not read: 'POS'" in guessed.sentences
    task = tasks.make("files", guessed.options)
    splits = task.load(str(tmp_path))
    assert sum(map(len, splits.values())) == 40
    batch = splits["train"].take(np.arange(1))
    names = [task.labels[label] for label in batch["label"][0][batch["valid"][0]]]
    assert names == SENTENCES[0][1]


def test_a_folder_of_tagged_parts(tmp_path):
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text(words(" ").replace("met", part))
    guessed = guess(str(tmp_path))
    assert guessed.options["kind"] == "labelling"
    assert guessed.train == 40


def test_a_line_without_a_tag_is_named(tmp_path):
    (tmp_path / "a.conll").write_text("a X\nb Y\n\nc\n\n")
    with pytest.raises(InputError, match=r"line 4: 1 columns"):
        list(read(tmp_path / "a.conll"))


@pytest.mark.parametrize("name", ["a.txt", "SMSSpamCollection", "a.data"])
def test_a_table_without_its_suffix_or_a_header(name, tmp_path):
    lines = [f"{('ham', 'spam')[i % 2]}\tcall me at number {i}, please\n" for i in range(60)]
    (tmp_path / name).write_text("".join(lines))
    guessed = guess(str(tmp_path / name))
    assert guessed.options["label_names"] == ("ham", "spam")
    assert guessed.options["text"] == "column2"
    assert len(list(read(tmp_path / name))) == 60


def test_labels_of_fasttext(tmp_path):
    lines = [f"__label__{'ab'[i % 2]} some text of number {i}\n" for i in range(40)]
    (tmp_path / "a.txt").write_text("".join(lines))
    guessed = guess(str(tmp_path / "a.txt"))
    assert guessed.options["label_names"] == ("a", "b")


@pytest.mark.parametrize(
    "names",
    [
        ("premise", "hypothesis"),
        ("sentence1", "sentence2"),
        ("Question 1", "Question 2"),
        ("text_a", "text_b"),
        ("query", "passage"),
    ],
)
def test_two_texts_are_compared(names, tmp_path):
    rows = []
    for i in range(60):
        rows.append({names[0]: f"a text {i}", names[1]: f"one more text {i}", "label": i % 2})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guessed = guess(str(tmp_path / "a.jsonl"))
    assert (guessed.options["text"], guessed.options["text2"]) == names
    alone = guess(str(tmp_path / "a.jsonl"), [names[0]])
    assert "text2" not in alone.options
    assert f"not read: {names[1]!r}" in alone.sentences


def test_a_table_of_words_and_numbers_has_no_text(tmp_path, capsys):
    lines = ["sex,age,fare,survived"]
    lines += [f"{('f', 'm')[i % 2]},{20 + i % 30},{i * 0.37},{i % 2}" for i in range(80)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert main(["new", "--data", str(tmp_path / "a.csv")]) == 2
    error = capsys.readouterr().err
    assert "this program reads sequences" in error
    assert main(["new", "--data", str(tmp_path / "a.csv"), "--text=fare"]) == 2
    assert "holds numbers and no texts" in capsys.readouterr().err
