"""The conformance suite passes on every attention, and fails each wrong one for its mistake."""

import dataclasses
import os
from dataclasses import dataclass

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SLOW_TESTS

from dartformer.attention import ATTENTIONS, ConformanceError, Inputs, Shape, check, parse
from dartformer.attention.base import Cost, zero_invalid
from dartformer.attention.conformance import process as check_process
from dartformer.attention.conformance import properties
from dartformer.attention.conformance.case import Case, Failed, NotApplicable
from dartformer.attention.full import Full
from dartformer.attention.linformer import Linformer
from dartformer.attention.local import Local
from dartformer.attention.reformer import Reformer
from dartformer.errors import InputError
from dartformer.kernels.softmax import dense_allowed, masked_softmax, softmax_attention

TYPES = (
    *ATTENTIONS,
    "local(window=0)",
    "local(window=3)",
    "linformer(rank=5, sharing='kv')",
    "linear(feature='relu')",
    "linear(feature='hedgehog')",
    "window_linear(window=0, features=3)",
    "sparse(stride=5, pattern='strided')",
    "synthesizer(mode='factorised')",
)


@pytest.mark.parametrize("text", TYPES)
def test_every_attention_keeps_the_protocol(text):
    report = check(parse(text), tolerance=1e-9)
    assert [r.name for r in report.results] == [p.__name__ for p in properties.PROPERTIES]
    assert all(r.detail for r in report.results)
    assert report["text_round_trip"].status == "passed"
    assert report["definition"].status == "passed"


CORE = (
    properties.definition,
    properties.definition_gradients_agree,
    properties.padded_rows_are_zero,
    properties.padding_content,
    properties.causality,
    properties.head_slicing,
    properties.cost_parameters,
)
"""The equation, masks and parameters, for types whose whole protocol is left to `make test-slow`."""

WHOLE = "tests/attention/test_check.py::test_every_attention_keeps_the_protocol"


@pytest.mark.parametrize("text", [text for text in TYPES if f"{WHOLE}[{text}]" in SLOW_TESTS])
def test_types_that_are_slow_to_check_keep_the_core_of_the_protocol(text):
    with jax.enable_x64(True):
        case = Case(parse(text), seed=0, heads=3, head_dim=8, length=53, tolerance=1e-9)
        for prop in CORE:
            try:
                assert prop(case)
            except NotApplicable:
                assert prop in (properties.causality, properties.head_slicing), prop.__name__


def fails(attention, *names):
    """Assert that each of the named properties fails on `attention`."""
    with jax.enable_x64(True):
        case = Case(attention, seed=0, heads=3, head_dim=8, length=53, tolerance=1e-6)
        for name in names:
            assert getattr(properties, name) in properties.PROPERTIES  # so that `check` fails
            with pytest.raises(Failed):
                getattr(properties, name)(case)


def dense(inputs, allowed):
    """softmax over `allowed`, with padding left out of keys and of queries."""
    scores = jnp.einsum("bnhd,bkhd->bhnk", inputs.q, inputs.k) / np.sqrt(inputs.q.shape[-1])
    weights = masked_softmax(scores, allowed & inputs.mask[:, None, None, :])
    return zero_invalid(
        jnp.einsum("bhnk,bkhd->bnhd", weights, inputs.v).astype(inputs.v.dtype), inputs.mask
    )


def square(inputs):
    """Positions of queries [N, 1] and keys [N]."""
    i = jnp.arange(inputs.q.shape[1])
    return i[:, None], i


