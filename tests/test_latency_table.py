"""The table of latencies: built once, read again, additive over groups, and only for the device
that measured it."""

import json

import numpy as np
import pytest

from dartformer.attention import parse
from dartformer.cost import measure
from dartformer.cost import table as tables
from dartformer.cost.budget import Budget
from dartformer.cost.integer_program import solve
from dartformer.cost.prices import check_budget, prices
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

    def added(config, attention, heads, *, batch, length, phase, spread):
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


# One more token.

DECODING = TransformerConfig(
    16,
    16,
    12,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    model_dim=8,
    mlp_dim=16,
    causal=True,
    pooling="none",
)
TOKEN = Budget.of({"latency_ms": 1.0, "batch": 3, "length": 12, "phase": "decode"})


@pytest.fixture
def steps(monkeypatch):
    """A device on which a step takes a millisecond for each head of `full`, and nothing for others."""
    calls = []

    def added(config, attention, heads, **at):
        calls.append((repr(attention), heads, at))
        return heads * (repr(attention) == "full") / 1e3

    class Step:
        seconds = tables.measure.Latency(0.02, 0.03, 0.01)

    monkeypatch.setattr(tables, "attention_seconds", added)
    monkeypatch.setattr(tables.measure, "decode", lambda *a, **k: calls.append(k) or Step())
    return calls


@pytest.mark.parametrize("granularity", ["layer", "kv_group", "head"])
def test_a_budget_of_a_token_is_solved_by_its_table(steps, tmp_path, granularity):
    space = SearchSpace(tuple(map(parse, ("full", "linear"))), 2, 4, granularity, kv_heads=2)
    check_budget(TOKEN, DECODING, space)
    price = prices(DECODING, space, TOKEN, tables.Table(tmp_path / "t.json"))["latency_ms"]
    at = {"batch": 3, "length": 12, "phase": "decode", "spread": granularity == "head"}
    assert next(call[2] for call in steps if isinstance(call, tuple)) == at
    assert (steps[0]["batch"], steps[0]["length"]) == (3, 12)  # the model without attentions
    scores = np.zeros(space.alphas_shape)
    scores[0, :, 0], scores[1, :, 0] = 2.0, 1.0
    chosen = space.genotype(solve(space, scores, [(price, 10 + 4.5)]))
    assert price.of(chosen, space) == pytest.approx(10 + 4)
    assert set(map(repr, chosen.layers[0])) == {"full"}
    count = len(steps)
    prices(DECODING, space, TOKEN, tables.Table(tmp_path / "t.json"))
    assert len(steps) == count


def test_a_block_takes_one_more_token_with_its_caches():
    row = tuple(map(parse, ("full", "linear", "local(window=2)", "full")))
    call = measure.block(DECODING, Genotype((row,) * 2), 0, batch=3, length=12, phase="decode")
    first = np.asarray(call())
    assert first.shape == (3, 1, 8)
    assert np.isfinite(first).all()
    # The cache of a state is changed by every step, and given away.
    assert np.isfinite(np.asarray(call())).all()


@pytest.mark.parametrize("spread", [False, True])
def test_heads_read_few_or_many_keys(monkeypatch, spread):
    rows = []

    def block(config, genotype, index, **at):
        rows.append([repr(attention) for attention in genotype.layers[0]])
        return lambda: np.zeros(())

    monkeypatch.setattr(measure, "block", block)
    tables.attention_seconds(
        DECODING, parse("full"), 2, batch=1, length=12, phase="decode", spread=spread
    )
    expected = ["full", "full", "identity", "identity"]
    if spread:
        expected = ["full", "identity", "full", "identity"]
    assert rows == [expected, ["identity"] * 4]


def test_a_model_that_continues_no_text_has_no_token_to_time(tmp_path):
    space = SearchSpace(tuple(map(parse, ("full", "linear"))), 2, 6, "layer")
    at = Budget.of({"latency_ms": 1.0, "phase": "decode"})
    with pytest.raises(InputError, match="needs a causal model"):
        check_budget(at, CONFIG, space)
    with pytest.raises(InputError, match="needs a causal model"):
        prices(CONFIG, space, at, tables.Table(tmp_path / "t.json"))
