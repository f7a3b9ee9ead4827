"""Groups whose rows share a split, and a column that says which split a row is in."""

import json

import numpy as np
import pytest

from dartformer import tasks
from dartformer.cli.main import main
from dartformer.data.rows import PARTS
from dartformer.data.splits import linked, share_groups
from dartformer.errors import InputError
from dartformer.tasks.base import parts
from dartformer.tasks.division import division, group_digest, without_shared_groups
from dartformer.tasks.guess import guess


def put(folder, rows, name="a.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def texts(count=120, groups=30, **more):
    rows = []
    for i in range(count):
        row = {"text": f"a text about number {i} of many", "label": "ab"[i % 2]}
        rows.append({**row, "writer": f"w{i % groups}", **{k: f(i) for k, f in more.items()}})
    return rows


def sequences(count=120, groups=30, **more):
    rows = []
    for i in range(count):
        row = {"values": [i + j * 0.5 for j in range(9)], "label": "ab"[i % 2]}
        rows.append({**row, "writer": f"w{i % groups}", **{k: f(i) for k, f in more.items()}})
    return rows


def numbers_of(task):
    """The row numbers in each split: every text, and every sequence, holds its own."""
    numbers = {}
    fitted = task.fitted()
    for name, split in task.load().items():
        batch = split.take(np.arange(len(split)))
        rows = []
        for tokens, valid in zip(batch["tokens"], batch["valid"], strict=True):
            if batch["tokens"].ndim == 3:
                first = tokens[0, 0] * fitted.scale.deviation[0] + fitted.scale.mean[0]
                rows.append(round(float(first)))
            else:
                words = fitted.decode(tokens[valid].tolist())
                rows.append(int("".join(filter(str.isdigit, words))))
        numbers[name] = rows
    return numbers


def groups_in(split, numbers, groups=30):
    """The writers of the examples of a part: row i is of writer i % groups."""
    return {numbers[i] % groups for i in split.indices.tolist()}


@pytest.mark.parametrize("rows", [texts, sequences])
@pytest.mark.parametrize("seed", range(3))
def test_a_group_is_not_in_both_halves_of_the_search(rows, seed, tmp_path):
    """Alphas that learned on the texts of an author whom the weights know would reward overfitting."""
    guessed = guess(put(tmp_path, rows()), group="writer")
    task = task_of(guessed, tmp_path)
    halves = parts(task, str(tmp_path / "data"), seed)
    numbers = numbers_of(task)["train"]
    weights, alphas = groups_in(halves["weights"], numbers), groups_in(halves["alphas"], numbers)
    assert weights
    assert alphas
    assert not weights & alphas
    assert len(halves["weights"]) + len(halves["alphas"]) == len(halves["train"])


def test_few_groups_are_halved_by_rows(tmp_path):
    task = task_of(guess(put(tmp_path, texts(groups=3)), group="writer"), tmp_path)
    halves = parts(task, str(tmp_path / "data"))
    assert abs(len(halves["weights"]) - len(halves["alphas"])) <= 1
    assert share_groups(halves["weights"], halves["alphas"])
    assert not share_groups(halves["train"], halves["valid"])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_linked_stays_together(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    digests = rng.integers(0, count, count).astype(np.uint64)
    groups = rng.integers(-1, max(1, count // 2), count)
    numbers = linked(digests, groups)
    # The components of a graph, by search.
    unseen = set(range(count))
    components = []
    while unseen:
        component, edge = set(), {unseen.pop()}
        while edge:
            i = edge.pop()
            component.add(i)
            for j in list(unseen):
                if digests[i] == digests[j] or groups[i] == groups[j] >= 0:
                    unseen.remove(j)
                    edge.add(j)
        components.append(component)
    found = {}
    for i, number in enumerate(numbers.tolist()):
        found.setdefault(number, set()).add(i)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, components))


def task_of(guessed, folder):
    options = dict(guessed.options)
    if guessed.task == "files":
        options["tokens"], options["length"] = "bytes", 64
        options.pop("vocabulary_size", None)
    return tasks.make(guessed.task, options)


@pytest.fixture(autouse=True)
def _data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.mark.parametrize("rows", [texts, sequences])
def test_a_group_is_in_one_split(rows, tmp_path):
    guessed = guess(put(tmp_path, rows()), group="writer")
    assert guessed.options["group"] == "writer"
    numbers = numbers_of(task_of(guessed, tmp_path))
    assert sum(map(len, numbers.values())) == 120
    groups = [{number % 30 for number in numbers[part]} for part in PARTS]
    assert all(groups)
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


@pytest.mark.parametrize("rows", [texts, sequences])
def test_a_group_of_test_leaves_train(rows, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    every = rows()
    put(tmp_path / "set", every[:90], "train.jsonl")
    put(tmp_path / "set", every[90:100], "test.jsonl")
    guessed = guess(str(tmp_path / "set"), group="writer")
    task = task_of(guessed, tmp_path)
    numbers = numbers_of(task)
    assert not {n % 30 for n in numbers["test"]} & {n % 30 for n in numbers["train"]}
    assert "of a group that a later split has" in task.facts()["train"]["left out or odd"]


@pytest.mark.parametrize("rows", [texts, sequences])
def test_a_column_says_the_split(rows, tmp_path):
    def part(i):
        return ("train", "Train", "dev", "test")[i % 4]

    guessed = guess(put(tmp_path, rows(part=part)), split="part")
    numbers = numbers_of(task_of(guessed, tmp_path))
    for name, residues in (("train", {0, 1}), ("valid", {2}), ("test", {3})):
        assert {number % 4 for number in numbers[name]} == residues
        assert len(numbers[name]) == 30 * len(residues)


@pytest.mark.parametrize("rows", [texts, sequences])
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("train", "fold2"), "says 'fold2', which is no split"),
        (("test", "dev"), "has no row 'train'"),
    ],
)
def test_other_names_of_splits_are_refused(rows, parts, message, tmp_path, capsys):
    file = put(tmp_path, rows(part=lambda i: parts[i % 2]))
    assert main(["new", "--data", file, "--split=part"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--group=x", "--split=x"])
def test_the_flags_need_data(flag, tmp_path, capsys):
    assert main(["new", flag]) == 2
    assert "Use them with --data" in capsys.readouterr().err
    assert main(["new", "--data", put(tmp_path, texts()), flag]) == 2
    assert "unknown column" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(20))
def test_no_group_is_ever_in_two_splits(seed):
    rng = np.random.default_rng(seed)
    names = [f"g{i}" for i in rng.integers(0, rng.integers(2, 40), rng.integers(12, 200))]
    # Some rows are on their own.
    names = [name if rng.random() < 0.8 else "" for name in names]
    digests = np.array([group_digest(name) for name in names], np.uint64)
    groups = {"train": digests}
    if seed % 2:
        groups["test"] = digests[rng.integers(0, len(digests), 20)]
    fractions = {"test": 0.1, "valid": 0.1}
    rows, _ = without_shared_groups(division(groups, fractions, seed), groups)
    held = []
    for part in PARTS:
        source, positions = rows[part]
        held.append(set(groups[source][positions].tolist()) - {0})
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert not held[1] & held[2]


def test_one_group_alone_is_refused(tmp_path):
    with pytest.raises(InputError, match="no rows are left for"):
        guess(put(tmp_path, texts(groups=1)), group="writer")
