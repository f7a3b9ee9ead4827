"""Sequences of numbers and time series: every layout, unequal lengths, scaling, forecasts, faults."""

import csv
import datetime
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from tasks.test_files import SMALL

import dartformer
from dartformer import tasks
from dartformer.cli.main import main
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError
from dartformer.machine.progress import console
from dartformer.tasks.base import parts, parts_of
from dartformer.tasks.guess import guess
from dartformer.training import scoring

STEPS = 20
CLASSES = ("a", "b")


def waves(count, channels=1, unequal=False):
    """Sequences `[T, D]` of two classes: slow waves and fast ones."""
    rng = np.random.default_rng(0)
    sequences = []
    for i in range(count):
        steps = STEPS - (i % 5 if unequal else 0)
        time = np.arange(steps)[:, None] + rng.uniform(0, 6)
        values = np.sin(time * (0.3 + 0.6 * (i % 2))) + 0.1 * rng.normal(size=(steps, channels))
        sequences.append(values.round(4).astype(np.float32))
    return sequences


def write_csv(file, header, rows):
    with open(file, "w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)


def in_lists(sequences, name="values"):
    rows = []
    for i, values in enumerate(sequences):
        cell = values.tolist() if values.shape[1] > 1 else values[:, 0].tolist()
        rows.append({name: cell, "label": CLASSES[i % 2]})
    return rows


def npz(folder, sequences):
    labels = [CLASSES[i % 2] for i in range(len(sequences))]
    values = np.stack(sequences)
    np.savez(folder / "a.npz", X=values if values.shape[2] > 1 else values[..., 0], y=labels)
    return folder / "a.npz"


def jsonl(folder, sequences):
    lines = [json.dumps(row) + "\n" for row in in_lists(sequences)]
    (folder / "a.jsonl").write_text("".join(lines))
    return folder / "a.jsonl"


def parquet_file(folder, sequences):
    parquet.write_table(pyarrow.Table.from_pylist(in_lists(sequences)), folder / "a.parquet")
    return folder / "a.parquet"


def cells(folder, sequences):
    rows = [[" ".join(map(str, s[:, 0].tolist())), CLASSES[i % 2]] for i, s in enumerate(sequences)]
    write_csv(folder / "a.csv", ["signal", "label"], rows)
    return folder / "a.csv"


def columns(folder, sequences):
    header = ["id", *(f"t{i}" for i in range(STEPS)), "label"]
    rows = []
    for i, values in enumerate(sequences):
        padding = [""] * (STEPS - len(values))
        rows.append([i, *values[:, 0].tolist(), *padding, CLASSES[i % 2]])
    write_csv(folder / "a.csv", header, rows)
    return folder / "a.csv"


def headless(folder, sequences):
    lines = []
    for i, values in enumerate(sequences):
        lines.append("\t".join(map(str, [CLASSES[i % 2], *values[:, 0].tolist()])) + "\n")
    (folder / "a.tsv").write_text("".join(lines))
    return folder / "a.tsv"


def long(folder, sequences):
    rows = []
    for i, values in enumerate(sequences):
        for time, step in enumerate(values.tolist()):
            rows.append([i, time, *step, CLASSES[i % 2]])
    # In no order: `time` says which.
    order = np.random.default_rng(1).permutation(len(rows))
    order = sorted(order.tolist(), key=lambda row: rows[row][0])
    header = ["id", "time", *(f"x{i}" for i in range(sequences[0].shape[1])), "label"]
    write_csv(folder / "a.csv", header, [rows[i] for i in order])
    return folder / "a.csv"


def file_each(folder, sequences):
    for i, values in enumerate(sequences):
        place = folder / "series" / CLASSES[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        rows = [[time, *step] for time, step in enumerate(values.tolist())]
        header = ["time", *(f"x{i}" for i in range(values.shape[1]))]
        write_csv(place / f"{i:03}.csv", header, rows)
    return folder / "series"


FORMS = {
    "npz": npz,
    "jsonl": jsonl,
    "parquet": parquet_file,
    "numbers in a cell": cells,
    "a column a step": columns,
    "without a header": headless,
    "a row a step": long,
    "a file each": file_each,
}
SEVERAL_CHANNELS = ("npz", "jsonl", "parquet", "a row a step", "a file each")
UNEQUAL = tuple(set(FORMS) - {"npz", "without a header"})


def contents(guessed):
    """The examples of all splits in one order, and their labels."""
    task = tasks.make(guessed.task, guessed.options)
    rows = []
    for split in task.load().values():
        batch = split.take(np.arange(len(split)))
        for tokens, valid, label in zip(
            batch["tokens"], batch["valid"], batch["label"], strict=True
        ):
            # As in the data: scaled with what train taught.
            scale = task.fitted().scale
            steps = tokens[valid].reshape(-1, task.channels) * scale.deviation + scale.mean
            rows.append((steps.round(3).tolist(), task.labels[label]))
    return sorted(rows)


@pytest.mark.parametrize("name", FORMS)
def test_a_table_is_read_for_predicting_as_for_training(name, tmp_path):
    """Every row of it, with its label or without."""
    file = FORMS[name](tmp_path, waves(40))
    guessed = guess(str(file))
    task = tasks.make("series", guessed.options).fitted()
    trained = []
    for split in task.load().values():
        batch = split.take(np.arange(len(split)))
        for tokens, valid in zip(batch["tokens"], batch["valid"], strict=True):
            trained.append(tokens[valid].round(4).tolist())
    rows = list(task.unlabelled(file))
    assert sorted(row.document.round(4).tolist() for row in rows) == sorted(trained)
    assert len({row.where for row in rows}) == 40
    if name in ("jsonl", "parquet"):
        unlabelled = [{"values": row["values"]} for row in in_lists(waves(40))]
        (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, unlabelled)))
        again = [row.document for row in task.unlabelled(tmp_path / "b.jsonl")]
        np.testing.assert_array_equal(again, [row.document for row in rows])


