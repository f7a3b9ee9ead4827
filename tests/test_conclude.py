"""The conclusion of a run: whether anything has learned, which model to take, and what to try."""

import dataclasses
import math
import shutil

import numpy as np
import pytest

import dartformer
from dartformer import config as configs
from dartformer import tasks
from dartformer.cli.main import main, overrides
from dartformer.machine.workdir import read_json
from dartformer.results import (
    Conclusion,
    GenotypeRecord,
    ModelScores,
    TestScores,
    ValidScores,
)
from dartformer.stages import conclude
from dartformer.stages.conclude import BELOW, NOTHING, SHORT, TRAINED, Courses, Rival, Run
from dartformer.training import metric
from dartformer.training.metric import ACCURACY, BITS_PER_CHARACTER, R2


def model(attention, scores, flops=100.0, parameters=50, test=None, measure=ACCURACY):
    test = scores if test is None else test
    spread = float(np.std(test, ddof=1)) if len(test) > 1 else math.nan
    return ModelScores(
        TestScores(measure.name, float(np.mean(test)), spread, tuple(test), 1.0, 2000),
        ValidScores(measure.name, float(np.mean(scores)), tuple(scores)),
        parameters,
        flops,
        400,
        GenotypeRecord(1, ((attention,),)),
    )


LEARNED = Courses(epochs=12.0, fall=0.8, late_fall=0.1, best_is_last=False)
CUT_SHORT = Courses(epochs=1.07, fall=0.6, late_fall=0.2, best_is_last=True)


def run(
    models,
    rival=None,
    courses=LEARNED,
    measure=ACCURACY,
    steps=400,
    examples=2000,
    trivial=None,
    generated=False,
):
    if rival is not None and rival.name in conclude.TRIVIAL:
        trivial = rival
    return Run(
        metric=measure,
        best=conclude._best_on_test(models, measure),
        choice=conclude.choose(models, measure, examples),
        rival=rival,
        trivial=trivial,
        courses=courses,
        steps=steps,
        learning_rate=3e-3,
        dropout=0.1,
        model_dim=64,
        generated=generated,
    ).conclusion()


FULL = model("full", [0.441, 0.436, 0.446], flops=1000.0)
LINEAR = model("linear", [0.440, 0.437, 0.445], flops=970.0)
WORSE = model("uniform", [0.30, 0.31, 0.32], flops=500.0)


def test_the_cheapest_of_those_that_tie_is_taken():
    found = run({"found": FULL, "homogeneous.linear": LINEAR, "homogeneous.uniform": WORSE})
    assert (found.state, found.take) == (TRAINED, "homogeneous.linear")
    assert found.ties == ("found", "homogeneous.linear")
    assert found.headline == (
        "Use linear everywhere: it ties with the best on valid, 44.1% against 44.1% with noise "
        "1.0, at 3% fewer FLOPs."
    )
    assert found.flag is None
    assert found.details == ('`dartformer export --entrant="linear"` exports it.',)


def test_the_one_to_take_can_be_exported(whole_run, tmp_path, capsys):
    workdir, results = whole_run
    path = tmp_path / "run"
    shutil.copytree(workdir, path, symlinks=True)
    config = workdir.parent / "space.py"
    arguments = ["export", f"--config={config}", f"--workdir={path}"]
    assert main([*arguments, "--entrant=random"]) == 0
    exported = read_json(path / "export/genotype.json")
    assert exported == results["baselines"]["random"]["genotype"]
    card = (path / "export/README.md").read_text()
    score = ACCURACY.text(results["baselines"]["random"]["test"]["accuracy"])
    assert f"| **this genotype** | {score} |" in card
    assert main([*arguments, "--entrant=nobody"]) == 2
    assert "unknown finalist 'nobody'" in capsys.readouterr().err


def test_equal_flops_are_told_apart_by_parameters():
    smaller = model("linear", [0.440, 0.437, 0.445], flops=1000.0, parameters=40)
    found = run({"found": FULL, "small": smaller})
    assert found.take == "small"
    assert "at 20% fewer parameters" in found.headline


@pytest.mark.parametrize(
    "rival",
    [
        # Nearly the same cost: nothing is saved.
        model("linear", [0.440, 0.437, 0.445], flops=999.0),
        # Three seeds that disagree have noise of 25 points, and the mean is 5 points lower.
        model("linear", [0.29, 0.49, 0.39], flops=500.0),
        WORSE,
    ],
)
def test_the_best_is_taken_where_nothing_cheaper_is_as_good(rival):
    found = run({"found": FULL, "other": rival})
    assert found.take == "found"
    assert found.headline.startswith("Use full everywhere (44.1% on test): the best on valid, and")


