"""Probes: labels read from the tokens alone, examples that are a function of their number, parts
that share nothing, rules that score what theory says."""

import itertools
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import dartformer
from dartformer import config as configs
from dartformer import tasks
from dartformer.errors import InputError
from dartformer.models.positions import sinusoids
from dartformer.models.transformer import pool
from dartformer.tasks import generated
from dartformer.tasks.symbols import distinct

COUNTS = {"train": 60, "valid": 12, "test": 20}


def texts(task, split=None, count=40):
    """Examples as two lists of symbols: tokens, and labels or None."""
    split = split or task.load()["test"]
    batch = split.take(np.arange(min(count, len(split))))
    assert batch["valid"].all()
    for ids, label in zip(batch["tokens"], batch["label"], strict=True):
        named = [task.labels[c] if c >= 0 else None for c in label]
        yield task.decode(ids.tolist()).split(), named


def kind(symbol):
    """The alphabet of a symbol: k, v, n or _."""
    return symbol[0]


# What each label is, read from the tokens alone.


def context_labels(text):
    """Runs of letters of one alphabet are keys, values and noise."""
    runs = [list(group) for _, group in itertools.groupby(text, kind)]
    label, place, values = [None] * len(text), 0, {}
    for run, following in zip(runs, [*runs[1:], []], strict=True):
        end = place + len(run)
        if kind(run[0]) == "k":
            key = tuple(run)
            if key in values:
                assert following in (values[key], [])
                for i, symbol in enumerate(values[key]):
                    if end - 1 + i < len(text):
                        label[end - 1 + i] = symbol
            values.setdefault(key, following)
        place = end
    return label


def recall_labels(text, task):
    """Pairs up to the end of the context; from then on a key's label is its last value."""
    context = 2 * (task.pairs + task.updates)
    values = {}
    for key, value in zip(text[:context:2], text[1:context:2], strict=True):
        assert values.get(key) != value, "an update that changes nothing"
        values[key] = value
    label = [None] * len(text)
    for place in range(context, len(text)):
        label[place] = values.get(text[place])
    return label


def compositional_labels(text, task):
    context = 3 * task.grid**2
    values = {}
    for first, second, value in zip(*(text[i:context:3] for i in range(3)), strict=True):
        values[first, second] = value
    assert len(values) == len(set(values.values())) == task.grid**2
    for part in zip(*values, strict=True):
        assert len(set(part)) == task.grid, "as many first keys as second ones"
    label = [None] * len(text)
    for place in range(context + 1, len(text)):
        label[place] = values.get((text[place - 1], text[place]))
    return label


def copying_labels(text):
    sign = text.index(">")
    letters = [symbol for symbol in text[:sign] if symbol != "_"]
    assert set(text[sign + 1 :]) == {"_"}
    return [None] * (sign + 1) + letters


def parity_labels(text, task):
    label = []
    for place, symbol in enumerate(text):
        odd = text[: place + 1].count("1") % 2
        has_label = task.cumulative or symbol == "="
        label.append(("even", "odd")[odd] if has_label else None)
    return label


ORACLES = {
    "recall": recall_labels,
    "updated_recall": recall_labels,
    "compositional_recall": compositional_labels,
    "context_recall": lambda text, task: context_labels(text),
    "noisy_recall": lambda text, task: context_labels(text),
    "fuzzy_recall": lambda text, task: context_labels(text),
    "selective_copying": lambda text, task: copying_labels(text),
    "compression": lambda text, task: [*text[:-1], None],
    "parity": parity_labels,
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("recall", {"updates": 2}),
        ("updated_recall", {}),
        ("updated_recall", {"updates": 8, "length": 48, "keys": 9, "power": 1.0}),
        ("compositional_recall", {}),
        ("compositional_recall", {"grid": 3, "keys": 9}),
        ("context_recall", {}),
        ("context_recall", {"length": 31, "keys": 16}),
        ("noisy_recall", {"noise": 0.8, "noise_tokens": 2}),
        ("fuzzy_recall", {}),
        ("fuzzy_recall", {"key_tokens": 2, "value_tokens": 1, "noise": 0.3, "length": 77}),
        ("selective_copying", {}),
        ("selective_copying", {"length": 25, "copies": 12, "letters": 3}),
        ("compression", {}),
        ("parity", {}),
        ("parity", {"cumulative": False}),
    ],
)
def test_labels_follow_from_the_tokens(name, options):
    task = tasks.make(name, {**COUNTS, **options})
    for split in task.load().values():
        for text, label in texts(task, split):
            assert label == ORACLES[name](text, task)


