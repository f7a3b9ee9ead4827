"""The rules that models are compared with: their features, what they learn, what they choose on."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

from dartformer.data.answers import Answers
from dartformer.data.splits import ArraySplit
from dartformer.tasks import grams, rules, tagging
from dartformer.tasks.base import parts
from dartformer.tasks.files import Files
from dartformer.training import scoring

ALPHABET = "abcAB \t.ß日,_\u0301"


def accuracy(answers: Answers) -> float:
    return scoring.accuracy(answers, scoring.once(answers))


def r2(answers: Answers) -> float:
    return scoring.r2(answers, scoring.once(answers))


def vectorizer(unit: str) -> CountVectorizer:
    if unit == "words":
        return CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+")
    return CountVectorizer(ngram_range=(1, 5), analyzer="char_wb")


@pytest.mark.parametrize("unit", grams.LONGEST)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=30), min_size=2, max_size=8))
def test_tf_idf_is_that_of_sklearn(unit: grams.Unit, texts: list[str]) -> None:
    texts = [text + " a" for text in texts]
    counts = grams.counts(texts, unit)
    ours = grams.TfIdf.fitted(counts)(counts)
    counted = vectorizer(unit)
    theirs = counted.fit_transform(texts)
    names = counted.get_feature_names_out()
    often = np.asarray((theirs > 0).sum(0)).ravel() >= grams.FEWEST_TEXTS
    theirs = theirs[:, often & (names != " ")]
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(theirs)
    # Products of rows do not depend on the order of the columns, which hashing changes.
    np.testing.assert_allclose(
        (ours @ ours.T).toarray(), (expected @ expected.T).toarray(), atol=1e-5
    )


def test_counts_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one two", "", "two one two", "three " * 50]
    for unit in grams.LONGEST:
        whole = grams.counts(texts, unit)
        monkeypatch.setattr(grams, "CHUNK", 3)
        assert (grams.counts(texts, unit) != whole).nnz == 0
        monkeypatch.undo()


def test_features_are_bounded_and_those_of_most_texts() -> None:
    counts = grams.counts([" ".join(f"w{i}" for i in range(n)) for n in range(2, 40)], "words")
    weights = grams.TfIdf.fitted(counts, most=5)
    assert len(weights.columns) == 5
    assert weights(counts).shape == (38, 5)
    texts = np.bincount(counts.indices, minlength=grams.WIDTH)
    assert texts[weights.columns].min() >= np.sort(texts)[-5]


def write(folder, rows: list[str]) -> str:
    path = folder / "data.jsonl"
    path.write_text("\n".join(rows))
    return str(path)


def task_of(tmp_path, rows: list[dict], **options) -> tuple[Files, dict]:
    import json

    path = write(tmp_path, [json.dumps(row) for row in rows])
    task = Files(path=path, **options).fitted(str(tmp_path / "prepared"))
    return task, parts(task, str(tmp_path / "prepared"))


def nonsense(rng: random.Random, letters: str) -> str:
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(8))


@pytest.mark.parametrize("tokens", ["bytes", "characters", "words", "bpe"])
def test_texts_are_told_apart(tmp_path, tokens: str) -> None:
    """By their words where these repeat, whatever the tokens."""
    rng, rows = random.Random(0), []
    for i in range(300):
        words = rng.choices(["good", "fine"] if i % 2 else ["bad", "awful"], k=1)
        words += rng.choices(["the", "film", "was", "a", "plot", "long"], k=9)
        rows.append({"text": " ".join(rng.sample(words, 10)), "label": ["no", "yes"][i % 2]})
    options = {"tokens": tokens, "length": 100, "label_names": ("no", "yes")}
    task, split = task_of(tmp_path, rows, **options)
    [rule] = task.plain_rules(split["train"], split["valid"], accuracy)
    assert rule.name == "logistic_regression"
    assert "TF-IDF" in rule.words
    assert rule.seconds > 0
    answers = rule.answers(split["test"])
    assert accuracy(answers) == 1
    np.testing.assert_allclose(answers.outputs.sum(1), 1)


def test_characters_are_chosen_where_words_do_not_repeat(tmp_path) -> None:
    rng, rows = random.Random(0), []
    for i in range(400):
        rows.append({"text": nonsense(rng, ("abcdefg", "defghijk")[i % 2]), "label": i % 2})
    task, split = task_of(tmp_path, rows, label_names=(0, 1), length=80)
    [rule] = task.plain_rules(split["train"], split["valid"], accuracy)
    assert "1 to 5 characters" in rule.words
    assert accuracy(rule.answers(split["test"])) > 0.95


def test_numbers_are_predicted_from_words(tmp_path) -> None:
    rng, rows = random.Random(0), []
    for _ in range(400):
        words = rng.choices(["very", "good", "bad", "film", "so"], k=10)
        value = words.count("good") - words.count("bad")
        rows.append({"text": " ".join(words), "label": value + rng.random() / 10})
    task, split = task_of(tmp_path, rows, kind="regression", length=80)
    [rule] = task.plain_rules(split["train"], split["valid"], r2)
    assert rule.name == "ridge"
    assert r2(rule.answers(split["test"])) > 0.9


def test_two_texts_are_compared(tmp_path) -> None:
    rng, rows = random.Random(0), []
    for i in range(500):
        first, second = nonsense(rng, "abcdefghij"), nonsense(rng, "abcdefghij")
        if i % 2:
            second = first[: len(first) // 2] + second[len(first) // 2 :]
        rows.append({"text": first, "b": second, "label": i % 2})
    task, split = task_of(tmp_path, rows, text2="b", label_names=(0, 1), length=80)
    [rule] = task.plain_rules(split["train"], split["valid"], accuracy)
    assert accuracy(rule.answers(split["test"])) > 0.9


def test_a_rule_reads_train_and_valid_only(tmp_path) -> None:
    rng, rows = random.Random(0), []
    for i in range(300):
        rows.append({"text": nonsense(rng, ("abcdefg", "defghijk")[i % 2]), "label": i % 2})
    task, split = task_of(tmp_path, rows, label_names=(0, 1), length=80)
    answered: list[int] = []

    def merit(answers: Answers) -> float:
        answered.append(answers.labels.examples)
        return accuracy(answers)

    [rule] = task.plain_rules(split["train"], split["valid"], merit)
    assert set(answered) == {len(split["valid"])}
    # The same again from the same rows.
    [repeated] = task.plain_rules(split["train"], split["valid"], accuracy)
    np.testing.assert_array_equal(
        rule.answers(split["test"]).outputs, repeated.answers(split["test"]).outputs
    )


def test_rows_are_bounded_and_the_bound_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rules, "MOST_ROWS", 120)
    monkeypatch.setattr(rules, "TRIED_ROWS", 100)
    rng, rows = random.Random(0), []
    for i in range(300):
        rows.append({"text": nonsense(rng, ("abcdefg", "defghijk")[i % 2]), "label": i % 2})
    task, split = task_of(tmp_path, rows, label_names=(0, 1), length=80)
    [rule] = task.plain_rules(split["train"], split["valid"], accuracy)
    assert rule.words.endswith(f"fitted on 120 of {len(split['train'])} rows")


def test_there_is_no_rule_for_a_single_number(tmp_path) -> None:
    rows = [{"text": f"text {i}", "label": 1.5} for i in range(30)]
    task, split = task_of(tmp_path, rows, kind="regression", length=20)
    assert list(task.plain_rules(split["train"], split["valid"], r2)) == []


def labelled_words(tmp_path, count: int) -> tuple[Files, dict]:
    """Names are after a title or end in -son; what is before a number is a unit's amount."""
    rng, rows = random.Random(0), []
    for _ in range(count):
        words, tags = [], []
        for _ in range(rng.randint(2, 5)):
            name = "".join(rng.choices("abc", k=3)).title()
            phrase, labels = rng.choice(
                [
                    (["Mr", name], ["O", "B-person"]),
                    ([f"{name}son", name], ["B-person", "I-person"]),
                    (["saw", name.lower()], ["O", "O"]),
                ]
            )
            words += phrase
            tags += labels
        rows.append({"words": " ".join(words), "tags": " ".join(tags)})
    options = {"kind": "labelling", "tokens": "words", "length": 12, "text": "words"}
    names = ("B-person", "I-person", "O")
    return task_of(tmp_path, rows, label="tags", label_names=names, **options)


