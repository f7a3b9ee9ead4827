"""Every strategy through the stages, with the derivation it brings: a search of a few steps, then a
genotype."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dartformer import config as configs
from dartformer.attention import parse
from dartformer.cli.new import starting_config
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.models.supernet import supernet
from dartformer.space.search_space import SearchSpace
from dartformer.stages.derive import derive
from dartformer.stages.layout import Workdir
from dartformer.stages.narrow import Narrowing
from dartformer.stages.search import groups, initial, search, step_of, stream
from dartformer.stages.study import Study
from dartformer.strategies import STRATEGIES, Problem, make
from dartformer.strategies.extras.drop import Drop

FEW = {
    "model.layers": 1,
    "space.candidates": ("full", "uniform"),
    "search.steps": 4,
    "retrain.steps": 2,
    "retrain.seeds": (0,),
    "log.every": 2,
    "log.eval_every": 4,
    "log.checkpoint_every": 4,
    "search.observe": False,
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_search_and_derive(name, tiny, tmp_path):
    configs.override(tiny, {"search.strategy.name": name, **FEW})
    study = Study(tiny)
    with Workdir(tmp_path, tiny) as workdir:
        found = search(study, workdir)
        if not study.strategy.traits.supernet:
            with pytest.raises(InputError, match="Run `dartformer race`"):
                derive(found, workdir)
            return
        genotype = derive(found, workdir).genotype
        assert len(genotype.layers) == 1
        (group,) = groups(study)
        halves = len(next(stream(study, group)))
        assert halves == (2 if study.strategy.traits.halves else 1)
    assert np.isfinite(found.alphas).all()
    assert found.history[-1]["step"] == 4
    if study.strategy.traits.alphas:
        assert np.ptp(found.alphas) > 0
    else:
        np.testing.assert_array_equal(found.mixture, 0.5)


def test_batches_advance_and_the_halves_do_not_meet(tiny):
    """A loader that is made anew at every step gives the first batch for ever (tinyml-tensorlab#15,
    PC-DARTS)."""
    configs.override(tiny, FEW)
    study = Study(tiny)
    pairs = stream(study, groups(study)[0])
    seen = [next(pairs) for _ in range(5)]
    for part in range(2):
        texts = [batch[part]["tokens"].tobytes() for batch in seen]
        assert len(set(texts)) == len(texts)
    rows = [{row.tobytes() for batch in seen for row in batch[part]["tokens"]} for part in range(2)]
    assert not rows[0] & rows[1]


def test_a_strategy_brings_its_options_and_what_follows_it(tiny):
    configs.override(tiny, {"search.strategy.name": "masked"})
    assert tiny.search.strategy.to_dict() == {"name": "masked"}
    assert (tiny.search.projections, tiny.derive.rule) == ("separate", "masked")
    configs.override(
        tiny,
        {
            "search.strategy.temperature": "5,0.5",
            "search.strategy.name": "gumbel",
            "derive.rule": "sample",
        },
    )
    assert tiny.search.strategy.temperature == (5.0, 0.5)
    assert (tiny.search.projections, tiny.derive.rule) == ("shared", "sample")
    configs.build(tiny)
    again = configs.from_dict(configs.to_dict(tiny))
    assert configs.editable(again).to_dict() == tiny.to_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search.strategy.name": "dart"}, "Did you mean 'darts'"),
        ({"search.strategy.name": "spos", "derive.rule": "argmax"}, "learns no alphas"),
        ({"search.strategy.name": "race", "derive.rule": "masked_drop"}, "trains no supernet"),
        (
            {"search.strategy.name": "race", "search.seeds": 2},
            "search.seeds=2 does not work with the strategy 'race'",
        ),
        ({"search.strategy.name": "spos", "search.strategy.warmup": 0.1}, "unknown config field"),
        (
            {"search.strategy.hypergradient": "frist"},
            "unknown hypergradient 'frist'. Did you mean 'first'",
        ),
        ({"search.strategy.hypergradient": "second(2)"}, "takes 0 options"),
        (
            {"search.strategy.name": "spos", "search.alphas.learning_rate": 0.5},
            "search.alphas has no effect",
        ),
        ({"search.strategy.extras": "smoothing,smoothing"}, "holds smoothing twice"),
        ({"search.strategy.extras": "drop(keep=3)"}, "keep=3 of 3 candidates drops none"),
        (
            {"search.strategy.name": "gumbel", "search.strategy.extras": "smoothing"},
            "does not work with gumbel",
        ),
        ({"search.partial": 2}, "does not work with space.granularity='head'"),
        (
            {"search.strategy.name": "spos", "search.remat": False},
            "it samples, so a step needs only a few",
        ),
        (
            {"search.strategy.extras": "drop(stages=1, recompile=False)", "search.remat": False},
            "drop without recompiling",
        ),
        ({"search.strategy.extras": "nothing"}, "unknown extra 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_refused(values, message, tiny):
    def validate():
        configs.override(tiny, values)
        configs.build(tiny)

    with pytest.raises(InputError, match=message):
        validate()


def test_one_level_of_several_seeds_shares_a_program(tiny, tmp_path):
    configs.override(
        tiny,
        {
            **FEW,
            "search.seeds": 2,
            "search.strategy.name": "single_level",
            "search.strategy.warmup": 0.0,
        },
    )
    study = Study(tiny)
    assert [g.seeds for g in groups(study)] == [(0, 1)]
    with Workdir(tmp_path, tiny) as workdir:
        first, second = search(study, workdir).seeds
    assert np.isfinite([first.alphas, second.alphas]).all()
    assert np.abs(first.alphas - second.alphas).max() > 1e-3


def test_a_starting_config_for_a_strategy(tmp_path):
    file = tmp_path / "space.py"
    file.write_text(
        starting_config(
            "listops", values={"search.strategy.name": "gumbel", "search.strategy.hard": "false"}
        )
    )
    config = configs.load_config(file)
    assert config.search.strategy.name == "gumbel"
    assert config.search.strategy.hard is False
    file.write_text(
        file.read_text()
        .replace(', strategy="gumbel"', "")
        .replace("config.search.strategy.hard = False", 'config.search.strategy.name = "gumbel"')
    )
    with pytest.raises(InputError, match=r"dartformer\.defaults\(strategy='gumbel'\)"):
        configs.load_config(file)


def test_extras_hypergradient_and_partial_heads_from_a_config(tiny, tmp_path):
    """Spelled in a config, all at once, through the stages."""
    configs.override(
        tiny,
        {
            **FEW,
            "space.candidates": ("full", "uniform", "identity"),
            "space.granularity": "layer",
            "search.partial": 2,
            "search.steps": 6,
            "search.strategy.warmup": 0.0,
            "search.strategy.hypergradient": "neumann(terms=2)",
            "search.strategy.extras": "smoothing,drop(stages=1),early_stop(every=1, window=1, "
            "patience=1, iterations=2)",
        },
    )
    study = Study(tiny)
    with Workdir(tmp_path, tiny) as workdir:
        found = search(study, workdir)
        genotype = derive(found, workdir).genotype
    assert (np.count_nonzero(found.mixture, axis=-1) == 1).all()
    assert study.space.choice(genotype)[0, 0] == found.mixture[0, 0].argmax()
    assert found.history[-1]["step"] == 6
    assert any("alphas_curvature" in line for line in found.history)


def test_a_search_that_keeps_its_branches_finds_the_same(tiny, tmp_path):
    """With candidates that are dropped on the way, too: the step is then compiled without them."""
    found = []
    for remat in (True, False):
        configs.override(
            tiny,
            {
                **FEW,
                "search.strategy.warmup": 0.0,
                "search.strategy.extras": "drop(stages=1)",
                "search.remat": remat,
            },
        )
        with Workdir(tmp_path / str(remat), tiny) as workdir:
            result = search(Study(tiny), workdir)
            genotype = derive(result, workdir).genotype
            found.append((result.mixture, genotype, result.history[-1]))
    (mixture, genotype, last), (other_mixture, other_genotype, other_last) = found
    np.testing.assert_allclose(other_mixture, mixture, atol=1e-4)
    assert other_genotype == genotype
    assert other_last["valid_loss"] == pytest.approx(last["valid_loss"], abs=1e-3)


def test_kept_branches_are_for_the_steps_alone(tiny):
    """A genotype is evaluated and fine-tuned through a network that passes over the others."""
    configs.override(tiny, {**FEW, "search.strategy.name": "single_level", "search.remat": False})
    study = Study(tiny)
    group = groups(study)[0]
    state, batch = initial(study, group), next(stream(study, group))
    skips = [
        str(jax.make_jaxpr(of)(*given)).count("cond[")
        for of, given in (
            (
                study.supernet.network.apply,
                (
                    state.weights,
                    batch[0]["tokens"],
                    batch[0]["valid"],
                    np.ones(study.space.mixture_shape, np.float32),
                ),
            ),
            (step_of(study, group), (state, batch)),
        )
    ]
    assert skips[0] >= len(study.space.candidates)
    assert skips[1] == 0


def test_sampled_strategies_never_share_a_program(tiny):
    configs.override(tiny, {**FEW, "search.seeds": 2, "search.strategy.name": "spos"})
    assert [g.seeds for g in groups(Study(tiny))] == [(0,), (1,)]


def test_a_dropped_candidate_is_not_computed():
    """Its weights turned to NaN poison a step as long as it is in play, and no longer."""
    shape = TransformerConfig(
        vocabulary=7, classes=3, length=6, layers=1, heads=2, head_dim=4, model_dim=8, mlp_dim=8
    )
    space = SearchSpace((parse("linformer(rank=2)"), parse("uniform")), 1, 2, "layer")
    options = make("darts", {"warmup": 0.0, "extras": (Drop(stages=1),)})

    def over(left=None):
        net = supernet(shape, space, kept=left)

        def loss(weights, mixture, batch, key):
            logits = net.apply(weights, batch, batch > 0, mixture, train=True, key=key)
            return jnp.mean(logits**2), {}

        return net, options(
            Problem(
                loss, space.alphas_shape, space.mixture_shape, optax.sgd(0.01), optax.sgd(0.01), 6
            )
        )

    net, strategy = over()
    state = strategy.init(jax.random.key(0), net.init(jax.random.key(1)))
    state = state._replace(alphas=jnp.array([[[-1.0, 1.0]]]))
    step = jax.jit(strategy.step)
    tokens = jnp.ones((2, 6), jnp.int32)

    def poisoned(state):
        own = jax.tree.map(
            lambda p: jnp.full_like(p, jnp.nan), state.weights["blocks"][0]["mixer"]["own"]
        )
        blocks = {
            0: {
                **state.weights["blocks"][0],
                "mixer": {**state.weights["blocks"][0]["mixer"], "own": own},
            }
        }
        return bool(
            jnp.isfinite(
                step(state._replace(weights={**state.weights, "blocks": blocks}), tokens, tokens)[
                    1
                ]["loss"]
            )
        )

    found, other = [], jax.tree.map(jnp.copy, state)
    for _ in range(6):
        found.append(poisoned(state))
        state, metrics = step(state, tokens, tokens)
        assert metrics["finite"]
    assert found == [False, False, False, True, True, True]
    assert state.memory["alive"].tolist() == [[[False, True]]]

    # Compiled again without it, the step does the same in less memory; so does a search that begins
    # there.
    narrowing = Narrowing(
        lambda left: lambda state, batch: over(left)[1].step(state, batch, batch),
        space.mixture_shape,
        options.drop_steps(2, 6),
    )
    narrowing.prepare(other, tokens)
    for done in range(6):
        if done == 5:
            narrowing.prepare(other, tokens)
        other, _ = narrowing(other, tokens)
    for a, b in zip(
        jax.tree.leaves((state.weights, state.alphas)),
        jax.tree.leaves((other.weights, other.alphas)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert list(narrowing.programs) == [((0, 1),), ((1,),)]
    wide, narrow = (
        next(iter(program.programs.values())).memory_analysis().temp_size_in_bytes
        for program in narrowing.programs.values()
    )
    assert narrow < wide
