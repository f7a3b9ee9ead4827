"""Planted tasks: labels as their definitions say, parts that never overlap, an endless stream that
resumes."""

import html
import json
from collections import Counter

import jax
import numpy as np
import pytest

import dartformer
from dartformer import config as configs
from dartformer import tasks
from dartformer.attention import parse
from dartformer.attention.base import Inputs
from dartformer.cli.main import main
from dartformer.cli.new import starting_config
from dartformer.data.batches import batches
from dartformer.data.splits import Endless, Subset
from dartformer.errors import InputError
from dartformer.tasks.base import majority, parts
from dartformer.tasks.planted import ANSWERS, BLOCKS, KINDS, LETTERS, LOCAL, STRIDED, Planted, sees


def most_frequent(letters):
    """Of equals the first in the alphabet, counted one by one."""
    counts = Counter(letters)
    return min(counts, key=lambda letter: (-counts[letter], letter))


def expected(kind, text, i):
    """The label of position i of a list of symbols, None where there is none."""
    n = len(text)
    if kind == "recall":
        return text[text.index(text[i]) + 1] if i >= n // 2 else None
    near = [text[j] for j in range(n) if abs(i - j) <= 4]
    every_eighth = [j for j in range(n) if (i - j) % 8 == 0]
    column = [text[j] for j in every_eighth]
    if kind == "relay":
        return most_frequent([expected("local", text, j) for j in every_eighth])
    if kind == "quartet":
        return expected(("relay", "block", "relay", "global")[i % 4], text, i)
    visible = {"local": near, "strided": column, "global": text, "mix": column if i % 2 else near}
    visible["block"] = text[i // 8 * 8 : i // 8 * 8 + 8]
    return most_frequent(visible[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_what_the_definition_says(kind):
    task = Planted(kind, train=40, valid=3, test=5)
    for batch in (split.take(np.arange(3)) for split in task.load().values()):
        assert batch["valid"].all()
        for ids, label in zip(batch["tokens"], batch["label"], strict=True):
            text = task.decode(ids).split()
            assert task.encode(" ".join(text)) == list(ids)
            assert len(text) == 64
            got = [task.labels[c] if c >= 0 else None for c in label]
            assert got == [expected(kind, text, i) for i in range(64)]


def test_recall_shows_every_key_once_and_asks_for_shown_ones():
    task = Planted("recall", train=500, valid=1, test=1)
    tokens = task.load()["train"].take(np.arange(500))["tokens"]
    keys, queries = tokens[:, 0:32:2], tokens[:, 32:]
    assert all(len(set(row)) == 16 for row in keys)
    assert all(set(q) <= set(k) for q, k in zip(queries, keys, strict=True))
    assert set(keys.ravel()) == set(range(1, 25)), "24 keys"
    assert set(tokens[:, 1:32:2].ravel()) == set(range(25, 33)), "8 values"


def test_symbols_are_evenly_distributed():
    tokens = Planted("local", train=2000).load()["train"].take(np.arange(2000))["tokens"]
    counts = np.bincount(tokens.ravel(), minlength=5)[1:] / tokens.size
    np.testing.assert_allclose(counts, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / tokens.size))
    pairs = np.bincount((4 * tokens[:, :-1] + tokens[:, 1:]).ravel() - 5)[:16] / tokens[:, 1:].size
    np.testing.assert_allclose(pairs, 1 / 16, atol=0.003)


@pytest.mark.parametrize("endless", [False, True])
def test_no_example_is_in_two_parts(endless):
    task = Planted("recall", train=300, valid=50, test=70, endless=endless)
    splits = parts(task, seed=3)
    seeds = (0, 1) if endless else (0,)
    streams = [batches(splits[part], 30, seed) for part in ("weights", "alphas") for seed in seeds]
    rows = [
        tuple(row)
        for part in ("valid", "test")
        for row in splits[part].take(np.arange(50))["tokens"]
    ]
    rows += [tuple(row) for stream in streams for _ in range(5) for row in next(stream)["tokens"]]
    assert len(set(rows)) == len(rows)


def test_more_training_examples_leave_valid_and_test_as_they_were():
    few, many = (Planted("mix", train=n).load() for n in (10, 1000))
    for part in ("valid", "test"):
        np.testing.assert_array_equal(
            few[part].take(np.arange(20))["tokens"], many[part].take(np.arange(20))["tokens"]
        )
    second = Planted("mix", train=10, seed=1).load()
    assert (
        few["test"].take(np.arange(20))["tokens"] != second["test"].take(np.arange(20))["tokens"]
    ).mean() > 0.6


def test_the_endless_stream_is_fresh_and_resumes_exactly():
    split = parts(Planted("local", train=64, endless=True))["weights"]
    assert isinstance(split, Endless)
    assert len(split) == 32
    stream, again = batches(split, 32, 5), batches(split, 32, 5)
    first = [next(stream)["tokens"] for _ in range(4)]
    state = stream.get_state()
    following = [next(stream)["tokens"] for _ in range(3)]
    again.set_state(state)
    for batch in following:
        np.testing.assert_array_equal(next(again)["tokens"], batch)
    assert len({tuple(row) for batch in (*first, *following) for row in batch}) == 7 * 32, (
        "far beyond the split's length"
    )


def test_an_endless_split_needs_a_valid_split_of_its_own():
    class NoValid:
        def load(self, data_dir=None):
            splits = Planted(train=20, endless=True).load()
            return {"train": splits["train"], "test": splits["test"]}

    with pytest.raises(InputError, match="endless needs a valid split"):
        parts(NoValid())
    with pytest.raises(InputError, match="seed -1 is negative"):
        batches(Planted(train=64, endless=True).load()["train"], 8, -1)


def test_rules_are_fitted_on_train_alone():
    task = Planted("local", train=2000, test=500)
    splits = parts(task)
    assert task.baselines(splits["train"], splits["test"])["own_token"] == pytest.approx(
        0.44, abs=0.02
    )
    assert majority(splits["train"], splits["test"]) == pytest.approx(0.33, abs=0.02)
    recall = Planted("recall", train=2000, endless=True)
    rules = recall.baselines(parts(recall)["train"], parts(recall)["test"])
    assert rules["own_token"] == pytest.approx(1 / 8, abs=0.02)


def test_the_planted_attentions_see_exactly_what_the_labels_need():
    """The mean of one-hot letters under the answer's own mask gives the label, by argmax."""
    task = Planted("mix", train=4, valid=1, test=1)
    batch = task.load()["train"].take(np.arange(4))
    letters = np.eye(4, dtype=np.float32)[batch["tokens"] - 1][:, :, None]
    zero = np.zeros_like(letters)
    for kind in ("local", "strided"):
        ((spec,),) = ANSWERS[kind]
        mean = parse(spec)({}, Inputs(zero, zero, letters, None, None))[:, :, 0]
        np.testing.assert_allclose(
            mean * sees(kind, 64).sum(1)[:, None], sees(kind, 64) @ letters[:, :, 0], atol=1e-4
        )
        at = np.arange(64) % 2 == (kind == "strided")
        # Adding a little in favour of earlier letters breaks ties as the task does.
        got = np.asarray(mean + 1e-4 * np.arange(4)[::-1]).argmax(-1)
        np.testing.assert_array_equal(got[:, at], batch["label"][:, at])
    assert len(LETTERS) == 4


@pytest.mark.parametrize(
    ("kind", "genotype", "right"),
    [
        ("recall", [["full", "full"]], True),
        ("recall", [["full", "linear"]], False),
        ("recall", [[LOCAL, LOCAL]], False),
        ("local", [[LOCAL]], True),
        ("local", [["local(window=8)"]], False),
        ("strided", [[STRIDED, STRIDED]], True),
        ("mix", [[LOCAL, STRIDED]], True),
        ("mix", [[STRIDED, LOCAL]], True),
        ("mix", [[LOCAL, LOCAL]], False),
        ("mix", [["full", STRIDED]], False),
        ("global", [["uniform", "full"]], True),
        ("relay", [[LOCAL] * 2, [STRIDED] * 2], True),
        ("relay", [[STRIDED], [LOCAL]], False),
        ("relay", [[LOCAL]], False),
        ("quartet", [[LOCAL], [BLOCKS], [STRIDED], ["full"]], True),
        ("quartet", [["full"], [LOCAL], [STRIDED], [BLOCKS]], True),
        ("quartet", [[LOCAL], [BLOCKS], [STRIDED], ["linear"]], True),
        ("quartet", [[STRIDED], [BLOCKS], [LOCAL], ["full"]], False),
        ("quartet", [[LOCAL], [BLOCKS], [STRIDED], ["uniform"]], False),
        ("quartet", [["full"], [BLOCKS], [STRIDED], ["full"]], False),
        ("quartet", [[LOCAL], [STRIDED], [STRIDED], ["full"]], False),
        ("quartet", [[LOCAL, STRIDED], [BLOCKS], [STRIDED], ["full"]], False),
        ("global", [["linear", LOCAL]], False),
        ("global", [["identity"]], False),
    ],
)
def test_which_genotype_is_the_answer(kind, genotype, right):
    assert Planted(kind).is_answer(genotype) == right


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "recal"}, "unknown kind of planted task 'recal'. Did you mean 'recall'"),
        ({"length": 30}, "multiple of 4 and at least 32"),
        ({"length": 28}, "multiple of 4 and at least 32"),
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"seed": -1}, "seed must be between 0 and 4294967295"),
    ],
)
def test_a_wrong_option_is_one_clear_error(options, message):
    with pytest.raises(InputError, match=message):
        tasks.make("planted", options)


