"""Layers, heads and widths are free of one another; parameters are the Wide Attention paper's, to
the last."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import dartformer
from dartformer import attention, cost
from dartformer import config as configs
from dartformer.cost.budget import BudgetTooSmall
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import shapes

FULL = attention.parse("full")
TEXT = TransformerConfig(
    vocabulary=257,
    classes=2,
    length=1000,
    head_dim=64,
    model_dim=512,
    mlp_dim=2048,
    positions="sinusoidal",
    pooling="cls",
    classifier="mlp",
    pair="concat",
)
LISTOPS = dataclasses.replace(TEXT, vocabulary=17, classes=10, length=2000)
MATCHING = dataclasses.replace(TEXT, inputs=2, length=4000, head_dim=32, model_dim=128, mlp_dim=512)

PUBLISHED = [
    (TEXT, {(6, 8): 20_089_858, (3, 16): 13_784_578, (2, 24): 11_682_818, (1, 48): 9_581_058}),
    (LISTOPS, {(6, 8): 19_983_370, (3, 16): 13_678_090, (2, 24): 11_576_330, (1, 48): 9_474_570}),
    (MATCHING, {(4, 4): 1_087_746, (2, 8): 823_298, (1, 16): 691_074}),
]
"""Independent counts: two of them agree with those that others report of Long Range Arena's
models."""


def parameters(config, layers, heads):
    """Counted on shapes alone; nothing is allocated."""
    sized = dataclasses.replace(config, layers=layers, heads=heads)
    made = jax.eval_shape(
        transformer(sized, Genotype.homogeneous(FULL, layers, heads)).init, jax.random.key(0)
    )
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize(("config", "shapes"), PUBLISHED, ids=["imdb_bytes", "listops", "matching"])
def test_parameters_are_the_published_ones(config, shapes):
    assert {shape: parameters(config, *shape) for shape in shapes} == shapes


def test_widths_are_free_of_one_another():
    config = TransformerConfig(
        vocabulary=5, classes=3, length=7, head_dim=3, model_dim=11, mlp_dim=2
    )
    assert (
        parameters(config, 2, 5)
        == 5 * 11 + 7 * 11 + 2 * (4 * 11 * 15 + 4 * 11 + 2 * 22 + 2 + 11) + 22 + 36
    )


@pytest.mark.parametrize(
    "name", ["layers", "heads", "head_dim", "model_dim", "mlp_dim", "vocabulary", "length"]
)
def test_nothing_of_a_size_is_zero(name):
    with pytest.raises(
        InputError, match=f"model.{name} must be a whole number of at least 1, got 0"
    ):
        dataclasses.replace(TEXT, **{name: 0})


def test_several_shapes_are_searched_and_the_best_on_valid_is_evaluated(tiny, tmp_path):
    configs.override(
        tiny,
        {
            "space.aspect": "constant_heads",
            "search.steps": 3,
            "retrain.steps": 3,
            "retrain.seeds": (0,),
            "space.granularity": "model",
            "baselines.homogeneous": False,
            "baselines.random": False,
            "derive.second_opinion": "",
            "task.valid": 50,
        },
    )
    assert list(configs.build(tiny).shapes) == ["2x2", "1x4"]
    with pytest.raises(InputError, match=r"several shapes \(2x2, 1x4\)"):
        dartformer.search(tiny, tmp_path / "one")
    results = dartformer.run_all(tiny, tmp_path / "run")
    best = max(results["shapes"], key=lambda name: results["shapes"][name]["valid"]["accuracy"])
    assert results["shape"] == best
    layers, heads = map(int, best.split("x"))
    assert Genotype.from_dict(results["genotype"]) == Genotype.from_json(
        (tmp_path / "run/genotype.json").read_text()
    )
    assert np.shape(results["genotype"]["layers"]) == (layers, heads)
    others = [name for name in results["shapes"] if name != best]
    assert not any(
        (tmp_path / f"run/shapes/{name}/results.json").exists()
        and "test" in json.loads((tmp_path / f"run/shapes/{name}/results.json").read_text())
        for name in others
    )


def test_a_shape_above_the_budget_is_left_out(tiny, tmp_path, capsys):
    """Of parameters, which the deeper shape has more of whatever its attentions."""
    configs.override(
        tiny,
        {
            "space.aspect": "constant_heads",
            "search.steps": 3,
            "retrain.steps": 3,
            "retrain.seeds": (0,),
            "space.granularity": "model",
            "baselines.homogeneous": False,
            "baselines.random": False,
            "derive.second_opinion": "",
            "task.valid": 50,
        },
    )
    counts = {}
    for name, one in configs.build(tiny).shapes.items():
        net = transformer(one.transformer, next(iter(one.search_space.homogeneous())))
        counts[name] = cost.model_parameters(net)
    deep, wide = counts.values()
    assert wide < deep
    configs.override(tiny, {"search.budget": {"parameters": (wide + deep) // 2}})
    results = dartformer.run_all(tiny, tmp_path / "run")
    assert results["shape"] == "1x4"
    assert list(results["shapes"]) == ["1x4"]
    assert list(results["shapes_left_out"]) == ["2x2"]
    assert "shape 2x2 is left out: the budget parameters" in capsys.readouterr().err
    configs.override(tiny, {"search.budget": {"parameters": wide // 2}})
    with pytest.raises(BudgetTooSmall, match=r"shape 2x2: .*; shape 1x4: .*costs"):
        dartformer.run_all(tiny, tmp_path / "none")


def test_shapes_have_as_many_heads():
    assert shapes(6, 8, "constant_heads") == ((6, 8), (3, 16), (2, 24), (1, 48))
    assert shapes(6, 8, "given") == ((6, 8),)
    with pytest.raises(InputError, match=r"space\.aspect"):
        shapes(6, 8, "wide")
