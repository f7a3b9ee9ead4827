"""Fit: data in memory give what a file of them gives, and its result predicts and shows itself."""

import csv
import functools
import importlib.util
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow.csv
import pytest

import dartformer as df
from dartformer import config as configs
from dartformer.cli.new import config_for_data, load_text
from dartformer.errors import InputError
from dartformer.fitting import as_argument
from dartformer.stages.layout import Layout
from dartformer.stages.proposal import Wishes

TINY = {
    "candidates": "linear,uniform",
    "steps": 6,
    "model__layers": 1,
    "model__heads": 2,
    "model__head_dim": 4,
    "model__model_dim": 8,
    "model__mlp_dim": 8,
    "space__granularity": "model",
    "retrain__seeds": (0,),
    "race__rungs": (),
    "log__eval_every": 3,
}
"""A run that has only to work."""


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """Compiling is what takes long here, so optimise less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


GOOD, BAD = ("fine", "lovely", "great"), ("dull", "awful", "poor")


def reviews(count=90):
    """Texts with a class, a number and a second text."""
    rng = np.random.default_rng(0)
    columns = {"review": [], "reply": [], "mood": [], "stars": []}
    for i in range(count):
        words = rng.choice((BAD, GOOD)[i % 2], 3)
        columns["review"].append(f"film {i} is {' '.join(words)}")
        columns["reply"].append(f"{words[0]} it was, said {i % 7}")
        columns["mood"].append(("neg", "pos")[i % 2])
        columns["stars"].append(round(5 * (i % 2) + rng.normal(), 3))
    return columns


def as_frame(columns):
    """A DataFrame where pandas is installed, and a mapping of columns elsewhere."""
    if importlib.util.find_spec("pandas") is None:
        return columns
    import pandas

    return pandas.DataFrame(columns)


@pytest.fixture(scope="module")
def mood(tmp_path_factory):
    """A classification of texts."""
    columns = reviews()
    frame = as_frame({name: columns[name] for name in ("review", "mood")})
    return df.fit(frame, workdir=tmp_path_factory.mktemp("mood"), **TINY), columns


def test_a_text(mood):
    result, columns = mood
    assert result.classes == ["neg", "pos"]
    texts = columns["review"][:5]
    labels = result.predict({"review": texts})
    assert labels.tolist() == result.predict(texts).tolist()
    assert set(labels) <= {"neg", "pos"}
    probabilities = result.predict_proba(texts)
    assert probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    np.testing.assert_array_equal(labels, np.array(result.classes)[probabilities.argmax(1)])
    right = np.mean(result.predict(columns["review"]) == np.array(columns["mood"]))
    assert result.score(columns["review"], columns["mood"]) == pytest.approx(right)
    # As the exported model answers.
    answers = result.model(texts)
    assert [answer["label"] for answer in answers] == labels.tolist()


def test_the_config_is_that_of_a_file(mood, tmp_path, monkeypatch):
    """The same guesses, task and recipe as for a file of the same rows."""
    result, columns = mood
    with open(tmp_path / "a.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["review", "mood"])
        rows.writerows(zip(columns["review"], columns["mood"], strict=True))
    values = {}
    for name, value in TINY.items():
        if "__" in name:
            values[name.replace("__", ".")] = value
    wishes = Wishes(None, TINY["steps"], TINY["candidates"])
    of_file = load_text(config_for_data(str(tmp_path / "a.csv"), values=values, wishes=wishes).text)
    ours, theirs = configs.to_dict(result.config), configs.to_dict(of_file)
    for config in (ours, theirs):
        config["task"].pop("path")
        config["data"].pop("dir")
    assert ours == theirs


def test_a_result_shows_itself(mood):
    result, _ = mood
    html = result._repr_html_()
    first = result.results.conclusion.headline.split("--config")[0]
    assert first in html.replace("&#39;", "'")
    assert html.count("<svg") == 2
    assert "<script" not in html
    assert "<table" in html
    assert first in repr(result)
    # What is proposed is an argument, not a flag.
    assert "--config" not in html + repr(result)
    assert result.report().read_text().startswith("<!")
    assert str(result.genotype).endswith("everywhere (1x2)")
    assert json.loads((result.workdir / "results.json").read_text())["conclusion"]


def records(table):
    if isinstance(table, list):
        return table
    return table.to_dict("records")


def test_results_are_tables(mood):
    result, _ = mood
    table = records(result.table())
    scores = [row["test"] for row in table]
    assert scores == sorted(scores, reverse=True)
    by_name = {row["name"]: row for row in table}
    assert by_name["found"]["test"] == result.results.test.mean
    # What is beside the Transformer on the same split: scikit-learn's, and simple rules.
    assert {"majority", "naive_bayes", "logistic_regression"} <= by_name.keys()
    rule = result.results.baselines["logistic_regression"]
    assert "TF-IDF" in rule.words
    history = records(result.history())
    losses = [row["step"] for row in history if row["measure"] == "loss"]
    assert 6 in losses
    assert isinstance(result.table(), list) == (importlib.util.find_spec("pandas") is None)


def test_a_saved_model_answers_alone(mood, tmp_path):
    result, columns = mood
    folder = result.save(tmp_path / "saved")
    texts = columns["review"][:3]
    assert df.load(folder)(texts) == result.model(texts)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds other files"):
        result.save(tmp_path / "other")


def test_the_same_call_goes_on(mood):
    """And another call on the workdir is refused, with what differs."""
    result, columns = mood
    frame = as_frame({name: columns[name] for name in ("review", "mood")})
    before = (result.workdir / "results.json").stat().st_mtime_ns
    again = df.fit(frame, workdir=result.workdir, **TINY)
    assert again.results.test.per_seed == result.results.test.per_seed
    assert (result.workdir / "results.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"wishes\.steps: 6 -> 7"):
        df.fit(frame, workdir=result.workdir, **{**TINY, "steps": 7})
    columns = {"review": columns["review"], "mood": columns["mood"][::-1]}
    with pytest.raises(InputError, match="other rows"):
        df.fit(as_frame(columns), workdir=result.workdir, **TINY)
    # A finished workdir of the command line is a result, too.
    assert df.FitResult(result.workdir).predict(["film 1 is fine"]).shape == (1,)


def test_labels_that_training_did_not_have(mood):
    result, _ = mood
    with pytest.raises(InputError, match=r"row 1 of y has the label 'odd'.* classes are neg, pos"):
        result.score(["a", "b"], ["neg", "odd"])
    with pytest.raises(InputError, match="row 0 of y has the label None"):
        result.score(["a"], [None])
    with pytest.raises(InputError, match="row 1 of X"):
        result.predict(["a fine film", ""])
    with pytest.raises(InputError, match=r"row 0 of X: unknown column .review.\. Known: other"):
        result.predict({"other": ["a"]})
    with pytest.raises(InputError, match="row 0 of X: unknown column 'mood'"):
        result.score({"review": ["a"]})
    with pytest.raises(InputError, match="a file stands there"):
        result.save(__file__)
    with pytest.raises(InputError, match="X has 2 rows and y has 1"):
        result.score(["a", "b"], ["neg"])


def test_a_pair_and_numbers_as_classes():
    columns = reviews()
    pairs = list(zip(columns["review"], columns["reply"], strict=True))
    labels = [len(mood) % 2 + i % 2 for i, mood in enumerate(columns["mood"])]
    result = df.fit(pairs, np.array(labels), **TINY)
    assert result.config.task.built.inputs == 2
    predicted = result.predict(pairs[:4])
    # Whole numbers in, whole numbers out.
    assert predicted.dtype.kind == "i"
    assert result.classes == sorted(set(labels))
    assert 0 <= result.score(pairs, labels) <= 1
    # A temporary workdir goes with its result.
    workdir = result.workdir
    assert workdir.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del result
    assert not workdir.exists()


def test_a_regression():
    columns = reviews()
    frame = as_frame({"review": columns["review"]})
    result = df.fit(frame, columns["stars"], **TINY)
    assert result.config.task.built.kind == "regression"
    assert result.classes == []
    predicted = result.predict(frame)
    assert predicted.dtype == np.float64
    stars = np.array(columns["stars"])
    r2 = 1 - ((predicted - stars) ** 2).mean() / stars.var()
    assert result.score(frame, stars) == pytest.approx(r2, abs=1e-4)
    with pytest.raises(InputError, match="predict_proba does not work with numbers"):
        result.predict_proba(frame)
    assert "ridge" in result.results.baselines


def test_labels_of_words():
    rng = np.random.default_rng(0)
    sentences, tags = [], []
    for i in range(90):
        words = [f"w{i % 9}", *rng.choice((*GOOD, *BAD), 3 + i % 3)]
        sentences.append(list(map(str, words)))
        tags.append([("X", "G")[word in GOOD] for word in words])
    result = df.fit(sentences, tags, **TINY)
    assert result.config.task.built.kind == "labelling"
    predicted = result.predict(sentences[:5])
    assert list(map(len, predicted)) == list(map(len, sentences[:5]))
    assert [row.shape for row in result.predict_proba(sentences[:2])] == [(4, 2), (5, 2)]
    right = []
    for guess, labels in zip(result.predict(sentences), tags, strict=True):
        right += [a == b for a, b in zip(guess, labels, strict=True)]
    assert result.score(sentences, tags) == pytest.approx(np.mean(right))
    with pytest.raises(InputError, match="row 0 of y has 1 labels"):
        result.score(sentences[:1], [["G"]])


def test_numbers_and_splits_of_ones_own():
    """`[N, F]` is a sequence of F steps; valid and test may be the user's."""
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = rng.normal(size=(90, 10)).astype(np.float32) + y[:, None]
    y = y.astype(float)
    result = df.fit(X[:60], y[:60], valid=(X[60:75], y[60:75]), test=(X[75:], y[75:]), **TINY)
    assert result.config.task.built.kind == "classification"
    assert result.results.test.examples == 15
    assert result.classes == [0.0, 1.0, 2.0]
    assert result.predict(X[:3]).dtype == np.float64
    test = result.score(X[75:], y[75:])
    assert test == pytest.approx(result.results.test.mean)
    # Beside it on the same split, fitted with scikit-learn.
    assert {"logistic_regression", "gradient_boosting"} <= result.results.baselines.keys()


