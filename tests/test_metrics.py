"""The metric that decides, the weights of classes, and what is kept of the answers on test."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dartformer
from dartformer import config as configs
from dartformer import statistics
from dartformer.api import run_all
from dartformer.data.answers import Answers, Labels, labels_of
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError
from dartformer.report import classes, markup
from dartformer.results import AnswersRecord, ClassScores, Mistake
from dartformer.stages import evaluate as evaluation
from dartformer.stages import scores
from dartformer.stages.study import Study
from dartformer.training import metric as metrics
from dartformer.training import scoring
from dartformer.training.evaluate import Evaluator

CLASSES = [metric.name for metric in metrics.OF_CLASSES if metric.name != "entity_f1"]
NUMBERS = [metric.name for metric in metrics.OF_NUMBERS]


def editable(tmp_path, kind: str = "classification", **fields):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        word = ("yes", "no", "no", "no")[i % 4]
        words = [word, *rng.choice(["the", "film", "was", "long"], size=5)]
        label = {"classification": word, "regression": 10 * (word == "yes") + rng.random()}[kind]
        rows.append(json.dumps({"text": " ".join(words), "label": label}))
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    config = dartformer.defaults("files")
    config.task.path = str(tmp_path / "data.jsonl")
    config.task.kind, config.task.tokens, config.task.length = kind, "words", 8
    if kind == "classification":
        config.task.label_names = ("no", "yes")
    config.data.dir = str(tmp_path / "prepared")
    config.data.batch_size = 16
    model = config.model
    model.layers, model.heads, model.head_dim, model.model_dim, model.mlp_dim = 1, 2, 4, 8, 8
    config.space.candidates = ("full", "uniform")
    config.search.steps, config.retrain.steps, config.retrain.seeds = 4, 9, (0,)
    config.search.observe = False
    config.baselines.random = False
    config.update(fields)
    return config


def refused(config) -> str:
    with pytest.raises(InputError) as error:
        configs.build(config)
    return str(error.value)


@pytest.mark.parametrize("name", CLASSES)
def test_an_evaluator_scores_by_the_metric_that_decides(tmp_path, name: str) -> None:
    study = Study(editable(tmp_path, metric=name))
    assert study.metric.name == name
    genotype = study.space.homogeneous()[0]
    program = study.program(genotype)
    weights = program.network.init(jax.random.key(0))
    evaluation = program.evaluator.evaluate(weights, study.parts["valid"])
    assert evaluation.answers is not None
    expected = scoring.scores(evaluation.answers)[name]
    assert evaluation.scores[name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_scored_in_the_units_of_the_labels(tmp_path, name: str) -> None:
    study = Study(editable(tmp_path, "regression", metric=name))
    part = study.parts["valid"]
    program = study.program(study.space.homogeneous()[0])
    weights = program.network.init(jax.random.key(0))
    evaluation = program.evaluator.evaluate(weights, part)
    answers = evaluation.answers
    value = study.fitted.value
    outputs = np.array([value(float(output)) for output in answers.outputs])
    labels = np.array([value(float(label)) for label in answers.labels.values])
    in_units = Answers(outputs, answers.labels._replace(values=labels))
    expected = scoring.scores(in_units)[name]
    if name != "loss":  # the loss is that of training, on labels of variance 1
        assert evaluation.scores[name] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"metric": "r2"}, "metric='r2' does not work with the task"),
        ({"metric": "entity_f1"}, "classes are not those of spans"),
        ({"metric": "bits_per_character"}, "does not work"),
    ],
)
def test_a_metric_of_other_labels_is_refused(tmp_path, fields: dict, message: str) -> None:
    assert message in refused(editable(tmp_path, **fields))


@pytest.mark.parametrize(
    ("kind", "metric", "rule", "score"),
    [
        ("classification", "macro_f1", "majority", None),
        ("classification", "balanced_accuracy", "majority", 0.5),
        ("classification", "auc", "majority", 0.5),
        ("classification", "mcc", "majority", 0.0),
        ("regression", "rmse", "mean", None),
        ("regression", "mae", "mean", None),
    ],
)
def test_one_answer_for_all_is_a_rule_under_every_metric(
    tmp_path, kind: str, metric: str, rule: str, score: float | None
) -> None:
    study = Study(editable(tmp_path, kind, metric=metric))
    rules = evaluation.rule_scores(study)
    assert list(rules) == [rule]
    train, test = labels_of(study.parts["train"]).values, labels_of(study.parts["test"]).values
    if metric == "rmse":
        score = study.metric.scale * np.sqrt(np.mean((test - train.mean()) ** 2))
    elif metric == "mae":
        score = study.metric.scale * np.abs(test - train.mean()).mean()
    elif metric == "macro_f1":
        share = np.mean(test == np.bincount(train).argmax())
        score = share / (1 + share)
    assert rules[rule] == pytest.approx(score, rel=1e-4)


def test_class_weights_need_classes(tmp_path) -> None:
    config = editable(tmp_path, "regression")
    config.data.class_weights = "balanced"
    assert "its labels are no classes" in refused(config)
    config.data.class_weights = "balance"
    assert "data.class_weights must be 'balanced'" in refused(config)


def test_balanced_classes_weigh_alike_in_training_and_once_in_evaluation(tmp_path) -> None:
    config = editable(tmp_path)
    plain = Study(config)
    config.data.class_weights = "balanced"
    study = Study(config)
    weights = np.array(study.metric.class_weights)
    values = labels_of(study.parts["train"]).values
    counts = np.bincount(values)
    np.testing.assert_allclose(weights * counts, (weights * counts)[0])
    assert (weights * counts).sum() == pytest.approx(len(values))
    logits = jnp.array(np.random.default_rng(0).normal(size=(40, 2)), jnp.float32)
    labels = jnp.array([0] * 30 + [1] * 10)
    loss = float(study.metric.mean(logits, labels))
    per_label = np.asarray(study.metric.losses(logits, labels).loss)
    expected = np.average(per_label, weights=weights[np.asarray(labels)])
    assert loss == pytest.approx(expected, rel=1e-5)
    # Another training, and the same evaluation.
    assert study.trainings_identity != plain.trainings_identity
    assert study.metric.losses(logits, labels).loss.sum() == pytest.approx(per_label.sum())


def test_a_config_without_the_fields_keeps_its_identity(tmp_path) -> None:
    config = editable(tmp_path)
    before = Study(config).trainings_identity
    config.metric = "mcc"
    assert Study(config).trainings_identity["task"] != before["task"]


def answers_of(right: np.ndarray, labels: np.ndarray) -> Answers:
    outputs = np.eye(2)[np.where(right, labels, 1 - labels)]
    return Answers(outputs, Labels(labels, np.arange(len(labels)), len(labels)))


@pytest.mark.parametrize("name", ["macro_f1", "balanced_accuracy", "mcc", "auc"])
def test_ties_are_within_the_noise_of_the_examples(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.3).astype(int)
    metric = metrics.find(name)
    right = rng.random(400) < 0.8
    alike, worse = right.copy(), right & (rng.random(400) < 0.7)
    alike[rng.integers(400, size=4)] ^= True
    ours, near, far = (
        scores.resampled(metric, answers_of(answered, labels)) for answered in (right, alike, worse)
    )
    gaps = {}
    for rival, answered in (("near", alike), ("far", worse)):
        theirs = metric.of_answers(answers_of(answered, labels))
        gaps[rival] = abs(metric.of_answers(answers_of(right, labels)) - theirs)
    assert gaps["near"] <= statistics.paired_resamples(ours, near)
    assert gaps["far"] > statistics.paired_resamples(ours, far)


def test_resamples_of_a_mean_are_as_noisy_as_its_examples() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=500), rng.normal(size=500)

    def mean_of(values: np.ndarray):
        return lambda weights: float(np.average(values, weights=weights))

    noise = statistics.paired_resamples(
        statistics.resampled(mean_of(ours), 500), statistics.resampled(mean_of(theirs), 500)
    )
    assert noise == pytest.approx(statistics.paired(ours, theirs)[1], rel=0.2)


def test_a_run_is_decided_by_the_metric(tmp_path) -> None:
    """The race, the verdict and the results, with the answers on test beside them."""
    config = editable(tmp_path, metric="balanced_accuracy")
    run_all(config, tmp_path / "run")
    written = json.loads((tmp_path / "run/results.json").read_text())
    assert written["metric"] == written["race"]["metric"] == "balanced_accuracy"
    assert written["test"]["balanced_accuracy"] == pytest.approx(
        written["test"]["scores"]["balanced_accuracy"]
    )
    rule = written["baselines"]["logistic_regression"]["test"]
    assert rule["balanced_accuracy"] == rule["scores"]["balanced_accuracy"] == 1
    # A rule that is scored by accuracy alone is none of this metric.
    assert "naive_bayes" not in written["baselines"]
    looks = json.loads((tmp_path / "run/race.json").read_text())["looks"]
    for kept in looks.values():
        assert all(len(look["examples"]) == statistics.RESAMPLES for look in kept)
    table = np.array(written["answers"]["confusion"])
    assert table.sum() == written["test"]["examples"]
    assert [row["name"] for row in written["answers"]["classes"]] == ["no", "yes"]
    wrong = table.sum() - np.trace(table)
    assert len(written["answers"]["mistakes"]) == min(wrong, 10)
    page = (tmp_path / "run/report.html").read_text()
    assert "balanced accuracy" in page
    for section in ("answers", "classes", "confusion"):
        assert f'id="{section}"' in page


def test_mistakes_are_escaped_and_cut() -> None:
    mistake = Mistake("<script>alert(1)</script>", "<b>", "b", 0.9)
    record = AnswersRecord(0, (mistake,), (ClassScores("<b>", 1, 1, 1, 1, 1),), None, ())
    page = markup.fill(
        "classes.html",
        all_scores=None,
        rule_words=[],
        answers=record,
        figures={},
        share=classes.share,
    )
    assert "<script>" not in page
    assert "<b>" not in page
    assert "90.0%" in page


def test_a_confusion_matrix_leaves_out_classes_that_do_not_occur() -> None:
    rows = [ClassScores(name, 1, 1, 1, 1, 1) for name in ("a", "c")]
    table = np.array([[2, 0, 1], [0, 0, 0], [0, 0, 3]])
    chart = classes.confusion(AnswersRecord(0, (), tuple(rows), table, ()))
    assert [row[:3] for row in chart.rows] == [
        ("a", "a", 2),
        ("a", "c", 1),
        ("c", "a", 0),
        ("c", "c", 3),
    ]


def test_answers_are_in_the_order_of_the_split_whatever_the_buckets(tmp_path) -> None:
    study = Study(editable(tmp_path))
    genotype = study.space.homogeneous()[0]
    network = study.program(genotype).network
    weights = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, size=37)
    split = ArraySplit(rng.integers(1, 5, size=(37, 8)), lengths, np.arange(37) % 2)
    kept = []
    for batch_size, buckets in ((5, 1), (7, 3), (64, 2)):
        evaluator = Evaluator(network, batch_size, study.metric, buckets, answers=True)
        answers = evaluator.evaluate(weights, split).answers
        np.testing.assert_array_equal(answers.labels.values, np.arange(37) % 2)
        np.testing.assert_array_equal(answers.labels.rows, np.arange(37))
        kept.append(answers.outputs)
    np.testing.assert_allclose(kept[1], kept[0], atol=1e-5)
    np.testing.assert_allclose(kept[2], kept[0], atol=1e-5)
