"""Programs for a GPU and a TPU, lowered without one: what `auto` chooses refuses none of them.

Lowering runs every rule of JAX's tracing and of its kernels, and no compiler. The quick tests take
a part of each product, and the slow ones all of it.
"""

import itertools
import re

import jax
import jax.numpy as jnp
import pytest

from dartformer import config as configs
from dartformer.accelerators.attention import gradient
from dartformer.accelerators.devices import DEVICES, described
from dartformer.attention import names, parse
from dartformer.attention.base import Shape
from dartformer.cli.new import SPACES
from dartformer.models.decode import decoding
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.stages.observe import curvature
from dartformer.stages.study import Study
from dartformer.training.step import begin, plain_step

TARGETS = {device.lowering: device.target for device in DEVICES.values()}

FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
KERNEL = "tpu_custom_call"
"""A kernel of Pallas: splash attention, or that of recurrences."""
CALLS = {
    # The QR decomposition of `performer`'s random features, and the eigenvalues of a curvature.
    "cuda": {
        FORWARD,
        BACKWARD,
        "cusolver_geqrf_ffi",
        "cusolver_orgqr_ffi",
        "cusolver_syevd_ffi",
    },
    "tpu": {"Qr", "ProductOfElementaryHouseholderReflectors", "Eigh", KERNEL},
}
"""What a program may call besides XLA's own operations."""


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    """A study does not look for the data of its task."""
    monkeypatch.setattr("dartformer.stages.study.Checks", NoTask)


class NoTask:
    """No task is one of these, whose data would have to be here."""


def lowered(function, shapes, platform):
    """The program as text, without any float64."""
    with described(TARGETS[platform]):
        traced = jax.jit(function).trace(*shapes)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert not re.search(r"\b(\d+x)*f64\b", text)
    return text


def calls_of(function, shapes, platform):
    """The names of what a program calls, every one of them known."""
    text = lowered(function, shapes, platform)
    calls = set(re.findall(r'stablehlo\.custom_call @"?([\w.$]+)', text))
    assert calls <= CALLS[platform]
    return calls


# Attentions.


def attention_program(name, platform, length, batch, dtype, causal, masked, order, width=8):
    """Its gradient or a second derivative, and the shapes that it takes."""
    shape = Shape(length, 2, width, 2 * width, batch, jnp.dtype(dtype).itemsize)
    options = {"dtype": dtype, "causal": causal, "masked": masked, "order": order}
    return gradient(parse(name), shape, TARGETS[platform], **options)


def options_of(name):
    """(length, batch, dtype, causal, masked, order) for an attention."""
    traits = parse(name).traits
    modes = [False] * traits.bidirectional + [True] * traits.causal
    orders = range(1, traits.order + 1)
    dtypes = ("bfloat16", "float32")
    return list(itertools.product((300, 301), (1, 2), dtypes, modes, (False, True), orders))


def uses_cudnn(name, dtype, order):
    """Whether an attention's gradient is cuDNN's."""
    return name in ("full", "parallel") and dtype == "bfloat16" and order == 1


LONG = 601
"""Tokens in more than one tile, and a number that nothing else has."""


