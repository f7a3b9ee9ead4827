"""Several seeds of one search: in one program or one after the other, what each seed finds is the
same."""

import json

import numpy as np
import pytest

import dartformer
from dartformer import config as configs
from dartformer.attention import parse
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.derive import derive, disagreements
from dartformer.stages.layout import Workdir
from dartformer.stages.search import groups, read, read_states, search, short
from dartformer.stages.study import Study


@pytest.fixture
def seeded(tiny):
    configs.override(
        tiny, {"search.seeds": 2, "space.candidates": ("full", "uniform"), "model.layers": 1}
    )
    return tiny


def test_seeds_in_one_program_are_the_seeds_alone(seeded, tmp_path, monkeypatch):
    study = Study(seeded)
    with Workdir(tmp_path / "together", seeded) as workdir:
        assert [g.seeds for g in groups(study)] == [(0, 1)]
        together = search(study, workdir)
        derived = derive(together, workdir)
        derived_again = derive(read(study, workdir), workdir)
        states = read_states(study, workdir)
    monkeypatch.setattr(type(study.strategy), "vectorises", property(lambda self: False))
    with Workdir(tmp_path / "alone", seeded) as workdir:
        assert [g.seeds for g in groups(study)] == [(0,), (1,)]
        alone = search(study, workdir)
    for one, other in zip(together.seeds, alone.seeds, strict=True):
        assert one.seed == other.seed
        np.testing.assert_allclose(one.mixture, other.mixture, atol=1e-4)
        for a, b in zip(one.history, other.history, strict=True):
            assert a["step"] == b["step"]
            if "mixture" in a:
                np.testing.assert_allclose(a["mixture"], b["mixture"], atol=1e-4)
    assert not np.array_equal(alone.seeds[0].mixture, alone.seeds[1].mixture)
    losses = [[line["loss"] for line in s.history if "loss" in line] for s in alone.seeds]
    np.testing.assert_allclose(
        [line["loss"] for line in together.history if "loss" in line], np.mean(losses, 0), rtol=1e-4
    )

    assert derived == derived_again
    seeds = derived.details["seeds"]
    assert seeds["seeds"] == [0, 1]
    assert seeds["agreement"] in (0.5, 1.0)
    assert (seeds["agreement"] == 1) == (
        not any("the seeds chose" in line for line in derived.ties)
    )
    assert seeds["verdict"].startswith(
        f"{round(2 * seeds['agreement'])} of 2 seeds of the search found this genotype"
    )
    valid = seeds["valid_accuracy"]
    assert valid["mean"] == pytest.approx(np.mean(valid["per_seed"]))
    assert valid["spread"] == pytest.approx(np.std(valid["per_seed"], ddof=1))
    results = json.loads((tmp_path / "together/results.json").read_text())
    assert results["derive"]["second_opinion"]["rule"] == "argmax"
    assert Genotype.from_dict(results["genotype"]) == derived.genotype
    for state, seed in zip(states, together.seeds, strict=True):
        np.testing.assert_array_equal(state.alphas, seed.alphas)


def test_disagreements_are_counted_place_by_place():
    full, uniform = parse("full"), parse("uniform")
    space = SearchSpace((full, uniform), 2, 2, "layer")
    a = Genotype(((full, full), (full, full)))
    b = Genotype(((full, full), (uniform, uniform)))
    spread = Genotype(((full, uniform), (full, uniform)))
    assert disagreements(space, [a, a]) == []
    assert disagreements(space, [a, b, a]) == ["layer 1: the seeds chose full (2), uniform (1)"]
    assert disagreements(space, [a, spread]) == [
        "layer 0, head 1: the seeds chose full (1), uniform (1)",
        "layer 1, head 1: the seeds chose full (1), uniform (1)",
    ]


def test_derive_without_the_checkpoint_says_what_is_missing(seeded, tmp_path):
    with (
        Workdir(tmp_path, seeded) as workdir,
        pytest.raises(InputError, match="the last checkpoint of the search is gone"),
    ):
        read_states(Study(seeded), workdir)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search.seeds": 0}, "search.seeds must be at least 1, got 0"),
        (
            {"derive.rule": "evolution"},
            "derive.rule='evolution' does not work with the strategy 'darts'",
        ),
        ({"derive.second_opinion": "race"}, "derive.second_opinion='race' does not work with"),
        (
            {"derive.rule": "top_k", "search.projections": "separate"},
            "Use search.projections='shared'",
        ),
        ({"derive.rule": "top_k(k=9)"}, "k=9, but the space has 3 candidates"),
        ({"derive.rule": "armgax"}, "Did you mean 'argmax'"),
    ],
)
def test_what_cannot_be_derived_is_refused_before_the_search(values, message, tiny):
    configs.override(tiny, values)
    with pytest.raises(InputError, match=message):
        configs.build(tiny)


def test_defaults_follow_the_strategy():
    for name in dartformer.strategies.STRATEGIES:
        config = dartformer.defaults("listops", name)
        assert (
            config.derive.rule.split("(")[0]
            in dartformer.strategies.make(name, {}).traits.derivations[:2]
        )
        again = dartformer.defaults("listops")
        configs.override(again, {"search.strategy.name": name})
        assert again.to_dict() == config.to_dict()
        configs.build(config)


def test_a_section_of_switches_is_set_as_one(tiny):
    configs.override(tiny, {"baselines": "false", "baselines.random": True})
    assert tiny.baselines.to_dict() == {"homogeneous": False, "random": True, "uniform": False}
    configs.override(tiny, {"baselines": True})
    assert all(tiny.baselines.values())
    with pytest.raises(InputError, match="'baselines' takes true or false"):
        configs.override(tiny, {"baselines": "none"})
    with pytest.raises(InputError, match="'search' is a section"):
        configs.override(tiny, {"search": True})


@pytest.mark.parametrize(
    ("granularity", "steps", "warns"),
    [
        ("layer", 299, True),
        ("layer", 300, False),
        ("head", 10, True),
        ("head", 900, False),
        ("model", 10, False),
    ],
)
def test_a_search_for_a_mix_that_is_shorter_than_a_training_says_so(granularity, steps, warns):
    config = dartformer.defaults("planted")
    config.space.granularity = granularity
    config.search.steps = steps
    config.retrain.steps = 300
    warning = short(configs.build(config))
    assert (warning is not None) == warns
    if warning:
        assert f"search.steps={steps} is less than retrain.steps=300" in warning
