"""Profile: what is printed agrees with XLA where it can, and nothing is asked that cannot be
answered."""

import dataclasses
import json

import pytest

from dartformer import cost
from dartformer.attention import Shape, parse
from dartformer.cli.main import main
from dartformer.errors import InputError
from dartformer.models.transformer import TransformerConfig
from dartformer.results import Profile
from dartformer.space.genotype import Genotype
from dartformer.stages.profile import At, profile_all

CONFIG = TransformerConfig(20, 10, 32, layers=2, heads=2, head_dim=4, model_dim=8, mlp_dim=16)
MIXED = Genotype(((parse("full"), parse("uniform")), (parse("uniform"),) * 2))


def test_profile_of_a_genotype(compile_quickly):
    data = profile_all(CONFIG, {"given": MIXED}, At(batch=2, lengths=(32, 16), repeats=2), True)
    (model,), layers, attentions = data.models, data.layers, data.attentions
    assert [row.layer for row in layers] == [0, 1]
    assert [(row.attention, row.heads) for row in attentions] == [
        ("full", 1),
        ("uniform", 1),
        ("uniform", 2),
    ]
    assert [(row.length, row.name) for row in data.sweep] == [(32, "given"), (16, "given")]
    assert model.parameters == cost.model_parameters(cost.measure.transformer(CONFIG, MIXED))
    # XLA counts norms and activations too, which are a fifth here at a width of 8.
    assert model.flops < model.xla_flops < 1.4 * model.flops
    for row in (model, *layers, *attentions):
        assert 0 < row.latency_seconds.median <= row.latency_seconds.p90
        assert row.throughput == 2 / row.latency_seconds.median
    assert Profile.from_dict(json.loads(json.dumps(data.to_dict()))) == data


def test_decoding_is_by_formula_and_says_what_cannot():
    data = profile_all(CONFIG, {"given": MIXED}, At(lengths=(8, 16), phase="decode"), True)
    first, second = data.sweep
    assert first.latency_seconds is None
    assert "no latency is measured" in data.note
    # Keys and values of one head of `full`.
    assert second.state_bytes - first.state_bytes == 8 * 2 * 4 * 4
    assert second.flops - first.flops == 2 * 8 * 2 * 4
    fourier = Genotype.homogeneous(parse("fourier"), 2, 2)
    stuck = profile_all(CONFIG, {"given": fourier}, At(phase="decode"), True)
    assert stuck.models[0].flops is None
    assert "these cannot decode" in stuck.note


def test_a_model_that_continues_texts_is_measured_token_by_token():
    config = dataclasses.replace(
        CONFIG, causal=True, pooling="none", vocabulary=CONFIG.classes, classes=CONFIG.classes
    )
    data = profile_all(config, {"given": MIXED}, At(batch=3, lengths=(8, 16), phase="decode"), True)
    first, second = data.sweep
    assert first.latency_seconds.median > 0
    assert first.throughput == 3 / first.latency_seconds.median
    assert "no latency" not in data.note
    # What is held grows by what the formula says, beside intermediate arrays.
    grown = second.decode_bytes - second.xla_temp_bytes - first.decode_bytes + first.xla_temp_bytes
    assert grown == second.state_bytes - first.state_bytes


@pytest.mark.parametrize(
    "at", [At(batch=0), At(lengths=(0,)), At(lengths=(33,)), At(phase="prefill"), At(repeats=0)]
)
def test_what_cannot_be_asked(at):
    with pytest.raises(InputError):
        profile_all(CONFIG, {"given": MIXED}, at, False)


def test_a_type_of_one_length_is_refused_at_another():
    with pytest.raises(InputError, match="32 tokens only"):
        profile_all(
            CONFIG,
            {"given": Genotype.homogeneous(parse("linformer"), 2, 2)},
            At(lengths=(16,)),
            False,
        )


def test_useful_flops_are_those_of_pairs_with_weight():
    shape = Shape(length=40, heads=3, head_dim=8, model_dim=24, batch=2)
    full, block = parse("full"), parse("block(size=16)")
    every = full.cost(shape).flops
    assert cost.useful_flops(full, shape, causal=False) == every
    assert cost.useful_flops(full, shape, causal=True) == pytest.approx(every * 41 / 80)
    assert cost.useful_flops(block, shape, causal=False) == 2 * 3 * (2 * 16**2 + 8**2) * (4 * 8 + 5)
    linear = parse("linear")
    assert cost.useful_flops(linear, shape, causal=True) == linear.cost(shape).flops
    assert cost.useful_flops(full, Shape(4096, 1, 8, 8), causal=False) is None


@pytest.mark.parametrize("name", ["full", "linear", "retention", "longformer"])
def test_bytes_kept_for_training(name):
    """Twice the batch keeps twice the bytes, but for what examples share."""
    one = parse(name)
    causal = not one.traits.bidirectional
    small, large = (
        cost.training_bytes(one, Shape(32, 2, 8, 16, batch), causal=causal) for batch in (2, 4)
    )
    assert 0 <= small <= large <= 2 * small + 1


def test_verb(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "import dartformer\ndef get_config():\n    c = dartformer.defaults()\n"
        "    c.task.max_length = 24\n    c.task.min_length = 3\n    c.model.layers = 1\n"
        "    c.space.candidates = ('full', 'uniform')\n    return c\n"
    )
    plot = tmp_path / "p.svg"
    assert (
        main(["profile", f"--config={config}", "--json", "--phase=decode", f"--plot={plot}"]) == 0
    )
    data = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in data["models"]] == [
        "full everywhere (1x4)",
        "uniform everywhere (1x4)",
    ]
    assert plot.stat().st_size > 1000
    for wrong, said in (
        (["--length=a"], "whole numbers"),
        (["--genotype=/none"], "there is no /none"),
        (["--genotype=a", "--export=b"], "Use one"),
    ):
        assert main(["profile", f"--config={config}", *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main(["profile"]) == 2
    assert "needs --export, or --config" in capsys.readouterr().err