def test_a_series():
    """The next value of a single one."""
    values = np.sin(np.arange(300) / 5) + np.arange(300) / 100
    frame = as_frame({"time": np.arange(300), "sales": values})
    result = df.fit(frame, label="sales", kind="forecasting", **TINY)
    assert result.config.task.built.kind == "forecasting"
    (following,) = result.predict(frame)
    assert following == pytest.approx(values[-1], abs=1.5)


FEW = [f"text {i} of a few" for i in range(30)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": ["a"] * 40, "y": ["b"] * 40}, "the column 'label' of X has 1 different values"),
        ({"X": {"a": ["x y"] * 9, "b": [1] * 9}, "label": "c"}, "unknown column of X 'c'"),
        ({"X": ["a", "b"], "y": [1, 2, 3]}, "X has 2 rows and y has 3"),
        ({"X": {"train": {"a": [1]}}, "y": [1]}, "y does not work with an X that has splits"),
        ({"X": {"test": {"a": [1]}}}, "none named train"),
        ({"X": {"t": ["a"], "l": [1]}, "y": [1], "label": "l"}, "label names a column of X"),
        ({"X": ["a"], "y": [1], "valid": (1, 2, 3)}, r"valid must be a table or \(X, y\)"),
        ({"X": {"a": [1.0, 2], "b": [3, 4]}}, "X is a table of numbers"),
        ({"X": FEW, "y": [1, 2, 3] * 10, "steps": 0}, "steps must be at least 1"),
        ({"X": FEW, "y": [1, 2, 3] * 10, "steps": "a"}, "steps must be a number, got 'a'"),
        ({"X": FEW, "y": [1, 2, 3] * 10, "candidates": "odd"}, "unknown candidates 'odd'"),
        ({"X": FEW, "y": [1, 2, 3] * 10, "modell__layers": 1}, "modell"),
        ({"X": FEW, "y": [1, 2, 3] * 10, "kind": "odd"}, "unknown kind 'odd'"),
    ],
)
def test_what_does_not_work_is_one_line(arguments, message, tmp_path):
    options = {"steps": 2, "candidates": "linear,uniform", **arguments}
    with pytest.raises(InputError, match=message) as caught:
        df.fit(workdir=tmp_path / "run", **options)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    # Nothing is claimed: the next call may have other rows.
    assert not Layout(tmp_path / "run").config.exists()


