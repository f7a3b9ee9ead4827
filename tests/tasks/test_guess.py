"""What `new --data` guesses of files in the wild: columns, languages, kinds, classes that are rare."""

import json
from random import Random

import pytest

import dartformer
from dartformer import tasks
from dartformer.cli.main import main
from dartformer.data.rows import Labels, canonical
from dartformer.errors import InputError
from dartformer.tasks.base import parts
from dartformer.tasks.guess import guess


@pytest.mark.parametrize("labels", [["--label=a,b"], ["--label=a, b"], ["--label=a", "--label=b"]])
@pytest.mark.parametrize("name", ["text", "x"])
def test_several_targets_are_one_line(labels, name, tmp_path, capsys):
    rows = [f"a text {i},{i % 7}.5,{i % 5}.25" for i in range(60)]
    if name == "x":
        rows = [f"{i},{i % 7}.5,{i % 5}.25" for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join([f"{name},a,b", *rows]))
    assert main(["new", f"--data={tmp_path / 'a.csv'}", *labels]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "predicts one label or number for a row, and you named a, b. Use --label=a," in error


@pytest.mark.parametrize("kind", [[], ["--kind=classification"], ["--kind=regression"]])
@pytest.mark.parametrize("label", [["a", "b"], [0.5, 1.5], {"a": 1}])
def test_several_labels_of_a_row_are_one_line(kind, label, tmp_path, capsys):
    rows = [json.dumps({"text": f"a text {i}", "label": label}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert main(["new", f"--data={tmp_path / 'a.jsonl'}", *kind]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is several values" in error
    assert "name one with --label" in error


def test_a_name_with_a_comma_is_one_label(tmp_path):
    rows = [f'a text {i},"{("x, y", "a;b;c")[i % 2]}"' for i in range(60)]
    (tmp_path / "a.csv").write_text("\n".join(['text,"a,b"', *rows]))
    guessed = guess(str(tmp_path / "a.csv"), label="a,b")
    assert guessed.options["label_names"] == ("a;b;c", "x, y")


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled(labels, text="a plain text of number {i}"):
    return [{"text": text.format(i=i), "label": label} for i, label in enumerate(labels)]


def prepared(guessed, folder):
    return parts(tasks.make("files", guessed.options), str(folder))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"url": "https://example.org/a/very/long/path/{i}", "text": "short {i}"}, "text"),
        ({"path": "data/reviews/of/films/number{i}", "note": "of film {i}"}, "note"),
        ({"hash": "0123456789abcdef" * 4 + "{i}", "remark": "it was {i}"}, "remark"),
        ({"summary_id": "a b c d e f g {i}", "Review": "good {i}"}, "Review"),
        ({"note": "a b c d e f g h {i}", "review_text": "good {i}"}, "review_text"),
        ({"text": "https://example.org/{i}", "remark": "it was {i}"}, "remark"),
        ({"id": "{i}", "surname": "name{i}"}, "surname"),
    ],
)
def test_the_column_of_texts(columns, expected, tmp_path):
    rows = []
    for i in range(40):
        texts = {name: text.format(i=i) for name, text in columns.items()}
        rows.append({**texts, "label": i % 2})
    assert guess(put(tmp_path / "a.jsonl", rows)).options["text"] == expected


CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工"
THAI = "กขคงจชซดตถทธนบปผพภมยรลวสหอะาเแโไ"


@pytest.mark.parametrize("letters", [CHINESE, THAI, "あいうえおかきくけこさしすせそたちつてと"])
def test_scripts_without_spaces_are_no_words(letters, tmp_path):
    random, rows = Random(0), []
    for i in range(80):
        clauses = ("".join(random.choices(letters, k=9)) for _ in range(4))
        rows.append({"text": "，".join(clauses), "label": i % 2})
    guessed = guess(put(tmp_path / "a.jsonl", rows))
    assert guessed.options["tokens"] == "characters"
    facts = tasks.make("files", guessed.options).facts(str(tmp_path))
    assert facts["test"]["unknown share"] < 0.05


def test_words_that_are_all_different_are_no_words(tmp_path):
    rows = labelled([i % 2 for i in range(60)], "w{i} x{i} y{i} z{i}")
    guessed = guess(put(tmp_path / "a.jsonl", rows))
    assert guessed.options["tokens"] == "bpe"
    assert any("0% of which are unknown" in sentence for sentence in guessed.sentences)