@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize("name", names())
def test_an_attention_lowers_without_an_array_of_n_by_n(name, platform):
    """Forward and backward. The next type has another mode, mask and dtype, and so has the other
    platform."""
    turn = names().index(name) + (platform == "tpu")
    traits = parse(name).traits
    causal = traits.causal and (turn % 2 == 0 or not traits.bidirectional)
    dtype, masked = ("bfloat16", "float32")[turn // 2 % 2], turn // 4 % 2 == 0
    program = attention_program(name, platform, LONG, 2, dtype, causal, masked, 1)
    text = lowered(*program, platform)
    assert not re.search(rf"tensor<(\d+x)*{LONG}x(\d+x)*{LONG}x(\d+x)*(bf16|f32)>", text)
    calls = set(re.findall(r'stablehlo\.custom_call @"?([\w.$]+)', text))
    assert calls <= CALLS[platform]
    assert (BACKWARD in calls) == (platform == "cuda" and uses_cudnn(name, dtype, 1))


@pytest.mark.parametrize("name", names())
def test_a_second_derivative_of_an_attention_lowers(name):
    """For one platform; the next type has the other one."""
    number = names().index(name)
    if parse(name).traits.order < 2:
        return
    platform = tuple(TARGETS)[number % 2]
    options = [option for option in options_of(name) if option[-1] == 2]
    calls_of(*attention_program(name, platform, *options[37 * number % len(options)]), platform)


@pytest.mark.parametrize("length", [1, 301])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_full_attention_lowers_for_cudnn(length, causal, masked, order):
    program, shapes = attention_program(
        "full", "cuda", length, 1, "bfloat16", causal, masked, order
    )
    calls = calls_of(program, shapes, "cuda")
    assert (BACKWARD in calls) == (order == 1)


@pytest.mark.parametrize(
    ("name", "length", "causal", "masked"),
    [
        ("full", 301, False, True),
        ("full", 1025, True, False),
        ("local", 300, False, True),
        ("sink", 301, True, True),
    ],
)
@pytest.mark.parametrize("order", [1, 2])
def test_full_and_windows_lower_for_splash(name, length, causal, masked, order):
    options = (length, 1, "bfloat16", causal, masked, order)
    program, shapes = attention_program(name, "tpu", *options, width=32)
    assert KERNEL in calls_of(program, shapes, "tpu")


@pytest.mark.parametrize(("length", "width"), [(200, 32), (300, 8)])
def test_few_tokens_and_narrow_heads_take_no_splash(length, width):
    options = (length, 1, "bfloat16", False, True, 1)
    program, shapes = attention_program("full", "tpu", *options, width=width)
    assert not calls_of(program, shapes, "tpu")


@pytest.mark.parametrize(
    ("name", "length", "causal", "masked"),
    [
        ("retention", 300, True, True),
        ("ssd", 301, False, False),
        ("gated_linear", 300, False, True),
        ("gated_delta", 301, True, False),
    ],
)
@pytest.mark.parametrize("order", [1, 2])
def test_recurrences_lower_for_the_kernel_of_a_tpu(name, length, causal, masked, order):
    program, shapes = attention_program(name, "tpu", length, 2, "bfloat16", causal, masked, order)
    assert KERNEL in calls_of(program, shapes, "tpu")
    program, shapes = attention_program(name, "cuda", length, 2, "bfloat16", causal, masked, order)
    assert not calls_of(program, shapes, "cuda")


@pytest.mark.parametrize("name", ["full", "retention", "gated_linear", "gated_delta"])
def test_an_output_and_its_gradient_share_the_forward_pass_of_a_kernel(name):
    """Each kernel has one text, however often it is called: XLA merges only equal calls."""
    program = attention_program(name, "tpu", 300, 2, "bfloat16", False, True, 1, width=32)
    calls = set(
        re.findall(r'custom_call @tpu_custom_call.*kernel_name = "\w+"', lowered(*program, "tpu"))
    )
    kernels = [re.search(r'kernel_name = "(\w+)"', call)[1] for call in calls]
    assert len(kernels) == len(set(kernels)) > 1


@pytest.mark.parametrize("name", ["retention", "ssd", "gated_linear", "gated_delta"])
def test_recurrences_of_few_tokens_take_no_kernel(name):
    program, shapes = attention_program(name, "tpu", 200, 1, "bfloat16", False, True, 1)
    assert not calls_of(program, shapes, "tpu")


def test_programs_of_second_order_take_no_kernel_of_a_tpu():
    """Also where full attention takes the same one for first and second order, as with dropout."""
    changes = {"space.candidates": "full,retention", "model.attention_dropout": "0.1", **BFLOAT16}
    study = study_of("listops_published", 1, "tpu", **changes)
    assert KERNEL in calls_of(*searching(study), "tpu")
    assert KERNEL not in calls_of(*observing(study), "tpu")


@pytest.mark.slow
@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize("name", names())
def test_every_option_of_an_attention_lowers(name, platform):
    for options in options_of(name):
        calls = calls_of(*attention_program(name, platform, *options), platform)
        dtype, order = options[2], options[-1]
        expected = platform == "cuda" and uses_cudnn(name, dtype, order)
        assert (BACKWARD in calls) == expected, options


# Steps of configs.

CONFIGS = sorted(path.stem for path in SPACES.glob("[a-z]*.py"))

SIZES = {"model.mlp_dim": "16", "model.model_dim": "16", "data.batch_size": "2"}
"""Smaller, where no choice of a kernel depends on it."""


def study_of(name, layers, platform="cuda", **changes):
    """A config's study, with so many layers."""
    changes = {**SIZES, "model.layers": str(layers), **changes}
    return Study(configs.load_config(SPACES / f"{name}.py", changes), TARGETS[platform])


def batch_of(study, size=2):
    """Shapes of a batch."""
    tokens, valid = study.model.blank(size)
    label = jax.ShapeDtypeStruct((size,), jnp.int32)
    if study.task.traits.per_token:
        label = jax.ShapeDtypeStruct(valid.shape, jnp.int32)
    return {"tokens": tokens, "valid": valid, "label": label}


def training(study, genotype=None):
    """The step that trains a model, or `full` alone."""
    alone = Genotype(((parse("full"),) * study.model.heads,) * study.model.layers)
    genotype = genotype or alone
    program = study.program(genotype)
    state = jax.eval_shape(lambda: begin(program.network, program.optimizer, 0))
    step = plain_step(program.network, program.optimizer, study.metric)
    return step, (state, batch_of(study))


def searching(study):
    """The step of the search."""
    strategy = study.strategy_of()
    state = jax.eval_shape(lambda: strategy.init(*keys_and_weights(study)))
    batch = batch_of(study)
    return strategy.step, (state, batch, batch)


def keys_and_weights(study):
    key = jax.random.key(0)
    return key, study.supernet.network.init(key)


def observing(study):
    """The curvature that `search.observe` measures before the first step."""
    _, (state, batch, _) = searching(study)
    return curvature(study), (state, batch)


BFLOAT16 = {"model.dtype": "bfloat16"}
TWO = {"space.candidates": "full,linear", **BFLOAT16}


@pytest.mark.parametrize("name", ["image", "listops", "matching"])
def test_a_published_config_trains_full_attention(name):
    # The last layer of a model with a CLS token computes one query, by another kernel.
    study = study_of(f"{name}_published", 2, **BFLOAT16)
    calls = calls_of(*training(study), "cuda")
    assert (BACKWARD in calls) == (study.model.head_dim % 8 == 0)


@pytest.mark.parametrize(
    ("name", "platform"), [("listops_published", "tpu"), ("imdb_bytes_published", "cuda")]
)
def test_a_search_lowers_with_the_curvature_that_it_observes(name, platform):
    """Three layers are one loop; lengths are even in one and odd in the other."""
    study = study_of(name, 3, platform, **TWO)
    assert (BACKWARD in calls_of(*searching(study), platform)) == (platform == "cuda")
    assert BACKWARD not in calls_of(*observing(study), platform)


@pytest.mark.parametrize("platform", TARGETS)
def test_an_exact_search_lowers_without_cudnn(platform):
    changes = {**TWO, "search.strategy.hypergradient": "second"}
    study = study_of("imdb_bytes_published", 1, platform, **changes)
    assert BACKWARD not in calls_of(*searching(study), platform)
    assert study.model.kernel == "auto"


@pytest.mark.parametrize("platform", TARGETS)
def test_a_derived_model_lowers(platform):
    """Heads of four types in a layer."""
    study = study_of("listops_published", 2, platform, **BFLOAT16)
    texts = ("full", "linear", "local", "gated_delta")
    heads = tuple(parse(texts[h % 4]) for h in range(study.model.heads))
    calls = calls_of(*training(study, Genotype((heads, heads))), platform)
    assert (BACKWARD in calls) == (platform == "cuda")


@pytest.mark.parametrize("platform", TARGETS)
def test_decoding_lowers(platform):
    """A prompt, and one more token, of heads of all types that decode."""
    types = [parse(name) for name in names() if parse(name).traits.decodes]
    changes = {"model.heads": str(len(types)), "model.kv_heads": "0", **BFLOAT16}
    config = study_of("language_published", 1, platform, **changes).model
    genotype = Genotype((tuple(types),))
    run = decoding(config, genotype)
    weights = jax.eval_shape(transformer(config, genotype).init, jax.random.key(0))
    cache = jax.eval_shape(lambda: run.init_cache(2, config.tokens, jnp.dtype(config.dtype)))
    for length, function in ((200, run.prefill), (1, run.step)):
        tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
        valid = jax.ShapeDtypeStruct((2, length), bool)
        calls_of(function, (weights, tokens, valid, cache), platform)


RESPONSES = ("first", "second", "finite", "neumann", "conjugate_gradient")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_of_a_config_lowers(name, platform, dtype):
    study = study_of(name, 3, platform, **{"model.dtype": dtype})
    calls_of(*training(study), platform)
    calls_of(*observing(study), platform)
    responses = (None,)
    if hasattr(study.strategy, "hypergradient"):
        responses = RESPONSES
    for response in responses:
        changes = {"model.dtype": dtype}
        if response is not None:
            changes["search.strategy.hypergradient"] = response
        calls_of(*searching(study_of(name, 3, platform, **changes)), platform)


@pytest.mark.slow
def test_a_forced_kernel_lowers_in_an_exact_search():
    changes = {"model.kernel": "cudnn", "search.strategy.hypergradient": "second"}
    study = study_of("listops_published", 3, **TWO, **changes)
    assert BACKWARD in calls_of(*searching(study), "cuda")