def test_below_a_rule_no_winner_is_named():
    models = {"found": model("full", [0.635, 0.63, 0.64])}
    found = run(models, Rival("naive_bayes", 0.779), CUT_SHORT)
    assert found.state == BELOW
    assert found.take is None
    assert found.headline == ("Naive Bayes (77.9%) is better than every model here (63.5%).")
    assert found.details == (
        "Why: the training loss still falls after 1.1 epochs; try --config.retrain.steps=4000.",
    )
    assert "Use" not in " ".join(found.sentences)


def test_a_rule_within_the_noise_is_named_beside_the_winner():
    found = run({"found": FULL}, Rival("naive_bayes", 0.445))
    assert found.state == TRAINED
    assert found.details == ("A simple rule does as well: naive Bayes (44.5%).",)
    assert found.flag is None


def test_a_rule_that_is_ahead_within_the_noise_is_in_the_headline():
    found = run({"found": FULL}, Rival("naive_bayes", 0.441 + 0.02))
    assert found.state == TRAINED
    assert found.take == "found"
    assert found.headline.endswith("Naive Bayes scores higher (46.1%), within the noise.")
    assert found.flag is not None
    assert found.details[-1].startswith("To come closer to the rule: ")
    assert found.flag in found.details[-1]


@pytest.mark.parametrize(
    ("courses", "flag"),
    [
        (CUT_SHORT, "--config.retrain.steps=4000"),
        (Courses(0.57, 0.0, 0.0, True), "--config.retrain.steps=4000"),
        (Courses(20.0, 0.001, 0.0, False), "--config.retrain.optimizer.learning_rate=0.001"),
        (Courses(20.0, 0.9, 0.3, False), "--config.model.dropout=0.3"),
        (Courses(20.0, 0.1, 0.0, False), "--config.model.model_dim=128"),
        (None, "--config.retrain.steps=4000"),
    ],
)
def test_nothing_has_learned(courses, flag):
    chance = model("full", [0.51, 0.50, 0.49])
    found = run({"found": chance}, Rival("majority", 0.51), courses)
    assert (found.state, found.take, found.flag) == (NOTHING, None, flag)
    assert found.headline.startswith("Nothing has learned: the best model scores 50.0% on test, ")
    assert flag in " ".join(found.details)
    # The flag is one that the command line takes.
    config = dartformer.defaults("listops")
    configs.override(config, overrides([flag]))
    configs.build(config)


@pytest.mark.parametrize(
    ("section", "title"),
    [
        ({"name": "files", "path": "/data/mine/reviews.csv"}, "reviews.csv"),
        ({"name": "series", "path": "waves.npz"}, "waves.npz"),
        ({"name": "files", "path": "tfds:imdb_reviews/plain_text"}, "tfds:imdb_reviews/plain_text"),
        ({"name": "language", "path": "book.txt"}, "language: book.txt"),
        ({"name": "language", "path": ""}, "language"),
        ({"name": "listops"}, "listops"),
    ],
)
def test_a_task_is_called_after_your_file(section, title):
    assert configs.task_title(section) == title


def test_a_mean_that_explains_nothing_is_not_beaten():
    flat = model("full", [0.001, 0.002, -0.001], measure=R2)
    found = run({"found": flat}, Rival("mean", 0.0), measure=R2)
    assert found.state == NOTHING
    good = model("full", [0.5, 0.51, 0.52], measure=R2)
    assert run({"found": good}, Rival("mean", 0.0), measure=R2).state == TRAINED


def test_nothing_has_learned_even_where_a_better_rule_has():
    chance = {"found": model("full", [0.051, 0.05, 0.049])}
    found = run(chance, Rival("naive_bayes", 0.78), trivial=Rival("majority", 0.05))
    assert found.state == NOTHING
    assert found.details[1] == "It can be learned: the rule naive Bayes scores 78.0%."


def test_an_undefined_score_is_no_verdict():
    """Such as the share of variance explained of a test part whose numbers are all the same."""
    undefined = model("full", [0.5, 0.5, 0.5], test=[math.nan] * 3, measure=R2)
    found = run({"found": undefined}, Rival("mean", math.nan), measure=R2)
    assert found.state == TRAINED
    assert len(found.details) == 0


def test_fewer_bits_are_better():
    few = model("full", [1.5, 1.51, 1.52], measure=BITS_PER_CHARACTER)
    rival = Rival("bigram", 3.6)
    assert run({"found": few}, rival, measure=BITS_PER_CHARACTER).state == TRAINED
    many = model("full", [3.9, 3.91, 3.92], measure=BITS_PER_CHARACTER)
    assert run({"found": many}, rival, measure=BITS_PER_CHARACTER).state == BELOW


