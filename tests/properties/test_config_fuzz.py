"""Any config, genotype, budget, spec or command line is read, or refused as an `InputError` in time.

The fast tests draw a few hundred inputs from a fixed seed; the slow ones draw for ten minutes."""

import contextlib
import math
import signal
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

import dartformer
from dartformer import attention, derivations, strategies, tasks
from dartformer.cli.grammar import EXAMPLES, parser
from dartformer.cli.main import overrides
from dartformer.config import build, from_dict, override, to_dict
from dartformer.cost.budget import Budget, parse
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.strategies import EXTRAS

SECONDS = 30
"""What no input may take, on the busiest machine. Nearly all take milliseconds."""

MINUTES = 10

quick = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Hang(BaseException):
    """Not an `Exception`, so that nothing takes it for an error of the input."""


def _stop(*_):
    raise Hang


@contextlib.contextmanager
def in_time():
    """Raise `Hang` in a block that does not end, and let an `InputError` pass."""
    before = signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        yield
    except InputError as error:
        if not 0 < len(str(error)) < 5000:
            raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fields(config, prefix=""):
    """The dotted names of the sections and fields of a config."""
    names = []
    for name in config:
        names.append(prefix + name)
        if isinstance(config[name], ConfigDict):
            names += fields(config[name], f"{prefix}{name}.")
    return names


PAIRS = [(task, "darts") for task in tasks.names()]
PAIRS += [("recall", strategy) for strategy in strategies.names()]
FIELDS = {pair: fields(dartformer.defaults(*pair)) for pair in PAIRS}

NUMBERS = [0, -1, 1, 2, 3, 7, 2**31, 2**32, 2**63, 10**9, 10**12, 10**400, -(10**400), 10**5000]
FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e308, math.inf, -math.inf, math.nan]
NESTED = [
    (),
    [],
    {},
    (1,),
    [0],
    ["a"],
    ((), ()),
    [[1]],
    (None,),
    (0, 0),
    {"a": 1},
    {1: 2},
    {None: 1},
]
ODD = [None, True, False, b"x", set(), object(), int, len, 1j, range(3), slice(1)]
ARRAYS = [np.int64(3), np.float32(0.5), np.array([1, 2]), np.array(3), np.bool_(True)]
TEXTS = ["", "x", "full", "full(kernel=dense)", "\0", "a\0b", "x" * 5000, "٣", "1_000", "\ud800"]
TEXTS += [
    "{config.task}",
    "%s{0}",
    "full,linear",
    "full(",
    "((((",
    "[",
    "1,2,3",
    "0,0",
    ",",
    "1" * 5000,
]
TEXTS += ["a=1", "=", "latency_ms=nan", "latency_ms=1e400", "length=1e300", "kv_bytes=1,floor=2"]
TEXTS += [
    "batch=1e300,flops=1",
    "flops=1,phase=decode",
    "nan",
    "inf",
    "1e400",
    "true",
    "drop(keep=2)",
]
TEXTS += ["local(window=10000000000)", "sample(count=99999999999)", "race", "top_k(k=9)"]

values = st.one_of(
    st.sampled_from(NUMBERS + FLOATS + NESTED + ODD + ARRAYS + TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(), st.text(max_size=5), st.none()), max_size=4).map(tuple),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
changes = st.tuples(
    st.sampled_from(["assign", "override", "delete", "add"]), st.integers(0), values
)
configs = st.tuples(st.sampled_from(PAIRS), st.lists(changes, min_size=1, max_size=3))


def _change(config, kind, name, value):
    if kind == "override":
        override(config, {name: value})
        return
    path, _, last = name.rpartition(".")
    section = config
    for part in filter(None, path.split(".")):
        section = section[part]
    with config.unlocked(), config.ignore_type():
        if kind == "delete":
            del section[last]
        elif kind == "add":
            section[f"{last}x"] = value
        else:
            section[last] = value