def test_quiet_prints_nothing(asked, capsys):
    columns = reviews()
    df.fit(columns["review"], columns["mood"], quiet=True, **TINY)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    df.fit(columns["review"], columns["mood"], **TINY)
    assert "guessed: " in capsys.readouterr().err


def test_messages_name_arguments(tmp_path):
    text = f"the column 'a' of {tmp_path}/rows.arrow is odd; --label names another (--kind=series)"
    changed = "the column 'a' of X is odd; label names another (kind='series')"
    assert as_argument(text, tmp_path) == changed
    assert as_argument("rows.arrow train, row 1: odd", tmp_path) == "row 0 of X: odd"
    assert as_argument("data valid, row 9: odd", tmp_path) == "row 8 of valid: odd"


@pytest.fixture
def asked(monkeypatch):
    """The tasks that would be run, with what was counted of their data."""
    asked = []

    def run_all(config, workdir):
        task = config.task.built
        asked.append((task, task.facts(config.data.dir)))

    monkeypatch.setattr("dartformer.api.run_all", run_all)
    return asked


def test_groups_and_missing_labels(asked, capsys):
    """Groups are a column or a value for each row; rows without a label are left out, and named."""
    columns = reviews()
    moods = [None, *columns["mood"][1:]]
    df.fit(columns["review"], moods, group=np.arange(90) // 6, **TINY)
    ((task, facts),) = asked
    assert task.group == "group"
    assert facts["train"]["rows"] < 90
    assert "1 of 90 rows have no label and are left out" in capsys.readouterr().err


def test_missing_numbers_and_texts(asked):
    """As in a file: a missing number becomes the mean, a blank text is left out."""
    X = np.random.default_rng(0).normal(size=(60, 9))
    X[3, 4] = np.nan
    df.fit(X, np.arange(60) % 2, **TINY)
    columns = reviews()
    df.fit([None, *columns["review"][1:]], columns["mood"], **TINY)
    (_, numbers), (_, texts) = asked
    assert sum(numbers[part]["rows"] for part in ("train", "valid", "test")) == 60
    assert sum(texts[part]["rows"] for part in ("train", "valid", "test")) == 89


# The five tasks of the page on data in memory.

PAGE = Path(__file__).resolve().parents[1] / "docs" / "memory_data.md"

TASKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)[:5]