def test_the_last_token_asks_for_a_pair_and_noise_takes_its_share():
    task = tasks.make("noisy_recall", {"noise": 0.4, "test": 400})
    noise = total = 0
    for text, label in texts(task, count=400):
        assert label[-1] is not None
        assert text[0] == "_"
        assert "_" not in text[1:]
        noise += sum(kind(symbol) == "n" for symbol in text[1:-1])
        total += len(text) - 2
    # One pair is kept whatever the draws.
    share = 0.4 * (1 - 1 / 63)
    assert noise / total == pytest.approx(share, abs=5 * math.sqrt(0.24 * 2 / total))


def test_keys_and_values_have_all_sizes_evenly():
    task = tasks.make("fuzzy_recall", {"test": 500})
    sizes = {"k": [], "v": []}
    for text, _ in texts(task, count=500):
        # The first pairs: later ones of a size are cut off or come again.
        runs = [list(group) for _, group in itertools.groupby(text, kind)]
        for run in runs[-9:-1]:
            assert len(set(run)) == len(run), "the letters of a key differ"
            sizes[kind(run[0])].append(len(run))
    for counts in sizes.values():
        shares = np.bincount(counts, minlength=4)[1:] / len(counts)
        np.testing.assert_allclose(shares, 1 / 3, atol=0.05)


def test_a_memorized_map_is_the_same_everywhere_and_another_for_each_seed():
    maps = []
    for seed in (0, 1):
        task = tasks.make("memorization", {"keys": 20, "train": 200, "seed": seed})
        values = {}
        for split in task.load().values():
            for text, label in texts(task, split, 200):
                assert set(text[1::2]) == {"?"}
                assert set(label[0::2]) == {None}
                for key, value in zip(text[0::2], label[1::2], strict=True):
                    assert values.setdefault(key, value) == value
        assert len(values) == len(set(values.values())) == 20
        maps.append(values)
    assert maps[0] != maps[1]


# Rules.


@pytest.mark.parametrize(
    ("name", "options", "rules"),
    [
        ("context_recall", {}, {"own_token": 1 / 8}),
        ("noisy_recall", {}, {"own_token": 1 / 8}),
        ("updated_recall", {}, {"own_token": 1 / 32, "first_value": 0.5}),
        ("updated_recall", {"updates": 2}, {"first_value": 0.75}),
        ("compositional_recall", {}, {"own_token": 1 / 32, "second_key": 0.5}),
        ("compositional_recall", {"grid": 3}, {"second_key": 1 / 3}),
        ("selective_copying", {}, {"own_token": 1 / 14}),
        ("memorization", {"keys": 16}, {"own_token": 1 / 16}),
        ("parity", {"length": 40}, {"own_token": (1 + 39 / 2) / 40}),
        ("parity", {"cumulative": False}, {"own_token": 1 / 2}),
    ],
)
def test_rules_score_what_theory_says(name, options, rules):
    task = tasks.make(name, {"train": 1500, "valid": 1, "test": 1500, **options})
    splits = task.load()
    scores = task.baselines(splits["train"], splits["test"])
    labels = (splits["test"].take(np.arange(1500))["label"] >= 0).sum()
    for rule, share in rules.items():
        noise = 6 * math.sqrt(share * (1 - share) / labels) + 0.004
        if rule in ("first_value", "second_key"):
            noise = 1e-12  # each key is asked for as often as any
        assert scores[rule] == pytest.approx(share, abs=noise)


# Every generated task.


def is_generated(name):
    """Whether the examples of a task are a function of its options and their number."""
    cls = tasks.BUILT_IN[name]
    return hasattr(cls, "examples") and not hasattr(cls, "path")


GENERATED = [name for name in tasks.BUILT_IN if is_generated(name)]

RANGES = {
    "length": st.integers(0, 70),
    "pairs": st.integers(0, 8),
    "updates": st.integers(0, 8),
    "keys": st.integers(0, 40),
    "key_tokens": st.integers(0, 4),
    "value_tokens": st.integers(0, 4),
    "noise": st.floats(0, 0.95),
    "noise_tokens": st.integers(0, 20),
    "grid": st.integers(0, 4),
    "power": st.floats(0.0, 1.5),
    "copies": st.integers(0, 16),
    "letters": st.integers(0, 20),
    "cumulative": st.booleans(),
    "endless": st.booleans(),
    "seed": st.integers(0, 2**32),
    "kind": st.sampled_from(["recall", "local", "mix", "relay"]),
}