LABELS = {
    "missing": (["a", "b", "", None], ("a", "b"), "40 of 80 rows have no label"),
    "nan and three ways to write 1": ([1.0, "1", "1.0", 0, float("nan")], ("0", "1"), "no label"),
    "nan as text among numbers": (["1.0", "0.0", "nan"], ("0", "1"), "26 of 80 rows have no label"),
    "booleans": ([True, False], ("False", "True"), "2 classes"),
    "versions": (["v1.0", "v1"], ("v1", "v1.0"), "2 classes"),
    "codes": (["01", "1", "02"], ("1", "01", "02"), "3 classes"),
    "ten": (list(range(1, 11)), tuple(map(str, range(1, 11))), "--kind=regression"),
}


@pytest.mark.parametrize("name", LABELS)
def test_the_classes(name, tmp_path):
    labels, classes, sentence = LABELS[name]
    rows = labelled(labels[i % len(labels)] for i in range(80))
    guessed = guess(put(tmp_path / "a.jsonl", rows))
    assert guessed.options["label_names"] == classes
    assert sentence in "; ".join(guessed.sentences)
    assert len(prepared(guessed, tmp_path)["train"]) == guessed.train


def test_rare_classes_are_left_out_by_name(tmp_path):
    rows = labelled([f"rare{i}" if i < 5 else "ab"[i % 2] for i in range(100)])
    guessed = guess(put(tmp_path / "a.jsonl", rows))
    assert guessed.options["label_names"] == ("a", "b")
    assert guessed.options["on_bad_label"] == "drop"
    assert "left out with their rows: rare0 1, rare1 1, rare2 1" in "; ".join(guessed.sentences)
    assert sum(map(len, (prepared(guessed, tmp_path)[p] for p in ("train", "valid", "test")))) == 95


def test_a_class_that_only_test_has_is_left_out(tmp_path):
    for split, labels in (("train", "ab"), ("dev", "ab"), ("test", "abc")):
        labels = [labels[i % len(labels)] for i in range(30)]
        put(tmp_path / f"{split}.jsonl", labelled(labels, split + " text {i}"))
    guessed = guess(str(tmp_path))
    assert guessed.options["label_names"] == ("a", "b")
    assert {name: len(split) for name, split in prepared(guessed, tmp_path).items()} == {
        "weights": 15,
        "alphas": 15,
        "train": 30,
        "valid": 30,
        "test": 20,
    }


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([i % 50 for i in range(500)], "classification"),  # 50 classes that have numbers
        ([i * i % 501 for i in range(500)], "regression"),
        ([i / 7 for i in range(60)], "regression"),
        ([float(i) * 3 for i in range(12)] * 4, "classification"),
        ([i * 1.5 for i in range(15)], "regression"),  # few rows, and no number comes twice
    ],
)
def test_numbers_are_classes_or_quantities(labels, kind, tmp_path):
    file = put(tmp_path / "a.jsonl", labelled(labels))
    guessed = guess(file)
    assert guessed.options["kind"] == kind
    other = {"classification": "regression", "regression": "classification"}[kind]
    assert f"--kind={other}" in "; ".join(guessed.sentences)
    assert guess(file, kind="regression").options["kind"] == "regression"


def test_the_only_column_of_quantities_is_a_label(tmp_path):
    rows = [{"id": i, "title": f"a thing of number {i}", "price": i * 1.37} for i in range(80)]
    guessed = guess(put(tmp_path / "a.jsonl", rows))
    assert (guessed.options["label"], guessed.options["kind"]) == ("price", "regression")


def test_the_kind_that_the_user_names(tmp_path, capsys):
    labels = [i % 7 + 0.5 for i in range(300)]
    file = put(tmp_path / "a.jsonl", labelled(labels, "one two three {i}"))
    for kind, pooling in (("regression", "mean"), ("language", "none")):
        assert main(["new", f"--data={file}", f"--kind={kind}"]) == 0
        (tmp_path / "space.py").write_text(capsys.readouterr().out)
        config = dartformer.load_config(tmp_path / "space.py")
        assert (config.task.kind, config.model.pooling) == (kind, pooling)
    assert main(["new", f"--data={file}", "--kind=regresion"]) == 2
    assert "Did you mean 'regression'?" in capsys.readouterr().err
    assert main(["new", "--kind=regression"]) == 2
    assert "--data" in capsys.readouterr().err