def test_a_loss_that_still_falls_is_the_headline_of_few_epochs_and_a_remark_of_many():
    found = run({"found": FULL}, courses=CUT_SHORT)
    assert found.state == SHORT
    assert found.headline == (
        "Under-trained: the training loss still falls after 1.1 epochs; try "
        "--config.retrain.steps=4000."
    )
    assert found.details[0].startswith("Use full everywhere (44.1% on test)")
    found = run({"found": FULL}, courses=CUT_SHORT._replace(epochs=12.0))
    assert found.state == TRAINED
    assert found.details == (
        "More steps are likely to score higher: the training loss still falls after 12.0 epochs; "
        "try --config.retrain.steps=800.",
    )
    perfect = model("full", [0.999, 0.998, 0.999])
    assert run({"found": perfect}, courses=CUT_SHORT).state == TRAINED


@pytest.mark.parametrize("epochs", [0.01, 0.48, 1.07, 4.9, 12.0])
def test_passes_over_generated_examples_are_no_verdict(epochs):
    """They are fresh however few passes there are: a loss that still falls is a remark."""
    courses = CUT_SHORT._replace(epochs=epochs)
    found = run({"found": FULL}, courses=courses, generated=True)
    assert found.state == TRAINED
    assert found.headline.startswith("Use full everywhere (44.1% on test)")
    assert found.details == (
        "More steps are likely to score higher: the training loss still falls after 400 steps; "
        "try --config.retrain.steps=800.",
    )
    assert found.flag == "--config.retrain.steps=800"
    assert run({"found": FULL}, generated=True).flag is None
    nothing = run({"found": FULL}, Rival("majority", 0.44), courses, generated=True)
    assert nothing.state == NOTHING
    assert "epochs" not in " ".join(nothing.sentences)


def test_what_is_generated_says_so():
    """An option says how many examples to draw, and no file is read."""
    for name in tasks.BUILT_IN:
        task = tasks.find(name)
        options = {field.name for field in dataclasses.fields(task)}
        drawn = "train" in options and "path" not in options
        assert task.traits.generated == drawn, name


def lines(losses, scores=()):
    """A log with a line for each loss and one for each score on valid."""
    logged = []
    for i, loss in enumerate(losses, 1):
        logged.append({"step": 20 * i, "loss": loss})
    for i, score in enumerate(scores, 1):
        step = 20 * len(losses) * i // len(scores)
        logged.append({"step": step, "valid_accuracy": score, "valid_loss": 1.0})
    return logged


def test_the_course_of_a_training():
    falling = conclude.course(lines(np.linspace(2, 1, 20), (0.3, 0.4, 0.5)), ACCURACY)
    assert falling.steps == 400
    assert falling.best_is_last
    assert falling.late_fall > 0.2
    settled = conclude.course(lines([2.0] * 4 + [1.0] * 16, (0.5, 0.6, 0.55)), ACCURACY)
    assert not settled.best_is_last
    assert settled.late_fall == 0
    assert settled.fall == pytest.approx(0.5)
    assert conclude.course([], ACCURACY) is None
    assert conclude.course(lines([1.0]), ACCURACY).late_fall == 0


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_no_fall(seed):
    """Of a loss that has settled and is noisy, in any order."""
    rng = np.random.default_rng(seed)
    losses = 1 + 0.1 * rng.standard_normal(50)
    late = conclude.course(lines(losses), ACCURACY).late_fall
    # Two standard errors: one in twenty at most, and never by much.
    assert late < 0.1
    rising = np.sort(losses)
    assert conclude.course(lines(rising), ACCURACY).late_fall == 0


@pytest.mark.parametrize("seed", range(30))
def test_what_is_taken_ties_with_the_best_and_costs_no_more(seed):
    rng = np.random.default_rng(seed)
    measure = (ACCURACY, R2, BITS_PER_CHARACTER)[seed % 3]
    models = {}
    for i in range(rng.integers(1, 6)):
        scores = (rng.uniform(0.3, 0.6) + 0.02 * rng.standard_normal(3)).tolist()
        flops = float(rng.integers(1, 4) * 100)
        models[f"m{i}"] = model(f"a{i}", scores, flops, int(rng.integers(10, 30)), measure=measure)
    rival = Rival("naive_bayes", float(rng.uniform(0.2, 0.7)))
    found = run(models, rival, measure=measure)
    if found.take is None:
        assert found.state == BELOW
        return
    best = max(models, key=lambda name: measure.objective({measure.name: models[name].valid.mean}))
    assert found.take in found.ties
    assert models[found.take].flops <= models[best].flops
    assert Conclusion.from_dict(found.to_dict()) == found


def test_the_run_says_the_same_everywhere(whole_run):
    workdir, results = whole_run
    headline = results["conclusion"]["headline"]
    assert headline in (workdir / "export/README.md").read_text().replace("\\", "")
    page = (workdir / "report.html").read_text()
    assert headline.split(";")[0].split(":")[0] in page
    # The examples of ListOps are as many as an option says.
    assert "epochs)" not in page
    assert results["conclusion"]["epochs"] == pytest.approx(10 * 16 / 300)
    assert metric.find(results["metric"]) == ACCURACY