@st.composite
def generated_tasks(draw):
    """A task with random options, of which those that do not go together raise `InputError`."""
    name = draw(st.sampled_from(GENERATED))
    options = dict(COUNTS)
    for field in fields(tasks.find(name)):
        if field.name in RANGES and draw(st.booleans()):
            options[field.name] = draw(RANGES[field.name])
    try:
        return tasks.make(name, options)
    except InputError:
        return reject()


def test_the_generated_tasks_are_listed():
    assert {"planted", "recall", "parity", "memorization", "selective_copying"} < set(GENERATED)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(generated_tasks())
def test_examples_are_a_function_of_options_and_number(task):
    numbers = np.array([5, 10**9, 0])
    batch = task.examples(numbers)
    alone = task.examples(numbers[1:2])
    again = replace(task, train=7).examples(numbers)
    for part in ("tokens", "label"):
        np.testing.assert_array_equal(batch[part][1:2], alone[part])
        np.testing.assert_array_equal(batch[part], again[part])
    tokens, label = batch["tokens"], batch["label"]
    assert tokens.shape == label.shape == batch["valid"].shape == (3, task.length)
    assert (tokens > 0).all()
    assert (tokens < task.vocabulary).all()
    assert (label >= -1).all()
    assert (label < task.classes).all()
    assert (label >= 0).any(axis=1).all(), "an example without a label"
    for row in tokens.tolist():
        assert task.encode(task.decode(row)) == row


@settings(max_examples=40, deadline=None, derandomize=True)
@given(generated_tasks())
def test_parts_share_no_example_and_are_kept_exactly(task):
    splits = task.load()
    rows = {}
    first = {"test": 0, "valid": task.test, "train": task.test + task.valid}
    for name, split in splits.items():
        batch = split.take(np.arange(len(split)))
        direct = task.examples(first[name] + np.arange(len(split)))
        np.testing.assert_array_equal(batch["tokens"], direct["tokens"])
        np.testing.assert_array_equal(batch["label"], direct["label"])
        rows[name] = {row.tobytes() for row in batch["tokens"]}
    assert not rows["train"] & (rows["test"] | rows["valid"])


def test_examples_are_the_same_in_pieces(monkeypatch):
    """Many are generated a piece at a time, which bounds the memory."""
    task = tasks.make("fuzzy_recall", {**COUNTS, "length": 50})
    whole = task.load()["train"].take(np.arange(60))
    monkeypatch.setattr(generated, "PIECE", 7)
    pieces = task.load()["train"].take(np.arange(60))
    for part in ("tokens", "valid", "label"):
        np.testing.assert_array_equal(pieces[part], whole[part])


