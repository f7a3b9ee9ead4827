"""The tables of plug-ins: every kind can be registered, and comes from entry points."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest

import dartformer as df
from dartformer import config as configs
from dartformer import derivations, registry, strategies
from dartformer.attention.full import Full
from dartformer.derivations.argmax import Argmax
from dartformer.errors import InputError
from dartformer.export.formats import FORMATS
from dartformer.pretrained import FAMILIES
from dartformer.space.search_space import SearchSpace
from dartformer.strategies.darts import Darts
from dartformer.strategies.extras.entropy import Entropy
from dartformer.strategies.hypergradients.bilevel import First
from dartformer.tasks.recall import Recall


class Service:
    package = "json"


ENTRIES = {
    "attention": Full,
    "strategy": Darts,
    "derivation": Argmax,
    "extra": Entropy,
    "hypergradient": First,
    "task": Recall,
    "format": FORMATS["torch"],
    "tracker": Service,
    "family": FAMILIES["bert"],
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Nothing that a test registers stays."""
    for kind in registry.TABLES:
        monkeypatch.setattr(registry.table(kind), "registered", {})


def test_every_kind_is_tried():
    assert set(ENTRIES) == set(registry.TABLES)


@pytest.mark.parametrize("kind", ENTRIES)
def test_every_kind_can_be_registered(kind):
    table, entry = registry.table(kind), ENTRIES[kind]
    assert df.register(kind, "mine", entry) is entry
    assert table.find("mine") is entry
    assert table.names()[-1] == "mine"
    for name, wrong, message in (
        ("mine", object(), "already registered"),
        (next(iter(table.builtin)), entry, "already registered"),
        ("not-mine", entry, "must be an identifier"),
        ("other", object, f"must be {table.requirement}".replace("(", r"\(").replace(")", r"\)")),
    ):
        if table.get(name) is not wrong:
            with pytest.raises(InputError, match=message):
                df.register(kind, name, wrong)


@pytest.mark.parametrize("kind", ENTRIES)
def test_every_kind_comes_from_entry_points(kind, monkeypatch):
    table = registry.table(kind)
    points = [
        EntryPoint("theirs", f"{__name__}:ENTRIES", table.group),
        EntryPoint("broken", "no_such_module:Class", table.group),
    ]
    monkeypatch.setattr(
        registry, "entry_points", lambda **selection: EntryPoints(points).select(**selection)
    )
    assert table.names() == [*table.builtin, "broken", "theirs"]
    assert table.registered == {}, "listing imports nothing"
    with pytest.raises(InputError, match=r"'theirs' must be .*; got \{"):
        table.find("theirs")
    with pytest.raises(InputError, match=r"'broken' \(entry point no_such_module:Class\) does not"):
        table.find("broken")
    with pytest.raises(InputError, match="Did you mean 'theirs'"):
        table.find("their")
    points.append(EntryPoint("theirs", "another:Class", table.group))
    with pytest.raises(InputError, match=r"'theirs' .* is already registered"):
        table.names()


def test_an_unknown_kind_names_the_kinds():
    with pytest.raises(InputError, match="Did you mean 'strategy'"):
        df.register("strategies", "mine", Darts)


@dataclass(frozen=True)
class Last(derivations.Rule):
    """Always the last candidate."""

    def follows(self, traits):
        return traits.alphas

    def __call__(self, trained):
        last = len(trained.space.candidates) - 1
        return derivations.Derived(trained.space.genotype(np.array([[last]])), [], {})


def test_a_derivation_of_another_package_says_what_it_follows():
    df.register("derivation", "last", Last)
    rule = derivations.parse("last")
    assert derivations.name_of(rule) == "last"
    assert derivations.refusal(rule, Darts.traits) is None
    assert "other strategies" in derivations.refusal(rule, strategies.find("spos").traits)
    space = SearchSpace((Full(), df.parse("linear")), 2, 2)
    trained = derivations.Trained(
        space, np.full((2, 2, 2), 0.5), None, None, None, None, np.random.default_rng(0)
    )
    assert "linear" in str(rule(trained).genotype)
    config = df.defaults("listops")
    config.derive.rule = "last"
    assert configs.build(config).derive.rule == "last"


def test_extras_and_hypergradients_of_another_package_reach_a_strategy():
    df.register("extra", "closing", Entropy)
    df.register("hypergradient", "own", First)
    options = strategies.make("darts", {"extras": ("closing(end=2.0)",), "hypergradient": "own"})
    assert options.extras == (Entropy(end=2.0),)
    assert options.response() == First()
