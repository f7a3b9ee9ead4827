"""A model token by token gives the logits of the model at once, whatever its options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import parse
from dartformer.attention.conformance.case import quick
from dartformer.cost.analytic import attention_cost
from dartformer.errors import InputError
from dartformer.models.decode import decoding
from dartformer.models.layerwise import apply_by_layer, layer_kinds, repeats_layers
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype

N = 21
VOCABULARY = 11


def sizes(**changes):
    options = {
        "layers": 2,
        "heads": 4,
        "head_dim": 4,
        "model_dim": 12,
        "mlp_dim": 16,
        "vocabulary": VOCABULARY,
        "classes": VOCABULARY,
        "length": N,
        "causal": True,
        "pooling": "none",
    }
    return TransformerConfig(**{**options, **changes})


def genotype(*layers):
    """Layers as lists of four specs, or of one for all heads."""
    parsed = []
    for specs in layers:
        attentions = tuple(map(parse, specs))
        if len(attentions) == 1:
            attentions = attentions * 4
        parsed.append(attentions)
    return Genotype(tuple(parsed))


MIXED = genotype(["full", "local(window=3)", "full", "retention"], ["gated_delta"])
TYPES = [
    "sink(window=3, sinks=2)",
    "ssd",
    "performer(features=8)",
    "parallel(members=(local(window=3), retention))",
    "full",
    "local(window=3)",
    "linear",
    "gated_linear",
    "window_linear(window=3)",
    "conv",
    "bigbird(block=2, randoms=1)",
]


@pytest.fixture(scope="module")
def rows():
    """Tokens with padding at the end, at the start, inside and nowhere."""
    random = np.random.default_rng(0)
    tokens = random.integers(1, VOCABULARY, (4, N)).astype(np.int32)
    valid = np.ones((4, N), bool)
    valid[1, N - 4 :] = False
    valid[2, :6] = False
    valid[3, 5:8] = False
    return np.where(valid, tokens, 0), valid


def reference(config, derived, weights, rows):
    """Logits after each token of each row alone, `[B, N, C]` in the places of the tokens."""
    tokens, valid = rows
    apply = quick(transformer(config, derived).apply)
    order = np.argsort(~valid, axis=1, kind="stable")
    front = [np.take_along_axis(a, order, axis=1) for a in (tokens, valid)]
    logits = np.asarray(apply(weights, *front))
    back = np.argsort(order, axis=1)
    return np.take_along_axis(logits, back[:, :, None], axis=1)


def drawn(config, derived):
    """Weights away from where they begin, so that no bias is zero."""
    weights = transformer(config, derived).init(jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda w: np.asarray(w) + 0.1 * random.standard_normal(w.shape).astype(w.dtype), weights
    )


def decode(config, derived, weights, rows, prompt, chunk=1):
    """Logits after the prompt and after each chunk, and the tokens that they follow."""
    tokens, valid = map(jnp.asarray, rows)
    run = decoding(config, derived)
    cache = run.init_cache(4, N, jnp.dtype(config.dtype))
    prefill, step = quick(run.prefill), quick(run.step)
    outputs = []
    first = 0
    if prompt:
        logits, cache = prefill(weights, tokens[:, :prompt], valid[:, :prompt], cache)
        outputs.append((logits, 0, prompt))
        first = prompt
    while first < N:
        stop = min(first + chunk, N)
        logits, cache = step(weights, tokens[:, first:stop], valid[:, first:stop], cache)
        outputs.append((logits, first, stop))
        first = stop
    np.testing.assert_array_equal(cache["count"], rows[1].sum(1))
    return outputs


def agree(config, derived, rows, prompt=7, chunk=1):
    weights = drawn(config, derived)
    expected = reference(config, derived, weights, rows)
    valid = rows[1]
    compared = 0
    for logits, first, stop in decode(config, derived, weights, rows, prompt, chunk):
        for row in range(4):
            new = np.flatnonzero(valid[row, first:stop])
            if len(new):
                want = expected[row, first + new[-1]]
                np.testing.assert_allclose(logits[row], want, atol=2e-5, rtol=2e-5)
                compared += 1
    assert compared > 20


def test_a_model_of_many_types(rows):
    """Sinks, a state of what reads x, random keys, and several attentions at once."""
    agree(sizes(layers=1), genotype(TYPES[:4]), rows)


@pytest.mark.slow
@pytest.mark.parametrize("text", TYPES)
def test_a_model_of_one_type(text, rows):
    agree(sizes(), genotype([text], [text]), rows)


@pytest.mark.parametrize(
    ("prompt", "chunk"),
    [
        (0, 1),
        pytest.param(1, 4, marks=pytest.mark.slow),
        pytest.param(N - 1, 1, marks=pytest.mark.slow),
        (13, 3),
    ],
)
def test_prompts_and_chunks_of_any_length(prompt, chunk, rows):
    weights = drawn(sizes(), MIXED)
    expected = reference(sizes(), MIXED, weights, rows)
    for logits, _, stop in decode(sizes(), MIXED, weights, rows, prompt, chunk):
        np.testing.assert_allclose(logits[0], expected[0, stop - 1], atol=2e-5)


OPTIONS = [
    {"kv_heads": 2, "positions": "rotary"},
    {"kv_heads": 1, "positions": "alibi"},
    {"kv_heads": 2, "qk_norm": True, "qk_norm_shared": True, "positions": "rotary"},
    {"positions": "sinusoidal", "branch_norm": False},
    {"positions": "none", "stem": "bigram"},
    {"position_offset": 2, "token_types": 2, "embed_norm": True},
    {"norm": "rms", "gated_mlp": True, "activation": "silu", "mlp_bias": False},
    {"norm_place": "after", "qkv_bias": True, "out_bias": True},
    {"tie_embeddings": True, "classifier": "linear", "head_bias": False},
    {"short_conv": 4, "output_gate": "silu", "kv_heads": 2},
    {"positions": "rotary", "rope_theta": 100.0, "nope_layers": (1,)},
    {"classifier": "mlp"},
]


def of_options(changes, rows):
    types = ["full", "local(window=3)", "full", "full"]
    agree(sizes(**changes), genotype(types, ["local(window=2)"]), rows)


@pytest.mark.parametrize(
    "numbers", [(2, 10), (1,), (3, 6, 8), (5, 7), (4, 9, 11)], ids=lambda numbers: str(numbers)
)
def test_options_of_the_model_together(numbers, rows):
    changes = {}
    for number in numbers:
        changes |= OPTIONS[number]
    of_options(changes, rows)


@pytest.mark.slow
@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_options_of_the_model(changes, rows):
    of_options(changes, rows)


SINK, SPARSE = "sink(window=3, sinks=2)", "sparse(stride=4, summary=1)"
SHARED = {  # four heads, of which two share keys; and how many keys are kept
    "a window within": (["full", "local(window=3)", "full", "full"], 2 * N),
    "a window with another head": (["local(window=3)", "full", "local(window=3)", "conv"], N + 4),
    "sinks and windows": (["full", SINK, "local(window=3)", SINK], N + 4 + 6),
    "summaries": (["full", SPARSE, "full", "local(window=3)"], 2 * N),
    "several that keep all": (["full", "strided(stride=3)", "full", "full"], 3 * N),
}


@pytest.mark.parametrize("name", SHARED)
def test_heads_that_share_keys_keep_them_once(name, rows):
    types, tokens = SHARED[name]
    config, derived = sizes(kv_heads=2, layers=1), genotype(types)
    agree(config, derived, rows, prompt=9)
    cache = jax.eval_shape(lambda: decoding(config, derived).init_cache(4, N, jnp.float32))
    keys = [kept["k"].shape for kept in cache["layers"][0].values() if "k" in kept]
    assert sum(heads * slots for _, heads, slots, _ in keys) == tokens


def test_keys_of_a_checkpoint_are_kept_once():
    """Nine heads of which three share keys, and one of these is full: the window's are there."""
    config = sizes(heads=9, kv_heads=3, head_dim=64, length=1024, layers=1)
    row = tuple(map(parse, ("full", "local(window=31)", "local(window=31)") * 3))
    assert attention_cost(config, Genotype((row,)), 0).state_bytes == 1536 * 2**10