def test_a_file_of_texts_alone_is_language(tmp_path):
    (tmp_path / "a.TXT").write_text("".join(f"line {i} of a text\n" for i in range(50)))
    guessed = guess(str(tmp_path / "a.TXT"))
    assert guessed.task == "language"
    (tmp_path / "a.csv").write_text("".join(f"line {i} of a text\n" for i in range(50)))
    guessed = guess(str(tmp_path / "a.csv"))
    assert guessed.options["kind"] == "language"
    assert prepared(guessed, tmp_path)


REFUSED = {
    "a list": (labelled([["a", "b"], ["a"]] * 30), "is several values"),
    "one class": (labelled(["a"] * 40), "1 different values"),
    "all rare": (labelled([f"r{i}" for i in range(40)]), "too few rows of each"),
    "no rows": ([], "has no rows"),
    "half a pair": (labelled(["\ud800", "b"] * 20), "row 1: its label .* is not valid UTF-8"),
    "one text": (labelled(["a", "b"] * 20, "the same"), "no rows are left for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused(name, tmp_path):
    rows, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        guess(put(tmp_path / "a.jsonl", rows), label="label" if rows else "")


def test_a_label_in_latin_1_is_named_with_its_row(tmp_path, capsys):
    rows = "".join(f"texte {i},{['positif', 'négatif'][i % 2]}\n" for i in range(60))
    (tmp_path / "a.csv").write_bytes(f"text,label\n{rows}".encode("latin-1"))
    assert main(["new", f"--data={tmp_path / 'a.csv'}"]) == 2
    assert r"row 2: its label 'n\udce9gatif' is not valid UTF-8" in capsys.readouterr().err


def test_a_file_that_is_sorted_by_its_labels(tmp_path):
    """The first rows alone would show a single label, and no column with two values."""
    rows = [{"note": f"a text of number {i}", "verdict": "ab"[i // 2500]} for i in range(5000)]
    guessed = guess(put(tmp_path / "a.jsonl", rows))
    assert (guessed.options["text"], guessed.options["label"]) == ("note", "verdict")


def test_the_values_of_the_user_are_tried_too(tmp_path, capsys):
    file = put(tmp_path / "a.jsonl", labelled(["a", "b", ""] * 30))
    assert main(["new", f"--data={file}", "--config.task.on_bad_label=error"]) == 2
    assert "row 3: it has no label" in capsys.readouterr().err


def test_whole_numbers_as_names_of_classes(tmp_path):
    file = put(tmp_path / "a.jsonl", labelled([0, 1] * 30))
    task = tasks.make("files", {"path": file, "label_names": (0, 1), "length": 40})
    assert task.labels == ("0", "1")
    assert len(task.load(str(tmp_path))["train"]) == 48
    with pytest.raises(InputError, match=r"a name twice: 1, 1\.0"):
        tasks.make("files", {"path": file, "label_names": (1, "1.0")})


def test_a_label_by_its_value():
    numbers = Labels("classification", ("0", "1", "2.5"))
    assert list(map(numbers.read, (0, "1.0", 1.0, "2.5", " 0 "))) == [0, 1, 1, 2, 0]
    names = Labels("classification", ("1", "1.0", "v"))
    assert list(map(names.read, ("1", "1.0", 1.0))) == [0, 1, 0]
    for missing in (None, float("nan"), "", " "):
        with pytest.raises(ValueError, match="it has no label"):
            names.read(missing)
    assert canonical("10.0", numeric=True) == "10"
    assert canonical("1.50", numeric=True) == "1.50"


def test_numbers_beside_a_rare_name_are_numbers(tmp_path):
    labels = [1, "1.0", 0] * 40 + ["other"]
    rows = [{"text": f"row {i} of a file", "label": label} for i, label in enumerate(labels)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    guessed = guess(str(file), data_dir=str(tmp_path))
    assert guessed.options["label_names"] == ("0", "1")
    assert guessed.options["on_bad_label"] == "drop"
    assert any("other 1" in sentence for sentence in guessed.sentences)


def test_a_class_that_train_lacks_is_named(tmp_path):
    put(tmp_path / "train.jsonl", labelled(["x", "y"] * 30))
    put(tmp_path / "test.jsonl", labelled(["x", "y", "z"] * 10))
    guessed = guess(str(tmp_path))
    assert guessed.options["label_names"] == ("x", "y")
    sentence = (
        "classes that train lacks cannot be learned, and their rows in the other splits are left "
        "out: z 10"
    )
    assert sentence in guessed.sentences
    few = put(tmp_path / "few.jsonl", labelled(["x", "y"] * 30 + ["z"]))
    assert any("too few rows to learn" in line for line in guess(few).sentences)
