"""Caches and steps: where tokens are kept, and which wrong steps the conformance suite finds."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import ATTENTIONS, Inputs, Shape, parse
from dartformer.attention.base import Decoder, require_decoding
from dartformer.attention.conformance import decoding, properties
from dartformer.attention.conformance.case import Case, Failed, NotApplicable
from dartformer.attention.conv import Conv
from dartformer.attention.full import Full
from dartformer.attention.gated_delta import GatedDelta
from dartformer.attention.linear import Linear
from dartformer.attention.local import Local
from dartformer.attention.retention import Retention
from dartformer.attention.sink import Sink
from dartformer.attention.sparse import Sparse
from dartformer.attention.uniform import Uniform
from dartformer.errors import InputError
from dartformer.kernels.cached import Recent, Summaries

LAYOUTS = [
    Recent(),
    Recent(last=1),
    Recent(last=5),
    Recent(first=3, last=4),
    Summaries(block=4, summary=1),
    Summaries(block=5, summary=3),
    Summaries(block=3, summary=3),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_a_layout_holds_what_was_written_last(layout):
    longest = 23
    slots = layout.slots(longest)
    held = np.full(slots, -1)
    positions = jnp.arange(longest)
    holds = np.asarray(jax.jit(layout.held, static_argnums=1)(positions, slots))
    places = np.asarray(jax.jit(layout.slot)(positions))
    for position in range(longest):
        np.testing.assert_array_equal(holds[position], held)
        slot = int(places[position])
        assert 0 <= slot < slots
        held[slot] = position
    assert (held >= 0).all()  # no slot is wasted
    assert layout.slots(2) <= 2


@pytest.mark.parametrize("text", [*ATTENTIONS, "cosformer(horizon=64)"])
def test_every_causal_type_decodes_or_says_that_it_does_not(text):
    attention = parse(text)
    if attention.traits.decodes:
        assert isinstance(attention, Decoder)
        require_decoding([attention])
        return
    assert not attention.traits.causal or text == "cosformer"
    with pytest.raises(InputError, match="cannot be run token by token because"):
        require_decoding([attention])


OPTIONS = [  # beside those of `test_every_attention_keeps_the_protocol`
    "block(size=5)",
    "sink(window=3, sinks=2)",
    "sparse(stride=5, summary=2)",
    "longformer(window=3, globals=5)",
    "bigbird(block=3, randoms=1)",
    "linear(feature='exp')",
    "cosformer(horizon=64)",
    "performer(kernel='relu')",
    "reformer(buckets=4, hashes=3, chunk=3)",
    "synthesizer(mode='random')",
    "conv(width=1)",
    "parallel(members=(local(window=3), retention))",
]


def case_of(text):
    return Case(parse(text), seed=1, heads=3, head_dim=8, length=53, tolerance=1e-9)


@pytest.mark.parametrize("text", OPTIONS)
def test_options_decode(text):
    with jax.enable_x64(True):
        case = case_of(text)
        decoding.steps_agree(case)
        decoding.cache_bytes(case)


@pytest.mark.slow
@pytest.mark.parametrize("text", [*ATTENTIONS, *OPTIONS])
def test_tokens_may_arrive_in_any_way(text):
    with jax.enable_x64(True):
        if parse(text).traits.decodes:
            decoding.steps_agree(case_of(text), decoding.more_schedules)


@dataclass(frozen=True)
class ForgetsAToken(Local):
    def kept(self):
        return Recent(last=self.window)


@dataclass(frozen=True)
class SeesTooFar(Local):
    def sees(self, inputs, query, key):
        return key >= query - self.window - 1

    def kept(self):
        return Recent(last=self.window + 2)


@dataclass(frozen=True)
class LosesItsSinks(Sink):
    def kept(self):
        return Recent(last=self.window + 1 + self.sinks)


@dataclass(frozen=True)
class NoSummaries(Sparse):
    def sees(self, inputs, query, key):
        return query // self.stride == key // self.stride


@dataclass(frozen=True)
class CountsPadding(Uniform):
    def advance(self, params, inputs, cache):
        return super().advance(params, dataclasses.replace(inputs, valid=None), cache)


@dataclass(frozen=True)
class DecaysAtPadding(Retention):
    def advance(self, params, inputs, cache):
        k = jnp.where(inputs.mask[:, :, None, None], inputs.k, 0)
        return super().advance(params, dataclasses.replace(inputs, k=k, valid=None), cache)


@dataclass(frozen=True)
class StartsAfresh(GatedDelta):
    def advance(self, params, inputs, cache):
        out, after = super().advance(params, inputs, cache)
        if inputs.v.shape[1] > 1:
            empty = jax.tree.map(jnp.zeros_like, cache)
            out, _ = super().advance(params, inputs, empty)
        return out, after


@dataclass(frozen=True)
class KeepsPaddedTaps(Conv):
    def advance(self, params, inputs, cache):
        v = jnp.where(inputs.mask[:, :, None, None], inputs.v, 0)
        return super().advance(params, dataclasses.replace(inputs, v=v, valid=None), cache)


@dataclass(frozen=True)
class IgnoresTheStart(Full):
    def step(self, params, inputs, cache):
        return super().step(params, dataclasses.replace(inputs, start=None), cache)


@dataclass(frozen=True)
class SumsInBfloat16(Linear):
    def advance(self, params, inputs, cache):
        out, after = super().advance(params, inputs, cache)

        return out, jax.tree.map(lambda a: a.astype(inputs.v.dtype).astype(a.dtype), after)


@dataclass(frozen=True)
class PricesEveryHead(Full):
    def cost(self, shape):
        return super().cost(dataclasses.replace(shape, kv_heads=0))


@dataclass(frozen=True)
class KeepsEverything(Local):
    def kept(self):
        return Recent()

    def cost(self, shape):
        return Local(self.window).cost(shape)


@dataclass(frozen=True)
class ReadsTheFirstGroup(Full):
    def step(self, params, inputs, cache):
        few = dataclasses.replace(inputs, groups=(0,) * inputs.q.shape[2])
        if inputs.v.shape[2] == inputs.q.shape[2]:
            few = inputs
        return super().step(params, few, cache)


@dataclass(frozen=True)
class TakesAnyCache(Retention):
    def step(self, params, inputs, cache):
        return inputs.v, cache


@dataclass(frozen=True)
class IgnoresSlopes(Full):
    def step(self, params, inputs, cache):
        return super().step(params, dataclasses.replace(inputs, slopes=None), cache)


@pytest.mark.parametrize(
    ("attention", "name"),
    [
        (ForgetsAToken(window=4), "steps_agree"),
        (SeesTooFar(window=4), "steps_agree"),
        (LosesItsSinks(window=4, sinks=2), "steps_agree"),
        (NoSummaries(stride=5), "steps_agree"),
        (CountsPadding(), "steps_agree"),
        (DecaysAtPadding(), "steps_agree"),
        (StartsAfresh(), "steps_agree"),
        (KeepsPaddedTaps(), "steps_agree"),
        (IgnoresTheStart(), "steps_agree"),
        (SumsInBfloat16(), "steps_in_float32"),
        (PricesEveryHead(), "cache_bytes"),
        (KeepsEverything(window=4), "cache_bytes"),
        (ReadsTheFirstGroup(), "shared_keys"),
        (TakesAnyCache(), "refuses_another_cache"),
        (IgnoresSlopes(), "steps_agree_with_slopes"),
    ],
    ids=lambda value: getattr(type(value), "__name__", value),
)
def test_a_wrong_step_fails(attention, name):
    prop = getattr(decoding, name)
    assert prop in properties.PROPERTIES  # so that `check` fails
    with jax.enable_x64(True):
        case = Case(attention, seed=0, heads=3, head_dim=8, length=53, tolerance=1e-6)
        with pytest.raises(Failed):
            prop(case)


def test_a_type_without_steps_says_so():
    with jax.enable_x64(True):
        case = Case(parse("cosformer"), seed=0, heads=3, head_dim=8, length=53, tolerance=1e-6)
        for prop in decoding.DECODING:
            with pytest.raises(NotApplicable, match="decodes"):
                prop(case)


def token(batch=2, heads=2, kept=2, width=4, tokens=1):
    q = jnp.ones((batch, tokens, heads, width))
    k = jnp.ones((batch, tokens, kept, width))
    return Inputs(q, k, k, start=jnp.zeros(batch, jnp.int32))


SHAPE = Shape(length=6, heads=2, head_dim=4, model_dim=8, batch=2)


def test_what_a_cache_refuses():
    full = parse("full")
    cache = full.init_cache(SHAPE)
    with pytest.raises(InputError, match=r"'k' is \[2, 2, 6, 4\], and the inputs need \[3, 2, any"):
        full.step({}, token(batch=3), cache)
    with pytest.raises(InputError, match="'k' is missing"):
        full.step({}, token(), {})
    with pytest.raises(InputError, match="the cache holds 6 tokens, got 7"):
        full.step({}, token(tokens=7), cache)
    with pytest.raises(InputError, match=r"prefill fills an empty cache, but inputs\.start"):
        full.prefill({}, token(), cache)
    with pytest.raises(InputError, match="needs head_keys"):
        parse("performer").init_cache(SHAPE)
    with pytest.raises(InputError, match="built for at most 5 tokens, got 6"):
        parse("cosformer(horizon=5)").init_cache(SHAPE)
    hybrid = parse("parallel")
    with pytest.raises(InputError, match="nothing for member 0"):
        hybrid.step({}, token(), {})


def test_a_finished_row_stays_as_it_is():
    full = parse("full")
    cache = full.init_cache(SHAPE)
    inputs = dataclasses.replace(token(), valid=jnp.array([[True], [False]]))
    out, after = full.step({}, inputs, cache)
    assert (np.asarray(out[1]) == 0).all()
    assert (np.asarray(out[0]) != 0).all()
    for name in "kv":
        np.testing.assert_array_equal(after[name][1], cache[name][1])
        assert np.asarray(after[name][0]).sum() == 2 * 4
