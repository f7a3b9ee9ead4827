"""Attentions as text: parse and to_text are inverse, and every mistake is named."""

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import pytest

import dartformer.registry
from dartformer.attention import (
    ATTENTIONS,
    Full,
    Linformer,
    Local,
    Parallel,
    names,
    parse,
    to_text,
)
from dartformer.attention.base import Traits
from dartformer.attention.full import Full as Base
from dartformer.errors import InputError
from dartformer.registry import register


@dataclass(frozen=True)
class Many(Base):
    size: int
    share: float = 0.5
    mode: Literal["dense", "random"] = "dense"
    limit: int | None = None
    sharp: bool = False
    name: str = "a"
    sizes: tuple[int, ...] = (1, 2)

    traits: ClassVar[Traits] = Base.traits


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(ATTENTIONS, "registered", {})


@pytest.mark.parametrize("name", ATTENTIONS)
def test_round_trip_of_defaults(name):
    attention = parse(name)
    assert type(attention) is ATTENTIONS[name]
    assert parse(to_text(attention)) == attention
    assert repr(attention) == to_text(attention)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("full", Full()),
        ("full()", Full()),
        (" local ( window = 4 ) ", Local(4)),
        ("local(4)", Local(4)),
        ("local(window=0)", Local(0)),
        ("linformer(rank=8)", Linformer(8)),
        ("local(1_000)", Local(1000)),
    ],
)
def test_parse(text, wanted):
    assert parse(text) == wanted


def test_attentions_inside_attentions():
    text = "parallel(members=(full, local(window=4), linformer(rank=2, sharing='none')), shares=(0.5, 0.25, 0.25))"
    hybrid = parse(text)
    assert hybrid == Parallel((Full(), Local(4), Linformer(2)), (0.5, 0.25, 0.25))
    assert to_text(hybrid) == repr(hybrid) == text
    assert [share for _, share in hybrid.weighted] == [0.5, 0.25, 0.25]
    assert not hybrid.traits.causal
    assert hybrid.traits.fixed_length
    assert parse("parallel(members=(full, uniform))").traits.causal


def test_to_text_writes_every_field_as_a_keyword():
    assert to_text(Local()) == "local(window=16)"
    assert to_text(Full()) == "full"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("locl(4)", r"unknown attention 'locl'. Did you mean 'local'\? Known: .*\blocal,"),
        (
            "local(windw=4)",
            r"unknown option of local 'windw'. Did you mean 'window'\? Known: window",
        ),
        ("full(4)", r"full takes 0 options at most \(none\), got 1"),
        ("full(window=4)", "unknown option of full 'window'. Known: none"),
        ("local(4, window=5)", "gives option 'window' twice"),
        ("local(window=4, window=5)", "twice|cannot read"),
        ("local(window='4')", "local: option 'window' must be int, got '4'"),
        ("local(window=4.0)", "local: option 'window' must be int, got 4.0"),
        ("local(window=True)", "local: option 'window' must be int, got True"),
        ("local(window=None)", "local: option 'window' must be int, got None"),
        ("local(window=-1)", "local: window must be a whole number of at least 0, got -1"),
        ("linformer(rank=0)", "linformer: rank must be a whole number of at least 1, got 0"),
        ("parallel(members=(full, locl(4)))", "unknown attention 'locl'"),
        ("parallel(members=(full,))", "at least two different attentions"),
        ("parallel(members=(full, full))", "at least two different attentions"),
        ("parallel(members=(full, parallel))", "none of them parallel"),
        ("parallel(members=(full, 3))", "cannot read|unknown"),
        ("parallel(members=(1, 2))", "at least two different attentions"),
        ("parallel(shares=(1.0, 0.0))", "a positive number for each of the 2 members"),
        ("parallel(shares=(1.0,))", "a positive number for each"),
        *(
            (bad, "cannot read attention")
            for bad in (
                "",
                "local(",
                "local)",
                "local window",
                "local(window=f())",
                "local(window=__import__('os'))",
                "a.b(1)",
                "local(*[1])",
                "local(**{'window': 1})",
                "[]",
                "local(1)(2)",
                "lambda: 1",
                "local(window=1 if 1 else 2)",
                "(" * 3000,
                "local(" + "-" * 5000 + "1)",
                "local(\0)",
                "local;full",
                16,
                None,
            )
        ),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_fields_of_every_kind(table):
    register("attention", "many", Many)
    inside = Parallel((Full(), Many(1)))
    assert parse(to_text(inside)) == inside
    for attention in (
        Many(3),
        Many(1, 0.1, "random", 7, True, "b, c)='", (3,)),
        Many(-2, 1e-30, sizes=()),
    ):
        assert parse(to_text(attention)) == attention
    assert parse("many(3, share=1)") == Many(3, 1.0)
    for text, message in (
        ("many", "lacks a value for size"),
        ("many(1, mode='x')", "must be 'dense' or 'random', got 'x'"),
        ("many(1, share='x')", "must be float"),
        ("many(1, limit=1.5)", "must be int or None"),
    ):
        with pytest.raises(InputError, match=message):
            parse(text)


