"""The table of latencies: built once, read again, additive over groups, and only for the device
that measured it."""

import json

import pytest

from dartformer.attention import parse
from dartformer.cost import table as tables
from dartformer.cost.budget import Budget
from dartformer.cost.prices import prices
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

CONFIG = TransformerConfig(20, 10, 32, layers=2, heads=6, head_dim=4, model_dim=8, mlp_dim=16)
SPACE = SearchSpace(tuple(parse(t) for t in ("full", "linear", "identity")), 2, 6, "head")
AT = Budget.of({"latency_ms": 1.0, "batch": 3})
GROUPING = 1.5


@pytest.fixture
def world(monkeypatch):
    """A device on which a group takes a millisecond for each head (`linear`: half), and grouping
    1.5 ms a layer."""
    calls = []

    def added(config, attention, heads, *, batch, length, phase):
        calls.append((repr(attention), heads))
        milliseconds = {"full": 1.0, "linear(feature='elu')": 0.5, "uniform": 0.0}[repr(attention)]
        return (milliseconds * heads + GROUPING * (heads < config.heads)) / 1e3

    class Whole:
        seconds = tables.measure.Latency(0.02, 0.03, 0.01)

    monkeypatch.setattr(tables, "attention_seconds", added)
    monkeypatch.setattr(tables.measure, "model", lambda *a, **k: Whole())
    return calls


def test_built_once_and_additive(world, tmp_path):
    file = tmp_path / "t.json"
    price = prices(CONFIG, SPACE, AT, tables.Table(file))["latency_ms"]
    assert {n for name, n in world if name == "full"} == {1, 2, 4, 6}  # the others lie in between
    full, linear, nothing = SPACE.candidates
    for layer, layers in (
        ((full,) * 6, 6.0),
        ((full,) * 3 + (linear,) * 3, 4.5 + GROUPING),
        ((full, linear, nothing) * 2, 3.0 + GROUPING),
        ((nothing,) * 6, 0.0),
    ):
        genotype = Genotype((layer, (nothing,) * 6))
        assert price.of(genotype, SPACE) == pytest.approx(10 + layers)
    count = len(world)
    again = prices(CONFIG, SPACE, AT, tables.Table(file))["latency_ms"]
    assert len(world) == count
    assert again.to_dict() == price.to_dict()
    prices(CONFIG, SPACE, Budget.of({"latency_ms": 1.0, "batch": 4}), tables.Table(file))
    assert len(world) > count  # another batch is measured anew


def test_another_device_or_version_is_refused(world, tmp_path):
    file = tmp_path / "t.json"
    prices(CONFIG, SPACE, AT, tables.Table(file))
    data = json.loads(file.read_text())
    for key, value in (
        ("device", "gpu: another"),
        ("versions", {"jax": "0.0.1", "dartformer": "0"}),
    ):
        file.write_text(json.dumps({**data, key: value}))
        with pytest.raises(InputError, match=f"another {key}"):
            tables.Table(file)
        trusted = tables.Table(file, trusted=True)
        assert prices(CONFIG, SPACE, AT, trusted)["latency_ms"].rest == 10
        with pytest.raises(InputError, match="only be measured there"):
            prices(CONFIG, SPACE, Budget.of({"latency_ms": 1.0, "batch": 9}), trusted)
        assert json.loads(file.read_text())[key] == value
    file.write_text("{}")
    with pytest.raises(InputError, match="not a table"):
        tables.Table(file)