def test_a_table_of_other_numbers_is_one_line(tmp_path):
    task = tasks.make("series", guess(str(columns(tmp_path, waves(40)))).options).fitted()
    write_csv(tmp_path / "short.csv", ["t0", "t1"], [[1, 2]])
    with pytest.raises(InputError, match=r"short.csv, row 1: unknown column 't19'"):
        list(task.unlabelled(tmp_path / "short.csv"))
    task = tasks.make("series", guess(str(jsonl(tmp_path, waves(40, 2)))).options).fitted()
    (tmp_path / "b.jsonl").write_text('{"values": [[1, 2], [3, 4]]}\n{"values": [1, 2, 3]}\n')
    with pytest.raises(InputError, match=r"b.jsonl, row 2: the model reads steps of 2 numbers"):
        list(task.unlabelled(tmp_path / "b.jsonl"))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("channels", [1, 2, 12])
@pytest.mark.parametrize("unequal", [False, True])
def test_every_form_holds_the_same_sequences(name, channels, unequal, tmp_path):
    if channels > 1 and name not in SEVERAL_CHANNELS:
        pytest.skip("it holds one channel")
    if unequal and name not in UNEQUAL:
        pytest.skip("its sequences have one length")
    sequences = waves(40, channels, unequal)
    guessed = guess(str(FORMS[name](tmp_path, sequences)))
    assert (guessed.task, guessed.options["kind"]) == ("series", "classification")
    assert guessed.options["channels"] == channels
    expected = []
    for i, values in enumerate(sequences):
        expected.append((values.astype(np.float64).round(3).tolist(), CLASSES[i % 2]))
    rows = contents(guessed)
    assert len(rows) == len(expected)
    for (steps, label), (right, right_label) in zip(rows, sorted(expected), strict=True):
        np.testing.assert_allclose(steps, right, atol=2e-3)
        assert label == right_label


@pytest.mark.parametrize("name", ["speaker", "label", "kind"])
@pytest.mark.parametrize("classes", [("1", "2"), ("0", "7"), ("a", "b")])
def test_what_is_the_same_in_all_steps_of_a_sequence_is_its_label(name, classes, tmp_path):
    rows = []
    for i, values in enumerate(waves(40, 2, True)):
        for time, step in enumerate(values.tolist()):
            rows.append([i, time, *step, classes[i % 2]])
    write_csv(tmp_path / "a.csv", ["id", "time", "c0", "c1", name], rows)
    options = guess(str(tmp_path / "a.csv")).options
    assert (options["label"], options["kind"]) == (name, "classification")
    assert options["values"] == ("c0", "c1")