def test_register(table):
    with pytest.raises(InputError, match="'local' is already registered, as Local"):
        register("attention", "local", Many)
    with pytest.raises(InputError, match="must be an identifier"):
        register("attention", "my attention", Many)
    with pytest.raises(InputError, match=r"@dataclass\(frozen=True\)"):
        register("attention", "mine", dict)
    with pytest.raises(InputError, match="Did you mean 'attention'"):
        register("atention", "mine", Many)
    with pytest.raises(InputError, match="of no registered type"):
        to_text(Many(3))
    assert register("attention", "mine", Many) is Many
    assert register("attention", "mine", Many) is Many  # a notebook's cell that is run again
    assert "mine" in names()
    assert to_text(Many(3)).startswith("mine(size=3, ")


class Point:
    """An entry point, with a note of whether it was imported."""

    def __init__(self, name, cls, value="package:Class"):
        self.name, self.cls, self.value, self.loaded = name, cls, value, False

    def load(self):
        self.loaded = True
        if isinstance(self.cls, Exception):
            raise self.cls
        return self.cls


def test_entry_points_are_imported_when_asked_for(table, monkeypatch):
    points = [Point("theirs", Many), Point("broken", ImportError("no such wheel"), "broken:Class")]
    monkeypatch.setattr(dartformer.registry, "entry_points", lambda group: points)
    assert {"theirs", "broken"} < set(names())
    parse("local(3)")
    assert not points[0].loaded
    assert parse("theirs(size=2)") == Many(2)
    assert to_text(Many(2)).startswith("theirs(size=2")
    with pytest.raises(
        InputError, match=r"'broken' \(entry point broken:Class\) does not load: no such wheel"
    ):
        parse("broken")
    points.append(Point("full", Many))
    with pytest.raises(InputError, match=r"'full' .* is already registered"):
        names()


WRONG = {int: ("-1", "True", "1.5"), float: ("-1.0", "1e999", "'a'"), str: ("'nonsense'", "1")}
"""Of every kind of option, what no attention takes."""


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_option_refuses_what_is_out_of_range(name):
    hints = get_type_hints(ATTENTIONS[name])
    for option in (f.name for f in dataclasses.fields(ATTENTIONS[name])):
        hint = hints[option]
        kinds = [
            type(get_args(k)[0]) if get_origin(k) is Literal else k
            for k in (get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,))
        ]
        wrong = [
            text
            for kind in kinds
            for text in WRONG.get(kind, ("-1", "()" if kind is tuple else "('a',)"))
        ]
        assert wrong
        for text in wrong:
            with pytest.raises(InputError, match=name) as caught:
                parse(f"{name}({option}={text})")
            assert "\n" not in str(caught.value)