def test_text_that_cannot_be_read_is_one_clear_error():
    task = Planted("local")
    for text, message in (
        ("a e", "symbol of the planted task local 'e'"),
        ("", "has 0 symbols"),
        ("a " * 65, "has 65 symbols; 1 to 64"),
    ):
        with pytest.raises(InputError, match=message):
            task.encode(text)
    with pytest.raises(InputError, match="token id 5 is not between 0 and 4"):
        task.decode([5])


def test_a_label_for_each_token_is_not_pooled():
    config = dartformer.defaults("planted")
    assert config.model.pooling == "none"
    configs.build(config)
    config.model.pooling = "mean"
    with pytest.raises(InputError, match=r"label for each token. Use model\.pooling='none'"):
        configs.build(config)


def test_it_runs_to_an_export_that_labels_every_token(tmp_path, capsys):
    values = {
        "task.kind": "local",
        "task.length": 32,
        "task.train": 80,
        "task.valid": 20,
        "task.test": 20,
        "task.endless": True,
        "model.model_dim": 8,
        "model.head_dim": 4,
        "model.mlp_dim": 8,
        "search.steps": 4,
        "space.candidates": ("local(window=4)", "uniform"),
        "retrain.steps": 4,
        "retrain.seeds": (0,),
        "data.batch_size": 8,
        "data.eval_batch_size": 20,
        "baselines.random": False,
        "baselines.uniform": True,
        "race.rungs": (),
    }
    (tmp_path / "space.py").write_text(starting_config("planted", values=values))
    assert (
        main(
            ["run", f"--config={tmp_path / 'space.py'}", f"--workdir={tmp_path / 'run'}", "--json"]
        )
        == 0
    )
    results = json.loads(capsys.readouterr().out)
    # What the search derived is a rival, too, where another one won the race.
    assert set(results["baselines"]) - {"derived", "argmax"} == {
        "majority",
        "own_token",
        "uniform_mixing",
        "homogeneous.local(window=4)",
        "homogeneous.uniform",
    }
    mixed = {"parallel(members=(local(window=4), uniform), shares=())"}
    assert {
        a for heads in results["baselines"]["uniform_mixing"]["genotype"]["layers"] for a in heads
    } == mixed
    findings = {f["name"]: f["verdict"] for f in results["diagnostics"]["findings"]}
    assert "2 candidates are too few" in findings["ranking"]
    page = (tmp_path / "run/report.html").read_text()
    assert all(verdict in html.unescape(page) for verdict in findings.values())
    folder = str(tmp_path / "run" / "export")
    assert main(["predict", folder, "--text=a b c d", "--text=a", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert (
        [len(row["label"]) for row in rows] == [len(row["probability"]) for row in rows] == [4, 1]
    )
    assert main(["predict", folder, "--text=a b c d"]) == 0
    assert capsys.readouterr().out.split("\t")[0] == " ".join(rows[0]["label"])


def test_a_subset_of_an_endless_split_is_finite():
    split = Planted(train=10, endless=True).load()["train"]
    subset = Subset(split, np.array([3, 1]))
    np.testing.assert_array_equal(
        subset.take(np.arange(2))["tokens"], split.take(np.array([3, 1]))["tokens"]
    )
    assert jax.tree.map(np.shape, split.take(np.arange(2))) == {
        "tokens": (2, 64),
        "valid": (2, 64),
        "label": (2, 64),
    }
