"""What `new --data` proposes: candidates, the space, and steps that fit the time."""

import csv
import json

import pytest

from dartformer import attention
from dartformer.cli.main import main
from dartformer.cli.new import config_for_data, load_text
from dartformer.config.sections import Race
from dartformer.errors import InputError
from dartformer.stages import proposal
from dartformer.stages.pace import Pace, seconds_of, work
from dartformer.stages.proposal import LANGUAGE, LEVELS, Wishes
from dartformer.stages.study import Study

WORDS = ("fine", "dull", "lovely", "awful", "quick", "slow")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A file of 200 rows, and a machine that takes 10 ms for a step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(proposal, "measure", lambda study: Pace(0.01, 2.0))
    with open("a.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(200):
            words = [WORDS[(i * step) % 6] for step in range(1, 7)]
            rows.writerow([f"{i} {' '.join(words)}", ("no", "yes")[i % 2]])
    return "a.csv"


def proposed(file, values=None, **wishes):
    config = config_for_data(file, values=values, wishes=Wishes(**wishes))
    return load_text(config.text), config.guess.sentences


def test_more_minutes_never_buy_less(table):
    """More time gives a larger space, or more steps in the same one."""
    order = [level.granularity + str(level.layers) for level in reversed(LEVELS[:3])]
    ranks = []
    for minutes in (0.2, 0.5, 1, 2, 4, 8, 16, 60):
        config, _ = proposed(table, minutes=minutes)
        space = config.space.granularity + str(config.model.layers)
        ranks.append((order.index(space), config.retrain.steps))
        study = Study(config)
        seconds = seconds_of(study, Pace(0.01, 2.0), 20)
        if config.retrain.steps > proposal.FEWEST:
            # The evaluations come at whole steps.
            assert seconds(config.retrain.steps) <= 60 * minutes * 1.01
    assert ranks == sorted(ranks)
    assert ranks[-1][0] == 2


def test_too_little_time_is_said(table):
    config, sentences = proposed(table, minutes=0.2)
    assert proposal.FEWEST <= config.retrain.steps < proposal.FEWEST_STEPS
    assert any("--minutes=" in sentence and "would pay" in sentence for sentence in sentences)


def test_steps_are_kept(table):
    config, sentences = proposed(table, minutes=8.0, steps=123)
    assert config.retrain.steps == 123
    assert any("123 steps" in sentence for sentence in sentences)
    config, _ = proposed(table, {"retrain.steps": 77}, minutes=8.0)
    assert config.retrain.steps == 77


@pytest.mark.parametrize("selection", ["", "cheap", "long", "all", "full,local(window=8)"])
def test_candidates_fit_the_data(table, selection):
    config, sentences = proposed(table, candidates=selection)
    candidates = config.search_space.candidates
    assert len(candidates) >= 2
    growths = {candidate.traits.growth for candidate in candidates}
    assert selection not in ("cheap", "long") or growths == {1}
    assert selection != "all" or len(candidates) > len(attention.names()) - 4
    assert any(sentence.startswith("candidates ") for sentence in sentences)
    if config.search_space.size > proposal.MOST_RACED:
        assert config.space.granularity == "model"
    assert config.search.strategy.name == "race"


@pytest.mark.parametrize("candidates", ["", "full,local(window=8),conv"])
def test_where_nothing_is_timed_there_is_a_plan_too(table, candidates):
    config, sentences = proposed(table, steps=50, candidates=candidates)
    models = len(config.search_space.candidates) ** 2
    [plan] = [sentence for sentence in sentences if "50 steps a training" in sentence]
    assert f"{models} models race" in plan
    assert "minutes" not in plan
    _, sentences = proposed(table, {"search.strategy.name": "darts"}, steps=50)
    assert any("a search, then" in sentence and "50 steps" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ({}, "a choice for each of two layers: 16 models race"),
        ({"space.granularity": "model"}, "one attention everywhere, in two layers: 4 models race"),
        ({"model.layers": 1}, "a choice for one layer: 4 models race"),
        (
            {"model.layers": 3, "space.granularity": "model"},
            "one attention everywhere, in 3 layers: 4",
        ),
        ({"space.granularity": "head"}, "a choice for each head of two layers: a search"),
    ],
)
def test_the_plan_names_what_the_user_sets(table, values, title):
    _, sentences = proposed(table, values, steps=50)
    assert any(sentence.startswith(title) for sentence in sentences)