def test_words_are_labelled_by_their_letters_and_neighbours(tmp_path) -> None:
    task, split = labelled_words(tmp_path, 400)

    def entities(answers: Answers) -> float:
        return scoring.entity_f1(answers, scoring.once(answers), task.labels)

    [rule] = task.plain_rules(split["train"], split["valid"], entities)
    assert rule.name == "logistic_regression"
    assert "neighbours" in rule.words
    answers = rule.answers(split["test"])
    assert entities(answers) > 0.9
    np.testing.assert_allclose(answers.outputs.sum(1), 1)


def test_labelled_words_are_bounded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tagging, "MOST_WORDS", 300)
    monkeypatch.setattr(tagging, "TRIED_WORDS", 100)
    task, split = labelled_words(tmp_path, 200)
    [rule] = task.plain_rules(split["train"], split["valid"], accuracy)
    assert f" of {len(split['train'])} rows" in rule.words
    assert accuracy(rule.answers(split["test"])) > 0.6


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_a_shape_has_no_kind_twice_in_a_row(word: str) -> None:
    shape = tagging.shape(word)
    assert all(a != b for a, b in itertools.pairwise(shape))
    assert tagging.shape(word + word[-1:]) == shape


def sequences(count: int, length: int, kind: str) -> ArraySplit:
    """Waves, fast or slow, of unequal lengths; their label is how fast, or where they end."""
    rng = np.random.default_rng(count)
    speed = rng.integers(2, size=count)
    phase = rng.random(count) * 6
    steps = np.arange(length)
    tokens = np.sin(phase[:, None] + steps * np.where(speed, 1.2, 0.3)[:, None])
    lengths = rng.integers(length // 2, length + 1, size=count)
    labels = speed.astype(np.int64)
    if kind == "numbers":
        labels = tokens[np.arange(count), lengths - 1].astype(np.float32)
    return ArraySplit(tokens[..., None].astype(np.float32), lengths, labels)


@pytest.mark.parametrize("length", [12, 3000])
def test_sequences_of_numbers_have_a_linear_rule_and_trees(length: int) -> None:
    parts = [sequences(count, length, "classes") for count in (300, 90, 110)]
    linear, trees = rules.of_numbers(*parts[:2], 2, accuracy)
    assert (linear.name, trees.name) == ("logistic_regression", "gradient_boosting")
    again = rules.of_numbers(*parts[:2], 2, accuracy)
    for rule, same in zip((linear, trees), again, strict=True):
        answers = rule.answers(parts[2])
        assert accuracy(answers) > 0.9
        # Nothing is drawn: the same rows give the same rule.
        np.testing.assert_array_equal(same.answers(parts[2]).outputs, answers.outputs)
        np.testing.assert_allclose(answers.outputs.sum(1), 1, atol=1e-6)
    parts = [sequences(count, length, "numbers") for count in (300, 90, 110)]
    linear, trees = rules.of_numbers(*parts[:2], 0, r2)
    assert linear.name == "ridge"
    assert r2(linear.answers(parts[2])) > 0.99  # the last value is a feature
    assert r2(trees.answers(parts[2])) > 0.9


def test_features_do_not_depend_on_padding() -> None:
    rng = np.random.default_rng(0)
    numbers, valid = rng.normal(size=(5, 40, 2)), np.arange(40) < rng.integers(0, 41, (5, 1))
    features = rules._features(numbers, valid, 16)
    noise = np.where(valid[..., None], numbers, 1e6)
    np.testing.assert_allclose(rules._features(noise, valid, 16), features)
    assert np.isfinite(features).all()