@dataclass(frozen=True)
class LosesItsOwnToken(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = softmax_attention(inputs.q, inputs.k, inputs.v, causal=causal, valid=inputs.valid)
        return zero_invalid(jnp.roll(out, 1, axis=1), inputs.mask)  # one place late


@dataclass(frozen=True)
class IgnoresItsOwnKey(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        i, j = square(inputs)
        return dense(inputs, (i != j) & ((j <= i) | (not causal)))


@dataclass(frozen=True)
class StridedLocal(Local):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        i, j = square(inputs)
        return dense(inputs, (i % 4 == j % 4) & ((j <= i) | (not causal)))


@dataclass(frozen=True)
class SeesPadding(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return zero_invalid(
            softmax_attention(inputs.q, inputs.k, inputs.v, causal=causal), inputs.mask
        )


@dataclass(frozen=True)
class OutputsAtPadding(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return softmax_attention(inputs.q, inputs.k, inputs.v, causal=causal, valid=inputs.valid)


@dataclass(frozen=True)
class TrailingPaddingOnly(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        count = inputs.mask.sum(1, keepdims=True)
        return Full.__call__(
            self,
            params,
            dataclasses.replace(inputs, valid=square(inputs)[1] < count),
            causal=causal,
        )


@dataclass(frozen=True)
class AlwaysCausal(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return Full.__call__(self, params, inputs, causal=True)


@dataclass(frozen=True)
class CausalByDefinition(AlwaysCausal):
    def weights(self, params, inputs, *, causal=False):
        return Full.weights(self, params, inputs, causal=True)


@dataclass(frozen=True)
class NeverCausal(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return Full.__call__(self, params, inputs)


@dataclass(frozen=True)
class ScramblesHeadsAndTime(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal)
        return out.transpose(0, 2, 1, 3).reshape(out.shape)  # [B, H, N, D] read as [B, N, H, D]


@dataclass(frozen=True)
class ScramblesByDefinition(ScramblesHeadsAndTime):
    traits = dataclasses.replace(Full.traits, matrix=False)

    def weights(self, params, inputs, *, causal=False):
        return None

    def reference(self, params, inputs, *, causal=False):
        return self(params, inputs, causal=causal)


@dataclass(frozen=True)
class HidesItsWeights(Full):
    def weights(self, params, inputs, *, causal=False):
        return None


@dataclass(frozen=True)
class HasNoReference(HidesItsWeights):
    traits = dataclasses.replace(Full.traits, matrix=False)


@dataclass(frozen=True)
class OtherGraphInEachProcess(Full):
    """Its graph hangs on Python's hash of a string, as that of the original BigBird code does."""

    traits = dataclasses.replace(Full.traits, causal=False)

    def graph(self, length):
        return np.random.default_rng(abs(hash("bigbird"))).random((length, length)) < 0.3

    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return dense(inputs, self.graph(inputs.q.shape[1]))

    def weights(self, params, inputs, *, causal=False):
        scores = jnp.einsum("bnhd,bkhd->bhnk", inputs.q, inputs.k) / np.sqrt(inputs.q.shape[-1])
        keys = inputs.mask[:, None, None, :]
        return (
            masked_softmax(scores, keys & self.graph(inputs.q.shape[1]))
            * inputs.mask[:, None, :, None]
        )


@dataclass(frozen=True)
class EndsTheProcess(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        if os.environ.get("PYTHONHASHSEED") == check_process.HASH_SEED:
            os._exit(3)
        return Full.__call__(self, params, inputs, causal=causal)


@dataclass(frozen=True)
class DeadSortNet(Full):
    """Sorts blocks as the original Sinkhorn code does.

    Keys and the sorting matrix are summed apart: every sorted block is the sum of all, the rows of
    the matrix sum to one, and its parameters get rounding for gradient.
    """

    traits = dataclasses.replace(Full.traits, causal=False)

    def init(self, key, shape):
        return {"sort": jax.random.normal(key, (shape.heads, shape.head_dim, 4))}

    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        keys = zero_invalid(inputs.k, inputs.mask)
        length = keys.shape[1]
        blocks = jnp.pad(keys, ((0, 0), (0, -length % 4), (0, 0), (0, 0)))
        blocks = blocks.reshape(len(keys), 4, -1, *keys.shape[2:])
        rows = jax.nn.softmax(jnp.einsum("buthd,hdm->bhum", blocks, params["sort"]))
        k = jnp.einsum("bvthd,bhum->buthd", blocks, rows).reshape(len(keys), -1, *keys.shape[2:])[
            :, :length
        ]
        return Full.__call__(self, params, dataclasses.replace(inputs, k=k))


@dataclass(frozen=True)
class ChunksOfAllTokens(Reformer):
    """Causal as published: later keys are masked, but chunks are cut among all tokens."""

    def _times(self, inputs, causal):
        i, bucket = square(inputs), self.hashed(inputs, causal=causal)[0]
        key_bucket = bucket[..., None, :]
        rank = (
            (key_bucket < bucket[..., None]) | ((key_bucket == bucket[..., None]) & (i[1] < i[0]))
        ).sum(-1) // self.chunk
        back = rank[..., None] - rank[..., None, :]
        return (
            (key_bucket == bucket[..., None]) & ((back == 0) | (back == 1)) & (i[1] < i[0])
        ).sum(2)

    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return jnp.einsum("bhnk,bkhd->bnhd", self.weights(params, inputs, causal=True), inputs.v)


@dataclass(frozen=True)
class ExamplesTalk(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal)
        return zero_invalid(
            out / jnp.sqrt(jnp.mean(out**2, axis=(0, 1), keepdims=True)), inputs.mask
        )


@dataclass(frozen=True)
class DividesByTheOthers(Full):
    """Its gradient at one token is 0 / 0."""

    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal)
        spread = jnp.sqrt(jnp.var(inputs.v, axis=1, keepdims=True))
        return out * (1 + zero_invalid(spread, inputs.mask))


@dataclass(frozen=True)
class ScoresInFloat16(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        scores = jnp.einsum(
            "bnhd,bkhd->bhnk", inputs.q, inputs.k
        )  # in the dtype of q: over 65504 is infinite
        rows = masked_softmax(
            scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
            / np.sqrt(inputs.q.shape[-1]),
            dense_allowed(inputs.q.shape[1], causal=causal, valid=inputs.valid),
        )
        return zero_invalid(
            jnp.einsum("bhnk,bkhd->bnhd", rows, inputs.v).astype(inputs.v.dtype), inputs.mask
        )


@dataclass(frozen=True)
class CostsMoreThanItSays(Local):
    def cost(self, shape):
        return Full().cost(shape)


@dataclass(frozen=True)
class MeansWhereAllIsMasked(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal)
        return jnp.where(
            inputs.mask.any(1)[:, None, None, None], out, inputs.v.mean(1, keepdims=True)
        )


@dataclass(frozen=True)
class DetachedKeys(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        still = dataclasses.replace(inputs, k=jax.lax.stop_gradient(inputs.k))
        return Full.__call__(self, params, still, causal=causal)


@dataclass(frozen=True)
class LowPrecision(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        dtype = inputs.v.dtype
        low = Inputs(
            *(a.astype(jnp.bfloat16) for a in (inputs.q, inputs.k, inputs.v)), None, inputs.valid
        )
        return Full.__call__(self, params, low, causal=causal).astype(dtype)


@dataclass(frozen=True)
class SumsInTheInputsDtype(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        scores = jnp.einsum("bnhd,bkhd->bhnk", inputs.q, inputs.k) / np.sqrt(
            inputs.q.shape[-1]
        ).astype(inputs.q.dtype)
        i, j = square(inputs)
        allowed = inputs.mask[:, None, None, :] & ((j <= i) | (not causal))
        e = jnp.where(allowed, jnp.exp(scores), 0)
        total, _ = jax.lax.scan(
            lambda s, x: (s + x, None), jnp.zeros_like(e[..., 0]), jnp.moveaxis(e, -1, 0)
        )
        out = jnp.einsum(
            "bhnk,bkhd->bnhd", e / jnp.where(total == 0, 1, total)[..., None], inputs.v
        )
        return zero_invalid(out, inputs.mask)


@dataclass(frozen=True)
class WrongDtype(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return Full.__call__(self, params, inputs, causal=causal).astype(jnp.float32)


@dataclass(frozen=True)
class HiddenNoise(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal)
        return out if key is None else out * jax.random.uniform(key, out.shape)


@dataclass(frozen=True)
class UndeclaredDropout(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal)
        return out * jax.random.bernoulli(key, shape=out.shape) if train else out


@dataclass(frozen=True)
class HeadsTalk(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal)
        return out + out.mean(axis=2, keepdims=True)


@dataclass(frozen=True)
class KnowsItsHeadNumber(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal)
        return out * (1 + jnp.arange(out.shape[2]))[:, None].astype(out.dtype)


@dataclass(frozen=True)
class SaysItReadsX(Full):
    traits = dataclasses.replace(Full.traits, reads=frozenset("qkvx"))


@dataclass(frozen=True)
class SaysItIsLinear(Full):
    traits = dataclasses.replace(Full.traits, growth=1.0)


@dataclass(frozen=True)
class ForgetsTheTwo(Full):
    def cost(self, shape):
        cost = Full.cost(self, shape)
        return Cost(cost.flops / 2, 7, cost.activation_bytes, cost.state_bytes)


@dataclass(frozen=True)
class DeadParameter(Linformer):
    def init(self, key, shape):
        return {**super().init(key, shape), "dead": jnp.ones((shape.heads, 4))}


@dataclass(frozen=True)
class HeadsAlike(Linformer):
    def init(self, key, shape):
        return jax.tree.map(lambda p: jnp.broadcast_to(p[:1], p.shape), super().init(key, shape))


@dataclass(frozen=True)
class HeadsLast(Linformer):
    def init(self, key, shape):
        return jax.tree.map(lambda p: jnp.moveaxis(p, 0, -1), super().init(key, shape))


@dataclass(frozen=True)
class IgnoresCausal(Linformer):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return super().__call__(params, inputs)


@dataclass(frozen=True)
class CutsLongInputs(Linformer):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        limit = params["E"].shape[-1]
        cut = Inputs(
            *(a[:, :limit] for a in (inputs.q, inputs.k, inputs.v)), None, inputs.mask[:, :limit]
        )
        return super().__call__(params, cut, causal=causal)


@dataclass(frozen=True)
class Overflows(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        e = (
            jnp.exp(jnp.einsum("bnhd,bkhd->bhnk", inputs.q, inputs.k))
            * inputs.mask[:, None, None, :]
        )
        return zero_invalid(
            jnp.einsum("bhnk,bkhd->bnhd", e / e.sum(-1, keepdims=True), inputs.v), inputs.mask
        )


@jax.custom_vjp
def reverse_only(x):
    return x


@jax.custom_vjp
def differentiable_once(x):
    return x


reverse_only.defvjp(lambda x: (x, None), lambda _, g: (g,))
# The gradient passes through a function without a forward derivative, as fused kernels' gradients
# do.
differentiable_once.defvjp(lambda x: (x, None), lambda _, g: (reverse_only(g),))


@dataclass(frozen=True)
class DifferentiableOnce(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return differentiable_once(
            Full.__call__(self, params, inputs, causal=causal, train=train, key=key)
        )


@dataclass(frozen=True)
class IgnoresSlopes(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return Full.__call__(self, params, dataclasses.replace(inputs, slopes=None), causal=causal)


@dataclass(frozen=True)
class IgnoresDropout(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return Full.__call__(self, params, inputs, causal=causal)


@dataclass(frozen=True)
class DropsInEvaluation(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return Full.__call__(self, params, inputs, causal=causal, train=inputs.dropout > 0, key=key)


@dataclass(frozen=True)
class DropsWithoutRescaling(Full):
    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        out = Full.__call__(self, params, inputs, causal=causal, train=train, key=key)
        return out * (1 - inputs.rate(train))


@dataclass(frozen=True)
class TakesAnything(Full):
    traits = dataclasses.replace(Full.traits, positions=frozenset(), dropout="")

    def __call__(self, params, inputs, *, causal=False, train=False, key=None):
        return Full.__call__(
            self, params, dataclasses.replace(inputs, slopes=None, dropout=0.0), causal=causal
        )


@dataclass
class Mutable(Full.__bases__[0]):
    window: int = 3
    traits = Full.traits
    init, __call__, weights, cost = Full.init, Full.__call__, Full.weights, Full.cost


@pytest.mark.parametrize(
    ("attention", "names"),
    [
        (LosesItsOwnToken(), ["definition", "own_token", "causality"]),
        (IgnoresItsOwnKey(), ["definition", "definition_gradients_agree", "odd_lengths"]),
        (StridedLocal(window=2), ["definition", "growth"]),
        (
            SeesPadding(),
            [
                "definition",
                "padding_sends_nothing",
                "padding_content",
                "padding_holes",
                "padding_length",
            ],
        ),
        (OutputsAtPadding(), ["padded_rows_are_zero"]),
        (TrailingPaddingOnly(), ["definition", "padding_holes"]),
        (AlwaysCausal(), ["definition", "looks_ahead"]),
        (CausalByDefinition(), ["looks_ahead"]),
        (NeverCausal(), ["causality"]),
        (ScramblesHeadsAndTime(), ["definition", "causality", "padded_rows_are_zero"]),
        (ScramblesByDefinition(), ["causality", "head_slicing", "padding_length"]),
        (HidesItsWeights(), ["definition"]),
        (HasNoReference(), ["definition"]),
        (OtherGraphInEachProcess(), ["other_processes"]),
        (EndsTheProcess(), ["other_processes"]),
        (DeadSortNet(), ["parameters_live"]),
        (ChunksOfAllTokens(buckets=4, chunk=4), ["causality"]),
        (ExamplesTalk(), ["vmap_and_remat"]),
        (DividesByTheOthers(), ["tiny_gradients"]),
        (ScoresInFloat16(), ["float16_range"]),
        (CostsMoreThanItSays(), ["growth"]),
        (MeansWhereAllIsMasked(), ["padded_rows_are_zero", "padding_sends_nothing"]),
        (DetachedKeys(), ["definition_gradients_agree", "reads_what_it_says"]),
        (LowPrecision(), ["definition"]),
        (SumsInTheInputsDtype(), ["precision"]),
        (WrongDtype(), ["shape_and_dtype"]),
        (HiddenNoise(), ["determinism"]),
        (UndeclaredDropout(), ["determinism"]),
        (HeadsTalk(), ["head_slicing", "definition"]),
        (KnowsItsHeadNumber(), ["head_slicing"]),
        (SaysItReadsX(), ["reads_what_it_says"]),
        (SaysItIsLinear(), ["growth"]),
        (ForgetsTheTwo(), ["cost_flops", "cost_parameters"]),
        (DeadParameter(4), ["parameters_live"]),
        (HeadsAlike(4), ["parameters_lead_with_heads"]),
        (HeadsLast(4), ["parameters_lead_with_heads"]),
        (IgnoresCausal(4), ["refuses_the_other_mode"]),
        (CutsLongInputs(4), ["refuses_longer_inputs"]),
        (Overflows(), ["large_inputs"]),
        (IgnoresSlopes(), ["alibi"]),
        (IgnoresDropout(), ["attention_dropout"]),
        (DropsInEvaluation(), ["attention_dropout"]),
        (DropsWithoutRescaling(), ["attention_dropout"]),
        (TakesAnything(), ["refuses_unsupported_inputs"]),
        (Mutable(), ["frozen_dataclass"]),
    ],
    ids=lambda a: (
        type(a).__name__ if isinstance(a, Full | Linformer | Local | Mutable | Reformer) else ""
    ),
)
def test_planted_mistakes_are_found(attention, names):
    fails(attention, *names)


def test_a_missing_second_derivative_is_reported_and_the_others_still_run():
    with pytest.raises(ConformanceError) as caught:
        check(DifferentiableOnce())
    report = caught.value.report
    assert [r.name for r in report.failed] == ["second_order"]
    assert f"fails 1 of {len(properties.PROPERTIES)} properties" in str(caught.value)
    assert len(report.results) == len(properties.PROPERTIES)


def test_the_error_lists_every_failure_with_numbers():
    report = check(ForgetsTheTwo(), raise_=False)
    error = str(ConformanceError(report))
    assert "cost_flops: cost says 1.09e+06 FLOPs, XLA counts 2.1" in error
    assert "cost_parameters: cost says 7 parameters, init makes 0" in error
    assert "text_round_trip" not in error
    assert "not applicable  its class is not registered" in str(report)
    assert not report.ok


def test_what_does_not_apply_says_why():
    @dataclass(frozen=True)
    class Inside(Full):
        pass

    with jax.enable_x64(True):
        case = Case(Inside(), seed=0, heads=3, head_dim=8, length=53, tolerance=1e-6)
        with pytest.raises(
            NotApplicable,
            match=r"defined in .*<locals>\.Inside, which another process cannot import",
        ):
            properties.other_processes(case)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_no_tokens_at_all_are_refused(name):
    attention, shape = parse(name), Shape(length=8, heads=2, head_dim=4, model_dim=8)
    params = jax.eval_shape(lambda key: attention.init(key, shape), jax.random.key(0))
    q, x = np.zeros((1, 0, 2, 4), np.float32), np.zeros((1, 0, 8), np.float32)
    inputs = Inputs(q, q, q, x, np.zeros((1, 0), bool), jax.random.split(jax.random.key(0), 2))
    with pytest.raises(InputError, match="length must be at least 1, got 0"):
        jax.eval_shape(
            lambda p, i: attention(p, i, causal=not attention.traits.bidirectional), params, inputs
        )


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_batch_may_be_a_symbol_in_exports(name):
    attention, length = parse(name), 53
    params = attention.init(jax.random.key(0), Shape(length, heads=2, head_dim=4, model_dim=8))
    batch, keys = jax.export.symbolic_shape("b")[0], jax.random.split(jax.random.key(0), 2)

    def run(q, x, valid):
        return attention(
            params, Inputs(q, q, q, x, valid, keys), causal=not attention.traits.bidirectional
        )

    exported = jax.export.export(jax.jit(run))(
        jax.ShapeDtypeStruct((batch, length, 2, 4), jnp.float32),
        jax.ShapeDtypeStruct((batch, length, 8), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), bool),
    )
    assert str(exported.out_avals[0].shape[0]) == "b"