def read_config(pair, drawn):
    """Change some fields of the defaults, and build the config; of what builds, read everything."""
    config = dartformer.defaults(*pair)
    for kind, number, value in drawn:
        name = FIELDS[pair][number % len(FIELDS[pair])]
        try:
            _change(config, kind, name, value)
        except InputError:
            raise
        except Exception:
            # `ml_collections` refuses a type, or an earlier change took the section away: the
            # error of a config file, which `load_config` tells with its line.
            if kind == "override":
                raise
    built = build(config)
    assert built.transformer.layers == built.search_space.layers
    assert to_dict(from_dict(to_dict(built))) == to_dict(built)


@quick
@given(configs)
def test_any_config_is_read_or_refused(drawn):
    with in_time():
        read_config(*drawn)


@pytest.mark.slow
def test_any_config_is_read_or_refused_for_ten_minutes():
    end = time.monotonic() + 60 * MINUTES

    # Without `derandomize` each round draws others.
    @settings(quick, max_examples=500, derandomize=False)
    @given(configs)
    def run(drawn):
        with in_time():
            read_config(*drawn)

    while time.monotonic() < end:
        run()


NAMES = [*attention.names(), *derivations.DERIVATIONS, *EXTRAS, "nope"]
OPTIONS = ["window", "stride", "size", "k", "keep", "members", "shares", "order", "kernel", "count"]
literals = st.one_of(
    st.sampled_from(
        [*map(str, NUMBERS[:-1]), "1" * 5000, "'dense'", "None", "True", "1e400", "full"]
    ),
    st.sampled_from(
        ["(full, linear)", "(full,)", "((1,),)", "[1, 2]", "{}", "{[]: 1}", "-1", "x()"]
    ),
    st.integers().map(str),
)
specs = st.one_of(
    st.text(max_size=30),
    st.builds(
        lambda name, option, value: f"{name}({option}={value})",
        st.sampled_from(NAMES),
        st.sampled_from(OPTIONS),
        literals,
    ),
    st.builds(lambda name, value: f"{name}({value})", st.sampled_from(NAMES), literals),
    st.sampled_from(
        ["(" * 3000, "full" + "()" * 500, "parallel(members=(" * 200, "full\0", "*", "a.b()"]
    ),
)


@quick
@given(specs)
def test_any_spec_is_read_or_refused(text):
    for reader in (attention.parse, derivations.parse, _extra):
        with in_time():
            reader(text)


def _extra(text):
    return strategies.make("darts", {"extras": (text,)})


limits = st.lists(
    st.tuples(
        st.sampled_from(
            ["latency_ms", "flops", "kv_bytes", "batch", "length", "phase", "floor", "table"]
        )
        | st.text(max_size=5),
        st.sampled_from(
            ["1", "0", "-1", "nan", "1e400", "1e300", "decode", "", "1" * 5000, "٣", "1,2"]
        )
        | st.text(max_size=5),
    ),
    max_size=4,
)


@quick
@given(limits)
def test_any_budget_is_read_or_refused(drawn):
    with in_time():
        budget = Budget.of(parse([f"{key}={value}" for key, value in drawn]))
        assert math.isfinite(sum(limit for _, limit in budget.limits))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("full"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=12,
)


@quick
@given(
    st.one_of(
        plain,
        st.fixed_dictionaries({"format": st.just(1), "layers": plain}),
        st.just({"format": 1, "layers": [["full"]] * 3000}),
    )
)
def test_any_genotype_is_read_or_refused(data):
    with in_time():
        Genotype.from_dict(data)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "[" * 100_000, '{"format": 1}', "1" * 5000, "NaN"]
)
def test_a_genotype_that_is_none(text):
    with pytest.raises(InputError):
        Genotype.from_json(text)


words = st.lists(
    st.one_of(
        st.sampled_from(
            ["--config=x", "--workdir=y", "--json", "--config.a.b=1", "--config.a.b", "--"]
        ),
        st.sampled_from(
            ["--batch=1e3", "--port=x", "--budget=", "-", "=", "--config.", "--config.=1"]
        ),
        st.text(max_size=8),
    ),
    max_size=5,
)


@quick
@given(st.sampled_from([*EXAMPLES, "", "nope"]), words)
def test_any_command_line_is_parsed_or_refused(verb, drawn):
    # `--help` and its abbreviations end the process, as they should.
    drawn = [word for word in drawn if not word.startswith(("-h", "--h"))]
    with in_time():
        _, extra = parser().parse_known_args([verb, *drawn])
        overrides(extra)