@pytest.mark.parametrize("value", [1, 2.5])
def test_a_forecast_is_of_what_changes_within_a_sequence(value, tmp_path):
    """The column of classes stands last: its next value is the one before, and R2 undefined."""
    rows = []
    for i, values in enumerate(waves(40, 2, True)):
        for time, step in enumerate(values.tolist()):
            rows.append([i, time, *step, value * (i // 20)])
    write_csv(tmp_path / "a.csv", ["id", "time", "c0", "c1", "speaker"], rows)
    options = guess(str(tmp_path / "a.csv"), kind="forecasting").options
    assert (options["label"], options["kind"]) == ("c1", "forecasting")


def test_what_is_not_read_is_said(tmp_path):
    guessed = guess(str(columns(tmp_path, waves(40))))
    assert "not read: 'id'" in guessed.sentences


def test_scales_are_those_of_train_alone(tmp_path):
    sequences = waves(40)
    np.savez(tmp_path / "train.npz", X=np.stack(sequences[:30])[..., 0], y=[0, 1] * 15)
    loud = 100 + np.stack(sequences[30:])[..., 0]
    np.savez(tmp_path / "test.npz", X=loud, y=[0, 1] * 5)
    task = tasks.make("series", guess(str(tmp_path)).options)
    fitted = task.fitted()
    splits = task.load()
    train = splits["train"].take(np.arange(len(splits["train"])))["tokens"]
    assert abs(train.mean()) < 0.01
    assert abs(train.std() - 1) < 0.01
    assert splits["test"].take(np.arange(10))["tokens"].min() > 50
    # A prediction scales as training did.
    text = ", ".join(map(str, sequences[0][:, 0].tolist()))
    tokens = fitted.encode(text)
    digits = json.dumps(sequences[0].tolist())
    np.testing.assert_allclose(fitted.encode(digits), tokens)
    scale = fitted.scale
    np.testing.assert_allclose(tokens, (sequences[0] - scale.mean) / scale.deviation, atol=1e-5)


def test_long_sequences_become_patches(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 200, 2)).cumsum(1).astype(np.float32)
    np.savez(tmp_path / "a.npz", X=values, y=np.arange(60) % 2)
    guessed = guess(str(tmp_path / "a.npz"))
    task = tasks.make("series", guessed.options)
    assert (task.patch, task.length, task.features) == (4, 50, 8)
    assert task.load()["test"].take(np.arange(2))["tokens"].shape == (2, 50, 8)


def daily(folder, count=400, suffix=".csv"):
    start = datetime.date(2020, 1, 1)
    days = [start + datetime.timedelta(i) for i in range(count)]
    values = [10 + 0.01 * i + np.sin(i / 4) for i in range(count)]
    write_csv(folder / f"a{suffix}", ["date", "value"], zip(days, values, strict=True))
    return folder / f"a{suffix}", np.array(values)


def test_a_forecast_is_of_the_next_value(tmp_path):
    file, values = daily(tmp_path)
    guessed = guess(str(file))
    assert guessed.options["kind"] == "forecasting"
    task = tasks.make("series", guessed.options)
    fitted = task.fitted()
    forecasts = []
    for name in ("train", "valid", "test"):
        split = task.load()[name]
        batch = split.take(np.arange(len(split)))
        for tokens, label in zip(batch["tokens"], batch["label"], strict=True):
            forecasts.append(fitted.value_after(float(label), tokens))
    # Every value after the first context comes once, in the order of time.
    np.testing.assert_allclose(forecasts, values[-len(forecasts) :], atol=1e-3)
    assert len(task.load()["test"]) == len(task.load()["valid"]) == round(0.1 * len(forecasts))
    rules = fitted.baselines(task.load()["train"], task.load()["test"])
    assert rules["last_value"] < 0.1
    steps = task.length * task.patch
    tokens = fitted.encode(" ".join(map(str, values[-steps - 1 : -1])))
    last = task.load()["test"]
    np.testing.assert_allclose(tokens, last.take(np.array([len(last) - 1]))["tokens"][0], atol=1e-3)


@pytest.mark.parametrize("quiet", [False, True])
def test_what_was_counted_is_printed_unless_quiet(quiet, tmp_path, monkeypatch, capsys):
    file, _ = daily(tmp_path)
    options = guess(str(file)).options
    monkeypatch.setattr(console, "quiet", quiet)
    tasks.make("series", {**options, "seed": 7 + quiet}).load()
    rows = [f"{i} {'good' if i % 2 else 'bad'} film,{i % 2}" for i in range(40)]
    (tmp_path / "b.csv").write_text("\n".join(["text,label", *rows]))
    texts = {"path": str(tmp_path / "b.csv"), "label_names": (0, 1), "seed": 7 + quiet}
    tasks.make("files", texts).load(str(tmp_path / "prepared"))
    lines = capsys.readouterr().err
    assert ("a.csv train" in lines) == ("b.csv train" in lines) == (not quiet)
    assert not (quiet and lines)


def share_explained(answers):
    return scoring.r2(answers, scoring.once(answers))


def forecasting_rules(folder, values, **options):
    """The rules of a series of values, and the parts of its windows."""
    names = [f"v{i}" for i in range(values.shape[1])]
    write_csv(folder / "a.csv", names, values.tolist())
    settings = {"layout": "long", "values": tuple(names), "kind": "forecasting", "label": names[0]}
    task = tasks.make("series", {"path": str(folder / "a.csv"), **settings, **options})
    task = task.fitted()
    split = parts_of(task.load())
    fitted = task.plain_rules(split["train"], split["valid"], share_explained)
    return {rule.name: rule for rule in fitted}, split


@pytest.mark.parametrize(("horizon", "patch"), [(1, 1), (3, 1), (9, 4), (8, 3)])
@pytest.mark.parametrize("period", [5, 7, 12])
def test_what_repeats_is_forecast_by_the_value_a_season_ago(tmp_path, horizon, patch, period):
    """Exactly, whatever the units, the patches, and the channels beside it."""
    rng = np.random.default_rng(period)
    season = rng.normal(50, 20, period)
    values = np.stack([np.resize(season, 300), rng.normal(size=300)], 1)
    options = {"horizon": horizon, "patch": patch, "length": 40 // patch, "channels": 2}
    fitted, split = forecasting_rules(tmp_path, values, **options)
    rule = fitted["seasonal_naive"]
    assert "steps before it" in rule.words
    # The first windows of train are shorter than a season.
    assert share_explained(rule.answers(split["test"])) > 0.9999
    assert share_explained(rule.answers(split["train"])) > 0.5


def test_an_autoregression_learns_what_the_last_values_say(tmp_path):
    rng = np.random.default_rng(0)
    values, noise = np.zeros((800, 1)), rng.normal(size=800)
    for i in range(3, 800):
        values[i] = 1.2 * values[i - 1] - 0.8 * values[i - 3] + noise[i] / 10
        values[i] = np.clip(values[i], -5, 5)
    fitted, split = forecasting_rules(tmp_path, values, length=32, channels=1)
    rule = fitted["autoregression"]
    assert "the last" in rule.words
    assert share_explained(rule.answers(split["test"])) > 0.8
    assert {"ridge", "gradient_boosting"} < fitted.keys()
    assert rule.seconds > 0


def test_a_window_too_short_for_a_season_is_forecast_by_its_last_value(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 1))
    fitted, _ = forecasting_rules(tmp_path, values, length=2, channels=1)
    assert "autoregression" in fitted
    # Two steps hold no season of more than two.
    rule = fitted.get("seasonal_naive")
    assert rule is None or "the value 2 steps" in rule.words


def test_series_of_several_files_are_forecast_each(tmp_path):
    for name in ("x", "y"):
        rows = [[i, np.sin(i / 3 + len(name))] for i in range(100)]
        (tmp_path / "all").mkdir(exist_ok=True)
        write_csv(tmp_path / f"all/{name}.csv", ["time", "v"], rows)
    guessed = guess(str(tmp_path / "all"))
    assert (guessed.options["layout"], guessed.options["kind"]) == ("files", "forecasting")


def test_numbers_of_a_sequence_are_a_regression(tmp_path):
    sequences = waves(60)
    rows = [{"values": s[:, 0].tolist(), "target": float(s.sum()) * 1.37} for s in sequences]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guessed = guess(str(tmp_path / "a.jsonl"))
    assert (guessed.options["kind"], guessed.options["label"]) == ("regression", "target")
    task = tasks.make("series", guessed.options)
    fitted = task.fitted()
    split = task.load()["test"]
    labels = split.take(np.arange(len(split)))["label"]
    assert {round(fitted.value(float(label)), 2) for label in labels} <= {
        round(row["target"], 2) for row in rows
    }


def test_missing_numbers_are_the_mean_and_are_counted(tmp_path):
    values = np.stack(waves(40))[..., 0]
    values[::4, 5] = np.nan
    np.savez(tmp_path / "a.npz", X=values, y=np.arange(40) % 2)
    task = tasks.make("series", guess(str(tmp_path / "a.npz")).options)
    assert task.facts()["train"]["left out or odd"] == {"with missing numbers": 10}
    for split in task.load().values():
        assert np.isfinite(split.take(np.arange(len(split)))["tokens"]).all()


def table(folder, header, rows):
    write_csv(folder / "a.csv", header, rows)
    return folder / "a.csv"


FAULTS = {
    "a table of numbers": (
        lambda folder: table(
            folder, ["age", "income", "class"], [[20 + i, 1e4 * (i % 7), i % 2] for i in range(40)]
        ),
        "this program reads sequences",
    ),
    "two steps at one time": (
        lambda folder: table(
            folder,
            ["id", "time", "v", "label"],
            [[i // 8, i % 4, i, "ab"[i % 2]] for i in range(80)],
        ),
        "two steps have one time",
    ),
    "a class in one of the steps": (
        lambda folder: table(
            folder,
            ["id", "time", "v", "label"],
            [[i // 8, i % 8, i, "abcd"[i % 4]] for i in range(80)],
        ),
        "has 4 different values in its steps",
    ),
    "channels that differ": (
        lambda folder: npz_of(folder, [[[1, 2]] * 9, [[1, 2, 3]] * 9]),
        "channels, and task.channels is",
    ),
}


def npz_of(folder, lists):
    rows = []
    for i in range(40):
        rows.append({"values": lists[i % len(lists)], "label": "ab"[i // 2 % 2]})
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_that_says_what_to_do(name, tmp_path, capsys):
    make, message = FAULTS[name]
    arguments = ["new", "--data", str(make(tmp_path))]
    if "steps" in name:
        arguments.append("--label=label")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def monthly(folder):
    rows = [[f"{1949 + i // 12}-{i % 12 + 1:02}", 100 + 3 * i + i % 12] for i in range(144)]
    return table(folder, ["Month", "Passengers"], rows), ("forecasting", "Passengers", 1)


def stocks(folder):
    rows = []
    for name in ("A", "B", "C"):
        for i in range(60):
            day = datetime.date(2020, 1, 1) + datetime.timedelta(i)
            rows.append([day, i % 7 + 0.5, i % 5 + 0.25, name])
    return table(folder, ["Date", "Open", "Close", "Name"], rows), ("forecasting", "Close", 2)


def short_rows(folder):
    rows = [[f"Y{i}", *range(i % 9 + 12), *[""] * (28 - i % 9)] for i in range(40)]
    return table(folder, ["id", *(f"V{i}" for i in range(40))], rows), ("forecasting", "V0", 1)


def spectra(folder):
    rows = [[f"s{i}", 1.37 * i, *(0.1 * i + j / 7 for j in range(30))] for i in range(60)]
    header = ["sample", "protein", *(str(1100 + 2 * j) for j in range(30))]
    return table(folder, header, rows), ("regression", "protein", 1)


def one_array(folder):
    np.save(folder / "a.npy", np.sin(np.arange(300) / 5))
    return folder / "a.npy", ("forecasting", "x", 1)


def two_runs(folder):
    header = [*(f"x{i}" for i in range(10)), *(f"y{i}" for i in range(10)), "class"]
    rows = [[*range(i, i + 10), *range(10), "ab"[i % 2]] for i in range(40)]
    return table(folder, header, rows), ("classification", "class", 2)


@pytest.mark.parametrize("make", [monthly, stocks, short_rows, spectra, one_array, two_runs])
def test_tables_in_the_wild(make, tmp_path):
    file, (kind, label, channels) = make(tmp_path)
    options = guess(str(file)).options
    assert (options["kind"], options["label"], options["channels"]) == (kind, label, channels)


def test_decimal_commas_are_named(tmp_path):
    lines = ["day;value", *(f"{i};0,{i}" for i in range(30))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"'value' of .* with a decimal comma"):
        guess(str(tmp_path / "a.csv"))


def test_numbers_as_tokens_stay_numbers():
    tokens = np.linspace(0, 1, 24).reshape(4, 3, 2)
    split = ArraySplit(tokens, np.array([3, 2, 1, 3]), np.array([0, 1, 0, 1]))
    batch = split.take(np.array([1]))
    np.testing.assert_allclose(batch["tokens"], tokens[1:2].astype(np.float32))
    assert batch["valid"].tolist() == [[True, True, False]]
    with pytest.raises(InputError, match=r"must be an array \[S, N, F\]"):
        ArraySplit(tokens[..., 0], np.ones(4), np.ones(4))


@pytest.mark.parametrize("kind", ["classification", "forecasting"])
def test_from_numbers_to_a_prediction(kind, tmp_path, capsys):
    """`new --data`, `run` and `predict`, as a user types them."""
    file = npz(tmp_path, waves(40))
    if kind == "forecasting":
        file, _ = daily(tmp_path, 60)
    assert main(["new", "--data", str(file), *SMALL]) == 0
    (tmp_path / "space.py").write_text(capsys.readouterr().out, "utf-8")
    run = ["run", f"--config={tmp_path / 'space.py'}", f"--workdir={tmp_path / 'run'}", "--json"]
    assert main(run) == 0
    results = json.loads(capsys.readouterr().out)
    folder = tmp_path / "run/export"
    assert main(["predict", str(folder), "--text", "1 2 3 4 5", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    if kind == "forecasting":
        assert results["metric"] == "r2"
        assert {"mean", "last_value"} <= set(results["baselines"])
        assert abs(answer["value"] - 5) < 5
    else:
        assert answer["label"] in CLASSES
        assert "nearest_mean" in results["baselines"]
    # Of the workdir, and of a table.
    assert main(["predict", str(tmp_path / "run"), f"--file={file}", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    if kind == "forecasting":
        assert len(answers) == 1
        assert abs(answers[0]["value"]) < 50
    else:
        assert len(answers) == 40
        assert answers[39]["row"] == "a.npz, row 40"
    served = dartformer.load(folder)
    assert served(["1 2 3 4 5"])[0] == {k: v for k, v in answer.items() if k != "text"}
    assert set(parts(tasks.make("series", guess(str(file)).options))) >= {"weights", "alphas"}


def test_the_task_on_numbers_of_the_docs(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs/tasks.md").read_text()
    code = page.split("`energy_task.py`:\n\n```python\n")[1].split("```")[0]
    (tmp_path / "energy_task.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("energy_task")
    monkeypatch.delitem(sys.modules, "energy_task")
    task = module.Energy(train=200, test=50)
    batch = parts(task)["test"].take(np.arange(8))
    assert batch["tokens"].shape == (8, 24, 2)
    assert batch["tokens"].dtype == batch["label"].dtype == np.float32
    # The label is in the tokens: the mean square is energy and noise.
    everything = task.load()["test"].take(np.arange(50))
    valid = everything["valid"]
    squares = (everything["tokens"] ** 2).sum(2)
    energy = (squares * valid).sum(1) / valid.sum(1)
    assert np.corrcoef(energy, everything["label"])[0, 1] > 0.9
    assert task.encode("1 2; 3 4").shape == (2, 2)
