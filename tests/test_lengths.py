"""A trained model at other lengths: its own length scores as `evaluate` does, a window stays as
good, and what cannot be longer says so."""

import dataclasses

import pytest

import dartformer as df
from dartformer.errors import InputError
from dartformer.stages.lengths import evaluate_at_lengths
from dartformer.stages.study import Study
from dartformer.tasks import names

TINY = {
    "task.length": 40,
    "task.keys": 12,
    "task.train": 2000,
    "task.valid": 40,
    "task.test": 60,
    "model.layers": 1,
    "model.heads": 1,
    "model.head_dim": 8,
    "model.model_dim": 16,
    "model.mlp_dim": 16,
    "model.positions": "none",
    "space.candidates": ("conv(width=2)", "identity"),
    "space.granularity": "model",
    "retrain.seeds": (0,),
    "retrain.steps": 150,
    "retrain.optimizer.learning_rate": 0.02,
    "log.eval_every": 150,
    "log.checkpoint_every": 150,
}


@pytest.fixture(scope="module")
def study():
    config = df.defaults("memorization")
    df.config.override(config, TINY)
    return Study(config)


@pytest.fixture(scope="module")
def model(study, tmp_path_factory):
    genotype = df.Genotype.homogeneous(df.parse("conv(width=2)"), 1, 1)
    return df.retrain(genotype, study.config, tmp_path_factory.mktemp("lengths"))


def test_a_short_memory_is_as_good_at_every_length(study, model):
    """The key is one token back, wherever that is."""
    scores = evaluate_at_lengths(model, (40, 80, 320))
    assert scores[40]["accuracy"] > 0.9
    for score in scores.values():
        assert score["accuracy"] == pytest.approx(scores[40]["accuracy"], abs=0.03)
    evaluator = study.program(model.genotype).evaluator
    assert scores[40] == evaluator(model.weights, study.parts["test"])


def test_what_has_no_other_length_says_so(model):
    """Positions that were learned, parameters of a length, tokens and tasks that depend on it."""
    learned = dataclasses.replace(model.shape, positions="learned")
    fixed = df.Genotype.homogeneous(df.parse("synthesizer"), 1, 1)
    for changes, message in (
        ({"shape": learned}, "model.positions='learned' does not work at other lengths"),
        ({"genotype": fixed}, "synthesizer.* does not work at other lengths"),
        ({"task": df.tasks.make("planted", {"length": 40})}, "other tokens or labels at length 80"),
        ({"task": df.tasks.make("listops", {})}, "has no option length"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_at_lengths(dataclasses.replace(model, **changes), (80,))
    with pytest.raises(InputError, match="must be even, got 81"):
        evaluate_at_lengths(model, (81,))


@pytest.mark.parametrize(
    "name", [name for name in names() if hasattr(df.tasks.find(name), "symbols")]
)
def test_every_probe_has_the_same_tokens_at_eight_times_the_length(name):
    if name == "planted":
        return  # recall's keys grow with its length
    task = df.tasks.make(name, {})
    longer = dataclasses.replace(task, length=8 * task.length, test=3, train=1, valid=1)
    assert (longer.symbols, longer.labels) == (task.symbols, task.labels)
    assert longer.load()["test"].take([0])["tokens"].shape == (1, 8 * task.length)