@pytest.mark.parametrize("count", [1, 3, 5])
def test_distinct_numbers_are_every_choice_evenly(count):
    bits = np.random.PCG64(0).random_raw(3000 * count).reshape(3000, count)
    chosen = distinct(5, bits)
    np.testing.assert_array_equal(distinct(5, bits[:, :1]), chosen[:, :1])
    choices, counts = np.unique(chosen, axis=0, return_counts=True)
    assert len(choices) == math.perm(5, count)
    assert all(len(set(row)) == count for row in choices.tolist())
    spread = math.sqrt(3000 / len(choices))
    assert abs(counts - 3000 / len(choices)).max() < 5 * spread


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("updated_recall", {"updates": 9}, "task.updates must be at most task.pairs = 8, got 9"),
        ("updated_recall", {"length": 39}, r"at least 4 \* pairs \+ 2 \* updates = 40, got 39"),
        ("updated_recall", {"pairs": 1, "updates": 1, "keys": 8}, "2.9 different examples"),
        ("compositional_recall", {"keys": 3}, r"at least grid\^2 = 4.* got 3"),
        ("compositional_recall", {"length": 23}, r"at least 6 \* grid\^2 = 24, got 23"),
        ("compositional_recall", {"power": 0.0}, "above 0"),
        ("context_recall", {"key_tokens": 9}, "at most task.keys = 8.* got 9"),
        ("context_recall", {"length": 2}, "at least 3, got 2"),
        ("context_recall", {"length": 9}, "leave about 2.12 different examples"),
        ("noisy_recall", {"noise": 1.0}, "at least 0 and below 1, got 1.0"),
        ("noisy_recall", {"noise_tokens": 0}, "at least 1, got 0"),
        ("fuzzy_recall", {"keys": 10**6, "value_tokens": 1}, r"exceeds 2\^56"),
        ("selective_copying", {"length": 32}, r"at least 2 \* copies \+ 1 = 33, got 32"),
        ("selective_copying", {"letters": 1}, "at least 2, got 1"),
        ("memorization", {"length": 31}, "must be even, got 31"),
        ("memorization", {"length": 2}, "2.7 different examples"),
        ("compression", {"length": 8, "letters": 2}, "2.7 different examples"),
        ("parity", {"length": 16}, "2.16 different examples"),
        ("parity", {"seed": -1}, "must be between 0 and 4294967295.* got -1"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(InputError, match=message):
        tasks.make(name, options)


def test_unknown_symbols_are_named():
    task = tasks.make("memorization", {})
    with pytest.raises(InputError, match=r"unknown symbol 'v3'. Known: k0, k1, .*k126, \?\.$"):
        task.encode("k1 ? v3")
    with pytest.raises(InputError, match="33 symbols; 1 to 32"):
        task.encode("k1 " * 33)
    with pytest.raises(InputError, match="token id 129"):
        task.decode([129])


# Compression: a model that reads every label from the last token.


def test_every_answer_is_read_from_the_last_vector_and_a_position():
    x = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    valid = np.array([[True] * 5, [True] * 3 + [False] * 2])
    pooled = np.asarray(pool(x, valid, "decode"))
    last = np.stack([x[0, 4], x[1, 2]])
    np.testing.assert_allclose(pooled, last[:, None] + sinusoids(5, 6), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("compression", {"model.pooling": "none"}, "last one. Use model.pooling='decode'"),
        ("parity", {"model.pooling": "decode"}, "each token. Use model.pooling='none'"),
        ("listops", {"model.pooling": "decode"}, "Use model.pooling='mean', 'cls' or 'last'"),
        ("compression", {"model.classifier": "linear"}, "'decode' does not work with .*Use 'mlp'"),
    ],
)
def test_poolings_that_do_not_fit_the_task(name, values, message):
    config = dartformer.defaults(name)
    if name != "compression":
        values = {"model.classifier": "mlp", **values}
    configs.override(config, values)
    with pytest.raises(InputError, match=message):
        configs.build(config)


# A repeated passage.


@pytest.fixture
def book(tmp_path):
    """A text without a repetition of its own: words of random letters."""
    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz "), 6000)
    (tmp_path / "book.txt").write_text("".join(letters), "utf-8")
    return tmp_path / "book.txt"


PASSAGE = {"length": 60, "passage": 20, "cue": 5, "train": 50, "valid": 10, "test": 10}


@pytest.mark.parametrize("tokens", ["bytes", "characters"])
def test_a_passage_comes_again_at_the_end(tokens, book):
    task = tasks.make("passage", {"path": str(book), "tokens": tokens, **PASSAGE})
    fitted, text = task.fitted(), Path(book).read_text("utf-8")
    parts = {"train": text[:5400], "valid": text[5400:5700], "test": text[5700:]}
    for name, split in task.load().items():
        batch = split.take(np.arange(len(split)))
        for ids, label in zip(batch["tokens"], batch["label"], strict=True):
            example = fitted.decode(ids.tolist())
            stretch, passage = example[:40], example[40:]
            assert stretch in parts[name]
            assert passage in stretch
            assert (label[:44] == -1).all()
            assert label[-1] == -1
            assert fitted.decode(label[44:-1].tolist()) == passage[5:]


def test_the_rules_of_a_passage(book):
    task = tasks.make("passage", {"path": str(book), **PASSAGE, "test": 200})
    splits = task.load()
    rules = task.baselines(splits["train"], splits["test"])
    assert rules["own_token"] < 0.12
    # A pair of letters comes again by chance after the passage, in a place of 729, in 40 places.
    assert 0.9 < rules["last_pair"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cue": 20}, "task.cue must be below task.passage = 20, got 20"),
        ({"length": 39}, r"at least 2 \* passage = 40, got 39"),
        ({"length": 400, "passage": 20}, "has 300 tokens, and an example takes 380 of them"),
        ({"path": ""}, "Set it to a text file"),
    ],
)
def test_passages_that_cannot_be(options, message, book):
    with pytest.raises(InputError, match=message):
        tasks.make("passage", {"path": str(book), **PASSAGE, **options}).check()
