"""Two documents, numbers, labels of words, the next character: what comes out, and that each trains
and predicts."""

import json
import os
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import dartformer
from dartformer import config as configs
from dartformer import tasks
from dartformer.attention.full import Full
from dartformer.cli.main import main
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.stages.retrain import Model
from dartformer.stages.study import Study
from dartformer.tasks.base import parts
from dartformer.training.metric import METRICS, Losses

DATA = Path(
    os.environ.get(
        "DARTFORMER_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)
WORDS = ["red", "green", "blue", "black", "white", "grey", "pink", "gold"]


def rows(n=80):
    """Two texts whose first words are the same or not; how many letters; and the length of each
    word's kind."""
    out = []
    for i in range(n):
        a, b, c = WORDS[i % 8], WORDS[(i * 3 + i // 8) % 8], WORDS[i // 10]
        out.append(
            {
                "a": f"{a} {c} {i}",
                "b": f"{a if i % 3 else b} {c} x{i}",
                "same": "yes" if i % 3 or a == b else "no",
                "number": str(len(a) - 4.5),
                "kinds": f"{len(a) % 2} {len(c) % 2} 0",
            }
        )
    return out


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("kinds") / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


KINDS = {
    "pair": {
        "text": "a",
        "text2": "b",
        "label": "same",
        "label_names": ("no", "yes"),
        "tokens": "words",
    },
    "number": {"kind": "regression", "text": "a", "label": "number", "tokens": "words"},
    "numbers of two": {
        "kind": "regression",
        "text": "a",
        "text2": "b",
        "label": "number",
        "tokens": "bytes",
    },
    "words": {
        "kind": "labelling",
        "text": "a",
        "label": "kinds",
        "label_names": ("0", "1"),
        "tokens": "words",
    },
    "language": {"kind": "language", "text": "a", "tokens": "characters"},
}


@pytest.mark.parametrize("name", KINDS)
def test_the_shapes_of_each_kind(name, file, tmp_path, capsys):
    task = tasks.make("files", {"path": str(file), "length": 12, **KINDS[name]})
    splits = parts(task, str(tmp_path))
    batch = splits["weights"].take(np.arange(4))
    document = (4, 2, 12) if "two" in name or name == "pair" else (4, 12)
    assert batch["tokens"].shape == batch["valid"].shape == document
    assert batch["label"].shape == ((4, 12) if name in ("words", "language") else (4,))
    assert batch["label"].dtype == (np.float32 if "number" in name else np.int32)
    assert (batch["tokens"] > 0)[batch["valid"]].all()
    assert not batch["tokens"][~batch["valid"]].any()
    fitted = task.fitted(str(tmp_path))
    if name == "pair":
        first = [[fitted.decode(d.tolist()).split()[:2] for d in pair] for pair in batch["tokens"]]
        truth = {row["a"].split()[0] + " " + row["b"].split()[0]: row["same"] for row in rows()}
        for (a, b), label in zip(first, batch["label"], strict=True):
            assert truth[f"{a[0]} {b[0]}"] == ("no", "yes")[label]
    if name == "number":
        for tokens, label in zip(batch["tokens"], batch["label"], strict=True):
            assert fitted.value(label) == pytest.approx(
                len(fitted.decode(tokens.tolist()).split()[0]) - 4.5, abs=1e-5
            )
        everything = splits["train"].take(np.arange(len(splits["train"])))["label"]
        assert abs(everything.mean()) < 0.3
    if name == "words":
        assert (batch["label"] >= 0).sum(1).tolist() == [3] * 4
    if name == "language":
        for tokens, label, valid in zip(
            batch["tokens"], batch["label"], batch["valid"], strict=True
        ):
            n = valid.sum()
            np.testing.assert_array_equal(tokens[1:n], label[: n - 1])
            assert (label[n:] == -1).all()
    scores = task.baselines(splits["train"], splits["test"])
    assert scores
    assert all(np.isfinite(v) for v in scores.values())
    if name == "language":
        assert scores["bigram"] < scores["unigram"] < np.log2(task.vocabulary)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "labeling"}, "Did you mean 'labelling'"),
        ({"kind": "labelling", "tokens": "bytes"}, "needs task.tokens = 'words'"),
        ({"kind": "language", "tokens": "bpe"}, "needs task.tokens = 'bytes' or 'characters'"),
        ({"kind": "language", "text2": "b"}, "reads one text"),
        ({"kind": "regression", "label_names": ("a", "b")}, "has no classes"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(InputError, match=message):
        tasks.make("files", {"path": "a.csv", **options})


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"a": "x", "number": "nan"}, KINDS["number"], "row 81: its label 'nan' is not finite"),
        ({"a": "x", "number": "many"}, KINDS["number"], "row 81: could not convert"),
        ({"a": "x y", "kinds": "0"}, KINDS["words"], "row 81: it has 2 tokens and 1 labels"),
        (
            {"a": ["New York", "", "is"], "kinds": "0 1 0"},
            KINDS["words"],
            "row 81: its word 'New York' is 2 words",
        ),
        ({"a": "x\x1cy z", "kinds": "0 1"}, KINDS["words"], "it has 3 tokens and 2 labels"),
        ({"a": "x", "b": "y", "same": None}, KINDS["pair"], "row 81: it has no label"),
    ],
)
def test_labels_that_will_not_do(row, options, message, file, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(file.read_text() + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        tasks.make("files", {"path": str(path), "length": 12, **options}).load(str(tmp_path))


@pytest.mark.parametrize(
    ("texts", "label", "kind"),
    [
        (["a", "b"], "same", "classification"),
        (["a"], "number", "classification"),
        (["b"], "many", "regression"),
        (["a"], "kinds", "labelling"),
    ],
)
def test_a_guess_of_each_kind_gives_a_config_that_loads(texts, label, kind, file, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({**row, "many": i / 7}) + "\n" for i, row in enumerate(rows()))
    )
    columns = [f"--text={name}" for name in texts]
    assert main(["new", "--data", str(path), *columns, "--label", label]) == 0
    (tmp_path / "space.py").write_text(capsys.readouterr().out)
    config = dartformer.load_config(tmp_path / "space.py")
    assert (config.task.kind, config.task.text2) == (kind, texts[1] if texts[1:] else "")
    assert config.model.pooling == ("none" if kind == "labelling" else "mean")
    assert (
        config.task.label_names
        == {
            "same": ("no", "yes"),
            "kinds": ("0", "1"),
            "many": (),
            "number": ("-1.5", "-0.5", "0.5"),
        }[label]
    )


SIZES = {"layers": 1, "heads": 1, "head_dim": 4, "model_dim": 4, "mlp_dim": 6}


@pytest.mark.parametrize("pair", ["interaction", "concat"])
def test_two_documents_are_encoded_alike_and_compared(pair):
    config = TransformerConfig(5, 2, 3, **SIZES)
    two = TransformerConfig(5, 2, 3, inputs=2, pair=pair, **SIZES)
    genotype = Genotype.homogeneous(Full(), 1, 1)
    net = transformer(two, genotype)
    weights = net.init(jax.random.key(0))
    tokens = np.array([[[1, 2, 3], [4, 1, 0]], [[2, 2, 0], [1, 2, 3]]])
    valid = tokens > 0
    encoder = {k: v for k, v in weights.items() if k != "head"}
    identity = {"kernel": np.eye(4, dtype=np.float32), "bias": np.zeros(4, np.float32)}
    wide = transformer(TransformerConfig(5, 4, 3, **SIZES), genotype)
    u, v = (
        np.asarray(wide.apply({**encoder, "head": identity}, tokens[:, i], valid[:, i]))
        for i in range(2)
    )
    joined = np.concatenate([u, v, u * v, u - v] if pair == "interaction" else [u, v], -1)
    want = joined @ np.asarray(weights["head"]["kernel"]) + np.asarray(weights["head"]["bias"])
    np.testing.assert_allclose(net.apply(weights, tokens, valid), want, rtol=1e-5, atol=1e-6)
    assert config.pooled == 4


def test_the_published_head_has_the_published_parameters():
    """Long Range Arena's matching model at 4 layers of 4 heads: 1,087,746 (an issue there measured
    1.087 million)."""
    from dartformer.cost import model_parameters

    config = TransformerConfig(
        257,
        2,
        4000,
        layers=4,
        heads=4,
        head_dim=32,
        model_dim=128,
        mlp_dim=512,
        positions="sinusoidal",
        pooling="cls",
        classifier="mlp",
        pair="concat",
        inputs=2,
    )
    assert model_parameters(transformer(config, Genotype.homogeneous(Full(), 4, 4))) == 1_087_746


def test_scores_by_hand():
    outputs, labels = (
        np.array([[1.0], [2.0], [4.0]], np.float32),
        np.array([1.0, 3.0, 5.0], np.float32),
    )
    loss, reference, weight = (
        np.asarray(a) for a in METRICS["r2"].losses(jax.numpy.asarray(outputs), labels)
    )
    assert METRICS["r2"].summary(Losses(loss, reference, weight)) == pytest.approx(
        {"loss": 2 / 3, "r2": 1 - (2 / 3) / (8 / 3)}
    )
    bits = METRICS["bits_per_character"]
    loss, reference, weight = (
        np.asarray(a) for a in bits.losses(jax.numpy.zeros((1, 3, 4)), np.array([[0, 1, -1]]))
    )
    assert bits.summary(Losses(loss, reference, weight))["bits_per_character"] == pytest.approx(2)
    assert bits.objective({"bits_per_character": 2}) < bits.objective({"bits_per_character": 1})
    assert (bits.text(1.23456), METRICS["accuracy"].text(0.5)) == ("1.235", "50.0%")


TINY = {
    "model.layers": 1,
    "model.heads": 1,
    "model.head_dim": 4,
    "model.model_dim": 8,
    "model.mlp_dim": 8,
    "space.candidates": ("full", "local(window=1)"),
    "space.granularity": "model",
    "search.steps": 4,
    "retrain.steps": 60,
    "retrain.optimizer.learning_rate": 0.03,
    "data.batch_size": 8,
    "log.eval_every": 60,
    "search.observe": False,
    "baselines.homogeneous": False,
}


def config_of(folder, name, **values):
    lines = [f"    c.{k} = {v!r}" for k, v in values.items()]
    (folder / "space.py").write_text(
        f"import dartformer\ndef get_config():\n    c = dartformer.defaults({name!r})\n"
        + "\n".join(lines)
        + "\n    return c\n"
    )
    return f"--config={folder / 'space.py'}"


def test_from_two_texts_to_a_number(file, tmp_path, capsys):
    """The whole path where there is no accuracy and there are two documents."""
    kind = {**KINDS["numbers of two"], "tokens": "words", "path": str(file), "length": 12}
    config = config_of(
        tmp_path,
        "files",
        **{f"task.{k}": v for k, v in kind.items()},
        **TINY,
        **{"data.dir": str(tmp_path)},
    )
    # The mean of numbers has no accuracy, and a rule that compares accuracies is told so.
    assert (
        main(
            [
                "run",
                config,
                f"--workdir={tmp_path / 'b'}",
                "--config.derive.rule=sample(metric='accuracy')",
            ]
        )
        == 2
    )
    assert "Use metric=loss" in capsys.readouterr().err
    assert main(["run", config, f"--workdir={tmp_path / 'run'}"]) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["conclusion"]["headline"] in capsys.readouterr().out
    assert results["metric"] == "r2"
    assert results["test"]["r2"] > 0.1 > results["baselines"]["mean"]["test"]["r2"]
    folder = str(tmp_path / "run/export")
    card = (tmp_path / "run/export/README.md").read_text()
    assert "share of variance explained" in card
    assert "takes tokens `[b, 2, 12]` int32" in card
    assert (
        main(
            [
                "predict",
                folder,
                "--pair",
                "red black 1",
                "red b",
                "--pair",
                "green red 2",
                "blue x",
                "--json",
            ]
        )
        == 0
    )
    values = [row["value"] for row in json.loads(capsys.readouterr().out)]
    assert values[0] < values[1]
    (tmp_path / "texts").write_text("red a\tred b\nred a\tpink b\n")
    assert main(["predict", folder, "--file", str(tmp_path / "texts")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    # A table has columns, and is read by their names.
    assert main(["predict", folder, "--file", str(file), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 40
    (tmp_path / "one").write_text("red a\n")
    for arguments, message in (
        (["--text", "red"], "--pair A B"),
        (["--file", str(tmp_path / "one")], "one tab between"),
    ):
        assert main(["predict", folder, *arguments]) == 2
        assert message in capsys.readouterr().err
    served = dartformer.load(folder)
    with pytest.raises(InputError, match="give pairs"):
        served(["red", "blue"])
    run = jax.export.deserialize(bytearray((tmp_path / "run/export/model.stablehlo").read_bytes()))
    pairs = [("red a", "red b"), ("gold", "pink c")]
    np.testing.assert_allclose(
        run.call(*served.arrays(pairs)), served.logits(pairs), rtol=1e-4, atol=1e-5
    )


def pictures(folder):
    rng = np.random.default_rng(0)
    for part, n in (("train", 40), ("test", 20)):
        np.save(folder / f"{part}_gray.npy", rng.integers(0, 256, (n, 32, 32), np.uint8))
        np.save(folder / f"{part}_labels.npy", np.arange(n, dtype=np.uint8) % 10)
    image = " ".join(map(str, range(256))) + " 7" * 768
    return {"task.path": str(folder), "task.patch": 16, "task.rows": False}, image, 4


def letters(folder):
    (folder / "a.txt").write_text("the cat sat on the mat. " * 40)
    return (
        {"task.path": str(folder / "a.txt"), "task.length": 12, "task.vocabulary_size": 16},
        "the cat",
        7,
    )


def labels_of_words(folder):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return (
        {
            f"task.{k}": v
            for k, v in {**KINDS["words"], "path": str(folder / "a.jsonl"), "length": 12}.items()
        }
        | {"model.pooling": "none"},
        "red blue 7",
        3,
    )


def recall(folder):
    return (
        {
            "task.pairs": 2,
            "task.keys": 4,
            "task.length": 12,
            "task.train": 40,
            "task.valid": 8,
            "task.test": 8,
        },
        (tasks.make("recall", {"pairs": 2, "keys": 4, "length": 12}).decode([1, 5, 2, 6])),
        4,
    )


@pytest.mark.parametrize(
    ("name", "make"),
    [("image", pictures), ("language", letters), ("files", labels_of_words), ("recall", recall)],
)
def test_a_loaded_export_answers_as_the_model(name, make, tmp_path, capsys):
    """Of what has patches for tokens, or a label for each token. (Training does not differ by
    task.)"""
    values, text, tokens = make(tmp_path)
    config = dartformer.defaults(name)
    configs.override(config, {**values, **TINY, "data.dir": str(tmp_path)})
    study = Study(config)
    net = transformer(study.model, genotype := Genotype.homogeneous(Full(), 1, 1))
    weights = net.init(jax.random.key(0))
    model = Model(config, study.fitted, study.model, genotype, weights, 0, 0, {})
    assert set(study.parts) == {"weights", "alphas", "valid", "test", "train"}
    served = dartformer.load(dartformer.export(model, tmp_path / "export"))
    arrays = served.arrays([text])
    assert arrays[1].sum() == tokens
    (answer,) = served([text])
    want = np.asarray(net.apply(model.weights, *arrays)).argmax(-1)
    labels = answer["label"] if name != "image" else [answer["label"]]
    assert labels == [served.labels[i] for i in want.reshape(-1)[: len(labels)]]
    assert len(labels) == (tokens if name != "image" else 1)


# Matching.


DOCUMENTS = {f"d{i}": f"{WORDS[i % 8]} paper {i} " * 3 for i in range(20)}
PAIRS = [
    (int(i % 8 == j % 8), f"d{i}", f"d{j}")
    for i in range(20)
    for j in range(20)
    if i < j and (i % 8 == j % 8 or j == i + 1)
]


def matching_files(kind, folder):
    cut = {"train": PAIRS[::2], "valid": PAIRS[1::4], "test": PAIRS[3::4]}
    if kind == "aan":
        for part, rows in cut.items():
            name = f"new_aan_pairs.{'eval' if part == 'valid' else part}.tsv"
            (folder / name).write_text(
                "".join(
                    f"{label}.0\t{a}\t{b}\t{DOCUMENTS[a]}\t{DOCUMENTS[b]}\n" for label, a, b in rows
                )
            )
        return folder
    (folder / "docs.jsonl").write_text(
        "".join(json.dumps({"id": k, "text": v}) + "\n" for k, v in DOCUMENTS.items())
    )
    for part, rows in cut.items():
        (folder / f"pairs.{part}.tsv").write_text(
            "".join(f"{label}\t{a}\t{b}\n" for label, a, b in rows)
        )
    if kind == "folder":
        return folder
    with tarfile.open(folder / "a.tar.xz", "w:xz") as archive:
        for file in sorted(folder.glob("[dp]*")):
            archive.add(file, f"minaan/{file.name}")
    return folder / "a.tar.xz"


@pytest.mark.parametrize("kind", ["folder", "archive", "aan"])
def test_matching_from_every_layout(kind, tmp_path, capsys):
    task = tasks.make("matching", {"path": str(matching_files(kind, tmp_path)), "length": 60})
    task.check()
    splits = parts(task, str(tmp_path))
    assert len(splits["test"]) == len(PAIRS[3::4])
    batch = splits["test"].take(np.arange(len(splits["test"])))
    for pair, label in zip(batch["tokens"], batch["label"], strict=True):
        a, b = (task.decode(d.tolist()).split()[0] for d in pair)
        assert (a == b) == bool(label)
    assert task.baselines(splits["train"], splits["test"])["overlap"] > 0.9


def test_matching_says_what_it_lacks(tmp_path):
    with pytest.raises(InputError, match=r"docs.jsonl and pairs.train.tsv.*new_aan_pairs.eval.tsv"):
        tasks.make("matching", {}).check()
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match=r"holds neither docs.jsonl"):
        tasks.make("matching", {"path": str(tmp_path / "x")}).check()
    folder = matching_files("folder", tmp_path)
    (folder / "pairs.test.tsv").write_text("1\td0\tnone\n")
    with pytest.raises(InputError, match=r"pairs.test.tsv, row 1: there is no document 'none'"):
        tasks.make("matching", {"path": str(folder)}).check()


def test_the_real_pairs_of_papers():
    archive = DATA / "minaan.tar.xz"
    if not archive.exists():
        pytest.skip(
            f"the pairs of papers are not at {archive}; set DARTFORMER_DATA to their folder"
        )
    sources = tasks.make("matching", {"path": str(archive)}).sources(None)
    row = next(iter(sources["train"].rows()))
    assert row.label in ("no", "yes")
    assert len(row.texts) == 2