KINDS = ("classification", "classification", "regression", "labelling", "forecasting")


class Columns(dict):
    """What the page does with a DataFrame, where pandas is not installed."""

    def __getitem__(self, names):
        if isinstance(names, list):
            return {name: self[name] for name in names}
        return super().__getitem__(names)


def read_csv(file):
    table = pyarrow.csv.read_csv(file)
    return Columns(table.to_pydict())


def execute(block):
    """The names that a block of the page leaves; of its last line the value."""
    names = {}
    if importlib.util.find_spec("pandas") is None:
        block = block.replace("import pandas as pd\n", "")
        names["pd"] = SimpleNamespace(read_csv=read_csv)
    *lines, last = block.splitlines()
    exec(compile("\n".join([*lines, f"answer = {last}"]), str(PAGE), "exec"), names)
    return names


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the page reads."""
    monkeypatch.chdir(tmp_path)
    columns = reviews()
    words = {"sentence": [], "word": [], "tag": []}
    for i in range(90):
        for j in range(3 + i % 3):
            words["sentence"].append(i)
            number = (i // 6**j) % 6
            words["word"].append((*GOOD, *BAD)[number])
            words["tag"].append(("name", "other")[number < 3])
    for name, table in {
        "reviews": {"text": columns["review"], "mood": columns["mood"]},
        "pairs": {
            "question1": columns["review"],
            "question2": columns["reply"],
            "same": [i % 2 for i in range(90)],
        },
        "wines": {"notes": columns["review"], "points": columns["stars"]},
        "words": words,
        "sales": {"day": list(range(300)), "sales": [i % 7 + i / 50 for i in range(300)]},
    }.items():
        pyarrow.csv.write_csv(pyarrow.table(table), f"{name}.csv")


@pytest.mark.parametrize(("block", "kind"), list(zip(TASKS, KINDS, strict=True)))
def test_each_task_takes_five_lines(block, kind, files, asked, monkeypatch):
    """Each reads its file as what the page says, up to the trainings."""
    assert len(list(filter(None, block.splitlines()))) <= 5
    short = functools.partial(df.fit, **TINY)
    monkeypatch.setattr(df, "fit", short)
    monkeypatch.setattr(df.FitResult, "predict", lambda result, X: None)
    execute(block)
    ((task, _),) = asked
    assert task.kind == kind
    assert getattr(task, "inputs", 1) == 1 + ("pairs" in block)


@pytest.mark.slow
@pytest.mark.parametrize("block", TASKS)
def test_each_task_runs(block, files, monkeypatch):
    monkeypatch.setattr(df, "fit", functools.partial(df.fit, **TINY))
    assert len(execute(block)["answer"]) == 1
