"""ListOps: its language, its distribution, and how it is prepared."""

import functools
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dartformer.data.sources import from_source
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError
from dartformer.tasks import listops
from dartformer.tasks.base import PARTS, majority, parts
from dartformer.tasks.files import Files
from dartformer.tasks.listops import END, SYMBOLS, ListOps, draw, evaluate, expressions

SMALL = ListOps(max_depth=4, max_args=4, min_length=5, max_length=40, train=300, valid=60, test=60)
DATA = Path(
    os.environ.get(
        "DARTFORMER_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("listops"))


def texts(task, split):
    return [task.decode(row.tolist()) for row in split.take(np.arange(len(split)))["tokens"]]


def run(code, *arguments):
    """A Python of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# The language.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MAX 2 3 [MIN 4 7] 0]", 4),
        ("[MIN 5 4]", 4),
        ("[SM 9 9 9]", 7),
        ("[SM 5 5]", 0),
        ("[MED 1 2 9]", 2),
        ("[MED 9 1]", 5),
        ("[MED 4 7]", 5),  # 5.5, truncated
        ("[MED 8 0 3 2]", 2),  # 2.5, truncated
        ("[FIRST 3 1 2]", 3),
        ("[LAST 3 1 2]", 2),
        ("( ( ( [MAX 1 ) 5 ) ] )", 5),
        ("[MED[MAX 1 2][SM 9 9]3]", 3),
        ("[MAX 3]", 3),
    ],
)
def test_values_by_hand(text, value):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty text"),
        ("  ( ) ", "an empty text"),
        ("[MAX 1 2", "symbol 1, '.MAX', is never closed"),
        ("[MAX 1 [MIN 2 ]", "symbol 1, '.MAX', is never closed"),
        ("1 ]", "symbol 2, ']', comes after the end"),
        ("]", "symbol 1, ']', closes nothing"),
        ("[MAX 1 [MIN ] ]", "symbol 3, '.MIN', has no arguments"),
        ("[MAX 1 2 ] 3", "symbol 5, '3', comes after the end"),
        ("[MAX 1 22 ]", "symbol 3: unknown ListOps symbol '22'"),
        ("[MAXX 1 2 ]", r"symbol 1: unknown ListOps symbol '\[MAXX'. Did you mean '\[MAX'"),
        ("[ MAX 1 2 ]", r"symbol 1: unknown ListOps symbol '\['"),
    ],
)
def test_malformed_texts_name_the_place(text, message):
    with pytest.raises(InputError, match=message):
        evaluate(text)


def test_no_depth_is_too_deep():
    assert evaluate("[MAX 1 " * 50_000 + "2" + " ]" * 50_000) == 2


def test_the_original_labels_are_reproduced():
    archive = DATA / "listops_nangia.tar.xz"
    if not archive.exists():
        pytest.skip(
            f"the original ListOps files are not at {archive}; set DARTFORMER_DATA to their folder"
        )
    compared = Counter()
    with tarfile.open(archive) as files:
        for member in files:
            if member.isfile():
                for line in files.extractfile(member).read().decode().splitlines():
                    label, text = line.split("\t")
                    compared[evaluate(text) == int(label)] += 1
    assert compared == {True: 50_000}


def test_encode_and_decode_are_inverse():
    task = ListOps()
    spaced = "[MAX 2 9 [MIN 4 7 ] 0 ]"
    assert (
        task.encode(spaced)
        == task.encode("[MAX 2 9 [MIN 4 7] 0]")
        == task.encode("\t[MAX 2 9[MIN 4 7]0]\n")
    )
    assert task.decode([*task.encode(spaced), 0, 0]) == spaced
    text = "[MIN [MAX [MED [SM 0 1 2 3 4 5 6 7 8 9 ] ] ] ]"
    assert task.decode(task.encode(text)) == text
    assert set(task.encode(text)) == set(range(1, task.vocabulary))
    assert 0 not in task.encode(spaced)
    assert task.labels == tuple("0123456789")
    for tokens, _ in itertools.islice(expressions(SMALL), 50):
        assert SMALL.encode(SMALL.decode(tokens)) == list(tokens)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty text"),
        ("[MAX 2 x ]", r"unknown ListOps symbol 'x'. Known: \[MIN, \[MAX, \[MED, \[SM, \], 0, 1"),
        ("[FIRST 2 3 ]", r"unknown ListOps symbol '\[FIRST'"),
        ("[max 2 3 ]", r"unknown ListOps symbol '\[max'"),
        ("1 " * 40, "has 40 tokens; at most 39 are allowed"),
        ("1 2", "symbol 2, '2', comes after the end"),
        ("[MAX 1 2", r"symbol 1, '\[MAX', is never closed"),
        ("[MAX ] ", r"symbol 1, '\[MAX', has no arguments"),
        ("1 ]", "symbol 2, ']', comes after the end"),
        ("] 1", "symbol 1, ']', closes nothing"),
    ],
)
def test_what_cannot_be_encoded_is_named(text, message):
    with pytest.raises(InputError, match=message):
        SMALL.encode(text)


@pytest.mark.parametrize("ids", [[16], [-1]])
def test_an_unknown_id_is_named(ids):
    with pytest.raises(InputError, match=rf"token id {ids[0]} is not between 0 and 15"):
        SMALL.decode(ids)


# The options and the distribution.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_depth": 0}, "max_depth must be at least 1, got 0"),
        ({"max_args": 1}, "max_args must be at least 2, got 1"),
        ({"train": 0}, "train must be at least 1, got 0"),
        ({"seed": -1}, "seed must be between 0 and 4294967295"),
        ({"operator_probability": 1.5}, r"operator_probability must be in \[0, 1\], got 1.5"),
        ({"min_length": 2000}, "between min_length 2000 and max_length 2000"),
        ({"min_length": 1999}, "between min_length 1999 and max_length 2000"),
        (
            {"max_depth": 2},
            "min_length is 500, but a tree of max_depth 2 and max_args 10 has at most 12 tokens",
        ),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ListOps(**options)


def test_length_is_that_of_the_longest_possible_example():
    assert ListOps().length == 1999
    assert ListOps(max_depth=1, min_length=0).length == 1
    assert ListOps(max_depth=2, max_args=3, min_length=0).length == 5
    assert ListOps(max_depth=3, max_args=3, min_length=0).length == 17
    assert ListOps(max_depth=10**9, max_args=3, min_length=0).length == 1999, (
        "not summed to the end"
    )
    # Every node an operator and every list full: the largest tree there is.
    full = ListOps(max_depth=3, max_args=3, min_length=0, max_length=18, operator_probability=1.0)
    uniform = random.Random(0).random
    assert max(len(tree) for tree in (draw(full, uniform) for _ in range(2000)) if tree) == 17


@pytest.mark.parametrize(
    "options",
    [
        {"max_depth": 1, "min_length": 0, "max_length": 5},  # ten digits and no more
        {
            "max_depth": 3,
            "min_length": 1,
            "max_length": 4,
        },  # lengths 2 and 3: there is no such tree
        {"operator_probability": 0.0, "min_length": 1},
        {"max_depth": 2, "max_args": 2, "min_length": 1},  # 400 expressions
    ],
)
def test_too_few_expressions_is_an_error_and_not_an_endless_loop(options, tmp_path):
    task = ListOps(**options, train=500, valid=1, test=1)
    started = time.monotonic()
    with pytest.raises(
        InputError,
        match=r"found only \d+ distinct ListOps expressions of the 502 .*, and then none",
    ):
        task.load(str(tmp_path))
    assert time.monotonic() - started < 20
    assert not list(tmp_path.rglob("*.array_record*")), "an unfinished preparation is left behind"


def test_exactly_as_many_as_there_are_can_be_asked_for(tmp_path):
    task = ListOps(max_depth=2, max_args=2, min_length=1, train=398, valid=1, test=1)
    loaded = task.load(str(tmp_path))
    assert len({text for split in loaded.values() for text in texts(task, split)}) == 400


def test_aborting_early_changes_nothing_but_the_time():
    """The trees that fit are exactly those that fit of the same draws without a bound."""
    bounded = ListOps(max_depth=5, max_args=5, min_length=0, max_length=30)
    free = ListOps(max_depth=5, max_args=5, min_length=0, max_length=10**6)
    for seed in range(3000):
        short, full = (draw(options, random.Random(seed).random) for options in (bounded, free))
        assert short == (full if len(full) < 30 else None)


def test_a_small_tree_has_the_published_distribution():
    """By the definition: a digit with 3/4, else one of 4 operators and 2 or 3 arguments, which are
    all digits."""
    options, uniform, n = (
        ListOps(max_depth=2, max_args=3, min_length=0),
        random.Random(3).random,
        40_000,
    )
    counts = Counter(draw(options, uniform) for _ in range(n))
    by_first, by_length = Counter(), Counter()
    for tokens, count in counts.items():
        by_first[SYMBOLS[tokens[0]]] += count / n
        by_length[len(tokens)] += count / n
    expected = {
        **{str(digit): 0.075 for digit in range(10)},
        **{name: 0.0625 for name in listops.OPERATORS},
    }
    assert by_first == pytest.approx(expected, abs=0.006)
    assert by_length == pytest.approx({1: 0.75, 4: 0.125, 5: 0.125}, abs=0.01)
    digits = Counter(
        SYMBOLS[t]
        for tokens, count in counts.items()
        if len(tokens) > 1
        for t in tokens[1:-1] * count
    )
    shares = {digit: count / digits.total() for digit, count in digits.items()}
    assert shares == pytest.approx(dict.fromkeys("0123456789", 0.1), abs=0.01)


def published(n):
    """Length, root arity, depth, first token and label of `n` expressions at the published
    options."""
    for tokens, label in itertools.islice(expressions(ListOps()), n):
        depth = arity = deepest = 0
        for token in tokens:
            if token == END:
                depth -= 1
                continue
            arity += depth == 1
            depth += token < END
            deepest = max(deepest, depth + (token > END))
        yield len(tokens), arity, deepest, tokens[0], label


def check_published(n, sigmas=4):
    length, arity, depth, root, label = np.array(list(published(n))).T
    share = lambda p: sigmas * np.sqrt(p * (1 - p) / n)  # noqa: E731
    assert length.min() > 500
    assert length.max() < 2000
    assert length.mean() == pytest.approx(1041, abs=sigmas * 390 / np.sqrt(n) + 10)
    assert arity.mean() == pytest.approx(6.9, abs=sigmas * 2.4 / np.sqrt(n) + 0.05)
    assert set(depth) == {10}
    assert np.mean(label == 0) == pytest.approx(0.172, abs=share(0.172))
    assert np.mean(label == 9) == pytest.approx(0.167, abs=share(0.167))
    half = n // 2
    split = [
        ArraySplit(root[rows, None], np.ones(half, np.int32), label[rows])
        for rows in (slice(0, half), slice(half, 2 * half))
    ]
    # The rule is fitted on half and scored on half; few examples make it choose a little worse than
    # it could.
    assert ListOps().baselines(*split)["root_operator"] == pytest.approx(
        0.362, abs=share(0.362) * 1.5 + 0.01
    )
    assert majority(*split) == pytest.approx(0.172, abs=share(0.172) * 1.5 + 0.005)


def test_the_published_distribution_on_a_sample():
    check_published(2500)


@pytest.mark.slow
def test_the_published_distribution():
    check_published(20_000)


# The data set.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_expression_is_in_two_parts(folder, seed):
    task = SMALL
    by_part = {
        name: texts(task, split)
        for name, split in parts(task, folder, seed).items()
        if name in PARTS
    }
    all_texts = [text for part in by_part.values() for text in part]
    assert len(all_texts) == len(set(all_texts)) == 420
    assert {name: len(part) for name, part in by_part.items()} == {
        "weights": 150,
        "alphas": 150,
        "valid": 60,
        "test": 60,
    }


def test_what_is_read_is_what_was_generated(folder):
    loaded = SMALL.load(folder)
    stream = expressions(SMALL)
    for name in ("test", "valid", "train"):
        split = loaded[name]
        batch = split.take(np.arange(len(split)))
        assert batch["tokens"].shape == (len(split), SMALL.length)
        for row, valid, label in zip(batch["tokens"], batch["valid"], batch["label"], strict=True):
            tokens, value = next(stream)
            assert bytes(row[valid].astype(np.uint8).tolist()) == tokens
            assert label == value == evaluate(SMALL.decode(row.tolist()))
            assert 5 < valid.sum() < 40
            assert not row[~valid].any()


def test_read_as_needed_is_the_same_as_read_whole(folder, monkeypatch):
    quick = SMALL.load(folder)["train"]
    monkeypatch.setattr(listops, "from_source", functools.partial(from_source, in_memory=0))
    mapped = SMALL.load(folder)["train"]
    assert isinstance(mapped.tokens.values.base, np.memmap)
    for indices in (np.arange(300), np.array([7, 7, 299, 0])):
        a, b = quick.take(indices), mapped.take(indices)
        assert all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_seeds_differ_and_more_training_data_leaves_the_test_alone(folder):
    def loaded(**options):
        task = ListOps(**{**SMALL.__dict__, **options})
        return {name: texts(task, split) for name, split in task.load(folder).items()}

    base, seeded, more = loaded(), loaded(seed=1), loaded(train=400)
    assert len(set(base["train"]) & set(seeded["train"])) < 0.2 * 300, (
        "short expressions may repeat, most must not"
    )
    assert more["test"] == base["test"]
    assert more["valid"] == base["valid"]
    assert more["train"][:300] == base["train"]
    folders = list(Path(folder).glob("dartformer_listops/*"))
    assert len(folders) == len({path.name for path in folders}) >= 3


def test_a_second_load_prepares_nothing(folder, capfd, monkeypatch):
    SMALL.load(folder)
    capfd.readouterr()
    monkeypatch.setattr(listops, "expressions", lambda options: pytest.fail("generated again"))
    SMALL.load(folder)
    assert capfd.readouterr() == ("", "")


def test_preparing_tells_standard_error_and_leaves_standard_output_alone(tmp_path, capfd):
    SMALL.load(str(tmp_path))
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split("  ")[:2] for line in err.splitlines()] == [
        ["ListOps test", "60/60"],
        ["ListOps valid", "60/60"],
        ["ListOps train", "300/300"],
    ]


PREPARE = """
import functools, hashlib, sys
import numpy as np
from dartformer.tasks import text
from dartformer.tasks.files import Files
from dartformer.tasks.listops import ListOps
from dartformer.data.sources import from_source
text.from_source = functools.partial(from_source, in_memory=0)  # texts are unpacked into a file, too
tasks = [Files(path=f"{sys.argv[1]}/a.jsonl", label_names=("0", "1"), tokens="words", length=8),
         ListOps(max_depth=4, max_args=4, min_length=5, max_length=40, train=3000, valid=60, test=60)]
found = [s.take(np.arange(len(s)))["tokens"] for task in tasks for _, s in sorted(task.load(sys.argv[1]).items())]
print(hashlib.sha256(b"".join(one.tobytes() for one in found)).hexdigest())
print("tensorflow" in sys.modules)
"""


def write_texts(folder):
    (folder / "a.jsonl").write_text(
        "".join(
            json.dumps({"text": f"row {i} of words", "label": i % 2}) + "\n" for i in range(2000)
        )
    )
    return Files(path=f"{folder}/a.jsonl", label_names=("0", "1"), tokens="words", length=8)


def test_two_processes_at_once_end_with_the_same_data_and_no_tensorflow(tmp_path):
    write_texts(tmp_path)
    processes = [run(PREPARE, str(tmp_path)) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    digests, tensorflow = zip(*(out.split() for out, _ in outputs), strict=True)
    assert len(set(digests)) == 1
    assert set(tensorflow) == {"False"}
    names = [path.name for path in tmp_path.glob("dartformer_*/*/*")]
    assert names == ["1.0.0"] * 2, "an unfinished copy is left behind"
    assert sorted(path.name for path in tmp_path.glob("dartformer_files/*/*/ids*")) == [
        f"ids-{part}-8-uint16" for part in ("test", "train", "valid")
    ]
    task = ListOps(
        max_depth=4, max_args=4, min_length=5, max_length=40, train=3000, valid=60, test=60
    )
    expected = [
        text
        for name in ("test", "valid", "train")
        for text in texts(task, task.load(str(tmp_path))[name])
    ]
    assert expected == [
        task.decode(tokens) for tokens, _ in itertools.islice(expressions(task), 3120)
    ]


def test_a_killed_preparation_starts_again(tmp_path):
    stuck = """
import sys, time
from dartformer.data import prepare
def with_progress(stream, total, name):
    print(name, file=sys.__stdout__, flush=True)
    time.sleep(30)
prepare.with_progress = with_progress
"""
    task = write_texts(tmp_path)
    process = run(stuck + PREPARE, str(tmp_path))
    assert process.stdout.readline() == "a.jsonl test\n", process.stderr.read()
    assert list(tmp_path.glob("dartformer_files/*/*incomplete*"))
    process.kill()
    process.communicate()
    assert {name: len(split) for name, split in task.load(str(tmp_path)).items()} == {
        "train": 1600,
        "valid": 200,
        "test": 200,
    }
    assert not list(tmp_path.glob("dartformer_files/*/*incomplete*")), (
        "what the killed process left is still there"
    )


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InputError, match=r"cannot write ListOps to .*file"):
        SMALL.load(str(file))