LABELLED = {
    "spans": (("O", "B-x", "I-x", "O", "O", "O"), "entity_f1"),
    "inside": (("O", "I-x", "I-y", "O", "O", "O"), "entity_f1"),
    "parts of speech": (("DET", "NOUN", "VERB", "DET", "NOUN", "NOUN"), ""),
    "nearly one": (("a",) * 5 + ("b",) + ("a",) * 6, "macro_f1"),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_the_metric_of_labelled_words(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    tags, metric = LABELLED[kind]
    with open("tags.conll", "w") as file:
        for i in range(60):
            for j, tag in enumerate(tags):
                print(f"{WORDS[(i * j) % 6]}{i}\t{tag}", file=file)
            print(file=file)
    config, sentences = proposed("tags.conll", steps=20)
    assert config.metric == metric
    # Where all answers are one class at first, a training must not end for it.
    assert (config.retrain.patience == 0) == bool(metric)
    assert any("decides (config.metric)" in sentence for sentence in sentences) == bool(metric)
    config, sentences = proposed("tags.conll", {"metric": "mcc"}, steps=20)
    assert config.metric == "mcc"
    assert not any("decides" in sentence for sentence in sentences)


@pytest.mark.parametrize(("rare", "metric"), [(26, ""), (8, "macro_f1")])
def test_the_metric_of_classes_of_which_one_is_nearly_all(tmp_path, monkeypatch, rare, metric):
    """Of 200 rows 87% are of one class, as among short messages, or 96%."""
    monkeypatch.chdir(tmp_path)
    with open("a.csv", "w") as file:
        print("text,label", file=file)
        for i in range(200):
            label = "yes" * (i < rare) or "no"
            print(f"message {i} {' '.join(WORDS)},{label}", file=file)
    config, _ = proposed("a.csv", steps=20)
    assert config.metric == metric


def test_a_space_too_large_to_race_is_searched_where_the_user_chooses_it(table):
    values = {"space.granularity": "head"}
    config, _ = proposed(table, values)
    assert config.search.strategy.name == "darts"
    assert config.search.steps == config.retrain.steps
    config, _ = proposed(table, {"search.strategy.name": "gumbel"})
    assert config.search.strategy.name == "gumbel"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes=0"], "--minutes must be a number above 0"),
        (["--minutes=nan"], "--minutes must be a number above 0"),
        (["--steps=0"], "--steps must be at least 1"),
        (["--candidates=quick"], "unknown --candidates 'quick'"),
        (["--candidates=full,foo"], "foo"),
    ],
)
def test_wishes_that_cannot_be(table, capsys, flags, message):
    assert main(["new", f"--data={table}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_wishes_need_a_file(capsys):
    assert main(["new", "--minutes=3"]) == 2
    assert "Use them with --data FILE" in capsys.readouterr().err


@pytest.mark.parametrize("rungs", [(), (1 / 9, 4 / 9)])
def test_the_work_of_a_race_is_that_of_its_entrants(table, rungs):
    """Of 16 models: those that train to the end, and what the others take before they stop."""
    config, _ = proposed(table, {"race.rungs": rungs, "retrain.seeds": (0, 1)})
    amount = work(Study(config))
    assert amount.entrants == 16
    assert amount.search == 0
    expected = 16 * 2.0
    if rungs:
        kept = 16 * Race.keep
        expected = 16 / 9 + kept * 3 / 9 + 4 * (5 / 9 + 1)
    assert amount.trainings == pytest.approx(expected)


def test_two_texts_and_commas_in_parentheses():
    names = proposal._split("full, longformer(window=8, globals=1),conv")
    assert names[1] == "longformer(window=8, globals=1)"
    with pytest.raises(InputError):
        proposal._split("full")


@pytest.mark.parametrize("as_table", [True, False])
def test_a_language_gets_the_model_of_one(tmp_path, as_table):
    """Plain text has no kind of labels, and a table of texts has."""
    lines = [
        f"the cat {i % 7} sat on the mat {i % 5} and looked at dog {i % 11}" for i in range(400)
    ]
    file = tmp_path / "book.txt"
    file.write_text("\n".join(lines))
    if as_table:
        file = tmp_path / "book.jsonl"
        rows = [json.dumps({"text": line}) for line in lines]
        file.write_text("\n".join(rows))
    config, _ = proposed(str(file), {})
    assert config.model.model_dim == LANGUAGE["model.model_dim"]
    assert config.retrain.optimizer.learning_rate == 0.005