@pytest.mark.parametrize("seed", range(20))
def test_the_cache_has_the_bytes_that_are_priced(seed):
    random = np.random.default_rng(seed)
    names = [*TYPES, "strided(stride=3)", "sparse(stride=4, summary=1)", "block(size=4)"]
    heads = int(random.choice([4, 6]))
    config = sizes(heads=heads, kv_heads=int(random.choice([1, 2, heads])), layers=1)
    row = tuple(map(parse, random.choice(names, heads)))
    derived = Genotype((row,))
    cache = jax.eval_shape(lambda: decoding(config, derived).init_cache(3, N, jnp.float32))
    held = sum(leaf.size * 4 for leaf in jax.tree.leaves(cache["layers"][0]))
    assert held == attention_cost(config, derived, 0, batch=3).state_bytes


def test_a_bfloat16_cache(rows):
    config = sizes()
    weights = drawn(config, MIXED)
    run = decoding(config, MIXED)
    tokens, valid = map(jnp.asarray, rows)
    results = []
    for dtype in (jnp.float32, jnp.bfloat16):
        cache = run.init_cache(4, N, dtype)
        _, cache = quick(run.prefill)(weights, tokens[:, :9], valid[:, :9], cache)
        logits, cache = quick(run.step)(weights, tokens[:, 9:10], valid[:, 9:10], cache)
        results.append(np.asarray(logits))
        assert cache["layers"][0]["0"]["k"].dtype == dtype
    difference = np.abs(results[0] - results[1]).max()
    assert 0 < difference < 0.02 * np.abs(results[0]).max()


