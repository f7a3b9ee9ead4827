"""The user's own data: every kind of file, the rules for odd rows, and from a CSV to a prediction
by command line."""

import csv
import gzip
import json
import lzma

import numpy as np
import pytest

import dartformer
from dartformer import config as configs
from dartformer import tasks
from dartformer.cli.main import main
from dartformer.data import tokens as tokenizers
from dartformer.data.records import read
from dartformer.errors import InputError
from dartformer.stages import search
from dartformer.stages.study import Study
from dartformer.tasks.base import parts
from dartformer.tasks.files import Files
from dartformer.tasks.guess import guess

GOOD, BAD = ("good fine lovely great", "bad dull awful poor")


def review(i):
    """Text and label of row i: three words of one kind, and one of many more."""
    words = (GOOD, BAD)[i % 2].split()
    return f"A {words[i % 4]}, {words[i // 2 % 4]} film w{i}", ("pos", "neg")[i % 2]


ROWS = [dict(zip(("review", "stars"), review(i), strict=True), id=str(i)) for i in range(60)]


def write(path, rows):
    """Rows as a file of the kind that its name says."""
    kind = "".join(path.suffixes)
    if kind in (".csv", ".tsv", ".csv.gz", ".csv.xz"):
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with opener(path, "wt", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif kind == ".npz":
        np.savez(path, **{name: np.array([row[name] for row in rows]) for name in rows[0]})
    elif kind == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.name == "arrow":
        import pyarrow

        path.mkdir()
        table = pyarrow.Table.from_pylist(rows)
        with (
            pyarrow.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as data,
            pyarrow.ipc.new_stream(data, table.schema) as stream,
        ):
            stream.write_table(table)
    else:
        for row in rows:
            folder = path / row["stars"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{row['id']}.txt").write_text(row["review"], "utf-8")


def files(path, **options):
    folder = path.suffix == "" and path.name != "arrow"
    columns = {} if folder else {"text": "review", "label": "stars"}
    return tasks.make(
        "files",
        {
            "path": str(path),
            "label_names": ("neg", "pos"),
            "length": 12,
            "tokens": "words",
            **columns,
            **options,
        },
    )


def everything(task, folder, part="train"):
    split = task.load(str(folder))[part]
    batch = split.take(np.arange(len(split)))
    fitted = task.fitted(str(folder))
    return [
        (fitted.decode(row.tolist()), task.labels[label])
        for row, label in zip(batch["tokens"], batch["label"], strict=True)
    ]


@pytest.mark.parametrize(
    "name",
    ["a.csv", "a.tsv", "a.csv.gz", "a.csv.xz", "a.jsonl", "a.npz", "a.parquet", "arrow", "classes"],
)
def test_every_kind_of_file_holds_the_same_rows(name, tmp_path, capsys):
    write(tmp_path / name, ROWS)
    task = files(tmp_path / name)
    by_split = {part: everything(task, tmp_path, part) for part in ("train", "valid", "test")}
    assert {part: len(rows) for part, rows in by_split.items()} == {
        "train": 48,
        "valid": 6,
        "test": 6,
    }
    rows = [row for part in by_split.values() for row in part]
    clean = sorted(
        (text.lower().replace(",", " ,"), label) for text, label in map(review, range(60))
    )
    # A word that train never shows is unknown in valid and test.
    assert sorted(by_split["train"]) == [row for row in clean if row in by_split["train"]]
    assert len(set(by_split["train"])) == 48
    assert sum("[UNK]" in text for text, _ in rows) == 12


def test_what_is_learned_is_learned_from_train_alone(tmp_path):
    write(tmp_path / "a.csv", ROWS)
    for tokens in ("words", "characters", "bpe"):
        task = files(tmp_path / "a.csv", tokens=tokens, vocabulary_size=300)
        learned = json.loads(task.fitted(str(tmp_path)).learned)
        split = task.load(str(tmp_path))["train"]
        fitted = task.fitted(str(tmp_path))
        text = fitted.decode(split.take(np.array([0]))["tokens"][0].tolist())
        assert fitted.encode(text)[:12] == [
            i for i in split.take(np.array([0]))["tokens"][0].tolist() if i
        ]
        assert learned["kind"] == tokens
    with pytest.raises(InputError, match="has not learned its bpe yet"):
        task.encode("good")


def test_files_of_their_own_for_valid_and_test(tmp_path):
    for name, rows in (("a.csv", ROWS[:40]), ("v.csv", ROWS[40:50]), ("t.csv", ROWS[50:])):
        write(tmp_path / name, rows)
    task = files(tmp_path / "a.csv", valid=str(tmp_path / "v.csv"), test=str(tmp_path / "t.csv"))
    assert {k: len(v) for k, v in task.load(str(tmp_path)).items()} == {
        "train": 40,
        "valid": 10,
        "test": 10,
    }
    (tmp_path / "both").mkdir()
    for name, rows in (
        ("train.jsonl", ROWS[:40]),
        ("validation.jsonl", ROWS[40:50]),
        ("test.jsonl", ROWS[50:]),
    ):
        write(tmp_path / "both" / name, rows)
    task = files(tmp_path / "both", text="review", label="stars")
    assert {k: len(v) for k, v in task.load(str(tmp_path)).items()} == {
        "train": 40,
        "valid": 10,
        "test": 10,
    }


ODD = [
    {"review": "", "stars": "pos"},
    {"review": " \n", "stars": "neg"},
    {"review": "nul \0 inside", "stars": "pos"},
    {"review": "long " * 1_000_000, "stars": "neg"},
]


def test_odd_rows_are_counted_and_have_a_rule(tmp_path, capsys):
    write(tmp_path / "a.csv", ROWS + ODD + ROWS[:1])
    with open(tmp_path / "a.csv", "ab") as file:
        file.write(b"caf\xe9 crema,pos,z\n")
    task = files(tmp_path / "a.csv", tokens="bytes", length=20, seed=1)
    facts = task.facts(str(tmp_path))
    assert (
        sum(f["rows"] for f in facts.values())
        + sum(f["also in a later split"] for f in facts.values())
        == 64
    )
    odd = facts["train"]["left out or odd"]
    assert odd == {"empty": 2, "with a NUL": 1, "huge": 1, "invalid UTF-8": 1}
    assert facts["train"]["cropped"] > 0
    assert "2 empty, 1 invalid UTF-8, 1 with a NUL, 1 huge" in capsys.readouterr().err
    for rule, message in (
        ("on_empty", r"a.csv, row 61: its text is empty"),
        ("on_invalid", r"a.csv, row 66: its text is not valid UTF-8"),
    ):
        with pytest.raises(InputError, match=message):
            files(tmp_path / "a.csv", tokens="bytes", **{rule: "error"}).load(str(tmp_path))
    with pytest.raises(InputError, match="Did you mean 'drop'"):
        files(tmp_path / "a.csv", on_empty="dropp")


def test_a_text_in_two_splits_leaves_the_earlier_one(tmp_path, capsys):
    write(tmp_path / "a.csv", ROWS[:40])
    write(tmp_path / "t.csv", ROWS[35:])
    options = {"test": str(tmp_path / "t.csv"), "tokens": "bytes", "length": 40}
    task = files(tmp_path / "a.csv", **options)
    rows = {
        part: {text for text, _ in everything(task, tmp_path, part)}
        for part in ("train", "valid", "test")
    }
    assert not rows["train"] & rows["test"]
    assert not rows["valid"] & rows["test"]
    assert len(rows["train"] | rows["valid"]) == 35
    facts = task.facts(str(tmp_path))
    assert sum(facts[part]["also in a later split"] for part in facts) == 5
    kept = files(tmp_path / "a.csv", on_duplicate="keep", **options)
    assert sum(len(s) for s in kept.load(str(tmp_path)).values()) == 65
    with pytest.raises(InputError, match=r"rows of (train|valid) also occur in"):
        files(tmp_path / "a.csv", on_duplicate="error", **options).load(str(tmp_path))


@pytest.mark.parametrize(
    "twin", [lambda text: text + " ", str.upper, lambda text: text.replace(" ", "\r\n")]
)
def test_rows_of_the_same_tokens_are_in_one_split(twin, tmp_path):
    rows = [{"review": f"row {i} of {i % 7}", "stars": "pos"} for i in range(100)]
    rows += [{"review": twin(row["review"]), "stars": "neg"} for row in rows]
    write(tmp_path / "a.jsonl", rows)
    task = files(tmp_path / "a.jsonl", text="review", label="stars")
    texts = {}
    for part in ("train", "valid", "test"):
        texts[part] = {text for text, _ in everything(task, tmp_path, part)}
    assert not texts["train"] & (texts["valid"] | texts["test"])
    assert task.facts(str(tmp_path))["test"]["unknown share"] > 0.05


def test_repeated_rows_are_in_one_half(tmp_path):
    rows = []
    for i in range(200):
        rows.append({"review": f"row {i // 4} of many", "stars": ("pos", "neg")[i // 4 % 2]})
    write(tmp_path / "a.jsonl", rows)
    task = files(tmp_path / "a.jsonl", text="review", label="stars", tokens="bytes", length=40)
    splits = parts(task, str(tmp_path))
    halves = []
    for name in ("weights", "alphas"):
        split = splits[name]
        halves.append({row.tobytes() for row in split.take(np.arange(len(split)))["tokens"]})
    assert not halves[0] & halves[1]
    assert abs(len(splits["weights"]) - len(splits["alphas"])) <= 8
    everyone = sum(len(splits[name]) for name in ("weights", "alphas"))
    assert everyone == len(task.load(str(tmp_path))["train"])


def test_labels_outside_the_classes(tmp_path, capsys):
    write(tmp_path / "a.csv", [*ROWS, {"review": "so so", "stars": "meh"}])
    with pytest.raises(
        InputError, match=r"row 61: its label 'meh' is not one of the classes neg, pos"
    ):
        files(tmp_path / "a.csv").load(str(tmp_path))
    task = files(tmp_path / "a.csv", on_bad_label="drop")
    assert sum(len(s) for s in task.load(str(tmp_path)).values()) == 60
    assert task.facts(str(tmp_path))["train"]["left out or odd"] == {"bad label": 1}
    with pytest.raises(InputError, match="train has no row of the class none"):
        files(tmp_path / "a.csv", on_bad_label="drop", label_names=("neg", "pos", "none")).load(
            str(tmp_path)
        )


def test_columns_without_a_name_are_numbered(tmp_path):
    (tmp_path / "sheet.csv").write_text('v1,v2,,,\nham,"ok, fine",,,\nspam,win,more,,\n')
    assert next(read(tmp_path / "sheet.csv")) == {
        "v1": "ham",
        "v2": "ok, fine",
        "column3": "",
        "column4": "",
        "column5": "",
    }
    with open(tmp_path / "sheet.csv", "a") as file:
        for i in range(20):
            file.write(f'{("ham", "spam")[i % 2]},"text, number {i}",,,\n')
    assert {
        k: v
        for k, v in guess(str(tmp_path / "sheet.csv")).options.items()
        if k in ("text", "label")
    } == {"text": "v2", "label": "v1"}


def test_a_changed_file_is_prepared_anew(tmp_path, capsys):
    write(tmp_path / "a.csv", ROWS)
    assert sum(len(s) for s in files(tmp_path / "a.csv").load(str(tmp_path)).values()) == 60
    write(tmp_path / "a.csv", ROWS[:50])
    assert sum(len(s) for s in files(tmp_path / "a.csv").load(str(tmp_path)).values()) == 50


MALFORMED = {
    "fields.csv": (
        b"review,stars\ngood,pos\nbad,neg,3\n",
        "line 3: 3 fields, and the header has 2",
    ),
    "twice.csv": (b"review,review\na,b\n", "two columns named 'review'"),
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"review,stars\n", "has no rows"),
    "quote.csv": (b'review,stars\n"good,pos\n', "line 2: unexpected end of data"),
    "a.jsonl": (b'{"review": "x", "stars": "pos"}\n{"review":', "line 2: not JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1: a JSON object is needed, got list"),
    "column.jsonl": (b'{"text": "x", "stars": "pos"}\n', "row 1: unknown column 'review'"),
    "a.parquet": (b"PAR1 this is not", "cannot be read as Parquet"),
    "a.npz": (b"PK\x03\x04nonsense", "cannot be read as npz"),
    "a.csv.gz": (
        gzip.compress(b"review,stars\n" + b"good,pos\n" * 9999)[:60],
        "damaged or cut short",
    ),
    "a.csv.xz": (b"not xz at all", "damaged or cut short"),
    "a.doq": (b"", "unknown kind of file 'a.doq'"),
    "a.docx": (b"x", "Save its text as .txt"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_file_that_cannot_be_read_is_one_line_before_training(name, tmp_path, capsys):
    data, message = MALFORMED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as error:
        files(tmp_path / name).load(str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_npz_is_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", review=np.array(["a", 3], object), stars=np.array(["pos", "neg"]))
    with pytest.raises(InputError, match="cannot be read as npz"):
        files(tmp_path / "a.npz").check()


def test_a_guess_of_a_file(tmp_path):
    write(tmp_path / "a.csv", ROWS)
    guessed = guess(str(tmp_path / "a.csv"))
    assert guessed.options == {
        "path": str(tmp_path / "a.csv"),
        "text": "review",
        "label": "stars",
        "label_names": ("neg", "pos"),
        "tokens": "words",
        "length": 16,
        "kind": "classification",
    }
    assert guessed.train == 48
    with pytest.raises(InputError, match=r"unknown column of .* 'reviw'. Did you mean 'review'"):
        guess(str(tmp_path / "a.csv"), ["reviw"])
    with pytest.raises(InputError, match="no file or folder"):
        guess(str(tmp_path / "b.csv"))
    write(tmp_path / "one.csv", [{**row, "stars": "5"} for row in ROWS])
    with pytest.raises(InputError, match="1 different values"):
        guess(str(tmp_path / "one.csv"), label="stars")


SMALL = [
    "--config.model.layers=1",
    "--config.model.heads=2",
    "--config.model.head_dim=4",
    "--config.model.model_dim=8",
    "--config.model.mlp_dim=8",
    "--config.space.candidates=full,uniform",
    "--config.search.steps=6",
    "--config.retrain.steps=40",
    "--config.retrain.seeds=0",
    "--config.baselines=false",
    "--config.race.neighbours=0",
    "--config.retrain.optimizer.learning_rate=0.05",
    "--config.data.batch_size=8",
]


def test_from_a_csv_to_a_prediction(tmp_path, capsys):
    """`new --data`, `run` and `predict`, as a user types them."""
    write(tmp_path / 'it\'s "mine".csv', ROWS)
    assert main(["new", "--data", str(tmp_path / 'it\'s "mine".csv'), *SMALL]) == 0
    out, err = capsys.readouterr()
    assert "guessed: text column 'review'" in err
    (tmp_path / "space.py").write_text(out, "utf-8")
    config = f"--config={tmp_path / 'space.py'}"
    run = ["run", config, f"--workdir={tmp_path / 'run'}", f"--config.data.dir={tmp_path}"]
    assert main([*run, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    rules = {"majority", "naive_bayes", "logistic_regression"}
    assert rules <= set(results["baselines"])
    assert results["data"]["train"]["rows"] == 48
    findings = {item["name"]: item for item in results["diagnostics"]["findings"]}
    # w17 of test is in no row of train.
    assert findings["unknown tokens"]["value"] > 0.1
    assert any("of the tokens of test are unknown" in s for s in results["diagnostics"]["verdicts"])
    assert results["test"]["accuracy"] == 1.0
    assert "padded share" in (tmp_path / "run/report.html").read_text("utf-8")
    (tmp_path / 'it\'s "mine".csv').unlink()
    folder = str(tmp_path / "run/export")
    assert (
        main(["predict", folder, "--text", "A lovely, fine film", "--text", "dull awful", "--json"])
        == 0
    )
    assert [row["label"] for row in json.loads(capsys.readouterr().out)] == ["pos", "neg"]
    assert main(["predict", folder, "--text", "  "]) == 2
    assert "the text is empty" in capsys.readouterr().err
    assert main([*run[:2], f"--workdir={tmp_path / 'other'}"]) == 2
    assert "there is no file or folder" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_batches_of_a_search_step_have_one_length(tmp_path, capsys):
    write(
        tmp_path / "a.csv",
        [
            {"review": " ".join(["word"] * (1 + 3 * i % 11)) + f" {i}", "stars": "ab"[i % 2]}
            for i in range(100)
        ],
    )
    config = dartformer.defaults("files")
    configs.override(
        config,
        {
            "task.path": str(tmp_path / "a.csv"),
            "task.text": "review",
            "task.label": "stars",
            "task.length": 12,
            "task.label_names": "a,b",
            "task.tokens": "words",
            "data.dir": str(tmp_path),
            "data.batch_size": 4,
            "data.buckets": 3,
            "search.seeds": 2,
        },
    )
    study = Study(config)
    feed = search.stream(study, search.groups(study)[0])
    pairs = [next(feed) for _ in range(10)]
    assert {pair[0]["valid"].shape for pair in pairs} == {(2, 4, 4), (2, 4, 8), (2, 4, 12)}
    assert all(pair[0]["tokens"].shape == pair[1]["tokens"].shape for pair in pairs)
    assert not any(pair[i]["tokens"][~pair[i]["valid"]].any() for pair in pairs for i in (0, 1))


def test_new_refuses_what_does_not_go_together(tmp_path, capsys):
    write(tmp_path / "a.csv", ROWS)
    for arguments, message in (
        (["--text", "review"], "Use them with --data"),
        (["--task=files"], "dartformer new --data FILE"),
        (["--task=listops", "--data", str(tmp_path / "a.csv")], "does not work with --task"),
    ):
        assert main(["new", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_files_without_a_path_or_classes_say_so(tmp_path, capsys):
    config = dartformer.defaults("files")
    from dartformer import config as configs

    with pytest.raises(InputError, match="new --data"):
        configs.build(config)


def test_parts_are_the_task_s_own_splits(tmp_path, capsys):
    write(tmp_path / "a.csv", ROWS)
    splits = parts(files(tmp_path / "a.csv"), str(tmp_path))
    assert {k: len(v) for k, v in splits.items()} == {
        "weights": 24,
        "alphas": 24,
        "valid": 6,
        "test": 6,
        "train": 48,
    }


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_a_huge_text_is_read_in_pieces_and_has_the_same_tokens(kind, monkeypatch):
    text = "".join(
        f"word{i % 7}{' , '[i % 3]}{'  ' * (i % 5 == 0)}\n" * (i % 4 == 0) + f" {i % 11}é"
        for i in range(300)
    )
    tokenizer = tokenizers.train(kind, [text], 400)
    ids = tokenizer.encode([text, "a b", text[:50]])
    monkeypatch.setattr(tokenizers, "PIECE", 40)
    assert "".join(tokenizers.pieces(text)) == text
    assert 1 < max(map(len, tokenizers.pieces(text))) <= 80
    assert tokenizers.train(kind, [text], 400).state() == tokenizer.state()
    assert tokenizer.encode([text, "a b", text[:50]]) == ids
    assert list(tokenizers.pieces("x" * 100)) == ["x" * 80, "x" * 20]


@pytest.mark.parametrize(("kind", "split"), [("words", False), ("words", True), ("bpe", False)])
def test_a_text_may_spell_a_special_token(kind, split):
    """Also where it is restored, and where train has such words itself."""
    learned = tokenizers.train(kind, ["good [UNK] film [PAD]"] * 5, 300, split=split)
    for tokenizer in (learned, tokenizers.restored(learned.state())):
        ids = tokenizer.encode(["good [PAD] film [UNK]"])[0]
        assert min(ids) > 1
        assert tokenizer.names()[:2] == ["[PAD]", "[UNK]"]
        assert tokenizer.encode(["caf\u00e9"])[0] == [1] or kind == "bpe"


def test_a_table_is_read_for_predicting_without_its_labels(tmp_path):
    (tmp_path / "new.csv").write_text('first,second,id\n"a, b",c,1\nd,e,2\n')
    task = Files(path="a", text="first", text2="second", label_names=("x", "y"))
    assert list(task.unlabelled(tmp_path / "new.csv")) == [
        ("new.csv, row 1", ["a, b", "c"]),
        ("new.csv, row 2", ["d", "e"]),
    ]
    task = Files(path="a", text="first", label_names=("x", "y"))
    assert [row.document for row in task.unlabelled(tmp_path / "new.csv")] == ["a, b", "d"]
    with pytest.raises(InputError, match="row 1: unknown column 'text'"):
        list(Files(path="a", label_names=("x", "y")).unlabelled(tmp_path / "new.csv"))