@pytest.mark.parametrize(
    ("changes", "text", "message"),
    [
        ({"causal": False, "pooling": "mean"}, "full", "generation needs a causal model"),
        ({"pooling": "last"}, "full", "predicts the next token after each token"),
        ({"classes": 3}, "full", "3 classes and 11 tokens"),
        ({}, "cosformer", r"cosformer\(horizon=0\) cannot be run token by token"),
    ],
)
def test_what_cannot_be_continued(changes, text, message):
    with pytest.raises(InputError, match=message):
        decoding(sizes(**changes), genotype([text], [text]))


def test_rows_that_are_done_stay_as_they_are(rows):
    config = dataclasses.replace(sizes(), stem="bigram")
    weights = drawn(config, MIXED)
    run = decoding(config, MIXED)
    tokens, valid = map(jnp.asarray, rows)
    cache = run.init_cache(4, N, jnp.float32)
    _, cache = quick(run.prefill)(weights, tokens[:, :9], valid[:, :9], cache)
    done = jnp.array([[True], [False], [True], [False]])
    _, after = quick(run.step)(weights, tokens[:, 9:10], done, cache)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        np.testing.assert_array_equal(old[3], new[3])


# Layer by layer.


@pytest.mark.parametrize(
    ("layers", "changes", "kinds"),
    [
        ([["full"]] * 3, {}, [0, 0, 0]),
        ([["full"]] * 3, {"positions": "rotary", "nope_layers": (1,)}, [0, 1, 0]),
        ([["full"], ["linear"], ["full"], ["linear", "full", "full", "full"]], {}, [0, 1, 0, 3]),
        ([["performer(features=8)"]] * 2, {}, [0, 1]),  # random keys are a layer's own
    ],
)
def test_layers_that_are_alike(layers, changes, kinds):
    config = sizes(layers=len(layers), **changes)
    assert layer_kinds(config, genotype(*layers)) == kinds
    assert repeats_layers(config, genotype(*layers)) == (kinds == [0, 0, 0])


def test_layer_by_layer_it_is_the_same_model(rows):
    config = sizes(layers=4, positions="rotary", nope_layers=(1,), kv_heads=2, stem="bigram")
    derived = genotype(["full"], ["full"], ["local(window=3)"], ["full"])
    weights = drawn(config, derived)
    tokens, valid = map(jnp.asarray, rows)
    expected = reference(config, derived, weights, rows)
    logits = apply_by_layer(config, derived)(weights, tokens, valid)
    # A row without padding is read as it is.
    np.testing.assert_allclose(logits[0], expected[0], atol=2e-5, rtol=2e-5)
    run = decoding(config, derived, by_layer=True)
    cache = jax.jit(lambda: run.init_cache(4, N, jnp.float32))()
    logits, cache = run.prefill(weights, tokens[:, :9], valid[:, :9], cache)
    for row in range(4):
        last = np.flatnonzero(valid[row, :9])[-1]
        np.testing.assert_allclose(logits[row], expected[row, last], atol=2e-5, rtol=2e-5)
    for i in range(9, 12):
        logits, cache = run.step(weights, tokens[:, i : i + 1], valid[:, i : i + 1], cache)
        np.testing.assert_allclose(logits[0], expected[0, i], atol=2e-5, rtol=2e-5)
